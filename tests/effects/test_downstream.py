"""The part of a classifier behind a layer gives what the whole classifier gives."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.effects.downstream import Downstream
from tfcausal.errors import InvalidArgument, UnsupportedOperation

L = keras.layers


@pytest.fixture(scope="module")
def residual() -> keras.Model:
    """Two residual blocks, the second in a nested model, with batch norm and a softmax."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    stem = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    inside = L.Conv2D(4, 3, padding="same", activation="relu", name="inside")(stem)
    x = L.Add(name="sum")([L.Activation("tanh", name="shortcut")(stem), L.BatchNormalization(name="norm")(inside)])
    nested_in = keras.Input((8, 8, 4))
    y = L.Conv2D(5, 3, activation="relu", name="nested_conv")(nested_in)
    nested = keras.Model(nested_in, L.Concatenate(name="both")([y, L.Cropping2D(1)(nested_in)]), name="nested")
    x = L.GlobalAveragePooling2D()(nested(x))
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.Dropout(0.5)(x)))
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("moving_mean", "moving_variance", "gamma", "beta")):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")


LAYERS = ["stem", "inside", "norm", "sum", "nested/nested_conv", "both", "nested", "shortcut"]


@pytest.mark.parametrize("layer", LAYERS)
def test_unchanged_activation_gives_the_answer_of_the_classifier(residual, images, layer):
    downstream = Downstream(residual, layer)
    known = downstream.known(tf.constant(images))
    expected = residual(images, training=False).numpy()
    for logits in (downstream.logits(known), downstream.logits(known, known[downstream.position])):
        np.testing.assert_allclose(downstream.output(logits).numpy(), expected, atol=1e-6)


def test_changed_activation_gives_the_answer_of_a_model_with_that_change(residual, images):
    """The twin is a Keras model in which the sum's second channel is multiplied by 0."""
    scale = np.array([1, 0, 1, 1], "float32")
    x = residual.get_layer("sum").output * scale
    for name in ("nested", "global_average_pooling2d", "head"):
        layer = next(layer for layer in residual.layers if layer.name.startswith(name))
        x = layer(x)
    expected = keras.Model(residual.input, x)(images, training=False).numpy()
    downstream = Downstream(residual, "sum")
    known = downstream.known(tf.constant(images))
    changed = downstream.output(downstream.logits(known, known[downstream.position] * scale)).numpy()
    np.testing.assert_allclose(changed, expected, atol=1e-6)
    assert np.abs(changed - residual(images, training=False).numpy()).max() > 1e-3


def test_a_change_inside_a_block_leaves_the_shortcut_alone(residual, images):
    """Zeros instead of the normalised branch leave the sum with the shortcut only."""
    downstream = Downstream(residual, "norm")
    known = downstream.known(tf.constant(images))
    logits = downstream.logits(known, tf.zeros_like(known[downstream.position]))
    after = Downstream(residual, "sum")
    shortcut = Downstream(residual, "shortcut")
    activation = shortcut.known(tf.constant(images))[shortcut.position]
    np.testing.assert_allclose(logits, after.logits(after.known(tf.constant(images)), activation), atol=1e-5)


def test_repeated_puts_the_copies_of_an_image_in_a_row(residual, images):
    downstream = Downstream(residual, "norm")
    known = downstream.known(tf.constant(images))
    several = downstream.repeated(known, 3)
    assert all(len(value) == 12 for value in several.values())
    logits = tf.reshape(downstream.logits(several), (4, 3, -1)).numpy()
    np.testing.assert_allclose(logits, np.repeat(downstream.logits(known).numpy()[:, None], 3, axis=1), atol=1e-5)


def test_what_lies_before_the_layer_is_not_run_again(residual, images):
    """The known tensors decide, not the images: those of other images give the other answers."""
    downstream = Downstream(residual, "inside")
    known = downstream.known(tf.constant(images))
    other = downstream.known(tf.constant(images[::-1].copy()))
    np.testing.assert_allclose(downstream.logits(other).numpy(), downstream.logits(known).numpy()[::-1], atol=1e-5)
    assert set(known) == {downstream.position, downstream.graph.layer_output("shortcut")}
    assert downstream.operations < len(downstream.graph.operations)


def test_batch_norm_of_the_user_does_not_move(residual, images):
    before = [weight.numpy() for weight in residual.weights]
    downstream = Downstream(residual, "stem")
    downstream.logits(downstream.known(tf.constant(images)))
    assert all((old == weight.numpy()).all() for old, weight in zip(before, residual.weights, strict=True))


def test_layers_that_cannot_be_intervened_on(residual):
    with pytest.raises(InvalidArgument, match=r"`layer`: expected one of stem, inside, .*; received 'nothing'"):
        Downstream(residual, "nothing")
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, L.Softmax(name="softmax")(L.Dense(2)(L.Flatten()(inputs))))
    with pytest.raises(InvalidArgument, match=r"`layer`: expected a layer that the logits depend on; received 'soft"):
        Downstream(model, "softmax")
    first, second = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    both = keras.Model([first, second], L.Dense(2)(L.Flatten()(L.Add()([first, second]))), name="both")
    with pytest.raises(UnsupportedOperation, match=r"classifiers of one input; model `both` has 2"):
        Downstream(both, "add")
    volume = keras.Input((3, 4, 4, 1))
    slices = keras.ops.reshape(volume, (-1, 4, 4, 1))
    maps = keras.ops.reshape(L.Conv2D(2, 1, name="maps")(slices), (-1, 3, 4, 4, 2))
    model = keras.Model(volume, L.Dense(2)(L.Flatten()(maps)))
    with pytest.raises(UnsupportedOperation, match=r"`maps` gives 3 rows for every image"):
        Downstream(model, "maps")
    # The rest reads the slices beside the layer, whose own output has one row for every image.
    volume = keras.Input((3, 4, 4, 1))
    slices = L.Flatten(name="slices")(keras.ops.reshape(volume, (-1, 4, 4, 1)))
    whole = L.Dense(2, name="whole")(L.Flatten()(volume))
    both = keras.ops.repeat(whole, 3, axis=0) + L.Dense(2)(slices)
    model = keras.Model(volume, L.Dense(2)(keras.ops.reshape(both, (-1, 6))))
    with pytest.raises(
        UnsupportedOperation, match=r"`.*` gives 3 rows for every image: what lies behind `whole` reads"
    ):
        Downstream(model, "whole")
