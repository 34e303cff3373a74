"""Pictures of a run, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

_INK = "#22303c"
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_SMALLEST_SIDE = 192
_GAP = 8  # pixels between and around the pictures of one explanation


def overlay(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Lay a signed map over its image: red speaks for the class, blue against it; strength is the colour's opacity.

    The map is scaled by the 99th percentile of its absolute value, so that single pixels do not hide the rest.

    Args:
        image: (height, width, channels) in [0, 1], 1 or 3 channels.
        saliency: Signed map (height, width).

    Returns:
        (height, width, 3) in [0, 1].

    Example:
        >>> overlay(np.zeros((2, 2, 1)), np.zeros((2, 2))).shape
        (2, 2, 3)
    """
    grey = np.repeat(np.clip(image, 0, 1).mean(axis=2, keepdims=True), 3, axis=2)
    scale = np.percentile(np.abs(saliency), 99) or np.abs(saliency).max() or 1.0
    strength = np.clip(saliency / scale, -1, 1)
    colour = colormaps["RdBu_r"](0.5 + 0.5 * np.sign(strength) * 0.85)[..., :3]
    opacity = np.abs(strength)[..., None] ** 0.7
    return (1 - opacity) * (0.35 + 0.65 * grey) + opacity * colour


def outlined(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """An image as RGB with the outline of its mask in yellow.

    Args:
        image: (height, width, channels) in [0, 1], 1 or 3 channels.
        mask: (height, width) of zeros and ones, or None.

    Returns:
        (height, width, 3) in [0, 1].

    Example:
        >>> outlined(np.zeros((2, 2, 1)), None).shape
        (2, 2, 3)
    """
    rgb = np.broadcast_to(np.clip(image, 0, 1), (*image.shape[:2], 3)).copy()
    if mask is not None:
        inside = np.pad(mask > 0.5, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        rgb[inside[1:-1, 1:-1] & ~core] = (1.0, 0.85, 0.1)
    return rgb


def as_png(pixels: np.ndarray) -> bytes:
    """Pixels (height, width, 3) in [0, 1] as a PNG; small images are enlarged by whole factors, each pixel a square."""
    buffer = io.BytesIO()
    _enlarged(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def explanation(image: np.ndarray, saliency: np.ndarray, title: Sequence[str]) -> bytes:
    """An image beside itself under its map, with lines of text above.

    Args:
        image: (height, width, channels) in [0, 1], 1 or 3 channels.
        saliency: Signed map (height, width), as for :func:`overlay`.
        title: Lines of text; what does not fit is cut off.

    Returns:
        A PNG.

    Example:
        >>> explanation(np.ones((8, 8, 3)), np.zeros((8, 8)), ["zebra, p = 0.93"])[1:4]
        b'PNG'
    """
    pictures = [_enlarged(outlined(image, None)), _enlarged(overlay(image, saliency))]
    (width, height), font = pictures[0].size, title_font(13)
    line = sum(font.getmetrics()) + 2
    top = _GAP + line * len(title)
    sheet = Image.new("RGB", (2 * width + 3 * _GAP, top + height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(title):
        shown = text
        while shown and draw.textlength(shown, font) > sheet.width - 2 * _GAP:
            shown = f"{shown[:-2]}…" if len(shown) > 2 else ""
        draw.text((_GAP, _GAP // 2 + row * line), shown, _INK, font)
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (_GAP + column * (width + _GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _enlarged(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
    factor = max(1, -(-_SMALLEST_SIDE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


@cache
def title_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of titles, which comes with matplotlib.

    Args:
        size: Height of its lines in pixels, about.
    """
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def summary(
    samples: Sequence[tuple[np.ndarray, np.ndarray | None]],
    maps: Mapping[str, Sequence[np.ndarray]],
    bars: Mapping[str, Mapping[str, Mapping[str, float]]],
    bar_titles: Mapping[str, str],
) -> bytes:
    """The result in one picture: the same images under every model, and one row of bars per measure.

    Args:
        samples: Images with their masks (or None), as for :func:`outlined`.
        maps: By model, the map of every image, (height, width).
        bars: By measure and by model, an estimate with `value`, `low` and `high`; `chance` is drawn as a line.
        bar_titles: Titles of the measures.

    Returns:
        A PNG.
    """
    models = list(maps)
    figure = _figure(11.0, 1.25 * len(samples) + 0.35)
    left = figure.add_gridspec(
        len(samples), 1 + len(models), left=0.01, right=0.56, top=0.92, bottom=0.02, wspace=0.05, hspace=0.05
    )
    for row, (image, mask) in enumerate(samples):
        pictures = [outlined(image, mask), *(overlay(image, maps[model][row]) for model in models)]
        for column, (title, picture) in enumerate(zip(["image, cause outlined", *models], pictures, strict=True)):
            axes = figure.add_subplot(left[row, column])
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=8, color=_INK)
    right = figure.add_gridspec(len(bars), 1, left=0.68, right=0.985, top=0.92, bottom=0.07, hspace=0.75)
    for row, (measure, by_model) in enumerate(bars.items()):
        axes = figure.add_subplot(right[row])
        positions = np.arange(len(models))[::-1]
        for position, model, colour in zip(positions, models, _cycle(len(models)), strict=True):
            estimate = by_model[model]
            error = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
            axes.barh(
                position, estimate["value"], color=colour, height=0.7, xerr=error, error_kw={"lw": 1, "ecolor": _INK}
            )
            if "chance" in estimate:
                axes.plot([estimate["chance"]] * 2, [position - 0.4, position + 0.4], color=_INK, ls=":", lw=1.2)
        axes.set_yticks(positions, models, fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_title(bar_titles[measure], fontsize=9, loc="left", color=_INK)
        _plain(axes)
    return _png(figure)


def histories(tables: Mapping[str, Any]) -> bytes:
    """Loss and accuracy over the epochs, one column per model, training and validation.

    Args:
        tables: By model, its history (pandas, one row per epoch).

    Returns:
        A PNG.
    """
    figure = _figure(2.8 * len(tables), 3.6)
    grid = figure.subplots(2, len(tables), squeeze=False, sharex="col", sharey="row")
    for column, (model, table) in enumerate(tables.items()):
        for row, name in enumerate(("loss", "accuracy")):
            axes = grid[row][column]
            for key, label, colour in ((name, "training", _COLOURS[0]), (f"val_{name}", "validation", _COLOURS[1])):
                if key in table:
                    axes.plot(table["epoch"], table[key], color=colour, lw=1.5, label=label)
            if row == 0:
                axes.set_title(model, fontsize=9, color=_INK)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
            axes.set_xlabel("epoch" if row else "", fontsize=8)
            _plain(axes)
    grid[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return _png(figure)


def deletion_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Mean probability of the predicted class while pixels are deleted, by the map and at random.

    Args:
        curves: By model, the curve of its maps and that of random maps, each (steps + 1,).

    Returns:
        A PNG.
    """
    figure = _figure(2.8 * len(curves), 2.4)
    grid = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (model, (by_map, at_random)) in zip(grid, curves.items(), strict=True):
        share = np.linspace(0, 1, len(by_map))
        axes.plot(share, by_map, color=_COLOURS[0], lw=1.5, label="most salient first")
        axes.plot(share, at_random, color=_INK, lw=1.2, ls=":", label="random order")
        axes.set_title(model, fontsize=9, color=_INK)
        axes.set_xlabel("share of pixels deleted", fontsize=8)
        axes.set_ylim(0, 1)
        _plain(axes)
    grid[0].set_ylabel("probability", fontsize=8)
    grid[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return _png(figure)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[position % len(_COLOURS)] for position in range(count)]


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7.5, colors=_INK, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
