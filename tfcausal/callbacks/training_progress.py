"""Progress of a training, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcausal.progress import Track


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
