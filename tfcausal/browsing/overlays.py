"""Maps laid over images for the screen: perceptually uniform colours, a scale that can be shared, opacity to choose.

The colours come from matplotlib: `managua` (Crameri's scientific colour maps) for signed maps, orange for the class and
blue against it, and `viridis` for positive ones; both are told apart by every common form of colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw

from tfcausal.errors import InvalidArgument, message
from tfcausal.figures import outlined, title_font

Colours = Literal["signed", "positive"]
_COLOUR_MAPS = {"signed": "managua_r", "positive": "viridis"}
_SCALE_PERCENTILE = 99.0  # single pixels do not hide the rest
_DIMMED = 0.65  # brightness that is left to an image under its map
_GAMMA = 0.7  # of the opacity over the strength, so that weak saliency is seen
_GAP = 10  # pixels between the pictures of a sheet
_INK, _PAPER = "#22303c", "white"

_SLOPE = "logits per unit of a pixel's value"
UNITS = {
    "gradient": _SLOPE,
    "smoothgrad": _SLOPE,
    "guided_backpropagation": _SLOPE,
    "vargrad": "squared logits per squared unit of a pixel's value",
    "grad_cam": "no unit",
    "grad_cam_plus_plus": "no unit",
    "score_cam": "no unit",
    "layer_cam": "no unit",
}
"""Units of the maps that are not in logits per pixel, by method."""


def unit_of(method: str) -> str:
    """The unit of a method's maps, for legends.

    Args:
        method: Name of the method.

    Example:
        >>> unit_of("wbp"), unit_of("grad_cam")
        ('logits per pixel', 'no unit')
    """
    return UNITS.get(method, "logits per pixel")


def map_scales(maps: np.ndarray, shared: bool = False) -> np.ndarray:
    """The absolute value at which the colours of maps end: the 99th percentile of their absolute values.

    Args:
        maps: Signed maps (N, height, width).
        shared: Whether all have one scale, so that their colours can be compared; else each has its own.

    Returns:
        Positive numbers, (N,); 1 for a map that is 0 everywhere.

    Example:
        >>> map_scales(np.array([[[2.0]], [[-4.0]]])).tolist(), map_scales(np.zeros((1, 2, 2))).tolist()
        ([2.0, 4.0], [1.0])
    """
    absolute = np.abs(np.asarray(maps, np.float64)).reshape(len(maps), -1)
    if shared:
        absolute = absolute.reshape(1, -1)
    scales = np.percentile(absolute, _SCALE_PERCENTILE, axis=1)
    scales = np.where(scales > 0, scales, absolute.max(axis=1, initial=0.0))
    return np.broadcast_to(np.where(scales > 0, scales, 1.0), len(maps)).copy()


def overlaid(
    picture: np.ndarray, saliency: np.ndarray, scale: float, opacity: float = 0.8, colours: Colours = "signed"
) -> np.ndarray:
    """Lay a map over its image, which is dimmed and grey; the colour's opacity grows with its strength.

    Args:
        picture: (height, width, channels) in [0, 1], 1 or 3 channels.
        saliency: Signed map (height, width).
        scale: Absolute value at which the colours end.
        opacity: Opacity at that value, in [0, 1]; with 0 the image is shown alone.
        colours: `signed`, or `positive` to leave out what speaks against the class.

    Returns:
        (height, width, 3) in [0, 1].

    Raises:
        InvalidArgument: Shapes that do not go together, or a number out of its range.

    Example:
        >>> overlaid(np.ones((2, 2, 1)), np.zeros((2, 2)), scale=1.0).max().item()
        0.65
    """
    if saliency.shape != picture.shape[:2]:
        raise InvalidArgument(message("saliency", f"a map of shape {picture.shape[:2]}", f"shape {saliency.shape}"))
    if not scale > 0:
        raise InvalidArgument(message("scale", "a positive number", scale))
    if not 0 <= opacity <= 1:
        raise InvalidArgument(message("opacity", "a number in [0, 1]", opacity))
    if opacity == 0:
        return outlined(picture, None)
    grey = np.repeat(np.clip(picture, 0, 1).mean(axis=2, keepdims=True), 3, axis=2)
    lowest = 0.0 if colours == "positive" else -1.0
    strength = np.clip(saliency / scale, lowest, 1.0)
    place = strength if colours == "positive" else 0.5 + 0.5 * strength
    alpha = opacity * np.abs(strength)[..., None] ** _GAMMA
    return (1 - alpha) * _DIMMED * grey + alpha * colormaps[_COLOUR_MAPS[colours]](place)[..., :3]


def amplified_change(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, float]:
    """What an intervention added to an image, about mid-grey and as strong as the colours allow.

    Args:
        before: (height, width, channels) in [0, 1], 1 or 3 channels.
        after: The changed image.

    Returns:
        (height, width, 3) in [0, 1], and the factor by which the change is amplified; 1 where there is none.

    Example:
        >>> picture, factor = amplified_change(np.full((1, 2, 1), 0.5), np.array([[[0.5], [0.25]]]))
        >>> picture[0, :, 0].tolist(), factor
        ([0.5, 0.0], 2.0)
    """
    change = np.asarray(after, np.float64) - before
    largest = float(np.abs(change).max(initial=0.0))
    factor = 0.5 / largest if largest > 0 else 1.0
    return outlined(0.5 + factor * change, None), factor


@cache
def colour_stops(colours: Colours, steps: int = 17) -> tuple[str, ...]:
    """Colours of a legend from its lowest to its highest value, as `#rrggbb`.

    Args:
        colours: `signed` or `positive`.
        steps: How many.
    """
    return tuple(to_hex(colour) for colour in colormaps[_COLOUR_MAPS[colours]](np.linspace(0, 1, steps)))


def to_png(pixels: np.ndarray, side: int = 192) -> bytes:
    """Pixels as a PNG; small images are enlarged by whole factors, so that each pixel is a square.

    Args:
        pixels: (height, width, 3) in [0, 1].
        side: Smallest length of the longer side, in pixels.

    Example:
        >>> Image.open(io.BytesIO(to_png(np.zeros((10, 20, 3)), side=50))).size
        (60, 30)
    """
    buffer = io.BytesIO()
    _enlarged(pixels, side).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], heading: str, columns: int = 6) -> bytes:
    """Pictures with captions on one page, for a file.

    Args:
        pictures: Each (height, width, 3) in [0, 1], of one size.
        captions: One for every picture; lines that do not fit are cut off.
        heading: Above all of them.
        columns: Pictures in a row.

    Returns:
        A PNG.

    Example:
        >>> sheet([np.zeros((8, 8, 3))] * 3, ["one", "two", "three"], "Three images", columns=2)[1:4]
        b'PNG'
    """
    if not pictures or len(pictures) != len(captions):
        expected = "at least one picture, and a caption for each"
        raise InvalidArgument(message("pictures", expected, f"{len(pictures)} and {len(captions)} captions"))
    images, font = [_enlarged(pixels, 192) for pixels in pictures], title_font(12)
    width, height = images[0].size
    line = sum(font.getmetrics()) + 2
    lines = max(caption.count("\n") for caption in captions) + 1
    columns = min(columns, len(images))
    rows, top = -(-len(images) // columns), line + 2 * _GAP
    cell = (width + _GAP, height + lines * line + _GAP)
    page = Image.new("RGB", (columns * cell[0] + _GAP, top + rows * cell[1]), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), _fitting(draw, heading, page.width - 2 * _GAP), _INK, font)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, above = _GAP + number % columns * cell[0], top + number // columns * cell[1]
        page.paste(image, (left, above))
        for row, text in enumerate(caption.split("\n")):
            draw.text((left, above + height + row * line), _fitting(draw, text, width), _INK, font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    shown = text
    while shown and draw.textlength(shown, title_font(12)) > width:
        shown = f"{shown[:-2]}…" if len(shown) > 2 else ""
    return shown


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
    factor = max(1, -(-side // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
