"""Trainings that are lost, and are stopped with a word on what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np

from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.models.base import CausalClassifier
from tfcausal.models.checks import require_epochs, require_number

_CONTRAST, _COVERAGE = "contrast_loss", "mask_coverage"


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


class ObjectiveGuard(keras.callbacks.Callback):
    """Raises `TrainingDiverged` when an objective rewards nonsense: a contrast without bound, or a degenerate mask.

    It reads what the step of a model reports, `contrast_loss` and `mask_coverage` (PPIModel, GAINModel, or a step of
    your own). Within an epoch, `fit` reports means over the batches so far.

    - The negated contrast is minus a cross-entropy: it falls for ever when the network unlearns the masked images. The
      training stops when `contrast_loss`, or `loss` where there is none, falls below minus `divergence_limit`.
    - A mask that takes nothing away teaches nothing, and one that takes the whole image away makes every image the
      same. The training stops after `patience` epochs (or batches) in a row with such a mask, not counting those of
      the model's warm-up, in which there is no mask.

    Args:
        divergence_limit: In nats, greater than 0.
        smallest_coverage: Share of the image; a mask that covers less on average is empty. In [0, 1).
        largest_coverage: Share of the image; a mask that covers more on average is the whole image. In (0, 1].
        patience: How many epochs or batches in a row, at least 1.
        per: Whether `patience` counts epochs (`epoch`) or batches (`batch`).
        warm_up_epochs: Epochs in which the mask is not looked at; None takes the model's own `warm_up_epochs`.

    Raises:
        InvalidArgument: An argument is out of range; when training begins, or after its first batch where that cannot
            be known before: the model reports neither value.

    Example:
        >>> guard = ObjectiveGuard(patience=1)
        >>> guard.set_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]))
        >>> guard.on_epoch_end(0, {"mask_coverage": 0.2})
        >>> guard.on_epoch_end(1, {"mask_coverage": 0.99})
        Traceback (most recent call last):
        tfcausal.errors.TrainingDiverged: Training was stopped: ...
    """

    def __init__(
        self,
        divergence_limit: float = 20.0,
        smallest_coverage: float = 0.001,
        largest_coverage: float = 0.95,
        patience: int = 3,
        per: Literal["epoch", "batch"] = "epoch",
        warm_up_epochs: int | None = None,
    ) -> None:
        super().__init__()
        require_number("divergence_limit", divergence_limit, "a positive number", lambda number: number > 0)
        for name, share in {"smallest_coverage": smallest_coverage, "largest_coverage": largest_coverage}.items():
            require_number(name, share, "a share between 0 and 1", lambda number: 0 <= number <= 1)
        if smallest_coverage >= largest_coverage:
            expected = f"less than largest_coverage={largest_coverage}"
            raise InvalidArgument(message("smallest_coverage", expected, smallest_coverage))
        require_number("patience", patience, "an integer of at least 1", lambda number: number >= 1 and number % 1 == 0)
        if warm_up_epochs is not None:
            require_epochs("warm_up_epochs", warm_up_epochs)
        if per not in ("epoch", "batch"):
            raise InvalidArgument(message("per", "'epoch' or 'batch'", repr(per)))
        self.divergence_limit = divergence_limit
        self.smallest_coverage = smallest_coverage
        self.largest_coverage = largest_coverage
        self.patience = patience
        self.per = per
        self.warm_up_epochs = warm_up_epochs
        self._begin()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Check that the model reports what is looked at, as far as it can be known before the first batch."""
        self._begin()
        plain = type(self.model).train_step is keras.Model.train_step
        if plain or isinstance(self.model, CausalClassifier):
            self._require_reports(_metric_names(self.model))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the losses, and the mask where batches are counted."""
        logs = logs or {}
        self._require_reports(set(logs))
        self._check_loss(logs, f"batch {batch + 1} of epoch {self._epoch + 1}")
        if self.per == "batch":
            self._check_mask(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the losses, and the mask where epochs are counted."""
        self._epoch = epoch
        self._check_loss(logs or {}, f"epoch {epoch + 1}")
        if self.per == "epoch":
            self._check_mask(logs or {})

    def _begin(self) -> None:
        self._epoch = 0
        self._degenerate = 0  # epochs or batches in a row; negative for an empty mask

    def _require_reports(self, names: set[str]) -> None:
        if names.isdisjoint((_CONTRAST, _COVERAGE)):
            expected = (
                f"a model whose step reports `{_CONTRAST}` or `{_COVERAGE}`: PPIModel, GAINModel or one of your own"
            )
            received = f"{type(self.model).__name__} `{self.model.name}`, which reports {', '.join(sorted(names))}"
            remedy = "Leave the guard out; StopOnDivergence stops any model whose loss is not finite."
            raise InvalidArgument(message("model", expected, received, remedy))

    def _check_loss(self, logs: Mapping[str, Any], when: str) -> None:
        name = _CONTRAST if _CONTRAST in logs else "loss"
        value = float(logs.get(name, 0.0))
        if value < -self.divergence_limit:
            raise TrainingDiverged(
                f"Training was stopped: the contrast diverges; `{name}` is {value:.4g} in {when}, below minus "
                f"divergence_limit={self.divergence_limit}. Use contrast='one_vs_rest', which is bounded, or lower "
                "contrast_weight."
            )

    def _check_mask(self, logs: Mapping[str, Any]) -> None:
        warm_up = getattr(self.model, "warm_up_epochs", 0) if self.warm_up_epochs is None else self.warm_up_epochs
        if _COVERAGE not in logs or self._epoch < warm_up:
            return
        coverage = float(logs[_COVERAGE])
        empty, whole = coverage < self.smallest_coverage, coverage > self.largest_coverage
        if empty:
            self._degenerate = min(self._degenerate, 0) - 1
        else:
            self._degenerate = max(self._degenerate, 0) + 1 if whole else 0
        if abs(self._degenerate) >= self.patience:
            count = f"{self.patience} {'epochs' if self.per == 'epoch' else 'batches'} in a row"
            what = (
                f"the mask is empty: `{_COVERAGE}` was below smallest_coverage={self.smallest_coverage}"
                if empty
                else f"the mask is the whole image: `{_COVERAGE}` was above largest_coverage={self.largest_coverage}"
            )
            advice = ", or ".join(_advice(self.model, empty)) or "change the threshold of the mask"
            raise TrainingDiverged(
                f"Training was stopped: {what} for {count} (now {coverage:.4g}). {advice[0].upper()}{advice[1:]}."
            )


_REMEDIES = {
    "threshold": ("lower `threshold`", "raise `threshold`"),
    "threshold_quantile": (
        "set `threshold_quantile` (0.9 takes a tenth of the pixels that speak for the class)",
        "set `threshold_quantile` (0.9 takes a tenth of the image)",
    ),
    "regularisation_weight": ("lower `regularisation_weight`", "raise `regularisation_weight`"),
    "contrast_weight": ("lower `contrast_weight`", "lower `contrast_weight`, which rewards taking everything away"),
    "attention_weight": ("lower `attention_weight`", "lower `attention_weight`"),
    "warm_up_epochs": ("give the maps more `warm_up_epochs`", "give the maps more `warm_up_epochs`"),
}


def _advice(model: keras.Model, empty: bool) -> Iterator[str]:
    """What to change about a mask, as far as the model has it."""
    for name, (if_empty, if_whole) in _REMEDIES.items():
        if hasattr(model, name):
            yield if_empty if empty else if_whole


def _metric_names(model: keras.Model) -> set[str]:
    """Names of what a step reports; compiled metrics stand inside a metric of their own."""
    return {inner.name for metric in model.metrics for inner in getattr(metric, "metrics", (metric,))}
