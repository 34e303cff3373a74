"""CFCN-C: a classifier whose class maps are drawn into the cause by masks of a few training images."""

from __future__ import annotations

from math import inf
from typing import Any

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.models.base import CausalClassifier, Objective, Targets, Term, require_number
from tfcausal.objectives.causal_focus import causal_focus_loss


@keras.saving.register_keras_serializable(package="tfcausal")
class CFCNModel(CausalClassifier):
    """Train a classifier with class maps so that its evidence for the true class lies in the cause.

    The loss is the compiled classification loss plus `alpha` times
    :func:`~tfcausal.objectives.causal_focus.causal_focus_loss`. Train it on `(images, targets)` with
    `targets = {"label": ..., "mask": ..., "has_mask": ...}`; images without a mask only have the classification loss.

    Source: *Causally Focused Convolutional Networks Through Minimal Human Guidance*, section 3.3, equation 2 (CFCN-C).

    Args:
        backbone: A classifier that ends with one map per class and global average pooling, for instance
            :func:`~tfcausal.models.backbones.all_convolutional.all_convolutional`.
        alpha: Weight of the causal-focus loss, at least 0; the paper uses 0.8 to 3.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: `alpha` is negative, or the backbone has no class maps.

    Example:
        >>> import numpy as np
        >>> from tfcausal.models.backbones.all_convolutional import all_convolutional
        >>> model = CFCNModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)), alpha=1.0)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> mask = np.zeros((4, 8, 8, 1), "float32"); mask[:, 2:6, 2:6] = 1
        >>> y = {"label": np.array([0, 1, 0, 1]), "mask": mask, "has_mask": np.array([1.0, 1.0, 0.0, 0.0])}
        >>> history = model.fit(np.ones((4, 8, 8, 3), "float32"), y, verbose=0)
        >>> sorted(history.history)
        ['causal_focus_loss', 'classification_loss', 'loss']
    """

    reported = ("causal_focus_loss",)

    def __init__(self, backbone: keras.Model, alpha: float = 1.0, **kwargs: Any) -> None:
        require_number("alpha", alpha, "a finite weight of at least 0", lambda number: 0 <= number < inf)
        super().__init__(backbone, **kwargs)
        self.alpha = alpha
        self.class_maps = _class_maps(self.graph)

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The causal-focus loss of every image, in training and in evaluation."""
        activations = self.graph.run(images, training)
        outputs = self.graph.head(activations[self.graph.logits])
        if targets.mask is None or targets.has_mask is None:
            if training:
                expected = "a dict of `label`, `mask` and `has_mask` (has_mask 0 for images without a mask)"
                raise InvalidArgument(
                    message("y", expected, "labels alone", "Train a plain Keras model without masks.")
                )
            return Objective(outputs, {}, {})
        maps = tf.cast(activations[self.class_maps], tf.float32)
        focus = causal_focus_loss(maps, targets.classes, targets.mask, targets.has_mask)
        return Objective(outputs, {"causal_focus_loss": Term(focus, self.alpha)}, {})

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "alpha": self.alpha}


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
        raise InvalidArgument(message("backbone", expected, received, "Build one with `all_convolutional`."))
    return pooling.inputs[0]
