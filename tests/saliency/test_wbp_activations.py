"""The secants of all activations against functions written in NumPy, and their limits at 0 against Taylor series."""

from __future__ import annotations

from math import erf, log, sqrt

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.graph import OperationGraph
from tfcausal.saliency.wbp import weight_back_propagation

pytestmark = pytest.mark.usefixtures("float64")
A, L, ops = keras.activations, keras.layers, keras.ops
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def normal_distribution(x):
    return 0.5 * (1 + np.vectorize(erf)(x * float(np.float32(sqrt(0.5)))))  # TensorFlow's constant


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def sparse_plus(x):
    return np.where(x <= -1, 0, np.where(x < 1, 0.25 * (x + 1) ** 2, x))


NAMED = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.2) * x),  # TensorFlow keeps the slope in float32
    "elu": elu,
    "selu": lambda x: SELU_SCALE * elu(x, SELU_ALPHA),
    "celu": elu,
    "exponential": np.exp,
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "sparse_sigmoid": lambda x: np.clip(0.5 * (x + 1), 0, 1),
    "log_sigmoid": lambda x: -softplus(-x),
    "softplus": softplus,
    "sparse_plus": sparse_plus,
    "squareplus": lambda x: 0.5 * (x + np.sqrt(x * x + 4)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh": np.tanh,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": lambda x: x * normal_distribution(x),
    "mish": lambda x: x * np.tanh(softplus(x)),
}
OPTIONS = {
    "relu layer": (lambda x: L.ReLU()(x), NAMED["relu"]),
    "relu with a maximum": (lambda x: L.ReLU(1.5)(x), lambda x: np.clip(x, 0, 1.5)),
    "relu with a slope": (lambda x: L.ReLU(negative_slope=0.3)(x), lambda x: np.where(x > 0, x, np.float32(0.3) * x)),
    "relu with a threshold": (lambda x: L.ReLU(threshold=0.7)(x), lambda x: np.where(x >= 0.7, x, 0)),
    "relu with everything": (
        lambda x: L.ReLU(2.0, negative_slope=0.3, threshold=0.7)(x),
        lambda x: np.where(x >= 0.7, np.minimum(x, 2), 0.3 * (x - 0.7)),
    ),
    "leaky relu layer": (lambda x: L.LeakyReLU(0.1)(x), lambda x: np.where(x > 0, x, np.float32(0.1) * x)),
    "elu layer": (lambda x: L.ELU(0.7)(x), lambda x: elu(x, 0.7)),
    "fused layer": (
        lambda x: L.Dense(9, activation=L.ReLU(1.5), kernel_initializer="identity")(x),
        lambda x: np.clip(x, 0, 1.5),
    ),
    "leaky relu operation": (lambda x: ops.leaky_relu(x, 0.1), lambda x: np.where(x > 0, x, np.float32(0.1) * x)),
    "relu operation with options": (
        lambda x: A.relu(x, negative_slope=0.2, max_value=2.0, threshold=0.5),
        lambda x: np.where(x >= 0.5, np.minimum(x, 2), 0.2 * (x - 0.5)),
    ),
    "celu operation": (lambda x: ops.celu(x, 0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5))),
    "elu operation": (lambda x: ops.elu(x, 0.5), lambda x: elu(x, 0.5)),
    "gelu by tanh": (
        lambda x: ops.gelu(x, approximate=True),
        lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + float(np.float32(0.044715)) * x**3))),
    ),
    "gelu by erf": (lambda x: ops.gelu(x, approximate=False), NAMED["gelu"]),
    "threshold": (lambda x: ops.threshold(x, -0.4, 3.0), lambda x: np.where(x > -0.4, x, 3.0)),
    "hard shrink operation": (lambda x: ops.hard_shrink(x, 0.2), lambda x: np.where(np.abs(x) > 0.2, x, 0)),
    "squareplus operation": (lambda x: ops.squareplus(x, b=1), lambda x: 0.5 * (x + np.sqrt(x * x + 1))),
    "clip": (lambda x: ops.clip(x, 0.3, 1.1), lambda x: np.clip(x, 0.3, 1.1)),
    "maximum of a constant": (lambda x: ops.maximum(x, 0.5), lambda x: np.maximum(x, 0.5)),
    "minimum of a constant": (lambda x: ops.minimum(0.5, x), lambda x: np.minimum(x, 0.5)),
    "maximum of an array": (
        lambda x: ops.maximum(x, np.linspace(-1, 1, 9)),
        lambda x: np.maximum(x, np.linspace(-1, 1, 9)),
    ),
    "square": (ops.square, np.square),
    "power": (lambda x: x**3, lambda x: x**3),
    "absolute": (ops.abs, np.abs),
    **{
        name: (getattr(ops, name), getattr(np, name))
        for name in ("exp", "expm1", "sin", "cos", "sinh", "cosh", "arctan", "arcsinh")
    },
    "log1p": (lambda x: ops.log1p(x + 5), lambda x: np.log1p(x + 5)),
    "erf": (ops.erf, np.vectorize(erf)),
}
VALUES = np.array([[-3.7, -1.2, -0.45, -0.11, 0.13, 0.46, 0.9, 1.7, 7.3], [0.01, -0.01, 3, 2, 1.01, -1.01, 0.6, 0, 40]])


