"""The rules of weight back-propagation: how every kind of layer passes a cotangent back, and what it adds.

With everything nonlinear frozen at what it does on the input, a layer is ``y = B x + c``. Its rule gives ``B^T W`` for
the cotangent ``W``, and its offset is ``<W, c>``. Source: *Proactive Pseudo-Intervention*, table 1, which has dense
layers, convolutions, batch normalisation, ReLU and pooling. Beyond it: a smooth activation is the secant from its value
at 0, ``B = (f(x) - f(0)) / x`` with the constant ``f(0)``; normalisations keep their standard deviations, and attention
its scores, as constants; in a product, gates are constants and the other factors share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tfcausal.operations import Operation
from tfcausal.saliency import wbp_activations
from tfcausal.saliency.linear_maps import (
    CONVOLUTIONS,
    DENSE,
    LinearStage,
    along_channels,
    attended,
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
    places,
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
from tfcausal.saliency.wbp_activations import no_offset, secant, secant_offset

L, ops = keras.layers, keras.ops

RULES = RuleTable("wbp")


def _offset_at_zero(step: Step, cotangent: Any) -> tf.Tensor:
    """What an affine operation gives for zeros is its constant."""
    constants = step.operation.compute([tf.zeros_like(value) for value in step.inputs])
    cotangents = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    return tf.add_n([inner_product(value, constant) for value, constant in zip(cotangents, constants, strict=True)])


def _offset_of_constants(step: Step, cotangent: Any) -> tf.Tensor:
    """For an operation that is affine because of the constants in its call."""
    if step.operation.constants:
        return _offset_at_zero(step, cotangent)
    return no_offset(step, cotangent[0] if isinstance(cotangent, tuple) else cotangent)


def _refuse_integers(operation: Operation) -> str | None:
    return None if tf.as_dtype(operation.layer.dtype).is_floating else "rounds its input, which is not handled"


def _weighted(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    source, stages = step.inputs[0], []
    for stage in linear_stages(step.layer, cotangent.dtype):
        stages.append((stage, source))
        source = stage.apply(source, stage.kernel)
    for stage, source in reversed(stages):
        single = Step(step.operation, (source,), step.outputs, step.training)
        (cotangent,) = vector_jacobian_products(single, cotangent, partial(_applied, stage))
    return (cotangent,)


def _applied(stage: LinearStage, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [stage.apply(inputs[0], stage.kernel)]


def _bias(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    bias = linear_stages(step.layer, cotangent.dtype)[-1].bias
    return no_offset(step, cotangent) if bias is None else inner_product(cotangent, bias)


def _batch_norm(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    gain, _ = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    return (cotangent * tf.cast(along_channels(step.layer, gain, cotangent.shape.rank), cotangent.dtype),)


def _batch_norm_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    _, shift = batch_norm_affine(step.layer, *batch_norm_statistics(step.layer, step.inputs[0], step.training))
    return inner_product(cotangent, along_channels(step.layer, shift, cotangent.shape.rank))


def _normalisation(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    return (normalisation_gradient(step, cotangent),)


def _normalisation_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    _, _, shift = normalisation(step.layer, step.inputs[0])
    shift = tf.zeros((), cotangent.dtype) if shift is None else shift
    return inner_product(grouped(step.layer, cotangent), shift)


def _dropout(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
    if not step.training or step.layer.rate == 0:
        return (cotangent,)
    # The factors that were drawn. Where the input is 0, so is its contribution, whatever the factor.
    drawn = tf.stop_gradient(tf.math.divide_no_nan(step.output, step.inputs[0]))
    return (cotangent * drawn,)


def _noise_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    return inner_product(cotangent, tf.stop_gradient(step.output - step.inputs[0]))


def _extremum(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The larger or smaller of two tensors goes to the winner; against a constant it is an activation."""
    return vector_jacobian_products(step, cotangent) if len(step.inputs) > 1 else secant(step, cotangent)


def _extremum_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    return no_offset(step, cotangent) if len(step.inputs) > 1 else secant_offset(step, cotangent)


def _refuse_spreading(operation: Operation) -> str | None:
    if len(operation.inputs) > 1 or operation.input_shapes[0] == operation.shape:
        return None
    return "is spread over a larger constant, which is not handled"


def _refuse_power(operation: Operation) -> str | None:
    exponent = operation.constants[0] if len(operation.inputs) == 1 and operation.constants else None
    if places(operation)[0] == (0,) and isinstance(exponent, (int, float)) and exponent >= 1:
        return None
    return "is a power other than a tensor to a constant of at least 1"


