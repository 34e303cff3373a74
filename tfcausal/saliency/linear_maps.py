"""Layers as linear maps: what the rules of WBP and of LRP both need to know of a layer.

Weighted layers are given as stages, each a kernel, a bias and a function that is linear in the inputs and in the
kernel. Normalisations and attention are linear once their statistics and scores count as constants; a product is linear
in one factor once the others count as gates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.operations import Operation
from tfcausal.saliency.propagation import Step, vector_jacobian_products

L = keras.layers

DENSE = (L.Dense, L.EinsumDense)
CONVOLUTIONS = (
    *(L.Conv1D, L.Conv2D, L.Conv3D),
    *(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose),
    *(L.DepthwiseConv1D, L.DepthwiseConv2D),
    *(L.SeparableConv1D, L.SeparableConv2D),
)
_TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
_DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
_SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)


@dataclass(frozen=True)
class LinearStage:
    """One linear map with a bias, `apply(inputs, kernel) + bias`.

    Attributes:
        kernel: The weights.
        bias: What is added, in a shape that broadcasts to the outputs; None where there is nothing.
        apply: Takes inputs and a kernel of this shape; linear in each of the two.
        along_outputs: Takes one number for every output channel, (C,), and gives it in a shape that broadcasts to the
            kernel: scaling the kernel by it scales the outputs. None where the outputs have no channel axis.
    """

    kernel: tf.Tensor
    bias: tf.Tensor | None
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    along_outputs: Callable[[tf.Tensor], tf.Tensor] | None


def linear_stages(layer: Any, dtype: tf.DType) -> tuple[LinearStage, ...]:
    """The stages of a dense or convolutional layer, in the order in which they run; its activation is left out.

    Args:
        layer: A layer of one of the classes in `DENSE` and `CONVOLUTIONS`.
        dtype: Dtype of kernels and biases.

    Returns:
        One stage; two for a separable convolution.
    """

    def weight(variable: Any) -> tf.Tensor:
        return tf.cast(tf.convert_to_tensor(variable), dtype)

    bias = None if getattr(layer, "bias", None) is None else weight(layer.bias)
    if isinstance(layer, L.Dense):
        return (LinearStage(weight(layer.kernel), bias, _dense, lambda gain: gain),)
    if isinstance(layer, L.EinsumDense):
        equation = layer.equation
        return (LinearStage(weight(layer.kernel), bias, lambda x, kernel: tf.einsum(equation, x, kernel), None),)
    if bias is not None and layer.data_format == "channels_first":
        bias = tf.reshape(bias, (1, -1, *(1,) * layer.rank))
    options = {name: getattr(layer, name) for name in ("strides", "padding", "data_format", "dilation_rate")}
    if isinstance(layer, _SEPARABLE):
        last = {**options, "strides": 1, "dilation_rate": 1, "padding": "valid"}
        return (
            LinearStage(weight(layer.depthwise_kernel), None, _depthwise(options), _along_depthwise(layer)),
            LinearStage(weight(layer.pointwise_kernel), bias, _convolution(last), lambda gain: gain),
        )
    kernel = weight(layer.kernel)
    if isinstance(layer, _DEPTHWISE):
        return (LinearStage(kernel, bias, _depthwise(options), _along_depthwise(layer)),)
    if isinstance(layer, _TRANSPOSED):
        padding = {**options, "output_padding": layer.output_padding}
        return (LinearStage(kernel, bias, _transposed(padding), lambda gain: gain[:, tf.newaxis]),)
    if _is_depthwise(layer):
        # Keras runs grouped convolutions through XLA on a processor; this form of it has a kernel of its own.
        return (LinearStage(kernel, bias, _depthwise(options, layer.groups), lambda gain: gain),)
    return (LinearStage(kernel, bias, _convolution(options), lambda gain: gain),)


def _dense(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.tensordot(x, kernel, 1)


def _convolution(options: dict[str, Any]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    if options["padding"] != "causal":
        return lambda x, kernel: keras.ops.conv(x, kernel, **options)
    valid = {**options, "padding": "valid"}

    def causal(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        before = options["dilation_rate"][0] * (kernel.shape[0] - 1)
        first = options["data_format"] == "channels_first"
        paddings = [[0, 0], [0, 0], [before, 0]] if first else [[0, 0], [before, 0], [0, 0]]
        return keras.ops.conv(tf.pad(x, paddings), kernel, **valid)

    return causal


def _is_depthwise(layer: Any) -> bool:
    """Whether a grouped convolution has one channel in every group, and TensorFlow's depthwise one does the same."""
    if layer.groups == 1 or layer.kernel.shape[-2] != 1 or layer.rank > 2 or layer.padding == "causal":
        return False
    plain = max(layer.strides) == 1 or max(layer.dilation_rate) == 1
    return plain and len(set(layer.strides)) == 1 and layer.data_format == "channels_last"


