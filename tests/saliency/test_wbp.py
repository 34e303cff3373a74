from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.wbp import WBP, weight_back_propagation

L = keras.layers


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random batch-norm parameters and statistics, and biases; a fresh model has none of either."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(0.3 * rng.normal(size=weight.shape))
    return model


def images_for(model: keras.Model, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *model.input_shape[1:])).astype("float32")


def every_layer(dtype: str = "float32", dropout_seed: int = 0) -> keras.Model:
    """A small network in which every layer that WBP knows takes part."""
    x = inputs = keras.Input((9, 8, 3), dtype=dtype)
    x = L.ZeroPadding2D(((1, 0), (0, 2)), dtype=dtype)(x)
    x = L.Conv2D(6, 3, strides=(2, 1), dtype=dtype)(x)
    x = trunk = L.ReLU(dtype=dtype)(L.BatchNormalization(dtype=dtype)(x))
    x = L.Conv2D(6, 3, padding="same", activation="relu", dtype=dtype)(x)
    x = L.Dropout(0.3, seed=dropout_seed, dtype=dtype)(L.BatchNormalization(scale=False, dtype=dtype)(x))
    x = L.Activation("relu", dtype=dtype)(L.Add(dtype=dtype)([x, trunk, L.Conv2D(1, 1, dtype=dtype)(trunk)]))
    small = L.MaxPooling2D(2, padding="same", dtype=dtype)(x)
    smooth = L.AveragePooling2D(3, strides=2, padding="same", dtype=dtype)(x)
    x = L.Concatenate(dtype=dtype)([small, smooth])
    summary = [L.Flatten(dtype=dtype)(x), L.GlobalAveragePooling2D(dtype=dtype)(x)]
    x = L.Concatenate(dtype=dtype)([*summary, L.GlobalMaxPooling2D(dtype=dtype)(small)])
    x = L.Dense(7, activation="relu", dtype=dtype)(x)
    return randomise(keras.Model(inputs, L.Dense(4, activation="softmax", dtype=dtype)(x)))


def convnet(use_bias: bool, batch_norm: bool) -> keras.Model:
    x = inputs = keras.Input((10, 10, 3))
    for filters, strides in ((5, 1), (6, 2)):
        x = L.Conv2D(filters, 3, strides=strides, padding="same", use_bias=use_bias)(x)
        x = L.ReLU()(L.BatchNormalization()(x) if batch_norm else x)
    x = L.GlobalAveragePooling2D()(L.MaxPooling2D()(x))
    return randomise(keras.Model(inputs, L.Dense(3, use_bias=use_bias)(x)))


def gradient_times_input(model: keras.Model, images: np.ndarray, classes: list[int]) -> np.ndarray:
    inputs = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        logits = tf.gather(model(inputs, training=False), classes, batch_dims=1)
    return (tape.gradient(logits, inputs) * inputs).numpy()


