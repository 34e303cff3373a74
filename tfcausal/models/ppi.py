"""PPI: training by pseudo-interventions on what the model itself finds salient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Literal

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.graph import Activations
from tfcausal.interventions.masking import normalised_saliency, quantile_threshold, remove, soft_mask
from tfcausal.models.base import CausalClassifier, Objective, Targets, Term, require, require_number
from tfcausal.objectives.contrast import CONTRASTS, cross_entropy, saliency_l1
from tfcausal.saliency.linear_maps import along_channels, batch_norm_affine, batch_norm_statistics
from tfcausal.saliency.propagation import check
from tfcausal.saliency.wbp import weight_back_propagation
from tfcausal.saliency.wbp_rules import RULES


@keras.saving.register_keras_serializable(package="tfcausal")
class PPIModel(CausalClassifier):
    """Train a classifier to lose its answer when its salient pixels are taken away, and to keep it otherwise.

    The loss is the compiled classification loss plus three terms. With ``s_y`` the WBP map of the label, ``T`` the soft
    mask on the normalised map and ``j`` another image of the batch:

    - contrast: the flipped label on ``x - T(s_y(x)) * x`` (equation 3);
    - regularisation: the mean absolute value of ``s_y(x)``;
    - adversarial: the cross-entropy of the label on ``x - T(s_y(x_j)) * x`` (equations 4 and 5), so that masking as
      such gives nothing away.

    Source: *Proactive Pseudo-Intervention*, section 3.1; weights 1, 0.1 and 1 as in section 4.

    Departures from the paper. The contrast is one class against the rest, which is bounded (`contrast="negated"` is the
    paper's minus cross-entropy). The map is normalised before it is thresholded. The map belongs to the same forward
    pass as the logits, dropout included. The two masked passes use that pass's batch statistics as constants: they
    leave batch normalisation and its moving statistics alone.

    Args:
        backbone: A functional or built Sequential classifier of at least 2 classes that WBP has rules for.
        contrast: `one_vs_rest` or `negated`.
        contrast_weight: Weight of the contrast, at least 0.
        regularisation_weight: Weight of the map's L1 norm, at least 0.
        adversarial_weight: Weight of the adversarial positive, at least 0.
        threshold: Where the mask is one half, in the normalised map, in (0, 1).
        threshold_quantile: Instead of `threshold`: the quantile of each map that serves as its threshold, in (0, 1).
        sharpness: Steepness of the mask, greater than 0.
        second_order: Whether the terms are differentiated through the map. If not, the map is a constant; that is
            cheaper, and there is no regularisation (its weight must be 0).
        warm_up_epochs: Epochs with the classification loss alone, before the maps mean anything; by the number of the
            epoch in `fit`, so that a further call goes on with `initial_epoch`. `train_on_batch` knows no epochs.
        divergence_limit: With `contrast="negated"`: training stops with an error when the cross-entropy of the masked
            images exceeds this, in nats.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: An argument is outside its range, or two do not go together.
        UnsupportedOperation: The backbone contains a layer that WBP has no rule for.

    Example:
        >>> import numpy as np
        >>> from tfcausal.models.backbones.all_convolutional import all_convolutional
        >>> model = PPIModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)))
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> history = model.fit(np.ones((4, 8, 8, 3), "float32"), np.array([0, 1, 0, 1]), verbose=0)
        >>> sorted(history.history)[:4]
        ['accuracy', 'adversarial_loss', 'classification_loss', 'contrast_loss']
        >>> model.predict(np.ones((1, 8, 8, 3), "float32"), verbose=0).shape
        (1, 2)
    """

    reported = ("contrast_loss", "regularisation_loss", "adversarial_loss", "mask_coverage")

    def __init__(
        self,
        backbone: keras.Model,
        contrast: Literal["one_vs_rest", "negated"] = "one_vs_rest",
        contrast_weight: float = 1.0,
        regularisation_weight: float = 0.1,
        adversarial_weight: float = 1.0,
        threshold: float | None = None,
        threshold_quantile: float | None = None,
        sharpness: float = 50.0,
        second_order: bool = True,
        warm_up_epochs: int = 0,
        divergence_limit: float = 20.0,
        **kwargs: Any,
    ) -> None:
        if contrast not in CONTRASTS:
            raise InvalidArgument(message("contrast", f"one of {', '.join(CONTRASTS)}", repr(contrast)))
        weights = {
            "contrast_weight": contrast_weight,
            "regularisation_weight": regularisation_weight,
            "adversarial_weight": adversarial_weight,
        }
        for name, weight in weights.items():
            require_number(name, weight, "a finite number of at least 0", lambda number: 0 <= number < inf)
        require_number(
            "warm_up_epochs", warm_up_epochs, "an integer of at least 0", lambda number: number >= 0 and number % 1 == 0
        )
        if threshold is not None and threshold_quantile is not None:
            raise InvalidArgument(message("threshold", "None where `threshold_quantile` is given", threshold))
        if threshold is None and threshold_quantile is None:
            threshold = 0.25
        for name, share in {"threshold": threshold, "threshold_quantile": threshold_quantile}.items():
            if share is not None:
                require_number(name, share, "a number between 0 and 1", lambda number: 0 < number < 1)
        require_number("sharpness", sharpness, "a finite positive number", lambda number: 0 < number < inf)
        require_number("divergence_limit", divergence_limit, "a positive number", lambda number: number > 0)
        if not second_order and regularisation_weight > 0:
            remedy = "With the map's gradient stopped that term trains nothing."
            raise InvalidArgument(
                message("regularisation_weight", "0 with second_order=False", regularisation_weight, remedy)
            )
        super().__init__(backbone, **kwargs)
        check(self.graph, RULES, training=True)
        self.contrast = contrast
        self.contrast_weight = contrast_weight
        self.regularisation_weight = regularisation_weight
        self.adversarial_weight = adversarial_weight
        self.threshold = threshold
        self.threshold_quantile = threshold_quantile
        self.sharpness = sharpness
        self.second_order = second_order
        self.warm_up_epochs = warm_up_epochs
        self.divergence_limit = divergence_limit
        self._intervening = warm_up_epochs == 0

    def keeps(self, layer: Any) -> bool:
        """Whether a layer of the backbone stays whole: it is one of Keras's, or has a rule of its own."""
        return super().keeps(layer) or type(layer) in RULES

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The three terms in training; in evaluation, and during the warm-up, none."""
        activations = self.graph.run(images, training)
        outputs = self.graph.head(activations[self.graph.logits])
        if not (training and self._intervening):
            return Objective(outputs, {}, {})

        (maps,), _ = weight_back_propagation(self.graph, activations, targets.classes, training)
        if not self.second_order:
            maps = tf.stop_gradient(maps)
        mask = self.mask(maps)
        count = tf.shape(images)[0]
        step = tf.cast(self.optimizer.iterations, tf.int32)
        others_mask = tf.roll(mask, 1 + step % tf.maximum(count - 1, 1), axis=0)
        masked = remove(tf.tile(images, (2, 1, 1, 1)), tf.cast(tf.concat([mask, others_mask], 0), images.dtype))
        masked_logits = self.graph.run(masked, training, self._frozen_batch_norms(activations))[self.graph.logits]
        without_cause, without_other = tf.split(tf.cast(masked_logits, tf.float32), 2)

        contrast = CONTRASTS[self.contrast](without_cause, targets.classes)
        if self.contrast == "negated":
            contrast = self._limited(contrast)
        # A batch of one has no other image: rolling gives the image its own mask, so the term is left out.
        adversarial = cross_entropy(without_other, targets.classes) * tf.cast(count > 1, tf.float32)
        terms = {
            "contrast_loss": Term(contrast, self.contrast_weight),
            "regularisation_loss": Term(saliency_l1(maps), self.regularisation_weight),
            "adversarial_loss": Term(adversarial, self.adversarial_weight),
        }
        return Objective(outputs, terms, {"mask_coverage": tf.reduce_mean(mask, axis=(1, 2, 3))})

    def mask(self, maps: tf.Tensor) -> tf.Tensor:
        """The soft mask of raw maps.

        Args:
            maps: Signed maps (N, height, width, channels).

        Returns:
            Share of each pixel to take away, (N, height, width, 1) in (0, 1).
        """
        saliency = normalised_saliency(maps)
        if self.threshold_quantile is None:
            return soft_mask(saliency, self.threshold, self.sharpness)
        mask = soft_mask(saliency, quantile_threshold(saliency, self.threshold_quantile), self.sharpness)
        # The quantile of a map that is mostly 0 is 0, and at its threshold the mask is one half.
        return tf.where(saliency > 0, mask, 0.0)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train like `keras.Model.fit`; the epoch number ends the warm-up. Errors as for :class:`CausalClassifier`."""
        if self.warm_up_epochs:
            begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: self._begin_epoch(epoch))
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.callbacks.insert(0, begin)
            else:
                callbacks = [begin, *(keras.tree.flatten(callbacks) if callbacks else [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        names = (
            "contrast contrast_weight regularisation_weight adversarial_weight threshold threshold_quantile sharpness "
            "second_order warm_up_epochs divergence_limit"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}

    def _begin_epoch(self, epoch: int) -> None:
        intervening = epoch >= self.warm_up_epochs
        if intervening != self._intervening:
            self._intervening = intervening
            keras_api.rebuild_train_function(self)

    def _frozen_batch_norms(self, activations: Activations) -> dict[int, Callable[[tf.Tensor], tf.Tensor]]:
        """Stand-ins for the batch normalisations that use the clean batch's statistics as constants."""
        frozen: dict[int, Callable[[tf.Tensor], tf.Tensor]] = {}
        for operation in self.graph.operations:
            if isinstance(operation.layer, keras.layers.BatchNormalization):
                inputs, trains = activations[operation.inputs[0]], operation.trains(True)
                statistics = batch_norm_statistics(operation.layer, inputs, trains)
                constants = [tf.stop_gradient(value) for value in statistics]
                frozen[operation.output] = partial(
                    _affine, operation.layer, *batch_norm_affine(operation.layer, *constants)
                )
        return frozen

    def _limited(self, contrast: tf.Tensor) -> tf.Tensor:
        """Stop when minus the cross-entropy has fallen below minus the limit."""
        value = -tf.reduce_mean(contrast)
        text = (
            "Training was stopped: the negated contrast diverges; the cross-entropy of the masked images is {} nats, "
            f"above divergence_limit={self.divergence_limit}. Use contrast='one_vs_rest', which is bounded, or lower "
            "contrast_weight."
        )
        with tf.control_dependencies([require(value <= self.divergence_limit, TrainingDiverged, text, value)]):
            return tf.identity(contrast)


def _affine(layer: Any, gain: tf.Tensor, shift: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    gain, shift = (tf.cast(along_channels(layer, value, x.shape.rank), x.dtype) for value in (gain, shift))
    return x * gain + shift
