"""Networks with a planted cause, built by hand, and concepts whose truth is known."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.effects.channels import ChannelConcepts

L = keras.layers
WEIGHT = 3.0
CAUSE = 1


class LinearConcepts(ChannelConcepts):
    """An autoencoder of two matrices, ``codes = activation E`` and ``activation = codes D``, that counts what it does.

    `rows` has how many rows every call of the encoder and of the decoder got when it was run, `traces` how often each
    was run in Python, which is when it is traced.
    """

    def __init__(self, model, layer, encoder=None, decoder=None, trained=True, spy=False):
        super().__init__(model, layer)
        channels = self.concepts
        self.trained = trained
        self._encoder = np.eye(channels, dtype="float32") if encoder is None else np.asarray(encoder, "float32")
        self._decoder = np.eye(channels, dtype="float32") if decoder is None else np.asarray(decoder, "float32")
        self.concepts = self._encoder.shape[1]
        self.rows = {"encode": [], "decode": []}
        self.traces = {"encode": 0, "decode": 0}
        self._spy = spy

    def encode(self, activation):
        return self._multiplied("encode", activation, self._encoder)

    def decode(self, codes):
        return self._multiplied("decode", codes, self._decoder)

    def _multiplied(self, name, tensor, matrix):
        self.traces[name] += 1
        result = tf.tensordot(tensor, matrix, axes=1)
        if not self._spy:
            return result

        def counted(value):
            self.rows[name].append(len(value))
            return value

        return tf.ensure_shape(tf.numpy_function(counted, [result], result.dtype), result.shape)


def network(kernel, bias=None, activation="softmax", before=None, after=None, size=4) -> keras.Model:
    """Channels, one by one through a relu, then the layer `concepts`, averaged over the image, and a dense head.

    `before` and `after` are matrices (channels, channels) that mix the channels in `concepts` and part them again.
    """
    kernel = np.asarray(kernel, "float32")
    channels, classes = kernel.shape
    inputs = keras.Input((size, size, channels))
    x = L.ReLU()(inputs)
    mixing = [(name, matrix) for name, matrix in (("concepts", before), ("parted", after)) if matrix is not None]
    if before is None:
        x = L.Activation("linear", name="concepts")(x)
    for name, _ in mixing:
        x = L.Conv2D(channels, 1, use_bias=False, name=name)(x)
    outputs = L.Dense(classes, activation=activation, name="head")(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    for name, matrix in mixing:
        model.get_layer(name).set_weights([np.asarray(matrix, "float32")[None, None]])
    model.get_layer("head").set_weights([kernel, np.zeros(classes) if bias is None else np.asarray(bias)])
    return model


def planted(activation="softmax", **options) -> keras.Model:
    """Class 1 depends on channel 1 alone, with weight 3; class 0 on nothing."""
    kernel = np.zeros((3, 2))
    kernel[CAUSE, 1] = WEIGHT
    return network(kernel, activation=activation, **options)


def flat_images(values, size=4) -> np.ndarray:
    """Images (N, size, size, channels) whose channels have the same value everywhere: `values` (N, channels)."""
    values = np.asarray(values, "float32")
    return np.broadcast_to(values[:, None, None, :], (len(values), size, size, values.shape[1])).copy()


def population(count, seed, size=4) -> np.ndarray:
    """Images whose three channels are flat, uniform in [0, 1) and independent."""
    return flat_images(np.random.default_rng(seed).random((count, 3)), size)


@pytest.fixture(scope="session")
def planting():
    """Builders of networks and images with a known truth.

    For `population` and zero-out of the cause, the expected effect on class 1 is ``1/2 - E[sigmoid(3 u)]`` with u
    uniform in [0, 1), which is ``1/2 - (softplus(3) - log 2) / 3``.
    """
    return SimpleNamespace(
        network=network,
        planted=planted,
        flat_images=flat_images,
        population=population,
        LinearConcepts=LinearConcepts,
        cause=CAUSE,
        weight=WEIGHT,
        truth=0.5 - (np.log1p(np.exp(WEIGHT)) - np.log(2)) / WEIGHT,
    )


@pytest.fixture(scope="session")
def residual() -> keras.Model:
    """Two blocks with shortcuts, batch normalisation, a nested model and a softmax over three classes."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    stem = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    inside = L.Conv2D(4, 3, padding="same", activation="relu", name="inside")(stem)
    x = L.Add(name="sum")([L.Activation("tanh", name="shortcut")(stem), L.BatchNormalization(name="norm")(inside)])
    nested_in = keras.Input((8, 8, 4))
    y = L.Conv2D(5, 3, activation="relu", name="nested_conv")(nested_in)
    nested = keras.Model(nested_in, L.Concatenate(name="both")([y, L.Cropping2D(1)(nested_in)]), name="nested")
    x = L.GlobalAveragePooling2D(name="pooled")(nested(x))
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.Dropout(0.5, name="dropout")(x)))
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("moving_mean", "moving_variance", "gamma", "beta")):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model
