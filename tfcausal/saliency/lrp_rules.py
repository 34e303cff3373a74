"""The rules of layer-wise relevance propagation (LRP): how every kind of layer passes relevance back.

Layers with weights follow the rule that a composite gives them (:mod:`tfcausal.saliency.composites`). The others:

- Elementwise functions pass relevance unchanged, preprocessing (rescaling, normalisation) included.
- What moves values around or selects them routes relevance back the same way; the winner of a maximum takes it all.
- Sums, means and interpolations divide it in proportion, `R_i = x_i c_ik / stab(y_k) R_k`; constants absorb a share.
- Normalisations are linear maps with their statistics as constants, and are divided alike.
- A gate gets nothing of a product; several factors share alike. Attention scores are gates (Ali et al. 2022); of a
  product of two matrices, each gets half of what a linear map in it would get (Achtibat et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfcausal.operations import Operation
from tfcausal.saliency.composites import Epsilon, LinearRule, LinearStep, ZBox, redistribute, stabilised
from tfcausal.saliency.linear_maps import (
    CONVOLUTIONS,
    DENSE,
    LinearStage,
    along_channels,
    attention,
    batch_norm_affine,
    batch_norm_statistics,
    bounded_factors,
    gates,
    grouped,
    linear_stages,
    max_pooling_gradient,
    normalisation,
    normalisation_gradient,
    product_gradients,
    scores_steer,
)
from tfcausal.saliency.propagation import Rule, RuleTable, Step, inner_product, vector_jacobian_products
from tfcausal.saliency.refusals import (
    first_of,
    refuse_across_samples,
    refuse_attention,
    refuse_batch_norm,
    refuse_constants,
    refuse_cosine,
    refuse_initial,
    refuse_layer_norm,
    refuse_mask,
    refuse_mixing,
    refuse_other_tensors,
    refuse_resizing,
    refuse_weighted,
)

L, A, ops = keras.layers, keras.activations, keras.ops
Function = Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]

RULES = RuleTable("lrp")


@dataclass(frozen=True)
class Weighted:
    """A layer with weights, and what its place in the model says about it.

    Attributes:
        rule: The rule that it follows.
        batch_norm: The batch normalisation after it that is merged into its last map.
        nonnegative: Whether its inputs are known to hold no negative value.
        support: As for :class:`LinearStep`.
    """

    rule: LinearRule
    batch_norm: Any = None
    nonnegative: bool = False
    support: tf.Tensor | None = None

    def backward(self, step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
        """The relevance of the inputs."""
        return (self._redistribute(step, relevance)[0],)

    def offset(self, step: Step, relevance: tf.Tensor) -> tf.Tensor:
        """What biases and stabilisers absorb."""
        return self._redistribute(step, relevance)[1]

    def _redistribute(self, step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        absorbed = tf.zeros(tf.shape(relevance)[:1], relevance.dtype)
        for rule, linear in reversed(self._steps(step, relevance.dtype)):
            relevance, part = redistribute(rule, linear, relevance)
            absorbed += part
        return relevance, absorbed

    def _steps(self, step: Step, dtype: tf.DType) -> list[tuple[LinearRule, LinearStep]]:
        """The stages with their inputs, outputs and rules: a separable convolution has two."""
        stages, outputs = linear_stages(step.layer, dtype), step.output
        if self.batch_norm is not None:
            last, outputs = merged(stages[-1], self.batch_norm, outputs, step.training)
            stages = (*stages[:-1], last)
        rule, value, steps = self.rule, step.inputs[0], []
        for position, stage in enumerate(stages):
            is_first, is_last = position == 0, position == len(stages) - 1
            result = outputs if is_last else stage.apply(value, stage.kernel)
            known = (self.nonnegative, self.support) if is_first else (False, None)
            steps.append((rule, LinearStep(stage, value, result, *known)))
            if isinstance(rule, ZBox) and not is_last:
                rule = rule.after(stage)
            value = result
        return steps


def weighted(how: Weighted) -> Rule:
    """The rule of a layer with weights as an operation's rule."""
    return Rule(how.backward, how.offset, refuse_weighted)


def merged(
    stage: LinearStage, batch_norm: Any, outputs: tf.Tensor, training: bool = False
) -> tuple[LinearStage, tf.Tensor]:
    """A linear map and the batch normalisation after it as one linear map, and what comes out of it.

    Args:
        stage: The map; its outputs have channels.
        batch_norm: The layer.
        outputs: What comes out of the map, before the normalisation.
        training: Whether the layer uses the statistics of the batch.
    """
    rank, dtype = outputs.shape.rank, outputs.dtype
    affine = batch_norm_affine(batch_norm, *batch_norm_statistics(batch_norm, outputs, training))
    gain, shift = (tf.cast(values, dtype) for values in affine)
    along_gain, along_shift = (along_channels(batch_norm, values, rank) for values in (gain, shift))
    along_outputs = stage.along_outputs
    kernel = stage.kernel if along_outputs is None else stage.kernel * along_outputs(gain)
    bias = along_shift if stage.bias is None else stage.bias * along_gain + along_shift
    return LinearStage(kernel, bias, stage.apply, along_outputs), outputs * along_gain + along_shift


