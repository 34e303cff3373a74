"""PNG and JPEG files become pixels in TensorFlow operations, as `tfcausal.data.decoding` makes pixels of them.

It is the twin of :func:`tfcausal.models.inputs.read_image`, which `tfcausal explain` and the training read files with:
an exported model that is sent a file sees what the model saw. Equal bit for bit are JPEG files in grey and colour, and
PNG files of every kind with 8 bits or fewer; grey PNG files with 16 bits up to rounding in float32. Differences:

- JPEG files in CMYK differ by 1 of 255 before resizing, because TensorFlow truncates where Pillow rounds.
- The orientation is taken from EXIF and, in JPEG files, XMP. Text chunks of PNG files (ImageMagick's) are not read.
- A transparent colour in a PNG file of colour with 16 bits is compared in all of its bits.
- Damaged metadata counts as none, where Pillow refuses some of it. What is damaged in the pixels is an error in both,
  with messages of TensorFlow's decoders here.

A file of more than `most_pixels` pixels is refused by its header, before anything is decoded, and files are decoded one
after the other: a request of small files that unpack to very many pixels takes the memory of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfcausal.serving.checks import of_rank, require, require_some
from tfcausal.serving.container import as_bytes, jpeg_orientation, lies, mirrored, number, png_metadata
from tfcausal.serving.resizing import block_means, factors, resized

MOST_PIXELS = 25_000_000
"""Pixels of a file that a server takes unless told otherwise; what the explorer takes of uploads."""
_BLOCK_PIXELS = 1 << 22
_PNG_FIRST, _JPEG_FIRST = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_GREY, _GREY_ALPHA, _COLOUR_ALPHA = 0, 4, 6  # types of colour of PNG
_ITU_R_601 = (19595, 38470, 7471)  # of 65536: red, green and blue in grey


def pictures(contents: tf.Tensor, shape: tuple[int, int, int], most_pixels: int = MOST_PIXELS) -> tf.Tensor:
    """Decode PNG and JPEG files, the upright way, and resize them.

    Args:
        contents: What is in the files, string (N,).
        shape: (height, width, channels), with 3 channels for colour and 1 for grey.
        most_pixels: Pixels that a file may have.

    Returns:
        float32 (N, height, width, channels) in [0, 1].

    Raises:
        tf.errors.InvalidArgumentError: There is no file, or one is empty, is neither PNG nor JPEG, is damaged or has
            too many pixels. The message names its place in the batch, except where a decoder finds the damage.

    Example:
        >>> file = tf.io.encode_png(tf.constant([[[0], [255]]], tf.uint8))
        >>> pictures(file[None], (1, 2, 1))[0, 0, :, 0].numpy().tolist()
        [0.0, 1.0]
    """
    contents = of_rank(contents, 1, "image_bytes", "shape (N,)")
    count = tf.size(contents)
    with tf.control_dependencies([require_some(count, "image_bytes")]):
        numbers = tf.range(count)
    return tf.map_fn(
        lambda file: _picture(file[0], file[1], shape, most_pixels),
        (contents, numbers),
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
        parallel_iterations=1,
    )


class _Kind(NamedTuple):
    """What the beginning and the metadata of a file say."""

    width: tf.Tensor
    height: tf.Tensor
    orientation: tf.Tensor
    has_alpha: tf.Tensor
    is_deep: tf.Tensor


def _picture(content: tf.Tensor, place: tf.Tensor, shape: tuple[int, int, int], most_pixels: int) -> tf.Tensor:
    first = tf.strings.substr(content, 0, len(_PNG_FIRST))
    is_png = tf.equal(first, _PNG_FIRST)
    is_jpeg = tf.equal(tf.strings.substr(content, 0, len(_JPEG_FIRST)), _JPEG_FIRST)
    not_empty = require(tf.strings.length(content) > 0, _refused("the file is empty (zero bytes)"), place)
    with tf.control_dependencies([not_empty]):
        known = require(tf.logical_or(is_png, is_jpeg), _refused("the content is neither PNG nor JPEG"), place)
    with tf.control_dependencies([known]):
        content = tf.identity(content)
    data = as_bytes(content)
    kind = tf.cond(is_png, lambda: _png(data), lambda: _jpeg(content, data))
    with tf.control_dependencies([_require_size(kind.width, kind.height, place, most_pixels)]):
        content = tf.identity(content)

    def deep() -> tf.Tensor:
        pixels = tf.io.decode_png(content, channels=1, dtype=tf.uint16)
        picture = _resized(pixels, kind.orientation, shape, lambda block: tf.cast(block, tf.float32) / 65535.0)
        return tf.broadcast_to(tf.clip_by_value(picture, 0.0, 1.0), shape)

    def eight_bits() -> tf.Tensor:
        # The way of Pillow: exact inverse cosine transform, colours interpolated.
        jpeg = {"channels": 3, "fancy_upscaling": True, "dct_method": "INTEGER_ACCURATE"}
        kinds = [
            (tf.logical_not(is_png), lambda: tf.io.decode_jpeg(content, **jpeg)),
            (kind.has_alpha, lambda: tf.io.decode_png(content, channels=4)),
        ]
        pixels = tf.case(kinds, default=lambda: tf.io.decode_png(content, channels=3))
        values = _resized(pixels, kind.orientation, shape, partial(_opaque, channels=shape[2]))
        # A table, because TensorFlow makes a product with 1 / 255 of a division, which rounds otherwise.
        shares = tf.constant(np.arange(256, dtype=np.float32) / np.float32(255.0))
        return tf.gather(shares, tf.cast(values, tf.int32))

    return tf.ensure_shape(tf.cond(kind.is_deep, deep, eight_bits), shape)


def _jpeg(content: tf.Tensor, data: tf.Tensor) -> _Kind:
    size, no = tf.image.extract_jpeg_shape(content, tf.int64), tf.constant(False)
    return _Kind(size[1], size[0], jpeg_orientation(data, content), no, no)


def _png(data: tf.Tensor) -> _Kind:
    width, height = number(data, tf.constant(16, tf.int64), 4), number(data, tf.constant(20, tf.int64), 4)
    depth, colours = data[24], data[25]
    orientation, transparent = png_metadata(data)
    is_grey = tf.equal(colours, _GREY)
    # Pillow does not find a transparent grey of 2 or 4 bits among pixels that it has made 8 bits of.
    lost = tf.logical_and(is_grey, tf.logical_or(tf.equal(depth, 2), tf.equal(depth, 4)))
    transparent = tf.logical_and(transparent, tf.logical_not(lost))
    has_alpha = tf.logical_or(tf.equal(colours, _GREY_ALPHA), tf.equal(colours, _COLOUR_ALPHA))
    is_deep = tf.logical_and(is_grey, tf.equal(depth, 16))
    return _Kind(width, height, orientation, tf.logical_or(has_alpha, transparent), is_deep)


def _opaque(block: tf.Tensor, channels: int) -> tf.Tensor:
    """Pixels with 3 channels, or 4 with transparency, as they are without it, in 3 channels or in grey; uint8."""
    opaque = tf.cond(tf.equal(tf.shape(block)[2], 4), lambda: _on_black(block), lambda: block)
    return opaque if channels == 3 else _grey(opaque)


def _on_black(block: tf.Tensor) -> tf.Tensor:
    """Transparent pixels on black, as `Image.alpha_composite` rounds."""
    values = tf.cast(block, tf.int32)
    # 7 bits beyond the 8 of the result; division by 255 by two shifts.
    products = values[..., :3] * values[..., 3:] * 128 + (128 << 7)
    shifted = tf.bitwise.right_shift(tf.bitwise.right_shift(products, 8) + products, 15)
    return tf.cast(shifted, tf.uint8)


def _grey(block: tf.Tensor) -> tf.Tensor:
    """Grey of colours, as `Image.convert` rounds."""
    sums = tf.reduce_sum(tf.cast(block, tf.int32) * tf.constant(_ITU_R_601), -1, keepdims=True)
    return tf.cast(tf.bitwise.right_shift(sums + (1 << 15), 16), tf.uint8)


def _resized(
    pixels: tf.Tensor,
    orientation: tf.Tensor,
    shape: tuple[int, int, int],
    prepared: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Prepare pixels and take the means of blocks, part after part of the image, then resize it and put it upright."""
    pixels, lying = mirrored(pixels, orientation), lies(orientation)
    size, wanted = tf.shape(pixels)[:2], tf.where(lying, shape[1::-1], shape[:2])
    block = factors(size, wanted)
    rows = block[0] * tf.maximum(1, _BLOCK_PIXELS // (block[0] * size[1]))

    def reduce(start: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        part = block_means(prepared(pixels[start : start + rows]), block)
        return start + rows, parts.write(start // rows, part)

    dtype = tf.uint8 if pixels.dtype == tf.uint8 else tf.float32
    array = tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False, element_shape=(None, None, None))
    begin = (tf.constant(0), array)
    _, array = tf.while_loop(lambda start, _: start < size[0], reduce, begin, parallel_iterations=1)
    covered = tf.cast(size, tf.float64) / tf.cast(block, tf.float64)
    return resized(array.concat(), covered, wanted, lying)


def _require_size(width: tf.Tensor, height: tf.Tensor, place: tf.Tensor, most_pixels: int) -> tf.Operation:
    text = _refused(f"expected an image of 1 to {most_pixels:,} pixels; received {{}} x {{}}")
    sides = tf.logical_and(width > 0, height > 0)
    fits = tf.logical_and(sides, width <= most_pixels // tf.maximum(height, 1))
    return require(fits, text, place, width, height)


def _refused(reason: str) -> str:
    return f"Image {{}} of `image_bytes` cannot be used: {reason}."
