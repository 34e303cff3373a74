"""A folder of runs, to look around in: which runs there are, how far they are, what they say. Needs no TensorFlow.

Every name is checked before it becomes a path, and a run that cannot be read is shown as such and disturbs no other.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfcausal.browsing.reading import reading
from tfcausal.config import RunConfig
from tfcausal.errors import InvalidArgument, TfCausalError, message
from tfcausal.runs import RunDirectory, Status

if TYPE_CHECKING:
    import pandas

RunState = Literal["running", "stopped", "complete", "failed", "broken"]
MEASURES = {
    "accuracy": "share of right answers",
    "mask_energy": "share of positive saliency inside the true mask",
    "mask_energy_chance": "the mask's share of the area: what a uniform map has",
    "deletion": "area under the probability while salient pixels are deleted; lower is better",
    "deletion_random": "the same with pixels in random order",
}
"""What is measured on every split, and what it says."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SNAPSHOT = re.compile(r"saliency-epoch-[0-9]+\.png")


@dataclass(frozen=True)
class RunSummary:
    """A run in a list.

    Attributes:
        name: Its name.
        state: `complete`, `failed`, `running`, `stopped` (not finished, and no process works on it) or `broken` (it
            cannot be read).
        problem: What went wrong, if it is `failed` or `broken`.
        started: When it was created, in ISO 8601; empty if broken.
        updated: When its state last changed, in ISO 8601; empty if broken.
        models: Its models; none if broken.
    """

    name: str
    state: RunState
    problem: str | None = None
    started: str = ""
    updated: str = ""
    models: tuple[str, ...] = ()


class RunsFolder:
    """A folder of run directories.

    Args:
        path: The folder; it may be missing or empty. If it is itself a run directory, its parent is meant.

    Attributes:
        path: The folder, absolute.
        chosen: Name of the run that was given in place of the folder, or None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     (Path(root) / "half").mkdir()
        ...     _ = (Path(root) / "half" / "run.yaml").write_text("version: 1")
        ...     [(run.name, run.state) for run in RunsFolder(root).summaries()]
        [('half', 'broken')]
    """

    def __init__(self, path: str | Path) -> None:
        resolved = Path(path).resolve()
        is_run = (resolved / "run.yaml").is_file()
        self.path = resolved.parent if is_run else resolved
        self.chosen = resolved.name if is_run else None

    def names(self) -> list[str]:
        """Names of the runs, the one that changed last first; folders that are no runs are left out."""
        try:
            folders = [entry for entry in self.path.iterdir() if _NAME.fullmatch(entry.name) and self._is_inside(entry)]
        except OSError:
            return []
        runs = [folder for folder in folders if (folder / "run.yaml").exists() or (folder / "status.json").exists()]
        return [folder.name for folder in sorted(runs, key=lambda run: (-_changed(run / "status.json"), run.name))]

    def open(self, name: str) -> RunDirectory:
        """Open a run by its name.

        Args:
            name: A name, as in :meth:`names`; no path.

        Raises:
            InvalidArgument: It is no name of a run, or leads out of the folder.
            RunError: There is no such run, or it is damaged.
        """
        if not _NAME.fullmatch(name) or not self._is_inside(self.path / name):
            remedy = f"Choose one of the runs in {self.path}."
            raise InvalidArgument(message("run", "the name of a run", repr(name[:200]), remedy))
        with _reading(self.path / name):
            return RunDirectory.open(self.path / name)

    def summary(self, name: str) -> RunSummary:
        """How far a run is; a run that cannot be read is `broken`.

        Args:
            name: Its name.
        """
        try:
            run = self.open(name)
            status = run.status
            _check_status(run, status)
        except TfCausalError as error:
            return RunSummary(name, "broken", str(error))
        models = tuple(run.config.models)
        return self.refreshed(RunSummary(name, status.state, status.error, status.started, status.updated, models))

    def refreshed(self, summary: RunSummary) -> RunSummary:
        """A summary that is still true, with whether a process works on an unfinished run by now; reads no settings.

        Args:
            summary: As from :meth:`summary`, of a run that has the same :meth:`version` since.
        """
        if summary.state not in ("running", "stopped"):
            return summary
        return replace(summary, state="stopped" if _is_abandoned(self.path / summary.name) else "running")

    def version(self, name: str) -> str:
        """What changes whenever a finished part of a run does, for caches; the same for a run that is gone.

        Args:
            name: Its name.
        """
        if not _NAME.fullmatch(name) or not self._is_inside(self.path / name):
            return ""
        files = ("run.yaml", "status.json", "metrics.json", "maps.zarr/zarr.json")
        return " ".join(str(_changed(self.path / name / file)) for file in files)

    def summaries(self) -> list[RunSummary]:
        """All runs, the one that changed last first."""
        return [self.summary(name) for name in self.names()]

    def _is_inside(self, path: Path) -> bool:
        return path.is_dir() and path.resolve().parent == self.path


def epochs_done(run: RunDirectory) -> dict[str, tuple[int, int]]:
    """How many epochs of every model are done, and how many there are to be; 0 of a model without epochs.

    Args:
        run: The run.
    """
    return {name: (len(_history(run, name)), run.config.epochs_of(name)) for name in run.config.models}


