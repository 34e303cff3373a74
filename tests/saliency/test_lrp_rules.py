"""Every LRP rule in float64 against a plain matrix: the weights are the layer's Jacobian, the formulas are the papers'.

The matrix W (inputs, outputs) is measured on the layer's own forward pass, column by column. A layer is taken once with
inputs of both signs, and once behind a ReLU, where the rules know that there are no negative ones.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.graph import OperationGraph
from tfcausal.saliency.composites import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    LinearStep,
    WSquare,
    ZBox,
    ZPlus,
    redistribute,
)
from tfcausal.saliency.linear_maps import LinearStage
from tfcausal.saliency.lrp_plan import Plan
from tfcausal.saliency.propagation import propagate

L = keras.layers
EPSILON = 1e-6
LOW, HIGH = np.array([-2.5, -3.0]), np.array([2.0, 3.5])


@pytest.fixture(autouse=True)
def _float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def stab(z, epsilon=EPSILON):
    return z + epsilon * np.where(z < 0, -1.0, 1.0)


def positive(x):
    return np.maximum(x, 0)


def negative(x):
    return np.minimum(x, 0)


def epsilon_twin(a, W, b, R, epsilon=EPSILON):
    z = a @ W + b
    return (a[:, None] * W / stab(z, epsilon) * R).sum(1)


def alpha_beta_twin(a, W, b, R, alpha, beta):
    activating = positive(a)[:, None] * positive(W) + negative(a)[:, None] * negative(W)
    inhibiting = positive(a)[:, None] * negative(W) + negative(a)[:, None] * positive(W)
    up = activating / stab(activating.sum(0) + positive(b))
    down = inhibiting / stab(inhibiting.sum(0) + negative(b))
    return ((alpha * up - beta * down) * R).sum(1)


def gamma_twin(a, W, b, R, gamma):
    at_positive, at_negative = positive(a)[:, None], negative(a)[:, None]
    z = a @ W + b
    above = at_positive * (W + gamma * positive(W)) + at_negative * (W + gamma * negative(W))
    below = at_positive * (W + gamma * negative(W)) + at_negative * (W + gamma * positive(W))
    above = above / stab(above.sum(0) + b + gamma * positive(b))
    below = below / stab(below.sum(0) + b + gamma * negative(b))
    return (np.where(z >= 0, above, below) * R).sum(1)


def box_twin(a, W, b, R, low, high):
    terms = a[:, None] * W - low[:, None] * positive(W) - high[:, None] * negative(W)
    return (terms / stab(terms.sum(0)) * R).sum(1)


def square_twin(a, W, b, R):
    return (W**2 / stab((W**2).sum(0)) * R).sum(1)


def flat_twin(a, W, b, R):
    seen = (W != 0).astype(float)
    return (seen / stab(seen.sum(0)) * R).sum(1)


RULES = {
    "epsilon": (Epsilon(), epsilon_twin),
    "epsilon 0.3": (Epsilon(0.3), functools.partial(epsilon_twin, epsilon=0.3)),
    "gamma": (Gamma(), functools.partial(gamma_twin, gamma=0.25)),
    "gamma 3": (Gamma(3), functools.partial(gamma_twin, gamma=3)),
    "alpha-beta 1/0": (AlphaBeta(1, 0), functools.partial(alpha_beta_twin, alpha=1, beta=0)),
    "alpha-beta 2/1": (AlphaBeta(2, 1), functools.partial(alpha_beta_twin, alpha=2, beta=1)),
    "alpha-beta 1.5/0.5": (AlphaBeta(1.5, 0.5), functools.partial(alpha_beta_twin, alpha=1.5, beta=0.5)),
    "z-plus": (ZPlus(), functools.partial(alpha_beta_twin, alpha=1, beta=0)),
    "w-square": (WSquare(), square_twin),
    "flat": (Flat(), flat_twin),
}
IMAGE = (5, 6, 2)
LAYERS = {
    "dense": ((7,), lambda use_bias: L.Dense(4, use_bias=use_bias)),
    "dense on pixels": ((2, 3, 2), lambda use_bias: L.Dense(3, use_bias=use_bias)),
    "einsum": ((3, 2), lambda use_bias: L.EinsumDense("nij,jk->nik", (3, 4), bias_axes="k" if use_bias else None)),
    "conv1d causal": ((8, 2), lambda use_bias: L.Conv1D(3, 3, padding="causal", dilation_rate=2, use_bias=use_bias)),
    "conv2d same": (IMAGE, lambda use_bias: L.Conv2D(3, 3, padding="same", use_bias=use_bias)),
    "conv2d strided": (IMAGE, lambda use_bias: L.Conv2D(3, (3, 2), strides=(2, 1), padding="same", use_bias=use_bias)),
    "conv2d valid": (IMAGE, lambda use_bias: L.Conv2D(3, 2, strides=2, use_bias=use_bias)),
    "conv2d dilated": (IMAGE, lambda use_bias: L.Conv2D(2, 2, dilation_rate=(2, 3), padding="same", use_bias=use_bias)),
    "conv3d": ((3, 3, 3, 2), lambda use_bias: L.Conv3D(2, 2, padding="same", use_bias=use_bias)),
    "transposed same": ((3, 3, 2), lambda use_bias: L.Conv2DTranspose(3, 3, 2, padding="same", use_bias=use_bias)),
    "transposed valid": ((3, 2, 2), lambda use_bias: L.Conv2DTranspose(2, 2, strides=(2, 1), use_bias=use_bias)),
    "transposed 1d": ((4, 2), lambda use_bias: L.Conv1DTranspose(3, 3, strides=2, use_bias=use_bias)),
    "depthwise": (IMAGE, lambda use_bias: L.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, use_bias=use_bias)),
    "depthwise dilated": (IMAGE, lambda use_bias: L.DepthwiseConv2D(2, dilation_rate=2, use_bias=use_bias)),
}


def fill(model: keras.Model, seed: int = 1) -> keras.Model:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        is_scale = "variance" in weight.path or "gamma" in weight.path
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if is_scale else rng.normal(size=weight.shape))
    return model


def network(build, shape, behind_relu: bool = False) -> keras.Model:
    inputs = keras.Input(shape, dtype="float64")
    x = build(L.ReLU()(inputs) if behind_relu else inputs)
    return fill(keras.Model(inputs, x if len(x.shape) == 2 else L.Flatten()(x)))


def matrix_and_bias(layer, shape) -> tuple[np.ndarray, np.ndarray]:
    """W (inputs, outputs) and b (outputs,) of a layer, from what it gives for zeros and for every unit vector."""
    size = int(np.prod(shape))
    bias = layer(np.zeros((1, *shape))).numpy().ravel()
    return layer(np.eye(size).reshape(size, *shape)).numpy().reshape(size, -1) - bias, bias


def walk(model: keras.Model, images: np.ndarray, relevance: np.ndarray, rule, **bounds):
    graph = OperationGraph(model)
    activations = graph.run(tf.constant(images))
    plan = Plan(graph, rule if isinstance(rule, Composite) else Composite(rule, rule), **bounds)
    (maps,), absorbed = propagate(graph, activations, tf.constant(relevance), plan.on(activations), with_offsets=True)
    return maps.numpy(), absorbed.numpy()


def sample(shape, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.uniform(-2, 2, (2, *shape)), rng.normal(size=(2, outputs))


def assert_equals_twin(model, layer, shape, rule, twin, behind_relu=False, **bounds):
    W, b = matrix_and_bias(layer, shape)
    images, relevance = sample(shape, len(b))
    maps, absorbed = walk(model, images, relevance, rule, **bounds)
    for image, R, got, lost in zip(images, relevance, maps, absorbed, strict=True):
        a = image.ravel()
        expected = twin(positive(a) if behind_relu else a, W, b, R)
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(got.ravel(), expected, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(lost, R.sum() - expected.sum(), rtol=0, atol=1e-9 * scale * len(a))


@pytest.mark.parametrize("behind_relu", [False, True], ids=["any sign", "behind relu"])
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_rules_equal_their_matrix_form(name, use_bias, behind_relu):
    shape, make = LAYERS[name]
    layer = make(use_bias)
    model = network(layer, shape, behind_relu)
    for rule, twin in RULES.values():
        assert_equals_twin(model, layer, shape, rule, twin, behind_relu)


@pytest.mark.parametrize("filters", [2, 4])
def test_grouped_convolutions_equal_their_matrix_form(filters):
    layer = L.Conv2D(filters, 3, groups=2)
    model = network(layer, (3, 4, 2))
    for rule in ("z-plus", "gamma", "flat"):
        assert_equals_twin(model, layer, (3, 4, 2), *RULES[rule])


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", [name for name, (shape, _) in LAYERS.items() if shape[-1] == 2])
def test_box_equals_its_matrix_form_with_bounds_for_every_channel(name, use_bias):
    shape, make = LAYERS[name]
    layer = make(use_bias)
    low, high = (np.broadcast_to(bound, shape).ravel() for bound in (LOW, HIGH))
    twin = functools.partial(box_twin, low=low, high=high)
    assert_equals_twin(network(layer, shape), layer, shape, ZBox(LOW, HIGH), twin)
    assert_equals_twin(network(layer, shape), layer, shape, ZBox(), twin, low=LOW, high=HIGH)


@pytest.mark.parametrize("name", [*RULES, "box"])
def test_a_separable_convolution_is_two_layers(name):
    layer = L.SeparableConv2D(3, 3, strides=2, padding="same", depth_multiplier=2)
    model = network(layer, IMAGE)
    layer.bias.assign([0.5, -0.4, 0.3])
    depthwise = L.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, use_bias=False)
    pointwise = L.Conv2D(3, 1)
    depthwise.build((None, *IMAGE))
    pointwise.build((None, 3, 3, 4))
    depthwise.set_weights([layer.depthwise_kernel])
    pointwise.set_weights([layer.pointwise_kernel, layer.bias])
    (first, _), (second, b) = matrix_and_bias(depthwise, IMAGE), matrix_and_bias(pointwise, (3, 3, 4))
    low, high = (np.broadcast_to(bound, IMAGE).ravel() for bound in (LOW, HIGH))
    middle_low = low @ positive(first) + high @ negative(first)
    middle_high = high @ positive(first) + low @ negative(first)
    if name == "box":
        rule, twins = ZBox(LOW, HIGH), [box_twin, box_twin]
        bounds = [{"low": low, "high": high}, {"low": middle_low, "high": middle_high}]
    else:
        rule, twins, bounds = RULES[name][0], [RULES[name][1]] * 2, [{}, {}]
    images, relevance = sample(IMAGE, len(b))
    maps, absorbed = walk(model, images, relevance, rule)
    for image, R, got, lost in zip(images, relevance, maps, absorbed, strict=True):
        middle = twins[1](image.ravel() @ first, second, b, R, **bounds[1])
        expected = twins[0](image.ravel(), first, np.zeros(first.shape[1]), middle, **bounds[0])
        np.testing.assert_allclose(got.ravel(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(lost, R.sum() - expected.sum(), rtol=0, atol=1e-8)


MERGED = {
    "conv2d": (IMAGE, lambda: L.Conv2D(3, 3, strides=2, padding="same")),
    "transposed": ((3, 3, 2), lambda: L.Conv2DTranspose(3, 2, strides=2, use_bias=False)),
    "depthwise": (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2)),
    "dense": ((6,), lambda: L.Dense(4, use_bias=False)),
}


@pytest.mark.parametrize("rule", [name for name in RULES if name != "gamma 3"])
@pytest.mark.parametrize("name", MERGED)
def test_a_batch_normalisation_after_a_layer_is_part_of_its_matrix(name, rule):
    shape, make = MERGED[name]
    both = keras.Sequential([make(), L.BatchNormalization(epsilon=0.01)])
    model = network(both, shape)
    graph = OperationGraph(model)
    assert [how.batch_norm for how in Plan(graph, Composite()).layers.values()] == [both.layers[1]]
    assert_equals_twin(model, both, shape, *RULES[rule])


def test_a_batch_normalisation_after_a_separable_convolution_scales_the_second_part():
    separable, norm = L.SeparableConv2D(3, 2, use_bias=False), L.BatchNormalization(epsilon=0.01)
    model = network(lambda x: norm(separable(x)), IMAGE)
    depthwise = L.DepthwiseConv2D(2, use_bias=False)
    depthwise.build((None, *IMAGE))
    depthwise.set_weights([separable.depthwise_kernel])
    second = keras.Sequential([keras.Input((4, 5, 2)), L.Conv2D(3, 1, use_bias=False), norm])
    second.layers[0].set_weights([separable.pointwise_kernel])
    (W1, b1), (W2, b2) = matrix_and_bias(depthwise, IMAGE), matrix_and_bias(second, (4, 5, 2))
    images, relevance = sample(IMAGE, len(b2))
    maps, _ = walk(model, images, relevance, ZPlus())
    twin = RULES["z-plus"][1]
    for image, R, got in zip(images, relevance, maps, strict=True):
        expected = twin(image.ravel(), W1, b1, twin(image.ravel() @ W1, W2, b2, R))
        np.testing.assert_allclose(got.ravel(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", ["flat", "w-square"])
def test_zeros_of_a_padding_layer_have_no_share(rule):
    conv = L.Conv2D(3, 3, strides=2)
    padding = L.ZeroPadding2D(((1, 0), (2, 1)))
    both = keras.Sequential([padding, conv])
    assert_equals_twin(network(both, IMAGE), both, IMAGE, *RULES[rule])
    scaled = keras.Sequential([L.Identity(), padding, L.Dropout(0.5), conv])
    assert_equals_twin(network(scaled, IMAGE), scaled, IMAGE, *RULES[rule])
    maps, absorbed = walk(network(both, IMAGE), *sample(IMAGE, 24), RULES[rule][0])
    np.testing.assert_allclose(absorbed, 0, atol=1e-4)
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), sample(IMAGE, 24)[1].sum(axis=1), atol=1e-4)


def test_bounds_of_box_are_those_of_the_preprocessed_image():
    conv, padding = L.Conv2D(3, 3, padding="same"), L.ZeroPadding2D(1)
    factors = np.array([-0.5, 2.0])
    model = network(
        lambda x: conv(padding(L.Rescaling(list(factors), [0.25, -0.5])(keras.ops.flip(x, axis=-1) / 2.0))), IMAGE
    )
    both = keras.Sequential([padding, conv])
    W, b = matrix_and_bias(both, IMAGE)
    ends = [bound[::-1] / 2 * factors + [0.25, -0.5] for bound in (LOW, HIGH)]
    low, high = (np.broadcast_to(bound, IMAGE).ravel() for bound in (np.minimum(*ends), np.maximum(*ends)))
    images, relevance = sample(IMAGE, len(b))
    maps, _ = walk(model, images, relevance, Composite(first=ZBox()), low=LOW, high=HIGH)
    for image, R, got in zip(images, relevance, maps, strict=True):
        pixels = image[..., ::-1] / 2 * factors + [0.25, -0.5]
        expected = box_twin(pixels.ravel(), W, b, R, low, high).reshape(IMAGE)[..., ::-1]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_a_denominator_of_zero_counts_as_positive_and_passes_nothing_without_a_stabiliser():
    stage = LinearStage(tf.constant([[1.0], [1.0]], tf.float64), None, lambda x, kernel: x @ kernel, None)
    step = LinearStep(stage, tf.constant([[2.0, -2.0]], tf.float64), tf.constant([[0.0]], tf.float64))
    relevance = tf.constant([[3.0]], tf.float64)
    maps, absorbed = redistribute(Epsilon(0.5), step, relevance)
    assert maps.numpy().tolist() == [[12.0, -12.0]]
    assert absorbed.numpy().tolist() == [3.0]
    maps, absorbed = redistribute(Epsilon(0.0), step, relevance)
    assert maps.numpy().tolist() == [[0.0, 0.0]]
    assert absorbed.numpy().tolist() == [3.0]


def test_gamma_zero_is_epsilon_and_a_large_gamma_is_z_plus():
    layer = L.Dense(6)
    model = network(layer, (9,))
    images, relevance = sample((9,), 6)
    outputs = model.predict(images, verbose=0)
    relevance = np.where(outputs > 0, relevance, 0)
    assert (relevance != 0).any()
    epsilon, z_plus = (walk(model, images, relevance, rule)[0] for rule in (Epsilon(), ZPlus()))
    np.testing.assert_allclose(walk(model, images, relevance, Gamma(0))[0], epsilon, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(walk(model, images, relevance, Gamma(1e7))[0], z_plus, rtol=0, atol=1e-4)
    assert np.abs(epsilon - z_plus).max() > 0.1


BAD_RULES = {
    "epsilon": (lambda: Epsilon(-0.1), "`epsilon`: expected a number of at least 0; received -0.1"),
    "epsilon text": (lambda: Epsilon("1"), "`epsilon`: expected a number of at least 0; received '1'"),
    "gamma": (lambda: Gamma(float("nan")), "`gamma`: expected a number of at least 0; received nan"),
    "alpha": (lambda: AlphaBeta(0.5, -0.5), "`alpha`: expected a number of at least 1; received 0.5"),
    "difference": (lambda: AlphaBeta(2, 0), "expected alpha - beta = 1; received alpha=2 and beta=0"),
    "class": (lambda: Composite(dense=Epsilon), r"`dense`: expected a rule such as Epsilon\(\)"),
    "first": (
        lambda: Composite(first="flat"),
        r"`first`: expected a rule such as Epsilon\(\) or ZPlus\(\); received 'f",
    ),
    "name": (lambda: Composite(names={"conv1": 3}), r"`names\['conv1'\]`: expected a rule .* received 3"),
    "types": (lambda: Composite(types=[L.Dense]), "`types`: expected a dictionary of rules"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_bad_rules_are_refused(name):
    make, text = BAD_RULES[name]
    with pytest.raises(InvalidArgument, match=text):
        make()
