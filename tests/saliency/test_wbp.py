from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency import wbp_rules
from tfcausal.saliency.propagation import check
from tfcausal.saliency.wbp import RULES, WBP, weight_back_propagation

L, ops = keras.layers, keras.ops


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
        (maps,), bias = weight_back_propagation(graph, activations, tf.fill((5,), target), training, with_bias=True)
        total = tf.reduce_sum(maps, axis=(1, 2, 3)) + bias
        np.testing.assert_allclose(total, activations[graph.logits][:, target], rtol=0, atol=1e-9)
        assert np.abs(bias).min() > 1e-3, "without a bias this would hold for a rule without offset, too"


def test_without_bias_no_offset_is_computed():
    model = every_layer()
    graph = OperationGraph(model)
    _, bias = weight_back_propagation(graph, graph.run(images_for(model, 2)), tf.constant([0, 1]))
    assert bias is None


def test_decomposition_of_a_large_network():
    model = randomise(keras.applications.VGG16(weights=None, input_shape=(64, 64, 3), classes=10))
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
    (maps,), bias = weight_back_propagation(graph, activations, tf.constant([0, 1, 2]), with_bias=True)
    assert maps.dtype == bias.dtype == tf.float32
    result = WBP(model).decompose(images_for(model, 3))
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3)) + result.bias, result.logits, atol=1e-2)


@pytest.mark.parametrize("training", [False, True])
def test_maps_are_differentiable_with_respect_to_every_weight(training, monkeypatch):
    """In training, the statistics that the map has of the batch are constants: those of the first pass."""
    first = {}

    def of_first_pass(layer, inputs, training):
        return first.setdefault(layer.name, original_statistics(layer, inputs, training))

    original_statistics = wbp_rules.batch_norm_statistics
    monkeypatch.setattr(wbp_rules, "batch_norm_statistics", of_first_pass)
    model = every_layer("float64", dropout_seed=4)
    graph = OperationGraph(model)
    rng = np.random.default_rng(5)
    images, classes = tf.constant(rng.normal(size=(3, 9, 8, 3))), tf.constant([0, 1, 3])
    direction = tf.constant(rng.normal(size=(3, 9, 8, 3)))
    state = {weight.path: weight.numpy() for weight in model.non_trainable_variables}

    def value() -> tf.Tensor:
        for weight in model.non_trainable_variables:  # moving statistics and the dropout draw move in training
            weight.assign(state[weight.path])
        (maps,), _ = weight_back_propagation(graph, graph.run(images, training), classes, training)
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


