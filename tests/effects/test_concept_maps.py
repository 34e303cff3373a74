"""Concept-weighted maps against weights and interpolation by hand."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.concept_maps import ConceptEffectMaps
from tfcausal.errors import InvalidArgument

L = keras.layers


class Linear(ChannelConcepts):
    """Three concepts of five channels by matrices; the last one is dead."""

    def __init__(self, model: keras.Model, layer: str) -> None:
        super().__init__(model, layer)
        self.concepts = 3
        random = np.random.default_rng(5)
        self.encoder = random.normal(size=(5, 3)).astype("float32") * [1, 1, 0]
        self.decoder = random.normal(size=(3, 5)).astype("float32")

    def encode(self, activation):
        return tf.einsum("nhwc,ck->nhwk", activation, tf.constant(self.encoder, tf.float32))

    def decode(self, codes):
        return tf.einsum("nhwk,kc->nhwc", codes, tf.constant(self.decoder))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((8, 6, 2))
    x = L.Conv2D(5, 3, strides=2, padding="same", activation="tanh", name="maps")(inputs)
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.Flatten()(x)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 8, 6, 2)).astype("float32")


def answers(model: keras.Model, activation: np.ndarray, scale: str = "probability") -> np.ndarray:
    kernel, bias = (weight.numpy().astype(np.float64) for weight in model.get_layer("head").weights)
    logits = activation.reshape(len(activation), -1) @ kernel + bias
    return logits if scale == "logit" else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def codes_of(model: keras.Model, concepts: Linear, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    activation = keras.Model(model.input, model.get_layer("maps").output)(images).numpy().astype(np.float64)
    return activation, activation @ concepts.encoder


def twin(model, concepts, images, classes, reference, scale) -> np.ndarray:
    """Observed minus do, one concept after the other."""
    activation, codes = codes_of(model, concepts, images)
    of = np.arange(len(images)), classes
    before = answers(model, activation if reference == "model" else codes @ concepts.decoder, scale)[of]
    weights = np.zeros((len(images), 3))
    for concept in range(3):
        zeroed = codes.copy()
        zeroed[..., concept] = 0
        weights[:, concept] = before - answers(model, zeroed @ concepts.decoder, scale)[of]
    return weights


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolation between the centres of the pixels, (N, h, w) to (N, H, W)."""

    def along(small: int, large: int) -> np.ndarray:
        centres = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
        return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(small)))

    return np.einsum("Hh,nhw,Ww->nHW", along(maps.shape[1], size[0]), maps, along(maps.shape[2], size[1]))


@pytest.mark.filterwarnings("ignore:.*autoencoder.*:UserWarning")
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("scale", ["probability", "logit"])
@pytest.mark.parametrize("reference", ["autoencoder", "model"])
def test_maps_are_codes_times_their_effects(model, images, reference, scale, rectify):
    concepts, classes = Linear(model, "maps"), [0, 2, 1, 0, 0]
    measured = ConceptEffectMaps(concepts, rectify=rectify, reference=reference, scale=scale).measure(images, classes)
    weights = twin(model, concepts, images, classes, reference, scale)
    _, codes = codes_of(model, concepts, images)
    small = np.einsum("nhwk,nk->nhw", codes, weights)
    expected = bilinear(np.maximum(small, 0) if rectify else small, (8, 6))
    assert np.abs(weights[:, :2]).min() > 1e-3
    np.testing.assert_allclose(measured.weights, weights, atol=1e-6)
    np.testing.assert_allclose(measured.maps[..., 0], expected, atol=2e-6)
    assert measured.maps.dtype == np.float32
    assert measured.classes.tolist() == classes
    if reference == "autoencoder":
        assert (measured.weights[:, 2] == 0).all()


@pytest.mark.filterwarnings("ignore:.*autoencoder.*:UserWarning")
def test_the_class_is_the_one_that_the_network_predicts(model, images):
    """Not the one that it predicts through the autoencoder."""
    concepts = Linear(model, "maps")
    activation, codes = codes_of(model, concepts, images)
    predicted = answers(model, activation).argmax(axis=1)
    assert (predicted != answers(model, codes @ concepts.decoder).argmax(axis=1)).any()
    maps = ConceptEffectMaps(concepts)
    np.testing.assert_array_equal(maps.measure(images).classes, predicted)
    np.testing.assert_array_equal(maps(images), maps(images, predicted))


def test_batches_and_second_calls(model, images):
    concepts = ChannelConcepts(model, "maps")
    maps = ConceptEffectMaps(concepts, batch_size=2)
    first = maps(images)
    np.testing.assert_array_equal(maps(images), first)
    np.testing.assert_allclose(ConceptEffectMaps(concepts)(images), first, atol=1e-6)
    np.testing.assert_allclose(ConceptEffectMaps(concepts)(images[3:4]), first[3:4], atol=1e-6)


def test_weights_that_were_measured_elsewhere(model, images):
    concepts = Linear(model, "maps")
    measured = ConceptEffectMaps(concepts, weights=[0.5, -2.0, 1.0]).measure(images)
    small = codes_of(model, concepts, images)[1] @ [0.5, -2.0, 1.0]
    np.testing.assert_allclose(measured.maps[..., 0], bilinear(small, (8, 6)), atol=2e-5)
    np.testing.assert_array_equal(measured.weights, [[0.5, -2.0, 1.0]] * 5)
    assert measured.classes.tolist() == [-1] * 5
    with pytest.raises(InvalidArgument, match="`targets`: expected None for weights that were given; received targets"):
        ConceptEffectMaps(concepts, weights=[1, 1, 1])(images, [0] * 5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"weights": [1, 2]},
            "`weights`: expected one finite number for each of the 3 concepts; received shape (2,) and",
        ),
        (
            {"weights": [1, 2, np.inf]},
            "`weights`: expected one finite number for each of the 3 concepts; received NaN o",
        ),
        ({"rectify": 1}, "`rectify`: expected True or False; received 1."),
        ({"scale": "odds"}, "`scale`: expected probability or logit; received 'odds'."),
        ({"reference": "mean"}, "`reference`: expected autoencoder or model; received 'mean'."),
        ({"batch_size": 0}, "`batch_size`: expected a positive integer or None; received 0."),
    ],
)
def test_bad_options(model, options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        ConceptEffectMaps(Linear(model, "maps"), **options)


def test_concepts_and_images_that_will_not_do(model, images):
    untrained = Linear(model, "maps")
    untrained.trained = False
    for weights in (None, [1, 1, 1]):
        with pytest.raises(InvalidArgument, match="`concepts`: expected a trained autoencoder; received an untrained"):
            ConceptEffectMaps(untrained, weights)(images)
    flat = keras.Model(model.input, L.Dense(2)(L.Dense(4, name="flat")(L.Flatten()(model.get_layer("maps").output))))
    with pytest.raises(
        InvalidArgument, match=r"whose output is \(batch, height, width, channels\); received 'flat' of"
    ):
        ConceptEffectMaps(ChannelConcepts(flat, "flat"))
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        ConceptEffectMaps(ChannelConcepts(model, "maps"))(images, [3] * 5)
    with pytest.raises(InvalidArgument, match="NaN or infinity in image 0"):
        ConceptEffectMaps(ChannelConcepts(model, "maps"))(images * np.nan)
