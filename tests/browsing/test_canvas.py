import json
import math

import numpy as np
import pytest

from tfcausal.browsing.canvas import ADDS, CUTS, from_canvas, to_canvas
from tfcausal.data.mask_drawing import Box, BrushStroke, Polygon
from tfcausal.errors import InvalidArgument

# What streamlit-drawable-canvas 0.13 sent for a drag, three clicks, and a stroke of the brush from (100, 100) to
# (300, 150), without the keys that say nothing about the shape.
RECT = {"type": "Rect", "originX": "left", "originY": "top", "left": 100, "top": 50, "width": 100, "height": 100}
RECT |= {"strokeWidth": 1, "strokeUniform": True, "scaleX": 1, "scaleY": 1, "angle": 0, "stroke": ADDS}
POLYGON = {"type": "Polygon", "originX": "center", "originY": "center", "left": 200, "top": 200, "width": 200}
POLYGON |= {"height": 200, "strokeWidth": 1, "scaleX": 1, "scaleY": 1, "angle": 0, "flipX": False, "stroke": ADDS}
POLYGON |= {"points": [{"x": 100, "y": 100}, {"x": 300, "y": 100}, {"x": 200, "y": 300}]}
PATH = {"type": "Path", "originX": "center", "originY": "center", "left": 200, "top": 125, "width": 200.002}
PATH |= {"height": 50.002, "fill": None, "stroke": ADDS, "strokeWidth": 12, "scaleX": 1, "scaleY": 1, "angle": 0}
PATH |= {
    "path": [["M", 99.999, 99.999], ["Q", 100, 100, 110, 102.5], ["Q", 260, 140, 280, 145], ["L", 300.001, 150.001]]
}


def test_what_the_canvas_sends_is_where_it_was_drawn():
    (box,) = from_canvas([RECT], 1, 1)
    assert box == Box(100.5, 50.5, 200.5, 150.5)  # the line around it begins where the mouse was
    (polygon,) = from_canvas([POLYGON], 1, 1)
    assert polygon.points == ((100, 100), (300, 100), (200, 300))
    (stroke,) = from_canvas([PATH], 1, 1)
    assert stroke.width == 12
    np.testing.assert_allclose(stroke.points[0], (99.999, 99.999), atol=1e-2)
    np.testing.assert_allclose(stroke.points[-1], (300.001, 150.001), atol=1e-2)


def test_pixels_of_the_canvas_become_pixels_of_the_picture():
    box, polygon, stroke = from_canvas([RECT, POLYGON, PATH], across=0.5, down=2.0)
    assert box == Box(50.25, 101, 100.25, 301)
    assert polygon.points == ((50, 200), (150, 200), (100, 600))
    assert stroke.width == 12
    np.testing.assert_allclose(stroke.points[-1], (150, 300), atol=2e-2)


def test_the_colour_tells_what_is_cut_out():
    shapes = from_canvas([entry | {"stroke": CUTS} for entry in (RECT, POLYGON, PATH)], 1, 1)
    assert [shape.cut for shape in shapes] == [True] * 3
    assert not any(shape.cut for shape in from_canvas([RECT, POLYGON, PATH], 1, 1))


@pytest.mark.parametrize("across", [0.1, 1.0, 7.3])
def test_shapes_come_back_from_the_canvas(across):
    shapes = [
        Box(1, 2, 30, 40.5, cut=True),
        Polygon(((1, 1), (50, 3), (20, 44))),
        BrushStroke(((3, 4), (30, 50), (31, 2)), 7.5, cut=True),
        BrushStroke(((9, 9),), 3.0),
    ]
    sent = json.loads(json.dumps(to_canvas(shapes, across, across)))
    back = from_canvas(sent, across, across)
    for shape, again in zip(shapes, back, strict=True):
        assert type(again) is type(shape)
        assert again.cut == shape.cut
        if isinstance(shape, Box):
            ours, theirs = ((s.left, s.top, s.right, s.bottom) for s in (shape, again))
        else:
            ours, theirs = shape.points, again.points[: len(shape.points)]
        np.testing.assert_allclose(theirs, ours, atol=1e-9)
    assert back[2].width == pytest.approx(7.5)


def test_what_was_moved_turned_and_stretched_is_where_it_is_seen():
    # A quarter turn to the right about its own upper left corner.
    (turned,) = from_canvas([RECT | {"strokeWidth": 0, "left": 100, "top": 100, "height": 50, "angle": 90}], 1, 1)
    np.testing.assert_allclose(sorted(turned.points), [(50, 100), (50, 200), (100, 100), (100, 200)], atol=1e-9)
    # Twice as wide: its line keeps its width, and with it the place of the corner.
    (wide,) = from_canvas([RECT | {"scaleX": 2}], 1, 1)
    assert wide == Box(100.5, 50.5, 300.5, 150.5)
    (mirrored,) = from_canvas([POLYGON | {"flipX": True, "left": 0, "top": 0}], 1, 1)
    np.testing.assert_allclose(mirrored.points, [(100, -100), (-100, -100), (0, 100)])
    (thick,) = from_canvas([PATH | {"scaleX": 2, "scaleY": 8}], 1, 1)
    assert thick.width == 48
    # Skewed by 45 degrees: x grows with y.
    (skewed,) = from_canvas([POLYGON | {"skewX": 45, "left": 0, "top": 0}], 1, 1)
    np.testing.assert_allclose(skewed.points, [(-200, -100), (0, -100), (100, 100)], atol=1e-9)


def test_a_curve_is_placed_by_the_box_around_it_and_followed_closely():
    arch = PATH | {"path": [["M", 0, 0], ["Q", 50, 100, 100, 0]], "left": 50, "top": 25}  # it reaches down to y = 50
    (stroke,) = from_canvas([arch], 1, 1)
    x, y = np.array(stroke.points).T
    np.testing.assert_allclose(y, 2 * x * (100 - x) / 100, atol=1e-9)
    lines = np.interp(np.linspace(0, 100, 500), x, y)
    assert np.abs(lines - 2 * np.linspace(0, 100, 500) * (100 - np.linspace(0, 100, 500)) / 100).max() < 0.3


def test_a_box_without_an_area_is_left_out():
    assert from_canvas([RECT | {"width": 0}], 1, 1) == ()


@pytest.mark.parametrize(
    "objects",
    [
        [{"type": "Image", "src": "/etc/passwd"}],
        [{}],
        ["Rect"],
        [RECT | {"left": "far"}],
        [RECT | {"left": math.nan}],
        [RECT | {"width": 1e308, "scaleX": 1e308}],
        [RECT | {"originX": "nowhere"}],
        [POLYGON | {"points": [{"x": 1e308, "y": 1}] * 3}],
        [POLYGON | {"points": []}],
        [POLYGON | {"points": [{"x": 1}]}],
        [POLYGON | {"points": [{"x": 1, "y": 1}, {"x": 2, "y": 2}]}],
        [PATH | {"path": []}],
        [PATH | {"path": [["C", 1, 2, 3, 4, 5, 6]]}],
        [PATH | {"path": [["Q", 1, 2, 3, 4]]}],
        [PATH | {"path": 7}],
        [PATH | {"strokeWidth": -3}],
        [RECT] * 20_001,
    ],
)
def test_what_is_no_drawing_is_refused(objects):
    with pytest.raises(InvalidArgument):
        from_canvas(objects, 1, 1)