def everything(dtype: str = "float64") -> keras.Model:
    """What modern networks are made of: depthwise convolutions, gates, normalisations, attention, ops."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        x = inputs = keras.Input((8, 8, 3))
        x = L.Rescaling(0.5, offset=0.1)(L.RandomFlip()(x))
        x = L.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(x)
        x = trunk = L.LayerNormalization()(L.Activation("silu")(L.DepthwiseConv2D(3, padding="same")(x)))
        gate = L.Dense(2, activation="mish")(L.GlobalAveragePooling2D(keepdims=True)(x))
        x = L.Multiply()([x, L.Dense(8, activation="sigmoid")(gate)])
        x = trunk + 0.5 * L.Conv2D(8, 3, padding="same", activation="tanh")(x)
        x = L.GroupNormalization(4)(L.LeakyReLU()(L.SeparableConv2D(8, 2, padding="same")(x)))
        x = tokens = L.Reshape((16, 8))(x)
        x = x + L.MultiHeadAttention(2, 4)(x, x)
        x = L.RMSNormalization()(ops.maximum(x, 0.01) * ops.tanh(tokens))
        x = L.Concatenate()([x[:, 0], ops.mean(x[:, 1:], axis=1), L.GlobalMaxPooling1D()(x)])
        x = L.Dense(6, activation="softplus")(1.0 - x / 3)
        outputs = L.Dense(4, activation="softmax")(L.Maximum()([x, L.ELU()(L.BatchNormalization()(x))]))
    finally:
        keras.config.set_dtype_policy(before)
    return randomise(keras.Model(inputs, outputs))


@pytest.mark.parametrize("training", [False, True])
def test_the_decomposition_of_everything_is_complete_in_float64(training):
    model = everything()
    for layer in model.layers:
        if isinstance(layer, L.RandomFlip):
            model = keras.Model(model.layers[model.layers.index(layer) + 1].input, model.output) if training else model
    graph = OperationGraph(model)
    images = tf.constant(images_for(model, 5), tf.float64)
    activations = graph.run(images, training)
    for target in range(4):
        (maps,), bias = weight_back_propagation(graph, activations, tf.fill((5,), target), training, with_bias=True)
        total = tf.reduce_sum(maps, axis=(1, 2, 3)) + bias
        np.testing.assert_allclose(total, activations[graph.logits][:, target], rtol=0, atol=1e-9)
        assert np.abs(maps).max() > 1e-3
        assert np.abs(bias).min() > 1e-3


def test_the_batch_size_changes_no_map():
    model = everything("float32")
    images = images_for(model, 5)
    whole, single = WBP(model, batch_size=5)(images), WBP(model, batch_size=1)(images)
    np.testing.assert_allclose(single, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("mixed_float16", 3e-2), ("mixed_bfloat16", 0.2)])
def test_lower_precision_gives_nearly_the_same_maps(dtype, tolerance):
    exact, model = everything("float64"), everything(dtype)
    model.set_weights(exact.get_weights())
    images = images_for(model, 4)
    expected, result = WBP(exact).decompose(images, [0, 1, 2, 3]), WBP(model).decompose(images, [0, 1, 2, 3])
    assert np.abs(result.maps - expected.maps).max() < tolerance * np.abs(expected.maps).max()
    total = result.maps.sum(axis=(1, 2, 3)) + result.bias
    np.testing.assert_allclose(total, result.logits, rtol=0, atol=tolerance * np.abs(result.logits).max())


def test_maps_of_everything_are_differentiable_with_respect_to_every_weight():
    model = everything()
    graph = OperationGraph(model)
    rng = np.random.default_rng(5)
    images, classes = tf.constant(rng.normal(size=(2, 8, 8, 3))), tf.constant([0, 3])
    direction = tf.constant(rng.normal(size=(2, 8, 8, 3)))

    @tf.function
    def value() -> tf.Tensor:
        (maps,), _ = weight_back_propagation(graph, graph.run(images), classes)
        return tf.reduce_sum(maps * direction)

    weights = [weight for weight in model.trainable_weights if weight.name in ("kernel", "gamma", "scale")]
    weights += [
        weight for weight in model.trainable_weights if "depthwise" in weight.name or "pointwise" in weight.name
    ]
    with tf.GradientTape() as tape:
        loss = value()
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    assert len(weights) > 15

    for weight, gradient in zip(weights, gradients, strict=True):
        original = weight.numpy()
        assert np.isfinite(gradient).all()
        for flat in rng.choice(original.size, 1):
            step = np.zeros(original.size)
            step[flat] = 1e-6
            values = []
            for sign in (1, -1):
                weight.assign(original + sign * step.reshape(original.shape))
                values.append(value().numpy())
            weight.assign(original)
            numeric = (values[0] - values[1]) / 2e-6
            np.testing.assert_allclose(gradient.numpy().ravel()[flat], numeric, rtol=1e-5, atol=1e-6)


def test_layer_scale_of_convnext_is_followed():
    from_application = keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3), classes=5)
    scale = next(layer for layer in from_application.layers if type(layer).__name__ == "LayerScale")
    scale.gamma.assign(np.linspace(-1, 1, scale.gamma.shape[0]))
    inputs = keras.Input((2, 2, scale.gamma.shape[0]))
    model = keras.Model(inputs, L.Flatten()(type(scale)(1.0, scale.gamma.shape[0])(inputs)))
    model.layers[1].gamma.assign(scale.gamma)
    images = images_for(model, 2)
    maps = WBP(model)(images, [0, 50])
    assert maps[0].ravel().nonzero()[0].tolist() == [0]
    np.testing.assert_allclose(maps[0].ravel()[0], -images[0].ravel()[0], rtol=1e-6)
    np.testing.assert_allclose(maps[1].ravel()[50], images[1].ravel()[50] * scale.gamma.numpy()[50], rtol=1e-6)


class StandardizedConv2D(L.Conv2D):
    """Overrides what Keras means to be overridden: the kernel that is used is not the attribute."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - tf.reduce_mean(kernel, axis=(0, 1, 2)))


