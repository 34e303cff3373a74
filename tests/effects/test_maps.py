"""Pixel-wise maps against a loop over whole images; maps of clean and attacked images on one scale."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest

from tfcausal.effects.maps import PixelEffects, clean_and_attacked
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.saliency.occlusion import Occlusion

L = keras.layers


def network(head: str | None = "softmax", classes: int = 3) -> keras.Model:
    """Local layers, a shortcut, and a head whose answers are neither 0 nor 1."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((15, 12, 2))
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    x = L.Add()([x, L.Conv2D(4, 3, padding="same", activation="tanh")(x)])
    return keras.Model(inputs, L.Dense(classes, activation=head)(L.Flatten()(x)))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 15, 12, 2)).astype("float32")


def starts(length: int, patch: int, stride: int) -> list[int]:
    return [min(first, length - patch) for first in range(0, length - patch + stride, stride)]


def reference(answers, images, patch, stride, value, classes):
    """Maps and effects of every patch, by masking whole images and asking the model for all classes."""
    rows, columns = starts(15, patch[0], stride[0]), starts(12, patch[1], stride[1])
    of = np.arange(len(images)), classes
    before = answers(images)[of]
    effects = np.zeros((len(images), len(rows), len(columns)))
    totals, times = np.zeros(images.shape[:3]), np.zeros(images.shape[1:3])
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            masked = images.copy()
            masked[:, y : y + patch[0], x : x + patch[1]] = value
            effects[:, i, j] = answers(masked)[of] - before
            totals[:, y : y + patch[0], x : x + patch[1]] += effects[:, i, j, None, None]
            times[y : y + patch[0], x : x + patch[1]] += 1
    return (totals / times)[..., None], effects


def predict(model):
    return lambda batch: model(batch, training=False).numpy().astype(np.float64)


@pytest.mark.parametrize(
    ("patch", "stride", "value"),
    [((4, 4), (4, 4), 0.0), ((5, 3), (2, 3), 0.7), ((15, 12), (15, 12), 0.0), ((4, 5), (3, 1), [0.5, -1.0])],
)
def test_effects_are_those_of_masking_whole_images(model, images, patch, stride, value):
    classes = predict(model)(images).argmax(axis=1)
    maps, effects = reference(predict(model), images, patch, stride, value, classes)
    measured = PixelEffects(model, patch, stride, masked_value=value, batch_size=16).measure(images)
    assert np.abs(effects).max() > 1e-2
    np.testing.assert_allclose(measured.effects, effects, atol=2e-6)
    np.testing.assert_allclose(measured.maps, maps, atol=2e-6)
    np.testing.assert_array_equal(measured.classes, classes)
    np.testing.assert_allclose(measured.observed, predict(model)(images).max(axis=1), atol=1e-6)
    assert measured.rows.tolist() == starts(15, patch[0], stride[0])
    assert measured.columns.tolist() == starts(12, patch[1], stride[1])
    assert measured.patch == patch
    assert measured.maps.dtype == measured.effects.dtype == np.float32


def test_the_mean_colour_of_each_image(model, images):
    value = images.mean(axis=(1, 2), keepdims=True)
    maps, _ = reference(predict(model), images, (5, 4), (5, 4), value, [0, 1, 2])
    measured = PixelEffects(model, (5, 4), masked_value="mean")(images, [0, 1, 2])
    np.testing.assert_allclose(measured, maps, atol=2e-6)


@pytest.mark.parametrize(("head", "classes"), [("sigmoid", 3), ("sigmoid", 1), (None, 3)])
def test_other_heads(images, head, classes):
    model = network(head, classes)
    targets = [classes - 1] * 3
    maps, _ = reference(predict(model), images, (5, 4), (5, 4), 0.0, targets)
    np.testing.assert_allclose(PixelEffects(model, (5, 4))(images, targets), maps, atol=2e-6)


