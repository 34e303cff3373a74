"""Saliency from a forward pass in training: the explainers' maps at inference, differentiable, constant where said."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.cam import GradCAM
from tfcausal.saliency.composites import COMPOSITES
from tfcausal.saliency.differentiable import (
    grad_cam_of_pass,
    gradient_of_pass,
    saliency_in_training,
    without_keeping,
)
from tfcausal.saliency.gradients import Gradient
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.wbp import WBP

L = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
CLASSES = np.array([0, 2, 1, 1])
EVIDENCE = tf.constant(np.eye(3)[CLASSES])
STEP = 1e-6


def branching(dtype: str = "float32") -> keras.Model:
    """Batch norm, pooling, a skip connection and two branches that are joined."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    options = {"padding": "same", "dtype": dtype}
    x = L.Conv2D(4, 3, **options, name="first")(L.ZeroPadding2D(1, dtype=dtype)(inputs))
    x = L.ReLU(dtype=dtype)(L.BatchNormalization(dtype=dtype, name="norm")(x))
    x = skip = L.MaxPooling2D(dtype=dtype, name="pooled")(x)
    x = L.Conv2D(4, 3, activation="relu", **options, name="second")(x)
    x = L.Add(dtype=dtype, name="sum")([x, skip])
    x = L.Concatenate(dtype=dtype)([x, L.AveragePooling2D(3, 1, **options)(x)])
    x = L.Conv2D(5, 1, activation="relu", dtype=dtype, name="maps")(x)
    x = L.Dense(3, activation="softmax", dtype=dtype)(L.Flatten(dtype=dtype)(x))
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.2, 1.0, weight.shape) * (1 if "moving" in weight.path else 0.5))
    return model


def maps_of(name: str, model: keras.Model, training: bool = False, **options: object) -> np.ndarray:
    graph = OperationGraph(model, in_training=True)
    activations = graph.run(tf.constant(IMAGES, model.input.dtype), training)
    maps = saliency_in_training(name, graph, **options)
    return maps(activations, tf.cast(EVIDENCE, model.input.dtype), training).numpy()


def explainers() -> dict[str, tuple[dict[str, object], Callable[[keras.Model], np.ndarray]]]:
    bounds = {"low": -5.0, "high": 5.0}
    of_composites = {
        f"lrp.{name}": (
            bounds if "box" in name else {},
            lambda model, name=name: LRP(model, name, **(bounds if "box" in name else {}))(IMAGES, CLASSES),
        )
        for name in COMPOSITES
    }
    return {
        "wbp": ({}, lambda model: WBP(model)(IMAGES, CLASSES)),
        "gradient": ({}, lambda model: np.abs(Gradient(model)(IMAGES, CLASSES))),
        "grad_cam": ({}, lambda model: GradCAM(model)(IMAGES, CLASSES)),
        "grad_cam of a layer": ({"layer": "second"}, lambda model: GradCAM(model, "second")(IMAGES, CLASSES)),
        "grad_cam before a skip": ({"layer": "pooled"}, lambda model: GradCAM(model, "pooled")(IMAGES, CLASSES)),
        **of_composites,
    }


