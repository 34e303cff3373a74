"""Shapes on the canvas of the browser: what streamlit-drawable-canvas sends, and what it draws again.

The canvas speaks the JSON of Fabric.js: objects with a place, a size and a transformation, in pixels of the screen.
What it sends comes from a browser and is checked like any other input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcausal.data.mask_drawing import Box, BrushStroke, Point, Polygon, Shape, scaled
from tfcausal.errors import InvalidArgument, message

ADDS, CUTS = "rgba(230,159,0,0.6)", "rgba(0,114,178,0.6)"
"""Colours of shapes that add to the mask and that take away from it; by them the canvas tells one from the other."""
OUTLINE = 1
"""Width of the line around polygons and boxes on the canvas, in pixels of the screen; half of it lies outside."""
_ORIGINS = {"left": 0.0, "top": 0.0, "center": 0.5, "right": 1.0, "bottom": 1.0}
_TOLERANCE = 0.25  # pixels of the screen that a curve may be off the lines that stand for it
_FARTHEST = 1e6  # pixels
_MOST = 20_000  # objects, or points of one, that are taken


def from_canvas(objects: Sequence[Mapping[str, Any]], across: float, down: float) -> tuple[Shape, ...]:
    """The shapes that a canvas holds, first to last.

    Args:
        objects: What the canvas sends as `objects`: `Rect`, `Polygon` and `Path`, moved and turned as one likes.
        across: Pixels of the picture per pixel of the canvas, along the width.
        down: The same along the height.

    Returns:
        Shapes in picture coordinates; those without any area are left out. A rectangle that is turned is a polygon.

    Raises:
        InvalidArgument: An object is of another kind, or damaged.

    Example:
        >>> box = {"type": "Rect", "left": 9.5, "top": 19.5, "width": 30, "height": 10, "strokeWidth": 1}
        >>> from_canvas([box], across=0.1, down=0.5)
        (Box(left=1.0, top=10.0, right=4.0, bottom=15.0, cut=False),)
    """
    if len(objects) > _MOST:
        raise InvalidArgument(message("objects", f"at most {_MOST} shapes", len(objects), "Clear the canvas."))
    try:
        shapes = [shape for entry in objects if (shape := _shape(entry)) is not None]
    except InvalidArgument:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"[:100]
        raise InvalidArgument(message("objects", "shapes as the canvas draws them", reason)) from None
    return tuple(scaled(shape, across, down) for shape in shapes)


def to_canvas(shapes: Sequence[Shape], across: float, down: float) -> list[dict[str, Any]]:
    """The objects that a canvas draws for shapes; :func:`from_canvas` gives the shapes back.

    Args:
        shapes: Shapes in picture coordinates.
        across: Pixels of the picture per pixel of the canvas, along the width.
        down: The same along the height.
    """
    return [_object(scaled(shape, 1 / across, 1 / down)) for shape in shapes]


def _shape(entry: Mapping[str, Any]) -> Shape | None:
    kind, cut = entry["type"], entry.get("stroke") == CUTS
    if kind == "Rect":
        half = _number(entry, "width") / 2, _number(entry, "height") / 2
        corners = np.array([(-half[0], -half[1]), (half[0], -half[1]), (half[0], half[1]), (-half[0], half[1])])
        placed = _placed(entry, corners)
        (left, top), (right, bottom) = placed.min(axis=0), placed.max(axis=0)
        if not (right > left and bottom > top):
            return None
        upright = all(_number(entry, name, 0.0) == 0.0 for name in ("angle", "skewX", "skewY"))
        edges = float(left), float(top), float(right), float(bottom)
        return Box(*edges, cut) if upright else Polygon(_points(placed), cut)
    if kind == "Polygon":
        corners = np.array([(_bounded(point["x"]), _bounded(point["y"])) for point in entry["points"][: _MOST + 1]])
        low, high = corners.min(axis=0), corners.max(axis=0)
        return Polygon(_points(_placed(entry, corners - (low + high) / 2)), cut)
    if kind == "Path":
        way, (low, high) = _way(entry["path"][: _MOST + 1])
        width = _number(entry, "strokeWidth")
        if not entry.get("strokeUniform", False):
            width *= math.sqrt(abs(_number(entry, "scaleX", 1.0) * _number(entry, "scaleY", 1.0)))
        return BrushStroke(_points(_placed(entry, way - (low + high) / 2)), width, cut)
    raise InvalidArgument(message("objects", "boxes, polygons and strokes of the brush", repr(kind)[:60]))


def _way(commands: Sequence[Sequence[Any]]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Points (n, 2) along a path, and the corners of the box around the path itself, which Fabric.js places it by."""
    points: list[np.ndarray] = []
    turns: list[np.ndarray] = []
    for name, *numbers in commands:
        values = [_bounded(number) for number in numbers]
        if name in ("M", "L") and len(values) == 2:
            points.append(np.array(values))
        elif name == "Q" and len(values) == 4 and points:
            start, control, end = points[-1], np.array(values[:2]), np.array(values[2:])
            bend = start - 2 * control + end
            count = min(64, max(1, math.ceil(math.sqrt(float(np.abs(bend).max()) / (4 * _TOLERANCE)))))
            share = np.arange(1, count + 1)[:, None] / count
            points += list((1 - share) ** 2 * start + 2 * share * (1 - share) * control + share**2 * end)
            extreme = np.divide(start - control, bend, out=np.zeros(2), where=bend != 0).clip(0, 1)
            turns.append((1 - extreme) ** 2 * start + 2 * extreme * (1 - extreme) * control + extreme**2 * end)
        else:
            raise InvalidArgument(message("path", "lines and quadratic curves", repr(name)[:60]))
    way = np.array(points)
    around = np.concatenate([way, np.array(turns).reshape(-1, 2)])
    return way, (around.min(axis=0), around.max(axis=0))


