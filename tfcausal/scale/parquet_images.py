"""Images in the rows of parquet files: their bytes, or the paths of image files."""

from __future__ import annotations

import posixpath
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import fs

from tfcausal.errors import DataError, InvalidArgument, message
from tfcausal.scale.blocks import Block
from tfcausal.scale.contents import Content, Reader, digest, place_of, read_file

_ROWS_AT_ONCE = 16
_STREAM_BYTES = 1 << 20


class ParquetImages:
    """Images in parquet files. Of the files, the metadata alone is read.

    Args:
        filesystem: Where the files are.
        files: Their paths and sizes in bytes, each once; the images are in the order of the files' names.
        column: The column with the images; None takes the only one that can be meant.

    Raises:
        DataError: A file that is not parquet, or that has another column than the first.
        InvalidArgument: There is no such column, or there are several and none is chosen.
    """

    kind = "parquet"

    def __init__(self, filesystem: fs.FileSystem, files: Sequence[tuple[str, int]], column: str | None) -> None:
        self._filesystem = filesystem
        parts, facts = [], []
        kind = None
        root = posixpath.commonpath([posixpath.dirname(path) for path, _ in files])
        for path, size in sorted(files):
            schema, metadata = _metadata(filesystem, path)
            column = column or _only_column(schema, path)
            kind = kind or _field(schema, column, path).type
            if _field(schema, column, path).type != kind:
                received = f"{schema.field(column).type} in {posixpath.basename(path)}"
                raise DataError(message(f"column {column}", f"{kind}, as in the first file", received))
            rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            name = posixpath.relpath(path, root or ".")
            parts.append(_File(path, name, rows))
            facts.append((name, size, rows))
        self.column = column
        self._reader = ParquetReader(filesystem, tuple(parts), str(column))
        self._digest = digest([*facts, column])

    def __len__(self) -> int:
        return self._reader.count

    def fingerprint(self) -> str:
        """Tells these images from others, by the files' names, sizes and rows."""
        return self._digest

    def block(self, block: Block) -> Block:
        """The block as it is: the reader knows the rows."""
        return block

    def reader(self) -> Reader:
        """What reads blocks of them."""
        return self._reader


@dataclass(frozen=True)
class _File:
    path: str
    name: str
    rows: tuple[int, ...]


@dataclass
class ParquetReader:
    """Reads images from rows.

    Of a row group, what lies before a block is passed over; blocks one after the other go on where the last one ended.
    In memory are a few rows at a time, and the pages of the file that they are in.

    Attributes:
        filesystem: Where the files are.
        files: Their paths, what they are called, and the rows of their row groups.
        column: The column with the images.
    """

    filesystem: fs.FileSystem
    files: tuple[_File, ...]
    column: str
    _stream: _Stream | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def __post_init__(self) -> None:
        groups = [
            (number, group, count) for number, file in enumerate(self.files) for group, count in enumerate(file.rows)
        ]
        self._groups = [(number, group) for number, group, _ in groups]
        self._stops = list(accumulate(count for _, _, count in groups))

    @property
    def count(self) -> int:
        """Number of rows in all files."""
        return self._stops[-1] if self._stops else 0

    def __call__(self, block: Block) -> Iterator[Content]:
        """The images of a block."""
        position = block.start
        while position < block.stop:
            place = bisect_right(self._stops, position)
            stop = min(block.stop, self._stops[place])
            begin = self._stops[place - 1] if place else 0
            yield from self._rows(place, position - begin, stop - begin)
            position = stop

    def _rows(self, place: int, start: int, stop: int) -> Iterator[Content]:
        number, group = self._groups[place]
        file = self.files[number]
        before, name = sum(file.rows[:group]), file.name
        row = start
        try:
            stream = self._stream
            if stream is None or stream.place != place or stream.position > start:
                self._close()
                self._stream = stream = _Stream(place, _opened(self.filesystem, file.path), group, self.column)
            for value in stream.values(start, stop):
                row += 1
                yield self._content(value, file.path, f"{name}#{before + row - 1}")
        except (pyarrow.ArrowException, OSError, DataError) as error:
            self._close()
            reason = f"row group {group} of {name} cannot be read ({' '.join(str(error).split())[:200]})"
            for left in range(row, stop):
                yield Content(f"{name}#{before + left}", b"", reason)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.file.close(force=True)
            self._stream = None

    def _content(self, value: Any, path: str, name: str) -> Content:
        if isinstance(value, dict):  # as Hugging Face writes images
            data, value = value["bytes"], value.get("path")
            if data is not None:
                return Content(value or name, data)
        if value is None:
            return Content(name, b"", "the value is null")
        if isinstance(value, bytes):
            return Content(name, value)
        if "://" in value:
            try:
                place = place_of(value)
            except InvalidArgument as error:
                return Content(value, b"", str(error))
            return read_file(value, place.filesystem, place.path)
        return read_file(value, self.filesystem, posixpath.join(posixpath.dirname(path), value))