def secant_twin(function, at_zero_slope=0.0):
    def twin(image, place):
        constant = function(np.zeros(image.size))
        with np.errstate(invalid="ignore"):
            slope = (function(image.ravel()) - constant) / image.ravel()
        return np.diag(np.where(image.ravel() == 0, at_zero_slope, slope)), constant

    return twin


def away_from_zero(images):
    return np.where(images == 0, 0.02, images)


NOT_ON_SYMBOLS = ("linear", "hard_silu", "hard_swish", "mish")  # Keras computes these with TensorFlow functions
CALLS = [
    (name, kind)
    for name in NAMED
    for kind in ("activation", "operation", *(("dense", "convolution") if name in ("relu", "gelu", "softplus") else ()))
    if not (kind == "operation" and name in NOT_ON_SYMBOLS)
]


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_built_in_activations_are_secants(frozen, name, kind):
    function = getattr(A, name)
    eye = {"kernel_initializer": "identity"}
    builds = {
        "activation": L.Activation(name),
        "dense": L.Dense(9, activation=name, **eye),
        "convolution": lambda x: L.Conv1D(1, 1, activation=name, kernel_initializer="ones")(L.Reshape((9, 1))(x)),
        "operation": function,
    }
    inputs = keras.Input((9,))
    model = keras.Model(inputs, L.Flatten()(builds[kind](inputs)))  # a sigmoid at the end would be split off
    frozen.assert_follows(model, away_from_zero(VALUES), secant_twin(NAMED[name]))


