"""What the rules of WBP and of LRP do not hold for: each function says why, in words, or gives None where they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcausal import keras_api
from tfcausal.operations import Operation
from tfcausal.saliency.linear_maps import attended, bound_arguments, places

L, ops = keras.layers, keras.ops
Refusal = Callable[[Operation], str | None]


def first_of(*refusals: Refusal) -> Refusal:
    """The first reason that one of several functions gives."""

    def refuse(operation: Operation) -> str | None:
        return next(filter(None, (refusal(operation) for refusal in refusals)), None)

    return refuse


def refuse_weighted(operation: Operation) -> str | None:
    """Why a layer with a kernel is not known as an affine map: it may be quantised, or its bias misplaced by Keras."""
    layer = operation.layer
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        return f"is quantized to {mode}, which is not handled"
    channels_first, bias = getattr(layer, "data_format", None) == "channels_first", getattr(layer, "bias", None)
    width = operation.shape[-1]
    # `keras.ops.add` takes a vector as long as the last axis for one along it, in some ways of running a model.
    if channels_first and bias is not None and tuple(bias.shape) == (width,) != (1,):
        return (
            f"has {width} channels, which come first, in outputs of the same width, where Keras adds its bias along "
            "the width or along the channels, depending on how the model is run"
        )
    return None


def refuse_attention(operation: Operation) -> str | None:
    """Why an attention layer is not known as a linear map: a constant value, a hidden mask, quantised weights."""
    if attended(operation) < 0:
        return "attends to a constant, which is not handled"
    if {"int8", "uint8"}.intersection(weight.dtype for weight in getattr(operation.layer, "weights", ())):
        return "is quantized, which is not handled"
    return _hidden_mask(operation)


def refuse_mask(operation: Operation) -> str | None:
    """Why a layer that takes a mask is not known as a linear map: it is given one."""
    if len(operation.inputs) > 1 or operation.constants:
        return "is given a mask, which is not handled"
    return _hidden_mask(operation)


def _hidden_mask(operation: Operation) -> str | None:
    """Whether a mask hangs on the tensors that go in: it is no input, so that no rule sees it."""
    waiting, seen = list(operation.sources), set()
    while waiting:
        source = waiting.pop()
        if source is None or id(source) in seen:
            continue
        seen.add(id(source))
        if isinstance(source.layer, L.Masking) or getattr(source.layer, "mask_zero", False):
            return f"uses the mask that `{source.path}` attaches to its output, which is not handled"
        if getattr(source.layer, "supports_masking", True):
            waiting.extend(source.sources)
    return None


def refuse_batch_norm(operation: Operation) -> str | None:
    """Why a batch normalisation is not known as an affine map."""
    if getattr(operation.layer, "renorm", False):
        return "uses renorm, which is not handled"
    return refuse_mask(operation)


def refuse_layer_norm(operation: Operation) -> str | None:
    """Why a layer normalisation is not known as an affine map."""
    return "uses rms_scaling, which is not handled" if getattr(operation.layer, "rms_scaling", False) else None


def refuse_cosine(operation: Operation) -> str | None:
    """Why a layer for dot products is none: it may give the cosine."""
    return "normalises its factors, which is not handled" if operation.layer.normalize else None


def refuse_constants(operation: Operation) -> str | None:
    """For layers that choose between tensors: a constant may be chosen, too."""
    return "is given a constant, which is not handled" if operation.constants else None


def refuse_initial(operation: Operation) -> str | None:
    """For the largest value of a tensor: it may be another one, given in the call."""
    return None if getattr(operation.layer, "initial", None) is None else "has an initial value, which is not handled"


def refuse_other_tensors(operation: Operation) -> str | None:
    """Rules for functions that are linear in their first argument: another, an index or a weight, is a constant."""
    if places(operation)[0] == tuple(range(len(operation.inputs))):
        return None
    return "takes a tensor beside its first argument, which is not handled"


def refuse_resizing(operation: Operation) -> str | None:
    """What TensorFlow resizes images with, but has no gradient for."""
    interpolation = str(getattr(operation.layer, "interpolation", None))
    if interpolation == "area":
        return "resizes by area, for which TensorFlow has no gradient"
    antialiased = getattr(operation.layer, "antialias", False) or interpolation.startswith("lanczos")
    if antialiased and getattr(operation.layer, "compute_dtype", None) == "float64":
        return "resizes in float64 in a way for which TensorFlow has a gradient in float32 only"
    return None


def refuse_mixing(operation: Operation) -> str | None:
    """A contraction must keep its first axis, the samples, apart: a map must not depend on the batch."""
    apart = _einsum_apart if hasattr(operation.layer, "subscripts") else _contracted_apart
    return None if apart(operation) else "multiplies different samples with each other, which is not handled"


def _einsum_apart(operation: Operation) -> bool:
    terms, _, result = operation.layer.subscripts.replace(" ", "").partition("->")
    markers = [object() for _ in operation.inputs]
    operands, _ = operation.arguments(markers)
    tensors = {id(marker) for marker in markers}
    first = {
        term[:1]
        for term, operand in zip(terms.split(","), operands[-len(terms.split(",")) :], strict=True)
        if id(operand) in tensors
    }
    return first == {result[:1]}


def _contracted_apart(operation: Operation) -> bool:
    ranks = [len(shape) for shape in operation.input_shapes]
    is_product = isinstance(operation.layer, keras_api.operation_class(ops.matmul))
    if len(ranks) > 1:
        return is_product and min(ranks) > 2
    (constant,) = operation.constants[:1] or (0.0,)
    constant_rank = len(getattr(constant, "shape", ()))
    if places(operation)[0] != (0,):
        return is_product and ranks[0] > max(2, constant_rank - 1)
    axes = getattr(operation.layer, "axes", None)
    if isinstance(axes, int):
        return axes < ranks[0]
    if axes is not None:
        return all(axis % ranks[0] for axis in keras.tree.flatten(axes[0]))
    return ranks[0] > 1 and not (is_product and constant_rank > ranks[0])


def refuse_across_samples(operation: Operation) -> str | None:
    """Functions of `keras.ops` may act along the first axis, the samples; a map must not depend on the batch.

    Layers never do. A reshape of images of unknown size counts as one that keeps the samples apart.
    """
    across = next((_ACROSS[kind] for kind in type(operation.layer).__mro__ if kind in _ACROSS), None)
    if across is None or not across(operation):
        return None
    return "acts along the first axis, the samples of the batch, on which a map must not depend"


def _touches(axes: Any, rank: int) -> bool:
    """Whether axes, or None for all of them, contain the first."""
    return axes is None or any(axis % rank == 0 for axis in keras.tree.flatten(axes))


def _rank(operation: Operation) -> int:
    return len(operation.input_shapes[0])


def _along_axis(operation: Operation) -> bool:
    return _touches(operation.layer.axis, _rank(operation))


def _along_new_axis(operation: Operation) -> bool:
    return _touches(operation.layer.axis, len(operation.shape))


def _along_some(*names: str) -> Callable[[Operation], bool]:
    return lambda operation: any(_touches(getattr(operation.layer, name), _rank(operation)) for name in names)


def _transposes(operation: Operation) -> bool:
    axes = operation.layer.axes
    return _rank(operation) > 1 if axes is None else axes[0] % _rank(operation) != 0


def _reshapes(operation: Operation) -> bool:
    """Whether a row can hold values of several samples. Parts of the samples may go into the batch and come back."""
    return operation.rows == 0 and all(source is None or source.rows > 0 for source in operation.sources)


def _pads(operation: Operation) -> bool:
    return any(keras.tree.flatten(operation.layer.pad_width[0]))


def _tiles(operation: Operation) -> bool:
    repeats = keras.tree.flatten(operation.layer.repeats)
    return len(repeats) > _rank(operation) or (len(repeats) == _rank(operation) and repeats[0] != 1)


def _resizes_batch(operation: Operation) -> bool:
    return len(operation.shape) != _rank(operation) or operation.shape[0] != operation.input_shapes[0][0]


def _cuts(operation: Operation) -> bool:
    start = keras.tree.flatten(bound_arguments(operation, ["tensor"])["start_indices"])[0]
    return _resizes_batch(operation) or not isinstance(start, int) or start != 0


def _picks(operation: Operation) -> bool:
    key = bound_arguments(operation, ["tensor"])["key"]
    parts = key if isinstance(key, tuple) else (key,)
    if parts and parts[0] is Ellipsis:
        return sum(part is not None for part in parts[1:]) >= _rank(operation)
    return bool(parts) and (not isinstance(parts[0], slice) or parts[0] != slice(None))


def _takes_one_image(operation: Operation) -> bool:
    return _rank(operation) == 3


def _checks() -> Mapping[type, Callable[[Operation], bool]]:
    table: tuple[tuple[Callable[[Operation], bool], tuple[Callable[..., Any], ...]], ...] = (
        (
            _along_axis,
            (
                *(ops.max, ops.min, ops.amax, ops.amin, ops.mean, ops.sum, ops.average, ops.cumsum, ops.diff),
                *(ops.split, ops.take, ops.unstack, ops.flip, ops.roll, ops.repeat, ops.squeeze, ops.concatenate),
                ops.glu,
            ),
        ),
        (_along_new_axis, (ops.expand_dims, ops.stack)),
        (_along_some("axes"), (ops.rot90,)),
        (_along_some("axis1", "axis2"), (ops.swapaxes,)),
        (_along_some("source", "destination"), (ops.moveaxis,)),
        (_transposes, (ops.transpose,)),
        (_reshapes, (ops.reshape, ops.ravel)),
        (_pads, (ops.pad,)),
        (_tiles, (ops.tile,)),
        (_resizes_batch, (ops.broadcast_to,)),
        (_cuts, (ops.slice,)),
        (_picks, (ops.get_item,)),
        (lambda operation: _rank(operation) == 1, (ops.hstack,)),
        (
            _takes_one_image,
            (
                *(ops.image.resize, ops.image.crop_images, ops.image.pad_images, ops.image.rgb_to_grayscale),
                *(ops.image.extract_patches, ops.image.gaussian_blur),
            ),
        ),
    )
    return {keras_api.operation_class(function): check for check, functions in table for function in functions}


_ACROSS = _checks()
