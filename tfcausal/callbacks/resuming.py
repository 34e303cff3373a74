"""Training under plain `fit` that goes on where it was interrupted."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcausal.atomic import PARTIAL_PREFIX, atomic_path, remove, write_atomic
from tfcausal.callbacks.checkpoints import record_architecture, require_same_architecture
from tfcausal.errors import InvalidArgument, RunError, message

logger = logging.getLogger(__name__)

# The first two are those of keras.callbacks.BackupAndRestore.
_WEIGHTS, _METADATA, _STATE = "latest.weights.h5", "training_metadata.json", "state.json"
_FINAL_WEIGHTS, _FINISHED = "final.weights.h5", "finished.json"


class ResumableTraining(keras.callbacks.Callback):
    """Checkpoints every epoch of `fit`; the next `fit` with the same folder goes on after the last complete one.

    A checkpoint holds the weights, the optimizer, the random state of the layers (dropout, noise), and the history so
    far, which `fit` returns as if there had been no interruption. It is complete or not there; only the newest is kept.
    A lost epoch is repeated with the same losses if it gets the same batches: those of
    :func:`tfcausal.data.pipeline.training_batches` with this callback's :attr:`initial_epoch`, or arrays with
    `shuffle=False`. (What Keras shuffles itself depends on the process.)

    A training that has come to its end is not repeated: `fit` with the same number of epochs trains nothing and
    restores the final weights, with more epochs it goes on. To begin anew, remove the folder or take another one.

    It wraps `keras.callbacks.BackupAndRestore`, which keeps weights, optimizer and the number of the epoch, but loses
    the random state and the history, writes over its only checkpoint in place, and leaves the number of the epoch in
    the model, so that every later `fit` of that model begins there.

    Callbacks with a memory of their own, such as EarlyStopping and ReduceLROnPlateau, begin anew. List this callback
    last: what others write into the logs, and the weights that EarlyStopping restores, are then in the checkpoint.

    Args:
        folder: Where the checkpoints go; one folder for each training, and for each worker of a training on several.

    Raises:
        InvalidArgument: `folder` is a file; when training begins: the model is not built, or the checkpoint belongs to
            another architecture or optimizer (the message names the first difference).
        RunError: The checkpoint is damaged, or the folder cannot be written to.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> data = np.ones((4, 2)), np.ones(4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"shuffle": False, "verbose": 0, "callbacks": [ResumableTraining(folder)]}
        ...     first = model.fit(*data, epochs=2, **options)
        ...     second = model.fit(*data, epochs=3, **options)
        >>> second.epoch, second.history["loss"][:2] == first.history["loss"]
        ([0, 1, 2], True)
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidArgument(message("folder", "a folder, or nothing yet", f"the file {folder}"))
        self._epochs: list[int] = []
        self._history: dict[str, list[Any]] = {}
        self._begun = False

    @property
    def initial_epoch(self) -> int:
        """The number of epochs that the checkpoint has, which is the number of the first epoch to train; 0 without."""
        newest = self._newest()
        return 0 if newest is None else _number(newest)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the checkpoint, if there is one."""
        if not self.model.built:
            remedy = "Begin it with keras.Input, or call it on a batch."
            raise InvalidArgument(message("model", "a model that is built", "one that is not", remedy))
        newest = self._newest()
        self._epochs, self._history, self._begun = [], {}, False
        if newest is None:
            _begin_fit_at(self.model, 0)
            return
        epochs, state = int(self.params["epochs"]), _read(newest / _STATE)
        require_same_architecture(self.model, newest / _WEIGHTS)
        variables = _random_state(self.model)
        if len(variables) != len(state["random_state"]):
            expected = f"a checkpoint of a model with {len(variables)} layers that draw at random"
            raise InvalidArgument(message(str(newest), expected, f"one with {len(state['random_state'])}"))
        backup = keras.callbacks.BackupAndRestore(str(newest), delete_checkpoint=False)
        backup.set_model(self.model)
        backup.on_train_begin()
        for variable, value in zip(variables, state["random_state"], strict=True):
            variable.assign(np.asarray(value, dtype="int64"))
        self._epochs, self._history = state["epochs"], state["history"]
        finished = _read(newest / _FINISHED)["epochs"] if (newest / _FINISHED).exists() else 0
        if epochs <= max(finished, state["epoch"]):
            logger.warning("%s: all %d epochs are trained; this `fit` trains nothing.", self.folder, epochs)
            if epochs <= finished:
                self.model.load_weights(newest / _FINAL_WEIGHTS)
            _begin_fit_at(self.model, epochs)
        else:
            logger.info("%s: training goes on after epoch %d.", self.folder, state["epoch"])
        earlier = getattr(self.model, "history", None)
        if earlier is not None:
            earlier.history.update({name: list(values) for name, values in self._history.items()})

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Have a later `fit` begin where it is told, even if this one is interrupted."""
        if not self._begun:
            _begin_fit_at(self.model, 0)
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint, and remove the one before."""
        self._epochs.append(epoch)
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(np.asarray(value).tolist())
        checkpoint = self.folder / f"checkpoint-{epoch + 1:04d}"
        with atomic_path(checkpoint) as partial:
            backup = keras.callbacks.BackupAndRestore(str(partial))
            backup.set_model(self.model)
            backup.on_epoch_end(epoch)
            record_architecture(self.model, partial / _WEIGHTS)
            state = {
                "epoch": epoch + 1,
                "epochs": self._epochs,
                "history": self._history,
                "random_state": [np.asarray(variable).tolist() for variable in _random_state(self.model)],
            }
            (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
            _flush(partial)
        for other in self.folder.iterdir():
            if other != checkpoint and (_number(other) or _is_partial(other)):
                remove(other)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Note that the training has come to its end, and complete the history that `fit` returns."""
        newest = self._newest()
        if newest is not None and self._begun:
            with atomic_path(newest / _FINAL_WEIGHTS) as partial:
                self.model.save_weights(partial)
            write_atomic(newest / _FINISHED, json.dumps({"epochs": int(self.params["epochs"])}))
        history = getattr(self.model, "history", None)
        if history is not None and len(history.epoch) < len(self._epochs):
            history.epoch[:] = self._epochs
        if not self._begun:
            _begin_fit_at(self.model, 0)

    def _newest(self) -> Path | None:
        found = [path for path in self.folder.iterdir() if _number(path)] if self.folder.is_dir() else []
        return max(found, key=_number, default=None)


def _begin_fit_at(model: keras.Model, epoch: int) -> None:
    """Have the `fit` that has just begun, and every later one, start with an epoch; 0 is what the user asked for.

    Keras lets its own callback do that and no other: it gets a backup without weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _METADATA).write_text(json.dumps({"epoch": epoch, "batch": 0}), encoding="utf-8")
        backup = keras.callbacks.BackupAndRestore(folder)
        backup.set_model(model)
        backup.on_train_begin()


def _random_state(model: keras.Model) -> list[Any]:
    """The variables that hold the state of random generators: they count among the variables, not the weights."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _number(path: Path) -> int:
    """Number of epochs of a checkpoint; 0 for anything else."""
    found = re.fullmatch(r"checkpoint-(\d{4,})", path.name)
    return int(found[1]) if found else 0


def _is_partial(path: Path) -> bool:
    return path.name.startswith(PARTIAL_PREFIX) and ".checkpoint-" in path.name


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = f"Remove {path.parent} to begin anew."
        raise RunError(f"{path}: the checkpoint cannot be read: {error}. {remedy}") from None


def _flush(folder: Path) -> None:
    """Have the files of a folder on the disk before it gets its name."""
    for path in folder.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