@pytest.mark.parametrize("name", ["hard_silu", "silu", "relu6", "selu", "softplus", "relu", "log_sigmoid", "tanh"])
def test_the_operations_of_keras_ops_have_the_same_secants(frozen, name):
    inputs = keras.Input((9,))
    model = keras.Model(inputs, L.Flatten()(getattr(ops, name)(inputs)))
    frozen.assert_follows(model, away_from_zero(VALUES), secant_twin(NAMED[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_activations_with_options_are_secants(frozen, name):
    build, function = OPTIONS[name]
    inputs = keras.Input((9,))
    model = keras.Model(inputs, build(inputs))
    shift = 5 if name == "log1p" else 0  # x + 5 adds its constant in an operation of its own
    if shift:
        values = away_from_zero(VALUES)

        def twin(image, place):
            inner = image + 5
            slope = np.log1p(inner) / inner
            return np.diag(slope), 5 * slope

        frozen.assert_follows(model, values, twin)
    else:
        frozen.assert_follows(model, away_from_zero(VALUES), secant_twin(function))


def test_parametric_relu(frozen):
    inputs = keras.Input((9,))
    layer = L.PReLU()
    model = keras.Model(inputs, layer(inputs))
    slopes = np.linspace(-0.5, 1.5, 9)
    layer.set_weights([slopes])
    frozen.assert_follows(
        model,
        away_from_zero(VALUES),
        lambda image, place: (np.diag(np.where(image > 0, 1, slopes)), np.zeros(9)),
    )


@pytest.mark.parametrize("build", [lambda x: L.Activation("glu")(x), ops.glu, lambda x: ops.glu(x, axis=1)])
def test_gated_linear_unit_counts_its_gate_as_a_constant(frozen, build):
    inputs = keras.Input((8,))
    images = np.random.default_rng(0).normal(size=(3, 8))
    frozen.assert_follows(
        keras.Model(inputs, build(inputs)),
        images,
        lambda image, place: (np.hstack([np.diag(sigmoid(image[4:])), np.zeros((4, 4))]), np.zeros(4)),
    )


# Coefficients f(0), f'(0), f''(0)/2, f'''(0)/6 by hand.
SERIES = {
    "sigmoid": (0.5, 1 / 4, 0, -1 / 48),
    "softplus": (log(2), 1 / 2, 1 / 8, 0),
    "log_sigmoid": (-log(2), 1 / 2, -1 / 8, 0),
    "tanh": (0, 1, 0, -1 / 3),
    "exponential": (1, 1, 1 / 2, 1 / 6),
    "squareplus": (1, 1 / 2, 1 / 8, 0),
    "silu": (0, 1 / 2, 1 / 4, 0),
    "gelu": (0, 1 / 2, 1 / sqrt(2 * np.pi), 0),
    "mish": (0, 3 / 5, 8 / 25, -2 / 125),
    "tanh_shrink": (0, 0, 0, 1 / 3),
    "sparse_plus": (1 / 4, 1 / 2, 1 / 4, 0),
    "hard_sigmoid": (1 / 2, 1 / 6, 0, 0),
    "hard_silu": (0, 1 / 2, 1 / 6, 0),
}
TINY = [0.0, 1e-300, 1e-38, 1e-12, 1e-8, 1e-6, 1.5e-5, 1.7e-5, 1.8e-5, 2e-5, 1e-4, 1e-3]


def weights_of(build, values, dtype):
    """Secants as the map itself sees them: what one unit of the logit is worth at the input."""
    keras.config.set_dtype_policy(dtype)
    inputs = keras.Input((1,))
    graph = OperationGraph(keras.Model(inputs, L.Flatten()(build(inputs))))
    values = tf.constant(np.reshape(values, (-1, 1)), dtype)
    with tf.GradientTape() as tape:
        tape.watch(values)
        activations = graph.run(values)
        # The map is the weight times the input, which is 1 here: the first layer multiplies it by the value.
        classes = tf.zeros(len(values), tf.int32)
        maps, bias = weight_back_propagation(graph, activations, classes, with_bias=True)
    gradient = tape.gradient(maps[0], values)
    return maps[0].numpy().ravel(), bias.numpy(), gradient.numpy().ravel(), activations[graph.logits].numpy().ravel()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 6e-5)])