def _placed(entry: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Points (n, 2) about an object's own centre, moved to where the object is on the canvas."""
    flip = [-1.0 if entry.get(name, False) else 1.0 for name in ("flipX", "flipY")]
    scale = np.array([_number(entry, "scaleX", 1.0), _number(entry, "scaleY", 1.0)]) * flip
    skew_x, skew_y = (math.tan(math.radians(_number(entry, name, 0.0))) for name in ("skewX", "skewY"))
    shape = np.diag(scale) @ np.array([[1.0, skew_x], [0.0, 1.0]]) @ np.array([[1.0, 0.0], [skew_y, 1.0]])
    # The place of an object is that of a corner, or of the centre, of the box around it with its outline.
    line = _number(entry, "strokeWidth", 0.0)
    uniform = bool(entry.get("strokeUniform", False))
    size = np.array([_number(entry, "width"), _number(entry, "height")]) + (0.0 if uniform else line)
    size = np.abs(shape) @ size + (line if uniform else 0.0)
    angle = math.radians(_number(entry, "angle", 0.0))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    origin = np.array([_ORIGINS[entry.get("originX", "left")], _ORIGINS[entry.get("originY", "top")]])
    centre = np.array([_number(entry, "left"), _number(entry, "top")]) + turn @ ((0.5 - origin) * size)
    return centre + points @ (turn @ shape).T


def _object(shape: Shape) -> dict[str, Any]:
    """An object of Fabric.js for a shape in pixels of the canvas."""
    colour = CUTS if shape.cut else ADDS
    if isinstance(shape, Box):
        place = {"left": shape.left - OUTLINE / 2, "top": shape.top - OUTLINE / 2, "originX": "left", "originY": "top"}
        size = {"width": shape.right - shape.left, "height": shape.bottom - shape.top}
        return {"type": "Rect", **place, **size, "fill": colour, "stroke": colour, "strokeWidth": OUTLINE}
    points = np.array(shape.points)
    low, high = points.min(axis=0), points.max(axis=0)
    (x, y), (width, height) = ((low + high) / 2).tolist(), (high - low).tolist()
    place = {"left": x, "top": y, "width": width, "height": height, "originX": "center", "originY": "center"}
    if isinstance(shape, Polygon):
        corners = [{"x": x, "y": y} for x, y in shape.points]
        outlined = {"fill": colour, "stroke": colour, "strokeWidth": OUTLINE}
        return {"type": "Polygon", "points": corners, **place, **outlined}
    first, *rest = shape.points
    path = [["M", *first], *(["L", *point] for point in rest or [first])]
    brush = {"fill": None, "stroke": colour, "strokeWidth": shape.width}
    return {"type": "Path", "path": path, **place, **brush, "strokeLineCap": "round", "strokeLineJoin": "round"}


def _points(values: np.ndarray) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in values.tolist())


def _number(entry: Mapping[str, Any], name: str, default: float | None = None) -> float:
    return _bounded(entry[name] if default is None else entry.get(name, default))


def _bounded(number: Any) -> float:
    value = float(number)
    if not abs(value) <= _FARTHEST:
        raise InvalidArgument(message("objects", f"numbers up to {_FARTHEST:g}", value))
    return value
