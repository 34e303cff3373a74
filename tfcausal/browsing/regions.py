"""Regions of an image that a person draws, tidied, and as text for links; see :mod:`tfcausal.data.mask_drawing`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfcausal.data.mask_drawing import Box, BrushStroke, Point, Polygon, Shape
from tfcausal.errors import InvalidArgument, message

MOST_POINTS = 200
"""Points of a stroke or corners of a polygon that are kept."""
_KINDS = "box,LEFT,TOP,RIGHT,BOTTOM or brush,WIDTH,X,Y,... or polygon,X,Y,..., in pixels"


def to_text(shape: Shape) -> str:
    """A region in few characters, for a link.

    Args:
        shape: The region, in pixels of the image.

    Example:
        >>> to_text(Box(4, 5, 15, 20)), to_text(BrushStroke(((1.0, 2.0), (3.25, 4.0)), 2.5))
        ('box,4,5,15,20', 'brush,2.5,1,2,3.25,4')
    """
    if isinstance(shape, Box):
        kind, numbers = "box", [shape.left, shape.top, shape.right, shape.bottom]
    else:
        way = [value for point in shape.points for value in point]
        kind, numbers = ("polygon", way) if isinstance(shape, Polygon) else ("brush", [shape.width, *way])
    return ",".join([kind, *(f"{value:.6g}" for value in numbers)])


def from_text(text: str) -> Shape:
    """The region that a text of :func:`to_text` stands for.

    Args:
        text: The text, which can come from anywhere.

    Raises:
        InvalidArgument: It stands for none.

    Example:
        >>> from_text("box,4,5,15,20")
        Box(left=4.0, top=5.0, right=15.0, bottom=20.0, cut=False)
    """
    try:
        kind, *words = text[: 32 * MOST_POINTS].split(",")
        values = list(map(float, words))
        if kind == "box" and len(values) == 4:
            left, top, right, bottom = values
            return Box(left, top, right, bottom)
        if kind == "polygon" and len(values) <= 2 * MOST_POINTS:
            return Polygon(_pairs(values))
        if kind == "brush" and len(values) <= 2 * MOST_POINTS + 1:
            return BrushStroke(_pairs(values[1:]), values[0])
    except (ValueError, IndexError, InvalidArgument):
        pass
    raise InvalidArgument(message("region", _KINDS, repr(text[:60])))


def tidied(shape: Shape, size: tuple[int, int]) -> Shape | None:
    """A region as it is kept: a rectangle of whole pixels of the image; strokes and polygons of few points.

    What is tidy already stays as it is.

    Args:
        shape: The region, in pixels of the image.
        size: Height and width of the image.

    Returns:
        The region; None where nothing of it lies in the image.

    Example:
        >>> tidied(Box(-2.2, 0.9, 3.4, 5.6), (4, 8))
        Box(left=0, top=1, right=3, bottom=4, cut=False)
        >>> tidied(Box(9.0, 0.0, 12.0, 2.0), (4, 8)) is None
        True
    """
    height, width = size
    if isinstance(shape, Box):
        left, right = (round(min(max(edge, 0), width)) for edge in (shape.left, shape.right))
        top, bottom = (round(min(max(edge, 0), height)) for edge in (shape.top, shape.bottom))
        return Box(left, top, right, bottom, shape.cut) if left < right and top < bottom else None
    reach = shape.width / 2 if isinstance(shape, BrushStroke) else 0.0
    columns, rows = zip(*shape.points, strict=True)
    if max(columns) < -reach or min(columns) > width + reach or max(rows) < -reach or min(rows) > height + reach:
        return None
    points = _fewer(shape.points)
    if isinstance(shape, BrushStroke):
        return BrushStroke(points, round(shape.width, 2) or shape.width, shape.cut)
    return Polygon(points, shape.cut) if len(points) >= 3 else None


def _fewer(points: Sequence[Point], shortest: float = 0.5) -> tuple[Point, ...]:
    """Points, to an eighth of a pixel, that are at least so far apart, and the last one."""
    rounded = [(round(8 * x) / 8, round(8 * y) / 8) for x, y in points]
    kept = rounded[:1]
    for place in rounded[1:]:
        if math.dist(place, kept[-1]) >= shortest:
            kept.append(place)
    while len(kept) > 1 and math.dist(kept[-1], rounded[-1]) < shortest:
        kept.pop()
    if kept[-1] != rounded[-1]:
        kept.append(rounded[-1])
    return tuple(kept) if len(kept) <= MOST_POINTS else _fewer(points, 2 * shortest)


def _pairs(values: Sequence[float]) -> tuple[Point, ...]:
    return tuple(zip(values[::2], values[1::2], strict=True))
