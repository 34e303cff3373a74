"""Weight back-propagation (WBP): the weight with which every input value enters a logit, times that value.

Source: *Proactive Pseudo-Intervention*, section 3.2, equations 6 to 10 and table 1. With every nonlinearity frozen at
the gate that it takes on the input, the network is affine in its input; WBP carries the row of one class back through
these frozen maps, ``W_l = B_l^T W_(l+1)``, and multiplies the result with the input, ``s = W_0 * x``.

Departures from the paper. Its convolution rule (transpose, flip) holds for stride 1 and symmetric padding only; the
rule here is the exact adjoint for any stride and padding. Additive constants, which the paper omits, are accounted for:
``logit = sum(s) + sum over layers of <W_(l+1), c_l>`` holds exactly, see :meth:`WBP.decompose`. A ReLU is open where
its output is positive, as in TensorFlow's gradient; the paper's is open at exactly 0 too, where it multiplies a 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.base import Explainer
from tfcausal.saliency.propagation import Rule, RuleTable, Step, propagate

RULES = RuleTable("wbp")


def weight_back_propagation(
    graph: OperationGraph, activations: Activations, classes: tf.Tensor, training: bool = False, with_bias: bool = False
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Saliency of one logit per sample, as a differentiable function of one forward pass.

    Args:
        graph: The model's operations.
        activations: The forward pass, from `graph.run(images, training)`.
        classes: The class to explain, integers (N,) in [0, classes).
        training: Whether the forward pass was run in training mode; batch statistics then count as constants.
        with_bias: Whether to sum up what the additive constants contribute.

    Returns:
        Maps in the shape of the input, and the bias (N,) or None. With it, the chosen logit equals the sum of the
        map plus the bias.
    """
    dtype = activations[graph.logits].dtype
    start = tf.one_hot(classes, graph.num_classes, dtype=dtype if dtype.size > 2 else tf.float32)
    weights, bias = propagate(graph, activations, start, RULES, training, with_offsets=with_bias)
    return weights * tf.cast(activations[graph.input], weights.dtype), bias


@dataclass(frozen=True)
class Decomposition:
    """A logit taken apart: `logits == maps.sum(over all axes but the first) + bias`, up to rounding.

    Attributes:
        maps: What every input value contributes to the logit, float32 in the shape of the input.
        bias: What the additive constants of the layers contribute, float32 (N,).
        logits: The logit of the class that is explained, float32 (N,).
    """

    maps: np.ndarray
    bias: np.ndarray
    logits: np.ndarray


