"""Frozen maps in float64: a rule must give ``W_in = W_out B`` and ``offset = <W_out, c>`` where ``f(x) = B x + c``."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.graph import OperationGraph
from tfcausal.saliency.propagation import propagate
from tfcausal.saliency.wbp_rules import RULES

L = keras.layers
SHAPE = (5, 6, 2)
STEP = 1e-4


@pytest.fixture
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture
def frozen():
    """Functions that build small models around an operation and compare its rule with a matrix."""
    return SimpleNamespace(
        spaced=spaced,
        network=network,
        randomise=randomise,
        walk=walk,
        assert_measured=assert_measured,
        assert_follows=assert_follows,
    )


def spaced(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Inputs whose values lie 0.01 or more apart from each other and from zero."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.02
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(values).reshape(shape) for _ in range(count)])


def randomise(model: keras.Model, scale: float = 1.0) -> keras.Model:
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            positive = "variance" in weight.path or "gamma" in weight.path
            value = rng.uniform(0.5, 1.5, weight.shape) if positive else scale * rng.normal(size=weight.shape)
            weight.assign(value)
    return model


def network(build, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    """A model around a layer or a function of layers, with one logit for every value that it gives."""
    inputs = keras.Input(shape, dtype=keras.config.dtype_policy().compute_dtype)
    outputs = build(inputs)
    return randomise(keras.Model(inputs, outputs if len(outputs.shape) == 2 else L.Flatten()(outputs)))


def walk(model: keras.Model, inputs, cotangent: np.ndarray, training: bool = False):
    """Weights at the input (a list of them where there are several), offsets and logits."""
    graph = OperationGraph(model)
    activations = graph.run(
        [tf.constant(value) for value in (inputs if isinstance(inputs, list) else [inputs])], training
    )
    weights, offsets = propagate(graph, activations, tf.constant(cotangent), RULES, training, with_offsets=True)
    values = [value.numpy() for value in weights]
    return values if isinstance(inputs, list) else values[0], offsets.numpy(), activations[graph.logits].numpy()


def measured_matrix(model: keras.Model, image: np.ndarray, step: float = STEP) -> np.ndarray:
    """B (outputs, inputs) of the map that is linear around one image."""
    steps = step * np.eye(image.size, dtype=image.dtype).reshape(-1, *image.shape)
    difference = model(image + steps, training=False) - model(image - steps, training=False)
    return difference.numpy().T / (2 * step)


def assert_follows(model: keras.Model, images: np.ndarray, twin, training: bool = False, atol: float = 1e-9) -> None:
    """Compare with `twin`, which takes one image and its place in the batch, and gives B (outputs, inputs) and c."""
    twins = [twin(image, place) for place, image in enumerate(images)]
    cotangent = np.random.default_rng(2).normal(size=(len(images), len(twins[0][0]))).astype(images.dtype)
    weights, offsets, logits = walk(model, images, cotangent, training)
    for image, row, (matrix, constant), got_weights, got_offset, output in zip(
        images, cotangent, twins, weights, offsets, logits, strict=True
    ):
        np.testing.assert_allclose(matrix @ image.ravel() + constant, output, rtol=1e-12, atol=atol)
        np.testing.assert_allclose(got_weights.ravel(), row @ matrix, rtol=1e-12, atol=atol)
        np.testing.assert_allclose(got_offset, np.sum(row * constant), rtol=1e-12, atol=atol)


def assert_measured(model: keras.Model, images: np.ndarray, atol: float = 1e-9, step: float = STEP) -> None:
    """Compare with the matrix measured on the model's own forward pass, which is linear around every image."""
    outputs = model(images, training=False).numpy()

    def twin(image: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
        matrix = measured_matrix(model, image, step)
        return matrix, outputs[place] - matrix @ image.ravel()

    assert_follows(model, images, twin, atol=atol)
