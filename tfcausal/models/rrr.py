"""RRR: training with a penalty on what the answer depends on outside the cause."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcausal.models.base import CausalClassifier, MaskUse, Objective, Term
from tfcausal.models.mask_average import over_images_with_mask
from tfcausal.models.targets import Targets
from tfcausal.objectives.right_reasons import log_probability_slopes, right_reasons_loss
from tfcausal.saliency.differentiable import GradientRules, gradient_of_pass
from tfcausal.saliency.propagation import check


@keras.saving.register_keras_serializable(package="tfcausal")
class RRRModel(CausalClassifier):
    """Train a classifier whose answer does not change with the pixels outside the cause.

    The loss is the compiled classification loss plus `penalty_weight` times the sum over pixels and channels of
    ``((1 - mask) * d/dx sum_k log p_k)^2``, in the mean over the images with a mask
    (:func:`~tfcausal.objectives.right_reasons.right_reasons_loss`, and for the other heads
    :func:`~tfcausal.objectives.right_reasons.log_probability_slopes`). Its gradient is of second order.

    Source: *Right for the Right Reasons*, equation 1, without its weight decay, which is a matter of the optimiser.

    Departures from the paper. The penalty is the mean over the images of the batch that have a mask and not the sum
    over all, so that its weight does not depend on how many have one. Batch statistics are constants in the gradient:
    it is what the answer for one image depends on, not what the others of its batch do to it.

    Args:
        backbone: A classifier as for :class:`~tfcausal.models.base.CausalClassifier`.
        penalty_weight: Weight of the penalty, at least 0. The paper takes one with which both terms are of the same
            order of magnitude; as a sum over pixels the penalty grows with the number of classes and shrinks with the
            range of the pixels and the resolution. The default balances them on `textured_digits` at 32 x 32 pixels
            with a range of 1; elsewhere, compare `right_reasons_loss` with `classification_loss` in the log.
        multi_label: As for :class:`~tfcausal.models.base.CausalClassifier`.
        warm_up_epochs: Epochs with the classification loss alone.
        ramp_epochs: Epochs after the warm-up in which the weight rises to its full value.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: An argument is outside its range; as for :class:`~tfcausal.models.base.CausalClassifier`.
        UnsupportedOperation: The backbone has a layer that cannot be differentiated in training.

    Example:
        >>> import numpy as np
        >>> from tfcausal.models.backbones.all_convolutional import all_convolutional
        >>> model = RRRModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)))
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> mask = np.zeros((4, 8, 8, 1), "float32"); mask[:, 2:6, 2:6] = 1
        >>> y = {"label": np.array([0, 1, 0, 1]), "mask": mask, "has_mask": np.array([1.0, 1.0, 0.0, 0.0])}
        >>> history = model.fit(np.ones((4, 8, 8, 3), "float32"), y, verbose=0)
        >>> sorted(history.history)
        ['classification_loss', 'loss', 'right_reasons_loss']
    """

    reported = ("right_reasons_loss",)

    def __init__(
        self,
        backbone: keras.Model,
        penalty_weight: float = 0.001,
        multi_label: bool | None = None,
        warm_up_epochs: int = 0,
        ramp_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, multi_label, warm_up_epochs, ramp_epochs, **kwargs)
        self.add_weight_of_term("penalty_weight", penalty_weight, "right_reasons_loss")
        check(self.graph, GradientRules(), training=True)
        self.penalty_weight = penalty_weight

    @property
    def mask_use(self) -> MaskUse:
        """RRR learns from masks."""
        return "needed"

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The penalty in training; in evaluation, none."""
        activations = self.graph.run(images, training)
        outputs = self.outputs(activations)
        if not training or targets.mask is None or targets.has_mask is None or not self.has_term("penalty_weight"):
            return Objective(outputs, {}, {})
        slopes = log_probability_slopes(self.logits(activations), self.head)
        gradients = gradient_of_pass(self.graph, activations, slopes, training)
        penalty = right_reasons_loss(gradients, targets.mask, targets.has_mask)
        loss = over_images_with_mask(penalty, targets.has_mask)
        return Objective(outputs, {"right_reasons_loss": Term(loss, self.weight("penalty_weight"))}, {})

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "penalty_weight": self.penalty_weight}
