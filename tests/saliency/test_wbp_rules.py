"""Every WBP rule in float64 against a plain matrix: ``W_in = W_out B`` and ``offset = <W_out, f(x) - B x>``.

The matrix of the frozen map is measured on the layer's own forward pass, column by column. All layers here are linear
around a point that is not on a kink, so central differences give it to rounding; the inputs keep 0.01 from a kink.
Batch normalisation and dropout in training mode are only linear with their statistics or mask frozen, so theirs is
written down by hand.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.graph import OperationGraph
from tfcausal.saliency.propagation import propagate
from tfcausal.saliency.wbp import RULES

L = keras.layers
SHAPE = (5, 6, 2)
STEP = 1e-5


@pytest.fixture(autouse=True)
def _float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def spaced(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Inputs whose values lie 0.01 or more apart from each other and from zero."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.02
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(values).reshape(shape) for _ in range(count)])


def network(build, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    """A model around a layer or a function of layers, with one logit for every value that it gives."""
    inputs = keras.Input(shape, dtype="float64")
    outputs = build(inputs)
    model = keras.Model(inputs, outputs if len(outputs.shape) == 2 else L.Flatten()(outputs))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            positive = "variance" in weight.path or "gamma" in weight.path
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(size=weight.shape))
    return model


def walk(model: keras.Model, images: np.ndarray, cotangent: np.ndarray, training: bool = False):
    graph = OperationGraph(model)
    activations = graph.run(tf.constant(images), training)
    weights, offsets = propagate(graph, activations, tf.constant(cotangent), RULES, training, with_offsets=True)
    return weights.numpy(), offsets.numpy(), activations[graph.logits].numpy()


def measured_matrix(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """B (outputs, inputs) of the map that is linear around one image."""
    steps = STEP * np.eye(image.size).reshape(-1, *image.shape)
    difference = model(image + steps, training=False) - model(image - steps, training=False)
    return difference.numpy().T / (2 * STEP)


def assert_is_adjoint(model: keras.Model, images: np.ndarray) -> None:
    outputs = model(images, training=False).numpy()
    cotangent = np.random.default_rng(2).normal(size=outputs.shape)
    weights, offsets, logits = walk(model, images, cotangent)
    np.testing.assert_allclose(logits, outputs, rtol=0, atol=1e-12)
    for image, row, output, got_weights, got_offset in zip(images, cotangent, outputs, weights, offsets, strict=True):
        matrix = measured_matrix(model, image)
        np.testing.assert_allclose(got_weights.ravel(), row @ matrix, rtol=0, atol=1e-9)
        np.testing.assert_allclose(got_offset, row @ (output - matrix @ image.ravel()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (3, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
def test_conv2d(strides, padding, kernel_size, use_bias):
    layer = L.Conv2D(3, kernel_size, strides=strides, padding=padding, use_bias=use_bias)
    assert_is_adjoint(network(layer), spaced(2))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), SHAPE])
def test_dense(shape, use_bias):
    assert_is_adjoint(network(L.Dense(4, use_bias=use_bias), shape), spaced(2, shape))


RELUS = {
    "layer": lambda x: L.ReLU()(x),
    "activation": lambda x: L.Activation("relu")(x),
    "fused in dense": lambda x: L.Dense(3, activation="relu")(x),
    "fused in conv": lambda x: L.Conv2D(3, 2, activation="relu")(x),
    "fused as a layer": lambda x: L.Dense(3, activation=L.ReLU())(x),
    "linear": lambda x: L.Activation("linear")(x),
    "fused linear": lambda x: L.Dense(3, activation="linear")(x),
}
POOLINGS = {
    "max": lambda x: L.MaxPooling2D()(x),
    "max same": lambda x: L.MaxPooling2D(2, padding="same")(x),
    "max overlapping": lambda x: L.MaxPooling2D((3, 2), strides=(1, 2))(x),
    "max overlapping same": lambda x: L.MaxPooling2D(3, strides=2, padding="same")(x),
    "average": lambda x: L.AveragePooling2D(2)(x),
    "average same": lambda x: L.AveragePooling2D(2, padding="same")(x),
    "average overlapping": lambda x: L.AveragePooling2D((3, 2), strides=(1, 2))(x),
    "average overlapping same": lambda x: L.AveragePooling2D(3, strides=2, padding="same")(x),
    "global average": lambda x: L.GlobalAveragePooling2D()(x),
    "global average, axes kept": lambda x: L.GlobalAveragePooling2D(keepdims=True)(x),
    "global max": lambda x: L.GlobalMaxPooling2D()(x),
    "global max, axes kept": lambda x: L.GlobalMaxPooling2D(keepdims=True)(x),
}
SHAPES = {
    "flatten": lambda x: L.Flatten()(x),
    "dropout in inference": lambda x: L.Dropout(0.5)(x),
    "padding": lambda x: L.ZeroPadding2D(2)(x),
    "asymmetric padding": lambda x: L.ZeroPadding2D(((1, 0), (0, 3)))(x),
    "padding under conv": lambda x: L.Conv2D(2, 3, strides=2)(L.ZeroPadding2D(((0, 1), (2, 0)))(x)),
}
MERGES = {
    "add": lambda x: L.Add()([x, L.Dense(2)(x)]),
    "add three": lambda x: L.Add()([x, L.Dense(2)(x), L.Conv2D(2, 3, padding="same")(x)]),
    "add twice the same": lambda x: L.Add()([x, x]),
    "add over pixels": lambda x: L.Add()([L.GlobalAveragePooling2D(keepdims=True)(x), x]),
    "add over channels": lambda x: L.Add()([x, L.Conv2D(1, 1)(x)]),
    "add over rows": lambda x: L.Add()([x, L.AveragePooling2D((5, 1))(x)]),
    "add of another rank": lambda x: L.Add()([x, L.GlobalAveragePooling2D()(x)]),
    "add of another rank, one channel": lambda x: L.Add()([L.Dense(1)(L.Flatten()(x)), x]),
    "concatenate": lambda x: L.Concatenate()([x, L.Dense(3)(x), x]),
    "concatenate rows": lambda x: L.Concatenate(axis=1)([x, L.MaxPooling2D((2, 1))(x)]),
    "concatenate columns": lambda x: L.Concatenate(axis=-2)([L.ZeroPadding2D((0, 1))(x), x]),
    "concatenate vectors": lambda x: L.Concatenate()([L.Flatten()(x), L.GlobalMaxPooling2D()(x)]),
}


@pytest.mark.parametrize("name", [*RELUS, *POOLINGS, *SHAPES, *MERGES])
def test_layer(name):
    assert_is_adjoint(network({**RELUS, **POOLINGS, **SHAPES, **MERGES}[name]), spaced(2))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(4,), SHAPE])
def test_batch_normalization_in_inference(shape, center, scale):
    assert_is_adjoint(network(L.BatchNormalization(center=center, scale=scale), shape), spaced(2, shape))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(4,), SHAPE])
def test_batch_normalization_in_training(shape, center, scale):
    layer = L.BatchNormalization(center=center, scale=scale, epsilon=0.01)
    model, images = network(layer, shape), 3 * spaced(4, shape) + 2
    axes = tuple(range(images.ndim - 1))
    # Frozen: the statistics of this batch are numbers, so every value is x * gain + shift.
    gain = (layer.gamma.numpy() if scale else 1.0) / np.sqrt(images.var(axis=axes) + 0.01)
    shift = (layer.beta.numpy() if center else 0.0) - images.mean(axis=axes) * gain

    cotangent = np.random.default_rng(2).normal(size=images.shape)
    weights, offsets, logits = walk(model, images, cotangent.reshape(4, -1), training=True)

    np.testing.assert_allclose(logits, (images * gain + shift).reshape(4, -1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(weights, cotangent * gain, rtol=0, atol=1e-9)
    np.testing.assert_allclose(offsets, (cotangent * shift).reshape(4, -1).sum(axis=1), rtol=0, atol=1e-9)


def test_frozen_batch_normalization_keeps_its_moving_statistics_in_training():
    layer = L.BatchNormalization()
    model, images = network(layer), 3 * spaced(3) + 2
    layer.trainable = False
    cotangent = np.random.default_rng(2).normal(size=(3, 60))

    in_training = walk(model, images, cotangent, training=True)
    in_inference = walk(model, images, cotangent, training=False)

    for got, expected in zip(in_training, in_inference, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise_shape", [None, (None, 1, 1, 2)])
def test_dropout_in_training(noise_shape):
    layer = L.Dropout(0.4, noise_shape=noise_shape, seed=3)
    model, images = network(layer), spaced(3)
    state = layer.seed_generator.state.numpy()
    mask = layer(np.ones_like(images), training=True).numpy()  # the same draw, seen through an input of ones
    layer.seed_generator.state.assign(state)

    cotangent = np.random.default_rng(2).normal(size=images.shape)
    weights, offsets, logits = walk(model, images, cotangent.reshape(3, -1), training=True)

    assert 0 < np.mean(mask == 0) < 1
    np.testing.assert_allclose(logits, (images * mask).reshape(3, -1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights, cotangent * mask, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(offsets, 0)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_zeros_gives_finite_weights(rate):
    weights, _, _ = walk(network(L.Dropout(rate)), np.zeros((2, *SHAPE)), np.ones((2, 60)), training=True)
    assert np.isfinite(weights).all()


def test_relu_is_closed_at_zero():
    weights, _, _ = walk(network(L.ReLU(), (3,)), np.array([[-1.0, 0.0, 1.0]]), np.ones((1, 3)))
    assert weights.tolist() == [[0.0, 0.0, 1.0]]


def test_global_max_pooling_shares_between_equal_maxima():
    image = np.array([1.0, 3.0, 3.0, 0.0]).reshape(1, 2, 2, 1)
    weights, _, _ = walk(network(L.GlobalMaxPooling2D(), (2, 2, 1)), image, np.ones((1, 1)))
    assert weights.ravel().tolist() == [0.0, 0.5, 0.5, 0.0]
