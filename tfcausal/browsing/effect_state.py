"""Which models of a run have effects, how far the others are, and what to do about them. No TensorFlow."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from tfcausal.effects.store import finished_models
from tfcausal.runs import RunDirectory


def measured_models(run: RunDirectory) -> tuple[str, ...]:
    """The models of a run whose effects are measured, in the order of the configuration."""
    return _in_order(run, finished_models(run.path))


def unfinished_models(run: RunDirectory) -> tuple[str, ...]:
    """The models of a run whose effects were begun to be measured, and are not all there."""
    begun = {path.parent.name for path in (run.path / "effects").glob("*/settings.json")}
    return _in_order(run, begun - set(finished_models(run.path)))


def what_to_do(run: RunDirectory, model: str | None = None) -> tuple[str, str]:
    """What to do about effects that are not measured.

    Args:
        run: The run.
        model: One of its models; None for all of them.

    Returns:
        A sentence, and a command.
    """
    wanted = list(run.config.models) if model is None else [model]
    half = [name for name in unfinished_models(run) if model in (None, name)]
    untrained = [name for name in wanted if name in run.config.models and not run.model_path(name).exists()]
    if half:
        text = f"The effects of {', '.join(half)} are measured in part. What began it goes on, with the same settings:"
        return text, measure_command(run, model)
    if untrained:
        text = f"No effects are measured yet, and {', '.join(untrained)} must be trained first:"
        return text, f"tfcausal run --resume {shlex.quote(str(run.path))}"
    of = f" of {model}" if model else ""
    return f"No effects{of} are measured yet. To measure them, in minutes:", measure_command(run, model)


def effects_version(run_path: Path) -> str:
    """What changes whenever the effects of a run do, for caches; the same for a run that is gone."""
    patterns = ("effects.parquet", "detection.parquet", "effects/*/*.json", "effects.zarr/*/zarr.json")
    found = sorted(path for pattern in patterns for path in run_path.glob(pattern))
    return " ".join(f"{path.relative_to(run_path).as_posix()}:{_changed(path)}" for path in found)


def measure_command(run: RunDirectory, model: str | None = None) -> str:
    """The command that measures the effects of a model of a run; None for all models."""
    return f"tfcausal effects {shlex.quote(str(run.path))}" + (f" --model {shlex.quote(model)}" if model else "")


def _in_order(run: RunDirectory, names: Collection[str]) -> tuple[str, ...]:
    known = [name for name in run.config.models if name in names]
    return (*known, *sorted(name for name in names if name not in known))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