@pytest.mark.parametrize("name", explainers())
def test_at_inference_the_maps_are_those_of_the_explainers(name):
    options, explain = explainers()[name]
    model = branching()
    expected = explain(model)
    np.testing.assert_allclose(
        maps_of(name.split()[0], model, **options), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("position", ["first", "pooled", "second", "maps", None])
def test_gradient_is_that_of_a_tape_with_the_statistics_as_constants(position, training):
    """Also where several ways lead from the tensor to the logits."""
    model = branching("float64")
    graph = OperationGraph(model, in_training=True)
    images = tf.constant(IMAGES)
    norm = graph.find("norm")
    at = graph.input if position is None else graph.layer_output(position)
    before = graph.run(images, training)
    values = before[norm.inputs[0]]
    statistics = tf.nn.moments(values, (0, 1, 2))
    if not training:
        statistics = norm.layer.moving_mean.value, norm.layer.moving_variance.value

    def normalised(x: tf.Tensor) -> tf.Tensor:
        mean, variance = statistics
        return norm.layer.gamma * (x - mean) / tf.sqrt(variance + norm.layer.epsilon) + norm.layer.beta

    point = tf.identity(before[at])
    with tf.GradientTape() as tape:
        tape.watch(point)
        logits = graph.run(images, replace={norm.output: normalised}, given={at: point})[graph.logits]
        evidence = tf.reduce_sum(EVIDENCE * logits)
    found = gradient_of_pass(graph, before, EVIDENCE, training, at)
    np.testing.assert_allclose(found, tape.gradient(evidence, point), rtol=1e-6, atol=1e-9)
    assert found.shape == point.shape


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "elu", "softplus", "leaky_relu", "sigmoid"])
def test_gradient_of_a_smooth_activation_is_its_slope_and_not_its_secant(activation):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype="float64")
    x = L.Conv2D(4, 3, activation=activation, dtype="float64")(inputs)
    model = keras.Model(inputs, L.Dense(3, dtype="float64")(L.Flatten(dtype="float64")(x)))
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        evidence = tf.reduce_sum(EVIDENCE * model(images))
    expected = np.abs(tape.gradient(evidence, images))
    np.testing.assert_allclose(maps_of("gradient", model, training=True), expected, rtol=1e-6, atol=1e-9)


def test_normalisation_by_the_image_itself_is_differentiated_through():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype="float64")
    x = L.LayerNormalization(dtype="float64")(L.Conv2D(4, 3, dtype="float64")(inputs))
    model = keras.Model(inputs, L.Dense(3, dtype="float64")(L.Flatten(dtype="float64")(x)))
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        evidence = tf.reduce_sum(EVIDENCE * model(images))
    expected = np.abs(tape.gradient(evidence, images))
    np.testing.assert_allclose(maps_of("gradient", model, training=True), expected, rtol=1e-6, atol=1e-9)


class Renamed(L.BatchNormalization):
    """Computes what batch normalisation does."""


class RenamedDropout(L.Dropout):
    """Computes what dropout does."""


@pytest.mark.parametrize("name", ["wbp", "gradient", "grad_cam", "lrp.epsilon"])
def test_a_subclass_that_changes_nothing_has_the_map_of_its_parent(name):
    maps = []
    for norm, dropout in ((L.BatchNormalization, L.Dropout), (Renamed, RenamedDropout)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        x = norm()(L.Conv2D(4, 3, activation="relu")(inputs))
        x = L.Conv2D(3, 3, activation="relu")(dropout(0.5)(x))
        model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
        layer = {"layer": 2} if name == "grad_cam" else {}
        options = {"layer": model.layers[1].name} if layer else {}
        maps.append(maps_of(name, model, training=True, **options))
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-5, atol=1e-7)
    assert np.abs(maps[0]).max() > 0


DRAWING = [L.Dropout(0.5, seed=1), L.GaussianDropout(0.5, seed=1), L.SpatialDropout2D(0.5, seed=1)]


@pytest.mark.parametrize("layer", DRAWING, ids=lambda layer: type(layer).__name__)
def test_what_was_drawn_is_a_factor_of_the_slope_also_of_a_black_pixel(layer):
    """A linear network behind dropout on the images, some of whose pixels are 0."""
    keras.utils.set_random_seed(0)
    layer = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    inputs = keras.Input((8, 8, 3), dtype="float64")
    dense = L.Dense(3, dtype="float64")
    model = keras.Model(inputs, dense(L.Flatten(dtype="float64")(layer(inputs))))
    images = IMAGES.copy()
    images[:, :4] = 0.0
    graph = OperationGraph(model, in_training=True)
    activations = graph.run(tf.constant(images), True)
    dropped = activations[graph.find(layer.name).output].numpy()
    slopes = dense.kernel.numpy().T.reshape(3, 8, 8, 3)[CLASSES]
    found = gradient_of_pass(graph, activations, EVIDENCE, True).numpy()
    bright = images != 0
    np.testing.assert_allclose(found[bright], (slopes * dropped)[bright] / images[bright], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found[~bright], slopes[~bright], rtol=1e-6)


