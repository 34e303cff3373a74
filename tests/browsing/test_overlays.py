import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from tfcausal.browsing.overlays import UNITS, colour_stops, map_scales, overlaid, sheet, to_png, unit_of
from tfcausal.errors import InvalidArgument
from tfcausal.saliency.registry import available_explainers


@pytest.mark.parametrize("colours", ["signed", "positive"])
def test_equal_steps_of_saliency_look_equally_far_apart(colours):
    lab = rgb2lab([[to_rgb(stop) for stop in colour_stops(colours, 65)]])[0]
    steps = deltaE_ciede2000(lab[1:], lab[:-1])
    assert steps.std() / steps.mean() < 0.2  # 0.25 for `coolwarm`, 0.6 for `jet`
    assert steps.min() > 0.5 * steps.mean()


def test_a_pixel_is_its_dimmed_image_under_the_colour_of_its_saliency():
    picture = np.full((1, 3, 1), 0.8)
    shown = overlaid(picture, np.array([[4.0, 0.0, -1.0]]), scale=2.0, opacity=0.5)
    positive = np.array(to_rgb(colour_stops("signed")[-1]))
    np.testing.assert_allclose(shown[0, 0], 0.5 * 0.65 * 0.8 + 0.5 * positive, atol=0.003)
    np.testing.assert_allclose(shown[0, 1], 0.65 * 0.8)
    quarter = np.array(to_rgb(colour_stops("signed", 5)[1]))
    alpha = 0.5 * 0.5**0.7
    np.testing.assert_allclose(shown[0, 2], (1 - alpha) * 0.65 * 0.8 + alpha * quarter, atol=0.01)


def test_positive_colours_leave_out_what_speaks_against_the_class_and_no_opacity_shows_the_image():
    picture, saliency = np.random.default_rng(0).random((4, 4, 3)), np.full((4, 4), -3.0)
    grey = np.repeat(0.65 * picture.mean(axis=2, keepdims=True), 3, axis=2)
    np.testing.assert_allclose(overlaid(picture, saliency, 1.0, 0.8, "positive"), grey)
    np.testing.assert_allclose(overlaid(picture, saliency, 1.0, 0.0), picture)


def test_scales_are_of_every_map_or_of_all():
    maps = np.zeros((3, 10, 10))
    maps[0, :5], maps[1, :5] = 2.0, -8.0
    assert map_scales(maps).tolist() == [2.0, 8.0, 1.0]
    assert map_scales(maps, shared=True).tolist() == [8.0, 8.0, 8.0]
    one = np.zeros((1, 20, 20))
    one[0, 0, 0] = 5.0  # fewer pixels than one in a hundred
    assert map_scales(one).tolist() == [5.0]


def test_every_method_has_a_unit_and_no_unit_is_of_a_method_that_is_gone():
    names = {entry.name for entry in available_explainers()}
    assert set(UNITS) < names
    assert unit_of("lrp.epsilon") == "logits per pixel"


def test_small_pictures_are_enlarged_pixel_by_pixel():
    pixels = np.random.default_rng(0).random((5, 4, 3))
    image = np.asarray(Image.open(io.BytesIO(to_png(pixels, side=20))))
    assert image.shape == (20, 16, 3)
    assert np.array_equal(image[::4, ::4], (pixels * 255).round().astype(np.uint8))


def test_a_sheet_has_a_place_for_every_picture():
    pictures = [np.full((8, 8, 3), value) for value in (0.1, 0.5, 0.9)]
    page = np.asarray(Image.open(io.BytesIO(sheet(pictures, ["a" * 200, "b\nc", "d"], "heading", columns=2))))
    tones = [page[60:200, 60:100], page[60:200, 260:300], page[-120:-100, 60:100]]
    assert [int(np.median(tone)) for tone in tones] == [26, 128, 230]


def test_arguments_that_do_not_go_together_are_refused():
    picture = np.zeros((4, 4, 1))
    with pytest.raises(InvalidArgument, match=r"a map of shape \(4, 4\); received shape \(4, 5\)"):
        overlaid(picture, np.zeros((4, 5)), 1.0)
    with pytest.raises(InvalidArgument, match="`scale`: expected a positive number"):
        overlaid(picture, np.zeros((4, 4)), 0.0)
    with pytest.raises(InvalidArgument, match=r"`opacity`: expected a number in \[0, 1\]"):
        overlaid(picture, np.zeros((4, 4)), 1.0, 1.5)
    with pytest.raises(InvalidArgument, match="at least one picture"):
        sheet([], [], "nothing")
