from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from skimage.measure import label, regionprops

from tfcausal.interventions.masking import (
    box_mask,
    largest_connected_component,
    normalised_saliency,
    quantile_threshold,
    remove,
    soft_mask,
)

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(3, 4, 5, 3))


def saliency_by_numpy(maps: np.ndarray) -> np.ndarray:
    positive = np.maximum(maps.sum(axis=3, keepdims=True), 0)
    return positive / positive.max(axis=(1, 2, 3), keepdims=True)


def mask_by_numpy(saliency: np.ndarray, threshold: np.ndarray | float, sharpness: float) -> np.ndarray:
    return 1 / (1 + np.exp(-sharpness * (saliency - threshold)))


def numeric_gradient(function, point: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(point)
    for position in np.ndindex(*point.shape):
        shift = np.zeros_like(point)
        shift[position] = step
        gradient[position] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient


def test_normalised_saliency_is_the_formula():
    result = normalised_saliency(tf.constant(MAPS))
    np.testing.assert_allclose(result, saliency_by_numpy(MAPS), rtol=1e-12)
    np.testing.assert_array_equal(result.numpy().max(axis=(1, 2, 3)), 1)


def test_gradient_of_normalised_saliency():
    weights = RNG.normal(size=(3, 4, 5, 1))
    maps = tf.constant(MAPS)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        total = tf.reduce_sum(weights * normalised_saliency(maps))
    expected = numeric_gradient(lambda maps: (weights * saliency_by_numpy(maps)).sum(), MAPS)
    np.testing.assert_allclose(tape.gradient(total, maps), expected, atol=1e-7)


def test_normalised_saliency_does_not_depend_on_the_scale_of_a_map():
    scaled = MAPS * np.array([1e-20, 1.0, 1e20])[:, None, None, None]
    np.testing.assert_allclose(normalised_saliency(tf.constant(scaled)), saliency_by_numpy(MAPS), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, -2.0, 1e-42])
def test_map_without_a_positive_value_gives_zeros_and_a_finite_gradient(value):
    maps = np.stack([np.full((4, 5, 3), value, "float32"), MAPS[0].astype("float32")])
    maps = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        saliency = normalised_saliency(maps)
        total = tf.reduce_sum(soft_mask(saliency, 0.25, 50.0) * RNG.normal(size=(1, 4, 5, 1)).astype("float32"))
    gradient = tape.gradient(total, maps).numpy()
    assert (saliency[0].numpy() == 0).all()
    assert (gradient[0] == 0).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() > 0


def test_gradient_is_shared_by_tied_maxima():
    maps = tf.constant([[[[2.0], [2.0], [1.0]]]])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        smallest = normalised_saliency(maps)[0, 0, 2, 0]
    np.testing.assert_allclose(tape.gradient(smallest, maps).numpy().ravel(), [-0.125, -0.125, 0.5])


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [(0.9, 9.0), (0.8, 8.0), (0.5, 5.0), (0.1, 1.0), (0.75, 8.0), (0.999, 9.0), (0.001, 0.0)],
)
def test_quantile_threshold_is_the_kth_largest_value_of_each_map(quantile, expected):
    values = np.stack([RNG.permutation(10.0 + np.arange(10)), RNG.permutation(-1.0 * np.arange(10))])
    threshold = quantile_threshold(tf.constant(values.reshape(2, 2, 5, 1)), quantile)
    assert threshold.shape == (2, 1, 1, 1)
    np.testing.assert_array_equal(threshold.numpy().ravel(), [10 + expected, expected - 9])


def test_quantile_threshold_of_ties_is_the_tied_value():
    saliency = tf.constant([1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], shape=(1, 2, 5, 1))
    assert [float(tf.squeeze(quantile_threshold(saliency, share))) for share in (0.9, 0.8, 0.65, 0.3)] == [
        1,
        0.5,
        0.5,
        0,
    ]


def test_share_of_pixels_above_the_quantile():
    saliency = normalised_saliency(tf.constant(RNG.uniform(size=(4, 10, 10, 1))))
    mask = soft_mask(saliency, quantile_threshold(saliency, 0.8), 1e6).numpy()
    np.testing.assert_allclose((mask > 0.49).sum(axis=(1, 2, 3)), 20)


def test_quantile_threshold_within_a_step_of_unknown_size():
    compiled = tf.function(
        quantile_threshold, input_signature=[tf.TensorSpec((None, None, None, 1)), tf.TensorSpec(())]
    )
    values = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    assert compiled(values, 0.75).numpy().item() == 9


def test_soft_mask_is_the_formula_for_one_threshold_and_for_one_per_map():
    saliency = saliency_by_numpy(MAPS)
    np.testing.assert_allclose(
        soft_mask(tf.constant(saliency), 0.3, 20.0), mask_by_numpy(saliency, 0.3, 20), rtol=1e-12
    )
    thresholds = np.array([0.1, 0.5, 0.9])[:, None, None, None]
    result = soft_mask(tf.constant(saliency), tf.constant(thresholds), 20.0)
    np.testing.assert_allclose(result, mask_by_numpy(saliency, thresholds, 20), rtol=1e-12)