def test_sign_and_scale(model, images):
    """On logits and the other way round it is what occlusion gives."""
    written = PixelEffects(model, 5)(images, [1, 1, 0])
    turned = PixelEffects(model, 5, sign="observed_minus_do")(images, [1, 1, 0])
    np.testing.assert_array_equal(turned, -written)
    logits = PixelEffects(model, 5, sign="observed_minus_do", scale="logit")(images, [1, 1, 0])
    np.testing.assert_allclose(logits, Occlusion(model, 5)(images, [1, 1, 0]), atol=1e-6)
    assert np.abs(logits - turned).max() > 1e-2


def test_the_predicted_class_is_that_of_the_logits_where_probabilities_are_all_one(images):
    """Sigmoids of 40 and of 60 are both 1 in float32."""
    inputs = keras.Input((15, 12, 2))
    bias = keras.initializers.Constant([40.0, 60.0])
    model = keras.Model(inputs, L.Dense(2, activation="sigmoid", bias_initializer=bias)(L.Flatten()(inputs)))
    assert PixelEffects(model, 5).measure(0.01 * images).classes.tolist() == [1, 1, 1]


def test_share_of_the_area(model, images):
    """A quarter of the area is half of each side: 7.5 is rounded to 8, and 6."""
    quarter = PixelEffects(model, share=0.25)
    assert quarter.patch == (8, 6)
    np.testing.assert_array_equal(quarter(images), PixelEffects(model, (8, 6))(images))
    assert PixelEffects(model, share=1e-9).patch == (1, 1)
    assert PixelEffects(model, share=1).measure(images).effects.shape == (3, 1, 1)


def test_the_map_lies_on_the_only_pixels_that_matter():
    """Class 1 grows with the upper left corner alone: masking it has an effect, masking others has exactly none."""
    inputs = keras.Input((8, 8, 1))
    corner = L.Flatten()(L.Cropping2D(((0, 5), (0, 5)))(inputs))
    kernel = np.tile(np.array([[0.0, 1.0]], "float32"), (9, 1))
    dense = L.Dense(2, activation="softmax", kernel_initializer=lambda shape, dtype=None: kernel)
    model = keras.Model(inputs, dense(corner))
    maps = PixelEffects(model, 2)(np.ones((2, 8, 8, 1)), [1, 1])[..., 0]
    whole = 1 / (1 + np.exp(-9))
    np.testing.assert_allclose(maps[:, :2, :2], 1 / (1 + np.exp(-5)) - whole, atol=1e-6)
    np.testing.assert_allclose(maps[:, 2:4, 2:4], 1 / (1 + np.exp(-8)) - whole, atol=1e-6)
    assert np.count_nonzero(maps[:, 4:]) == np.count_nonzero(maps[:, :, 4:]) == 0


def test_batches_second_calls_and_the_model(images):
    class Counting(PixelEffects):
        traces = 0

        def _patch_effects(self, inputs, classes):
            self.traces += 1
            return super()._patch_effects(inputs, classes)

    model = network()
    answers, weights = predict(model)(images), [weight.numpy() for weight in model.weights]
    effects = Counting(model, 5, batch_size=2)
    maps = effects(images)
    np.testing.assert_array_equal(effects(images), maps)
    np.testing.assert_allclose(PixelEffects(model, 5, batch_size=64)(images), maps, atol=1e-6)
    effects(images[:1], [2])
    assert effects.traces == 1
    np.testing.assert_array_equal(effects.measure(images).maps, maps)
    np.testing.assert_array_equal(predict(model)(images), answers)
    assert all((before == after.numpy()).all() for before, after in zip(weights, model.weights, strict=True))


