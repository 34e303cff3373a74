"""Reading what may be damaged, half-written or gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfcausal.errors import RunError, TfCausalError


@contextmanager
def reading(
    path: Path, remedy: str, kinds: tuple[type[Exception], ...] = (Exception,), root: Path | None = None
) -> Iterator[None]:
    """Whatever goes wrong in reading a part of a run is an error that names it.

    Args:
        path: What is read.
        remedy: What to do where it is damaged.
        kinds: The errors that count as damage; a store of arrays, its codecs and the system can meet any.
        root: What is gone where the run is; None takes the path.

    Raises:
        RunError: It is damaged, or not there any more.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, reading(Path(folder), "Again."):
        ...     int("x")
        Traceback (most recent call last):
        tfcausal.errors.RunError: ...: cannot be read (ValueError: invalid literal for int() with base 10: 'x'). Again.
    """
    try:
        yield
    except TfCausalError:
        raise
    except kinds as error:
        if not (root or path).exists():
            raise RunError(f"{root or path} is gone: the run was deleted or moved.") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"{path}: cannot be read ({reason}). {remedy}") from error
