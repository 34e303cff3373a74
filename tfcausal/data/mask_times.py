"""How long a person drew: a table that grows by a row with every mask, whoever else writes into it."""

from __future__ import annotations

import csv
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tfcausal.atomic import cannot_write, try_lock
from tfcausal.errors import RunError

COLUMNS = ("saved", "image", "seconds", "area", "replaced")
"""When the mask was saved (ISO 8601, UTC), of which image, the seconds it took, its share of the image, and whether it
took the place of another."""
_SECONDS_TO_LOCK = 10.0


class MaskTimes:
    """The table of times; a row that was cut off by a crash spoils none but itself.

    Args:
        path: The file, CSV with a line of `COLUMNS`; it need not be there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     times = MaskTimes(Path(folder, "times.csv"))
        ...     with times.locked():
        ...         times.append("images/cat/1.png", seconds=4.0, area=0.25, replaced=False)
        ...         times.append("images/cat/1.png", seconds=2.0, area=0.21, replaced=True)
        ...     times.seconds()
        {'images/cat/1.png': 6.0}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the table, so that no other process writes into it or saves a mask meanwhile.

        Raises:
            RunError: It cannot be written, or another program does not let it go.
        """
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.path, "a", encoding="utf-8"))
            except OSError as error:
                raise cannot_write(self.path, error) from error
            end = time.monotonic() + _SECONDS_TO_LOCK
            while not try_lock(file):
                if time.monotonic() > end:
                    raise RunError(f"{self.path} is held by another program. Try again when it has ended.")
                time.sleep(0.02)
            yield

    def append(self, image: str, seconds: float, area: float, replaced: bool) -> None:
        """Add a row; within :meth:`locked`.

        Args:
            image: Name of the image.
            seconds: Time that was spent on it, 0 or more.
            area: Share of the image that the mask covers.
            replaced: Whether there was a mask before.

        Raises:
            RunError: It cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = (now, image, f"{max(seconds, 0.0):.1f}", f"{area:.6f}", str(replaced).lower())
        try:
            with open(self.path, "ab+") as table:
                size = table.seek(0, os.SEEK_END)
                table.seek(max(0, size - 1))
                cut_off = size > 0 and table.read(1) != b"\n"
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if not size:
                    writer.writerow(COLUMNS)
                elif cut_off:
                    file.write("\n")
                writer.writerow(row)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def seconds(self) -> dict[str, float]:
        """The time that was spent on every image, in seconds, by name; each time that it was saved counts.

        A row that is damaged is passed over; without a table there are none.
        """
        spent: dict[str, float] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "").splitlines()
        except OSError:
            return spent
        for line in lines[1:]:
            try:
                _, name, took, _, _ = next(csv.reader([line]))
                seconds = float(took)
            except (ValueError, csv.Error, StopIteration):
                continue
            if 0.0 <= seconds < math.inf:
                spent[name] = spent.get(name, 0.0) + seconds
        return spent


def median_seconds(seconds: Mapping[str, float]) -> float | None:
    """The median time per image.

    Args:
        seconds: By image, as from :meth:`MaskTimes.seconds`.

    Returns:
        Seconds, or None if no image has been saved.

    Example:
        >>> median_seconds({"a": 4.0, "b": 30.0, "c": 5.0})
        5.0
    """
    return statistics.median(seconds.values()) if seconds else None
