"""What a user names on the command line becomes images: files, folders, parquet files, addresses of object stores."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyarrow import fs

from tfcausal.data.folder_layout import IMAGE_SUFFIXES
from tfcausal.errors import DataError, InvalidArgument, message
from tfcausal.scale.contents import ImageFiles, Images, Place, listed, place_of
from tfcausal.scale.parquet_images import ParquetImages

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_KINDS = {"images": IMAGE_SUFFIXES, "tables": (".parquet",)}


def check_apart(output: Path, addresses: Sequence[str]) -> None:
    """Check that results are written to this machine's file system, and not among the images, where they would be read.

    Args:
        output: The folder to write to.
        addresses: Where the images are.

    Raises:
        InvalidArgument: Otherwise.

    Example:
        >>> check_apart(Path("explanations"), ["images", "s3://bucket/images"])
    """
    if _ADDRESS.match(str(output)):  # of `s3://bucket`, a path has kept one slash
        expected = "a folder of a file system of this machine"
        raise InvalidArgument(message("output", expected, str(output), "Mount the store, or copy the results to it."))
    for address in addresses:
        if "://" not in address or address.startswith("file:"):
            images = Path(place_of(address).path).resolve()
            if images.is_dir() and Path(output).resolve().is_relative_to(images):
                raise InvalidArgument(message("output", f"a folder outside of the images in {images}", str(output)))


def open_images(addresses: Sequence[str], column: str | None = None) -> Images:
    """The images among and below some places, each once and in an order that stays.

    Args:
        addresses: Paths or addresses of files and folders, all in one file system: image files, or parquet files with
            images in their rows.
        column: The column of the parquet files with the images; None takes the only one that can be meant.

    Returns:
        The images. Image files are called by their path below the folder that is above all of them.

    Raises:
        DataError: No images, both kinds together, a file of another kind, or a file that cannot be read as parquet.
        InvalidArgument: An address that pyarrow does not know, several file systems, or no such column.
    """
    if not addresses:
        raise DataError(message("images", "at least one image file, folder, parquet file or address", "none"))
    places = [place_of(address) for address in addresses]
    filesystem = places[0].filesystem
    images: dict[str, int] = {}
    tables: dict[str, int] = {}
    folders = []
    for place in places:
        if not place.filesystem.equals(filesystem):
            received = f"{places[0].address} and {place.address}"
            raise InvalidArgument(message("images", "places in one file system", received, "Give them one by one."))
        infos = listed(place)
        is_file = [info.path for info in infos] == [place.path]
        folders.append(posixpath.dirname(place.path) if is_file else place.path)
        found = {info.path: info for info in infos}
        of_kind = {suffix: [path for path in found if _suffix(path) in suffixes] for suffix, suffixes in _KINDS.items()}
        if not any(of_kind.values()):
            raise _without_images(place, is_file)
        images |= {path: found[path].size for path in of_kind["images"]}
        tables |= {path: found[path].size for path in of_kind["tables"]}
    if isinstance(filesystem, fs.LocalFileSystem):
        images, tables = _once(images), _once(tables)
    if images and tables:
        received = f"{len(images)} image files and {len(tables)} parquet files"
        raise DataError(message("images", "image files or parquet files, not both", received, "Name one kind."))
    if tables:
        rows = ParquetImages(filesystem, list(tables.items()), column)
        if not len(rows):
            raise DataError(message("images", "tables with images in their rows", "tables without rows"))
        return rows
    if column is not None:
        raise InvalidArgument(message("column", "none beside image files", repr(column), "Leave out --column."))
    root = folders[0] if len(folders) == 1 else posixpath.commonpath(folders)
    return ImageFiles(filesystem, root, [(posixpath.relpath(path, root or "."), size) for path, size in images.items()])


def _once(sizes: Mapping[str, int]) -> dict[str, int]:
    """Every file under one of its paths, the first of them: links can lead to it by others."""
    paths: dict[str, str] = {}
    for path in sorted(sizes):
        paths.setdefault(os.path.realpath(path), path)
    return {path: sizes[path] for path in paths.values()}


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _without_images(place: Place, is_file: bool) -> DataError:
    kinds = ", ".join(suffix for suffixes in _KINDS.values() for suffix in suffixes)
    received = f"a file `{posixpath.basename(place.path)}`" if is_file else "none in it"
    return DataError(message(place.address, f"images, or a folder with some ({kinds})", received))
