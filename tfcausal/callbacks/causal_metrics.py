"""What a model looks at, measured on the same images after every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcausal.callbacks.cause_measurement import CauseMeasurement, salient_area
from tfcausal.callbacks.explaining import explainer_of
from tfcausal.errors import InvalidArgument, message
from tfcausal.models.checks import require_number
from tfcausal.saliency.registry import find_explainer


class CausalMetrics(keras.callbacks.Callback):
    """Measures after every epoch, on images put aside for it, what the answers rest on; the values go into the logs.

    All maps are those of the true class. With the prefix `val_` the logs get

    - `val_mask_energy`: share of the positive saliency inside the true mask
      (:class:`~tfcausal.evaluation.localisation.MaskEnergy`), over the images whose map has any;
    - `val_mask_energy_chance`: what a uniform map has on the same images, the area of their masks;
    - `val_probability_drop_cause_removed`: the probability of the true class, minus the one that is left when the true
      mask is taken away, in [-1, 1]. High where the answer rests on the cause;
    - `val_probability_drop_salient_removed`: the same when the salient area is taken away. Where it is high and the
      former is low, the model looks at something else;
    - `val_mask_coverage`: the share of the image that counts as salient;
    - `val_dead_maps`: as CFCNModel reports it, the share of the maps in question without any positive activation: the
      true class's map of a network that ends with class maps and global average pooling, else the last feature maps.

    The salient area is the model's own mask where it has one (PPIModel, GAINModel), with the parameters of the moment;
    for any other model the soft mask of PPI on the normalised map, with `threshold` and `sharpness`. The first three
    need masks, the last feature maps; what cannot be measured is left out. With several labels per image, every label
    of an image counts as one sample.

    It runs in batches, through functions that are compiled once. List it before the callbacks
    that read its values (EarlyStopping, CSVLogger, :class:`ResumableTraining`).

    Args:
        images: (N, height, width, channels) or volumes, in the model's input space.
        labels: Class indices (N,); one-hot rows; with a multi-label head rows of 0 and 1.
        masks: True masks in [0, 1], (N, height, width, 1); with a multi-label head also one for every label.
        has_mask: Whether the mask of an image is a real one, (N,); None stands for all.
        method: Name of a saliency method; None takes the one that the model trains with, WBP for any other model.
        every: Measure after every so many epochs; the values of the others are NaN.
        batch_size: Images at a time; None chooses by the model's size.
        prefix: In front of the names.
        masked_value: What is taken away becomes this, in the model's input space: a number, or one for every channel.
            None takes the model's own, or 0.
        threshold: Where the soft mask is one half, for models without a mask.
        sharpness: Its steepness.
        **options: Options of the method, such as `layer`.

    Raises:
        InvalidArgument: Arrays that do not go together, or an argument out of range; when training begins: images,
            labels or masks that do not go with the model.
        UnsupportedOperation: When training begins: the method does not take this model.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> images, labels = np.random.default_rng(0).random((4, 4, 4, 1), "float32"), np.array([0, 1, 0, 1])
        >>> masks = np.zeros((4, 4, 4, 1)); masks[:, :2, :2] = 1
        >>> history = model.fit(images, labels, callbacks=[CausalMetrics(images, labels, masks)], verbose=0)
        >>> history.history["val_mask_energy_chance"]
        [0.25]
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        masks: Any = None,
        has_mask: Any = None,
        method: str | None = None,
        every: int = 1,
        batch_size: int | None = None,
        prefix: str = "val_",
        masked_value: float | Sequence[float] | None = None,
        threshold: float = 0.25,
        sharpness: float = 50.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if method is not None:
            find_explainer(method)
        require_number("every", every, "an integer of at least 1", lambda number: number >= 1 and number % 1 == 0)
        require_number("threshold", threshold, "a number between 0 and 1", lambda number: 0 < number < 1)
        require_number("sharpness", sharpness, "a finite positive number", lambda number: 0 < number < float("inf"))
        self._images, self._labels = np.asarray(images), np.asarray(labels)
        self._masks = None if masks is None else np.asarray(masks)
        self._has_mask = np.ones(len(self._images), bool) if has_mask is None else np.asarray(has_mask).astype(bool)
        self._check_arrays()
        self._method, self._options = method, {**options, "batch_size": batch_size}
        self._every, self._prefix = int(every), prefix
        self._masked_value, self._threshold, self._sharpness = masked_value, threshold, sharpness
        self._measurement: CauseMeasurement | None = None
        self._measured: keras.Model | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the explainer, and check what it is given."""
        if self._measurement is not None and self._measured is self.model:
            return
        value = getattr(self.model, "masked_value", 0.0) if self._masked_value is None else self._masked_value
        self._measurement = CauseMeasurement(
            self.model,
            explainer_of(self.model, self._method, self._options),
            self._images,
            self._labels,
            self._masks,
            self._has_mask,
            salient_area(self.model, self._threshold, self._sharpness, own_maps=self._method is None),
            value,
        )
        self._measured = self.model

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure, and write the values into the logs."""
        if logs is None or self._measurement is None:
            return
        due = (epoch + 1) % self._every == 0
        values = self._measurement() if due else dict.fromkeys(self._measurement.names, float("nan"))
        logs.update({f"{self._prefix}{name}": value for name, value in values.items()})

    def _check_arrays(self) -> None:
        shape = self._images.shape
        if len(shape) not in (4, 5) or not shape[0]:
            raise InvalidArgument(message("images", "images (N, height, width, channels) or volumes", f"shape {shape}"))
        if self._labels.ndim not in (1, 2) or len(self._labels) != shape[0]:
            raise InvalidArgument(message("labels", f"{shape[0]} labels or rows", f"shape {self._labels.shape}"))
        if self._has_mask.shape != shape[:1]:
            raise InvalidArgument(message("has_mask", f"shape {shape[:1]}", f"shape {self._has_mask.shape}"))
        if self._masks is None:
            return
        if self._masks.shape[:-1] != shape[:-1]:
            received = f"shape {self._masks.shape}"
            expected = f"shape {(*shape[:-1], 1)}"
            raise InvalidArgument(message("masks", expected, received, "Resize them to the images."))
        if not ((self._masks >= 0) & (self._masks <= 1)).all():
            remedy = "Divide masks of 0 and 255 by 255."
            raise InvalidArgument(message("masks", "values in [0, 1]", "values outside", remedy))
