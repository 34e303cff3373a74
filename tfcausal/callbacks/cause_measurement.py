"""How much of a classifier's answers rests on the cause, and how much on what its maps show: one pass over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.evaluation.localisation import MaskEnergy
from tfcausal.graph import Activations, OperationGraph
from tfcausal.interventions.logit_functions import head_of
from tfcausal.interventions.masking import normalised_saliency, remove, soft_mask
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.objectives.attention_mining import min_max_scaled
from tfcausal.objectives.causal_focus import dead_maps
from tfcausal.objectives.contrast import cross_entropy
from tfcausal.objectives.heads import Head, choice
from tfcausal.saliency.base import Explainer, check_inputs
from tfcausal.saliency.cam import feature_maps

SalientArea = Callable[[tf.Tensor], tf.Tensor]
"""Takes signed maps (N, height, width, channels), gives the share of every pixel that is salient, with one channel."""


class _Maps(NamedTuple):
    """Maps of a network that can be dead: where they stand, and whether there is one for every unit of the head."""

    position: int
    of_classes: bool


class CauseMeasurement:
    """Measures a classifier on fixed images; call it whenever its weights have changed.

    The passes are compiled once, for every batch size; a batch of the explainer's size is in memory at a time.

    Args:
        model: The model, or the wrapper that trains it.
        explainer: Gives its maps.
        images: (N, height, width, channels) or volumes.
        labels: Class indices (N,), one-hot rows, or with a multi-label head rows of 0 and 1.
        masks: True masks in [0, 1], (N, height, width, 1), with a multi-label head also one per label; or None.
        has_mask: Whether the mask of an image is a real one, booleans (N,).
        salient_area: The salient area of maps.
        masked_value: What a pixel becomes that is taken away.

    Attributes:
        names: Names of what is measured.

    Raises:
        InvalidArgument: Images, labels or masks that do not go with the model.
    """

    def __init__(
        self,
        model: keras.Model,
        explainer: Explainer,
        images: np.ndarray,
        labels: np.ndarray,
        masks: np.ndarray | None,
        has_mask: np.ndarray,
        salient_area: SalientArea,
        masked_value: float | Sequence[float] = 0.0,
    ) -> None:
        graph, head = explainer.graph, head_of(model, explainer.graph, None)
        check_inputs(images[:1], graph)
        channels = 1 if masks is None else masks.shape[-1]
        if channels != 1 and (head != "multi_label" or channels != graph.num_classes):
            of_labels = f", or one for each of the {graph.num_classes} labels" if head == "multi_label" else ""
            raise InvalidArgument(message("masks", f"1 channel{of_labels}", f"{channels} channels"))
        self._model, self._explainer, self._graph, self._head = model, explainer, graph, head
        self._images, self._masks, self._has_mask = images, masks, has_mask
        self._places, self._classes = samples_of(labels, head, graph.num_classes)
        self._salient_area, self._masked_value = salient_area, masked_value
        self._maps = _maps_that_can_die(model, graph)
        of_cause = ("mask_energy", "mask_energy_chance", "probability_drop_cause_removed")
        self.names = (
            *(of_cause if masks is not None else ()),
            *("probability_drop_salient_removed", "mask_coverage"),
            *(("dead_maps",) if self._maps is not None else ()),
        )
        shape = graph.input_shape
        self._compiled = tf.function(
            self._values,
            input_signature=[
                tf.TensorSpec((None, *shape[1:]), tf.float32),
                tf.TensorSpec((None,), tf.int64),
                tf.TensorSpec((None, *shape[1:-1], 1), tf.float32),
                tf.TensorSpec((None, *shape[1:-1], None), tf.float32),
            ],
            autograph=False,
        )

    def __call__(self) -> dict[str, float]:
        """The mean of every value, by name; NaN where nothing could be observed."""
        batches = list(self._batches())
        return {name: _mean([values[name] for values in batches]) for name in self.names}

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self._places), self._explainer.batch_size):
            part = slice(start, start + self._explainer.batch_size)
            places, classes = self._places[part], self._classes[part]
            images = np.ascontiguousarray(self._images[places], dtype=np.float32)
            maps, cause = self._maps_of(images, classes), self._masks_of(places, classes)
            values = {name: value.numpy() for name, value in self._compiled(images, classes, cause, maps).items()}
            if self._masks is not None:
                values.update(_localisation(maps, cause))
                for name in self.names[:3]:
                    values[name] = np.where(self._has_mask[places], values[name], np.nan)
            yield values

    def _maps_of(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The maps of the true classes."""
        if self._head != "binary":
            maps: np.ndarray = self._explainer(images, classes)
            return maps
        # One logit, whose map speaks for class 1.
        sign = np.where(classes == 1, 1.0, -1.0).astype(np.float32)
        of_logit: np.ndarray = self._explainer(images, np.zeros_like(classes))
        return of_logit * sign.reshape(-1, *(1,) * (of_logit.ndim - 1))

    def _masks_of(self, places: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The true masks, (n, height, width, 1); nothing but zeros where none were given."""
        if self._masks is None:
            return np.zeros((len(places), *self._images.shape[1:-1], 1), np.float32)
        masks = self._masks[places].astype(np.float32)
        if masks.shape[-1] > 1:
            masks = np.stack([mask[..., [index]] for mask, index in zip(masks, classes, strict=True)])
        return masks

    def _values(self, images: tf.Tensor, classes: tf.Tensor, cause: tf.Tensor, maps: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is measured on every sample, (n,) each."""
        with keras_api.losses_kept(self._model):
            salient = self._salient_area(maps)
            activations = self._graph.run(images)
            whole = self._probability(activations, classes)
            values = {
                "probability_drop_salient_removed": whole - self._without(images, salient, classes),
                "mask_coverage": tf.reduce_mean(salient, axis=list(range(1, salient.shape.rank))),
            }
            if self._masks is not None:
                values["probability_drop_cause_removed"] = whole - self._without(images, cause, classes)
            if self._maps is not None:
                values["dead_maps"] = _dead(activations[self._maps.position], classes, self._maps.of_classes)
        return values

    def _without(self, images: tf.Tensor, mask: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        return self._probability(self._graph.run(remove(images, mask, self._masked_value)), classes)

    def _probability(self, activations: Activations, classes: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(activations[self._graph.logits], tf.float32)
        return tf.exp(-cross_entropy(*choice(logits, classes, self._head)))


def samples_of(labels: np.ndarray, head: Head, units: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample for every image, or with a multi-label head for every label that an image has.

    Args:
        labels: Class indices (N,) or (N, 1); one-hot rows; or rows of 0 and 1.
        head: `multi_class`, `binary` or `multi_label`.
        units: Number of units of the head.

    Returns:
        Places of the images and their classes, int64 (M,) each.

    Raises:
        InvalidArgument: Labels that the head does not have, or none at all.

    Example:
        >>> [array.tolist() for array in samples_of(np.array([[1, 0, 1], [0, 1, 0]]), "multi_label", 3)]
        [[0, 0, 1], [0, 2, 1]]
    """
    labels = np.asarray(labels)
    classes = 2 if head == "binary" else units
    rows = labels.ndim == 2 and labels.shape[1] != 1
    expected = f"rows of 0 and 1 of shape (N, {units})" if head == "multi_label" else f"classes in [0, {classes - 1}]"
    if rows or head == "multi_label":
        fits = labels.ndim == 2 and labels.shape[1] == units and head != "binary" and np.isin(labels, (0, 1)).all()
        if not fits or (head == "multi_class" and (labels.sum(axis=1) != 1).any()) or not labels.any():
            received = f"shape {labels.shape} with values from {labels.min()} to {labels.max()}"
            raise InvalidArgument(message("labels", expected, received))
        places, found = np.nonzero(labels)
        return places.astype(np.int64), found.astype(np.int64)
    flat = labels.reshape(-1)
    if (flat != np.floor(flat)).any() or flat.min() < 0 or flat.max() >= classes:
        raise InvalidArgument(message("labels", expected, f"values from {flat.min()} to {flat.max()}"))
    return np.arange(len(flat)), flat.astype(np.int64)


def salient_area(model: keras.Model, threshold: float, sharpness: float, own_maps: bool) -> SalientArea:
    """What counts as salient in the maps of a model.

    Args:
        model: With a mask of its own (PPIModel, GAINModel) this mask, with the parameters of the moment.
        threshold: Otherwise where the soft mask of the normalised map is one half.
        sharpness: Its steepness.
        own_maps: Whether the maps are made by the method that the model trains with.

    Returns:
        The function.
    """
    if isinstance(model, PPIModel):
        absolute = own_maps and model.saliency == "gradient"
        return lambda maps: model.mask(tf.abs(maps) if absolute else maps)
    if isinstance(model, GAINModel):
        return lambda maps: soft_mask(min_max_scaled(maps), model.parameter("threshold"), model.parameter("sharpness"))
    return lambda maps: soft_mask(normalised_saliency(maps), threshold, sharpness)


def _maps_that_can_die(model: keras.Model, graph: OperationGraph) -> _Maps | None:
    """The class maps before a global average pooling that gives the logits, else the feature maps, if there are any."""
    pooling = graph.producer(graph.logits)
    of_features = isinstance(model, CFCNModel) and model.variant == "F"
    if pooling is not None and isinstance(pooling.layer, keras.layers.GlobalAveragePooling2D) and not of_features:
        return _Maps(pooling.inputs[0], of_classes=graph.num_classes > 1)
    try:
        return _Maps(feature_maps(graph, model.layer if of_features else None), of_classes=False)
    except UnsupportedOperation:
        return None


def _dead(maps: tf.Tensor, classes: tf.Tensor, of_classes: bool) -> tf.Tensor:
    """Share of the maps in question without any positive activation, (n,)."""
    count = tf.shape(classes)[0]
    maps = tf.reshape(tf.cast(maps, tf.float32), (count, -1, maps.shape[-1]))  # also of the slices of volumes
    counted = tf.one_hot(classes, maps.shape[-1]) if of_classes else tf.ones((count, maps.shape[-1]))
    return dead_maps(maps, counted)


def _localisation(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Mask energy and its chance level over the same images, (n,) each; a volume counts as one tall image."""
    energy = MaskEnergy()
    maps, masks = (array.reshape(len(array), -1, 1, array.shape[-1]) for array in (maps, masks))
    inside = energy(maps, masks)
    return {"mask_energy": inside, "mask_energy_chance": np.where(np.isnan(inside), np.nan, energy.chance(masks))}


def _mean(batches: list[np.ndarray]) -> float:
    values = np.concatenate(batches).astype(np.float64)
    observed = values[~np.isnan(values)]
    return float(observed.mean()) if len(observed) else float("nan")
