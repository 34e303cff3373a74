"""The run directory: everything that a run leaves behind, written atomically and read lazily.

    runs/<name>/
      run.yaml           the resolved configuration
      status.json        running | complete | failed, with the error
      environment.json   versions, host, seed, git revision
      models/<model>/    model.keras, history.csv, and the checkpoints of an unfinished training
      snapshots/<model>/ pictures of the maps while the model was trained, if wanted
      metrics.json       every number of the report
      effects.parquet    causal effects, beside effects/ and effects.zarr (see `effects/store.py`)
      maps.zarr          images, saliency maps and answers (see `run_maps.py`)
      report.html        the report

A file is written under a temporary name and then renamed: under its own name it is always complete.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from tfcausal.atomic import (
    PARTIAL_PREFIX,
    atomic_path,
    cannot_write,
    folder_lock,
    partial_path,
    partial_paths_of,
    remove,
    to_json,
    write_atomic,
)
from tfcausal.config import RunConfig, dump_config, load_config
from tfcausal.config_errors import closest
from tfcausal.environment import environment
from tfcausal.errors import ConfigError, InvalidArgument, RunError, message

if TYPE_CHECKING:
    import pandas

__all__ = ["RunDirectory", "Status", "atomic_path", "environment", "write_atomic"]

State = Literal["running", "complete", "failed"]


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes:
        state: `running` (also of a run that was killed), `complete` or `failed`.
        started: When the run was created, in ISO 8601 with UTC.
        updated: When the state was last set, in ISO 8601 with UTC.
        error: What went wrong, if the state is `failed`.
    """

    state: State
    started: str
    updated: str
    error: str | None = None