def test_gradient_of_the_soft_mask():
    saliency = saliency_by_numpy(MAPS)
    weights = RNG.normal(size=saliency.shape)
    point = tf.constant(saliency)
    with tf.GradientTape() as tape:
        tape.watch(point)
        total = tf.reduce_sum(weights * soft_mask(point, 0.3, 10.0))
    expected = numeric_gradient(lambda saliency: (weights * mask_by_numpy(saliency, 0.3, 10)).sum(), saliency)
    np.testing.assert_allclose(tape.gradient(total, point), expected, atol=1e-8)


def test_sharp_mask_is_a_step_and_finite():
    mask = soft_mask(tf.constant([0.0, 0.2, 0.25, 0.3, 1.0]), 0.25, 1e6)
    np.testing.assert_array_equal(mask, [0, 0, 0.5, 1, 1])


def test_remove_is_the_formula_and_its_extremes():
    images = RNG.normal(size=(2, 3, 3, 2))
    mask = RNG.uniform(size=(2, 3, 3, 1))
    np.testing.assert_allclose(remove(tf.constant(images), tf.constant(mask)), images * (1 - mask), rtol=1e-12)
    np.testing.assert_array_equal(remove(tf.constant(images), tf.zeros((2, 3, 3, 1), tf.float64)), images)
    np.testing.assert_array_equal(remove(tf.constant(images), tf.ones((2, 3, 3, 1), tf.float64)), 0)


def test_gradients_of_remove_reach_images_and_mask():
    images, mask = tf.constant([[[[4.0, 2.0]]]]), tf.constant([[[[0.25]]]])
    with tf.GradientTape() as tape:
        tape.watch((images, mask))
        total = tf.reduce_sum(remove(images, mask))
    by_image, by_mask = tape.gradient(total, (images, mask))
    np.testing.assert_allclose(by_image.numpy().ravel(), [0.75, 0.75])
    np.testing.assert_allclose(by_mask.numpy().ravel(), [-6.0])


def test_masked_pixels_take_the_value_of_their_channel():
    images, mask = RNG.normal(size=(2, 3, 3, 2)), RNG.uniform(size=(2, 3, 3, 1))
    for value in (0.5, [0.5, -2.0], (0.0, 1.0)):
        expected = (1 - mask) * images + mask * np.asarray(value)
        np.testing.assert_allclose(remove(tf.constant(images), tf.constant(mask), value), expected, rtol=1e-12)


def test_masked_value_is_neither_rounded_nor_widened():
    for dtype in (tf.float16, tf.float32, tf.float64):
        assert remove(tf.ones((1, 2, 2, 3), dtype), tf.ones((1, 2, 2, 1), dtype), [0.1, 0.2, 0.3]).dtype == dtype
    filled = remove(tf.ones((1, 2, 2, 1), tf.float64), tf.ones((1, 2, 2, 1), tf.float64), 0.1)
    np.testing.assert_allclose(filled, 0.1, rtol=1e-15)


def test_volumes_are_normalised_masked_and_thresholded_as_a_whole():
    volumes = RNG.normal(size=(2, 3, 4, 5, 2))
    saliency = normalised_saliency(tf.constant(volumes))
    positive = np.maximum(volumes.sum(axis=4, keepdims=True), 0)
    np.testing.assert_allclose(saliency, positive / positive.max(axis=(1, 2, 3, 4), keepdims=True), rtol=1e-12)
    threshold = quantile_threshold(saliency, 0.9)
    assert threshold.shape == (2, 1, 1, 1, 1)
    np.testing.assert_array_equal((saliency >= threshold).numpy().sum(axis=(1, 2, 3, 4)), 6)
    mask = RNG.uniform(size=(2, 3, 4, 5, 1))
    np.testing.assert_allclose(remove(tf.constant(volumes), tf.constant(mask)), volumes * (1 - mask), rtol=1e-12)


# Regions of a few per cent fall apart into many components, those above two fifths hang together across corners.
SHAPES = {"images": (12, 9, 11), "volumes": (8, 4, 6, 5)}
SHARES = (0.02, 0.1, 0.25, 0.4, 0.7)


def regions(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=shape) < share


def largest_by_skimage(region: np.ndarray) -> np.ndarray:
    """Components in the order of their first pixel; the first of the largest ones."""
    numbers = label(region, connectivity=region.ndim)
    sizes = np.bincount(numbers.ravel())[1:]
    return numbers == 1 + sizes.argmax() if len(sizes) else np.zeros_like(region)


