"""The multi-view network for volumes, and the maps of its slices."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.graph import OperationGraph
from tfcausal.models.backbones.multi_view import multi_view
from tfcausal.saliency.cam import feature_maps
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.wbp import WBP, weight_back_propagation

L = keras.layers
SHAPE = (5, 8, 12, 2)
SMALL = {"input_shape": SHAPE, "num_classes": 3, "blocks": ((4,), (6,))}


def volumes(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def perturbed(model: keras.Model) -> keras.Model:
    """The same model with biases, shifts and statistics that are not 0 or 1."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1 and "seed" not in weight.path:
            weight.assign(weight + rng.uniform(-0.1, 0.1, weight.shape))
    return model


def slice_network(rank: int = 4, activation: str | None = None) -> keras.Model:
    images = keras.Input(SHAPE[1:])
    x = L.Conv2D(4, 3, activation="relu", name="conv")(images)
    if rank == 2:
        x = L.Dense(3, activation=activation)(L.Flatten()(x))
    return keras.Model(images, x, name="features")


class Unfit(keras.Model):
    """Takes vectors of three values."""

    def __init__(self):
        super().__init__(name="unfit")
        self.dense = L.Dense(2)
        self.dense.build((None, 3))

    def call(self, x):
        return self.dense(x)


# The forward pass


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("rank", [2, 4])
def test_slices_go_through_one_network_and_are_pooled(pooling, rank):
    network = slice_network(rank)
    model = multi_view(SHAPE, 3, network, pooling=pooling, classifier_activation=None)
    images = volumes()
    features = np.stack([network(images[:, number]).numpy() for number in range(5)], axis=1)
    pooled = features.max(1) if pooling == "max" else features.mean(1)
    pooled = pooled.mean(axis=(1, 2)) if rank == 4 else pooled
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(model(images), pooled @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_layers_and_their_weights():
    model = multi_view(**SMALL, dense_units=(7,), dropout=0.3)
    shared = (2 * 9 * 4 + 4) + (4 * 9 * 6 + 6)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == shared + (6 * 7 + 7) + (7 * 3 + 3)
    assert model.get_layer("slice_network").output.shape == (None, 2, 3, 6)
    assert [layer.rate for layer in model.layers if isinstance(layer, L.Dropout)] == [0.3]
    assert multi_view(**SMALL, dropout=0.3).get_layer("dropout").input.shape == (None, 6)
    norms = [
        layer
        for layer in multi_view(**SMALL, batch_norm=True).get_layer("slice_network").layers
        if "norm" in layer.name
    ]
    assert len(norms) == 2


def test_the_slice_network_is_part_of_the_model():
    network = slice_network()
    model = multi_view(SHAPE, 2, network)
    assert model.get_layer("features") is network
    assert model.trainable_weights[0] is network.trainable_weights[0]


@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax"), (3, "sigmoid"), (1, "sigmoid"), (2, None)])
def test_heads(classes, activation):
    model = multi_view(SHAPE, classes, blocks=((4,),), classifier_activation=activation)
    assert model(volumes()).shape == (4, classes)
    assert OperationGraph(model).num_classes == classes


def test_gradients_reach_every_weight():
    model = multi_view(**SMALL, batch_norm=True)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(np.array([0, 1, 2, 0]), model(volumes(), training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    kernels = [
        value for value, weight in zip(gradients, model.trainable_weights, strict=True) if "kernel" in weight.path
    ]
    assert len(kernels) == 3
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in kernels)


def test_saved_and_loaded(tmp_path):
    model = perturbed(multi_view(**SMALL, batch_norm=True, pooling="mean", dense_units=(7,)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(volumes()), model(volumes()))
    images, targets = volumes(1), [1]
    np.testing.assert_array_equal(WBP(loaded)(images, targets), WBP(model)(images, targets))


# Maps


@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": "mean"}, {"batch_norm": True, "dense_units": (7,), "classifier_activation": "sigmoid"}],
    ids=["max", "mean", "batch norm"],
)
def test_wbp_accounts_for_the_logits(options):
    result = WBP(perturbed(multi_view(**SMALL, **options))).decompose(volumes(), [0, 1, 2, 0])
    assert result.maps.shape == (4, *SHAPE)
    assert np.abs(result.bias).max() > 1e-3
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3, 4)) + result.bias, result.logits, rtol=1e-4, atol=1e-5)


def test_wbp_is_the_gradient_times_the_input_of_a_network_without_smooth_activations():
    model = perturbed(multi_view(**SMALL, classifier_activation=None))
    images = tf.constant(volumes())
    with tf.GradientTape() as tape:
        tape.watch(images)
        logit = model(images)[:, 1]
    expected = images * tape.gradient(logit, images)
    np.testing.assert_allclose(WBP(model)(images, [1] * 4), expected, rtol=1e-4, atol=1e-6)


def test_wbp_in_training_accounts_for_the_logits():
    """With the statistics of the batch, which is that of all slices."""
    graph = OperationGraph(perturbed(multi_view(**SMALL, batch_norm=True)), in_training=True)
    activations = graph.run(tf.constant(volumes()), training=True)
    classes = tf.constant([0, 1, 2, 0])
    (maps,), bias = weight_back_propagation(graph, activations, classes, training=True, with_bias=True)
    logits = tf.gather(activations[graph.logits], classes, batch_dims=1)
    np.testing.assert_allclose(tf.reduce_sum(maps, (1, 2, 3, 4)) + bias, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [WBP, LRP])