class RunDirectory:
    """One run on disk. Made by :meth:`create` or :meth:`open`; what is in it is read when it is asked for.

    Attributes:
        path: The directory.
        name: Its name.

    Example:
        >>> import tempfile
        >>> from tfcausal.config import config_from_mapping
        >>> config = config_from_mapping({
        ...     "version": 1, "name": "try",
        ...     "data": {"source": "textured_digits"}, "models": {"plain": {"method": "plain"}},
        ... })
        >>> with tempfile.TemporaryDirectory() as root:
        ...     run = RunDirectory.create(root, config)
        ...     with run.lock():
        ...         run.write_metrics({"accuracy": 0.5})
        ...         run.set_status("complete")
        ...     again = RunDirectory.open(run.path)
        ...     again.status.state, again.metrics, again.config == config
        ('complete', {'accuracy': 0.5}, True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name

    @classmethod
    def create(cls, root: str | Path, config: RunConfig) -> Self:
        """Make the directory of a new run; it appears with its configuration and status in it, or not at all.

        Args:
            root: The folder of all runs, made if missing.
            config: The resolved configuration; the directory is called by its name.

        Returns:
            The run, in state `running`.

        Raises:
            RunError: If the directory exists and is not empty, or cannot be made.
        """
        run = cls(Path(root) / config.name)
        run._check_free()
        partial, now = partial_path(run.path), _now()
        try:
            for model in config.models:
                (partial / "models" / model).mkdir(parents=True)
            write_atomic(partial / "run.yaml", dump_config(config))
            write_atomic(partial / "status.json", to_json(asdict(Status("running", now, now))))
            if run.path.is_dir():
                run.path.rmdir()
            os.rename(partial, run.path)  # fails if another process was faster
        except OSError as error:
            run._check_free()
            raise cannot_write(run.path, error) from error
        finally:
            remove(partial)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the directory of an existing run.

        Args:
            path: The directory.

        Returns:
            The run.

        Raises:
            RunError: If it is not a run directory, is damaged, or was written for another version of the configuration.
        """
        run = cls(path)
        if not run.path.is_dir():
            received = "a file" if run.path.exists() else "nothing there"
            raise RunError(f"{path}: expected a run directory; received {received}. Check the path.")
        if not (run.path / "run.yaml").is_file():
            raise RunError(f"{path}: expected a run directory; received a folder without run.yaml. Check the path.")
        _ = run.config, run.status  # a damaged run is an error here, not in the middle of the work
        return run

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        try:
            return load_config(self.path / "run.yaml")
        except ConfigError as error:
            remedy = "Open the run with the release of tfcausal that wrote it (see environment.json), or run it again."
            raise RunError(f"The configuration of this run cannot be used: {error}\n{remedy}") from None

    @property
    def status(self) -> Status:
        """How far the run has come."""
        path = self.path / "status.json"
        if not path.exists():
            raise RunError(f"{path}: expected the status of the run; the file is missing. {_REPLACE}")
        values, keys = self._read_object(path.name), list(Status.__annotations__)
        if values.keys() != set(keys) or values["state"] not in get_args(State):
            expected = f"the keys {', '.join(keys)} and a state of {', '.join(get_args(State))}"
            raise RunError(f"{path}: expected {expected}; received {json.dumps(values)[:200]}. {_REPLACE}")
        return Status(**values)

    def set_status(self, state: State, error: str | None = None) -> None:
        """Say how far the run has come.

        Args:
            state: `running`, `complete` or `failed`.
            error: What went wrong; with `failed`, and only then.

        Raises:
            InvalidArgument: If the state is not one of these, or `error` does not go with it.
        """
        if state not in get_args(State):
            raise InvalidArgument(message("state", f"one of {', '.join(get_args(State))}", repr(state)))
        if (state == "failed") != (error is not None):
            raise InvalidArgument(message("error", "a text with state `failed`, and only then", repr(error)))
        status = Status(state, self.status.started, _now(), error)
        write_atomic(self.path / "status.json", to_json(asdict(status)))

    @property
    def metrics(self) -> dict[str, Any]:
        """Every number of the report; undefined ones are None."""
        return self._read_object("metrics.json")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics: nested mappings and sequences of numbers and texts; NaN and infinities become null."""
        write_atomic(self.path / "metrics.json", to_json(metrics))

    @property
    def environment(self) -> dict[str, Any]:
        """What :func:`environment` said when the run was made."""
        return self._read_object("environment.json")

    def add_environment(self, values: Mapping[str, Any]) -> None:
        """Write what :func:`environment` says; an environment in which the run goes on is listed under `resumed`."""
        path = self.path / "environment.json"
        if path.exists():
            first = self.environment
            values = {**first, "resumed": [*first.get("resumed", []), dict(values)]}
        write_atomic(path, to_json(values))

    def discard(self) -> None:
        """Remove the directory of a run that has not done anything yet."""
        shutil.rmtree(self.path)

    def history(self, model: str) -> pandas.DataFrame:
        """Read what was logged while a model was trained.

        Args:
            model: Name of the model in the configuration.

        Returns:
            One row per epoch.

        Raises:
            RunError: If nothing has been logged yet, or the file is damaged.
        """
        import pandas

        path = self._model_folder(model) / "history.csv"
        if not path.exists():
            raise RunError(self._missing_message(path))
        try:
            header, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
            rows = [dict(zip(header, map(_cell, line), strict=True)) for line in lines]
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{path}: expected a table of epochs; it cannot be read ({error}). {_REPLACE}") from None
        return pandas.DataFrame(rows, columns=header)

    def write_history(self, model: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what was logged while a model was trained.

        Args:
            model: Name of the model in the configuration.
            rows: One mapping per epoch; a key that is missing in a row leaves its place empty.
        """
        if not rows:
            raise InvalidArgument(message("rows", "at least one epoch", "none"))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        for row in rows:  # numbers of Python are written with as many digits as it takes to read them back unchanged
            writer.writerow({key: value.item() if hasattr(value, "item") else value for key, value in row.items()})
        write_atomic(self._model_folder(model) / "history.csv", text.getvalue())

    @property
    def report_path(self) -> Path:
        """Where the report is, or will be."""
        return self.path / "report.html"

    @property
    def maps_path(self) -> Path:
        """Where the saliency maps are, or will be."""
        return self.path / "maps.zarr"

    def model_path(self, model: str) -> Path:
        """Where a trained model is, or will be."""
        return self._model_folder(model) / "model.keras"

    def checkpoint_path(self, model: str, epoch: int) -> Path:
        """Where the checkpoint of an unfinished training is, or will be.

        Args:
            model: Name of the model in the configuration.
            epoch: Number of epochs that are finished, 1 or more.
        """
        if epoch < 1:
            raise InvalidArgument(message("epoch", "a number of finished epochs of at least 1", epoch))
        return self._model_folder(model) / f"checkpoint-{epoch:04d}.weights.h5"

    def checkpoints(self, model: str) -> list[tuple[int, Path]]:
        """The complete checkpoints of a model, as (epoch, path), from the first epoch to the last."""
        found = (
            (re.fullmatch(r"checkpoint-(\d+)\.weights\.h5", path.name), path)
            for path in self._model_folder(model).glob("checkpoint-*")
        )
        return sorted((int(match[1]), path) for match, path in found if match)

    def drop_checkpoints(self, model: str, keep: int = 0) -> None:
        """Remove the checkpoints of a model, except the last ones.

        Args:
            model: Name of the model in the configuration.
            keep: How many of the last ones stay, 0 or more.
        """
        if keep < 0:
            raise InvalidArgument(message("keep", "a number of at least 0", keep))
        checkpoints = self.checkpoints(model)
        for _, path in checkpoints[: len(checkpoints) - keep]:
            remove(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing, and remove what a killed process left half-written.

        The operating system releases the lock when the process ends, however it ends. On Windows, and on
        file systems without locks, nothing is locked.

        Raises:
            RunError: If another process holds it.
        """
        with folder_lock(self.path):
            self._remove_partial_files()
            yield

    def _remove_partial_files(self) -> None:
        folders = [self.path, self.path / "models", *(self._model_folder(model) for model in self.config.models)]
        stale = [path for folder in folders for path in folder.glob(f"{PARTIAL_PREFIX}*")]
        for path in [*stale, *partial_paths_of(self.path.resolve())]:
            remove(path)

    def _model_folder(self, model: str) -> Path:
        if model not in self.config.models:
            remedy = closest(model, self.config.models, "models")
            raise InvalidArgument(message("model", "a model of the run's configuration", repr(model), remedy))
        return self.path / "models" / model

    def _read_object(self, file: str) -> dict[str, Any]:
        path = self.path / file
        if not path.exists():
            raise RunError(self._missing_message(path))
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: expected JSON; it cannot be read ({error}). {_REPLACE}") from None
        if not isinstance(values, dict):
            raise RunError(f"{path}: expected a JSON object; received {json.dumps(values)[:200]}. {_REPLACE}")
        return values

    def _missing_message(self, path: Path) -> str:
        state = _IN_WORDS[self.status.state]
        return f"{path}: there is none yet; the run is {state}. Go on with it: `tfcausal run --resume {self.path}`."

    def _check_free(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        remedy = f"choose another name (`--name OTHER`), or remove {self.path}."
        if not (self.path / "run.yaml").is_file():
            raise RunError(f"{self.path} exists and is not a run directory: {remedy}")
        try:
            state = _IN_WORDS[self.status.state]
        except RunError:
            raise RunError(f"{self.path} holds a damaged run: {remedy}") from None
        raise RunError(f"{self.path} holds a run that is {state}: go on with it (`--resume {self.path}`), {remedy}")


_REPLACE = "Remove the run's directory and run again."
_IN_WORDS = {"running": "unfinished", "complete": "complete", "failed": "failed"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cell(text: str) -> int | float | str:
    """A cell of a table, as exact as it was written; pandas rounds the last digit of some numbers."""
    for kind in (int, float):
        try:
            return kind(text or "nan")
        except ValueError:
            continue
    return text