class _Stream:
    """The rows of a row group, from the first to the last."""

    def __init__(self, place: int, file: pyarrow.parquet.ParquetFile, group: int, column: str) -> None:
        self.place, self.file, self.position = place, file, 0
        self._batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False)
        self._rest: pyarrow.Array | None = None

    def values(self, start: int, stop: int) -> Iterator[Any]:
        while self.position < stop:
            if self._rest is None or not len(self._rest):
                batch = next(self._batches, None)
                if batch is None:
                    raise DataError("it has fewer rows than it says")
                self._rest = batch.column(0)
            skipped = min(max(0, start - self.position), len(self._rest))
            taken = min(len(self._rest), stop - self.position) - skipped
            values = self._rest[skipped : skipped + taken]
            self._rest = self._rest[skipped + taken :]
            self.position += skipped + taken
            for value in values:
                yield value.as_py()


def _opened(filesystem: fs.FileSystem, path: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(
            filesystem.open_input_file(path), buffer_size=_STREAM_BYTES, pre_buffer=False
        )
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(message(path, "a parquet file", f"what cannot be read as one ({reason})")) from None


def _metadata(filesystem: fs.FileSystem, path: str) -> tuple[pyarrow.Schema, pyarrow.parquet.FileMetaData]:
    file = _opened(filesystem, path)
    try:
        return file.schema_arrow, file.metadata
    finally:
        file.close(force=True)


def _field(schema: pyarrow.Schema, column: str, path: str) -> pyarrow.Field:
    if column not in schema.names:
        columns = ", ".join(schema.names)
        remedy = "Choose one with --column."
        raise InvalidArgument(message("column", f"a column of {path} ({columns})", repr(column), remedy))
    found = schema.field(column)
    if not (_has_bytes(found.type) or _has_text(found.type)):
        expected = "a column of bytes, of texts, or of {bytes, path}"
        raise InvalidArgument(message("column", expected, f"{column!r} of {found.type}"))
    return found


def _only_column(schema: pyarrow.Schema, path: str) -> str:
    for test in (_has_bytes, _has_text):
        found = [column.name for column in schema if test(column.type)]
        if len(found) == 1:
            return str(found[0])
        if found:
            expected = f"the column of {path} with the images, one of {', '.join(found)}"
            raise InvalidArgument(message("column", expected, "none", "Choose it with --column."))
    expected = "a column of bytes, of texts, or of {bytes, path}"
    raise DataError(message(path, expected, ", ".join(f"{column.name} ({column.type})" for column in schema)))


def _has_bytes(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        children = {child.name: child.type for child in kind}
        path_is_text = "path" not in children or _has_text(children["path"])
        return "bytes" in children and _has_bytes(children["bytes"]) and path_is_text
    types = pyarrow.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _has_text(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