@pytest.mark.parametrize(("use_bias", "batch_norm"), [(False, False), (True, False), (True, True)])
def test_equals_gradient_times_input_on_relu_networks(use_bias, batch_norm):
    model = convnet(use_bias, batch_norm)
    images, classes = images_for(model, 4), [0, 2, 1, 1]
    expected = gradient_times_input(model, images, classes)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(WBP(model)(images, classes), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_the_sum_of_the_map_and_the_bias_in_float64(training):
    model = every_layer("float64")
    graph = OperationGraph(model)
    images = tf.constant(images_for(model, 5), tf.float64)
    activations = graph.run(images, training)
    for target in range(4):
        maps, bias = weight_back_propagation(graph, activations, tf.fill((5,), target), training, with_bias=True)
        total = tf.reduce_sum(maps, axis=(1, 2, 3)) + bias
        np.testing.assert_allclose(total, activations[graph.logits][:, target], rtol=0, atol=1e-9)
        assert np.abs(bias).min() > 1e-3, "without a bias this would hold for a rule without offset, too"


def test_without_bias_no_offset_is_computed():
    model = every_layer()
    graph = OperationGraph(model)
    _, bias = weight_back_propagation(graph, graph.run(images_for(model, 2)), tf.constant([0, 1]))
    assert bias is None


@pytest.mark.parametrize(
    "application", [keras.applications.VGG16, keras.applications.ResNet50], ids=["VGG16", "ResNet50"]
)
def test_decomposition_of_large_networks(application):
    model = randomise(application(weights=None, input_shape=(64, 64, 3), classes=10))
    images = images_for(model, 3)

    result = WBP(model).decompose(images, [0, 4, 9])

    assert result.maps.shape == images.shape
    assert all(value.dtype == np.float32 for value in (result.maps, result.bias, result.logits))
    total = result.maps.sum(axis=(1, 2, 3), dtype=np.float64) + result.bias
    np.testing.assert_allclose(total, result.logits, rtol=1e-4)
    assert np.abs(result.bias).min() > 1e-3
    head = OperationGraph(model).producer(OperationGraph(model).logits).layer
    features = keras.Model(model.inputs, model.layers[-2].output).predict(images, verbose=0)
    expected = np.sum(features * head.kernel.numpy()[:, [0, 4, 9]].T, axis=1) + head.bias.numpy()[[0, 4, 9]]
    np.testing.assert_allclose(result.logits, expected, rtol=1e-4)


def test_decomposition_of_a_model_of_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        x = inputs = keras.Input((8, 8, 3))
        x = L.MaxPooling2D()(L.BatchNormalization()(L.Conv2D(4, 3, activation="relu")(x)))
        model = randomise(keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x))))
    finally:
        keras.config.set_dtype_policy("float32")
    graph = OperationGraph(model)
    activations = graph.run(images_for(model, 3))
    assert activations[graph.logits].dtype == tf.float16
    maps, bias = weight_back_propagation(graph, activations, tf.constant([0, 1, 2]), with_bias=True)
    assert maps.dtype == bias.dtype == tf.float32
    result = WBP(model).decompose(images_for(model, 3))
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3)) + result.bias, result.logits, atol=1e-2)


@pytest.mark.parametrize("training", [False, True])
def test_maps_are_differentiable_with_respect_to_every_weight(training):
    model = every_layer("float64", dropout_seed=4)
    graph = OperationGraph(model)
    rng = np.random.default_rng(5)
    images, classes = tf.constant(rng.normal(size=(3, 9, 8, 3))), tf.constant([0, 1, 3])
    direction = tf.constant(rng.normal(size=(3, 9, 8, 3)))
    state = {weight.path: weight.numpy() for weight in model.non_trainable_variables}

    def value() -> tf.Tensor:
        for weight in model.non_trainable_variables:  # moving statistics and the dropout draw move in training
            weight.assign(state[weight.path])
        maps, _ = weight_back_propagation(graph, graph.run(images, training), classes, training)
        return tf.reduce_sum(maps * direction)

    with tf.GradientTape() as tape:
        loss = value()
    weights = [weight for weight in model.trainable_weights if weight.name in ("kernel", "gamma")]
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    assert len(weights) == 6

    for weight, gradient in zip(weights, gradients, strict=True):
        original = weight.numpy()
        for flat in rng.choice(original.size, min(4, original.size), replace=False):
            step = np.zeros(original.size)
            step[flat] = 1e-6
            values = []
            for sign in (1, -1):
                weight.assign(original + sign * step.reshape(original.shape))
                values.append(value().numpy())
            weight.assign(original)
            numeric = (values[0] - values[1]) / 2e-6
            np.testing.assert_allclose(gradient.numpy().ravel()[flat], numeric, rtol=1e-5, atol=1e-6)
    assert all(np.abs(gradient).max() > 1e-3 for gradient in gradients)


def test_decompose_explains_the_predicted_class_by_default():
    model = every_layer()
    images = images_for(model, 6)
    predicted = model.predict(images, verbose=0).argmax(axis=1)
    assert len(set(predicted)) > 1
    explainer = WBP(model)
    by_default, on_demand = explainer.decompose(images), explainer.decompose(images, predicted)
    np.testing.assert_array_equal(by_default.maps, on_demand.maps)
    np.testing.assert_array_equal(by_default.logits, on_demand.logits)
    np.testing.assert_allclose(by_default.maps, explainer(images), atol=1e-6)


