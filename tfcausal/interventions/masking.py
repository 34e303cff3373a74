"""Interventions on the input: which pixels to take away, and taking them away.

Source: *Proactive Pseudo-Intervention*, equations 1, 2 and 4. The paper applies its mask to the raw map with a fixed
threshold whose value it does not give; a raw map has no fixed scale, so here the mask works on the normalised map.

The pixel-wise masking of *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural
Networks* is :func:`random_blocks` with :func:`remove`.

Images are (N, height, width, channels), volumes (N, slices, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message


def normalised_saliency(maps: tf.Tensor) -> tf.Tensor:
    """The positive part of the channel sum of every map, divided by its maximum.

    Args:
        maps: Signed maps, (N, height, width, channels), or of volumes.

    Returns:
        (N, height, width, 1) in [0, 1], or of volumes; 0 everywhere for a map without a positive value.

    Example:
        >>> import tensorflow as tf
        >>> normalised_saliency(tf.constant([[[[2.0, -1.0], [3.0, 1.0]]]]))[0, 0, :, 0].numpy().tolist()
        [0.25, 1.0]
    """
    positive = tf.nn.relu(tf.reduce_sum(maps, axis=-1, keepdims=True))
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=_all_but_first(maps), keepdims=True))


def quantile_threshold(saliency: tf.Tensor, quantile: float) -> tf.Tensor:
    """The value of each map that the given share of its pixels does not exceed.

    Args:
        saliency: (N, height, width, 1), or of volumes.
        quantile: Share of pixels in (0, 1), for instance 0.9 for the tenth of the pixels with the highest values.

    Returns:
        (N, 1, 1, 1), of volumes with one more 1: the k-th largest value, k being the number of pixels times
        (1 - quantile), rounded, at least 1.

    Example:
        >>> import tensorflow as tf
        >>> saliency = tf.reshape(tf.range(10.0), (1, 2, 5, 1))
        >>> float(quantile_threshold(saliency, 0.8)[0, 0, 0, 0])
        8.0
    """
    flat = tf.reshape(saliency, (tf.shape(saliency)[0], -1))
    pixels = tf.cast(tf.shape(flat)[1], tf.float32)
    kept = tf.maximum(1, tf.cast(tf.round(pixels * (1.0 - quantile)), tf.int32))
    smallest_kept = tf.math.top_k(flat, kept).values[:, -1]
    return tf.reshape(smallest_kept, (-1, *(1,) * (saliency.shape.rank - 1)))


def soft_mask(saliency: tf.Tensor, threshold: tf.Tensor | float, sharpness: float) -> tf.Tensor:
    """The differentiable mask ``T(s) = 1 / (1 + exp(-sharpness * (s - threshold)))`` of equation 2.

    Args:
        saliency: Normalised maps in [0, 1], (N, height, width, 1), or of volumes.
        threshold: Where the mask is one half; a number, or one per map (N, 1, 1, 1).
        sharpness: Steepness, greater than 0 (the paper's omega).

    Returns:
        Share of each pixel to take away, in (0, 1), in the shape of `saliency`.

    Example:
        >>> import tensorflow as tf
        >>> soft_mask(tf.constant([[[[0.25]]]]), 0.25, 50.0).numpy().item()
        0.5
    """
    return tf.sigmoid(sharpness * (saliency - threshold))


def remove(images: tf.Tensor, mask: tf.Tensor, masked_value: float | Sequence[float] = 0.0) -> tf.Tensor:
    """Take pixels away, ``x - T * (x - value)``: what is masked becomes the masked value in the model's input space.

    The papers' value is 0 (equations 1 and 4), which is also the point from which WBP measures contributions. For
    inputs in [0, 1] it is black; for inputs with their mean subtracted it is the mean colour.

    Args:
        images: (N, height, width, channels), or volumes.
        mask: Share to take away, in [0, 1], (N, height, width, 1).
        masked_value: What takes the place of a pixel: a number, or one for every channel.

    Returns:
        Images of the same shape.

    Example:
        >>> import tensorflow as tf
        >>> remove(tf.constant([[[[4.0, 2.0]]]]), tf.constant([[[[0.25]]]])).numpy().tolist()
        [[[[3.0, 1.5]]]]
    """
    if np.all(np.equal(masked_value, 0)):
        return images - mask * images
    return images - mask * (images - tf.constant(masked_value, images.dtype))


def random_blocks(
    count: int,
    size: tuple[int, int],
    share: float = 0.1,
    blocks: tuple[int, int] = (10, 10),
    seed: int = 0,
    first: int = 0,
) -> np.ndarray:
    """Masks of a share of every image's area, in blocks drawn at random: the paper's pixel-wise masking.

    Every image is cut into a grid of blocks, and the same number of them is drawn from each image without replacement.
    Which blocks an image gets depends on the seed and on its position alone, so that masks that are made batch by batch
    are those that are made at once. Where the height or width is not divisible, blocks differ by one pixel in it.

    Source: *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural Networks*,
    sections 3.3 and 4.1: 10 % of the area, at random. The 10 by 10 blocks are those of its authors' code. Departure
    from that code, which paints 0 or 255 before it resizes an image: the mask is one of the classifier's input, and
    :func:`remove` takes the value.

    Args:
        count: Number of images.
        size: Their height and width.
        share: Share of the blocks to mask, in (0, 1]; their number is rounded, and at least 1.
        blocks: Rows and columns of blocks.
        seed: Seed of the draws, at least 0.
        first: Position of the first image, for a batch that is not the first of a data set.

    Returns:
        1 where a pixel is masked, else 0, float32 (count, height, width, 1): what :func:`remove` takes.

    Raises:
        InvalidArgument: A share outside (0, 1], more blocks than pixels in a direction, or numbers that are no integers
            in their range.

    Example:
        >>> random_blocks(1, (2, 4), share=0.5, blocks=(1, 2))[0, :, :, 0].tolist()
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    _require_integers("count", (count,), 1, 1)
    _require_integers("size", size, 2, 1)
    _require_integers("blocks", blocks, 2, 1)
    _require_integers("seed", (seed,), 1, 0)
    _require_integers("first", (first,), 1, 0)
    if isinstance(share, bool) or not isinstance(share, (int, float, np.number)) or not 0 < share <= 1:
        raise InvalidArgument(message("share", "a share of the area in (0, 1]", repr(share)))
    if blocks[0] > size[0] or blocks[1] > size[1]:
        expected = f"at most as many rows and columns of blocks as the images have pixels, {tuple(size)}"
        raise InvalidArgument(message("blocks", expected, tuple(blocks), "Take fewer blocks, or larger images."))
    total = blocks[0] * blocks[1]
    masked = max(1, round(share * total))
    grid = np.zeros((count, total), np.float32)
    for row, position in zip(grid, range(first, first + count), strict=True):
        row[np.random.default_rng((seed, position)).choice(total, masked, replace=False)] = 1.0
    rows, columns = (np.arange(pixels) * number // pixels for pixels, number in zip(size, blocks, strict=True))
    return grid.reshape(count, *blocks)[:, rows[:, None], columns[None, :], None]


def box_mask(saliency: tf.Tensor, threshold: tf.Tensor | float, largest_component: bool = False) -> tf.Tensor:
    """The smallest box around the salient pixels; it has no gradient.

    Source: *Proactive Pseudo-Intervention*, section 3.1 (the box variant). The paper does not say how it treats single
    pixels far from the others, which make the box the whole image: a quantile as the threshold, or the largest
    component alone, keep them out.

    Args:
        saliency: Normalised maps in [0, 1], (N, height, width, 1), or of volumes.
        threshold: Salient is what is greater than this; a number, or one per map.
        largest_component: Whether the box is drawn around the largest connected component (neighbours also across
            corners) instead of around all salient pixels.

    Returns:
        1 inside the box, 0 outside, in the shape and dtype of `saliency`; 0 everywhere for a map without salient
        pixels.

    Example:
        >>> import tensorflow as tf
        >>> saliency = tf.reshape(tf.constant([[0.0, 1.0, 0.1], [0.0, 0.0, 0.9], [0.0, 0.0, 0.0]]), (1, 3, 3, 1))
        >>> box_mask(saliency, 0.5)[0, :, :, 0].numpy().tolist()
        [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    salient = saliency > threshold
    if largest_component:
        salient = largest_connected_component(salient)
    places = range(1, saliency.shape.rank - 1)
    box = tf.reduce_any(salient, axis=_all_but_first(salient), keepdims=True)
    for axis in places:
        others = [place for place in places if place != axis]
        occupied = tf.cast(tf.reduce_any(salient, axis=[*others, saliency.shape.rank - 1], keepdims=True), tf.int32)
        begun, to_come = tf.cumsum(occupied, axis) > 0, tf.cumsum(occupied, axis, reverse=True) > 0
        box = tf.logical_and(box, tf.logical_and(begun, to_come))
    return tf.stop_gradient(tf.cast(box, saliency.dtype))


def largest_connected_component(region: tf.Tensor) -> tf.Tensor:
    """The connected component with the most pixels of every region; the first of several as large.

    Every pixel takes over the highest number in its neighbourhood until nothing changes, inside the compiled graph.

    Args:
        region: Booleans (N, height, width, 1), or of volumes; diagonal neighbours are connected.

    Returns:
        Booleans in the same shape.

    Example:
        >>> import tensorflow as tf
        >>> region = tf.reshape(tf.constant([True, False, True, True]), (1, 1, 4, 1))
        >>> largest_connected_component(region)[0, 0, :, 0].numpy().tolist()
        [False, False, True, True]
    """
    shape, rank = tf.shape(region), region.shape.rank
    pixels = tf.reduce_prod(shape[1:])
    numbers = tf.reshape(tf.range(pixels, 0, -1, tf.int32), tf.concat([[1], shape[1:]], 0))
    inside = tf.cast(region, tf.float32)
    start = inside * tf.cast(numbers, tf.float32)

    def spread(labels: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        highest = tf.nn.max_pool(labels, 3, 1, "SAME") if rank == 4 else tf.nn.max_pool3d(labels, 3, 1, "SAME")
        highest = inside * tf.ensure_shape(highest, labels.shape)
        return highest, tf.reduce_any(highest > labels)

    labels, _ = tf.while_loop(lambda labels, changed: changed, spread, (start, tf.reduce_any(region)))
    flat = tf.cast(tf.reshape(labels, (shape[0], -1)), tf.int32)
    of_sample = flat + tf.range(shape[0])[:, None] * (pixels + 1)
    sizes = tf.math.unsorted_segment_sum(tf.cast(flat > 0, tf.int32), of_sample, shape[0] * (pixels + 1))
    sizes = tf.reshape(sizes, (shape[0], -1))
    largest = pixels - tf.argmax(sizes[:, ::-1], axis=1, output_type=tf.int32)
    return tf.logical_and(region, tf.reshape(flat == largest[:, None], shape))


def _all_but_first(tensor: tf.Tensor) -> list[int]:
    return list(range(1, tensor.shape.rank))


def _require_integers(name: str, values: Sequence[object], length: int, lowest: int) -> None:
    kinds = isinstance(values, Sequence) and all(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= lowest for value in values
    )
    if not kinds or len(values) != length:
        expected = f"an integer of at least {lowest}" if length == 1 else f"two integers of at least {lowest}"
        raise InvalidArgument(message(name, expected, repr(values[0] if length == 1 else values)))
