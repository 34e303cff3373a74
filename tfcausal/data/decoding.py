"""Image files become arrays: every pixel format of PNG and JPEG, checked for damage."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfcausal.data.masks import binarise_mask, resize_mask
from tfcausal.errors import DataError

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises on damaged files."""
Source = Path | bytes
"""An image file: where it is, or what is in it."""


@contextmanager
def refuse_decompression_bombs() -> Iterator[None]:
    """Within it, images of more pixels than Pillow takes for safe are errors (Pillow itself only warns at first).

    It changes the process's warning filters for a while and therefore belongs into the main thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(
    source: Source, height: int, width: int, channels: int, most_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file and resize it.

    The orientation of EXIF is applied; transparent pixels are put on black, because zero is where masks take an image
    to; colours become grey by the weights of ITU-R 601.

    Args:
        source: A PNG or JPEG file, or its content.
        height: Height to resize to, with antialiasing.
        width: Width to resize to.
        channels: 3 for colour, 1 for grey.
        most_pixels: Pixels that the file may have; it is refused by its header, before they are decoded. None takes
            what Pillow takes.

    Returns:
        The image, (height, width, channels) or, if the file is grey, (height, width, 1): uint8 in [0, 255], or float32
        in [0, 1] if the file has 16 bits; and the file's (height, width) before resizing.

    Raises:
        DataError: The file cannot be used; the text is the reason, without the file's name.
    """
    image = _load(source, most_pixels)
    size = (image.height, image.width)
    if image.mode.startswith("I"):
        image = Image.fromarray(_sixteen_bits(image).astype(np.float32) / np.float32(65535.0))
    else:
        image = image.convert("L" if channels == 1 or image.mode in ("1", "L") else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels, 0.0, 1.0)
    return pixels if pixels.ndim == 3 else pixels[..., None], size


def to_shares(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """What :func:`decode_image` gives as numbers in [0, 1].

    Args:
        pixels: uint8 in [0, 255], or float32 in [0, 1]; (height, width, channels), or (height, width, 1) if grey.
        shape: (height, width, channels) of the result.

    Returns:
        float32 in `shape`.

    Example:
        >>> to_shares(np.array([[[0], [255]]], np.uint8), (1, 2, 3)).tolist()
        [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """
    scaled = pixels / np.float32(255.0) if pixels.dtype == np.uint8 else pixels
    return np.broadcast_to(scaled, shape).astype(np.float32)


def decode_mask(path: Path, image_size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Decode a mask file, compare it with its image, and resize it.

    Args:
        path: A PNG file: the cause is where its grey value is above half of its own maximum.
        image_size: (height, width) of the image in pixels, before resizing.
        height: Height to resize to.
        width: Width to resize to.

    Returns:
        bool of shape (height, width, 1).

    Raises:
        DataError: The file cannot be used; the text is the reason, without the file's name.
    """
    image = _load(path)
    if (image.height, image.width) != image_size:
        expected = f"{image_size[1]}x{image_size[0]} pixels (width x height), as its image has"
        received = f"{image.width}x{image.height}"
        raise DataError(f"the mask has another size than its image: expected {expected}; received {received}")
    values = _sixteen_bits(image) if image.mode.startswith("I") else np.asarray(image.convert("L"))
    return resize_mask(binarise_mask(values), height, width)[..., None]


def _load(source: Source, most_pixels: int | None = None) -> Image.Image:
    """The upright image in one of the modes 1, L, RGB, CMYK, YCbCr or, with 16 bits, I and its kin."""
    if not source if isinstance(source, bytes) else source.is_file() and source.stat().st_size == 0:
        raise DataError("the file is empty (zero bytes)")
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(opened, formats=("PNG", "JPEG")) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                received = f"{image.width} x {image.height}"
                raise DataError(f"the image is too large: expected at most {most_pixels:,} pixels; received {received}")
            upright = ImageOps.exif_transpose(image)
            upright.load()
            if upright.mode.startswith("I"):
                return upright
            if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
                colours = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", colours.size, "black"), colours).convert("RGB")
            return upright.convert("RGB") if upright.mode == "P" else upright
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("the content is neither PNG nor JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the image is too large ({error})") from None
    except FileNotFoundError:
        raise DataError("the file is gone") from None
    except _DAMAGE as error:
        raise DataError(f"the file cannot be decoded ({error})") from None


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"expected 8 or 16 bits per pixel; received values from {values.min()} to {values.max()}")
    return values
