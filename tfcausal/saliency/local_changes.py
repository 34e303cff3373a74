"""What a model answers to images of which one patch was changed, computed only where the change has an effect.

Convolutions, pooling and what works on single pixels are local: a change in one patch of the image changes one window
of their output, and the rest is what it was for the unchanged image. As long as that window is small, the layers are
run on the part of their input that it depends on, cut out with the surroundings that they need; then the window is put
into the unchanged tensor and the rest of the model is run as it is. Nothing is approximated: the layers themselves
compute every value, from the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.graph import Activations, OperationGraph
from tfcausal.operations import Operation

# A window is followed until the part of a tensor that has to be computed anew is larger than this share.
_LARGEST_SHARE = 0.7


@dataclass(frozen=True)
class Reach:
    """Which values along one axis an output depends on: output i on [i * stride - before, i * stride + after]."""

    stride: int = 1
    before: int = 0
    after: int = 0

    def then(self, next_one: Self) -> Reach:
        """The reach of two layers in a row."""
        return Reach(
            self.stride * next_one.stride,
            self.before + self.stride * next_one.before,
            self.after + self.stride * next_one.after,
        )


Reaches = tuple[Reach, Reach]
_POINT = (Reach(), Reach())


@dataclass(frozen=True)
class Segment:
    """Local operations between two tensors, the first of which is all that the second depends on.

    Attributes:
        start: Position of the first tensor.
        end: Position of the second.
        reaches: Reach of the second along height and width.
    """

    start: int
    end: int
    reaches: Reaches


def local_segments(graph: OperationGraph, position: int) -> list[Segment]:
    """The local operations that an input goes through, up to the first one that is not local.

    Args:
        graph: The model's operations.
        position: Position of an input (N, height, width, channels).

    Returns:
        Segments in their order, each the shortest that computes more than single pixels; none where the first
        operation is not local or a size is not known.
    """
    affected = _affected(graph, position)
    last_use = {source: index for index, operation in enumerate(affected) for source in operation.inputs}
    last_use[graph.logits] = len(affected)
    segments: list[Segment] = []
    start, reaches = position, {position: _POINT}
    for index, operation in enumerate(affected):
        found = _reaches(graph, operation, reaches)
        if found is None:
            break
        reaches[operation.output] = found
        if all(last_use.get(known, -1) <= index for known in reaches if known != operation.output):
            segments.append(Segment(start, operation.output, found))
            start, reaches = operation.output, {operation.output: _POINT}
    return _merged(segments)


def _affected(graph: OperationGraph, position: int) -> list[Operation]:
    reached, affected = {position}, []
    for operation in graph.operations:
        if reached.intersection(operation.inputs):
            reached.update(operation.outputs)
            affected.append(operation)
    return affected


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Single pixels are computed with what comes before them, padding with what comes after it."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and (segment.reaches == _POINT or _only_shifts(merged[-1])):
            first = merged.pop()
            height, width = (one.then(two) for one, two in zip(first.reaches, segment.reaches, strict=True))
            segment = Segment(first.start, segment.end, (height, width))
        merged.append(segment)
    return merged


def _only_shifts(segment: Segment) -> bool:
    return all(reach.stride == 1 and reach.before + reach.after == 0 for reach in segment.reaches)


_POINTWISE_FUNCTIONS = (
    *(keras.activations.elu, keras.activations.exponential, keras.activations.gelu, keras.activations.hard_sigmoid),
    *(keras.activations.hard_silu, keras.activations.leaky_relu, keras.activations.linear, keras.activations.relu),
    *(keras.activations.relu6, keras.activations.selu, keras.activations.sigmoid, keras.activations.silu),
    *(keras.activations.softplus, keras.activations.softsign, keras.activations.tanh),
)
_POINTWISE = (
    *(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.Identity, keras.layers.Rescaling),
    *(keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.GaussianDropout, keras.layers.GaussianNoise),
    *(keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply, keras.layers.Average, keras.layers.Maximum),
    *(keras.layers.Minimum, keras.layers.ActivityRegularization),
    *map(keras_api.operation_class, (keras.activations.relu, keras.ops.relu, keras.ops.relu6, keras.ops.silu)),
    *map(keras_api.operation_class, (keras.ops.add, keras.ops.subtract, keras.ops.multiply)),
)
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def _reaches(graph: OperationGraph, operation: Operation, known: Mapping[int, Reaches]) -> Reaches | None:
    """The reach of an operation's output from the start of its segment; None where the operation is not local."""
    sizes = {shape[1:3] for shape in operation.input_shapes if len(shape) == 4 and None not in shape[1:3]}
    if len(sizes) != 1 or len(operation.outputs) != 1 or not set(operation.inputs) <= set(known):
        return None
    if any(len(shape) != 4 for shape in operation.input_shapes) or None in operation.shape[1:3]:
        return None
    own = _own_reaches(operation, sizes.pop())
    if own is None:
        return None
    combined = []
    for axis in range(2):
        sources = [known[source][axis] for source in operation.inputs]
        if len({source.stride for source in sources}) > 1:
            return None
        before, after = max(source.before for source in sources), max(source.after for source in sources)
        combined.append(Reach(sources[0].stride, before, after).then(own[axis]))
    return combined[0], combined[1]