def test_weights_that_change_later_are_seen():
    model = convnet(use_bias=True, batch_norm=True)
    images, explainer = images_for(model, 2), WBP(model)
    before = explainer(images, [0, 1])
    randomise(model, seed=9)
    after = explainer(images, [0, 1])
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, gradient_times_input(model, images, [0, 1]), atol=1e-5)


class StandardizedConv2D(L.Conv2D):
    """Overrides what Keras means to be overridden: the kernel that is used is not the attribute."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - tf.reduce_mean(kernel, axis=(0, 1, 2)))


REFUSED = {
    "dilation": (lambda: L.Conv2D(2, 2, dilation_rate=2), r"has groups=1 and dilation_rate=\(2, 2\); both must be 1"),
    "groups": (lambda: L.Conv2D(3, 2, groups=3), r"has groups=3 and dilation_rate=\(1, 1\); both must be 1"),
    "channels first": (lambda: L.MaxPooling2D(data_format="channels_first"), "has data_format='channels_first'; it"),
    "axis": (lambda: L.BatchNormalization(axis=1), "normalises axis 1; it must be the last"),
    "renorm": (lambda: L.BatchNormalization(renorm=True), "uses renorm, which is not handled"),
    "relu6": (lambda: L.ReLU(6.0), "has a maximum, a slope or a threshold; only the plain ReLU is handled"),
    "slope": (lambda: L.ReLU(negative_slope=0.1), "has a maximum, a slope or a threshold"),
    "threshold": (lambda: L.ReLU(threshold=0.1), "has a maximum, a slope or a threshold"),
    "gelu": (lambda: L.Activation("gelu"), "applies `gelu`, which is not handled; `relu` and `linear` are"),
    "fused": (lambda: L.Conv2D(2, 1, activation="tanh", name="inner"), "`inner/activation` .* applies `tanh`, which"),
    "softmax inside": (lambda: L.Dense(2, activation="softmax"), "applies `softmax`, which is not handled"),
    "leaky": (lambda: L.LeakyReLU(), r"\(LeakyReLU\) has no rule"),
    "prelu": (lambda: L.PReLU(), r"\(PReLU\) has no rule"),
    "elu": (lambda: L.ELU(), r"\(ELU\) has no rule"),
    "depthwise": (lambda: L.DepthwiseConv2D(2), r"\(DepthwiseConv2D\) has no rule"),
    "separable": (lambda: L.SeparableConv2D(2, 2), r"\(SeparableConv2D\) has no rule"),
    "transposed": (lambda: L.Conv2DTranspose(2, 2), r"\(Conv2DTranspose\) has no rule"),
    "layer norm": (lambda: L.LayerNormalization(), r"\(LayerNormalization\) has no rule"),
    "spatial dropout": (lambda: L.SpatialDropout2D(0.2), r"\(SpatialDropout2D\) overrides `call` of Dropout, whose"),
    "subclass": (lambda: StandardizedConv2D(2, 2), "overrides `convolution_op` of Conv2D, whose rule may"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_a_valid_rule_are_refused(name):
    layer, text = REFUSED[name]
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(layer()(inputs))))
    with pytest.raises(UnsupportedOperation, match=text):
        WBP(model)


def test_merges_without_a_rule_are_refused():
    inputs = keras.Input((3,))
    for merge in (L.Multiply, L.Subtract, L.Average, L.Maximum):
        model = keras.Model(inputs, L.Dense(2)(merge()([inputs, L.Dense(3)(inputs)])))
        with pytest.raises(UnsupportedOperation, match=rf"\({merge.__name__}\) has no rule\. Rules exist for Activat"):
            WBP(model)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantized_layers_are_refused():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    model.quantize("int8")
    with pytest.raises(UnsupportedOperation, match="is quantized to int8, which is not handled"):
        WBP(model)


def test_low_rank_adapters_take_part():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, use_bias=False)])
    model.layers[0].enable_lora(1)
    model.layers[0].lora_kernel_b.assign([[2.0, -1.0]])
    result = WBP(model).decompose([[1.0, -2.0, 0.5]], [1])
    np.testing.assert_allclose(result.maps.sum(), model.predict(np.array([[1.0, -2.0, 0.5]]), verbose=0)[0, 1], 1e-5)
