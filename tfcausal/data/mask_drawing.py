"""Masks drawn by a person: polygons, boxes and brush strokes on a picture become a mask of its pixels.

Shapes are in picture coordinates: x to the right and y down from the upper left corner, in pixels of the file, so that
the first pixel spans from 0 to 1 both ways. A pixel belongs to a shape if its centre lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage import draw

from tfcausal.errors import DataError, InvalidArgument, message

Point = tuple[float, float]
"""x and y."""
Pixels = np.ndarray | slice


@dataclass(frozen=True)
class Polygon:
    """A closed polygon.

    Attributes:
        points: Its corners, at least three.
        cut: Whether it takes away from the mask what was drawn before, instead of adding to it.

    Raises:
        InvalidArgument: There are fewer than three corners, or one is not finite.
    """

    points: tuple[Point, ...]
    cut: bool = False

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise InvalidArgument(message("points", "three corners or more", len(self.points), "Close it later."))
        _check_finite("points", self.points)


@dataclass(frozen=True)
class Box:
    """An upright rectangle.

    Attributes:
        left: Its left edge.
        top: Its upper edge.
        right: Its right edge, beyond the left one.
        bottom: Its lower edge, below the upper one.
        cut: Whether it takes away from the mask what was drawn before.

    Raises:
        InvalidArgument: It has no area, or an edge is not finite.
    """

    left: float
    top: float
    right: float
    bottom: float
    cut: bool = False

    def __post_init__(self) -> None:
        _check_finite("box", [(self.left, self.top), (self.right, self.bottom)])
        if not (self.left < self.right and self.top < self.bottom):
            edges = f"{self.left:g} to {self.right:g} and {self.top:g} to {self.bottom:g}"
            raise InvalidArgument(message("box", "left < right and top < bottom", edges, "Swap or move the edges."))


@dataclass(frozen=True)
class BrushStroke:
    """What a round brush covers on its way along straight lines.

    Attributes:
        points: The way; a single point is a dot.
        width: The diameter of the brush.
        cut: Whether it takes away from the mask what was drawn before.

    Raises:
        InvalidArgument: There is no point, one is not finite, or the width is not positive.
    """

    points: tuple[Point, ...]
    width: float
    cut: bool = False

    def __post_init__(self) -> None:
        if not self.points:
            raise InvalidArgument(message("points", "at least one point", "none"))
        if not 0.0 < self.width < math.inf:
            raise InvalidArgument(message("width", "a positive number of pixels", self.width))
        _check_finite("points", self.points)


Shape = Polygon | Box | BrushStroke


def drawn_mask(shapes: Iterable[Shape], height: int, width: int) -> np.ndarray:
    """Fill shapes one after the other, at the resolution of the picture.

    Args:
        shapes: What was drawn, first to last; what lies outside of the picture is cut off.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.

    Returns:
        The mask, bool of shape (height, width).

    Raises:
        InvalidArgument: The picture has no pixels.

    Example:
        >>> drawn_mask([Box(1, 0, 4, 2), Box(2, 0, 3, 1, cut=True)], height=2, width=5).astype(int)
        array([[0, 1, 0, 1, 0],
               [0, 1, 1, 1, 0]])
    """
    if height < 1 or width < 1:
        raise InvalidArgument(message("height and width", "positive numbers of pixels", (height, width)))
    mask = np.zeros((height, width), dtype=bool)
    for shape in shapes:
        for rows, columns in _filled(shape, (height, width)):
            mask[rows, columns] = not shape.cut
    return mask


def scaled(shape: Shape, across: float, down: float) -> Shape:
    """The same shape on a picture of another size.

    Args:
        shape: The shape.
        across: New width of the picture over its width.
        down: New height over its height; a brush stays round, with the geometric mean of both.

    Returns:
        A shape of the same kind.

    Example:
        >>> scaled(Box(1, 1, 2, 3), 2, 10)
        Box(left=2, top=10, right=4, bottom=30, cut=False)
    """
    if isinstance(shape, Box):
        return Box(shape.left * across, shape.top * down, shape.right * across, shape.bottom * down, shape.cut)
    points = tuple((x * across, y * down) for x, y in shape.points)
    if isinstance(shape, Polygon):
        return Polygon(points, shape.cut)
    return BrushStroke(points, shape.width * math.sqrt(across * down), shape.cut)


def check_drawn(mask: np.ndarray) -> None:
    """Refuse a mask that says nothing about where the cause is.

    Args:
        mask: bool of shape (height, width).

    Raises:
        DataError: No pixel is marked, or every one is.
    """
    if not mask.any():
        raise DataError("The mask is empty: no pixel is marked. Draw around the cause before you save.")
    if mask.all():
        raise DataError("The mask covers the whole picture, which says nothing. Draw around the cause only.")


def _filled(shape: Shape, size: tuple[int, int]) -> Iterator[tuple[Pixels, Pixels]]:
    """Rows and columns of the pixels inside, in one or several parts."""
    if isinstance(shape, Polygon):
        yield _inside(shape.points, size)
    elif isinstance(shape, Box):
        yield _between(shape.top, shape.bottom, size[0]), _between(shape.left, shape.right, size[1])
    else:
        radius = shape.width / 2
        for x, y in shape.points:
            yield draw.disk((y - 0.5, x - 0.5), radius, shape=size)
        for start, end in pairwise(shape.points):
            length = math.dist(start, end)
            if length > 0:
                across, down = radius * (start[1] - end[1]) / length, radius * (end[0] - start[0]) / length
                sides = ((start, 1), (end, 1), (end, -1), (start, -1))
                yield _inside([(x + sign * across, y + sign * down) for (x, y), sign in sides], size)


def _inside(points: Sequence[Point], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    # scikit-image has the centres of pixels at whole numbers.
    corners = np.asarray(points, np.float64) - 0.5
    return draw.polygon(corners[:, 1], corners[:, 0], shape=size)


def _between(low: float, high: float, length: int) -> slice:
    """The pixels whose centres are from low up to, and without, high."""
    first, end = (math.ceil(min(max(edge, 0.0), float(length)) - 0.5) for edge in (low, high))
    return slice(first, end)


def _check_finite(name: str, points: Iterable[Point]) -> None:
    for point in points:
        if not all(map(math.isfinite, point)):
            raise InvalidArgument(message(name, "finite coordinates", point))