def _as_tuple(value: Any) -> tuple[tf.Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _quotients(step: Step, relevance: Any) -> Any:
    """Relevance for every unit of output, R / stab(y)."""
    pairs = zip(_as_tuple(relevance), step.outputs, strict=True)
    quotients = tuple(value / stabilised(tf.cast(output, value.dtype)) for value, output in pairs)
    return quotients if len(quotients) > 1 else quotients[0]


def _times_inputs(step: Step, products: Sequence[tf.Tensor | None]) -> tuple[tf.Tensor | None, ...]:
    return tuple(
        None if product is None else tf.cast(value, product.dtype) * product
        for value, product in zip(step.inputs, products, strict=True)
    )


def _proportional(step: Step, relevance: Any, function: Function | None = None) -> tuple[tf.Tensor | None, ...]:
    """The epsilon rule on a linear map; None is the operation itself."""
    return _times_inputs(step, vector_jacobian_products(step, _quotients(step, relevance), function))


def _absorbed(step: Step, relevance: Any, constants: Sequence[tf.Tensor | float]) -> tf.Tensor:
    """What the epsilon rule leaves to the constants of a linear map and to the stabiliser, (N,)."""
    values = zip(
        _as_tuple(relevance), _as_tuple(_quotients(step, relevance)), step.outputs, list(constants), strict=True
    )
    parts = (value - quotient * (output - constant) for value, quotient, output, constant in values)
    return tf.add_n([inner_product(part, tf.ones((), part.dtype)) for part in parts])


def _absorbed_by_constants(step: Step, relevance: Any) -> tf.Tensor:
    return _absorbed(step, relevance, step.operation.compute([tf.zeros_like(value) for value in step.inputs]))


def _absorbed_by_stabiliser(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    return _absorbed(step, relevance, (0.0,))


def _absorbed_by_filling(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    """What lands on the constants of an operation that moves values, such as those of padding."""
    zeros, ones = ([fill(value) for value in step.inputs] for fill in (tf.zeros_like, tf.ones_like))
    moved = step.operation.compute(ones)[0] - step.operation.compute(zeros)[0]
    return inner_product(relevance, 1 - moved)


def _unchanged(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
    return (relevance,)


def _shared(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    """Relevance of an elementwise operation with constants or other tensors: alike for every factor but gates."""
    steering = gates(step.operation)

    def spread(inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.add_n([tf.zeros_like(step.output) + value for value in inputs])]

    products = vector_jacobian_products(step, relevance / steering.count(False), spread)
    return tuple(None if gate else value for gate, value in zip(steering, products, strict=True))


def _quotient(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    products = vector_jacobian_products(step, relevance, lambda inputs: [tf.zeros_like(step.output) + inputs[0]])
    return (products[0], *(None,) * (len(products) - 1))


def _divisor_steers(operation: Operation) -> tuple[bool, ...]:
    return (False, True)[: len(operation.inputs)]


def _extremum(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    """The winner of several tensors takes all; against a number it is an elementwise function."""
    return vector_jacobian_products(step, relevance) if len(step.inputs) > 1 else _shared(step, relevance)


def _upsampling(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    repeats = getattr(step.layer, "interpolation", "nearest") == "nearest"
    return vector_jacobian_products(step, relevance) if repeats else _proportional(step, relevance)


def _upsampling_offset(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    repeats = getattr(step.layer, "interpolation", "nearest") == "nearest"
    nothing = tf.zeros(tf.shape(relevance)[:1], relevance.dtype)
    return nothing if repeats else _absorbed_by_stabiliser(step, relevance)


def _batch_norm(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
    gain, _ = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    gain = tf.cast(along_channels(step.layer, gain, relevance.shape.rank), relevance.dtype)
    return (step.inputs[0] * gain * _quotients(step, relevance),)


def _batch_norm_offset(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    _, shift = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    shift = tf.cast(along_channels(step.layer, shift, relevance.shape.rank), relevance.dtype)
    return _absorbed(step, relevance, (shift,))


def _normalisation(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
    return (step.inputs[0] * normalisation_gradient(step, _quotients(step, relevance)),)


def _normalisation_offset(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    _, _, shift = normalisation(step.layer, step.inputs[0])
    if shift is None:
        return _absorbed_by_stabiliser(step, relevance)
    spread = tf.zeros_like(grouped(step.layer, step.inputs[0])) + shift
    return _absorbed(step, relevance, (tf.reshape(spread, tf.shape(relevance)),))


def _attention(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    products = _proportional(step, relevance, attention(step))
    steering = scores_steer(step.operation)
    return tuple(None if steers else value for steers, value in zip(steering, products, strict=True))


def _attention_offset(step: Step, relevance: tf.Tensor) -> tf.Tensor:
    return _absorbed(step, relevance, attention(step)([tf.zeros_like(value) for value in step.inputs]))


def _contraction(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    return _times_inputs(step, product_gradients(bounded_factors)(step, _quotients(step, relevance)))


def _gated_linear_unit(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
    return (tf.concat([relevance, tf.zeros_like(relevance)], axis=-1),)


def _refuse_glu(operation: Operation) -> str | None:
    return None if operation.layer.axis == -1 else "splits another axis than the last, which is not handled"


_ELEMENTWISE_ACTIVATIONS = (
    *(A.celu, A.elu, A.exponential, A.gelu, A.hard_shrink, A.hard_sigmoid, A.hard_silu, A.hard_tanh, A.leaky_relu),
    *(A.linear, A.log_sigmoid, A.mish, A.relu, A.relu6, A.selu, A.sigmoid, A.silu, A.soft_shrink, A.softplus),
    *(A.softsign, A.sparse_plus, A.sparse_sigmoid, A.squareplus, A.tanh, A.tanh_shrink, A.threshold),
)


def _activation(step: Step, relevance: tf.Tensor) -> tuple[tf.Tensor]:
    return _gated_linear_unit(step, relevance) if step.layer.activation is A.glu else (relevance,)


def _refuse_activation(operation: Operation) -> str | None:
    activation = operation.layer.activation
    if activation is A.glu or activation in _ELEMENTWISE_ACTIVATIONS:
        return None
    name = getattr(activation, "__name__", type(activation).__name__)
    return f"applies `{name}`, which is not known to act on every value alone"


def _fallback_offset(step: Step, relevance: Any) -> tf.Tensor:
    parts = [value for value in _as_tuple(relevance) if value.dtype.is_floating]
    whole = [inner_product(value, tf.ones((), value.dtype)) for value in parts]
    passed = [value for value in _proportional(step, relevance) if value is not None]
    return tf.add_n(whole) - tf.add_n([inner_product(value, tf.ones((), value.dtype)) for value in passed])


# What is left beside the inputs' products with the gradient counts as absorbed: an account, not an explanation.
PROPORTIONAL_TO_GRADIENT = Rule(_proportional, _fallback_offset)

WEIGHTED = weighted(Weighted(Epsilon()))
BATCH_NORM = Rule(_batch_norm, _batch_norm_offset, refuse_batch_norm)
UNCHANGED = Rule(_unchanged, refuse=refuse_other_tensors)
ACTIVATION = Rule(_activation, refuse=_refuse_activation)
_REFUSE_MOVING = first_of(refuse_other_tensors, refuse_across_samples, refuse_initial)
ROUTED = Rule(vector_jacobian_products, refuse=_REFUSE_MOVING)
WINNER = Rule(vector_jacobian_products, refuse=refuse_constants)
FILLED = Rule(vector_jacobian_products, _absorbed_by_filling, _REFUSE_MOVING)
SUM = Rule(_proportional, _absorbed_by_constants)
MEAN = Rule(_proportional, _absorbed_by_stabiliser, _REFUSE_MOVING)
MEAN_OF_STEPS = Rule(_proportional, _absorbed_by_stabiliser, refuse_mask)
RESIZING = Rule(_proportional, _absorbed_by_constants, first_of(refuse_across_samples, refuse_resizing))
MAX_POOLING = Rule(max_pooling_gradient)
UPSAMPLING = Rule(_upsampling, _upsampling_offset, refuse_resizing)
SHARED = Rule(_shared, steers=gates)
QUOTIENT = Rule(_quotient, steers=_divisor_steers)
EXTREMUM = Rule(_extremum)
_NORMALISATION = Rule(_normalisation, _normalisation_offset)
_CONTRACTION = Rule(_contraction, _absorbed_by_stabiliser, refuse_mixing, bounded_factors)

_KINDS: dict[Rule, tuple[Any, ...]] = {
    WEIGHTED: (*DENSE, *CONVOLUTIONS),
    BATCH_NORM: (L.BatchNormalization,),
    Rule(_normalisation, _normalisation_offset, refuse_layer_norm): (L.LayerNormalization,),
    _NORMALISATION: (L.GroupNormalization, L.RMSNormalization, L.UnitNormalization),
    ACTIVATION: (L.Activation,),
    UNCHANGED: (
        *(L.ReLU, L.ELU, L.LeakyReLU, L.PReLU, L.Identity, L.ActivityRegularization, L.Masking),
        *(L.Rescaling, L.Normalization),
        *(L.Dropout, L.AlphaDropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D),
        *(L.GaussianDropout, L.GaussianNoise, L.AugMix, L.CutMix, L.MixUp, L.RandAugment, L.RandomBrightness),
        *(L.RandomColorDegeneration, L.RandomColorJitter, L.RandomContrast, L.RandomElasticTransform),
        *(L.RandomErasing, L.RandomFlip, L.RandomGaussianBlur, L.RandomGrayscale, L.RandomHue, L.RandomInvert),
        *(L.RandomPerspective, L.RandomPosterization, L.RandomRotation, L.RandomSaturation, L.RandomSharpness),
        *(L.RandomShear, L.RandomTranslation, L.RandomZoom),
        *(ops.abs, ops.absolute, ops.arctan, ops.arcsinh, ops.cast, ops.celu, ops.clip, ops.copy, ops.elu, ops.erf),
        *(ops.exp, ops.expm1, ops.gelu, ops.hard_shrink, ops.hard_sigmoid, ops.hard_silu, ops.hard_tanh),
        *(ops.leaky_relu, ops.log, ops.log1p, ops.log_sigmoid, ops.negative, ops.reciprocal, ops.relu, ops.relu6),
        *(ops.rsqrt, ops.selu, ops.sigmoid, ops.silu, ops.sin, ops.sinh, ops.soft_shrink, ops.softplus),
        *(ops.softsign, ops.sparse_plus, ops.sparse_sigmoid, ops.sqrt, ops.square, ops.squareplus, ops.tan),
        *(ops.tanh, ops.tanh_shrink, ops.threshold),
    ),
    ROUTED: (
        *(L.MaxPooling1D, L.MaxPooling3D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
        *(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D),
        *(L.Flatten, L.Reshape, L.Permute, L.RepeatVector, L.Cropping1D, L.Cropping2D, L.Cropping3D, L.CenterCrop),
        *(ops.max, ops.min, ops.amax, ops.amin, ops.max_pool, ops.adaptive_max_pool, ops.split, ops.unstack),
        *(ops.get_item, ops.take, ops.slice, ops.reshape, ops.ravel, ops.squeeze, ops.expand_dims, ops.transpose),
        *(ops.swapaxes, ops.moveaxis, ops.flip, ops.roll, ops.rot90, ops.tile, ops.repeat, ops.broadcast_to),
        *(ops.depth_to_space, ops.space_to_depth, ops.image.crop_images),
    ),
    WINNER: (L.Maximum, L.Minimum),
    FILLED: (
        *(L.Concatenate, L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D),
        *(ops.concatenate, ops.stack, ops.hstack, ops.pad),
        *(ops.image.pad_images, ops.image.extract_patches),
    ),
    MAX_POOLING: (L.MaxPooling2D,),
    UPSAMPLING: (L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    SUM: (L.Add, L.Subtract, L.Average, ops.add, ops.subtract),
    MEAN: (
        *(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
        *(L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
        *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
        *(ops.mean, ops.sum, ops.average, ops.cumsum, ops.diff, ops.average_pool, ops.adaptive_average_pool, ops.fold),
        *(ops.image.rgb_to_grayscale, ops.image.gaussian_blur),
    ),
    MEAN_OF_STEPS: (L.GlobalAveragePooling1D,),
    RESIZING: (L.Resizing, L.RandomCrop, ops.image.resize),
    SHARED: (L.Multiply, ops.multiply),
    QUOTIENT: (ops.divide, ops.true_divide),
    EXTREMUM: (ops.maximum, ops.minimum),
    Rule(_contraction, _absorbed_by_stabiliser, refuse_cosine, bounded_factors): (L.Dot,),
    _CONTRACTION: (
        *(ops.matmul, ops.dot, ops.einsum, ops.tensordot),
        *(ops.conv, ops.depthwise_conv, ops.separable_conv, ops.conv_transpose),
    ),
    Rule(_attention, _attention_offset, refuse_attention, scores_steer): (
        *(L.Attention, L.AdditiveAttention, L.MultiHeadAttention, L.GroupQueryAttention),
    ),
    Rule(_gated_linear_unit, refuse=_refuse_glu): (ops.glu,),
}
for _rule, _kinds in _KINDS.items():
    for _kind in dict.fromkeys(_kinds):
        RULES.register(_kind, _rule)
