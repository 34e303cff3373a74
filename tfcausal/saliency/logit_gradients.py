"""The gradient of a logit as a function of a model's operations: plain, over noise, along a way, and guided.

Everything here is made of TensorFlow operations and can be differentiated in turn. The gradient is that of the logit: a
softmax would mix the other classes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.graph import OperationGraph
from tfcausal.operations import Operation

Tensors = tuple[tf.Tensor, ...]
Replacements = Mapping[int, Callable[[tf.Tensor], tf.Tensor]]


def chosen_logits(logits: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits that are explained, and their classes.

    Args:
        logits: Logits (N, classes).
        classes: Integers (N,); a negative one stands for the predicted class.

    Returns:
        The chosen logits, float32 (N,), and the classes, (N,), all of them in [0, classes).
    """
    predicted = tf.argmax(logits, axis=-1, output_type=classes.dtype)
    classes = tf.where(classes < 0, predicted, classes)
    return tf.cast(tf.gather(logits, classes, batch_dims=1), tf.float32), classes


def gradient(
    graph: OperationGraph, inputs: Tensors, classes: tf.Tensor, replace: Replacements | None = None
) -> tuple[Tensors, tf.Tensor]:
    """Gradient of one logit per sample with respect to every input.

    Args:
        graph: The model's operations.
        inputs: One tensor (N, ...) for every input.
        classes: Integers (N,); a negative one stands for the predicted class.
        replace: Functions to use instead of layers, as `graph.run` takes them.

    Returns:
        One gradient in the shape of every input, zero where the logit does not depend on it, and the logits (N,).
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        logits, _ = chosen_logits(graph.run(inputs, replace=replace)[graph.logits], classes)
    return tuple(tape.gradient(logits, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)), logits


def noisy_gradient_statistics(
    graph: OperationGraph, inputs: Tensors, classes: tf.Tensor, samples: int, noise_level: float, seed: int
) -> tuple[Tensors, Tensors]:
    """Mean and variance of the gradient over copies of the inputs with Gaussian noise.

    They are running statistics (Welford 1962): the memory does not depend on the number of samples. The noise depends
    on the seed and the number of the sample alone, so that an image gets the same in whatever batch it stands.

    Args:
        graph: The model's operations.
        inputs: One tensor (N, ...) for every input.
        classes: Integers (N,); a negative one stands for the class predicted without noise.
        samples: Number of noisy copies.
        noise_level: Standard deviation of the noise, as a share of the range (maximum minus minimum) of each sample.
        seed: Seed of the noise.

    Returns:
        Means and variances (divided by `samples`), each one tensor in the shape of every input.
    """
    _, classes = chosen_logits(graph.run(inputs)[graph.logits], classes)
    axes = [list(range(1, value.shape.rank)) for value in inputs]
    deviations = [
        noise_level * (tf.reduce_max(value, axis, keepdims=True) - tf.reduce_min(value, axis, keepdims=True))
        for value, axis in zip(inputs, axes, strict=True)
    ]

    def noisy(sample: tf.Tensor) -> Tensors:
        keys = [tf.stack([seed, sample * len(inputs) + position]) for position in range(len(inputs))]
        return tuple(
            value + deviation * tf.random.stateless_normal(tf.shape(value)[1:], key, dtype=value.dtype)
            for value, deviation, key in zip(inputs, deviations, keys, strict=True)
        )

    def update(sample: tf.Tensor, means: Tensors, squares: Tensors) -> tuple[tf.Tensor, Tensors, Tensors]:
        gradients, _ = gradient(graph, noisy(sample), classes)
        differences = [new - mean for new, mean in zip(gradients, means, strict=True)]
        count = tf.cast(sample + 1, tf.float32)
        means = tuple(mean + change / count for mean, change in zip(means, differences, strict=True))
        squares = tuple(
            square + change * (new - mean)
            for square, change, new, mean in zip(squares, differences, gradients, means, strict=True)
        )
        return sample + 1, means, squares

    zeros = tuple(tf.zeros_like(value) for value in inputs)
    _, means, squares = tf.while_loop(
        lambda sample, *_: sample < samples, update, (tf.constant(0), zeros, zeros), parallel_iterations=1
    )
    return means, tuple(square / samples for square in squares)


def integrated_gradients(
    graph: OperationGraph,
    inputs: Tensors,
    classes: tf.Tensor,
    baselines: Sequence[tf.Tensor],
    nodes: np.ndarray,
    weights: np.ndarray,
    rows: int,
) -> tuple[Tensors, tf.Tensor]:
    """Integral of the gradient along the straight way from a baseline to the input, times that way.

    Args:
        graph: The model's operations.
        inputs: One tensor (N, ...) for every input.
        classes: Integers (N,); a negative one stands for the class predicted at the input.
        baselines: One for every input; each broadcasts to it.
        nodes: Points of the way at which the gradient is taken, in [0, 1].
        weights: Their weights, which sum to 1.
        rows: How many samples may be in one forward pass; as many points as fit are taken at a time, at least one.

    Returns:
        Maps in the shape of every input, and the residual of completeness, (N,): what the logit changes from the
        baseline to the input, minus the sum of the maps.
    """
    starts = tuple(value * 0 + tf.cast(start, value.dtype) for value, start in zip(inputs, baselines, strict=True))
    ways = tuple(value - start for value, start in zip(inputs, starts, strict=True))
    logits, classes = chosen_logits(graph.run(inputs)[graph.logits], classes)
    at_start, _ = chosen_logits(graph.run(starts)[graph.logits], classes)
    count = tf.shape(classes)[0]
    points, shares = tf.constant(nodes, tf.float32), tf.constant(weights, tf.float32)
    at_once = tf.maximum(1, rows // count)

    def scaled(factors: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """One copy of (N, ...) for every factor: (factors, N, ...)."""
        return tf.reshape(factors, [-1] + [1] * value.shape.rank) * value

    def update(step: tf.Tensor, totals: Tensors) -> tuple[tf.Tensor, Tensors]:
        taken = points[step : step + at_once]
        copies = tuple(
            tf.reshape(start + scaled(taken, way), tf.concat([[-1], tf.shape(way)[1:]], 0))
            for start, way in zip(starts, ways, strict=True)
        )
        gradients, _ = gradient(graph, copies, tf.tile(classes, tf.shape(taken)))
        stacked = [
            tf.reshape(value, tf.concat([[-1], tf.shape(total)], 0))
            for value, total in zip(gradients, totals, strict=True)
        ]
        totals = tuple(
            tf.ensure_shape(total + tf.tensordot(shares[step : step + at_once], value, 1), total.shape)
            for total, value in zip(totals, stacked, strict=True)
        )
        return step + at_once, totals

    zeros = tuple(tf.zeros_like(value) for value in inputs)
    _, totals = tf.while_loop(
        lambda step, *_: step < len(nodes), update, (tf.constant(0), zeros), parallel_iterations=1
    )
    maps = tuple(way * total for way, total in zip(ways, totals, strict=True))
    sums = [tf.reduce_sum(value, list(range(1, value.shape.rank))) for value in maps]
    return maps, logits - at_start - tf.add_n(sums)


def guided_relus(graph: OperationGraph) -> dict[int, Callable[[tf.Tensor], tf.Tensor]]:
    """For every ReLU of a model a function with the same values and the guided gradient, as `graph.run` takes them.

    The gradient passes where it is positive and the activation is positive. ReLUs are `keras.layers.ReLU` with any
    settings, and the functions `relu` and `relu6` as a layer, fused into one, or called on a tensor.

    Args:
        graph: The model's operations.

    Returns:
        Functions by the position of the ReLU's output.
    """
    return {operation.output: _guided(operation) for operation in graph.operations if _is_relu(operation.layer)}


_RELU_FUNCTIONS = (keras.activations.relu, keras.activations.relu6, keras.ops.relu, keras.ops.relu6)
_RELU_KINDS = (
    keras.layers.ReLU,
    *map(keras_api.operation_class, (keras.activations.relu, keras.ops.relu, keras.ops.relu6)),
)


def _is_relu(layer: Any) -> bool:
    activation = layer.activation if isinstance(layer, keras.layers.Activation) else None
    return isinstance(layer, _RELU_KINDS) or activation in _RELU_FUNCTIONS or isinstance(activation, _RELU_KINDS)


def _guided(operation: Operation) -> Callable[[tf.Tensor], tf.Tensor]:
    def activate(value: tf.Tensor) -> tf.Tensor:
        return operation.run({operation.inputs[0]: value}, training=False)[0]

    @tf.custom_gradient
    def guided(value: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        output = activate(value)

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(value)
                again = activate(value)
            return tape.gradient(again, value, tf.where(output > 0, tf.nn.relu(upstream), 0))

        return output, backward

    return guided
