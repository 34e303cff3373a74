"""Occlusion: how much a logit falls when a patch of the image is covered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.arguments import check_baseline, check_integer
from tfcausal.saliency.local_changes import Stage, Windows, changed_logits, local_segments, stages
from tfcausal.saliency.logit_gradients import Tensors, chosen_logits
from tfcausal.saliency.spatial import SpatialExplainer, forward_batch

Pair = tuple[int, int]
_KEPT_BYTES = 1 << 30


def patch_starts(length: Any, patch: Any, stride: int) -> Any:
    """Where patches start along one axis: every `stride` pixels; the last is moved back to end at the border.

    Args:
        length: Number of pixels, an integer or a tensor.
        patch: Length of a patch, at most `length`; of the same type.
        stride: Distance of two patches, at most `patch`, so that every pixel is covered.

    Returns:
        The first pixel of every patch: a NumPy array, or a tensor for tensors.

    Example:
        >>> patch_starts(8, 3, 2).tolist()
        [0, 2, 4, 5]
    """
    if tf.is_tensor(length):
        return tf.minimum(tf.range(0, length - patch + stride, stride), length - patch)
    return np.minimum(np.arange(0, length - patch + stride, stride, dtype=np.int32), length - patch)


def occlusion(
    graph: OperationGraph,
    inputs: Tensors,
    classes: tf.Tensor,
    position: int,
    patches: tuple[Windows, Windows],
    baseline: tf.Tensor,
    rows: int,
    followed: list[Stage] | None = None,
) -> tf.Tensor:
    """Importance of every pixel: what the logit loses when a patch over it is covered, averaged over these patches.

    Args:
        graph: The model's operations.
        inputs: One tensor (N, ...) for every input.
        classes: Integers (N,); a negative one stands for the class predicted for the whole image.
        position: Position of the input that is covered, (N, height, width, channels).
        patches: The patches along height and width.
        baseline: What is put in their place, broadcasts to (N, height, width, channels).
        rows: Covered images per forward pass.
        followed: What is computed where the patch has an effect only, from :func:`stages`; None runs the whole model.

    Returns:
        The map, float32 (N, height, width, 1).
    """
    clean = graph.run(inputs)
    logits, classes = chosen_logits(clean[graph.logits], classes)

    def lost(covered: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        return tf.gather(logits, source) - chosen_logits(covered, tf.gather(classes, source))[0]

    values = over_patches(graph, clean, position, patches, baseline, rows, followed or (), lost)
    return over_pixels(values, patches, tf.shape(inputs[position])[1:3])


def over_patches(
    graph: OperationGraph,
    clean: Activations,
    position: int,
    patches: tuple[Windows, Windows],
    fill: Any,
    rows: int,
    followed: Sequence[Stage],
    read: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Cover one patch of every image after the other and read a number from the logits.

    Args:
        graph: The model's operations.
        clean: Every tensor of the forward pass of the unchanged images.
        position: Position of the input that is covered, (N, height, width, channels).
        patches: The patches along height and width.
        fill: What is put in their place, broadcasts to (N, height, width, channels).
        rows: Covered images per forward pass.
        followed: What is computed where the patch has an effect only, from :func:`stages`; none runs the whole model.
        read: Takes logits (rows, classes), and which image each row is a covered copy of (rows,); gives (rows,).

    Returns:
        What was read, float32 (N, patches along the height, patches along the width).
    """
    image = clean[position]
    counts = [tf.size(windows.starts) for windows in patches]
    each = counts[0] * counts[1]
    total = tf.shape(image)[0] * each
    channels = image.shape[-1] or tf.shape(image)[-1]
    fill = tf.broadcast_to(fill, tf.stack([tf.shape(image)[0], 1, 1, channels]))

    def update(start: tf.Tensor, gathered: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        row = tf.range(start, tf.minimum(start + rows, total))
        source, number = row // each, row % each
        places = number // counts[1], number % counts[1]
        shape = tf.stack([tf.size(row), patches[0].size, patches[1].size, channels])
        values = tf.broadcast_to(tf.gather(fill, source), shape)
        logits = changed_logits(graph, clean, position, source, places, patches, values, followed)
        return start + rows, gathered.write(start // rows, read(logits, source))

    array = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False, element_shape=(None,))
    _, array = tf.while_loop(lambda start, _: start < total, update, (tf.constant(0), array), parallel_iterations=1)
    return tf.reshape(array.concat(), tf.stack([-1, *counts]))


def over_pixels(values: tf.Tensor, patches: tuple[Windows, Windows], size: tf.Tensor) -> tf.Tensor:
    """The mean over the patches that cover each pixel of a number per patch.

    Args:
        values: (N, patches along the height, patches along the width).
        patches: The patches along height and width, which cover every pixel.
        size: Height and width of the image, (2,).

    Returns:
        (N, height, width, 1).

    Example:
        >>> patches = Windows(np.array([0]), 1), Windows(np.array([0, 1]), 2)
        >>> over_pixels(tf.constant([[[1.0, 3.0]]]), patches, tf.constant([1, 3]))[0, 0, :, 0].numpy().tolist()
        [1.0, 2.0, 3.0]
    """
    covered = []
    for axis, windows in enumerate(patches):
        offsets = tf.range(size[axis]) - tf.cast(windows.starts, tf.int32)[:, tf.newaxis]
        covered.append(tf.cast(tf.logical_and(offsets >= 0, offsets < windows.size), values.dtype))
    times = tf.reduce_sum(covered[0], 0)[:, tf.newaxis] * tf.reduce_sum(covered[1], 0)
    return (tf.einsum("nrc,rh,cw->nhw", values, *covered) / times)[..., tf.newaxis]


class Occlusion(SpatialExplainer):
    """Explain a classifier by covering one patch after the other; signed, one channel.

    Source: Zeiler and Fergus 2014, *Visualizing and Understanding Convolutional Networks*, section 4.2. Departures from
    the paper: it plots the probability that is left, here it is the logit that is lost; a pixel gets the mean over the
    patches that cover it. The last row and the last column of patches are moved back to end at the border, so that all
    patches have one size and every pixel is covered. The class is that of the image without a patch. What a patch has
    no effect on is not computed again; a map differs by rounding alone from that of forward passes of whole images.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        patch: Height and width of a patch, or one number for both; None takes about an eighth of the image's height
            and of its width. Where the model takes images of any size, a patch is as large as a small image at most.
        stride: Distance between patches along height and width, or one number for both, at most `patch`; None is
            `patch`.
        baseline: What is put in place of a patch: a number, one value per channel, or `mean`, the mean colour of each
            image.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Covered images per forward pass; None chooses by the model's size.

    Attributes:
        rows: Covered images per forward pass.
        batch_size: Images whose covered copies are computed together; the activations of so many are kept.

    Raises:
        InvalidArgument: As for :class:`Explainer`, or an argument is outside its range.
        UnsupportedOperation: No input is an image; or as for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> inputs = keras.Input((2, 2, 1))
        >>> outputs = keras.layers.Dense(1, kernel_initializer="ones")(keras.layers.Flatten()(inputs))
        >>> images = np.array([[[[4.0], [8.0]], [[-4.0], [0.0]]]])
        >>> Occlusion(keras.Model(inputs, outputs), patch=(2, 1))(images)[..., 0].tolist()
        [[[0.0, 8.0], [0.0, 8.0]]]
    """

    name = "occlusion"

    def __init__(
        self,
        model: keras.Model,
        patch: int | Pair | None = None,
        stride: int | Pair | None = None,
        baseline: Any | Literal["mean"] = 0.0,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.patch = None if patch is None else _pair("patch", patch)
        self.stride = None if stride is None else _pair("stride", stride)
        super().__init__(model, output, batch_size)
        self.rows = batch_size or forward_batch(self.graph)
        self.batch_size = min(self.rows, max(1, _KEPT_BYTES // max(1, self.graph.activation_bytes())))
        shapes = {position: self.graph.input_shapes[position] for position in self.image_inputs}
        self._baselines: dict[int, np.ndarray | None] = {}
        for position, shape in shapes.items():
            for axis, side in enumerate(shape[1:3]):
                self._check_sizes(axis, side)
            mean = isinstance(baseline, str) and baseline == "mean"
            self._baselines[position] = None if mean else _checked(baseline, shape)
        self._segments = {position: local_segments(self.graph, position) for position in self.image_inputs}

    def _check_sizes(self, axis: int, side: int | None) -> None:
        side_name = ("height", "width")[axis]
        patch = self.patch and self.patch[axis]
        if side is not None and patch is not None and patch > side:
            raise InvalidArgument(message("patch", f"at most the {side_name} of the image, {side}", patch))
        largest = patch or (None if side is None else _default_patch(side))
        if self.stride is not None and largest is not None and self.stride[axis] > largest:
            remedy = "A larger stride leaves pixels that no patch covers."
            expected = f"at most the {side_name} of a patch, {largest}"
            raise InvalidArgument(message("stride", expected, self.stride[axis], remedy))

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        maps = []
        for position in self.image_inputs:
            shape = inputs[position].shape
            patches = self._windows(inputs[position], 0), self._windows(inputs[position], 1)
            known = None not in shape[1:3]
            followed = stages(self.graph, self._segments[position], patches) if known else []
            baseline = self._baselines[position]
            fill = tf.reduce_mean(inputs[position], (1, 2), keepdims=True) if baseline is None else baseline
            maps.append(occlusion(self.graph, inputs, classes, position, patches, fill, self.rows, followed))
        return tuple(maps)

    def _windows(self, image: tf.Tensor, axis: int) -> Windows:
        side = image.shape[axis + 1] or tf.shape(image)[axis + 1]
        patch: Any = self.patch[axis] if self.patch else _default_patch(side)
        patch = tf.minimum(patch, side) if tf.is_tensor(side) else patch
        stride = self.stride[axis] if self.stride else patch
        stride = tf.minimum(stride, patch) if tf.is_tensor(side) else stride
        return Windows(patch_starts(side, patch, stride), patch)


def _default_patch(side: Any) -> Any:
    return tf.maximum(1, (side + 4) // 8) if tf.is_tensor(side) else max(1, (side + 4) // 8)


def _checked(baseline: object, shape: tuple[int | None, ...]) -> np.ndarray:
    if isinstance(baseline, str):
        expected = f"a finite number, finite values of shape ({shape[-1]},), or 'mean'"
        raise InvalidArgument(message("baseline", expected, repr(baseline)))
    return check_baseline(baseline, shape, whole=False)


def _pair(name: str, value: object) -> Pair:
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2:
        raise InvalidArgument(message(name, "an integer, or a pair for height and width", repr(value)))
    return check_integer(name, pair[0]), check_integer(name, pair[1])
