"""Files and folders that are complete whenever they are there, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from tfcausal.errors import InvalidArgument, RunError, message

PARTIAL_PREFIX = ".partial-"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name, and rename it when it is complete.

    What was there before is replaced; after an error it is still there, and nothing else. A file is replaced in one
    step. For a folder that exists it takes two: a process that is killed in between leaves none.

    Args:
        path: The file or folder. Folders above it are made.

    Yields:
        The path to write to: in the same folder and with the same suffixes, which Keras and zarr look at.

    Raises:
        RunError: If nothing was written, or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder, "model.weights.h5")) as partial:
        ...         _ = partial.write_bytes(b"weights")
        ...     [file.name for file in Path(folder).iterdir()]
        ['model.weights.h5']
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield partial
        if not partial.exists():
            raise RunError(f"{path}: expected something to be written to {partial.name}; received nothing.")
        try:
            _replace(partial, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        remove(partial)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is never there half-written, not even after a power cut.

    Args:
        path: The file. Folders above it are made.
        content: Text, written in UTF-8, or bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    # Names of files that are not valid text (lone surrogates) are escaped as JSON does.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with atomic_path(path) as partial:
        try:
            partial.write_bytes(data)
        except OSError as error:
            raise cannot_write(Path(path), error) from error


def partial_path(path: Path) -> Path:
    """A temporary name beside a path, not used before."""
    return path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(4)}.{path.name}")


def partial_paths_of(path: Path) -> list[Path]:
    """What was written under temporary names of a path and never renamed."""
    prefix, suffix = len(PARTIAL_PREFIX) + 8, f".{path.name}"
    return [other for other in path.parent.glob(f"{PARTIAL_PREFIX}*") if other.name[prefix:] == suffix]


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error to raise where the system does not let a path be written."""
    return RunError(
        f"{path}: cannot be written: {error.strerror}. Check the path, its permissions and the disk's space."
    )


def to_json(value: object) -> str:
    """Write JSON: indented, keys sorted, numbers of numpy as numbers, NaN and infinities as null.

    Args:
        value: Nested mappings, lists and tuples of texts, numbers, booleans, None, and numpy scalars and arrays.

    Returns:
        The text.

    Raises:
        InvalidArgument: If something else is in it; the message says where.

    Example:
        >>> print(to_json({"b": float("nan"), "a": (1, 2.5)}), end="")
        {
          "a": [
            1,
            2.5
          ],
          "b": null
        }
    """
    return json.dumps(_plain(value, "value"), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any, place: str) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{place}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    expected = "a text, a number, a boolean, None, or a mapping, list or array of these"
    raise InvalidArgument(message(place, expected, f"an object of type {type(value).__name__}"))


def _replace(partial: Path, path: Path) -> None:
    if partial.is_file():
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    if path.is_dir():
        aside = partial_path(path)  # a folder that is not empty cannot be renamed over
        os.rename(path, aside)
        try:
            os.rename(partial, path)
        except OSError:
            os.rename(aside, path)
            raise
        remove(aside)
    else:
        os.replace(partial, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def try_lock(file: TextIO) -> bool:
    """Lock an open file for this process; false if another has it. Where there are no locks it is always true."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for writing.

    The operating system releases the lock when the process ends, however it ends. On Windows, and on file systems
    without locks, nothing is locked.

    Args:
        folder: A folder that is there.

    Raises:
        RunError: If another process holds it.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(folder / ".lock", "a+", encoding="ascii"))
        except OSError as error:
            raise cannot_write(folder, error) from error
        if not try_lock(file):
            file.seek(0)
            holder = f"another process (pid {file.read() or 'unknown'})"
            raise RunError(f"{folder} is being written by {holder}. Wait until it has ended.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
