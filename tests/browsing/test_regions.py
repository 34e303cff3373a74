import numpy as np
import pytest

from tfcausal.browsing.canvas import from_canvas, to_canvas
from tfcausal.browsing.regions import MOST_POINTS, from_text, tidied, to_text
from tfcausal.data.mask_drawing import Box, BrushStroke, Polygon
from tfcausal.errors import InvalidArgument

SHAPES = [
    Box(4, 5, 15, 20),
    BrushStroke(((1.0, 2.0), (3.25, 4.0), (9.125, 4.5)), 2.5),
    BrushStroke(((7.0, 7.0),), 3.0),
    Polygon(((0.0, 0.0), (6.5, 1.0), (2.0, 8.0))),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_region_comes_back_from_its_text_and_from_the_canvas(shape):
    assert from_text(to_text(shape)) == shape
    assert tidied(shape, (24, 24)) == shape
    for side in (24, 352, 100):  # the canvas has whole pixels of the screen, the image has 24
        (drawn,) = from_canvas(to_canvas([shape], 24 / side, 24 / side), 24 / side, 24 / side)
        assert to_text(tidied(drawn, (24, 24))) == to_text(shape)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "box",
        "box,1,2,3",
        "box,1,2,3,x",
        "box,1,2,3,nan",
        "box,9,2,3,4",
        "brush,2,1",
        "brush,0,1,1",
        "brush,-1,1,1",
        "polygon,1,1,2,2",
        "circle,1,2,3",
        "brush,1," + ",".join(["1"] * (2 * MOST_POINTS + 2)),
        "../../etc/passwd",
    ],
)
def test_other_texts_are_refused_by_name(text):
    with pytest.raises(InvalidArgument, match=r"`region`: expected box,LEFT"):
        from_text(text)


@pytest.mark.parametrize("shape", [Box(30, 0, 40, 9), Box(0, -5, 9, 0.2), BrushStroke(((-9.0, 3.0), (-4.0, 3.0)), 2.0)])
def test_what_lies_outside_of_the_image_is_left_out(shape):
    assert tidied(shape, (24, 24)) is None


def test_edges_of_a_rectangle_become_whole_pixels_of_the_image():
    assert tidied(Box(-3.0, 2.6, 7.4, 99.0), (24, 16)) == Box(0, 3, 7, 24)


def test_a_long_stroke_keeps_its_ends_and_few_points_and_then_stays_as_it_is():
    random = np.random.default_rng(0)
    way = random.uniform(0, 200, (3000, 2)).cumsum(axis=0) % 224
    stroke = tidied(BrushStroke(tuple(map(tuple, way.tolist())), 3.14159), (224, 224))
    assert len(stroke.points) <= MOST_POINTS
    np.testing.assert_allclose([stroke.points[0], stroke.points[-1]], way[[0, -1]], atol=0.07)
    assert tidied(stroke, (224, 224)) == stroke
    assert from_text(to_text(stroke)) == stroke
