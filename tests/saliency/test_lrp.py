"""LRP on whole models: what relates it to other methods, where relevance goes, and which layer follows which rule."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.saliency.composites import COMPOSITES, AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.wbp import WBP

L = keras.layers
BOUNDS = {"low": -6.0, "high": 6.0}


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random biases, batch-norm parameters and statistics; a fresh model has none of either."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(0.3 * rng.normal(size=weight.shape))
    return model


def images_for(model: keras.Model, count: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *model.input_shape[1:])).astype("float32")


def relu_network(use_bias: bool = False, batch_norm: bool = False, averages: bool = True) -> keras.Model:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((10, 10, 3))
    for number, (filters, strides) in enumerate(((6, 1), (8, 2), (8, 1)), start=1):
        x = L.Conv2D(filters, 3, strides, padding="same", use_bias=use_bias, name=f"conv{number}")(x)
        x = L.ReLU()(L.BatchNormalization()(x) if batch_norm else x)
    x = L.MaxPooling2D()(x)
    x = L.GlobalAveragePooling2D()(x) if averages else L.Flatten()(x)
    x = L.Dense(24, activation="relu", use_bias=use_bias, name="hidden")(x)
    return randomise(keras.Model(inputs, L.Dense(3, use_bias=use_bias, activation="softmax", name="head")(x)))


def logits_of(explainer: LRP, images: np.ndarray, targets) -> np.ndarray:
    logits = explainer.graph.run(tf.constant(images))[explainer.graph.logits].numpy()
    return logits[np.arange(len(images)), targets]


def gradient_times_input(model: keras.Model, images: np.ndarray, targets) -> np.ndarray:
    graph = WBP(model).graph
    inputs = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        logits = tf.gather(graph.run(inputs)[graph.logits], targets, batch_dims=1)
    return (tape.gradient(logits, inputs) * inputs).numpy()


@pytest.mark.parametrize(("use_bias", "batch_norm"), [(False, False), (True, False), (True, True)])
def test_epsilon_equals_gradient_times_input_on_relu_networks(use_bias, batch_norm):
    model = relu_network(use_bias, batch_norm)
    images, targets = images_for(model), [0, 2, 1, 1]
    expected = gradient_times_input(model, images, targets)
    assert np.abs(expected).max() > 1e-3
    rule = Epsilon(1e-9)
    maps = LRP(model, Composite(rule, rule))(images, targets)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_allclose(maps, WBP(model)(images, targets), rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("composite", COMPOSITES)
def test_without_biases_relevance_is_conserved(composite):
    # A mean of zeros can hand nothing on, and flat gives relevance to zeros: there are no means here.
    model = relu_network(averages=False)
    images = images_for(model)
    explainer = LRP(model, composite, **BOUNDS)
    for target in range(3):
        targets = [target] * len(images)
        logits = logits_of(explainer, images, targets)
        maps = explainer(images, targets).astype(np.float64)
        np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), logits, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "alpha2_beta1", "w_square"])
def test_what_does_not_arrive_was_absorbed(composite):
    model = relu_network(use_bias=True, batch_norm=True)
    images = images_for(model)
    explainer = LRP(model, composite, **BOUNDS)
    account = explainer.conservation(images, [0, 1, 2, 0])
    np.testing.assert_allclose(account.logits, logits_of(explainer, images, [0, 1, 2, 0]), rtol=1e-5)
    np.testing.assert_allclose(account.relevance, explainer(images, [0, 1, 2, 0]).sum(axis=(1, 2, 3)), rtol=1e-3)
    scale = np.abs(account.relevance).max() + np.abs(account.logits).max()
    np.testing.assert_allclose(account.relevance + account.absorbed, account.logits, rtol=0, atol=1e-4 * scale)
    if composite != "w_square":
        assert np.abs(account.absorbed).min() > 1e-3, "the network has biases"


def test_what_the_bias_of_one_layer_absorbs():
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, name="only")])
    model.layers[0].set_weights([np.array([[1.0], [-2.0]]), np.array([2.0])])
    account = LRP(model, "epsilon").conservation([[4.0, 1.0]], [0])  # z = 4 - 2 + 2
    np.testing.assert_allclose([account.relevance[0], account.absorbed[0], account.logits[0]], [2, 2, 4], rtol=1e-5)
    account = LRP(model, "z_plus").conservation([[4.0, 1.0]], [0])  # 4 and a bias of 2 share 4
    np.testing.assert_allclose([account.relevance[0], account.absorbed[0]], [8 / 3, 4 / 3], rtol=1e-5)


def test_alpha1_beta0_is_z_plus_and_gamma_0_is_epsilon():
    model = relu_network(use_bias=True, batch_norm=True)
    images = images_for(model)

    def uniform(rule):
        return LRP(model, Composite(rule, rule))(images, [0, 1, 2, 0])

    np.testing.assert_allclose(uniform(AlphaBeta(1, 0)), LRP(model, "z_plus")(images, [0, 1, 2, 0]), rtol=1e-6)
    epsilon, gamma = uniform(Epsilon()), uniform(Gamma(0))
    np.testing.assert_allclose(gamma, epsilon, rtol=0, atol=1e-4 * np.abs(epsilon).max())
    assert np.abs(uniform(Gamma(1)) - epsilon).max() > 1e-2 * np.abs(epsilon).max()


def test_a_large_gamma_approaches_z_plus():
    model = relu_network()
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)  # positive logits
    images = images_for(model)
    positive = LRP(model).graph.run(tf.constant(images))[LRP(model).graph.logits].numpy()
    targets = positive.argmax(axis=1)
    assert (positive.max(axis=1) > 0).all()
    z_plus = LRP(model, "z_plus")(images, targets)
    gamma = LRP(model, Composite(Gamma(1e4), Gamma(1e4)))(images, targets)
    np.testing.assert_allclose(gamma, z_plus, rtol=0, atol=1e-2 * np.abs(z_plus).max())


def test_z_plus_of_a_positive_logit_has_the_sign_of_no_negative_value():
    model = relu_network(use_bias=True)
    images = images_for(model, 8)
    explainer = LRP(model, "z_plus")
    logits = np.stack([logits_of(explainer, images, [target] * 8) for target in range(3)], axis=1)
    assert (logits > 0).any(axis=1).all()
    maps = explainer(images, logits.argmax(axis=1))
    assert maps.min() >= 0
    assert maps.max() > 0


def test_relevance_starts_at_the_logit_not_at_the_probability():
    model = relu_network()
    images = images_for(model)
    maps = LRP(model, "z_plus")(images, [1] * 4)
    twice = keras.models.clone_model(model)
    twice.set_weights(model.get_weights())
    twice.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    np.testing.assert_allclose(LRP(twice, "z_plus")(images, [1] * 4), 2 * maps, rtol=1e-4, atol=1e-7)


def hand_merged(model: keras.Model) -> keras.Model:
    """The network of `relu_network` with its batch normalisations multiplied into the convolutions by hand."""
    merged = relu_network(use_bias=True)
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    for number, norm in enumerate(norms, start=1):
        kernel, bias = (weight.numpy() for weight in model.get_layer(f"conv{number}").weights)
        gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        shift = (bias - norm.moving_mean.numpy()) * gain + norm.beta.numpy()
        merged.get_layer(f"conv{number}").set_weights([kernel * gain, shift])
    for name in ("hidden", "head"):
        merged.get_layer(name).set_weights(model.get_layer(name).get_weights())
    return merged


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat", "w_square"])
def test_batch_normalisations_are_merged_as_by_hand(composite):
    model = relu_network(use_bias=True, batch_norm=True)
    by_hand = hand_merged(model)
    images = images_for(model)
    np.testing.assert_allclose(model(images), by_hand(images), rtol=1e-4, atol=1e-6)
    expected = LRP(by_hand, composite, **BOUNDS)(images, [0, 1, 2, 0])
    maps = LRP(model, composite, **BOUNDS)(images, [0, 1, 2, 0])
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_a_batch_normalisation_with_another_use_of_its_input_is_not_merged():
    x = inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 3, name="conv")(x)
    x = L.Add()([L.BatchNormalization(name="norm")(x), x])
    model = randomise(keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x))))
    explainer = LRP(model, "epsilon")
    assert explainer._plan.layers["conv"].batch_norm is None
    account = explainer.conservation(images_for(model), [0, 1, 0, 1])
    np.testing.assert_allclose(account.relevance + account.absorbed, account.logits, rtol=1e-3, atol=1e-3)


def pre_activation(x):
    x = L.Conv2D(6, 3, padding="same", use_bias=False)(x)
    y = L.Conv2D(6, 3, padding="same")(L.ReLU()(L.BatchNormalization(name="norm")(x)))
    return L.Add()([x, y])


def residual(x):
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, padding="same")(x)))
    y = L.BatchNormalization()(L.Conv2D(6, 3, padding="same")(x))
    return L.ReLU()(L.Add()([x, y]))


def dense_block(x):
    for _ in range(2):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
        x = L.Concatenate()([x, y])
    return L.AveragePooling2D(2)(x)


def squeeze_and_excitation(x):
    x = L.Conv2D(6, 3, activation="silu")(x)
    gate = L.Dense(6, activation="sigmoid")(L.Dense(3, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(x)))
    return L.Multiply()([x, gate])


def separable(x):
    x = L.ReLU(6.0)(L.BatchNormalization()(L.SeparableConv2D(6, 3, padding="same")(x)))
    return L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(x))


def shared(x):
    conv = L.Conv2D(3, 3, padding="same", activation="relu", name="shared")
    return conv(conv(x))


def transformer(x):
    x = L.Reshape((16, 8))(L.Conv2D(8, 2, strides=2)(x))
    y = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(y, y)])
    y = L.Dense(8)(L.Dense(12, activation="gelu")(L.LayerNormalization()(x)))
    return L.Reshape((4, 4, 8))(L.Add()([x, y]))


BLOCKS = [pre_activation, residual, dense_block, squeeze_and_excitation, separable, shared, transformer]


def block_network(block, seed: int = 2) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(block(inputs))
    return randomise(keras.Model(inputs, L.Dense(3, name="head")(x)))


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_gamma_box", "alpha2_beta1"])
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_known_networks_account_for_all_relevance(block, composite):
    model = block_network(block)
    images = images_for(model)
    explainer = LRP(model, composite, **BOUNDS)
    account = explainer.conservation(images[:2], [0, 1])
    scale = np.abs(account.relevance) + np.abs(account.logits) + np.abs(account.absorbed)
    assert (np.abs(account.relevance + account.absorbed - account.logits) < 1e-3 * scale).all()
    assert np.isfinite(account.relevance).all()


def test_a_batch_normalisation_before_a_convolution_has_a_rule_of_its_own():
    model = block_network(pre_activation)
    assert all(how.batch_norm is None for how in LRP(model)._plan.layers.values())
    explainer, images = LRP(model, "epsilon"), images_for(model)
    assert isinstance(explainer.graph.find("norm").layer, L.BatchNormalization)
    expected = gradient_times_input(model, images, [0, 1, 2, 0])  # batch normalisation is linear, too
    np.testing.assert_allclose(explainer(images, [0, 1, 2, 0]), expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_the_way_to_a_gate_needs_no_rule_and_gets_nothing():
    x = inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 3, name="conv")(x)
    odd = L.Lambda(lambda value: value**3, output_shape=(1, 1, 4))
    gate = L.Activation("sigmoid")(odd(L.GlobalAveragePooling2D(keepdims=True)(x)))
    model = randomise(keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Multiply()([x, gate])))))
    account = LRP(model, "epsilon").conservation(images_for(model), [0, 1, 0, 1])
    np.testing.assert_allclose(account.relevance + account.absorbed, account.logits, rtol=1e-3, atol=1e-3)


def transfer_model() -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((10, 10, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(5, 3, name="conv1")(inputs)))
    backbone = keras.Model(inputs, L.ReLU()(L.Conv2D(6, 3, name="conv2")(x)), name="backbone")
    images = keras.Input((10, 10, 3))
    x = backbone(L.Rescaling(0.5, 0.1)(images))
    head = keras.Sequential([L.GlobalAveragePooling2D(), L.Dense(3, name="logits")], name="head")
    return randomise(keras.Model(images, L.Activation("softmax")(head(x))))


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_a_transfer_learning_model_equals_its_flat_twin(composite):
    model = transfer_model()
    images = images_for(model)
    backbone, head = model.get_layer("backbone"), model.get_layer("head")
    flat = keras.Sequential([keras.Input((10, 10, 3)), L.Rescaling(0.5, 0.1), *backbone.layers[1:], *head.layers])
    maps = LRP(model, composite, **BOUNDS)(images, [0, 1, 2, 0])
    assert np.abs(maps).max() > 0
    np.testing.assert_array_equal(maps, LRP(flat, composite, **BOUNDS)(images, [0, 1, 2, 0]))
    assert list(LRP(model, composite, **BOUNDS).layers) == ["backbone/conv1", "backbone/conv2", "head/logits"]


def test_every_input_has_a_map():
    image, record = keras.Input((6, 6, 3), name="image"), keras.Input((4,), name="record")
    x = L.GlobalAveragePooling2D()(L.Conv2D(5, 3, use_bias=False, activation="relu", name="conv")(image))
    x = L.Concatenate()([x, L.Dense(3, use_bias=False, activation="relu", name="dense")(record)])
    model = keras.Model([image, record], L.Dense(2, use_bias=False, name="head")(x))
    rng = np.random.default_rng(0)
    arrays = [rng.random((3, 6, 6, 3), "float32"), rng.random((3, 4), "float32")]
    explainer = LRP(model, "epsilon_plus_flat")
    assert dict(explainer.layers) == {"conv": Flat(), "dense": Flat(), "head": Epsilon()}
    maps = explainer(arrays, [0, 1, 0])
    assert [values.shape for values in maps] == [(3, 6, 6, 3), (3, 4)]
    logits = model(arrays).numpy()[[0, 1, 2], [0, 1, 0]]
    np.testing.assert_allclose(sum(values.reshape(3, -1).sum(1) for values in maps), logits, rtol=1e-3, atol=1e-5)
    named = explainer({"image": arrays[0], "record": arrays[1]}, [0, 1, 0])
    np.testing.assert_array_equal(named["record"], maps[1])


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat"])
def test_the_batch_size_changes_no_map_and_a_second_call_gives_the_same(composite):
    model = relu_network(use_bias=True, batch_norm=True)
    before = model.get_weights()
    images = images_for(model, 5)
    explainer = LRP(model, composite, **BOUNDS)
    maps = explainer(images)
    np.testing.assert_array_equal(explainer(images), maps)
    np.testing.assert_allclose(LRP(model, composite, batch_size=2, **BOUNDS)(images), maps, rtol=1e-4, atol=1e-7)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_a_model_of_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = relu_network(use_bias=True, batch_norm=True)
    finally:
        keras.config.set_dtype_policy("float32")
    images = images_for(model)
    single = relu_network(use_bias=True, batch_norm=True)
    single.set_weights(model.get_weights())
    for composite in ("epsilon_plus", "epsilon_gamma_box"):
        maps = LRP(model, composite, **BOUNDS)(images, [0] * 4)
        expected = LRP(single, composite, **BOUNDS)(images, [0] * 4)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps, expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_channels_may_come_first():
    def network(data_format: str) -> keras.Model:
        axis = 1 if data_format == "channels_first" else -1
        x = inputs = keras.Input((3, 8, 8) if axis == 1 else (8, 8, 3))
        x = L.ReLU()(L.BatchNormalization(axis=axis)(L.Conv2D(5, 3, data_format=data_format)(x)))
        x = L.BatchNormalization(axis=axis)(L.DepthwiseConv2D(3, data_format=data_format)(x))
        x = L.GlobalAveragePooling2D(data_format=data_format)(L.MaxPooling2D(2, data_format=data_format)(x))
        return randomise(keras.Model(inputs, L.Dense(3)(x)))

    first, last = network("channels_first"), network("channels_last")
    last.set_weights(first.get_weights())
    images = images_for(last)
    low, high = np.array([-6.0, -7.0, -8.0]), np.array([5.0, 6.0, 7.0])
    expected = LRP(last, "epsilon_gamma_box", low=low, high=high)(images, [0, 1, 2, 0])
    bounds = {"low": low.reshape(3, 1, 1), "high": high.reshape(3, 1, 1)}
    explainer = LRP(first, "epsilon_gamma_box", **bounds)
    assert sum(how.batch_norm is not None for how in explainer._plan.layers.values()) == 2
    maps = explainer(images.transpose(0, 3, 1, 2), [0, 1, 2, 0]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_weights_that_change_later_are_seen():
    model = relu_network(use_bias=True, batch_norm=True)
    images, explainer = images_for(model), LRP(model)
    before = explainer(images, [0] * 4)
    randomise(model, seed=9)
    after = explainer(images, [0] * 4)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_array_equal(after, LRP(model)(images, [0] * 4))


def test_composites_give_layers_their_rules():
    model = relu_network()
    names = ["conv1", "conv2", "conv3", "hidden", "head"]
    epsilon = [Epsilon(), Epsilon()]
    expected = {
        "epsilon_plus": [ZPlus(), ZPlus(), ZPlus(), *epsilon],
        "epsilon_plus_flat": [Flat(), ZPlus(), ZPlus(), *epsilon],
        "epsilon_gamma_box": [ZBox(-6.0, 6.0), Gamma(0.25), Gamma(0.25), *epsilon],
        "epsilon_alpha2_beta1": [AlphaBeta(2, 1), AlphaBeta(2, 1), AlphaBeta(2, 1), *epsilon],
        "epsilon_alpha2_beta1_flat": [Flat(), AlphaBeta(2, 1), AlphaBeta(2, 1), *epsilon],
        "epsilon": [Epsilon()] * 5,
        "gamma": [Gamma()] * 5,
        "z_plus": [ZPlus()] * 5,
        "alpha2_beta1": [AlphaBeta(2, 1)] * 5,
        "w_square": [WSquare()] * 5,
        "flat": [Flat()] * 5,
    }
    assert expected.keys() == COMPOSITES.keys()
    for composite, rules in expected.items():
        assert dict(LRP(model, composite, **BOUNDS).layers) == dict(zip(names, rules, strict=True))


def test_what_is_more_particular_wins():
    model = transfer_model()
    composite = Composite(
        dense=Gamma(4),
        convolution=Gamma(1),
        first=Gamma(2),
        types={L.Conv2D: Gamma(3)},
    )
    assert [rule.gamma for rule in LRP(model, composite).layers.values()] == [2, 3, 4]
    composite = Composite(types={L.Layer: Gamma(5), L.Conv2D: Gamma(3)}, positions={0: Gamma(6), -1: Gamma(7)})
    assert [rule.gamma for rule in LRP(model, composite).layers.values()] == [6, 3, 7]
    composite = Composite(
        positions={0: Gamma(6), 1: Gamma(6)}, names={"conv1": Gamma(8), "backbone/conv1": Gamma(9), "logits": ZPlus()}
    )
    assert list(LRP(model, composite).layers.values()) == [Gamma(9), Gamma(6), ZPlus()]
    by_name = LRP(model, Composite(names={"conv2": Flat()}))
    assert dict(by_name.layers)["backbone/conv2"] == Flat()


def test_first_layers_stand_behind_preprocessing_only():
    def first(build):
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(build(inputs))))
        layers = LRP(model, Composite(first=Flat())).layers
        return [path for path, rule in layers.items() if rule == Flat()]

    conv = L.Conv2D(2, 3, name="a")
    assert first(lambda x: conv(L.ZeroPadding2D()(L.Normalization(mean=0.0, variance=1.0)(x[..., ::-1] / 255.0)))) == [
        "a"
    ]
    two = [L.Conv2D(2, 3, name="left"), L.Conv2D(2, 3, name="right")]
    assert first(lambda x: L.Add()([two[0](x), two[1](x)])) == ["left", "right"]
    assert first(lambda x: L.Conv2D(2, 3, name="b")(L.Conv2D(2, 1, name="c")(x))) == ["c"]
    assert first(lambda x: L.Conv2D(2, 3, name="d")(L.BatchNormalization()(x))) == ["d"]
    assert first(lambda x: L.Conv2D(2, 3, name="e")(keras.ops.square(x))) == []
    assert first(lambda x: L.Conv2D(2, 3, name="f")(x * x)) == []


def test_inputs_known_to_hold_no_negative_value():
    def known(build, size=None) -> bool:
        inputs = keras.Input((8, 8, 3), batch_size=size)
        model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Conv2D(2, 2, name="conv")(build(inputs)))))
        return LRP(model)._plan.layers["conv"].nonnegative

    relu = L.Activation("relu")
    assert not known(lambda x: x)
    assert known(relu)
    assert known(lambda x: L.MaxPooling2D()(L.ZeroPadding2D()(L.Dropout(0.2)(relu(x)))))
    assert known(lambda x: L.Concatenate()([relu(x), keras.ops.square(x)]))
    assert known(lambda x: keras.ops.transpose(relu(x) + keras.ops.sigmoid(x), (0, 2, 1, 3)))
    assert not known(lambda x: relu(x) - 1.0)
    assert not known(lambda x: relu(x) + (-1.0))
    assert not known(lambda x: relu(x) * -1.0)
    assert not known(lambda x: L.Add()([relu(x), x]))
    assert not known(lambda x: L.ReLU(negative_slope=0.1)(x))
    assert not known(lambda x: L.Activation("gelu")(x))
    constant = -np.ones((1, 8, 8, 3), "float32")
    assert not known(lambda x: keras.ops.concatenate([relu(x), constant], axis=-1), size=1)


@pytest.mark.parametrize("rule", [ZPlus(), AlphaBeta(2, 1), Gamma()])
def test_what_is_known_of_signs_changes_no_map(rule):
    model = relu_network(use_bias=True)
    images = images_for(model)
    inputs = keras.Input((10, 10, 3))
    x = inputs
    for layer in model.layers[1:]:  # an identity that the plan cannot look through
        x = layer(x * np.ones((1, 1, 1, 1), "float32") if layer.name.startswith("conv") else x)
    blind = keras.Model(inputs, x)
    composite = Composite(rule, rule)
    assert sum(how.nonnegative for how in LRP(model, composite)._plan.layers.values()) == 4
    assert sum(how.nonnegative for how in LRP(blind, composite)._plan.layers.values()) == 2
    expected = LRP(blind, composite)(images, [0] * 4)
    np.testing.assert_allclose(
        LRP(model, composite)(images, [0] * 4), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


ERRORS = {
    "composite": (
        lambda model: LRP(model, "epsilon-plus"),
        "`composite`: expected a Composite or one of epsilon_plus, ",
    ),
    "composite type": (lambda model: LRP(model, 3), "`composite`: expected a Composite or one of .* received 3"),
    "fallback": (lambda model: LRP(model, fallback="none"), "`fallback`: expected None or 'gradient'; received 'none'"),
    "low": (
        lambda model: LRP(model, "epsilon_gamma_box"),
        "`low`: expected the smallest and largest value .* low=0, hi",
    ),
    "high": (lambda model: LRP(model, "epsilon_gamma_box", low=0), "`high`: expected the smallest and largest value"),
    "order": (lambda model: LRP(model, "epsilon_gamma_box", low=2, high=1), r"`low`: expected less than high \(1.0\)"),
    "channels": (
        lambda model: LRP(model, "epsilon_gamma_box", low=[0, 0], high=1),
        r"`low`: expected finite numbers that broadcast to images of shape \(10, 10, 3\); received \[0.0, 0.0\]",
    ),
    "infinite": (lambda model: LRP(model, "epsilon_gamma_box", low=0, high=np.inf), "`high`: expected finite numbers"),
    "text": (lambda model: LRP(model, "epsilon_gamma_box", low="zero", high=1), "`low`: expected a number, or one for"),
    "box inside": (
        lambda model: LRP(model, Composite(names={"conv2": ZBox(0, 1)})),
        "expected z-box at first layers only; received z-box at `conv2`",
    ),
    "name": (
        lambda model: LRP(model, Composite(names={"conv9": Flat()})),
        r"`names`: expected layers with weights \(conv1, conv2, conv3, hidden, head\); received 'conv9'",
    ),
    "position": (
        lambda model: LRP(model, Composite(positions={5: Flat()})),
        "`positions`: expected positions from -5 to 4, of 5 layers with weights; received 5",
    ),
    "kind": (
        lambda model: LRP(model, Composite(types={L.Conv1D: Flat()})),
        r"`types`: expected classes of layers with weights of this model \(Conv2D, Dense\); received Conv1D",
    ),
    "images": (
        lambda model: LRP(model, "epsilon_gamma_box", low=0, high=1)(255 * np.ones((1, 10, 10, 3))),
        r"`images`: expected values from low=0.0 to high=1.0.* received values in \[255.0, 255.0\]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name):
    call, text = ERRORS[name]
    with pytest.raises(InvalidArgument, match=text):
        call(relu_network())
