import math
from itertools import pairwise

import numpy as np
import pytest

from tfcausal.data.mask_drawing import Box, BrushStroke, Polygon, check_drawn, drawn_mask, scaled
from tfcausal.errors import DataError, InvalidArgument

HEIGHT, WIDTH = 40, 50
X, Y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)  # centres of the pixels


def crossings_say_inside(points):
    """The even-odd rule, written out for every centre."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            crosses = (np.minimum(y0, y1) <= Y) & (np.maximum(y0, y1) > Y)
            inside ^= crosses & (x0 + (Y - y0) * (x1 - x0) / (y1 - y0) > X)
    return inside


def distance_to_way(points):
    distances = [np.hypot(X - x, Y - y) for x, y in points]
    for (x0, y0), (x1, y1) in pairwise(points):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        share = np.clip(((X - x0) * (x1 - x0) + (Y - y0) * (y1 - y0)) / length, 0, 1)
        distances.append(np.hypot(X - x0 - share * (x1 - x0), Y - y0 - share * (y1 - y0)))
    return np.min(distances, axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_has_the_pixels_whose_centres_are_inside(seed):
    points = tuple(map(tuple, np.random.default_rng(seed).uniform(-10, 60, (7, 2)).tolist()))
    np.testing.assert_array_equal(drawn_mask([Polygon(points)], HEIGHT, WIDTH), crossings_say_inside(points))


@pytest.mark.parametrize("seed", range(5))
def test_a_brush_covers_what_is_nearer_than_half_its_width(seed):
    random = np.random.default_rng(seed)
    points = tuple(map(tuple, random.uniform(-5, 55, (4, 2)).tolist()))
    width = random.uniform(1, 15)
    distance = distance_to_way(points)
    mask = drawn_mask([BrushStroke(points, width)], HEIGHT, WIDTH)
    assert mask[distance < width / 2 - 1e-9].all()
    assert not mask[distance > width / 2 + 1e-9].any()


def test_a_box_has_the_pixels_between_its_edges_and_what_is_outside_is_cut_off():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:9, 5:20] = True
    for off in (0.0, 1e-9, -1e-9, 0.49, -0.49):
        box = Box(5 + off, 3 + off, 20 + off, 9 + off)
        np.testing.assert_array_equal(drawn_mask([box], HEIGHT, WIDTH), expected)
    assert drawn_mask([Box(-100, -100, 500, 500)], HEIGHT, WIDTH).all()
    for away in (Box(-9, 1, -1, 5), Box(60, 1, 90, 5), Box(1, 45, 5, 90), Box(7.6, 7.6, 8.4, 8.4)):
        assert not drawn_mask([away], HEIGHT, WIDTH).any()


def test_what_is_cut_out_is_gone_and_can_be_drawn_again():
    square, hole = Box(10, 10, 30, 30), Box(15, 15, 25, 25, cut=True)
    dot = BrushStroke(((20.5, 20.5),), 1.0)
    mask = drawn_mask([square, hole, dot], HEIGHT, WIDTH)
    assert mask.sum() == 400 - 100 + 1
    assert mask[20, 20]
    assert drawn_mask([hole, square], HEIGHT, WIDTH).sum() == 400


def test_a_shape_on_a_picture_of_another_size_covers_the_same_part():
    shapes = [Polygon(((5, 5), (40, 8), (20, 35))), Box(1, 1, 9, 9, cut=True), BrushStroke(((5, 35), (45, 30)), 4.0)]
    mask = drawn_mask(shapes, HEIGHT, WIDTH)
    larger = drawn_mask([scaled(shape, 8, 8) for shape in shapes], 8 * HEIGHT, 8 * WIDTH)
    assert abs(larger.mean() - mask.mean()) < 0.01
    assert (larger.reshape(HEIGHT, 8, WIDTH, 8).mean(axis=(1, 3)).round() != mask).mean() < 0.01
    assert scaled(BrushStroke(((1, 1),), 2.0), 4, 9).width == 12.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Polygon(((0, 0), (1, 1))), "three corners or more; received 2"),
        (lambda: Polygon(((0, 0), (1, 1), (math.nan, 1))), "finite coordinates"),
        (lambda: Box(3, 1, 3, 5), "left < right and top < bottom; received 3 to 3 and 1 to 5"),
        (lambda: Box(1, 1, math.inf, 5), "finite coordinates"),
        (lambda: BrushStroke((), 3), "at least one point"),
        (lambda: BrushStroke(((1, 1),), 0), "a positive number of pixels; received 0"),
        (lambda: BrushStroke(((1, 1),), math.nan), "a positive number of pixels"),
        (lambda: drawn_mask([], 0, 5), "positive numbers of pixels"),
    ],
)
def test_shapes_that_are_none_are_refused(make, text):
    with pytest.raises(InvalidArgument, match=text):
        make()


def test_masks_that_say_nothing_are_refused():
    with pytest.raises(DataError, match="no pixel is marked"):
        check_drawn(drawn_mask([], 3, 3))
    with pytest.raises(DataError, match="covers the whole picture"):
        check_drawn(drawn_mask([Box(0, 0, 3, 3)], 3, 3))
    check_drawn(drawn_mask([Box(0, 0, 3, 2)], 3, 3))
