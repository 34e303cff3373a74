"""Small classifiers and a small batch for the tests of the callbacks."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from tfcausal.models.ppi import PPIModel

L = keras.layers


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")


@pytest.fixture
def labels() -> np.ndarray:
    return np.array([0, 1, 2, 2, 0, 1])


@pytest.fixture
def plain() -> Callable[..., keras.Model]:
    """Builds and compiles a three-class network, the same weights every time."""

    def build(dropout: float = 0.0, filters: int = 4, seed: int = 5, learning_rate: float = 0.05) -> keras.Model:
        keras.utils.set_random_seed(seed)
        x = inputs = keras.Input((8, 8, 3))
        x = L.Conv2D(filters, 3, strides=2, padding="same", activation="relu", name="features")(x)
        if dropout:
            x = L.Dropout(dropout)(x)
        x = L.Dense(3, activation="softmax", name="answer")(L.Flatten()(x))
        model = keras.Model(inputs, x)
        model.compile(keras.optimizers.SGD(learning_rate, 0.9), "sparse_categorical_crossentropy")
        return model

    return build


@pytest.fixture
def ppi(plain) -> Callable[..., PPIModel]:
    """Builds and compiles a PPIModel around the plain network; as small a step as it has, unless told otherwise."""
    small = {"second_order": False, "regularisation_weight": 0.0, "adversarial_weight": 0.0}

    def build(dropout: float = 0.0, learning_rate: float = 0.01, **options: object) -> PPIModel:
        model = PPIModel(plain(dropout), **{**small, **options})
        model.compile(keras.optimizers.SGD(learning_rate, 0.9), "sparse_categorical_crossentropy")
        return model

    return build
