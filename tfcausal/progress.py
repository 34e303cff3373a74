"""Progress with the time left: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 10.0


class Track(Protocol):
    """Advances one task: by a number of steps, with a note that replaces the last one."""

    def __call__(self, steps: int = 1, note: str | None = None) -> None:
        """Advance."""


class ConsoleProgress:
    """Shows how far the tasks of a run are and how long they will take.

    Args:
        console: Where to write; None is standard error.

    Example:
        >>> with ConsoleProgress(Console(quiet=True)) as progress, progress.task("training", total=2) as advance:
        ...     advance(note="loss 0.7")
        ...     advance(note="loss 0.5")
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Write a sentence, above the bars where there are some."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def task(self, description: str, total: int | None, done: int = 0) -> Iterator[Track]:
        """Show one task.

        Args:
            description: What is done.
            total: Number of steps; None where it is not known, and with it the time left.
            done: Steps that were done before, in an earlier process; they do not count for the time left.

        Yields:
            A function that advances the task.
        """
        if not self.console.is_terminal:
            yield _Lines(self.console, description, total, done)
            return
        task = self._bars.add_task(description, total=total, completed=done, note="")
        yield lambda steps=1, note=None: self._bars.update(
            task, advance=steps, **({} if note is None else {"note": note})
        )


class _Lines:
    def __init__(self, console: Console, description: str, total: int | None, done: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._done = self._first = done
        self._begin = self._last = time.monotonic()
        self._note = ""

    def __call__(self, steps: int = 1, note: str | None = None) -> None:
        self._done += steps
        self._note = self._note if note is None else note
        if not steps:
            return
        now = time.monotonic()
        finished = self._total is not None and self._done >= self._total
        if not finished and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        elapsed = now - self._begin
        count, times = str(self._done), _clock(elapsed)
        if self._total is not None:
            left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
            count, times = f"{count}/{self._total}", f"{times}, left {_clock(left)}"
        line = f"{self._description:<28} {count}  {times}  {self._note}"
        self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
