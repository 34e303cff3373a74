"""The folder of an exported model, with a folder for every version, as TensorFlow Serving looks for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from tfcausal.atomic import cannot_write, partial_path, remove
from tfcausal.errors import InvalidArgument, RunError, message


def check_name(name: str) -> str:
    """The name of an exported model, which is a folder and a part of a server's addresses.

    Raises:
        InvalidArgument: It cannot be either.

    Example:
        >>> check_name("digits")
        'digits'
    """
    usable = name.isprintable() and not set(name).intersection('/\\:*?"<>| #%') and not name.startswith(".")
    if not name or not usable:
        expected = "a name without spaces, slashes and other characters that have a meaning in addresses"
        raise InvalidArgument(message("name", expected, repr(name), "Use --name."))
    return name


def versions(folder: Path) -> list[int]:
    """The versions that are there, in order; folders with other names are none.

    Args:
        folder: The folder of an exported model.
    """
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(int(path.name) for path in found if path.name.isascii() and path.name.isdigit())


def chosen_version(folder: Path, version: int | None) -> int:
    """The version to write: the one that is wanted, or the next.

    Args:
        folder: The folder of an exported model.
        version: What is wanted; None takes the next.

    Returns:
        A number that is free.

    Raises:
        InvalidArgument: It is not a positive integer.
        RunError: There is one with this number; versions are never replaced, because servers and their clients count on
            what a number stands for.
    """
    known = versions(folder)
    if version is None:
        return max(known, default=0) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidArgument(message("version", "a positive integer", repr(version)))
    if version in known or (folder / str(version)).exists():
        raise _taken(folder, version)
    return version


class NewVersion:
    """A version that is being written, under a name that a server does not look at; a context manager.

    It appears when it is published, and complete. What is left unpublished at the end of the block is removed.

    Args:
        folder: The folder of an exported model, made if missing.
        version: A number that is free.

    Attributes:
        folder: Where to write to.
        path: Where it will be.

    Raises:
        RunError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with NewVersion(Path(folder), 1) as version:
        ...         _ = (version.folder / "card.md").write_text("# digits")
        ...         before = versions(Path(folder))
        ...         version.publish()
        ...     before, versions(Path(folder))
        ([], [1])
    """

    def __init__(self, folder: Path, version: int) -> None:
        self._version = version
        self.path = folder / str(version)
        self.folder = partial_path(self.path)

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(self, *error: object) -> None:
        remove(self.folder)

    def publish(self) -> None:
        """Give it its number.

        Raises:
            RunError: Another process has published this number in the meantime, or the folder cannot be written to.
        """
        try:
            # Unlike `replace`, it fails where the number was taken in the meantime.
            self.folder.rename(self.path)
        except OSError as error:
            if self.path.exists():
                raise _taken(self.path.parent, self._version) from error
            raise cannot_write(self.path, error) from error
        _sync(self.path.parent)


def _taken(folder: Path, version: int) -> RunError:
    following = max(versions(folder), default=0) + 1
    remedy = f"Leave --version out for the next, {following}."
    return RunError(f"{folder / str(version)} exists, and a version is never replaced. {remedy}")


def _sync(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
