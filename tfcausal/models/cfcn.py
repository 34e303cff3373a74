"""CFCN: a classifier whose maps are drawn into the cause by masks of a few training images."""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.models.base import CausalClassifier, MaskUse, Objective, Term
from tfcausal.models.checks import require_layer_name
from tfcausal.models.targets import Targets
from tfcausal.objectives.causal_focus import Resize, causal_focus_loss, dead_maps
from tfcausal.saliency.cam import feature_maps


@keras.saving.register_keras_serializable(package="tfcausal")
class CFCNModel(CausalClassifier):
    """Train a classifier so that the activation of its maps lies in the cause.

    The loss is the compiled classification loss plus `alpha` times
    :func:`~tfcausal.objectives.causal_focus.causal_focus_loss`. Train it on `(images, targets)` with
    `targets = {"label": ..., "mask": ..., "has_mask": ...}`; images without a mask only have the classification loss.

    Source: *Causally Focused Convolutional Networks Through Minimal Human Guidance*, section 3.3: equation 1 (CFCN-F),
    equation 2 (CFCN-C) and equation 3 (CFCN-C with several labels per image and a mask for each).

    `dead_maps` in the log is the share of the maps in question without any positive activation, which the objective
    cannot bring back; see :func:`~tfcausal.objectives.causal_focus.dead_maps`.

    Args:
        backbone: For variant C, a classifier that ends with one map per class and global average pooling; for variant
            F, one with feature maps before its head.
            :func:`~tfcausal.models.backbones.all_convolutional.all_convolutional` builds both.
        alpha: Weight of the causal-focus loss, at least 0; the paper uses 0.8 to 3.
        variant: `C` for the map of the true class, with a multi-label head those of the image's labels; `F` for all
            feature maps of a layer, before a fully connected head.
        layer: With variant F: the layer whose output are the feature maps; None takes the last feature maps.
        resize: Whether the `masks` are resized to the maps, or the `maps` to the masks.
        multi_label: As for :class:`~tfcausal.models.base.CausalClassifier`. Masks may then be one for every label,
            (N, H, W, labels), with has_mask (N,) or (N, labels); or one for all labels of the image, (N, H, W, 1).
        warm_up_epochs: Epochs with the classification loss alone.
        ramp_epochs: Epochs after the warm-up in which `alpha` rises to its full value.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: `alpha` is negative, or the backbone has no class maps or feature maps; as for
            :class:`~tfcausal.models.base.CausalClassifier`.

    Example:
        >>> import numpy as np
        >>> from tfcausal.models.backbones.all_convolutional import all_convolutional
        >>> model = CFCNModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)), alpha=1.0)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> mask = np.zeros((4, 8, 8, 1), "float32"); mask[:, 2:6, 2:6] = 1
        >>> y = {"label": np.array([0, 1, 0, 1]), "mask": mask, "has_mask": np.array([1.0, 1.0, 0.0, 0.0])}
        >>> history = model.fit(np.ones((4, 8, 8, 3), "float32"), y, verbose=0)
        >>> sorted(history.history)
        ['causal_focus_loss', 'classification_loss', 'dead_maps', 'loss']
    """

    reported = ("causal_focus_loss", "dead_maps")

    def __init__(
        self,
        backbone: keras.Model,
        alpha: float = 1.0,
        variant: Literal["C", "F"] = "C",
        layer: str | None = None,
        resize: Resize = "masks",
        multi_label: bool | None = None,
        warm_up_epochs: int = 0,
        ramp_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("variant", variant, ("C", "F")), ("resize", resize, ("masks", "maps"))):
            if value not in known:
                raise InvalidArgument(message(name, f"one of {', '.join(known)}", repr(value)))
        require_layer_name(layer)
        if layer is not None and variant == "C":
            remedy = "Variant C takes the class maps before the pooling."
            raise InvalidArgument(message("layer", "None with variant='C'", repr(layer), remedy))
        super().__init__(backbone, multi_label, warm_up_epochs, ramp_epochs, **kwargs)
        self.add_weight_of_term("alpha", alpha, "causal_focus_loss")
        if not self.has_term("alpha"):
            self.left_out.add("dead_maps")
        self.alpha, self.variant, self.layer, self.resize = alpha, variant, layer, resize
        if variant == "C" and self.head == "binary":
            expected = "a head of at least 2 units with variant='C'"
            remedy = "One map cannot speak for both classes: use two units with a softmax, or variant='F'."
            raise InvalidArgument(message("backbone", expected, "one unit", remedy))
        self.maps = _class_maps(self.graph) if variant == "C" else feature_maps(self.graph, layer)

    @property
    def mask_use(self) -> MaskUse:
        """CFCN learns from masks."""
        return "needed"

    @property
    def mask_shape(self) -> tuple[int | None, ...]:
        """One mask for every image, with a multi-label head also one for every label."""
        shape = super().mask_shape
        per_label = self.variant == "C" and self.head == "multi_label"
        return (*shape[:-1], None) if per_label else shape

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The causal-focus loss of every image, in training and in evaluation."""
        activations = self.graph.run(images, training)
        outputs = self.outputs(activations)
        if targets.mask is None or targets.has_mask is None or not self.has_term("alpha"):
            return Objective(outputs, {}, {})
        maps = activations[self.maps]
        maps = tf.cast(maps, tf.float32) if maps.dtype.size == 2 else maps
        if maps.shape.rank < images.shape.rank:  # the slices of a volume, one after the other
            slices = tf.concat([tf.shape(images)[:2], tf.shape(maps)[1:]], 0)
            maps = tf.ensure_shape(tf.reshape(maps, slices), (*images.shape[:2], *maps.shape[1:]))
        counted = self._counted_maps(targets, maps)
        has_mask = tf.cast(targets.has_mask, counted.dtype)
        with_mask = counted * (has_mask if has_mask.shape.rank == 2 else has_mask[:, None])
        focus = causal_focus_loss(maps, with_mask, targets.mask, self.resize)
        terms = {"causal_focus_loss": Term(focus, self.weight("alpha"))}
        return Objective(outputs, terms, {"dead_maps": dead_maps(maps, counted)})

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {name: getattr(self, name) for name in ("alpha", "variant", "layer", "resize")}
        return {**super().get_config(), **own}

    def _counted_maps(self, targets: Targets, maps: tf.Tensor) -> tf.Tensor:
        """How much every map of every image counts, (N, maps)."""
        if self.variant == "F":
            return tf.ones((tf.shape(maps)[0], maps.shape[-1]), maps.dtype)
        if self.head == "multi_label":
            return tf.cast(targets.label, maps.dtype)
        return tf.one_hot(targets.classes, maps.shape[-1], dtype=maps.dtype)


def _class_maps(graph: OperationGraph) -> int:
    """Position of the tensor that global average pooling turns into the logits."""
    pooling = graph.producer(graph.logits)
    if (
        pooling is None
        or not isinstance(pooling.layer, keras.layers.GlobalAveragePooling2D)
        or pooling.layer.data_format != "channels_last"
    ):
        expected = "a classifier whose logits are the global average of one map per class, channels last"
        received = "no global average pooling" if pooling is None else f"`{pooling.path}` before the head"
        remedy = "Build one with `all_convolutional`, or use variant='F'."
        raise InvalidArgument(message("backbone", expected, received, remedy))
    return pooling.inputs[0]
