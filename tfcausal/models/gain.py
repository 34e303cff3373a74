"""GAIN: training in which the attention maps take part: they cover all of the cause and, with masks, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations
from tfcausal.interventions.masking import remove, soft_mask
from tfcausal.models.base import CausalClassifier, MaskUse, Objective, Term
from tfcausal.models.checks import masked_value_of
from tfcausal.models.frozen_statistics import frozen_batch_norms
from tfcausal.models.mask_average import over_images_with_mask
from tfcausal.models.targets import Targets
from tfcausal.objectives.attention_mining import attention_mining_loss, external_supervision_loss, min_max_scaled
from tfcausal.objectives.heads import choice
from tfcausal.saliency.cam import feature_maps
from tfcausal.saliency.differentiable import GradientRules, grad_cam_of_pass
from tfcausal.saliency.propagation import check


@keras.saving.register_keras_serializable(package="tfcausal")
class GAINModel(CausalClassifier):
    """Train a classifier whose attention covers all that speaks for the label, and with masks the cause alone.

    The loss is the compiled classification loss plus two terms. With ``A`` the Grad-CAM map of the label, enlarged to
    the image and scaled to [0, 1], and ``T(A) = sigmoid(sharpness * (A - threshold))``:

    - attention mining: the probability of the label on ``x - T(A) * (x - masked_value)`` (equations 3 to 5);
    - supervision, in GAIN_ext: the mean over the pixels of ``(A - mask)^2`` (equation 7), over the images with a mask.

    Source: *Tell Me Where to Look: Guided Attention Inference Network*, sections 3.1 to 3.3; attention weight 1 as in
    equation 6, and 10 is the paper's supervision weight (equation 8). Of threshold, sharpness and the scale of the map
    the paper says nothing; the values here are those that most implementations share. With a multi-label head, of each
    image one label is drawn per step, which has the mean over its labels as its expectation.

    Departures from the paper. The score that is mined is a probability, bounded where a logit is not. The square of
    equation 7 is averaged over the pixels and its loss over the images of the batch that have a mask, so that its
    weight depends neither on the resolution nor on how many have one. An image whose map is the same everywhere has
    nothing to be taken away, and no attention mining. The second pass uses the batch statistics of the first as
    constants: it leaves batch normalisation and its moving statistics alone.

    Args:
        backbone: A classifier as for :class:`~tfcausal.models.base.CausalClassifier`, with convolutional feature maps.
        attention_weight: Weight of attention mining, at least 0.
        supervision_weight: Weight of the supervision by masks, at least 0; above 0 this is GAIN_ext, and the targets
            are `{"label": ..., "mask": ..., "has_mask": ...}`. With a multi-label head there may be a mask for every
            label, (N, H, W, labels), with has_mask (N,) or (N, labels).
        layer: Name or path of the layer whose feature maps are used; None takes the last ones.
        threshold: Where the mask is one half, in the scaled map, in (0, 1) (the paper's sigma).
        sharpness: Steepness of the mask, greater than 0 (the paper's omega).
        masked_value: What a masked pixel becomes, in the backbone's input space: a number, or one for every channel.
        multi_label: As for :class:`~tfcausal.models.base.CausalClassifier`.
        warm_up_epochs: Epochs with the classification loss alone, before the maps mean anything.
        ramp_epochs: Epochs after the warm-up in which the weights of the terms rise to their full value.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: An argument is outside its range, or there is no such layer; as for
            :class:`~tfcausal.models.base.CausalClassifier`.
        UnsupportedOperation: The backbone has no feature maps, or a layer that cannot be differentiated in training.

    Example:
        >>> import numpy as np
        >>> from tfcausal.models.backbones.all_convolutional import all_convolutional
        >>> model = GAINModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)), supervision_weight=10.0)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> mask = np.zeros((4, 8, 8, 1), "float32"); mask[:, 2:6, 2:6] = 1
        >>> y = {"label": np.array([0, 1, 0, 1]), "mask": mask, "has_mask": np.array([1.0, 1.0, 0.0, 0.0])}
        >>> history = model.fit(np.ones((4, 8, 8, 3), "float32"), y, verbose=0)
        >>> sorted(history.history)
        ['attention_mining_loss', 'classification_loss', 'loss', 'mask_coverage', 'supervision_loss']
    """

    reported = ("attention_mining_loss", "supervision_loss", "mask_coverage")

    def __init__(
        self,
        backbone: keras.Model,
        attention_weight: float = 1.0,
        supervision_weight: float = 0.0,
        layer: str | None = None,
        threshold: float = 0.5,
        sharpness: float = 10.0,
        masked_value: float | Sequence[float] = 0.0,
        multi_label: bool | None = None,
        warm_up_epochs: int = 0,
        ramp_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, multi_label, warm_up_epochs, ramp_epochs, **kwargs)
        self.add_weight_of_term("attention_weight", attention_weight, "attention_mining_loss")
        self.add_weight_of_term("supervision_weight", supervision_weight, "supervision_loss")
        self.add_parameter("threshold", threshold, "a number between 0 and 1", lambda number: 0 < number < 1)
        self.add_parameter("sharpness", sharpness, "a finite positive number", lambda number: 0 < number < inf)
        if layer is not None and not isinstance(layer, str):
            raise InvalidArgument(message("layer", "the name or path of a layer, or None", repr(layer)))
        self.masked_value = masked_value_of(masked_value, self.graph.input_shape[-1])
        self._position = feature_maps(self.graph, layer)
        check(self.graph, GradientRules(), training=True)
        self.attention_weight = attention_weight
        self.supervision_weight = supervision_weight
        self.layer = layer
        self.threshold = threshold
        self.sharpness = sharpness

    @property
    def mask_use(self) -> MaskUse:
        """GAIN learns from labels alone, GAIN_ext from masks too."""
        return "needed" if self.has_term("supervision_weight") else "none"

    @property
    def mask_shape(self) -> tuple[int | None, ...]:
        """One mask for every image, with a multi-label head also one for every label."""
        shape = super().mask_shape
        return (*shape[:-1], None) if self.head == "multi_label" else shape

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The terms in training; in evaluation, none."""
        activations = self.graph.run(images, training)
        outputs = self.outputs(activations)
        if not training:
            return Objective(outputs, {}, {})
        attention = self.attention(targets, activations)
        threshold, sharpness = (self.parameter(name, attention.dtype) for name in ("threshold", "sharpness"))
        mask = soft_mask(attention, threshold, sharpness)
        terms = {}
        if self.has_term("attention_weight"):
            mined = self._mined(images, targets, activations, mask)
            # A map that is the same everywhere is 0 everywhere when it is scaled.
            attended = tf.reduce_max(attention, axis=list(range(1, attention.shape.rank))) > 0
            mined *= tf.cast(attended, mined.dtype)
            terms["attention_mining_loss"] = Term(mined, self.weight("attention_weight"))
        if targets.mask is not None and targets.has_mask is not None:
            masks, has_mask = self._masks_of_class(targets, targets.mask, targets.has_mask)
            distance = external_supervision_loss(attention, masks, has_mask)
            loss = over_images_with_mask(distance, has_mask)
            terms["supervision_loss"] = Term(loss, self.weight("supervision_weight"))
        coverage = tf.reduce_mean(mask, axis=list(range(1, mask.shape.rank)))
        return Objective(outputs, terms, {"mask_coverage": coverage})

    def attention(self, targets: Targets, activations: Activations) -> tf.Tensor:
        """The scaled Grad-CAM map of every image's class, at the size of the image, (N, height, width, 1) in [0, 1].

        Args:
            targets: The targets of the batch.
            activations: A forward pass in training.
        """
        evidence = self.evidence(targets, activations)
        maps = grad_cam_of_pass(self.graph, activations, evidence, True, self._position, constant_weights=True)
        return min_max_scaled(maps)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        names = "attention_weight supervision_weight layer threshold sharpness masked_value"
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}

    def _mined(self, images: tf.Tensor, targets: Targets, activations: Activations, mask: tf.Tensor) -> tf.Tensor:
        """What is left of the label's probability without the attended region, per sample."""
        masked = remove(images, tf.cast(mask, images.dtype), self.masked_value)
        logits = self.logits(self.graph.run(masked, True, frozen_batch_norms(self.graph, activations)))
        exclusive, true = choice(logits, targets.classes, self.head)
        labels = tf.one_hot(true, exclusive.shape[-1], dtype=logits.dtype)
        return attention_mining_loss(tf.nn.softmax(exclusive), labels * tf.cast(targets.present, logits.dtype)[:, None])

    def _masks_of_class(self, targets: Targets, masks: tf.Tensor, has_mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The masks (N, H, W, 1) of the classes that are looked at, and 1 where there is one, (N,)."""
        if self.head == "multi_label":
            masks = _of_class(masks, targets.classes)[..., None]
            has_mask = _of_class(has_mask, targets.classes) if has_mask.shape.rank == 2 else has_mask
        return masks, tf.cast(has_mask, targets.present.dtype) * targets.present

    def _check_mask_use(self, targets: Targets, training: bool) -> None:
        if targets.mask is not None and not self.has_term("supervision_weight"):
            remedy = "The paper's is 10. Without supervision, pass the labels alone."
            raise InvalidArgument(message("supervision_weight", "a weight above 0 where masks are given", 0, remedy))
        super()._check_mask_use(targets, training)


def _of_class(values: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Of values (N, ..., labels), those of one class per sample, (N, ...); of values (N, ..., 1), the only ones."""
    columns = tf.shape(values)[-1]
    chosen = tf.one_hot(tf.minimum(classes, tf.cast(columns, classes.dtype) - 1), columns, dtype=values.dtype)
    shape = tf.concat([tf.shape(values)[:1], tf.ones(values.shape.rank - 2, tf.int32), [columns]], 0)
    return tf.reduce_sum(values * tf.reshape(chosen, shape), axis=-1)
