"""Keras callbacks: progress with time left, checkpoints that a killed run goes on from, a stop at a lost loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcausal import keras_api
from tfcausal.errors import TrainingDiverged
from tfcausal.progress import Track
from tfcausal.runs import atomic_path


class TrainingProgress(keras.callbacks.Callback):
    """Reports every batch to a progress display, with the epoch and the last validation results.

    Args:
        advance: Called once per batch; from :meth:`tfcausal.progress.ConsoleProgress.task`.
        epochs: Number of epochs.

    Example:
        >>> notes = []
        >>> progress = TrainingProgress(lambda steps=1, note=None: notes.append(note), epochs=2)
        >>> progress.on_epoch_begin(0)
        >>> progress.on_train_batch_end(0, {"loss": 0.5})
        >>> notes
        ['epoch 1/2  loss 0.500']
    """

    def __init__(self, advance: Track, epochs: int) -> None:
        super().__init__()
        self._advance = advance
        self._epochs = epochs
        self._epoch = 0
        self._validation = ""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Advance by one batch."""
        loss = float((logs or {}).get("loss", float("nan")))
        self._advance(1, f"epoch {self._epoch}/{self._epochs}  loss {loss:.3f}{self._validation}")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take over the validation accuracy."""
        accuracy = (logs or {}).get("val_accuracy")
        if accuracy is not None:
            self._validation = f"  validation accuracy {float(accuracy):.3f}"
            self._advance(0, f"epoch {self._epoch}/{self._epochs}{self._validation}")


class StopOnDivergence(keras.callbacks.Callback):
    """Raises `TrainingDiverged` when the loss of a batch, or a weight after an epoch, is NaN or infinite.

    The weights are looked at because a ReLU can turn NaN into 0, and the loss then looks like a number. Keras's own
    TerminateOnNaN ends the training as if it had been completed.

    Example:
        >>> StopOnDivergence().on_train_batch_end(0, {"loss": 0.5})
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the loss."""
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise TrainingDiverged(
                f"Training was stopped: the loss is {loss} in batch {batch + 1} of epoch {self._epoch + 1}. "
                "Lower the learning rate, and check the data for extreme values."
            )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the weights."""
        for weight in self.model.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
                raise TrainingDiverged(
                    f"Training was stopped: the weight `{weight.path}` is not finite after epoch {epoch + 1}. "
                    "Lower the learning rate, and check the data for extreme values."
                )


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


def restore_checkpoint(model: keras.Model, path: Path) -> None:
    """Load what :class:`EpochCheckpoint` saved into a compiled model of the same architecture.

    Args:
        model: The model, compiled with the same optimizer.
        path: The checkpoint.
    """
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