class WBP(Explainer):
    """Explain a classifier by weight back-propagation.

    Args:
        model: A functional or built Sequential Keras classifier.
        batch_size: Images per forward pass; None chooses by the model's size. It never changes a map.

    Raises:
        UnsupportedOperation: The model contains a layer that WBP has no rule for.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> WBP(model)(np.array([[3.0, -1.0]], "float32"), [0]).tolist()
        [[3.0, -1.0]]
    """

    name = "wbp"

    def __init__(self, model: keras.Model, batch_size: int | None = None) -> None:
        super().__init__(model, batch_size)
        RULES.check(self.graph)
        self._decompose: Callable[..., Any] | None = None

    def maps(self, images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Compiled by the base class."""
        activations = self.graph.run(images)
        saliency, _ = weight_back_propagation(self.graph, activations, self.resolve(activations, classes))
        return saliency

    def decompose(self, images: np.ndarray, targets: object = None) -> Decomposition:
        """Take the logit of a class apart into what the pixels and what the additive constants contribute.

        Args:
            images: Batch in the model's input space, (N, height, width, channels).
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class.

        Returns:
            Maps, bias and logits, with `logits == maps.sum() + bias` for every sample.

        Raises:
            InvalidArgument: As for calling the explainer.
        """
        if self._decompose is None:
            self._decompose = self.compiled(self._decompose_batch)
        maps, bias, logits = self.in_batches(self._decompose, images, targets)
        return Decomposition(maps, bias, logits)

    def _decompose_batch(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        activations = self.graph.run(images)
        classes = self.resolve(activations, classes)
        maps, bias = weight_back_propagation(self.graph, activations, classes, with_bias=True)
        logits = tf.gather(activations[self.graph.logits], classes, batch_dims=1)
        return tuple(tf.cast(value, tf.float32) for value in (maps, bias, logits))


def _inner(cotangent: tf.Tensor, constant: tf.Tensor) -> tf.Tensor:
    """Inner product with a constant per channel (last axis): (N, ..., C) and (C,) give (N,)."""
    channels = tf.reduce_sum(cotangent, axis=list(range(1, cotangent.shape.rank - 1)))
    return tf.linalg.matvec(channels, tf.cast(constant, cotangent.dtype))


def _bias_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    if not step.layer.use_bias:
        return tf.zeros(tf.shape(cotangent)[:1], cotangent.dtype)
    return _inner(cotangent, tf.convert_to_tensor(step.layer.bias))


def _kernel(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(step.layer.kernel), cotangent.dtype)


def _dense(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.tensordot(cotangent, _kernel(step, cotangent), [[-1], [1]]),)


def _conv2d(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (
        tf.nn.conv2d_transpose(
            cotangent,
            _kernel(step, cotangent),
            output_shape=tf.shape(step.inputs[0]),
            strides=step.layer.strides,
            padding=step.layer.padding.upper(),
        ),
    )


def _refuse_conv2d(layer: Any) -> str | None:
    if layer.groups != 1 or any(rate != 1 for rate in layer.dilation_rate):
        return f"has groups={layer.groups} and dilation_rate={layer.dilation_rate}; both must be 1"
    return _refuse_channels_first(layer)


def _refuse_quantized(layer: Any) -> str | None:
    mode = getattr(layer, "quantization_mode", None)
    return None if mode is None else f"is quantized to {mode}, which is not handled"


def _refuse_channels_first(layer: Any) -> str | None:
    data_format = getattr(layer, "data_format", "channels_last")
    return None if data_format == "channels_last" else f"has data_format={data_format!r}; it must be 'channels_last'"


def batch_norm_statistics(layer: Any, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and variance (C,) that a batch normalisation uses on a batch in inference or in training mode."""
    if training and layer.trainable:
        axes = [axis for axis in range(inputs.shape.rank) if axis != inputs.shape.rank - 1]
        # In float32 under mixed precision too, as Keras has it.
        return tf.nn.moments(tf.cast(inputs, layer.variable_dtype), axes)
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


def _batch_norm(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    gain, _ = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    return (cotangent * tf.cast(gain, cotangent.dtype),)


def _batch_norm_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    _, shift = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    return _inner(cotangent, shift)


def _refuse_batch_norm(layer: Any) -> str | None:
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    if axis not in (-1, layer.input_spec.ndim - 1):
        return f"normalises axis {axis}; it must be the last"
    return "uses renorm, which is not handled" if getattr(layer, "renorm", False) else None


def _relu(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.raw_ops.ReluGrad(gradients=cotangent, features=step.output),)


def _refuse_relu(layer: Any) -> str | None:
    if layer.max_value is not None or layer.negative_slope != 0 or layer.threshold != 0:
        return "has a maximum, a slope or a threshold; only the plain ReLU is handled"
    return None


def _activation(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (cotangent,) if step.layer.activation is keras.activations.linear else _relu(step, cotangent)


def _refuse_activation(layer: Any) -> str | None:
    if layer.activation in (keras.activations.relu, keras.activations.linear):
        return None
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    return f"applies `{name}`, which is not handled; `relu` and `linear` are"


def _window(layer: Any) -> dict[str, Any]:
    return {
        "ksize": (1, *layer.pool_size, 1),
        "strides": (1, *layer.strides, 1),
        "padding": layer.padding.upper(),
    }


def _max_pooling(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (
        tf.raw_ops.MaxPoolGrad(
            orig_input=step.inputs[0], orig_output=step.output, grad=cotangent, **_window(step.layer)
        ),
    )


def _average_pooling(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.raw_ops.AvgPoolGrad(orig_input_shape=tf.shape(step.inputs[0]), grad=cotangent, **_window(step.layer)),)


def _restore_axes(step: Step, pooled: tf.Tensor) -> tf.Tensor:
    return pooled if step.layer.keepdims else pooled[:, tf.newaxis, tf.newaxis, :]


def _global_average_pooling(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    shape = tf.shape(step.inputs[0])
    share = _restore_axes(step, cotangent) / tf.cast(shape[1] * shape[2], cotangent.dtype)
    return (tf.broadcast_to(share, shape),)


def _global_max_pooling(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    winners = tf.cast(tf.equal(step.inputs[0], _restore_axes(step, step.output)), cotangent.dtype)
    share = winners / tf.reduce_sum(winners, axis=(1, 2), keepdims=True)
    return (share * _restore_axes(step, cotangent),)


def _reshape(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.reshape(cotangent, tf.shape(step.inputs[0])),)


def _dropout(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    if not step.training or step.layer.rate == 0:
        return (cotangent,)
    # The mask that was drawn: 0 or 1 / (1 - rate). Where the input is 0, so is its contribution, whatever the mask.
    drawn = tf.stop_gradient(tf.math.divide_no_nan(step.output, step.inputs[0]))
    return (cotangent * drawn,)


def _add(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tuple(_summed_to(cotangent, source) for source in step.inputs)


def _summed_to(cotangent: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
    """The adjoint of broadcasting `source` to the shape of the cotangent; Keras puts missing axes behind the batch."""
    cotangent = tf.reduce_sum(cotangent, axis=list(range(1, 1 + cotangent.shape.rank - source.shape.rank)))
    axes = [axis for axis in range(1, source.shape.rank) if source.shape[axis] == 1 and cotangent.shape[axis] != 1]
    return tf.reduce_sum(cotangent, axis=axes, keepdims=True) if axes else cotangent


def _concatenate(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
    axis = step.layer.axis
    return tuple(tf.split(cotangent, [tf.shape(source)[axis] for source in step.inputs], axis=axis))


def _zero_padding(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    (top, _), (left, _) = step.layer.padding
    shape = tf.shape(step.inputs[0])
    return (cotangent[:, top : top + shape[1], left : left + shape[2], :],)


for _layer_class, _rule in {
    keras.layers.Dense: Rule(_dense, _bias_offset, _refuse_quantized),
    keras.layers.Conv2D: Rule(_conv2d, _bias_offset, _refuse_conv2d),
    keras.layers.BatchNormalization: Rule(_batch_norm, _batch_norm_offset, _refuse_batch_norm),
    keras.layers.ReLU: Rule(_relu, refuse=_refuse_relu),
    keras.layers.Activation: Rule(_activation, refuse=_refuse_activation),
    keras.layers.MaxPooling2D: Rule(_max_pooling, refuse=_refuse_channels_first),
    keras.layers.AveragePooling2D: Rule(_average_pooling, refuse=_refuse_channels_first),
    keras.layers.GlobalAveragePooling2D: Rule(_global_average_pooling, refuse=_refuse_channels_first),
    keras.layers.GlobalMaxPooling2D: Rule(_global_max_pooling, refuse=_refuse_channels_first),
    keras.layers.Flatten: Rule(_reshape, refuse=_refuse_channels_first),
    keras.layers.Dropout: Rule(_dropout),
    keras.layers.Add: Rule(_add),
    keras.layers.Concatenate: Rule(_concatenate),
    keras.layers.ZeroPadding2D: Rule(_zero_padding, refuse=_refuse_channels_first),
}.items():
    RULES.register(_layer_class, _rule)
