"""Saliency as part of an objective: maps from the forward pass that gives the logits, differentiable in the parameters.

An explainer looks at a model at inference. The functions here take the tensors of a forward pass in training, dropout
and batch statistics included, and are made of differentiable operations, so that a loss on the map trains the model.
Batch statistics count as constants in the map: a map is what one image says, not what the others of its batch do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.operations import Operation
from tfcausal.saliency.cam import feature_maps
from tfcausal.saliency.composites import COMPOSITES, ZBox
from tfcausal.saliency.linear_maps import CONVOLUTIONS, DENSE
from tfcausal.saliency.lrp import checked_bounds
from tfcausal.saliency.lrp_plan import Plan
from tfcausal.saliency.propagation import GRADIENT, Rule, Rules, Step, WithFallback, check, propagate
from tfcausal.saliency.wbp_rules import RULES

L = keras.layers

MapsOfPass = Callable[[Activations, tf.Tensor, bool], tf.Tensor]
"""Takes the tensors of a forward pass, the weights (N, outputs) with which the logits add up to the evidence that is
explained, and whether the pass was run in training mode; gives maps in the shape of the images or with one channel."""

_DRAWING = (L.Dropout, L.GaussianDropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D)
_SAME_AS_GRADIENT = (
    *(*DENSE, *CONVOLUTIONS, L.BatchNormalization, L.Flatten, L.Reshape, L.Add, L.Concatenate),
    *(L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling2D, L.AveragePooling3D, L.ZeroPadding2D, L.ZeroPadding3D),
    *(L.GlobalAveragePooling2D, L.GlobalAveragePooling3D, L.GaussianNoise),
)


def _drawn(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    if not step.training or step.layer.rate == 0:
        return (cotangent,)
    value = step.inputs[0]
    factor = tf.where(tf.equal(value, 0), tf.ones_like(value), tf.math.divide_no_nan(step.output, value))
    return (cotangent * tf.stop_gradient(factor),)


# What was drawn for an input of 0 cannot be seen from outside; unlike its contribution, its slope is not 0.
_DRAWN = Rule(_drawn)


class GradientRules:
    """Rules of the plain gradient, in which batch statistics and what dropout has drawn are constants.

    What dropout drew for a value of 0 does not show in its output; the mean, 1, stands for it. Where WBP's rule is the
    gradient itself (linear layers, ReLU, pooling), it is used: it runs nothing twice.
    """

    def find(self, operation: Operation) -> Rule:
        """The rule of an operation."""
        layer, known = operation.layer, type(operation.layer) in RULES
        if known and isinstance(layer, _DRAWING):
            return _DRAWN
        relu = isinstance(layer, L.Activation) and layer.activation is keras.activations.relu
        if relu or (known and isinstance(layer, _SAME_AS_GRADIENT)):
            return RULES.find(operation)
        rule = WithFallback(RULES, GRADIENT).find(operation)
        return rule if rule.inference_only else GRADIENT


def gradient_of_pass(
    graph: OperationGraph, activations: Activations, weights: tf.Tensor, training: bool, at: int | None = None
) -> tf.Tensor:
    """Gradient of a weighted sum of the logits with respect to the images, or to a tensor on the way.

    Args:
        graph: The model's operations.
        activations: The forward pass, from `graph.run(images, training)`.
        weights: (N, outputs), float32 or float64.
        training: Whether the pass was run in training mode.
        at: Position of the tensor; None is the model's first input.

    Returns:
        The gradient, in the shape of the tensor and the dtype of `weights`.
    """
    position = graph.input if at is None else at
    (gradient,), _ = propagate(graph, activations, weights, GradientRules(), training, to=(position,))
    return gradient


def grad_cam_of_pass(
    graph: OperationGraph,
    activations: Activations,
    weights: tf.Tensor,
    training: bool,
    position: int,
    constant_weights: bool = False,
) -> tf.Tensor:
    """Grad-CAM of a weighted sum of the logits, rectified and enlarged to the images by bilinear interpolation.

    Source: Selvaraju et al. 2017, equations 1 and 2; with `constant_weights` as in GAIN (Li et al. 2018, section 3.1).

    Args:
        graph: The model's operations.
        activations: The forward pass.
        weights: (N, outputs), float32 or float64.
        training: Whether the pass was run in training mode.
        position: Position of the feature maps (N, height, width, channels); for a volume, those of all its slices
            one after the other.
        constant_weights: Whether the channels' weights, which are mean slopes, count as constants.

    Returns:
        (N, ..., 1) with the places of the images, at least 0.
    """
    features = tf.cast(activations[position], weights.dtype)
    slopes = gradient_of_pass(graph, activations, weights, training, at=position)
    channel_weights = tf.reduce_mean(slopes, axis=(1, 2), keepdims=True)
    if constant_weights:
        channel_weights = tf.stop_gradient(channel_weights)
    maps = tf.nn.relu(tf.reduce_sum(channel_weights * features, axis=-1, keepdims=True))
    images = activations[graph.input]
    enlarged = tf.cast(tf.image.resize(maps, tf.shape(images)[-3:-1]), weights.dtype)
    return tf.ensure_shape(tf.reshape(enlarged, tf.concat([tf.shape(images)[:-1], [1]], 0)), (*images.shape[:-1], 1))


def without_keeping(maps: MapsOfPass, activations: Activations, weights: tf.Tensor, training: bool) -> tf.Tensor:
    """Maps whose messages are computed again when they are differentiated, instead of being kept until then.

    A loss on the map needs the message at every layer for its gradient, as much memory again as the activations, at a
    time when the passes on changed images need theirs. Computing them twice costs a third of a plain training step.

    Args:
        maps: The saliency method.
        activations: The forward pass.
        weights: (N, outputs), not differentiated.
        training: Whether the pass was run in training mode.
    """
    positions = sorted(activations)
    weights = tf.stop_gradient(weights)

    def walk(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        return maps(dict(zip(positions, tensors, strict=True)), weights, training)

    @tf.custom_gradient
    def walked(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def differentiated(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                # Without it, TensorFlow would find that the first walk has computed the same.
                with tf.control_dependencies([upstream]):
                    again = [tf.identity(tensor) for tensor in tensors]
                tape.watch([tensor for tensor in again if tensor.dtype.is_floating])
                tape.watch(variables)
                result = walk(again)
            sources = [*again, *variables]
            found = tape.gradient(result, sources, upstream)
            if tf.executing_eagerly():  # where None does not stand for zeros
                pairs = zip(found, sources, strict=True)
                found = [tf.zeros_like(source) if gradient is None else gradient for gradient, source in pairs]
            return found[: len(again)], found[len(again) :]

        return walk(tensors), differentiated

    return walked(*(activations[position] for position in positions))


def saliency_in_training(
    name: str, graph: OperationGraph, layer: object = None, low: object = None, high: object = None
) -> MapsOfPass:
    """A saliency method by its name, as a function of a forward pass in training.

    `wbp` gives weight times input, `gradient` the absolute value of the gradient (Simonyan et al. 2014),
    `lrp.<composite>` relevance, and `grad_cam` a rectified map with one channel.

    Args:
        name: `wbp`, `gradient`, `grad_cam`, or `lrp.` and the name of a composite.
        graph: The model's operations; made with `in_training=True`.
        layer: For `grad_cam`: the layer whose feature maps are shown; None takes the last ones.
        low: For a composite with a z-box rule: smallest value of the images.
        high: Largest value.

    Raises:
        InvalidArgument: An unknown name; an option that the method does not take; no such layer, or bounds that are
            missing or do not fit the images.
        UnsupportedOperation: The model has an operation that the method has no rule for, in training.
    """
    known = ("wbp", "gradient", "grad_cam", *(f"lrp.{composite}" for composite in COMPOSITES))
    if name not in known:
        raise InvalidArgument(message("saliency", f"one of {', '.join(known)}", repr(name)))
    if layer is not None and name != "grad_cam":
        raise InvalidArgument(message("layer", f"None with saliency={name!r}, which shows no layer", repr(layer)))
    for argument, bound in (("low", low), ("high", high)):
        if bound is not None and not name.startswith("lrp."):
            raise InvalidArgument(message(argument, f"None with saliency={name!r}, which has no bounds", repr(bound)))
    if name == "wbp":
        check(graph, RULES, training=True)
        return lambda activations, weights, training: _times_input(
            graph, activations, _walk(graph, activations, weights, RULES, training)
        )
    if name.startswith("lrp."):
        plan = Plan(graph, COMPOSITES[name.removeprefix("lrp.")], low, high)
        for layer_plan in plan.layers.values():
            if isinstance(layer_plan.rule, ZBox):
                checked_bounds(layer_plan.rule, graph)
        check(graph, plan, training=True)
        return lambda activations, weights, training: _walk(
            graph, activations, weights * _logits(graph, activations, weights), plan.on(activations), training
        )
    check(graph, GradientRules(), training=True)
    if name == "gradient":
        return lambda activations, weights, training: tf.abs(gradient_of_pass(graph, activations, weights, training))
    position = feature_maps(graph, layer)
    return lambda activations, weights, training: grad_cam_of_pass(graph, activations, weights, training, position)


def _walk(graph: OperationGraph, activations: Activations, start: tf.Tensor, rules: Rules, training: bool) -> tf.Tensor:
    (maps,), _ = propagate(graph, activations, start, rules, training)
    return maps


def _times_input(graph: OperationGraph, activations: Activations, weights: tf.Tensor) -> tf.Tensor:
    return weights * tf.cast(activations[graph.input], weights.dtype)


def _logits(graph: OperationGraph, activations: Activations, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(activations[graph.logits], like.dtype)
