"""The WBP rules of activations: the secant from the value at 0 to the value at the input.

For ``y = f(x)``, elementwise, the frozen map is ``B = (f(x) - f(0)) / x`` with the constant ``f(0)``; at ``x = 0`` it
is the slope there. A ReLU keeps the gate that the paper gives it, and an activation that is its input times a gate
(SiLU, GELU, mish) has that gate for a secant.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import keras
import tensorflow as tf

from tfcausal.operations import Operation
from tfcausal.saliency.propagation import Rule, Step, inner_product, vector_jacobian_products
from tfcausal.saliency.refusals import refuse_across_samples, refuse_other_tensors

A, ops = keras.activations, keras.ops


def no_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    """The contribution of a step that adds no constant, (N,)."""
    return tf.zeros(tf.shape(cotangent)[:1], cotangent.dtype)


def _at_zero(step: Step) -> tf.Tensor:
    value = step.inputs[0]
    return step.operation.compute([tf.zeros([1] * value.shape.rank, value.dtype)])[0]


def secant(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    """The cotangent times the secant of an elementwise operation.

    The difference quotient of a tiny input is rounding error. Where the slope halfway to it, off by ``x^2 f''' / 24``
    only, explains the difference up to rounding, it is used instead; across a kink or a jump it does not.
    """
    value = step.inputs[0]
    epsilon = 2.0**-52 if value.dtype == tf.float64 else 2.0**-23
    # Computed anew for the sake of float16 outputs; in a compiled graph this is the forward pass itself.
    output, at_zero = step.operation.compute([value])[0], _at_zero(step)
    change = output - at_zero
    near = tf.abs(value) < (24 * epsilon) ** (1 / 3)
    halfway = Step(step.operation, (value / 2,), step.outputs, step.training)
    (slope,) = vector_jacobian_products(halfway, tf.ones_like(output))
    rounding = 8 * epsilon * tf.maximum(tf.abs(output), tf.abs(at_zero))
    explained = near & (tf.abs(slope * value - change) <= rounding)
    quotient = change / tf.where(explained, tf.ones_like(value), value)
    return (cotangent * tf.where(explained, slope, quotient),)


def secant_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    """The contribution of the value at 0, (N,)."""
    return inner_product(cotangent, _at_zero(step))


def _relu(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.raw_ops.ReluGrad(gradients=cotangent, features=step.output),)


def _is_plain(step: Step) -> bool:
    return step.layer.max_value is None and not step.layer.negative_slope and not step.layer.threshold


def _relu_with_options(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return _relu(step, cotangent) if _is_plain(step) else secant(step, cotangent)


def _relu_with_options_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    return no_offset(step, cotangent) if _is_plain(step) else secant_offset(step, cotangent)


def _gated(gate: Callable[[tf.Tensor], tf.Tensor]) -> Rule:
    return Rule(lambda step, cotangent: (cotangent * gate(step.inputs[0]),))


def _normal_distribution(x: tf.Tensor) -> tf.Tensor:
    # As TensorFlow computes it in `gelu`: in float64, too, it has this constant in float32.
    return 0.5 * tf.math.erfc(-x * tf.cast(sqrt(0.5), x.dtype))


def _gelu(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    x = step.inputs[0]
    if step.layer.approximate:
        return (cotangent * 0.5 * (1 + tf.tanh(sqrt(2 / pi) * (x + tf.cast(0.044715, x.dtype) * x * x * x))),)
    return (cotangent * _normal_distribution(x),)


def _gated_linear_unit(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    axis = getattr(step.layer, "axis", -1)
    _, steering = tf.split(step.inputs[0], 2, axis=axis)
    return (tf.concat([cotangent * tf.sigmoid(steering), tf.zeros_like(steering)], axis=axis),)


_SECANT = Rule(secant, secant_offset, refuse_other_tensors)
_PIECEWISE = Rule(vector_jacobian_products)
_SILU = _gated(tf.sigmoid)
_HARD_SILU = _gated(lambda x: ops.hard_sigmoid(x))
_MISH = _gated(lambda x: tf.tanh(tf.math.softplus(x)))
# TensorFlow has no second derivative of softsign.
_SOFTSIGN = _gated(lambda x: 1 / (1 + tf.abs(x)))
RELU = Rule(_relu)
RELU_WITH_OPTIONS = Rule(_relu_with_options, _relu_with_options_offset)

# The functions that a layer can have as its activation, all with their default options.
_FUNCTIONS: dict[Callable[..., object], Rule] = {
    A.linear: Rule(lambda step, cotangent: (cotangent,)),
    A.relu: RELU,
    A.silu: _SILU,
    A.gelu: _gated(_normal_distribution),
    A.hard_silu: _HARD_SILU,
    A.mish: _MISH,
    A.softsign: _SOFTSIGN,
    A.leaky_relu: _PIECEWISE,
    A.glu: Rule(_gated_linear_unit),
    **dict.fromkeys(
        (
            *(A.celu, A.elu, A.exponential, A.hard_shrink, A.hard_sigmoid, A.hard_tanh, A.log_sigmoid, A.relu6),
            *(A.selu, A.sigmoid, A.soft_shrink, A.softplus, A.sparse_plus, A.sparse_sigmoid),
            *(A.squareplus, A.tanh, A.tanh_shrink),
        ),
        _SECANT,
    ),
}

# The operations that functions of `keras.ops` leave in a model.
OPERATIONS: tuple[tuple[Rule, tuple[Callable[..., object], ...]], ...] = (
    (RELU, (ops.relu,)),
    (RELU_WITH_OPTIONS, (A.relu,)),
    (_SILU, (ops.silu,)),
    (Rule(_gelu), (ops.gelu,)),
    (_HARD_SILU, (ops.hard_silu,)),
    (_MISH, (A.mish,)),
    (_SOFTSIGN, (ops.softsign,)),
    (Rule(_gated_linear_unit, refuse=refuse_across_samples), (ops.glu,)),
    (_PIECEWISE, (ops.absolute, ops.leaky_relu)),
    (
        _SECANT,
        (
            *(ops.celu, ops.clip, ops.elu, ops.exp, ops.expm1, ops.hard_shrink, ops.hard_sigmoid, ops.hard_tanh),
            *(ops.log1p, ops.log_sigmoid, ops.relu6, ops.selu, ops.sigmoid, ops.soft_shrink, ops.softplus),
            *(ops.sparse_plus, ops.sparse_sigmoid, ops.square, ops.squareplus, ops.tanh),
            *(ops.tanh_shrink, ops.threshold, ops.arctan, ops.arcsinh, ops.erf, ops.sin, ops.cos, ops.sinh, ops.cosh),
        ),
    ),
)


def _activation(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    return _FUNCTIONS[step.layer.activation].backward(step, cotangent)


def _activation_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    return (_FUNCTIONS[step.layer.activation].offset or no_offset)(step, cotangent)


def _refuse_activation(operation: Operation) -> str | None:
    activation = operation.layer.activation
    if activation in _FUNCTIONS:
        return None
    return f"applies `{getattr(activation, '__name__', type(activation).__name__)}`, which is not handled"


ACTIVATION = Rule(_activation, _activation_offset, _refuse_activation)
LAYERS: tuple[tuple[Rule, tuple[type, ...]], ...] = (
    (ACTIVATION, (keras.layers.Activation,)),
    (RELU_WITH_OPTIONS, (keras.layers.ReLU,)),
    (_SECANT, (keras.layers.ELU,)),
    (_PIECEWISE, (keras.layers.LeakyReLU, keras.layers.PReLU)),
)