@pytest.mark.parametrize("name", SERIES)
def test_secants_of_tiny_values_follow_the_series(frozen, name, dtype, tolerance):
    keras.config.set_dtype_policy(dtype)
    tiny = np.array([*TINY, *(-value for value in TINY), 0.0141, 0.0142, 0.0143, -0.0141, 0.0005, -0.005])
    tiny = tiny if dtype == "float32" else tiny[:-6]
    inputs = keras.Input((len(tiny),))
    model = keras.Model(inputs, L.Flatten()(L.Activation(name)(inputs)))
    values = tiny.astype(dtype)[None]
    weights, offsets, _ = frozen.walk(model, values, np.ones((1, len(tiny)), dtype))
    zero, first, second, third = SERIES[name]
    expected = first + second * tiny + third * tiny**2
    # The fourth order is below 0.2 x^3.
    np.testing.assert_allclose(weights[0], expected, rtol=0, atol=tolerance + 0.2 * np.abs(tiny).max() ** 3)
    np.testing.assert_allclose(offsets, zero * len(tiny), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("build", "function"),
    [
        (lambda x: ops.clip(x, -0.5, 1e-6), lambda x: np.clip(x, -0.5, 1e-6)),
        (lambda x: ops.clip(x, 1e-6, 0.5), lambda x: np.clip(x, 1e-6, 0.5)),
        (lambda x: ops.threshold(x, 0.0, 2.0), lambda x: np.where(x > 0, x, 2.0)),
        (lambda x: ops.hard_shrink(x, 1e-6), lambda x: np.where(np.abs(x) > 1e-6, x, 0)),
    ],
)
def test_kinks_and_jumps_near_zero_are_not_taken_for_slopes(frozen, build, function, dtype):
    keras.config.set_dtype_policy(dtype)
    values = np.array([[-1e-5, -2e-6, 2e-6, 5e-6, 1e-5, 3e-7]]).astype(dtype)
    inputs = keras.Input((6,))
    weights, offsets, _ = frozen.walk(keras.Model(inputs, build(inputs)), values, np.ones((1, 6), dtype))
    constant = function(np.zeros(1))[0]
    np.testing.assert_allclose(offsets, 6 * constant, rtol=1e-6)
    rounding = 1e-6 * max(constant, 1e-6) if dtype == "float32" else 1e-14
    np.testing.assert_allclose(
        weights * values, function(values.astype("float64")) - constant, rtol=1e-5, atol=rounding
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in NAMED if name != "exponential"])
def test_large_values_and_zero_give_finite_maps_and_gradients(name, dtype):
    values = np.array([1e4, -1e4, 88.0, -88.0, 0.0, 1e-30, -1e-7])
    maps, bias, gradient, logits = weights_of(L.Activation(name), values, dtype)
    for result in (maps, bias, gradient):
        assert np.isfinite(result).all()
    assert (np.abs(maps + bias - logits) <= 1e-6 + 1e-7 * np.abs(values)).all()


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "tanh", "selu", "mish", "gelu", "softsign"])
def test_gradients_of_maps_go_on_through_the_secant(name):
    """The map of one activation is f(x) - f(0): its derivative is the activation's own."""
    values = np.array([-4.0, -0.3, -1e-5, -1e-7, 0.0, 1e-9, 1e-5, 2e-5, 0.3, 4.0])
    _, _, gradient, _ = weights_of(L.Activation(name), values, "float64")
    step = 1e-6
    numeric = (NAMED[name](values + step) - NAMED[name](values - step)) / (2 * step)
    if name == "selu":  # a kink at 0
        numeric = np.where(np.abs(values) < 1e-6, gradient, numeric)
    atol = 2e-6 if name == "softsign" else 1e-7  # whose second derivative jumps at 0
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=atol)


@pytest.mark.parametrize("name", ["silu", "gelu", "mish", "tanh", "sigmoid", "softplus", "elu"])
def test_float32_maps_are_accurate(name):
    rng = np.random.default_rng(3)
    images, maps = rng.normal(size=(4, 8, 8, 3)), {}
    weights = None
    for dtype in ("float64", "float32"):
        keras.config.set_dtype_policy(dtype)
        x = inputs = keras.Input((8, 8, 3))
        for filters in (8, 8):
            x = L.Conv2D(filters, 3, padding="same", activation=name)(x)
        model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        graph = OperationGraph(model)
        activations = graph.run(tf.constant(images, dtype))
        (result,), _ = weight_back_propagation(graph, activations, tf.constant([0, 1, 2, 0]))
        maps[dtype] = result.numpy()
    error = np.abs(maps["float32"] - maps["float64"]).max() / np.abs(maps["float64"]).max()
    assert error < 1e-5
