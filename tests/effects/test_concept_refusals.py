"""What a concept autoencoder cannot be made of or trained on, by the text of the error."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.errors import InvalidArgument, TrainingDiverged, UnsupportedOperation

L = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(6, 6, 5, 2)).astype("float32")


def network(head: str | None = "softmax", units: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 5, 2))
    maps = L.Conv2D(6, 3, padding="same", activation="relu", name="maps")(inputs)
    logits = L.Dense(units, name="logits")(L.GlobalAveragePooling2D(name="pooled")(maps))
    return keras.Model(inputs, logits if head is None else L.Activation(head)(logits))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def autoencoder(model) -> ConceptAutoencoder:
    """A trained one."""
    autoencoder = ConceptAutoencoder(model, "maps", 4)
    autoencoder.fit(IMAGES, verbose=0)
    return autoencoder


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": "map"}, "`layer`: expected one of maps, pooled, logits"),
        ({"layer": "logits"}, "`layer`: expected a layer before the logits; received 'logits'. The logits are the"),
        ({"concepts": 0}, "`concepts`: expected an integer of at least 1; received 0"),
        ({"concepts": 2.0}, "`concepts`: expected an integer of at least 1; received 2.0"),
        (
            {"concepts": 7},
            "`concepts`: expected at most 6, as many as layer `maps` has channels; received 7. More concepts than",
        ),
        ({"concepts": 16}, "received 16. More concepts than channels summarise nothing: choose fewer"),
        ({"hidden": 0}, "`hidden`: expected an integer of at least 1; received 0"),
        ({"kernel_size": (3, 3)}, "`kernel_size`: expected an integer of at least 1; received (3, 3)"),
        ({"activation": "rellu"}, "`activation`: expected the name of a Keras activation, or None; received 'rellu'"),
        ({"shallow_weight": -0.1}, "`shallow_weight`: expected a finite number of at least 0; received -0.1"),
        ({"deep_weight": float("nan")}, "`deep_weight`: expected a finite number of at least 0; received nan"),
        ({"interpretability_weight": "1"}, "`interpretability_weight`: expected a finite number of at least 0"),
        (
            {"shallow_weight": 0, "deep_weight": 0},
            "`shallow_weight and deep_weight`: expected one of them above 0; received 0 and 0. Without them nothing",
        ),
        ({"interpretability": "l2"}, "received 'l2'. Did you mean `l1`?"),
        ({"interpretability": {"tv": -1}}, "received -1 for `tv`"),
        (
            {"layer": "pooled", "interpretability": "tv"},
            "`interpretability`: expected `l1` for a layer without places; received tv. The others compare places",
        ),
        ({"multi_label": True}, "`multi_label`: expected False for a head with a softmax; received True"),
        ({"multi_label": "yes"}, "`multi_label`: expected True, False or None; received 'yes'"),
    ],
)
def test_arguments_out_of_range(model, options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        ConceptAutoencoder(model, **{"layer": "maps", "concepts": 4, **options})


def test_a_sigmoid_says_what_its_units_are():
    with pytest.raises(InvalidArgument, match="`multi_label`: expected True for a head with a sigmoid; received False"):
        ConceptAutoencoder(network("sigmoid"), "maps", 4, multi_label=False)


def test_layers_without_channels():
    inputs = keras.Input((6, 4))
    x = L.Conv1D(5, 3, name="sequence")(inputs)
    sequence = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    with pytest.raises(UnsupportedOperation, match=r"Layer `sequence` gives \(None, 4, 5\); an autoencoder codes maps"):
        ConceptAutoencoder(sequence, "sequence", 2)
    inputs = keras.Input((6, 5, None))
    x = L.Activation("relu", name="open")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(keras.ops.mean(x, axis=-1))))
    with pytest.raises(
        InvalidArgument, match=r"expected a layer with a known number of channels .* received 'open' of"
    ):
        ConceptAutoencoder(model, "open", 2)


def test_channels_first():
    inputs = keras.Input((2, 6, 5))
    x = L.GlobalAveragePooling2D(data_format="channels_first")(L.ReLU(name="maps")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x), name="first")
    with pytest.raises(UnsupportedOperation, match="Model `first` has its channels first; concepts are made of the"):
        ConceptAutoencoder(model, "maps", 2)


def with_nan():
    images = IMAGES.copy()
    images[3, 2, 1, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (IMAGES[:, :5], "`x`: expected shape (N, 6, 5, 2); received shape (N, 5, 5, 2)"),
        (IMAGES[..., 0], "`x`: expected shape (N, 6, 5, 2); received shape (N, 6, 5)"),
        (with_nan(), "`x`: expected finite values; received 1 values that are NaN or infinite"),
    ],
)
def test_images_that_are_none(model, autoencoder, images, text):
    fresh = ConceptAutoencoder(model, "maps", 4)
    before = [weight.copy() for weight in fresh.get_weights()]
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        fresh.fit(images, verbose=0)
    assert not fresh.trained
    assert all((old == new).all() for old, new in zip(before, fresh.get_weights(), strict=True))
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        fresh.evaluate(images, verbose=0)
    for function in (autoencoder.codes, autoencoder.agreement):
        with pytest.raises(InvalidArgument, match=r"`images`: expected (an array of shape|finite values)"):
            function(images)


def test_no_images_at_all(model):
    autoencoder = ConceptAutoencoder(model, "maps", 4)
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(2)
    for nothing in (IMAGES[:0], [], data.take(0)):
        for method in (autoencoder.fit, autoencoder.evaluate):
            with pytest.raises(InvalidArgument, match="`x`: expected at least one image; received none"):
                method(nothing, verbose=0)
    for method in (autoencoder.train_on_batch, autoencoder.test_on_batch):
        with pytest.raises(InvalidArgument, match="`x`: expected at least one image; received none"):
            method(x=IMAGES[:0])
    unknown = data.filter(lambda batch: tf.reduce_all(batch > 1e9))
    with (
        pytest.warns(UserWarning, match="ran out of data"),
        pytest.raises(InvalidArgument, match="`x`: expected at least one image; received no batch"),
    ):
        autoencoder.fit(unknown, shuffle=False, verbose=0)
    assert not autoencoder.trained
    assert autoencoder.fit(IMAGES, epochs=0, verbose=0).history == {}


def test_images_of_another_shape_for_the_output(autoencoder):
    with pytest.raises(
        InvalidArgument, match=r"`images`: expected shape \(N, 6, 5, 2\); received shape \(\w+, 5, 5, 2\)"
    ):
        autoencoder.predict(IMAGES[:, :5], verbose=0)


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_single_batches_have_plain_errors(autoencoder, method):
    with pytest.raises(InvalidArgument, match="`x`: expected finite values; received 1 values"):
        getattr(autoencoder, method)(with_nan())


def test_a_classifier_without_finite_logits():
    model = network()
    model.get_layer("logits").bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(InvalidArgument, match="`model`: expected finite values; received 6 values that are NaN"):
        ConceptAutoencoder(model, "maps", 4).fit(IMAGES, verbose=0)


def test_training_that_diverges_keeps_the_last_good_weights(model):
    autoencoder = ConceptAutoencoder(model, "maps", 4)
    autoencoder.compile(keras.optimizers.SGD(1e30))
    with pytest.raises(TrainingDiverged, match="Training was stopped: the loss is NaN or infinite"):
        autoencoder.fit(IMAGES, epochs=5, batch_size=2, verbose=0)
    assert all(np.isfinite(weight).all() for weight in autoencoder.get_weights())


@pytest.mark.parametrize("labels", [None, np.arange(6) % 3])
def test_sample_weights(model, labels):
    text = "`sample_weight`: expected None for a model that is trained on images; received weights. Leave them out"
    with pytest.raises(InvalidArgument, match=text):
        ConceptAutoencoder(model, "maps", 4).fit(IMAGES, labels, sample_weight=np.ones(6), verbose=0)
    data = tf.data.Dataset.from_tensors((IMAGES, np.arange(6) % 3, np.ones(6)))
    with pytest.raises(InvalidArgument, match=text):
        ConceptAutoencoder(model, "maps", 4).fit(data, shuffle=False, verbose=0)


@pytest.mark.parametrize("argument", ["loss", "metrics"])
def test_losses_of_other_models(model, argument):
    text = f"`{argument}`: expected None for a ConceptAutoencoder; received 'mse'. Its losses are its own"
    with pytest.raises(InvalidArgument, match=text):
        ConceptAutoencoder(model, "maps", 4).compile("adam", **{argument: "mse"})


def test_a_penalty_of_another_shape(model):
    autoencoder = ConceptAutoencoder(model, "maps", 4, interpretability=lambda code, before, behind: tf.norm(code))
    text = (
        r"`interpretability`: expected a callable that gives one loss per sample, of shape \(N,\); received shape \(\)"
    )
    with pytest.raises(InvalidArgument, match=text):
        autoencoder.fit(IMAGES, verbose=0)


def test_untrained(model):
    fresh = ConceptAutoencoder(model, "maps", 4)
    assert not fresh.trained
    text = "`autoencoder`: expected a trained ConceptAutoencoder; received an untrained one. Call `fit` first"
    for function in (fresh.codes, fresh.agreement):
        with pytest.raises(InvalidArgument, match=text):
            function(IMAGES)
    fresh.trained = True
    assert fresh.codes(IMAGES).shape == (6, 6, 5, 4)


def test_batch_sizes_and_thresholds(autoencoder):
    with pytest.raises(InvalidArgument, match="`batch_size`: expected a positive integer or None; received 0"):
        autoencoder.codes(IMAGES, batch_size=0)
    with pytest.raises(InvalidArgument, match="`largest_divergence`: expected a number of at least 0; received -1"):
        autoencoder.agreement(IMAGES, largest_divergence=-1)
    with pytest.raises(InvalidArgument, match="`seed`: expected an integer of at least 0; received -1"):
        autoencoder.agreement(IMAGES, seed=-1)
