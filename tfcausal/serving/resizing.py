"""Pillow's antialiased bilinear resizing in TensorFlow operations, bit for bit.

What `tfcausal.data.decoding` does when it reads a file is ``image.resize(size, BILINEAR, reducing_gap=3.0)``, in two
steps: where an image is more than three times too large, means over whole blocks of pixels; then one weighted sum along
the width and one along the height. Each of the three is rounded to 8 bits, in fixed-point arithmetic, so that a resize
that is only mathematically the same would differ by up to a few 255ths. The arithmetic is therefore that of Pillow:
weights in units of 2**-22, means by multiplication with a reciprocal in units of 2**-24. From version 13, Pillow takes
the sum along the height first where an image loses many more rows than columns; the order is that of the version that
is installed when a model is exported.

An exported model brings these operations along, so that a server sees the pixels that training saw.
"""

from __future__ import annotations

from importlib.metadata import version

import tensorflow as tf
from packaging.version import Version

_GAP = 3.0  # `reducing_gap` of tfcausal.data.decoding.decode_image
_WEIGHT_BITS = 22
_MEAN_BITS = 24
_TALL_FIRST = Version(version("pillow")) >= Version("13")


def factors(size: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Sides of the blocks whose means are taken first, int32 (2,); 1 where an image is not that much too large.

    Args:
        size: Height and width of the image, int32 (2,).
        wanted: Height and width to resize to, int32 (2,).

    Example:
        >>> factors(tf.constant([100, 50]), tf.constant([10, 10])).numpy().tolist()
        [3, 1]
    """
    ratio = tf.cast(size, tf.float64) / tf.cast(wanted, tf.float64) / _GAP
    return tf.maximum(1, tf.cast(ratio, tf.int32))


def block_means(image: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    """Means over blocks of pixels; those at the lower and right border may be smaller.

    Args:
        image: (height, width, channels), uint8 or float32.
        block: Height and width of a block, int32 (2,).

    Returns:
        (rows, columns, channels) of the same dtype, rounded as Pillow rounds.

    Example:
        >>> block_means(tf.constant([[[1], [2], [9]]], tf.uint8), tf.constant([1, 2]))[0, :, 0].numpy().tolist()
        [2, 9]
    """
    return tf.cond(tf.reduce_all(tf.equal(block, 1)), lambda: image, lambda: _means(image, block))


def _means(image: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    size = tf.shape(image)[:2]
    cells = -(-size // block)
    padding = cells * block - size
    exact = tf.float64 if image.dtype.is_floating else tf.int64
    padded = tf.pad(image, [[0, padding[0]], [0, padding[1]], [0, 0]])
    shape = tf.stack([cells[0], block[0], cells[1], block[1], tf.shape(image)[2]])
    # Sums fit 32 bits: an image has fewer than 2**31 / 255 pixels in a block.
    wide = tf.float64 if image.dtype.is_floating else tf.int32
    sums = tf.cast(tf.reduce_sum(tf.cast(tf.reshape(padded, shape), wide), (1, 3)), exact)
    counts = [tf.minimum(block[axis], size[axis] - block[axis] * tf.range(cells[axis])) for axis in range(2)]
    count = (counts[0][:, None] * counts[1])[..., None]
    if image.dtype.is_floating:
        return tf.cast(sums / tf.cast(count, tf.float64), tf.float32)
    # Pillow divides in float32.
    reciprocal = tf.cast(tf.constant(2.0**_MEAN_BITS) / tf.cast(count, tf.float32), tf.int64)
    rounded = (sums + tf.cast(count // 2, tf.int64)) * reciprocal
    return tf.cast(tf.bitwise.right_shift(rounded, tf.constant(_MEAN_BITS, tf.int64)), tf.uint8)


def bilinear_weights(length: tf.Tensor, covered: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """With which weights the pixels of one axis enter those of the resized image.

    A triangle as wide as two of the wider pixels, of the image or of the result, around the centre of each result.

    Args:
        length: Number of pixels, int32.
        covered: How many of them the result covers, float64: less than `length` where the last is a part of a block.
        wanted: Number of pixels of the result, int32.

    Returns:
        The first pixel that enters each, int32 (wanted,), and the weights of that one and of those that follow, float64
        (wanted, most), with sum 1.

    Example:
        >>> first, weights = bilinear_weights(tf.constant(4), tf.constant(4.0, tf.float64), tf.constant(2))
        >>> first.numpy().tolist(), (8 * weights).numpy().tolist()
        ([0, 1], [[3.4285714285714284, 3.4285714285714284, 1.1428571428571428, 0.0, 0.0], [1.1428571428571428, ...]])
    """
    # Pillow hands this length on in float32.
    scale = tf.cast(tf.cast(covered, tf.float32), tf.float64) / tf.cast(wanted, tf.float64)
    support = tf.maximum(scale, 1.0)
    most = 2 * tf.cast(tf.math.ceil(support), tf.int32) + 1
    centre = (tf.cast(tf.range(wanted), tf.float64) + 0.5) * scale
    first = tf.maximum(0, tf.cast(centre - support + 0.5, tf.int32))
    last = tf.minimum(length, tf.cast(centre + support + 0.5, tf.int32))
    pixel = first[:, None] + tf.range(most)
    distance = tf.abs(tf.cast(pixel, tf.float64) - centre[:, None] + 0.5) * (1.0 / support)
    weights = tf.where(pixel < last[:, None], tf.maximum(1.0 - distance, 0.0), 0.0)
    return first, weights / tf.reduce_sum(weights, 1, keepdims=True)


def resized(image: tf.Tensor, covered: tf.Tensor, wanted: tf.Tensor, lying: tf.Tensor | bool = False) -> tf.Tensor:
    """Weighted sums along the width and along the height; the rows of a lying image become columns.

    Args:
        image: (height, width, channels), uint8 or float32.
        covered: How many of its rows and columns the result covers, float64 (2,).
        wanted: Height and width to resize to, int32 (2,), as the image lies.
        lying: Whether rows become columns. Pillow turns an image before it resizes it, so that the sums are in the
            order of the upright image.

    Returns:
        (height, width, channels), float32; whole numbers in [0, 255] for uint8.

    Example:
        >>> image = tf.constant([[[0], [100], [200], [250]]], tf.uint8)
        >>> resized(image, tf.constant([1.0, 4.0], tf.float64), tf.constant([1, 2]))[0, :, 0].numpy().tolist()
        [71.0, 207.0]
    """
    whole = image.dtype == tf.uint8
    lost = tf.shape(image)[:2] - wanted
    upright = tf.where(lying, lost[::-1], lost)
    tall = tf.logical_and(upright[0] > 0, upright[0] > 2 * upright[1]) if _TALL_FIRST else tf.constant(False)
    rows_first = tf.not_equal(tall, lying)
    order = tf.where(rows_first, tf.constant([0, 1]), tf.constant([1, 0]))
    # TensorFlow transposes floats fast, and bytes slowly and with a complaint in the log.
    first = _turned_if(tf.logical_not(rows_first), tf.cast(image, tf.float32))
    half = _sums(first, covered[order[0]], wanted[order[0]], whole)
    both = _sums(tf.transpose(half, (1, 0, 2)), covered[order[1]], wanted[order[1]], whole)
    return _turned_if(tf.not_equal(rows_first, lying), both)


def _turned_if(condition: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    return tf.cond(condition, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)


def _sums(image: tf.Tensor, covered: tf.Tensor, wanted: tf.Tensor, whole: bool) -> tf.Tensor:
    """Weighted sums of rows, float32; with `whole` in fixed-point arithmetic, and rounded."""
    size = tf.shape(image)
    first, weights = bilinear_weights(size[0], covered, wanted)
    exact = tf.int32 if whole else tf.float64
    if whole:
        weights = tf.cast(weights * 2**_WEIGHT_BITS + 0.5, tf.int32)

    def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.gather(image, tf.minimum(first + number, size[0] - 1))
        return number + 1, total + tf.cast(rows, exact) * weights[:, number, None, None]

    half = 1 << (_WEIGHT_BITS - 1) if whole else 0
    start = (tf.constant(0), tf.fill(tf.stack([wanted, size[1], size[2]]), tf.constant(half, exact)))
    most = tf.shape(weights)[1]
    _, total = tf.while_loop(lambda number, _: number < most, add, start, parallel_iterations=1)
    # Weights that are not negative and add up to 1 leave no sum outside of 8 bits.
    return tf.cast(tf.bitwise.right_shift(total, _WEIGHT_BITS) if whole else total, tf.float32)