def training_curves(run: RunDirectory) -> pandas.DataFrame:
    """What was logged while the models of a run were trained, as far as it has come.

    Args:
        run: The run.

    Returns:
        One row per model, epoch and value, with the columns `model`, `epoch`, `part` (`training` or `validation`),
        `value` (`loss`, `accuracy`, or a term of the loss) and `number`; empty before the first epoch.

    Raises:
        RunError: A table is damaged.
    """
    import pandas

    rows = []
    for model in run.config.models:
        with _reading(run.path / "models" / model):
            for row in _history(run, model):
                for key, number in row.items():
                    if key in ("epoch", "seconds") or not isinstance(number, int | float):
                        continue
                    part, value = ("validation", key[4:]) if key.startswith("val_") else ("training", key)
                    rows.append((model, int(row["epoch"]), part, value, float(number)))
    return pandas.DataFrame(rows, columns=["model", "epoch", "part", "value", "number"])


def snapshots(run: RunDirectory) -> dict[str, list[Path]]:
    """Pictures of the maps of some images while the models were trained, by model, the last epoch first.

    Args:
        run: The run.
    """
    found = {
        model: sorted(
            (file for file in (run.path / "snapshots" / model).glob("*.png") if _SNAPSHOT.fullmatch(file.name)),
            reverse=True,
        )
        for model in run.config.models
    }
    return {model: files for model, files in found.items() if files}


def measures(run: RunDirectory) -> pandas.DataFrame:
    """Every number that a run has measured on its splits.

    Args:
        run: A run that is complete.

    Returns:
        One row per model, split and measure, with the columns `model`, `method`, `split`, `measure`, `value`, `low`,
        `high` (95 % interval) and `n`; and the accuracy of the worst group as `worst_group`.

    Raises:
        RunError: There are no metrics yet, or they are damaged.
    """
    import pandas

    columns = ["model", "method", "split", "measure", "value", "low", "high", "n"]
    rows = []
    with _reading(run.path / "metrics.json"):
        metrics = run.metrics
        for name in metrics["model_names"]:
            model = metrics["models"][name]
            estimates = [
                (split, measure, model["splits"][split][measure])
                for split in metrics["split_names"]
                for measure in MEASURES
            ]
            groups, worst = " + ".join(metrics["group_splits"]), f"worst_group ({model['worst_group']['name']})"
            for split, measure, estimate in [*estimates, (groups, worst, model["worst_group"])]:
                numbers = (estimate[key] for key in ("value", "low", "high", "n"))
                rows.append((name, model["method"], split, measure, *numbers))
    return pandas.DataFrame(rows, columns=columns)


def deletion_curves(run: RunDirectory, split: str) -> dict[str, tuple[list[float], list[float]]]:
    """Mean probability of the predicted class while pixels are deleted, most salient first, and in random order.

    Args:
        run: A run that is complete.
        split: Name of a split.

    Returns:
        By model, two curves over shares of deleted pixels from 0 to 1; models not measured on the split are left out.

    Raises:
        RunError: There are no metrics yet, or they are damaged.
    """
    curves = {}
    with _reading(run.path / "metrics.json"):
        metrics = run.metrics
        for name in metrics["model_names"]:
            values = metrics["models"][name]["splits"].get(split, {})
            if values.get("deletion_curve"):
                curves[name] = (list(values["deletion_curve"]), list(values["deletion_random_curve"]))
    return curves


def config_differences(configs: Mapping[str, RunConfig]) -> pandas.DataFrame:
    """The settings in which runs differ.

    Args:
        configs: By name of the run.

    Returns:
        One row per setting that is not the same in all, by its key path, with a column of texts per run; `–` where a
        run does not have it.
    """
    import pandas

    flat = {name: dict(_settings(config.model_dump(mode="json"))) for name, config in configs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    rows = {key: [settings.get(key, "–") for settings in flat.values()] for key in keys if key != "name"}
    different = {key: values for key, values in rows.items() if len(set(values)) > 1}
    return pandas.DataFrame.from_dict(different, orient="index", columns=list(flat))


def _settings(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", "null" if value is None else str(value)


def _history(run: RunDirectory, model: str) -> list[dict[Any, Any]]:
    if not (run.path / "models" / model / "history.csv").exists():
        return []
    with _reading(run.path):
        return run.history(model).to_dict("records")


def _check_status(run: RunDirectory, status: Status) -> None:
    with _reading(run.path / "status.json"):
        for moment in (status.started, status.updated):
            datetime.fromisoformat(moment)
        if not isinstance(status.error, str | None):
            raise TypeError(f"error: expected a text or null; received {type(status.error).__name__}")


def _is_abandoned(run: Path) -> bool:
    """Whether the process that held the lock of an unfinished run is gone; false where that cannot be told."""
    if sys.platform == "win32":  # there, signal 0 ends the process
        return False
    try:
        holder = int((run / ".lock").read_text(encoding="ascii"))
        os.kill(holder, 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # another user's process, no lock yet, or none on this system
        return False
    return False


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _reading(path: Path) -> AbstractContextManager[None]:
    kinds = (OSError, ValueError, LookupError, TypeError, AttributeError)
    return reading(path, "Remove the run's directory and run again.", kinds)