def flat(x):
    return ops.reshape(x, (-1, 36, 3))


REFUSED = {
    "renorm": (lambda x: L.BatchNormalization(renorm=True)(x), "uses renorm, which is not handled"),
    "rms scaling": (lambda x: L.LayerNormalization(rms_scaling=True)(x), "uses rms_scaling, which is not handled"),
    "own function": (lambda x: L.Activation(ops.cos)(x), r"\(Activation\) applies `cos`, which is not handled"),
    "fused": (lambda x: L.Conv2D(2, 1, activation=ops.sin, name="inner")(x), "`inner/activation` .* applies `sin`"),
    "softmax inside": (lambda x: L.Dense(2, activation="softmax")(x), "applies `softmax`, which is not handled"),
    "softmax layer": (lambda x: L.Softmax()(x), r"\(Softmax\) has no rule"),
    "softmax operation": (ops.softmax, r"\(Softmax\) has no rule"),
    "subclass": (lambda x: StandardizedConv2D(2, 2)(x), "overrides `convolution_op` of Conv2D, whose rule may"),
    "lambda": (lambda x: L.Lambda(lambda t: t * 2, output_shape=(6, 6, 3))(x), r"\(Lambda\) has no rule"),
    "recurrent": (lambda x: L.LSTM(4)(flat(x)), r"\(LSTM\) has no rule"),
    "both ways": (lambda x: L.Bidirectional(L.GRU(4))(flat(x)), r"\(Bidirectional\) has no rule"),
    "every step": (lambda x: L.TimeDistributed(L.Dense(2))(x), r"\(TimeDistributed\) has no rule"),
    "spectral": (lambda x: L.SpectralNormalization(L.Dense(2))(x), r"\(SpectralNormalization\) has no rule"),
    "solarization": (lambda x: L.Solarization()(x), r"\(Solarization\) has no rule"),
    "cosine": (lambda x: L.Dot(axes=2, normalize=True)([flat(x), flat(x)]), "normalises its factors, which is not"),
    "area": (lambda x: L.Resizing(3, 3, interpolation="area")(x), "resizes by area, for which TensorFlow has no"),
    "reciprocal": (lambda x: 1.0 / (x + 9.0), "divides a constant by a tensor, which is not handled"),
    "tensor indices": (
        lambda x: ops.take(x, ops.cast(ops.argmax(x[:, 0, :, 0], axis=1), "int32"), axis=1)[:, 0],
        r"\(Take\) takes a tensor beside its first argument",
    ),
    "embedding": (lambda x: ops.take(np.eye(3, dtype="float32"), ops.argmax(x, axis=-1), axis=0), r"\(Take\) takes a"),
    "tensor weights": (lambda x: ops.average(x, axis=-1, weights=x), r"\(Average\) takes a tensor beside its first"),
    "rounding": (lambda x: ops.cast(ops.cast(x, "int32"), "float32"), r"\(Cast\) rounds its input"),
    "initial value": (lambda x: ops.max(x, axis=1, initial=0.5), r"\(Max\) has an initial value"),
    "root": (lambda x: ops.abs(x) ** 0.5, r"\(Power\) is a power other than a tensor to a constant of at least 1"),
    "exponential": (lambda x: 2.0**x, r"\(Power\) is a power other"),
    "tensor power": (lambda x: ops.power(x, x), r"\(Power\) is a power other"),
    "spread": (
        lambda x: ops.maximum(ops.mean(x, axis=-1, keepdims=True), np.ones(3, "float32")),
        r"\(Maximum\) is spread over a larger constant",
    ),
    "product over the batch": (
        lambda x: ops.matmul(ops.matmul(L.Flatten()(x), ops.transpose(L.Flatten()(x))), L.Flatten()(x)),
        r"\(Matmul\) multiplies different samples with each other",
    ),
    "einsum over the batch": (
        lambda x: ops.einsum("nd,md->nd", L.Flatten()(x), L.Flatten()(x)),
        r"\(Einsum\) multiplies different samples with each other",
    ),
    "comparison": (lambda x: ops.cast(x > 0, "float32"), r"\(Greater\) has no rule"),
    "mask": (
        lambda x: L.GlobalAveragePooling1D()(L.Masking(name="m")(flat(x))),
        "is given a mask, which is not handled",
    ),
    "mask at a distance": (
        lambda x: L.MultiHeadAttention(1, 2)(*[L.Dropout(0.1)(L.Masking(name="m")(flat(x)))] * 2),
        "uses the mask that `m` attaches to its output",
    ),
    "mask given": (
        lambda x: L.GlobalAveragePooling1D()(flat(x), mask=flat(x)[:, :, 0]),
        "is given a mask, which is not handled",
    ),
    "constant value": (
        lambda x: L.Attention()([flat(x), np.ones((1, 4, 3), "float32")]),
        "attends to a constant, which is not handled",
    ),
}


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_a_valid_rule_are_refused(name):
    build, text = REFUSED[name]
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(build(inputs))))
    with pytest.raises(UnsupportedOperation, match=text) as caught:
        WBP(model)
    assert "`tfcausal.register_rule(" in str(caught.value)
    assert str(caught.value).endswith("or let the plain gradient stand in with fallback='gradient'.")


