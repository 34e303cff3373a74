"""Batch normalisations that use the statistics of one pass for the passes on changed images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.linear_maps import along_channels, batch_norm_affine, batch_norm_statistics


def needs_statistics(graph: OperationGraph) -> bool:
    """Whether a batch normalisation takes its statistics from the batch in training."""
    return any(
        isinstance(operation.layer, keras.layers.BatchNormalization)
        and operation.layer.trainable
        and operation.trains(True)
        for operation in graph.operations
    )


def frozen_batch_norms(graph: OperationGraph, activations: Activations) -> dict[int, Callable[[tf.Tensor], tf.Tensor]]:
    """Stand-ins for the batch normalisations that use the statistics of a training pass as constants.

    Passes on changed images run with them, by `graph.run(images, training, replace)`: they neither have statistics
    of their own nor move the averages.
    """
    frozen: dict[int, Callable[[tf.Tensor], tf.Tensor]] = {}
    for operation in graph.operations:
        if isinstance(operation.layer, keras.layers.BatchNormalization):
            inputs, trains = activations[operation.inputs[0]], operation.trains(True)
            statistics = batch_norm_statistics(operation.layer, inputs, trains)
            constants = [tf.stop_gradient(value) for value in statistics]
            frozen[operation.output] = partial(_with_statistics, operation.layer, *constants)
    return frozen


def _with_statistics(layer: Any, mean: tf.Tensor, variance: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A batch normalisation with statistics that are given."""
    if x.shape.rank == 4 and layer.axis % 4 == 3 and x.dtype != tf.float64:
        # One operation that keeps nothing but its input, where the formula below keeps a product.
        scale = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones_like(mean)
        offset = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros_like(mean)
        parameters = {"scale": scale, "offset": offset, "mean": mean, "variance": variance}
        parameters = {name: tf.cast(value, tf.float32) for name, value in parameters.items()}
        return tf.raw_ops.FusedBatchNormV3(x=x, **parameters, epsilon=layer.epsilon, is_training=False).y
    affine = batch_norm_affine(layer, mean, variance)
    gain, shift = (tf.cast(along_channels(layer, value, x.shape.rank), x.dtype) for value in affine)
    return x * gain + shift
