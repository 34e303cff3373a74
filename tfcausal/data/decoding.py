"""Image files become arrays: every pixel format of PNG and JPEG, checked for damage."""

from __future__ import annotations

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


@contextmanager
def refuse_decompression_bombs() -> Iterator[None]:
    """Within it, images of more pixels than Pillow takes for safe are errors (Pillow itself only warns at first).

    It changes the process's warning filters for a while and therefore belongs into the main thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(path: Path, height: int, width: int, channels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file and resize it.

    The orientation of EXIF is applied; transparent pixels are put on black, because zero is where masks take an image
    to; colours become grey by the weights of ITU-R 601.

    Args:
        path: A PNG or JPEG file.
        height: Height to resize to, with antialiasing.
        width: Width to resize to.
        channels: 3 for colour, 1 for grey.

    Returns:
        The image, (height, width, channels) or, if the file is grey, (height, width, 1): uint8 in [0, 255], or float32
        in [0, 1] if the file has 16 bits; and the file's (height, width) before resizing.

    Raises:
        DataError: The file cannot be used; the text is the reason, without the file's name.
    """
    image = _load(path)
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


def _load(path: Path) -> Image.Image:
    """The upright image in one of the modes 1, L, RGB, CMYK, YCbCr or, with 16 bits, I and its kin."""
    if path.is_file() and path.stat().st_size == 0:
        raise DataError("the file is empty (zero bytes)")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
            if upright.mode.startswith("I"):
                return upright
            if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
                colours = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", colours.size, "black"), colours).convert("RGB")
            return upright.convert("RGB") if upright.mode == "P" else upright
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
