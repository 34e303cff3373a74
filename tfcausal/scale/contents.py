"""What is in many image files, wherever they lie: read block by block, and never all of it.

Files come through the file systems of pyarrow: folders of this machine, and addresses such as `s3://bucket/images`,
`gs://...` or `file:///...`. What cannot be read is said of the image, in place of its content.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow
from pyarrow import fs

from tfcausal.errors import DataError, InvalidArgument, message
from tfcausal.scale.blocks import Block


@dataclass(frozen=True)
class Content:
    """An image as it was read.

    Attributes:
        name: What it is called in results.
        data: What is in the file; empty if it could not be read.
        error: Why it could not be read; empty if it was.
    """

    name: str
    data: bytes
    error: str = ""


class Reader(Protocol):
    """Reads the images of blocks; picklable, for the processes in which blocks are done."""

    def __call__(self, block: Block) -> Iterator[Content]:
        """The images of a block, one for each of its positions."""


class Images(Protocol):
    """Images in an order that stays."""

    @property
    def kind(self) -> str:
        """`files` or `parquet`."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Tells these images from others, by names and sizes."""

    def block(self, block: Block) -> Block:
        """A block with what the reader must be told."""

    def reader(self) -> Reader:
        """What reads blocks of them."""


@dataclass(frozen=True)
class Place:
    """A folder or a file in a file system.

    Attributes:
        address: As the user gave it.
        filesystem: A file system of pyarrow.
        path: The path in it.
    """

    address: str
    filesystem: fs.FileSystem
    path: str


def place_of(address: str) -> Place:
    """The file system that an address is in, and the path there.

    Args:
        address: A path of this machine, or an address with `://` in it.

    Raises:
        InvalidArgument: An address that pyarrow does not know.

    Example:
        >>> place_of("file:///data/images").path
        '/data/images'
    """
    if "://" not in address:
        return Place(address, fs.LocalFileSystem(), posixpath.abspath(address))
    try:
        filesystem, path = fs.FileSystem.from_uri(address)
    except (pyarrow.ArrowException, OSError) as error:
        expected = "a path, or an address of a file system that pyarrow knows, such as s3://, gs:// or file://"
        raise InvalidArgument(message("images", expected, f"{address!r} ({_reason(error)})")) from None
    return Place(address, filesystem, path.rstrip("/") or path)


class ImageFiles:
    """Image files.

    Args:
        filesystem: Where they are.
        root: The folder above all of them.
        files: Their paths below it and sizes in bytes, each once.
    """

    kind = "files"

    def __init__(self, filesystem: fs.FileSystem, root: str, files: Sequence[tuple[str, int]]) -> None:
        self._filesystem, self._root = filesystem, root
        files = sorted(files, key=lambda file: file[0].split("/"))
        self._names = pyarrow.array([name for name, _ in files], pyarrow.large_string())
        self._digest = digest(files)

    def __len__(self) -> int:
        return len(self._names)

    def fingerprint(self) -> str:
        """Tells these images from others, by names and sizes."""
        return self._digest

    def block(self, block: Block) -> Block:
        """A block with the names of its images."""
        return Block(block.index, block.start, block.stop, tuple(self._names[block.start : block.stop].to_pylist()))

    def reader(self) -> Reader:
        """What reads blocks of them."""
        return FileReader(self._filesystem, self._root)


@dataclass(frozen=True)
class FileReader:
    """Reads image files by the names that a block brings along.

    Attributes:
        filesystem: Where they are.
        root: The folder that the names begin at.
    """

    filesystem: fs.FileSystem
    root: str

    def __call__(self, block: Block) -> Iterator[Content]:
        """The images of a block."""
        for name in block.names:
            yield read_file(name, self.filesystem, posixpath.join(self.root, name))


def read_file(name: str, filesystem: fs.FileSystem, path: str) -> Content:
    """A whole file, or why it cannot be read.

    Args:
        name: What it is called in results.
        filesystem: Where it is.
        path: Its path there.
    """
    try:
        with filesystem.open_input_stream(path) as stream:
            return Content(name, stream.read())
    except FileNotFoundError:
        return Content(name, b"", "the file is gone")
    except (pyarrow.ArrowException, OSError) as error:
        return Content(name, b"", f"the file cannot be read ({_reason(error)})")


def listed(place: Place) -> list[fs.FileInfo]:
    """The files at a place, itself or below it, without hidden ones.

    Args:
        place: The place.

    Raises:
        DataError: There is nothing, or it cannot be listed.
    """
    try:
        (info,) = place.filesystem.get_file_info([place.path])
        if info.type == fs.FileType.File:
            return [info]
        if info.type == fs.FileType.NotFound:
            raise DataError(message(place.address, "images, or a folder of them", "nothing at that place"))
        below = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True))
        return [info for info in below if info.type == fs.FileType.File and not info.base_name.startswith(".")]
    except UnicodeError as error:
        received, remedy = "a name that is not UTF-8, which pyarrow cannot read", "Rename it."
        raise DataError(message(ascii(place.address), "images, or a folder of them", received, remedy)) from error
    except (pyarrow.ArrowException, OSError) as error:
        received = f"an error of the file system ({_reason(error)})"
        raise DataError(message(place.address, "images, or a folder of them", received)) from None


def digest(values: Sequence[Any]) -> str:
    """A fingerprint of values, by their texts and their order.

    Example:
        >>> digest([("a.png", 3)]) == digest([("a.png", 4)])
        False
    """
    made = hashlib.sha256()
    for value in values:
        made.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    return made.hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