def _all_but_first_steer(operation: Operation) -> tuple[bool, ...]:
    first = places(operation)[0]
    return tuple(position not in first for position in range(len(operation.inputs)))


def _quotient(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    products = vector_jacobian_products(step, cotangent)
    steering = _all_but_first_steer(step.operation)
    return tuple(None if steers else value for value, steers in zip(products, steering, strict=True))


def _refuse_reciprocal(operation: Operation) -> str | None:
    return None if places(operation)[0] == (0,) else "divides a constant by a tensor, which is not handled"


def _condition_steers(operation: Operation) -> tuple[bool, ...]:
    condition = places(operation)[0]
    return tuple(position in condition for position in range(len(operation.inputs)))


def _selection(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
    products = vector_jacobian_products(step, cotangent)
    steering = _condition_steers(step.operation)
    return tuple(None if steers else value for value, steers in zip(products, steering, strict=True))


def _selection_offset(step: Step, cotangent: tf.Tensor) -> tf.Tensor:
    steering = _condition_steers(step.operation)
    pairs = zip(step.inputs, steering, strict=True)
    constants = step.operation.compute([value if steers else tf.zeros_like(value) for value, steers in pairs])
    return inner_product(cotangent, constants[0])


def _refuse_indices(operation: Operation) -> str | None:
    given = len(operation.inputs) + len(operation.constants)
    return None if given == 3 else "gives the places where a condition holds, which is not handled"


def _attention(step: Step, cotangent: Any) -> tuple[tf.Tensor | None, ...]:
    products = vector_jacobian_products(step, cotangent, attention(step))
    steering = scores_steer(step.operation)
    return tuple(None if steers else value for value, steers in zip(products, steering, strict=True))


def _attention_offset(step: Step, cotangent: Any) -> tf.Tensor:
    cotangents = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    if not step.training:
        constants = attention(step)([tf.zeros_like(value) for value in step.inputs])
        return tf.add_n([inner_product(value, constant) for value, constant in zip(cotangents, constants, strict=True)])
    # Dropout of the scores cannot be seen from outside: the map has its mean, and what was drawn counts as a constant.
    value = attended(step.operation)
    product = vector_jacobian_products(step, cotangent, attention(step))[value]
    at_output = [inner_product(value, output) for value, output in zip(cotangents, step.outputs, strict=True)]
    return tf.add_n(at_output) - inner_product(product, step.inputs[value])


_LINEAR = Rule(vector_jacobian_products)
_AFFINE = Rule(vector_jacobian_products, _offset_at_zero)
_MERGE = Rule(vector_jacobian_products, _offset_of_constants, refuse_across_samples)
_WINNER = Rule(vector_jacobian_products, refuse=refuse_constants)
_LARGEST = Rule(vector_jacobian_products, refuse=first_of(refuse_across_samples, refuse_initial))
_RESIZING = Rule(vector_jacobian_products, _offset_at_zero, first_of(refuse_across_samples, refuse_resizing))
_POOLING_OF_MASKED = Rule(vector_jacobian_products, refuse=refuse_mask)
_AT_INFERENCE = Rule(vector_jacobian_products, _offset_at_zero, refuse_resizing, inference_only=True)
_FIRST = Rule(vector_jacobian_products, _offset_of_constants, first_of(refuse_other_tensors, refuse_across_samples))
_PRODUCT = Rule(product_gradients(gates), steers=gates)
_CONTRACTION = Rule(product_gradients(bounded_factors), refuse=refuse_mixing, steers=bounded_factors)
_COSINE = Rule(product_gradients(bounded_factors), refuse=refuse_cosine, steers=bounded_factors)
_NORMALISATION = Rule(_normalisation, _normalisation_offset)
_ATTENTION = Rule(_attention, _attention_offset, refuse_attention, scores_steer)

_LAYERS: tuple[tuple[Rule, tuple[Any, ...]], ...] = (
    (Rule(_weighted, _bias, refuse_weighted), (*DENSE, *CONVOLUTIONS)),
    (Rule(_batch_norm, _batch_norm_offset, refuse_batch_norm), (L.BatchNormalization,)),
    (Rule(_normalisation, _normalisation_offset, refuse_layer_norm), (L.LayerNormalization,)),
    (_NORMALISATION, (L.GroupNormalization, L.RMSNormalization, L.UnitNormalization)),
    (Rule(max_pooling_gradient), (L.MaxPooling2D,)),
    (
        Rule(_dropout),
        (L.Dropout, L.GaussianDropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D),
    ),
    (Rule(lambda step, cotangent: (cotangent,), _noise_offset), (L.GaussianNoise,)),
    (_PRODUCT, (L.Multiply,)),
    (_COSINE, (L.Dot,)),
    (_ATTENTION, (L.Attention, L.AdditiveAttention, L.MultiHeadAttention, L.GroupQueryAttention)),
    (_POOLING_OF_MASKED, (L.GlobalAveragePooling1D,)),
    (
        _LINEAR,
        (
            *(L.MaxPooling1D, L.MaxPooling3D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
            *(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D, L.Masking),
            *(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
            *(L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
            *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
            *(L.Identity, L.ActivityRegularization),
            *(L.Flatten, L.Reshape, L.Permute, L.RepeatVector),
            *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Cropping1D, L.Cropping2D, L.Cropping3D),
        ),
    ),
    (_WINNER, (L.Maximum, L.Minimum)),
    (_MERGE, (L.Add, L.Subtract, L.Average, L.Concatenate)),
    (_AFFINE, (L.Rescaling, L.Normalization)),
    (_RESIZING, (L.Resizing, L.CenterCrop, L.UpSampling1D, L.UpSampling2D, L.UpSampling3D)),
    (
        _AT_INFERENCE,
        (
            *(L.AlphaDropout, L.AugMix, L.CutMix, L.MixUp, L.RandAugment, L.RandomBrightness),
            *(L.RandomColorDegeneration, L.RandomColorJitter, L.RandomContrast, L.RandomCrop),
            *(L.RandomElasticTransform, L.RandomErasing, L.RandomFlip, L.RandomGaussianBlur, L.RandomGrayscale),
            *(L.RandomHue, L.RandomInvert, L.RandomPerspective, L.RandomPosterization, L.RandomRotation),
            *(L.RandomSaturation, L.RandomSharpness, L.RandomShear, L.RandomTranslation, L.RandomZoom),
        ),
    ),
)
_OPERATIONS: tuple[tuple[Rule, tuple[Callable[..., Any], ...]], ...] = (
    (Rule(_extremum, _extremum_offset, _refuse_spreading), (ops.maximum, ops.minimum)),
    (Rule(secant, secant_offset, _refuse_power), (ops.power,)),
    (_PRODUCT, (ops.multiply,)),
    (
        _CONTRACTION,
        (
            *(ops.matmul, ops.dot, ops.einsum, ops.tensordot),
            *(ops.conv, ops.depthwise_conv, ops.separable_conv, ops.conv_transpose),
        ),
    ),
    (Rule(_quotient, None, _refuse_reciprocal, _all_but_first_steer), (ops.divide, ops.true_divide)),
    (Rule(_selection, _selection_offset, _refuse_indices, _condition_steers), (ops.where,)),
    (_ATTENTION, (ops.dot_product_attention,)),
    (_LARGEST, (ops.max, ops.min, ops.amax, ops.amin)),
    (_LINEAR, (ops.max_pool, ops.adaptive_max_pool)),
    (_MERGE, (ops.add, ops.subtract, ops.concatenate, ops.stack, ops.hstack)),
    (Rule(vector_jacobian_products, refuse=_refuse_integers), (ops.cast,)),
    (_RESIZING, (ops.image.resize,)),
    (
        _FIRST,
        (
            *(ops.negative, ops.mean, ops.sum, ops.average, ops.cumsum, ops.diff, ops.copy, ops.pad),
            *(ops.split, ops.get_item, ops.take, ops.slice, ops.unstack, ops.flip, ops.roll, ops.rot90, ops.tile),
            *(ops.reshape, ops.ravel, ops.squeeze, ops.expand_dims, ops.transpose, ops.swapaxes, ops.moveaxis),
            *(ops.repeat, ops.broadcast_to, ops.average_pool, ops.adaptive_average_pool),
            *(ops.depth_to_space, ops.space_to_depth, ops.fold),
            *(ops.image.crop_images, ops.image.pad_images, ops.image.rgb_to_grayscale),
            *(ops.image.extract_patches, ops.image.gaussian_blur),
        ),
    ),
)
for _table in (_LAYERS, _OPERATIONS, wbp_activations.LAYERS, wbp_activations.OPERATIONS):
    for _rule, _kinds in _table:
        for _kind in _kinds:
            RULES.register(_kind, _rule)
