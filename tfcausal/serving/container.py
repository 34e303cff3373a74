"""What the container of a PNG or JPEG file says, read by TensorFlow operations: how to turn the image, and where it is
transparent.

`tf.io` decodes pixels and leaves the orientation of EXIF aside. Files are taken as they may come over a network:
whatever is in them, nothing is read outside of them, and every loop ends.
"""

from __future__ import annotations

import tensorflow as tf

_MOST_PARTS = 20_000  # segments or chunks that are looked through; PNG chunks of 8 KB make 160 MB
_ORIENTATION = 0x0112
_SHORT, _LONG, _BYTE = 3, 4, 1  # types of values in TIFF
_TIFF_ENTRY = 12
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_PATTERN = r'(?s)^.*?tiff:Orientation(?:="|>)([0-9]).*$'


def as_bytes(content: tf.Tensor) -> tf.Tensor:
    """The bytes of a string, uint8 (n,), with some zeros behind, so that short reads never leave them."""
    return tf.concat([tf.io.decode_raw(content, tf.uint8), tf.zeros((64,), tf.uint8)], 0)


def number(data: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """A number of several bytes, the most significant first; 0s where the data ends.

    Args:
        data: uint8 (n,), from :func:`as_bytes`.
        start: Where it stands, int64.
        count: How many bytes, at most 4.

    Returns:
        int64.

    Example:
        >>> int(number(as_bytes(tf.constant(b"\\x01\\x02")), tf.constant(0, tf.int64), 2))
        258
    """
    place = tf.clip_by_value(start, 0, tf.size(data, tf.int64) - count)
    powers = tf.constant([256**power for power in reversed(range(count))], tf.int64)
    return tf.reduce_sum(tf.cast(data[place : place + count], tf.int64) * powers)


def jpeg_orientation(data: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    """How a JPEG image is to be turned, as EXIF says, or XMP where EXIF does not; damaged metadata counts as none.

    Args:
        data: The file, from :func:`as_bytes`.
        content: The file, a string.

    Returns:
        int64, 1 to 8; 1 where nothing is said.
    """
    size = tf.size(data, tf.int64)
    none = tf.constant(0, tf.int64)

    def going(place: tf.Tensor, step: tf.Tensor, *found: tf.Tensor) -> tf.Tensor:
        marker = number(data, place, 2)
        # Up to the compressed data or the end.
        inside = tf.logical_and(place + 4 <= size, step < _MOST_PARTS)
        return tf.logical_and(inside, tf.logical_and(marker > 0xFF00, tf.logical_not(_ends(marker))))

    def look(
        place: tf.Tensor, step: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor, length_of_xmp: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        marker, length = number(data, place, 2), number(data, place + 2, 2)
        application = tf.equal(marker, 0xFFE1)
        is_exif = tf.logical_and(application, _starts(data, place + 4, b"Exif\0\0"))
        is_xmp = tf.logical_and(application, _starts(data, place + 4, _XMP))
        exif = tf.where(tf.logical_and(is_exif, tf.equal(exif, none)), place + 10, exif)
        xmp = tf.where(is_xmp, place + 4 + len(_XMP), xmp)
        length_of_xmp = tf.where(is_xmp, length - 2 - len(_XMP), length_of_xmp)
        # Bytes that fill up, and markers without content.
        alone = tf.logical_or(tf.logical_and(marker >= 0xFFD0, marker <= 0xFFD8), tf.equal(marker, 0xFF01))
        onwards = tf.where(tf.equal(marker, 0xFFFF), none + 1, tf.where(alone, none, tf.maximum(length, 2)) + 2)
        return place + onwards, step + 1, exif, xmp, length_of_xmp

    start = (none, tf.constant(0), none, none, none)
    _, _, exif, xmp, length_of_xmp = tf.while_loop(going, look, start, parallel_iterations=1)
    said, orientation = tiff_orientation(data, exif)
    begin = tf.minimum(xmp, tf.cast(tf.strings.length(content), tf.int64))
    taken = tf.strings.substr(content, begin, tf.maximum(length_of_xmp, 0))
    written = tf.strings.regex_replace(taken, _XMP_PATTERN, r"\1")
    in_xmp = tf.logical_and(xmp > 0, tf.strings.regex_full_match(written, "[1-8]"))
    digit = tf.strings.to_number(tf.where(in_xmp, written, "1"), tf.int64)
    return tf.where(tf.logical_and(exif > 0, said), orientation, digit)


def png_metadata(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """How a PNG image is to be turned, as its chunk `eXIf` says, and whether a colour or a palette is transparent.

    Args:
        data: The file, from :func:`as_bytes`.

    Returns:
        int64, 1 to 8, and a boolean.
    """
    size = tf.size(data, tf.int64)

    def going(place: tf.Tensor, step: tf.Tensor, *found: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(place + 12 <= size, step < _MOST_PARTS)

    def look(place: tf.Tensor, step: tf.Tensor, exif: tf.Tensor, transparent: tf.Tensor) -> tuple[tf.Tensor, ...]:
        exif = tf.where(_starts(data, place + 4, b"eXIf"), place + 8, exif)
        transparent = tf.logical_or(transparent, _starts(data, place + 4, b"tRNS"))
        return place + 12 + number(data, place, 4), step + 1, exif, transparent

    start = (tf.constant(8, tf.int64), tf.constant(0), tf.constant(0, tf.int64), tf.constant(False))
    _, _, exif, transparent = tf.while_loop(going, look, start, parallel_iterations=1)
    said, orientation = tiff_orientation(data, exif)
    return tf.where(tf.logical_and(exif > 0, said), orientation, tf.ones_like(orientation)), transparent


def tiff_orientation(data: tf.Tensor, start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The orientation in the first directory of a TIFF header, which is what EXIF is.

    Args:
        data: The file, from :func:`as_bytes`.
        start: Where the header stands, int64.

    Returns:
        Whether it says an orientation, and the orientation, int64 in [1, 8].
    """
    little = _starts(data, start, b"II")
    is_tiff = tf.logical_or(_starts(data, start, b"II*\0"), _starts(data, start, b"MM\0*"))

    def read(place: tf.Tensor, count: int) -> tf.Tensor:
        end = tf.clip_by_value(place, 0, tf.size(data, tf.int64) - count)
        part = tf.cast(data[end : end + count], tf.int64)
        powers = tf.constant([256**power for power in range(count)], tf.int64)
        return tf.reduce_sum(tf.where(little, part, part[::-1]) * powers)

    directory = start + read(start + 4, 4)
    last = tf.size(data, tf.int64) - _TIFF_ENTRY
    entries = directory + 2 + _TIFF_ENTRY * tf.range(read(directory, 2))
    entries = tf.clip_by_value(entries, 0, last)
    rows = tf.cast(tf.gather(data, entries[:, None] + tf.range(_TIFF_ENTRY, dtype=tf.int64)), tf.int64)
    low, high = rows[:, 0], rows[:, 1]
    here = tf.equal(tf.where(little, low + 256 * high, high + 256 * low), _ORIENTATION)
    # As Pillow does, the last one counts.
    place = tf.reduce_max(tf.where(here, entries, -tf.ones_like(entries)))
    found = tf.logical_and(is_tiff, place >= 0)
    kind = read(place + 2, 2)
    value = tf.where(
        tf.equal(kind, _SHORT),
        read(place + 8, 2),
        tf.where(tf.equal(kind, _LONG), read(place + 8, 4), read(place + 8, 1)),
    )
    known = tf.logical_and(value >= 1, value <= 8)
    return found, tf.where(tf.logical_and(found, known), value, tf.ones_like(value))


def lies(orientation: tf.Tensor) -> tf.Tensor:
    """Whether the rows of an image are the columns of the upright one."""
    return orientation >= 5


def mirrored(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image that is upright, or, where it lies, would be if its rows became columns.

    Args:
        image: (height, width, channels).
        orientation: int64, 1 to 8, as EXIF has it.

    Example:
        >>> mirrored(tf.constant([[[1], [2]]]), tf.constant(8, tf.int64))[..., 0].numpy().tolist()
        [[2, 1]]
    """

    def mirror() -> tf.Tensor:
        across = tf.reduce_any(tf.equal(orientation, tf.constant([2, 3, 7, 8], tf.int64)))
        upside_down = tf.reduce_any(tf.equal(orientation, tf.constant([3, 4, 6, 7], tf.int64)))
        result = tf.cond(across, lambda: tf.reverse(image, (1,)), lambda: image)
        return tf.cond(upside_down, lambda: tf.reverse(result, (0,)), lambda: result)

    return tf.cond(orientation > 1, mirror, lambda: image)


def _starts(data: tf.Tensor, place: tf.Tensor, text: bytes) -> tf.Tensor:
    """Whether a text stands at a place."""
    start = tf.clip_by_value(place, 0, tf.size(data, tf.int64) - len(text))
    same = tf.reduce_all(tf.equal(data[start : start + len(text)], tf.constant(list(text), tf.uint8)))
    return tf.logical_and(same, tf.equal(start, place))


def _ends(marker: tf.Tensor) -> tf.Tensor:
    """Whether a JPEG marker begins the compressed data, or is the end of the image."""
    return tf.logical_or(tf.equal(marker, 0xFFDA), tf.equal(marker, 0xFFD9))
