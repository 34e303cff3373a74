"""PPI: training by pseudo-interventions on what the model itself finds salient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal.distributed import gathered, place_among_replicas
from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.graph import Activations
from tfcausal.interventions.masking import box_mask, normalised_saliency, quantile_threshold, remove, soft_mask
from tfcausal.models.at_once import MaskedPass, total_at_once
from tfcausal.models.base import CausalClassifier, MaskUse, Objective, Term
from tfcausal.models.checks import masked_value_of, require, require_layer_name, require_number
from tfcausal.models.frozen_statistics import frozen_batch_norms
from tfcausal.models.targets import Targets
from tfcausal.objectives.contrast import CONTRASTS, cross_entropy, saliency_l1
from tfcausal.objectives.heads import choice
from tfcausal.saliency.differentiable import saliency_in_training, without_keeping
from tfcausal.saliency.wbp_rules import RULES

_SHARE = ("a number between 0 and 1", lambda number: 0 < number < 1)


@keras.saving.register_keras_serializable(package="tfcausal")
class PPIModel(CausalClassifier):
    """Train a classifier to lose its answer when its salient pixels are taken away, and to keep it otherwise.

    The loss is the compiled classification loss plus three terms. With ``s_y`` the map of the label, ``T`` the mask on
    the normalised map and ``j`` another image of the batch:

    - contrast: the flipped label on ``x - T(s_y(x)) * x`` (equation 3);
    - regularisation: the mean absolute value of ``s_y(x)``;
    - adversarial: the cross-entropy of the label on ``x - T(s_y(x_j)) * x`` (equations 4 and 5), so that masking as
      such gives nothing away.

    Source: *Proactive Pseudo-Intervention*, section 3.1; weights 1, 0.1 and 1 as in section 4; the maps are those of
    table 2. With a multi-label head the choice between having and not having a label takes the place of the classes.

    Departures from the paper. The contrast is one class against the rest, which is bounded (`contrast="negated"` is the
    paper's minus cross-entropy). The map is normalised before it is thresholded. The map belongs to the same forward
    pass as the logits, dropout included. The two masked passes use that pass's batch statistics as constants: they
    leave batch normalisation and its moving statistics alone. Which image lends its mask is a rotation of the batch
    that changes from step to step. The L1 norm is that of the label's map, or the mean over all classes.

    Args:
        backbone: A classifier as for :class:`~tfcausal.models.base.CausalClassifier`, that the saliency method has
            rules for.
        saliency: The map: `wbp`, `gradient` (its absolute value), `grad_cam`, or `lrp.` and the name of a composite.
        layer: With `grad_cam`: the layer whose feature maps are used; None takes the last ones.
        low: With a composite that has a z-box rule: smallest value of the images.
        high: Largest value.
        contrast: `one_vs_rest`, `negated` or `probability` (as in GAIN).
        contrast_weight: Weight of the contrast, at least 0.
        regularisation_weight: Weight of the map's L1 norm, at least 0.
        regularised: `label` for the norm of the label's map; `all_classes` for the mean over the maps of all classes,
            at the cost of a map for each.
        adversarial_weight: Weight of the adversarial positive, at least 0. A term of weight 0 costs nothing.
        mask: `soft`, or `box`, the smallest box around what is salient, which passes no gradient on to the map.
        threshold: Where the soft mask is one half, and above which a pixel belongs into the box, in the normalised map;
            in (0, 1).
        threshold_quantile: Instead of `threshold`: the quantile of each map that serves as its threshold, in (0, 1).
        largest_component: With `box`: whether the box is drawn around the largest connected component alone.
        sharpness: Steepness of the soft mask, greater than 0.
        masked_value: What a masked pixel becomes, in the backbone's input space: a number, or one for every channel.
        second_order: Whether the terms are differentiated through the map. If not, the map is a constant; that is
            cheaper, and there is no regularisation (its weight must be 0).
        divergence_limit: With `contrast="negated"`: training stops with an error when the cross-entropy of the masked
            images exceeds this, in nats.
        multi_label: As for :class:`~tfcausal.models.base.CausalClassifier`.
        warm_up_epochs: Epochs with the classification loss alone, before the maps mean anything.
        ramp_epochs: Epochs after the warm-up in which the weights of the terms rise to their full value.
        **kwargs: Arguments of keras.Model.

    Raises:
        InvalidArgument: An argument is outside its range, or two do not go together; as for
            :class:`~tfcausal.models.base.CausalClassifier`.
        UnsupportedOperation: The backbone contains a layer that the saliency method has no rule for.

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
        saliency: str = "wbp",
        layer: str | None = None,
        low: Any = None,
        high: Any = None,
        contrast: Literal["one_vs_rest", "negated", "probability"] = "one_vs_rest",
        contrast_weight: float = 1.0,
        regularisation_weight: float = 0.1,
        regularised: Literal["label", "all_classes"] = "label",
        adversarial_weight: float = 1.0,
        mask: Literal["soft", "box"] = "soft",
        threshold: float | None = None,
        threshold_quantile: float | None = None,
        largest_component: bool = False,
        sharpness: float = 50.0,
        masked_value: float | Sequence[float] = 0.0,
        second_order: bool = True,
        divergence_limit: float = 20.0,
        multi_label: bool | None = None,
        warm_up_epochs: int = 0,
        ramp_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        choices = {
            "contrast": (contrast, tuple(CONTRASTS)),
            "regularised": (regularised, ("label", "all_classes")),
            "mask": (mask, ("soft", "box")),
            "largest_component": (largest_component, (True, False) if mask == "box" else (False,)),
            "second_order": (second_order, (True, False)),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                listed = ", ".join(map(str, known))
                remedy = "Only a box is drawn around a component: set mask='box'." if value is True else ""
                raise InvalidArgument(message(name, f"one of {listed}", repr(value), remedy))
        if threshold is not None and threshold_quantile is not None:
            raise InvalidArgument(message("threshold", "None where `threshold_quantile` is given", threshold))
        if threshold is None and threshold_quantile is None:
            threshold = 0.25
        require_number("divergence_limit", divergence_limit, "a positive number", lambda number: number > 0)
        super().__init__(backbone, multi_label, warm_up_epochs, ramp_epochs, **kwargs)
        self.add_weight_of_term("contrast_weight", contrast_weight, "contrast_loss")
        self.add_weight_of_term("regularisation_weight", regularisation_weight, "regularisation_loss")
        self.add_weight_of_term("adversarial_weight", adversarial_weight, "adversarial_loss")
        if threshold is not None:
            self.add_parameter("threshold", threshold, *_SHARE)
        self.add_parameter("sharpness", sharpness, "a finite positive number", lambda number: 0 < number < inf)
        if threshold_quantile is not None:
            require_number("threshold_quantile", threshold_quantile, *_SHARE)
        if not second_order and regularisation_weight > 0:
            remedy = "With the map's gradient stopped that term trains nothing."
            raise InvalidArgument(
                message("regularisation_weight", "0 with second_order=False", regularisation_weight, remedy)
            )
        self.masked_value = masked_value_of(masked_value, self.graph.input_shape[-1])
        require_layer_name(layer)
        self._maps = saliency_in_training(saliency, self.graph, layer, low, high)
        self.saliency, self.layer = saliency, layer
        self.low, self.high = (None if bound is None else np.asarray(bound).tolist() for bound in (low, high))
        self.contrast = contrast
        self.contrast_weight = contrast_weight
        self.regularisation_weight = regularisation_weight
        self.regularised = regularised
        self.adversarial_weight = adversarial_weight
        self._mask = mask
        self.threshold = threshold
        self.threshold_quantile = threshold_quantile
        self.largest_component = largest_component
        self.sharpness = sharpness
        self.second_order = second_order
        self.divergence_limit = divergence_limit

    def keeps(self, layer: Any) -> bool:
        """Whether a layer of the backbone stays whole: it is one of Keras's, or has a rule of its own."""
        return super().keeps(layer) or type(layer) in RULES

    @property
    def mask_use(self) -> MaskUse:
        """PPI learns from labels alone."""
        return "none"

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The three terms in training; in evaluation, none."""
        activations = self.graph.run(images, training)
        outputs = self.outputs(activations)
        if not training:
            return Objective(outputs, {}, {})
        evidence = self.evidence(targets, activations)
        if self.second_order:
            maps = without_keeping(self._maps, activations, evidence, training)
        else:
            maps = tf.stop_gradient(self._maps(activations, evidence, training))
        mask = self.mask(maps)
        terms, added = self._masked_terms(images, targets, activations, mask)
        if self.has_term("regularisation_weight"):
            norms = saliency_l1(maps) if self.regularised == "label" else self._norms_of_all_classes(activations)
            norms *= tf.cast(targets.present, norms.dtype)
            terms["regularisation_loss"] = Term(norms, self.weight("regularisation_weight"))
        coverage = tf.reduce_mean(mask, axis=list(range(1, mask.shape.rank)))
        return Objective(outputs, terms, {"mask_coverage": coverage}, added)

    def mask(self, maps: tf.Tensor) -> tf.Tensor:
        """The mask of raw maps.

        Args:
            maps: Signed maps (N, height, width, channels), or of volumes.

        Returns:
            Share of each pixel to take away, (N, height, width, 1) in [0, 1].
        """
        saliency = normalised_saliency(maps)
        if self.threshold_quantile is None:
            threshold = self.parameter("threshold", saliency.dtype)
        else:
            threshold = quantile_threshold(saliency, self.threshold_quantile)
        if self._mask == "box":
            # The quantile itself is among the salient, as it is in the soft mask.
            below = 1.0 if self.threshold_quantile is None else 1.0 - 1e-6
            return box_mask(saliency, threshold * below, self.largest_component)
        mask = soft_mask(saliency, threshold, self.parameter("sharpness", saliency.dtype))
        # The quantile of a map that is mostly 0 is 0, and at its threshold the mask is one half.
        return mask if self.threshold_quantile is None else tf.where(saliency > 0, mask, 0.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        names = (
            "saliency layer low high contrast contrast_weight regularisation_weight regularised adversarial_weight "
            "threshold threshold_quantile largest_component sharpness masked_value second_order divergence_limit"
        )
        own = {name: getattr(self, name) for name in names.split()}
        return {**super().get_config(), **own, "mask": self._mask}

    def _masked_terms(
        self, images: tf.Tensor, targets: Targets, activations: Activations, mask: tf.Tensor
    ) -> tuple[dict[str, Term], tf.Tensor | None]:
        """The terms of the images that something has been taken from, and what they add to the loss.

        Their passes are differentiated at once, one after the other, for the sake of the memory.
        """
        frozen = frozen_batch_norms(self.graph, activations)

        def of_masked(mask: tf.Tensor, objective: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
            masked = remove(images, tf.cast(mask, images.dtype), self.masked_value)
            logits = self.logits(self.graph.run(masked, True, frozen))
            return objective(*choice(logits, targets.classes, self.head))

        dtype = self.logits(activations).dtype
        present = tf.cast(targets.present, dtype)
        # A rest of one image has no other: it gets its own mask back, so the term is left out.
        _, total = place_among_replicas(tf.shape(mask)[0])
        with_other = present * tf.cast(total > 1, dtype)
        counted: dict[str, tf.Tensor] = {}
        masks: dict[str, tf.Tensor] = {}
        objectives: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {}
        if self.has_term("contrast_weight"):
            masks["contrast"], counted["contrast"] = mask, present
            objectives["contrast"] = partial(self._contrast, present=present)
        if self.has_term("adversarial_weight"):
            masks["adversarial"], counted["adversarial"] = self._masks_of_others(mask), with_other
            objectives["adversarial"] = cross_entropy
        if not masks:
            return {}, None
        shares = tf.cast(self.shares(targets), dtype)
        passes = [
            MaskedPass(
                masks[name],
                partial(of_masked, objective=objectives[name]),
                shares * counted[name] * tf.cast(self.weight(f"{name}_weight"), dtype),
            )
            for name in masks
        ]
        added, losses = total_at_once(passes, self.optimizer.scale_loss(1.0))
        terms = {f"{name}_loss": Term(counted[name] * loss, None) for name, loss in zip(masks, losses, strict=True)}
        return terms, added

    def _contrast(self, logits: tf.Tensor, classes: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        loss = CONTRASTS[self.contrast](logits, classes)
        return self._limited(loss, present) if self.contrast == "negated" else loss

    def _check_batch(self, count: tf.Tensor) -> list[tf.Operation | None]:
        """The adversarial positive needs another image in the batch of all replicas."""
        checks = super()._check_batch(count)
        if not self.has_term("adversarial_weight"):
            return checks
        _, total = place_among_replicas(count)
        reason = "PPI masks an image with the map of another one; set adversarial_weight=0 to do without."
        enough = tf.logical_or(total >= 2, tf.logical_not(self._first_batch))
        return [require(enough, InvalidArgument, message("batch_size", "at least 2", "{}", reason), total), *checks]

    def _masks_of_others(self, mask: tf.Tensor) -> tf.Tensor:
        """Of every image the mask of another one: a rotation of the whole batch, of all replicas."""
        count = tf.shape(mask)[0]
        offset, total = place_among_replicas(count)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        rotation = 1 + step % tf.maximum(total - 1, 1)
        lenders = (offset + tf.range(count) - rotation) % total
        return tf.ensure_shape(tf.gather(gathered(mask), lenders), mask.shape)

    def _norms_of_all_classes(self, activations: Activations) -> tf.Tensor:
        """Mean over the classes of the L1 norm of their maps, (N,)."""
        logits = self.logits(activations)
        norms = []
        for index in range(self.graph.num_classes):
            of_class = tf.one_hot(tf.fill(tf.shape(logits)[:1], index), self.graph.num_classes, dtype=logits.dtype)
            norms.append(saliency_l1(without_keeping(self._maps, activations, of_class, True)))
        return tf.reduce_mean(tf.stack(norms), axis=0)

    def _limited(self, contrast: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Stop when minus the cross-entropy, of the images that have a label, has fallen below minus the limit."""
        value = -tf.math.divide_no_nan(tf.reduce_sum(contrast * present), tf.reduce_sum(present))
        text = (
            "Training was stopped: the negated contrast diverges; the cross-entropy of the masked images is {} nats, "
            f"above divergence_limit={self.divergence_limit}. Use contrast='one_vs_rest', which is bounded, or lower "
            "contrast_weight."
        )
        with tf.control_dependencies([require(value <= self.divergence_limit, TrainingDiverged, text, value)]):
            return tf.identity(contrast)