def test_at_inference_dropout_is_no_factor():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Dropout(0.5)(inputs))))
    slopes = model.layers[-1].kernel.numpy().T.reshape(3, 8, 8, 3)[CLASSES]
    np.testing.assert_allclose(maps_of("gradient", model), np.abs(slopes), rtol=1e-6)


@pytest.mark.parametrize("composite", ["lrp.z_plus", "lrp.epsilon"])
def test_noise_on_a_relu_can_be_negative(composite):
    """Relevance is divided among positive and negative contributions, whatever the layers say of their inputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype="float64")
    x = L.Conv2D(4, 3, activation="relu", dtype="float64")(inputs)
    x = L.Flatten(dtype="float64")(L.GaussianNoise(1.0, dtype="float64")(x))
    dense = L.Dense(3, dtype="float64", name="last")
    model = keras.Model(inputs, dense(x))
    graph = OperationGraph(model, in_training=True)
    activations = graph.run(tf.constant(IMAGES), True)
    noisy = activations[graph.find("last").inputs[0]].numpy()
    assert noisy.min() < -1
    kernel, logits = dense.kernel.numpy(), activations[graph.logits].numpy()
    relevance = np.zeros_like(noisy)
    for sample, cls in enumerate(CLASSES):
        products = noisy[sample] * kernel[:, cls]
        contributions = np.maximum(products, 0) if composite == "lrp.z_plus" else products
        relevance[sample] = contributions / contributions.sum() * logits[sample, cls]
    # Behind the noise relevance goes on unchanged; the convolution must get just this.
    convolution = graph.find(model.layers[1].name)
    expected = maps_behind(graph, activations, composite, convolution.output, relevance.reshape(4, 6, 6, 4))
    found = saliency_in_training(composite, graph)(activations, EVIDENCE, True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def maps_behind(
    graph: OperationGraph, activations: dict[int, tf.Tensor], composite: str, position: int, relevance: np.ndarray
) -> np.ndarray:
    """One convolution back by NumPy: relevance of the images from that of its outputs, before their ReLU."""
    convolution = graph.producer(position)
    kernel = convolution.layer.kernel.numpy()
    images = activations[graph.input].numpy()
    outputs = activations[position].numpy()
    found = np.zeros_like(images)
    for row in range(6):
        for column in range(6):
            patch = images[:, row : row + 3, column : column + 3, :, None]
            products = patch * kernel
            total = outputs[:, row, column]
            if composite == "lrp.z_plus":
                products = np.maximum(products, 0)
                total = products.sum(axis=(1, 2, 3)) + np.maximum(convolution.layer.bias.numpy(), 0)
            quotient = relevance[:, row, column] / (total + np.where(total < 0, -1e-6, 1e-6))
            found[:, row : row + 3, column : column + 3] += (products * quotient[:, None, None, None]).sum(axis=4)
    return found


@pytest.mark.parametrize("name", ["wbp", "gradient", "lrp.epsilon", "lrp.epsilon_plus"])
def test_statistics_that_a_call_has_fixed_are_those_of_the_map(name):
    """Batch norm behind a convolution, called for inference: in training, too, its moving averages are used."""

    class Transfer(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = L.Conv2D(4, 3), L.BatchNormalization(name="norm")
            self.pool, self.dense = L.GlobalAveragePooling2D(), L.Dense(3)

        def call(self, inputs, training=None):
            return self.dense(self.pool(keras.ops.relu(self.norm(self.conv(inputs), training=False))))

    keras.utils.set_random_seed(0)
    model = Transfer()
    model(IMAGES.astype("float32"))
    model.norm.moving_mean.assign([0.3, -0.2, 0.1, 0.0])
    model.norm.moving_variance.assign([2.0, 0.5, 1.0, 3.0])
    graph = OperationGraph(model, in_training=True)
    activations = graph.run(tf.constant(IMAGES, tf.float32))
    maps = saliency_in_training(name, graph)
    evidence = tf.cast(EVIDENCE, tf.float32)
    first, second = (maps(activations, evidence, training).numpy() for training in (False, True))
    np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["wbp", "gradient", "grad_cam", "lrp.epsilon_plus"])
def test_maps_that_are_not_kept_have_the_same_gradients(name, compiled):
    model = branching()
    graph = OperationGraph(model, in_training=True)
    maps = saliency_in_training(name, graph)
    target = tf.constant(np.random.default_rng(4).normal(size=(4, 8, 8, 3)), tf.float32)
    evidence = tf.cast(EVIDENCE, tf.float32)

    def gradients(kept: bool) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            activations = graph.run(tf.constant(IMAGES, tf.float32), True)
            arguments = activations, evidence, True
            values = maps(*arguments) if kept else without_keeping(maps, *arguments)
            loss = tf.reduce_sum(values * target) + tf.reduce_mean(activations[graph.logits])
        weights = [weight.value for weight in model.trainable_weights]
        found = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [loss, *found]

    run = tf.function(gradients, autograph=False) if compiled else gradients
    for kept, again in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-6)


def test_constant_weights_of_the_channels_are_not_differentiated():
    """The map is `relu(sum_c w_c A_c)`: with `w` constant, its gradient in the dense layer's kernel is 0."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    features = L.Conv2D(4, 1, name="features")(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(features)))
    graph = OperationGraph(model, in_training=True)
    position = graph.layer_output("features")
    weights = [weight.value for weight in model.trainable_weights]
    found = {}
    for constant in (False, True):
        with tf.GradientTape() as tape:
            activations = graph.run(tf.constant(IMAGES, tf.float32), True)
            maps = grad_cam_of_pass(graph, activations, tf.cast(EVIDENCE, tf.float32), True, position, constant)
            loss = tf.reduce_sum(maps)
        found[constant] = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        value = float(loss)
    assert value > 0
    assert np.abs(found[False][2]).max() > 0
    assert np.abs(found[True][2]).max() == 0
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-5)