def box_by_skimage(region: np.ndarray) -> np.ndarray:
    box = np.zeros(region.shape)
    for found in regionprops(region.astype(int)):
        starts, stops = np.split(np.array(found.bbox), 2)
        box[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))] = 1
    return box


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_largest_component_is_that_of_scikit_image(shape, share):
    batch = regions(shape, share)
    found = largest_connected_component(tf.constant(batch[..., None]))
    assert found.dtype == tf.bool
    np.testing.assert_array_equal(found[..., 0], [largest_by_skimage(region) for region in batch])


def test_of_components_of_the_same_size_the_first_one_is_taken():
    region = np.array([[0, 0, 0, 1, 1], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 0]], bool)
    found = largest_connected_component(tf.constant(region[None, ..., None]))[0, ..., 0]
    np.testing.assert_array_equal(np.argwhere(found.numpy()), [[0, 3], [0, 4]])
    turned = largest_connected_component(tf.constant(region[None, ::-1, ::-1, None]))[0, ..., 0]
    np.testing.assert_array_equal(np.argwhere(turned.numpy()), [[0, 1], [1, 1]])


def test_a_winding_component_is_followed_to_its_end():
    """A spiral of one arm, whose ends lie many steps apart, beside a block of fewer pixels."""
    region, block = np.zeros((15, 26), bool), np.zeros((15, 26), bool)
    region[0, :15] = True
    row, column = 0, 14
    for turn, length in enumerate([14, 14, 12, 12, 10, 10, 8, 8, 6, 6, 4, 4]):
        down, right = [(1, 0), (0, -1), (-1, 0), (0, 1)][turn % 4]
        for _ in range(length):
            row, column = row + down, column + right
            region[row, column] = True
    block[:11, 16:26] = True
    assert region.sum() == 123
    assert block.sum() == 110
    found = largest_connected_component(tf.constant((region | block)[None, ..., None]))[0, ..., 0]
    np.testing.assert_array_equal(found, region)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_empty_and_full_regions(shape):
    batch = regions(shape, 0.3)
    batch[0], batch[1] = False, True
    saliency = tf.constant(batch[..., None].astype("float32"))
    expected = [largest_by_skimage(region) for region in batch]
    np.testing.assert_array_equal(largest_connected_component(saliency > 0.5)[..., 0], expected)
    for largest_component in (False, True):
        box = box_mask(saliency, 0.5, largest_component).numpy()
        assert box[0].max() == 0
        assert box[1].min() == 1
    none = np.zeros((2, *shape[1:], 1), bool)
    np.testing.assert_array_equal(largest_connected_component(tf.constant(none)), none)
    np.testing.assert_array_equal(largest_connected_component(tf.constant(~none)), ~none)


@pytest.mark.parametrize("share", SHARES[:4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_box_is_that_of_scikit_image(shape, share):
    saliency = np.random.default_rng(3).uniform(size=(*shape, 1))
    region = saliency[..., 0] > 1 - share
    of_all = box_mask(tf.constant(saliency), 1 - share)
    assert of_all.dtype == tf.float64
    np.testing.assert_array_equal(of_all[..., 0], [box_by_skimage(part) for part in region])
    of_largest = box_mask(tf.constant(saliency), 1 - share, largest_component=True)
    np.testing.assert_array_equal(of_largest[..., 0], [box_by_skimage(largest_by_skimage(part)) for part in region])


def test_box_has_one_threshold_per_map_and_leaves_out_what_equals_it():
    saliency = tf.constant([[[0.2, 0.5, 0.9]], [[0.2, 0.5, 0.9]]])[..., None]
    thresholds = tf.reshape(tf.constant([0.5, 0.1]), (2, 1, 1, 1))
    np.testing.assert_array_equal(box_mask(saliency, thresholds)[:, 0, :, 0], [[0, 0, 1], [1, 1, 1]])


def test_box_has_no_gradient():
    saliency = tf.constant(RNG.uniform(size=(2, 4, 4, 1)))
    for largest_component in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(saliency)
            total = tf.reduce_sum(saliency * box_mask(saliency, 0.3 * saliency[:, :1, :1], largest_component))
        box = box_mask(saliency, 0.3 * saliency[:, :1, :1], largest_component)
        np.testing.assert_array_equal(tape.gradient(total, saliency), box)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_components_and_boxes_within_a_compiled_step(shape):
    """Of unknown sizes, too; further batches, of another size of the batch, are not traced again."""
    traces = []

    @tf.function(input_signature=[tf.TensorSpec((None,) * len(shape) + (1,)), tf.TensorSpec(())])
    def compiled(saliency, threshold):
        traces.append(1)
        return box_mask(saliency, threshold, largest_component=True)

    for seed, count, threshold in ((0, shape[0], 0.8), (1, shape[0], 0.7), (2, 2, 0.6)):
        saliency = np.random.default_rng(seed).uniform(size=(count, *shape[1:], 1)).astype("float32")
        expected = [box_by_skimage(largest_by_skimage(region)) for region in saliency[..., 0] > threshold]
        np.testing.assert_array_equal(compiled(saliency, threshold)[..., 0], expected)
    assert traces == [1]
