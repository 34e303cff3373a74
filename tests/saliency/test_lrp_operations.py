"""How layers without weights, and operations of `keras.ops`, pass relevance back: plain NumPy in float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.composites import Composite
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.lrp_plan import Plan
from tfcausal.saliency.lrp_rules import RULES
from tfcausal.saliency.propagation import Rule, propagate

L, ops = keras.layers, keras.ops
SHAPE = (4, 6, 2)


@pytest.fixture(autouse=True)
def _float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def stab(z):
    return z + 1e-6 * np.where(z < 0, -1.0, 1.0)


def network(build, *shapes) -> keras.Model:
    """A model around a function of layers, with one logit for every value that it gives."""
    inputs = [keras.Input(shape, dtype="float64") for shape in shapes]
    x = build(*inputs)
    model = keras.Model(inputs, L.Flatten()(x))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        is_scale = "variance" in weight.path or "gamma" in weight.path
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if is_scale else rng.normal(size=weight.shape))
    return model


def walk(model: keras.Model, images: list[np.ndarray], relevance: np.ndarray | None = None):
    """Maps, what was absorbed, the relevance at the outputs, and the outputs."""
    graph = OperationGraph(model)
    activations = graph.run([tf.constant(image) for image in images])
    outputs = activations[graph.logits].numpy()
    if relevance is None:
        relevance = np.random.default_rng(5).normal(size=outputs.shape)
    rules = Plan(graph, Composite()).on(activations)
    maps, absorbed = propagate(graph, activations, tf.constant(relevance), rules, with_offsets=True)
    return [values.numpy() for values in maps], absorbed.numpy(), relevance, outputs


def samples(*shapes) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.uniform(-2, 2, (2, *shape)) for shape in shapes]


def matrices(model: keras.Model, shapes) -> tuple[list[np.ndarray], np.ndarray]:
    """The matrix (inputs, outputs) of an affine model for each of its inputs, and its constant (outputs,)."""
    constant = model([np.zeros((1, *shape)) for shape in shapes]).numpy()[0]
    found = []
    for position, shape in enumerate(shapes):
        size = int(np.prod(shape))
        arrays = [np.zeros((size, *other)) for other in shapes]
        arrays[position] = np.eye(size).reshape(size, *shape)
        found.append(model(arrays).numpy() - constant)
    return found, constant


TABLE = np.random.default_rng(3).normal(size=(2, 5))
PROPORTIONAL = {
    "add three": (lambda x, y, z: L.Add()([x, y, z]), (SHAPE, SHAPE, SHAPE)),
    "add over pixels": (lambda x, y: L.Add()([x, y]), (SHAPE, (1, 1, 2))),
    "add of another rank": (lambda x, y: L.Add()([x, y]), (SHAPE, (2,))),
    "subtract": (lambda x, y: L.Subtract()([x, y]), (SHAPE, SHAPE)),
    "average of tensors": (lambda x, y: L.Average()([x, y]), (SHAPE, SHAPE)),
    "the same twice": (lambda x: L.Add()([x, x]), (SHAPE,)),
    "ops add": (lambda x, y: x + y, (SHAPE, SHAPE)),
    "ops subtract": (lambda x, y: x - y, (SHAPE, SHAPE)),
    "constant": (lambda x: x + 0.7, (SHAPE,)),
    "from a constant": (lambda x: 0.7 - x, (SHAPE,)),
    "average pooling": (lambda x: L.AveragePooling2D(2)(x), (SHAPE,)),
    "average pooling same": (lambda x: L.AveragePooling2D(3, 2, padding="same")(x), (SHAPE,)),
    "global average": (lambda x: L.GlobalAveragePooling2D()(x), (SHAPE,)),
    "resizing": (lambda x: L.Resizing(7, 5)(x), (SHAPE,)),
    "bilinear": (lambda x: L.UpSampling2D(2, interpolation="bilinear")(x), (SHAPE,)),
    "mean": (lambda x: ops.mean(x, axis=(1, 2)), (SHAPE,)),
    "sum": (lambda x: ops.sum(x, axis=-1), (SHAPE,)),
    "matmul with a constant": (lambda x: ops.matmul(x, TABLE), (SHAPE,)),
    "einsum with a constant": (lambda x: ops.einsum("nhwc,ck->nkhw", x, TABLE), (SHAPE,)),
    "fold": (lambda x: ops.fold(L.Reshape((8, 6))(x), (4, 6), (2, 2), stride=2), (SHAPE,)),
    "grayscale": (lambda x: ops.image.rgb_to_grayscale(x), ((4, 6, 3),)),
    "blur": (lambda x: ops.image.gaussian_blur(x), (SHAPE,)),
    "resizing onto a ground": (
        lambda x: L.Resizing(5, 5, pad_to_aspect_ratio=True, fill_value=0.7)(x),
        (SHAPE,),
    ),
    "batch norm alone": (lambda x: L.BatchNormalization()(x), (SHAPE,)),
    "batch norm alone, first axis": (lambda x: L.BatchNormalization(axis=1)(x), (SHAPE,)),
}


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_linear_operations_divide_in_proportion(name):
    build, shapes = PROPORTIONAL[name]
    tolerance = (
        1e-4 if name in ("resizing", "resizing onto a ground", "bilinear") else 1e-9
    )  # TensorFlow resizes in float32
    model, images = network(build, *shapes), samples(*shapes)
    maps, absorbed, relevance, outputs = walk(model, images)
    found, constant = matrices(model, shapes)
    quotients = relevance / stab(outputs)
    for array, matrix, got in zip(images, found, maps, strict=True):
        expected = array.reshape(2, -1) * (quotients @ matrix.T)
        np.testing.assert_allclose(got.reshape(2, -1), expected, rtol=tolerance, atol=tolerance)
    taken = (relevance * (constant + stab(outputs) - outputs) / stab(outputs)).sum(axis=1)
    np.testing.assert_allclose(absorbed, taken, rtol=1e-7, atol=tolerance)


UNCHANGED = {
    "relu": lambda x: L.ReLU()(x),
    "leaky": lambda x: L.LeakyReLU()(x),
    "prelu": lambda x: L.PReLU()(x),
    "elu": lambda x: L.ELU()(x),
    **{
        name: (lambda x, name=name: L.Activation(name)(x))
        for name in ("gelu", "silu", "sigmoid", "softplus", "tanh", "mish", "hard_silu", "exponential")
    },
    "ops": lambda x: ops.silu(ops.clip(ops.negative(ops.relu(x)), -1, 1)),
    "rescaling": lambda x: L.Rescaling(1 / 127.5, -1)(x),
    "normalization": lambda x: L.Normalization(mean=[1.0, 2.0], variance=[2.0, 3.0])(x),
    "times a number": lambda x: x * 2.0,
    "times constants": lambda x: x * np.array([2.0, -1.0]),
    "divided": lambda x: x / 255.0,
    "divisor": lambda x: 1.0 / x,
    "maximum with a number": lambda x: ops.maximum(x, 0.3),
    "dropout": lambda x: L.SpatialDropout2D(0.5)(L.Dropout(0.5)(x)),
    "noise": lambda x: L.GaussianNoise(0.5)(x),
    "augmentation": lambda x: L.RandomRotation(0.2)(L.RandomFlip()(x)),
    "identity": lambda x: L.Activation("linear")(L.Identity()(x)),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_elementwise_operations_pass_relevance_unchanged(name):
    (maps,), absorbed, relevance, _ = walk(network(UNCHANGED[name], SHAPE), samples(SHAPE))
    np.testing.assert_array_equal(maps.reshape(2, -1), relevance)
    np.testing.assert_array_equal(absorbed, 0)


ROUTED = {
    "padding": lambda x: L.ZeroPadding2D(((1, 0), (0, 2)))(x),
    "cropping": lambda x: L.Cropping2D((1, 2))(x),
    "permute": lambda x: L.Permute((3, 1, 2))(x),
    "reshape": lambda x: L.Reshape((8, 6))(x),
    "nearest": lambda x: L.UpSampling2D((2, 3))(x),
    "concatenate": lambda x: L.Concatenate(axis=2)([x, x]),
    "split": lambda x: ops.concatenate(ops.split(x, 3, axis=2)[::-1][:2], axis=1),
    "slice": lambda x: x[:, 1:, ::2],
    "flip": lambda x: ops.flip(ops.transpose(x, (0, 2, 1, 3)), axis=-1),
    "repeat": lambda x: L.RepeatVector(3)(L.Flatten()(x)),
    "space to depth": lambda x: ops.space_to_depth(x, 2),
    "padding with a number": lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=2.0),
    "concatenate with a constant": lambda x: L.Concatenate()([x, np.full((2, 4, 6, 1), 3.0)]),
    "ops concatenate with a constant": lambda x: ops.concatenate([np.full((2, 1, 6, 2), 3.0), x], axis=1),
    "stack with a constant": lambda x: ops.stack([x, np.full((2, *SHAPE), 3.0)], axis=1),
    "patches with padding": lambda x: ops.image.extract_patches(x, (4, 4), padding="same"),
    "padded images": lambda x: ops.image.pad_images(x, 1, 1, target_height=7, target_width=9),
}


@pytest.mark.parametrize("name", ROUTED)
def test_what_moves_values_moves_relevance_back(name):
    model = network(ROUTED[name], SHAPE)
    images = samples(SHAPE)
    (maps,), absorbed, relevance, _ = walk(model, images)
    # Of two images at a time, since a constant of a model can be as long as its batch.
    ends = [model([np.stack([one.reshape(SHAPE)] * 2)]).numpy()[0] for one in np.eye(48)]
    matrix = np.stack(ends) - model([np.zeros((2, *SHAPE))]).numpy()[0]
    assert set(np.unique(matrix)) <= {0.0, 1.0}
    np.testing.assert_allclose(maps.reshape(2, -1), relevance @ matrix.T, rtol=0, atol=1e-12)
    constants = matrix.sum(axis=0) == 0
    assert constants.any() == ("padd" in name or "constant" in name)
    np.testing.assert_allclose(absorbed, relevance[:, constants].sum(axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pooling", "global", "maximum", "minimum", "ops max"])
def test_the_winner_takes_all(name):
    first, second = np.array([[[[1.0], [4.0]], [[3.0], [2.0]]]]), np.array([[[[2.0], [3.0]], [[5.0], [-2.0]]]])
    if name in ("maximum", "minimum"):
        merge = L.Maximum() if name == "maximum" else L.Minimum()
        model = network(lambda x, y: merge([x, y]), (2, 2, 1), (2, 2, 1))
        maps, _, relevance, _ = walk(model, [first, second])
        wins = first > second if name == "maximum" else first < second
        np.testing.assert_array_equal(maps[0].ravel(), np.where(wins.ravel(), relevance[0], 0))
        np.testing.assert_array_equal(maps[1].ravel(), np.where(wins.ravel(), 0, relevance[0]))
        return
    build = {
        "pooling": lambda x: L.MaxPooling2D(2)(x),
        "global": lambda x: L.GlobalMaxPooling2D()(x),
        "ops max": lambda x: ops.max(x, axis=(1, 2)),
    }[name]
    (maps,), _, _, _ = walk(network(build, (2, 2, 1)), [first], np.array([[7.0]]))
    assert maps.ravel().tolist() == [0.0, 7.0, 0.0, 0.0]


def normalised(layer: str, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, R: np.ndarray) -> np.ndarray:
    """y = B x + c with the standard deviation of x as a constant; B is built entry by entry."""
    n = x.size
    groups = np.arange(n) % 4 // 2 if layer == "group" else np.zeros(n, int)
    channels = np.arange(n) % 4
    if layer == "unit":
        groups = np.arange(n) // 4  # every pixel on its own
    elif layer in ("layer", "rms"):
        groups = np.arange(n) // 4
    B = np.zeros((n, n))
    for k in range(n):
        members = groups == groups[k]
        values = x[members]
        if layer == "unit":
            B[k, k] = 1 / np.sqrt((values**2).sum())
        elif layer == "rms":
            B[k, k] = gamma[channels[k]] / np.sqrt((values**2).mean() + 0.01)
        else:
            gain = gamma[channels[k]] / np.sqrt(values.var() + 0.01)
            B[k, members] -= gain / members.sum()
            B[k, k] += gain
    y = B @ x + (beta[channels] if layer in ("layer", "group") else 0)
    return x * (B.T @ (R / stab(y)))


@pytest.mark.parametrize("name", ["layer", "rms", "group", "unit"])
def test_normalisations_are_linear_with_their_statistics_as_constants(name):
    layer = {
        "layer": lambda: L.LayerNormalization(epsilon=0.01),
        "rms": lambda: L.RMSNormalization(epsilon=0.01),
        "group": lambda: L.GroupNormalization(2, epsilon=0.01),
        "unit": lambda: L.UnitNormalization(),
    }[name]()
    model, images = network(layer, (2, 1, 4)), samples((2, 1, 4))
    (maps,), absorbed, relevance, _ = walk(model, images)
    gamma = (layer.scale if name == "rms" else getattr(layer, "gamma", np.ones(4))) if name != "unit" else np.ones(4)
    beta = layer.beta if name in ("layer", "group") else np.zeros(4)
    for image, R, got, lost in zip(images[0], relevance, maps, absorbed, strict=True):
        expected = normalised(name, image.ravel(), np.asarray(gamma), np.asarray(beta), R)
        np.testing.assert_allclose(got.ravel(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(lost, R.sum() - expected.sum(), rtol=1e-7, atol=1e-9)


def test_a_gate_gets_nothing_of_a_product():
    features, gate = samples(SHAPE, (1, 1, 2))
    maps, _, relevance, _ = walk(network(lambda x, y: L.Multiply()([x, y]), SHAPE, (1, 1, 2)), [features, gate])
    np.testing.assert_array_equal(maps[0].reshape(2, -1), relevance)
    np.testing.assert_array_equal(maps[1], 0)
    model = network(lambda x, y: ops.sigmoid(x) * y, SHAPE, SHAPE)
    maps, _, relevance, _ = walk(model, samples(SHAPE, SHAPE))
    np.testing.assert_array_equal(maps[0], 0)
    np.testing.assert_array_equal(maps[1].reshape(2, -1), relevance)


def test_factors_share_alike():
    maps, _, relevance, _ = walk(network(lambda x, y: L.Multiply()([x, y]), SHAPE, SHAPE), samples(SHAPE, SHAPE))
    for got in maps:
        np.testing.assert_array_equal(got.reshape(2, -1), relevance / 2)


def test_a_divisor_gets_nothing():
    maps, _, relevance, _ = walk(network(lambda x, y: x / y, SHAPE, SHAPE), samples(SHAPE, SHAPE))
    np.testing.assert_array_equal(maps[0].reshape(2, -1), relevance)
    np.testing.assert_array_equal(maps[1], 0)


def test_of_a_product_of_matrices_each_gets_half_of_the_proportion():
    (x, y), shapes = samples((3, 4), (4, 5)), ((3, 4), (4, 5))
    maps, _, relevance, _ = walk(network(ops.matmul, *shapes), [x, y])
    quotients = relevance.reshape(2, 3, 5) / stab(x @ y)
    np.testing.assert_allclose(maps[0], x * (quotients @ y.transpose(0, 2, 1)) / 2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(maps[1], y * (x.transpose(0, 2, 1) @ quotients) / 2, rtol=1e-9, atol=1e-9)


def test_softmax_scores_gate_a_product_of_matrices():
    x, y = samples((3, 4), (4, 5))
    maps, _, relevance, _ = walk(network(lambda x, y: ops.matmul(ops.softmax(x), y), (3, 4), (4, 5)), [x, y])
    scores = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    quotients = relevance.reshape(2, 3, 5) / stab(scores @ y)
    np.testing.assert_array_equal(maps[0], 0)
    np.testing.assert_allclose(maps[1], y * (scores.transpose(0, 2, 1) @ quotients), rtol=1e-9, atol=1e-9)


def test_attention_is_linear_in_the_value():
    layer = L.MultiHeadAttention(2, 3)
    shapes = ((4, 5), (6, 5), (6, 5))
    model = network(lambda query, value, key: layer(query, value, key), *shapes)
    images = samples(*shapes)
    maps, absorbed, relevance, outputs = walk(model, images)
    for sample in range(2):
        query, value, key = (array[sample : sample + 1] for array in images)
        units = np.concatenate([np.zeros((1, 6, 5)), np.eye(30).reshape(30, 6, 5)])
        answers = model([np.repeat(query, 31, 0), units, np.repeat(key, 31, 0)]).numpy()
        quotient = relevance[sample] / stab(outputs[sample])
        expected = value.ravel() * ((answers[1:] - answers[0]) @ quotient)
        np.testing.assert_allclose(maps[1][sample].ravel(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(absorbed[sample], relevance[sample].sum() - expected.sum(), rtol=1e-7)
    np.testing.assert_array_equal(maps[0], 0)
    np.testing.assert_array_equal(maps[2], 0)


def test_a_gated_linear_unit_gives_to_the_half_that_is_gated():
    for build in (lambda x: ops.glu(x), lambda x: L.Activation("glu")(x)):
        (maps,), _, relevance, _ = walk(network(build, (6,)), samples((6,)))
        np.testing.assert_array_equal(maps, np.concatenate([relevance, np.zeros((2, 3))], axis=-1))


REFUSED = {
    "softmax inside": (lambda x: L.Softmax()(x), r"`softmax\w*` \(Softmax\) has no rule"),
    "softmax activation": (lambda x: L.Activation("softmax")(x), "applies `softmax`, which is not known to act on ev"),
    "lambda": (lambda x: L.Lambda(lambda value: value * 2)(x), r"\(Lambda\) has no rule"),
    "glu axis": (lambda x: ops.glu(x, axis=1), "splits another axis than the last"),
    "renorm": (lambda x: L.BatchNormalization(renorm=True)(x), "uses renorm, which is not handled"),
    "dot": (lambda x: L.Dot(axes=-1, normalize=True)([x, x]), "normalises its factors, which is not handled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_rule_are_refused_and_can_fall_back(name):
    build, text = REFUSED[name]
    inputs = keras.Input((4, 2), dtype="float64", name="pixels")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(build(inputs))))
    with pytest.raises(UnsupportedOperation, match=text) as caught:
        LRP(model)
    assert "lrp: `" in str(caught.value)
    assert "fallback='gradient'" in str(caught.value)
    explainer = LRP(model, fallback="gradient")
    assert len(explainer.fallbacks) == 1
    account = explainer.conservation(samples((4, 2))[0])
    np.testing.assert_allclose(account.relevance + account.absorbed, account.logits, rtol=1e-4, atol=1e-4)


def test_the_fallback_divides_in_proportion_to_input_times_gradient():
    model = keras.Sequential([keras.Input((4,)), L.Softmax(name="scores"), L.Dense(3, use_bias=False)])
    (image,) = samples((4,))
    scores = np.exp(image) / np.exp(image).sum(axis=1, keepdims=True)
    explainer = LRP(model, "epsilon", fallback="gradient")
    assert explainer.fallbacks == ("scores",)
    weights = model.layers[-1].kernel.numpy()
    relevance = scores * weights[:, 1]  # of the scores, for the second logit
    expected = image * (relevance - scores * relevance.sum(axis=1, keepdims=True))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(explainer(image, [1, 1]), expected, rtol=1e-3, atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Doubled(L.Layer):
    def call(self, inputs):
        return tf.concat([inputs, inputs], axis=-1)


def test_a_rule_of_ones_own_is_used():
    if Doubled not in RULES:
        RULES.register(Doubled, Rule(lambda step, relevance: (tf.add_n(tf.split(relevance, 2, axis=-1)),)))
    (maps,), _, relevance, _ = walk(network(lambda x: Doubled()(x), (3,)), samples((3,)))
    np.testing.assert_allclose(maps, relevance[:, :3] + relevance[:, 3:], rtol=1e-12)