def test_the_batch_size_changes_no_map(method):
    model = perturbed(multi_view(**SMALL, dense_units=(7,)))
    one, three = (method(model, batch_size=size)(volumes(), [0, 1, 2, 0]) for size in (1, 3))
    np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat"])
def test_lrp_has_a_map_for_every_slice(composite):
    bounds = {"low": -5.0, "high": 5.0} if "box" in composite else {}
    model = perturbed(multi_view(**SMALL))
    account = LRP(model, composite, **bounds).conservation(volumes(), [0, 1, 2, 0])
    np.testing.assert_allclose(account.relevance + account.absorbed, account.logits, rtol=1e-4, atol=1e-5)
    one, all_four = (LRP(model, composite, batch_size=size, **bounds)(volumes(), [0, 1, 2, 0]) for size in (1, 4))
    np.testing.assert_allclose(one, all_four, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_a_planted_slice_is_found(pooling):
    """One slice of every volume is bright; a network that measures brightness rests on it alone."""
    images = keras.Input((8, 12, 2))
    bright = L.Conv2D(1, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-1.0))(images)
    network = keras.Model(images, L.GlobalAveragePooling2D()(L.ReLU()(bright)))
    model = multi_view(SHAPE, 1, network, pooling=pooling, classifier_activation="sigmoid")
    model.get_layer("logits").set_weights([np.ones((1, 1)), np.zeros(1)])
    planted = np.array([0, 4, 2, 2])
    given = np.abs(volumes()) / 10
    given[np.arange(4), planted] += 2.0
    shares = WBP(model)(given).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(shares.argmax(axis=1), planted)
    assert (np.delete(shares[1], 4) == 0).all()
    result = WBP(model).decompose(given)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3, 4)) + result.bias, result.logits, rtol=1e-5)


def test_class_activation_maps_are_those_of_the_slices():
    graph = OperationGraph(multi_view(**SMALL))
    assert graph.producer(feature_maps(graph)).path == "slice_network/block2_conv1/activation"
    assert feature_maps(graph, "block1_conv1") == graph.layer_output("slice_network/block1_conv1")
    with pytest.raises(
        InvalidArgument, match=r"`layer`: .*, 5 for every sample; received 'max', .* and 1 for every sample"
    ):
        feature_maps(graph, "max")


def test_memory_counts_every_slice():
    graph = OperationGraph(multi_view((7, 8, 8, 1), 2, blocks=((3,),), classifier_activation=None))
    one = 8 * 8 + 2 * (8 * 8 * 3) + 4 * 4 * 3  # images, convolution, its activation, pooling
    assert graph.activation_bytes() == 4 * (7 * 8 * 8 + 7 * one + 7 * 4 * 4 * 3 + 4 * 4 * 3 + 3 + 2)


# Errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"input_shape": (8, 12, 2)}, r"`input_shape`: expected \(slices, height, .* received \(8, 12, 2\)"),
        ({"input_shape": (None, 8, 12, 2)}, r"`input_shape`: expected \(slices, height, width, channels\)"),
        ({"input_shape": (5, 3, 12, 2)}, "`input_shape`: expected an image of at least 4 x 4"),
        ({"blocks": (4,)}, "`blocks`: expected the filters of every block"),
        ({"pooling": "sum"}, "`pooling`: expected 'max' or 'mean'; received 'sum'"),
        ({"pooling": np.max}, "`pooling`: expected 'max' or 'mean'"),
        ({"dense_units": 3}, "`dense_units`: expected positive integers"),
        ({"num_classes": 1}, "`classifier_activation`: expected 'sigmoid' or None for one class"),
        ({"dropout": 1.5}, "`dropout`"),
        ({"slice_network": "vgg"}, "`slice_network`: expected a keras.Model .*; received str"),
        (
            {"slice_network": slice_network(), "input_shape": (5, 8, 12, 1)},
            r"\(8, 12, 1\), .* which takes \(8, 12, 2\)",
        ),
        (
            {"slice_network": slice_network(), "input_shape": (5, 8, 11, 2)},
            r"\(8, 11, 2\), .* which takes \(8, 12, 2\)",
        ),
        ({"slice_network": Unfit()}, r"takes images of shape \(8, 12, 2\).*`unfit` \(.*Error: .*"),
        ({"slice_network": slice_network(2, "softmax")}, "`slice_network`: .* probabilities of a classifier. Take"),
        ({"slice_network": slice_network(2, "sigmoid")}, "`slice_network`: .* probabilities of a classifier"),
    ],
)
def test_arguments_outside_their_range(options, expected):
    with pytest.raises(InvalidArgument, match=expected):
        multi_view(**{**SMALL, **options})


def test_a_slice_network_with_features_of_another_rank():
    images = keras.Input((8, 12, 2))
    for features in (L.Reshape((96, 2))(images), [images, images]):
        with pytest.raises(InvalidArgument, match=r"`slice_network`: .* which gives (shape \(None, 96, 2\)|a list)"):
            multi_view(SHAPE, 2, keras.Model(images, features))