def test_evidence_of_several_logits_is_explained_as_their_sum():
    weights = tf.constant([[1.0, -2.0, 0.5]] * 4)
    model = branching()
    graph = OperationGraph(model, in_training=True)
    activations = graph.run(tf.constant(IMAGES, tf.float32))
    for name in ("wbp", "lrp.epsilon_plus"):
        maps = saliency_in_training(name, graph)
        parts = [maps(activations, weights * tf.one_hot([number] * 4, 3), False) for number in range(3)]
        np.testing.assert_allclose(maps(activations, weights, False), tf.add_n(parts), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["grad_cam", "gradient", "wbp", "lrp.epsilon"])
def test_shape_of_the_maps_is_known_when_the_step_is_compiled(name):
    graph = OperationGraph(branching(), in_training=True)
    maps = saliency_in_training(name, graph)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3))], autograph=False)
    def step(images: tf.Tensor) -> tf.Tensor:
        values = maps(graph.run(images, True), tf.one_hot(tf.zeros(tf.shape(images)[:1], tf.int32), 3), True)
        assert values.shape == (None, 8, 8, 1 if name == "grad_cam" else 3)
        return values

    assert step.get_concrete_function().structured_outputs.dtype == tf.float32


def test_unknown_methods_and_options_that_do_not_fit():
    graph = OperationGraph(branching(), in_training=True)
    for arguments, expected in (
        (("integrated",), "`saliency`: expected one of wbp, gradient, grad_cam, lrp.epsilon_plus"),
        (("wbp", "maps"), "`layer`: expected None with saliency='wbp'"),
        (("gradient", None, None, np.ones(3)), "`high`: expected None with saliency='gradient'"),
        (("lrp.epsilon_gamma_box", None, 0.0, None), "`high`: expected the smallest and largest value"),
        (("grad_cam", "nowhere"), "`layer`: expected one of"),
    ):
        with pytest.raises(InvalidArgument, match=f"Invalid value for {expected}"):
            saliency_in_training(arguments[0], graph, *arguments[1:])
    inputs = keras.Input((8, 8, 3))
    x = L.AlphaDropout(0.2, name="alpha")(L.Conv2D(3, 3)(inputs))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    for name in ("wbp", "gradient", "grad_cam"):
        with pytest.raises(UnsupportedOperation, match=r"`alpha` \(AlphaDropout\) draws at random in training"):
            saliency_in_training(name, OperationGraph(model, in_training=True))
