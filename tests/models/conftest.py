"""A small batch and small classifiers for the tests of the models."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

L = keras.layers


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")


@pytest.fixture
def labels() -> np.ndarray:
    return np.array([0, 1, 2, 2, 0, 1])


@pytest.fixture
def classifier() -> Callable[..., keras.Model]:
    """Builds a network of three units, or of another number, the same weights every time."""

    def build(
        batch_norm: bool = False,
        dropout: float = 0.0,
        dtype: str = "float32",
        seed: int = 0,
        units: int = 3,
        activation: str | None = "softmax",
        **conv: object,
    ) -> keras.Model:
        keras.utils.set_random_seed(seed)
        x = inputs = keras.Input((8, 8, 3), dtype=dtype)
        x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", dtype=dtype, name="features", **conv)(x)
        if batch_norm:
            x = L.BatchNormalization(momentum=0.9, dtype=dtype, name="norm")(x)
        if dropout:
            x = L.Dropout(dropout, dtype=dtype)(x)
        x = L.Conv2D(units, 1, dtype=dtype, name="class_maps", **conv)(x)
        x = L.GlobalAveragePooling2D(dtype=dtype, name="logits")(x)
        model = keras.Model(inputs, x if activation is None else L.Activation(activation, dtype=dtype)(x))
        # The logits of a fresh network hardly differ; these do.
        model.set_weights([3 * value if value.ndim == 4 else value for value in model.get_weights()])
        return model

    return build
