"""Pictures of effects: the colours that the numbers ask for are there."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from tfcausal.effect_study.figures import effect_bars, effect_maps, node_codes, roc_curves
from tfcausal.errors import InvalidArgument

RED, BLUE, GREY = "#b2182b", "#2166ac", "#8a949e"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def count(png: bytes, colour) -> int:
    """Pixels of one colour, given in hexadecimal or as numbers in [0, 1]."""
    if isinstance(colour, str):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    else:
        wanted = [int(255 * value + 0.5) for value in colour[:3]]
    return int((np.abs(pixels(png).astype(int) - wanted).max(axis=2) <= 1).sum())


def estimate(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_bars_have_the_colour_of_their_sign_and_grey_where_zero_is_inside():
    png = effect_bars({"a": {"0": estimate(0.2), "1": estimate(-0.1), "2": estimate(0.1, 0.2)}}, "change of P(class)")
    red, blue, grey = (count(png, colour) for colour in (RED, BLUE, GREY))
    assert red == pytest.approx(2 * blue, rel=0.15)
    assert grey == pytest.approx(blue, rel=0.15)


def test_bars_of_all_levels_have_one_scale_and_the_strongest_are_shown():
    wide = effect_bars({"a": {"0": estimate(0.4)}, "b": {"0": estimate(-0.2)}}, "effect")
    assert count(wide, RED) == pytest.approx(2 * count(wide, BLUE), rel=0.15)
    nodes = {str(node): estimate(0.01 * (node + 1), 0.001) for node in range(30)} | {"x": estimate(np.nan)}
    few = effect_bars({"a": nodes}, "effect", most=2)
    assert few == effect_bars({"a": {**nodes, "0": estimate(0.02)}}, "effect", most=2)
    assert few != effect_bars({"a": {**nodes, "29": estimate(0.2)}}, "effect", most=2)
    assert pixels(effect_bars({"a": nodes}, "effect", most=31)).shape[0] > pixels(few).shape[0]


def test_an_effect_without_an_interval_is_drawn_without_one():
    single = {"value": 0.2, "low": np.nan, "high": np.nan}
    assert count(effect_bars({"a": {"0": single}}, "effect"), GREY) > 500
    nothing = effect_bars({"a": {"0": estimate(np.nan), "1": estimate(0.1)}}, "effect")
    assert count(nothing, RED) > 500


def test_effect_maps_of_clean_and_attacked_images_have_one_scale():
    images = np.full((2, 8, 8, 3), (0.2, 0.9, 0.4))
    clean, attacked = np.full((2, 8, 8, 1), 0.1), np.full((2, 8, 8), -0.4)
    png = effect_maps(images, images, clean, attacked, [("a", "b")] * 2, "change of P(class)")
    quarter = colormaps["RdBu_r"](0.5 + 0.5 * 0.25)
    side = count(png, (0.2, 0.9, 0.4)) / 4
    assert count(png, quarter) == pytest.approx(2 * side, rel=0.05)
    assert count(png, colormaps["RdBu_r"](0.0)) == pytest.approx(2 * side, rel=0.05)
    nothing = effect_maps(images, images, 0 * clean, attacked, [("a", "b")] * 2, "change of P(class)")
    assert count(nothing, colormaps["RdBu_r"](0.0)) == pytest.approx(2 * side, rel=0.05)
    assert count(nothing, colormaps["RdBu_r"](0.5)) > 1.9 * side
    effect_maps(images[..., :1], images[..., :1], 0 * clean, 0 * attacked, [("a", "b")] * 2, "effect")


def test_codes_that_are_never_negative_start_at_zero():
    images = np.full((2, 8, 8, 1), 0.5)
    codes = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 2.0)])
    positive = node_codes(images, codes, "conv, node 3")
    assert count(positive, colormaps["viridis"](0.25)) > 5000
    assert count(positive, colormaps["viridis"](1.0)) > 5000
    signed = node_codes(images, codes * [[[-1]], [[1]]], "conv, node 3")
    assert count(signed, colormaps["RdBu_r"](0.375)) > 5000
    node_codes(images, 0 * codes, "dead")


def test_roc_curves_are_drawn_where_there_are_some():
    curve = {"false_positive_rates": [0, 0.2, 1], "true_positive_rates": [0, 0.7, 1], "chosen": [0.2, 0.7]}
    known = curve | {"auc": 0.75, "low": 0.6, "high": 0.85}
    unknown = {"false_positive_rates": [], "true_positive_rates": [], "chosen": [np.nan, np.nan]}
    unknown |= dict.fromkeys(("auc", "low", "high"), np.nan)
    first, second = "#0072b2", "#e69f00"
    both = roc_curves({"fgsm": {"confidence": known, "effects": known}})
    one = roc_curves({"fgsm": {"confidence": known, "effects": unknown}})
    assert count(both, second) > 2 * count(one, second) > 0
    assert count(one, first) > 300
    wide = roc_curves({name: {"confidence": known} for name in ("fgsm", "bim", "pgd", "jsma")})
    assert pixels(wide).shape[1] > 2.5 * pixels(one).shape[1]
    assert pixels(wide).shape[0] > 1.8 * pixels(one).shape[0]


IMAGES, MAPS = np.zeros((2, 8, 8, 3)), np.zeros((2, 4, 4))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: effect_bars({}, "u"),
            "`levels`: expected at least one level, each with at least one node; received n",
        ),
        (
            lambda: effect_bars({"a": {}}, "u"),
            "`levels`: expected at least one level, each with at least one node; rec",
        ),
        (
            lambda: effect_bars({"a": {"0": estimate(0.1)}}, "u", most=0),
            "`most`: expected a positive integer; received 0",
        ),
        (
            lambda: node_codes(IMAGES, MAPS[:1], "t"),
            "`codes`: expected a map for each of 2 images, (2, height, width); ",
        ),
        (lambda: node_codes(IMAGES[:0], MAPS[:0], "t"), "`images`: expected at least one image; received none."),
        (lambda: node_codes(IMAGES, MAPS * np.nan, "t"), "`codes`: expected finite values; received NaN or infinity."),
        (
            lambda: effect_maps(IMAGES, IMAGES[:1], MAPS, MAPS, [], "u"),
            "`attacked`: expected images of shape (2, 8, 8, 3",
        ),
        (
            lambda: effect_maps(IMAGES, IMAGES, MAPS[0], MAPS, [], "u"),
            "`clean_maps`: expected a map for each of 2 images",
        ),
        (
            lambda: effect_maps(IMAGES, IMAGES, MAPS, MAPS, [], "u"),
            "`titles`: expected a pair of titles for each of 2 im",
        ),
        (
            lambda: roc_curves({}),
            "`attacks`: expected at least one attack, each with at least one detector; received n",
        ),
        (
            lambda: roc_curves({"fgsm": {}}),
            "`attacks`: expected at least one attack, each with at least one detector; ",
        ),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        call()
