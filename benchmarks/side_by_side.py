"""Interleaved timing of alternatives in one process, a table of medians and ratios, and a JSON file."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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


def report(title: str, seconds: dict[str, list[float]], floor: str, limits: dict[str, float], file: str) -> None:
    """Print the medians and their ratio to the floor, and write them to `results/<file>.json`.

    The ratio is the median of the ratios within a round, so that a slow minute of the machine counts for both.
    """
    table = Table(title=title)
    for column in ("what", "median s", "min s", "max s", f"ratio to {floor}", "at most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = []
    for name, values in seconds.items():
        ratio = float(np.median(np.array(values) / np.array(seconds[floor])))
        limit = limits.get(name)
        rows.append(
            {
                "what": name,
                "median": float(np.median(values)),
                "min": min(values),
                "max": max(values),
                "ratio": ratio,
                "limit": limit,
            }
        )
        cells = [name, *(f"{rows[-1][key]:.4f}" for key in ("median", "min", "max")), f"{ratio:.3f}"]
        table.add_row(*cells, "" if limit is None else f"{limit:.2f}")
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    versions = {name: _version(name) for name in ("tensorflow", "keras", "numpy")}
    result = {"title": title, "floor": floor, "rows": rows, "machine": platform.machine(), "versions": versions}
    (RESULTS / f"{file}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