def _depthwise(options: dict[str, Any], groups: int | None = None) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    def apply(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if groups is not None:
            kernel = tf.reshape(kernel, (*kernel.shape[:-2], groups, -1))
        return keras.ops.depthwise_conv(x, kernel, **options)

    return apply


def _along_depthwise(layer: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda gain: tf.reshape(gain, (-1, layer.depth_multiplier))


def _transposed(options: dict[str, Any]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    return lambda x, kernel: keras.ops.conv_transpose(x, kernel, **options)


def batch_norm_statistics(layer: Any, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and variance (C,) that a batch normalisation uses on a batch in inference or in training mode.

    Those of the batch are constants: neither a map nor the parameters are differentiated through them.
    """
    if training and layer.trainable:
        mean, variance = keras_api.batch_moments(layer, inputs)
        return tf.stop_gradient(mean), tf.stop_gradient(variance)
    return tf.convert_to_tensor(layer.moving_mean), tf.convert_to_tensor(layer.moving_variance)


def batch_norm_affine(layer: Any, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Gain and shift (C,) with which a batch normalisation is `x * gain + shift`, its statistics given."""
    gain = tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        gain = gain * tf.cast(tf.convert_to_tensor(layer.gamma), gain.dtype)
    shift = -mean * gain
    if layer.center:
        shift = shift + tf.cast(tf.convert_to_tensor(layer.beta), shift.dtype)
    return gain, shift


def along_channels(layer: Any, values: tf.Tensor, rank: int) -> tf.Tensor:
    """One number for every channel (C,) in a shape that broadcasts to the tensors of a batch normalisation."""
    shape = [1] * rank
    shape[layer.axis % rank] = -1
    return tf.reshape(values, shape)


def normalisation(layer: Any, x: tf.Tensor) -> tuple[tf.Tensor, tuple[int, ...], tf.Tensor | None]:
    """A layer, RMS, group or unit normalisation as a linear map, its standard deviations taken as constants.

    With the gain `g`, the axes and the shift `c` that are returned, the output is `g * (x - mean(x, axes)) + c`.

    Args:
        layer: The layer.
        x: Its input, (N, ...).

    Returns:
        The gain, in the shape of `x` or one that broadcasts to it; the axes of the mean, empty where none is taken
        away, in the shape that :func:`grouped` gives; and the shift, or None.
    """
    if isinstance(layer, L.UnitNormalization):
        axes = tuple(axis % x.shape.rank for axis in keras.tree.flatten(layer.axis))
        # Keras bounds the norm by 1e-12; its square is a number in float32, too.
        return tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, axes, keepdims=True), 1e-24)), (), None
    if isinstance(layer, L.RMSNormalization):
        axes = tuple(axis % x.shape.rank for axis in keras.tree.flatten(layer.axis))
        inverse = tf.math.rsqrt(tf.reduce_mean(x * x, axes, keepdims=True) + layer.epsilon)
        return inverse * _on_axes(layer.scale, axes, x), (), None
    if isinstance(layer, L.GroupNormalization):
        groups = grouped(layer, x)
        channels = layer.axis % x.shape.rank
        axes = tuple(axis for axis in range(1, groups.shape.rank) if axis != channels)
        gamma = layer.gamma if layer.scale else None
        beta = layer.beta if layer.center else None
        parts = (groups.shape[channels], groups.shape[channels + 1])
        shape = [1] * groups.shape.rank
        shape[channels : channels + 2] = parts
        gain, shift = (None if value is None else tf.reshape(_cast(value, x), shape) for value in (gamma, beta))
    else:
        groups, axes = x, tuple(axis % x.shape.rank for axis in keras.tree.flatten(layer.axis))
        gain = None if layer.gamma is None else _on_axes(layer.gamma, axes, x)
        shift = None if layer.beta is None else _on_axes(layer.beta, axes, x)
    inverse = tf.math.rsqrt(tf.math.reduce_variance(groups, axes, keepdims=True) + layer.epsilon)
    return inverse if gain is None else inverse * gain, axes, shift


def normalisation_gradient(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    """The cotangent times the linear map of :func:`normalisation`."""
    gain, axes, _ = normalisation(step.layer, step.inputs[0])
    products = gain * grouped(step.layer, cotangent)
    if axes:
        products -= tf.reduce_mean(products, axes, keepdims=True)
    return tf.reshape(products, tf.shape(cotangent))


def grouped(layer: Any, x: tf.Tensor) -> tf.Tensor:
    """The tensor in the shape in which a normalisation takes its mean: group normalisation splits the channels."""
    if not isinstance(layer, L.GroupNormalization):
        return x
    channels, sizes = layer.axis % x.shape.rank, tf.shape(x)
    groups = layer.groups if layer.groups > 0 else x.shape[channels]
    shape = tf.concat([sizes[:channels], [groups, x.shape[channels] // groups], sizes[channels + 1 :]], 0)
    static = [*x.shape[:channels], groups, x.shape[channels] // groups, *x.shape[channels + 1 :]]
    return tf.ensure_shape(tf.reshape(x, shape), static)


def _on_axes(weight: Any, axes: tuple[int, ...], x: tf.Tensor) -> tf.Tensor:
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.shape.rank)]
    return tf.reshape(_cast(weight, x), shape)


def _cast(weight: Any, x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(weight), x.dtype)


def places(operation: Operation) -> tuple[tuple[int, ...], ...]:
    """Which inputs of an operation stand in each argument of its call, in the order of its signature."""
    markers = [object() for _ in operation.inputs]
    where = {id(marker): position for position, marker in enumerate(markers)}
    return tuple(
        tuple(where[id(leaf)] for leaf in keras.tree.flatten(value) if id(leaf) in where)
        for value in bound_arguments(operation, markers).values()
    )


def attended(operation: Operation) -> int:
    """Which input of an attention layer is the value, the one that its output is linear in; -1 for a constant."""
    markers = [object() for _ in operation.inputs]
    value = _attention_arguments(operation, markers)["value"]
    return next((position for position, marker in enumerate(markers) if marker is value), -1)


def scores_steer(operation: Operation) -> tuple[bool, ...]:
    """Which inputs of an attention layer only steer: all but the value."""
    value = attended(operation)
    return tuple(position != value for position in range(len(operation.inputs)))


def attention(step: Step) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
    """What an attention layer gives, as a function of its inputs that is linear in the value: scores are constants.

    The query and the key keep what they were in the forward pass, also where the key is the value. Scores that the
    layer returns are constants, too. The scores are those of inference.
    """
    frozen = _attention_arguments(step.operation, step.inputs)
    frozen = {**frozen, "key": frozen["value"] if frozen.get("key") is None else frozen["key"]}
    if "training" in inspect.signature(step.layer.call).parameters:
        frozen["training"] = False
    position = attended(step.operation)

    def function(inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        arguments = {**frozen, "value": inputs[position]}
        if isinstance(step.layer, (L.Attention, L.AdditiveAttention)):
            tensors = [arguments.pop(name) for name in ("query", "value", "key")]
            return keras.tree.flatten(step.layer.call(tensors, **arguments))
        return keras.tree.flatten(step.layer.call(**arguments))

    return function


def bound_arguments(operation: Operation, inputs: Sequence[Any]) -> dict[str, Any]:
    """The arguments of an operation's call by name, with one tensor for every input; `training` is left out."""
    args, kwargs = operation.arguments(inputs)
    bound = inspect.signature(operation.layer.call).bind(*args, **kwargs)
    return {name: value for name, value in bound.arguments.items() if name != "training"}


def _attention_arguments(operation: Operation, inputs: Sequence[Any]) -> dict[str, Any]:
    arguments = bound_arguments(operation, inputs)
    if "inputs" in arguments:
        arguments.update(zip(("query", "value", "key"), arguments.pop("inputs"), strict=False))
    return arguments


_RESHAPING = (
    *(L.Dropout, L.Reshape, L.Flatten, L.Permute, L.RepeatVector, L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    L.Identity,
    *map(
        keras_api.operation_class,
        (
            *(keras.ops.reshape, keras.ops.squeeze, keras.ops.expand_dims, keras.ops.transpose, keras.ops.swapaxes),
            *(keras.ops.moveaxis, keras.ops.broadcast_to, keras.ops.repeat, keras.ops.tile, keras.ops.cast),
            *(keras.ops.get_item, keras.ops.split, keras.ops.unstack),
        ),
    ),
)


def gates(operation: Operation) -> tuple[bool, ...]:
    """Which factors of an elementwise product are gates: constants that only scale the others.

    A gate is spread over the other factor (a squeeze-and-excitation of shape (N, 1, 1, channels), one map for all
    channels), or comes out of a sigmoid or softmax. Where this tells no factor from the others, none is a gate.
    """
    shapes = operation.input_shapes
    spread = (
        _is_spread(shape, [other for place, other in enumerate(shapes) if place != position])
        for position, shape in enumerate(shapes)
    )
    return _unless_all(tuple(map(any, zip(spread, map(_is_bounded, operation.sources), strict=True))))


def bounded_factors(operation: Operation) -> tuple[bool, ...]:
    """Which factors of a matrix product or another contraction are gates: those out of a sigmoid or softmax."""
    return _unless_all(tuple(map(_is_bounded, operation.sources)))


def _unless_all(found: tuple[bool, ...]) -> tuple[bool, ...]:
    return (False,) * len(found) if all(found) else found


def _is_spread(shape: Sequence[int | None], others: Sequence[Sequence[int | None]]) -> bool:
    def smaller(other: Sequence[int | None]) -> bool:
        if len(shape) != len(other):
            return len(shape) < len(other)
        pairs = list(zip(shape[1:], other[1:], strict=True))
        return any(size == 1 and wanted != 1 for size, wanted in pairs) and not any(
            wanted == 1 and size != 1 for size, wanted in pairs
        )

    return any(map(smaller, others))


def _is_bounded(source: Operation | None) -> bool:
    while source is not None and isinstance(source.layer, _RESHAPING):
        source = source.sources[0]
    if source is None:
        return False
    activation = getattr(source.layer, "activation", None)
    names = ("sigmoid", "hard_sigmoid", "sparse_sigmoid", "softmax", "sparsemax")
    kind = type(source.layer).__name__.lower()
    return getattr(activation, "__name__", kind if activation is None else "") in (
        *names,
        *(name.replace("_", "") for name in names),
    )


def product_gradients(
    steers: Callable[[Operation], tuple[bool, ...]],
) -> Callable[[Step, tf.Tensor], tuple[tf.Tensor | None, ...]]:
    """A rule for products: a gate gets nothing, the other factors share what the product is worth.

    Args:
        steers: Tells which factors are gates.
    """

    def backward(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        steering = steers(step.operation)
        products = vector_jacobian_products(step, cotangent)
        factors = steering.count(False)
        return tuple(None if gate else value / factors for gate, value in zip(steering, products, strict=True))

    return backward


def max_pooling_gradient(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The cotangent of a two-dimensional max pooling at the maxima, as its gradient has it, without pooling again."""
    if step.layer.data_format == "channels_first":
        return vector_jacobian_products(step, cotangent)
    window = {"ksize": (1, *step.layer.pool_size, 1), "strides": (1, *step.layer.strides, 1)}
    pooled = {"orig_input": step.inputs[0], "orig_output": step.output, "padding": step.layer.padding.upper()}
    return (tf.raw_ops.MaxPoolGrad(grad=cotangent, **pooled, **window),)