def test_images_of_any_size():
    inputs = keras.Input((None, None, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, activation="relu")(inputs))
    model = keras.Model(inputs, L.Dense(2, activation="softmax")(x))
    measured = PixelEffects(model, 4, 3).measure(np.ones((2, 9, 6, 2)))
    assert measured.maps.shape == (2, 9, 6, 1)
    assert (measured.rows.tolist(), measured.columns.tolist(), measured.patch) == ([0, 3, 5], [0, 2], (4, 4))
    with pytest.raises(InvalidArgument, match="`share`: expected None where the model's input size is not fixed"):
        PixelEffects(model, share=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0.0}, "`share`: expected a number in (0, 1]; received 0.0."),
        ({"share": True}, "`share`: expected a number in (0, 1]; received True."),
        ({"share": 0.1, "patch": 2}, "`share`: expected None where `patch` is given; received 0.1."),
        ({"sign": "plus"}, "`sign`: expected do_minus_observed or observed_minus_do; received 'plus'."),
        ({"scale": "odds"}, "`scale`: expected probability or logit; received 'odds'."),
        ({"masked_value": [1, 2, 3]}, "`masked_value`: expected a finite number, or finite values of shape (2,); rec"),
        ({"masked_value": np.nan}, "`masked_value`: expected a finite number, or finite values of shape (2,); receiv"),
        (
            {"masked_value": "blur"},
            "`masked_value`: expected a finite number, or finite values of shape (2,); received",
        ),
        ({"patch": 16}, "`patch`: expected at most the height of the image, 15; received 16."),
        ({"patch": 2, "stride": 3}, "`stride`: expected at most the height of a patch, 2; received 3."),
    ],
)
def test_bad_options(model, options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        PixelEffects(model, **options)


def test_models_and_images_that_will_not_do(model, images):
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        PixelEffects(model, 5)(images, [3, 3, 3])
    with pytest.raises(InvalidArgument, match="NaN or infinity in image 0"):
        PixelEffects(model, 5).measure(images * np.nan)
    with pytest.raises(UnsupportedOperation, match="pixel_effects: model `numbers` has no image among its inputs"):
        PixelEffects(keras.Sequential([keras.Input((4,)), L.Dense(2)], name="numbers"))
    first, second = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    both = keras.Model([first, second], L.Dense(2)(L.Flatten()(L.Add()([first, second]))), name="both")
    with pytest.raises(UnsupportedOperation, match="classifiers of one input; model `both` has 2"):
        PixelEffects(both)


def test_clean_and_attacked_on_one_scale(model, images):
    attacked = images.copy()
    attacked[:, :8] += 1.5
    before, after = (predict(model)(batch).argmax(axis=1) for batch in (images, attacked))
    assert (before != after).any()
    effects = PixelEffects(model, 5)
    pair = clean_and_attacked(effects, images, attacked)
    np.testing.assert_array_equal(pair.clean, effects(images, before))
    np.testing.assert_array_equal(pair.attacked, effects(attacked, after))
    assert (pair.clean_classes.tolist(), pair.attacked_classes.tolist()) == (before.tolist(), after.tolist())
    assert pair.limit == max(np.abs(pair.clean).max(), np.abs(pair.attacked).max())
    evidence = clean_and_attacked(effects, images, attacked, "clean")
    np.testing.assert_array_equal(evidence.attacked, effects(attacked, before))
    given = clean_and_attacked(effects, images, attacked, [0, 1, 2])
    np.testing.assert_array_equal(given.clean, effects(images, [0, 1, 2]))
    np.testing.assert_array_equal(given.attacked, effects(attacked, [0, 1, 2]))
    with pytest.raises(InvalidArgument, match=r"`attacked`: expected an image for every clean image, of shape \(3, 15"):
        clean_and_attacked(effects, images, attacked[:2])
    with pytest.raises(
        InvalidArgument, match="`targets`: expected class indices, None, or 'clean'; received 'attacked'"
    ):
        clean_and_attacked(effects, images, attacked, "attacked")
    with pytest.raises(InvalidArgument, match="`clean`: expected images of one size; received rows of different"):
        clean_and_attacked(effects, [np.ones((15, 9, 1)), np.ones((9, 9, 1))], attacked)
    with pytest.raises(InvalidArgument, match="`attacked`: expected images of one size; received rows of different"):
        clean_and_attacked(effects, images, [[1.0, 2.0], [3.0]])