def _own_reaches(operation: Operation, sizes: tuple[Any, ...]) -> Reaches | None:
    layer, kind = operation.layer, type(operation.layer)
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    if kind in _CONVOLUTIONS:
        spans = [(kernel - 1) * rate + 1 for kernel, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        return _sliding(spans, layer.strides, layer.padding, sizes)
    if kind in _POOLINGS:
        return _sliding(layer.pool_size, layer.strides, layer.padding, sizes)
    if kind is keras.layers.ZeroPadding2D:
        (top, _), (left, _) = layer.padding
        return Reach(1, top, -top), Reach(1, left, -left)
    works_on_channels = kind in (keras.layers.BatchNormalization, keras.layers.Concatenate) and layer.axis in (-1, 3)
    activates = kind is keras.layers.Activation and layer.activation in _POINTWISE_FUNCTIONS
    single = kind in _POINTWISE and not any(np.ndim(value) for value in operation.constants)
    return _POINT if works_on_channels or activates or single else None


def _sliding(spans: Sequence[int], strides: Sequence[int], padding: str, sizes: Sequence[int]) -> Reaches | None:
    if padding not in ("same", "valid"):
        return None
    reaches = []
    for span, stride, size in zip(spans, strides, sizes, strict=True):
        padded = max((-(-size // stride) - 1) * stride + span - size, 0) if padding == "same" else 0
        reaches.append(Reach(stride, padded // 2, span - 1 - padded // 2))
    return reaches[0], reaches[1]


@dataclass(frozen=True)
class Windows:
    """One window of a tensor for every patch, along one axis.

    Attributes:
        starts: Where they start, one number for every patch; NumPy, or a tensor where it depends on the image.
        size: How long they all are.
    """

    starts: Any
    size: Any


@dataclass(frozen=True)
class Stage:
    """A segment with what is cut out of its first tensor, and the window that changes in its second, for each axis."""

    segment: Segment
    parts: tuple[Windows, Windows]
    changed: tuple[Windows, Windows]


def stages(graph: OperationGraph, segments: Sequence[Segment], patches: tuple[Windows, Windows]) -> list[Stage]:
    """Follow the windows that patches change through local segments, as long as they stay small.

    Args:
        graph: The model's operations.
        segments: From :func:`local_segments`.
        patches: The patches along height and width, their starts as NumPy arrays.

    Returns:
        What to compute for every segment that is worth it.
    """
    followed: list[Stage] = []
    windows = patches
    for segment in segments:
        lengths = [graph.shape(segment.start)[axis] for axis in (1, 2)]
        lengths_after = [graph.shape(segment.end)[axis] for axis in (1, 2)]
        (rows, rows_after), (columns, columns_after) = (
            _through(window, reach, int(length or 0), int(length_after or 0))
            for window, reach, length, length_after in zip(
                windows, segment.reaches, lengths, lengths_after, strict=True
            )
        )
        if rows.size * columns.size > _LARGEST_SHARE * (lengths[0] or 0) * (lengths[1] or 0):
            break
        followed.append(Stage(segment, (rows, columns), (rows_after, columns_after)))
        windows = rows_after, columns_after
    return followed


def _through(windows: Windows, reach: Reach, length: int, length_after: int) -> tuple[Windows, Windows]:
    """What has to be cut out of a tensor of some length, and the windows that change in the next one.

    The cut starts at a multiple of the stride and is shorter than the tensor by a multiple of it, so that strides and
    `same` padding fall as in the whole tensor; where the layers pad it is at the tensor's own border, or affects values
    outside the window only.
    """
    stride, before, after = reach.stride, reach.before, reach.after
    size = min((windows.size - 1 + before + after) // stride + 1, length_after)
    starts = np.clip(-((after - windows.starts) // stride), 0, length_after - size)
    first = np.clip(starts * stride - before, 0, length - 1)
    last = np.clip((starts + size - 1) * stride + after, 0, length - 1)
    for cut in range(length % stride or stride, length, stride):
        offsets = np.minimum(first // stride * stride, length - cut)
        computed = offsets // stride + length_after - (length - cut) // stride
        if (offsets <= first).all() and (offsets + cut > last).all() and (computed >= starts + size).all():
            return Windows(offsets, cut), Windows(starts, size)
    return Windows(np.zeros_like(starts), length), Windows(starts, size)


def changed_logits(
    graph: OperationGraph,
    clean: Activations,
    position: int,
    image: tf.Tensor,
    places: tuple[tf.Tensor, tf.Tensor],
    patches: tuple[Windows, Windows],
    values: tf.Tensor,
    followed: Sequence[Stage] = (),
) -> tf.Tensor:
    """Logits for images of which one patch was changed.

    Args:
        graph: The model's operations.
        clean: Every tensor of the forward pass of the unchanged images.
        position: Position of the input that is changed.
        image: Which image each row is a changed copy of, (rows,).
        places: Number of the patch along height and along width for every row, (rows,) each.
        patches: The patches along height and width.
        values: What stands in the patches, (rows, patch height, patch width, channels).
        followed: The part of the model that is computed where the change has an effect only, from :func:`stages`.

    Returns:
        Logits (rows, classes).
    """
    inputs = [clean[source] for source in graph.inputs]
    current, windows = position, patches
    for stage in followed:
        part = _cut(clean[current], image, places, windows, values, stage.parts)
        run = graph.run(inputs, given={current: part}, until=stage.segment.end)
        steps = [reach.stride for reach in stage.segment.reaches]
        pairs = zip(stage.changed, stage.parts, steps, places, strict=True)
        offsets = [_at(changed.starts - cut.starts // stride, place) for changed, cut, stride, place in pairs]
        current, windows = stage.segment.end, stage.changed
        values = _window(run[current], offsets, [window.size for window in windows])
    shape = _sizes(clean[current])
    whole = tuple(Windows(tf.zeros_like(windows[axis].starts), shape[axis + 1]) for axis in range(2))
    merged = tf.ensure_shape(
        _cut(clean[current], image, places, windows, values, (whole[0], whole[1])), (None, *graph.shape(current)[1:])
    )
    return graph.run(inputs, given=_unchanged(graph, clean, position, image) | {current: merged})[graph.logits]


def _unchanged(graph: OperationGraph, clean: Activations, position: int, image: tf.Tensor) -> Activations:
    """What affected operations read that depends on other inputs only, with one row for every changed image."""
    affected = {output for operation in _affected(graph, position) for output in operation.outputs} | {position}
    others: set[int] = set(graph.inputs) - {position}
    for operation in graph.operations:
        if others.intersection(operation.inputs) and not affected.intersection(operation.outputs):
            others.update(operation.outputs)
    return {source: tf.gather(clean[source], image) for source in others}


def _cut(
    clean: tf.Tensor,
    image: tf.Tensor,
    places: tuple[tf.Tensor, tf.Tensor],
    windows: tuple[Windows, Windows],
    values: tf.Tensor,
    parts: tuple[Windows, Windows],
) -> tf.Tensor:
    """Cut a part out of every row's tensor: the values in its window, the unchanged tensor elsewhere."""
    _, height, width, channels = _sizes(clean)
    rows, columns = (
        _at(part.starts, place)[:, tf.newaxis] + tf.range(part.size) for part, place in zip(parts, places, strict=True)
    )
    pixel = (image[:, tf.newaxis] * height + rows)[:, :, tf.newaxis] * width + columns[:, tf.newaxis, :]
    unchanged = tf.gather(tf.reshape(clean, [-1, channels]), pixel)
    inside_rows, inside_columns = (
        along - _at(window.starts, place)[:, tf.newaxis]
        for along, window, place in zip((rows, columns), windows, places, strict=True)
    )
    inside = tf.logical_and(
        tf.logical_and(inside_rows >= 0, inside_rows < windows[0].size)[:, :, tf.newaxis],
        tf.logical_and(inside_columns >= 0, inside_columns < windows[1].size)[:, tf.newaxis, :],
    )
    source = _pixels(
        tf.clip_by_value(inside_rows, 0, windows[0].size - 1),
        tf.clip_by_value(inside_columns, 0, windows[1].size - 1),
        windows[0].size,
        windows[1].size,
    )
    changed = tf.gather(tf.reshape(values, [-1, channels]), source)
    return tf.where(inside[..., tf.newaxis], tf.cast(changed, clean.dtype), unchanged)


def _window(tensor: tf.Tensor, offsets: Sequence[tf.Tensor], sizes: Sequence[int]) -> tf.Tensor:
    """Cut a window out of every row at its own offset."""
    _, height, width, channels = _sizes(tensor)
    rows, columns = (offset[:, tf.newaxis] + tf.range(size) for offset, size in zip(offsets, sizes, strict=True))
    return tf.gather(tf.reshape(tensor, [-1, channels]), _pixels(rows, columns, height, width))


def _pixels(rows: tf.Tensor, columns: tf.Tensor, height: Any, width: Any) -> tf.Tensor:
    """Numbers of pixels in tensors that were flattened up to their channels, (tensors, rows, columns)."""
    number = tf.range(tf.shape(rows)[0])[:, tf.newaxis]
    return (number * height + rows)[:, :, tf.newaxis] * width + columns[:, tf.newaxis, :]


def _at(starts: Any, place: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.cast(starts, tf.int32), place)


def _sizes(tensor: tf.Tensor) -> list[Any]:
    """The shape of a tensor: numbers where they are known, which the layers may need, and tensors elsewhere."""
    dynamic = tf.unstack(tf.shape(tensor))
    return [size if known is None else known for known, size in zip(tensor.shape, dynamic, strict=True)]