def test_resizing_without_a_gradient_in_float64_is_refused():
    for options in ({"interpolation": "lanczos5"}, {"antialias": True}):
        inputs = keras.Input((6, 6, 3), dtype="float64")
        x = L.Flatten(dtype="float64")(L.Resizing(3, 3, dtype="float64", **options)(inputs))
        with pytest.raises(UnsupportedOperation, match="resizes in float64 in a way for which TensorFlow has a grad"):
            WBP(keras.Model(inputs, x))


def test_random_layers_are_refused_in_training():
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.RandomFlip()(inputs))))
    check(OperationGraph(model), RULES)
    with pytest.raises(UnsupportedOperation, match=r"\(RandomFlip\) draws at random in training"):
        check(OperationGraph(model), RULES, training=True)


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


def test_the_gradient_stands_in_where_the_user_says_so():
    inputs = keras.Input((4,))
    x = L.Softmax(name="inside")(inputs)
    model = randomise(keras.Model(inputs, L.Dense(3)(L.Dense(5, activation="tanh", name="hidden")(x))))
    images, classes = images_for(model, 6), [0, 1, 2, 0, 1, 2]

    explainer = WBP(model, fallback="gradient")
    result = explainer.decompose(images, classes)

    assert explainer.fallbacks == result.fallbacks == ("inside",)
    hidden, head = model.get_layer("hidden"), model.layers[-1]
    powers = np.exp(images - images.max(1, keepdims=True))
    softmax = powers / powers.sum(1, keepdims=True)
    before = softmax @ hidden.kernel.numpy() + hidden.bias.numpy()
    weights = (head.kernel.numpy().T[classes] * np.tanh(before) / before) @ hidden.kernel.numpy().T
    jacobian = np.eye(4) * softmax[:, None] - softmax[:, :, None] * softmax[:, None]
    np.testing.assert_allclose(result.maps, np.einsum("ni,nij->nj", weights, jacobian) * images, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.maps.sum(1) + result.bias, result.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(explainer(images, classes), result.maps, rtol=0, atol=1e-6)


def test_no_fallback_is_recorded_where_there_are_rules():
    model = convnet(use_bias=True, batch_norm=True)
    explainer = WBP(model, fallback="gradient")
    assert explainer.fallbacks == explainer.decompose(images_for(model, 2)).fallbacks == ()


@pytest.mark.parametrize("fallback", ["gradients", True, 1])
def test_unknown_fallbacks_are_refused(fallback):
    with pytest.raises(InvalidArgument, match=f"`fallback`: expected None or 'gradient'; received {fallback!r}"):
        WBP(convnet(use_bias=True, batch_norm=False), fallback=fallback)
