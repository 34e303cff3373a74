"""Interleaved timing of alternatives in one process, a table of medians and ratios, and a JSON file."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Comparison:
    """`what` is to take at most `limit` times as long as `than`."""

    what: str
    than: str
    limit: float


def measure(
    alternatives: dict[str, Callable[[], object]], repeats: int = 7, warm_up: int = 2
) -> dict[str, list[float]]:
    """Run the alternatives in turn, `repeats` times each after `warm_up` rounds; gives seconds per run."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for repeat in range(warm_up + repeats):
        for name, function in alternatives.items():
            begin = time.perf_counter()
            function()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def report(
    title: str,
    seconds: dict[str, list[float]],
    floor: str,
    limits: dict[str, float],
    file: str,
    comparisons: Sequence[Comparison] = (),
    details: dict[str, object] | None = None,
) -> bool:
    """Print the medians and their ratio to the floor, and write them to `results/<file>.json`.

    The ratio is the median of the ratios within a round, so that a slow minute of the machine counts for both.

    Args:
        title: What was measured.
        seconds: Seconds of every round, as many for each name.
        floor: The name that the ratios refer to.
        limits: The largest ratio to the floor that is asked for, by name.
        file: Name of the JSON file, without ending.
        comparisons: Limits that refer to another name than the floor, in a table of their own.
        details: What else goes into the JSON file.

    Returns:
        Whether every limit whose names were measured is kept.
    """
    rows = []
    for name, values in seconds.items():
        measured = {"median": float(np.median(values)), "min": min(values), "max": max(values)}
        ratio = _ratio(seconds, name, floor)
        rows.append({"what": name, **measured, "ratio": ratio, "limit": limits.get(name)})
    compared = [
        {**asdict(comparison), "ratio": _ratio(seconds, comparison.what, comparison.than)}
        for comparison in comparisons
        if comparison.what in seconds and comparison.than in seconds
    ]
    Console().print(_medians(title, rows, floor))
    if compared:
        Console().print(_compared(compared))
    RESULTS.mkdir(exist_ok=True)
    versions = {name: _version(name) for name in ("tensorflow", "keras", "numpy")}
    result = {"title": title, "floor": floor, "rows": rows, "machine": platform.machine(), "versions": versions}
    if comparisons:
        result["comparisons"] = compared
    result |= details or {}
    (RESULTS / f"{file}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return all(row["limit"] is None or row["ratio"] <= row["limit"] for row in (*rows, *compared))


def _ratio(seconds: dict[str, list[float]], name: str, than: str) -> float:
    return float(np.median(np.array(seconds[name]) / np.array(seconds[than])))


def _medians(title: str, rows: list[dict], floor: str) -> Table:
    table = Table(title=title)
    for column in ("what", "median s", "min s", "max s", f"ratio to {floor}", "at most"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=column == "what")
    for row in rows:
        times = (f"{row[key]:.4f}" for key in ("median", "min", "max"))
        limit = "" if row["limit"] is None else f"{row['limit']:.2f}"
        table.add_row(row["what"], *times, f"{row['ratio']:.3f}", limit)
    return table


def _compared(rows: list[dict]) -> Table:
    table = Table("what", "compared with")
    for column in ("ratio", "at most"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["what"], row["than"], f"{row['ratio']:.3f}", f"{row['limit']:.2f}")
    return table


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
