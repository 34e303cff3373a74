"""Checkpoints that a killed training goes on from, and that refuse to be loaded into another network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.runs import atomic_path

_RECORD = "tfcausal_architecture"


class EpochCheckpoint(keras.callbacks.Callback):
    """Saves weights and optimizer after every epoch, so that a killed training can go on as if nothing had happened.

    The random state of the layers is set from the seed and the number of the epoch, because Keras does not save it;
    with the batches of :func:`tfcausal.data.pipeline.training_batches`, which depend on the epoch alone, the resumed
    training then repeats what the uninterrupted one would have done.

    Args:
        path: Gives the file for an epoch number (the epochs completed); its name must end in `.weights.h5`.
        seed: Seed of the training.
        saved: Called after an epoch with the number of completed epochs and its logs, before the checkpoint is written.
    """

    def __init__(self, path: Callable[[int], Path], seed: int, saved: Callable[[int, dict[str, float]], None]) -> None:
        super().__init__()
        self._path = path
        self._seed = seed
        self._saved = saved

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the random state of the layers."""
        words = np.random.SeedSequence([self._seed, epoch]).generate_state(1)
        keras_api.reset_random_state(self.model, int(words[0]))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write history and checkpoint."""
        self._saved(epoch + 1, {name: float(value) for name, value in (logs or {}).items()})
        with atomic_path(self._path(epoch + 1)) as partial:
            self.model.save_weights(partial)
            record_architecture(self.model, partial)


def restore_checkpoint(model: keras.Model, path: str | Path) -> None:
    """Load what :class:`EpochCheckpoint` saved into a compiled model of the same architecture.

    Args:
        model: The model, compiled with the same optimizer.
        path: The checkpoint.

    Raises:
        InvalidArgument: The model is not built and compiled, or the checkpoint belongs to another architecture or
            optimizer; the message names the first difference, and nothing has been loaded. (Of a file that Keras alone
            has saved, what fits has been.)
        RunError: The file is not there or damaged.
    """
    require_same_architecture(model, path)
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except ValueError as error:  # only for files without a record
        raise InvalidArgument(_other_architecture(path, " ".join(str(error).split())[:300])) from None


def record_architecture(model: keras.Model, path: str | Path) -> None:
    """Write into a file of weights what network they belong to.

    Args:
        model: The model that was saved.
        path: The file, made by `model.save_weights`.
    """
    if not Path(path).is_file():  # `atomic_path` says what is wrong
        return
    with h5py.File(path, "a") as file:
        file.create_dataset(_RECORD, data=json.dumps(_architecture(model)))


def require_same_architecture(model: keras.Model, path: str | Path) -> None:
    """Check that a file of weights belongs to a network like this one, without loading anything.

    Compared are the layers in their order, by class and by the shapes of their weights, and the optimizer. Names are
    not: Keras numbers them through the process.

    Args:
        model: The model.
        path: The file; without the record of :func:`record_architecture` it is taken as it is.

    Raises:
        InvalidArgument: The model is not built and compiled, or the file belongs to another architecture or optimizer.
        RunError: The file is not there or damaged.
    """
    if not model.built or getattr(model, "optimizer", None) is None:
        received = "a model that is not compiled" if model.built else "a model that is not built"
        remedy = "" if model.built else "Begin it with keras.Input, or call it on a batch."
        raise InvalidArgument(message("model", "a model that is built and compiled", received, remedy))
    try:
        with h5py.File(path, "r") as file:
            record = json.loads(file[_RECORD][()]) if _RECORD in file else None
    except (OSError, ValueError) as error:
        reason = "there is no such file" if not Path(path).exists() else str(error)
        raise RunError(f"{path}: the checkpoint cannot be read: {reason}. Go on from an earlier one.") from None
    if record is not None:
        difference = _first_difference(record, _architecture(model))
        if difference:
            raise InvalidArgument(_other_architecture(path, difference))


def _other_architecture(path: str | Path, difference: str) -> str:
    remedy = "Build and compile the model as when it was saved, or train anew with another folder."
    return message(str(path), "a checkpoint of the same architecture", difference, remedy)


def _architecture(model: keras.Model) -> dict[str, Any]:
    """The layers with their weights, and the optimizer, as JSON."""
    layers = [
        {"name": layer.name, "kind": type(layer).__name__, "weights": _shapes(layer.weights)}
        for layer in _leaves(model)
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    optimizer = model.optimizer
    kinds = [type(optimizer).__name__ for optimizer in (optimizer, getattr(optimizer, "inner_optimizer", None))]
    return {
        "layers": layers,
        "weights": _shapes(model.weights),
        "optimizer": "/".join(kind for kind in kinds if kind != "NoneType"),
    }


def _shapes(weights: list[Any]) -> list[list[Any]]:
    return [[weight.path.rpartition("/")[2], list(weight.shape)] for weight in weights]


def _leaves(model: Any) -> Iterator[Any]:
    """The layers of a model and of the models nested in it, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _first_difference(saved: dict[str, Any], present: dict[str, Any]) -> str:
    """What a checkpoint has otherwise than the model, spelled out; empty where they agree."""
    for number, (theirs, ours) in enumerate(zip(saved["layers"], present["layers"], strict=False), start=1):
        if theirs["kind"] != ours["kind"]:
            return (
                f"{_article(theirs['kind'])} (`{theirs['name']}`) as layer {number} where the model has "
                f"{_article(ours['kind'])} (`{ours['name']}`)"
            )
        difference = _first_other_shape(theirs["weights"], ours["weights"], f"layer {number}, `{ours['name']}`")
        if difference:
            return difference
    if len(saved["layers"]) != len(present["layers"]):
        return f"{len(saved['layers'])} layers where the model has {len(present['layers'])}"
    difference = _first_other_shape(saved["weights"], present["weights"], "the model itself")
    if not difference and saved["optimizer"] != present["optimizer"]:
        return f"the state of the optimizer {saved['optimizer']} where the model has {present['optimizer']}"
    return difference


def _first_other_shape(saved: list[list[Any]], present: list[list[Any]], owner: str) -> str:
    for (name, theirs), (_, ours) in zip(saved, present, strict=False):
        if theirs != ours:
            return f"the shape {tuple(theirs)} for `{name}` of {owner}, where the model has {tuple(ours)}"
    if len(saved) != len(present):
        return f"{len(saved)} weights in {owner} where the model has {len(present)}"
    return ""


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
