from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.causal_focus import causal_focus_loss, dead_maps, resize_masks

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(4, 3, 5, 2))
LABELS = np.array([0, 1, 1, 0])
MASKS = RNG.uniform(size=(4, 3, 5, 1)).astype("float32").astype("float64")
HAS_MASK = np.array([1.0, 1.0, 0.0, 1.0])
OF_LABEL = np.eye(2)[LABELS] * HAS_MASK[:, None]
WEIGHTS = {
    "the map of the label": OF_LABEL,
    "all maps alike": np.ones((4, 2)),
    "some labels": np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
    "uneven": np.array([[0.2, 3.0], [0.0, 0.5], [1.0, 1.0], [0.0, 0.0]]),
}
weights_of_maps = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())


def loss_by_numpy(maps, weights, masks, epsilon=1e-7):
    """One image and one map at a time."""
    values = np.zeros(len(maps))
    for image in range(len(maps)):
        if not weights[image].any():
            continue
        for number, weight in enumerate(weights[image] / weights[image].sum()):
            mask = masks[image, ..., number if masks.shape[-1] > 1 else 0]
            activation = np.maximum(maps[image, ..., number], 0)
            values[image] += weight * (1 - (mask * activation).sum() / (activation.sum() + epsilon))
    return values


def loss_and_gradient(maps, weights, masks, **options):
    maps = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = causal_focus_loss(maps, tf.constant(weights), tf.constant(masks), **options)
    return loss.numpy(), tape.gradient(loss, maps).numpy()


def numeric_gradient(function, point, step=1e-6):
    gradient = np.zeros_like(point)
    for position in np.ndindex(*point.shape):
        shift = np.zeros_like(point)
        shift[position] = step
        gradient[position] = (function(point + shift) - function(point - shift)).sum() / (2 * step)
    return gradient


def one_map(values: list[list[float]]) -> np.ndarray:
    return np.array(values)[None, :, :, None]


def test_loss_by_hand():
    maps = one_map([[3.0, 1.0], [-8.0, 4.0]])
    mask = one_map([[1.0, 0.0], [1.0, 0.5]])
    loss, _ = loss_and_gradient(maps, [[1.0]], mask)
    np.testing.assert_allclose(loss, [1 - (3 + 0.5 * 4) / (3 + 1 + 4)], rtol=1e-6)


def test_only_the_maps_with_a_weight_count():
    maps = np.concatenate([one_map([[1.0, 1.0]]), one_map([[0.0, 7.0]])], axis=3)
    maps = np.concatenate([maps, maps])
    masks = np.concatenate([one_map([[0.0, 1.0]])] * 2)
    loss, gradient = loss_and_gradient(maps, [[1.0, 0.0], [0.0, 1.0]], masks)
    np.testing.assert_allclose(loss, [0.5, 0.0], atol=1e-6)
    assert (gradient[0, :, :, 1] == 0).all()
    assert (gradient[0, :, :, 0] != 0).all()


@weights_of_maps
@pytest.mark.parametrize("masks", [MASKS, np.concatenate([MASKS, MASKS[::-1]], 3)], ids=["one mask", "mask per map"])
def test_loss_is_the_formula(weights, masks):
    loss, gradient = loss_and_gradient(MAPS, weights, masks)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, loss_by_numpy(MAPS, weights, masks), rtol=1e-12)
    numeric = numeric_gradient(lambda maps: loss_by_numpy(maps, weights, masks), MAPS)
    assert np.abs(numeric).max() > 1e-3
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def test_the_scale_of_the_weights_does_not_matter():
    loss, _ = loss_and_gradient(MAPS, WEIGHTS["uneven"], MASKS)
    np.testing.assert_allclose(loss_and_gradient(MAPS, 7 * WEIGHTS["uneven"], MASKS)[0], loss, rtol=1e-12)


def test_image_without_a_mask_has_no_loss_and_no_gradient():
    dummy = np.where(HAS_MASK[:, None, None, None] > 0, MASKS, 1)
    loss, gradient = loss_and_gradient(MAPS, OF_LABEL, dummy)
    assert loss[2] == 0
    assert (gradient[2] == 0).all()
    assert (loss[[0, 1, 3]] > 0).all()


def test_map_without_positive_activation_has_loss_one_and_no_gradient():
    loss, gradient = loss_and_gradient(-np.abs(MAPS), np.ones((4, 2)), MASKS)
    assert (loss == 1).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_scale_of_the_maps_does_not_matter(scale):
    loss, _ = loss_and_gradient(MAPS, OF_LABEL, MASKS)
    scaled, _ = loss_and_gradient(scale * MAPS, OF_LABEL, MASKS)
    np.testing.assert_allclose(scaled, loss, rtol=1e-4)


def test_mask_of_everything_leaves_nothing_outside():
    loss, gradient = loss_and_gradient(MAPS, np.ones((4, 2)), np.ones_like(MASKS))
    np.testing.assert_allclose(loss, 0, atol=1e-7)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_gradient_moves_activation_into_the_mask():
    maps = np.ones((1, 2, 2, 1))
    mask = one_map([[1.0, 0.0], [0.0, 0.0]])
    _, gradient = loss_and_gradient(maps, [[1.0]], mask)
    assert gradient[0, 0, 0, 0] < 0
    assert (np.delete(gradient.ravel(), 0) > 0).all()


def test_epsilon_is_added_to_the_denominator():
    loss, _ = loss_and_gradient(np.ones((1, 1, 1, 1)), [[1.0]], np.ones((1, 1, 1, 1)), epsilon=1.0)
    np.testing.assert_allclose(loss, [0.5])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float64"])
def test_masks_and_weights_of_any_type(dtype):
    masks, weights = (MASKS > 0.5).astype(dtype), OF_LABEL.astype(dtype)
    loss = causal_focus_loss(tf.constant(MAPS, tf.float32), tf.constant(weights), tf.constant(masks))
    np.testing.assert_allclose(loss, loss_by_numpy(MAPS, OF_LABEL, MASKS > 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "size", "expected"),
    [
        ([[1, 1, 0, 0]], (1, 2), [[1, 0]]),
        ([[1, 1, 1, 0]], (1, 2), [[1, 0.5]]),
        ([[1, 0, 0]], (1, 2), [[2 / 3, 0]]),
        ([[1, 0], [0, 0]], (1, 1), [[0.25]]),
        ([[1, 0]], (2, 4), [[1, 1, 0, 0]] * 2),
        ([[1, 0]], (1, 3), [[1, 0.5, 0]]),
        ([[0.5, 1]], (1, 2), [[0.5, 1]]),
    ],
)
def test_every_cell_has_the_share_that_the_mask_covers(mask, size, expected):
    resized = resize_masks(tf.constant(one_map(mask)), size)
    assert resized.shape == (1, *size, 1)
    np.testing.assert_allclose(resized[0, :, :, 0], expected, atol=1e-6)


def test_masks_are_resized_to_smaller_and_to_larger_maps():
    mask = one_map([[1.0, 1.0, 0.0, 0.0]] * 4)
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [[1.0]], mask)
    np.testing.assert_allclose(loss, [3 / 8], rtol=1e-6)
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [[1.0]], one_map([[1.0]]))
    np.testing.assert_allclose(loss, [0.0], atol=1e-6)
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [[1.0]], one_map([[0.0], [1.0]]))
    np.testing.assert_allclose(loss, [0.5], rtol=1e-6)


def enlarged_by_numpy(maps, size):
    """Bilinear interpolation between the centres of the cells, as a matrix for either axis."""
    for axis, new in zip((1, 2), size, strict=True):
        old = maps.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        matrix = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))
        maps = np.moveaxis(np.tensordot(matrix, maps, (1, axis)), 0, axis)
    return maps


def test_maps_are_enlarged_after_their_negative_part_is_gone():
    masks = RNG.uniform(size=(4, 6, 15, 1))
    expected = loss_by_numpy(enlarged_by_numpy(np.maximum(MAPS, 0), (6, 15)), OF_LABEL, masks)
    loss, gradient = loss_and_gradient(MAPS, OF_LABEL, masks, resize="maps")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    numeric = numeric_gradient(
        lambda maps: loss_by_numpy(enlarged_by_numpy(np.maximum(maps, 0), (6, 15)), OF_LABEL, masks), MAPS
    )
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)
    other, _ = loss_and_gradient(MAPS, OF_LABEL, masks)
    assert np.abs(other - loss).max() > 1e-3


@pytest.mark.parametrize("resize", ["masks", "maps"])
def test_volume_is_one_map_over_all_its_slices(resize):
    """Of two slices, 3 of 4 parts of the activation are in the first, where the mask is."""
    maps = np.zeros((1, 2, 2, 2, 1))
    maps[0, 0], maps[0, 1] = 3.0, 1.0
    masks = np.zeros((1, 2, 4, 4, 1))
    masks[0, 0] = 1.0
    loss, _ = loss_and_gradient(maps, [[1.0]], masks, resize=resize)
    np.testing.assert_allclose(loss, [0.25], rtol=1e-6)


@pytest.mark.parametrize("resize", ["masks", "maps"])
def test_volume_has_the_loss_of_its_slices_side_by_side(resize):
    maps, masks = RNG.normal(size=(2, 3, 4, 4, 2)), RNG.uniform(size=(2, 3, 8, 8, 1)).round()
    weights = np.array([[1.0, 0.0], [1.0, 2.0]])
    loss, _ = loss_and_gradient(maps, weights, masks, resize=resize)
    slices = maps.reshape(6, 4, 4, 2)
    if resize == "maps":
        large = enlarged_by_numpy(np.maximum(slices, 0), (8, 8)).reshape(2, 3, 8, 8, 2)
        expected = loss_by_numpy(large, weights, masks)
    else:
        small = masks.reshape(2, 3, 4, 2, 4, 2, 1).mean(axis=(3, 5))
        expected = loss_by_numpy(maps, weights, small)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("resize", ["masks", "maps"])
def test_sizes_that_are_unknown_when_the_step_is_compiled(resize):
    signature = [tf.TensorSpec((None, 2, None, None, 2), tf.float64), tf.TensorSpec((None, 2), tf.float64)]
    signature.append(tf.TensorSpec((None, 2, None, None, 1), tf.float64))
    compiled = tf.function(lambda *values: causal_focus_loss(*values, resize), input_signature=signature)
    maps, masks = RNG.normal(size=(2, 2, 3, 4, 2)), RNG.uniform(size=(2, 2, 6, 8, 1))
    expected, _ = loss_and_gradient(maps, np.ones((2, 2)), masks, resize=resize)
    np.testing.assert_allclose(compiled(maps, np.ones((2, 2)), masks), expected, rtol=1e-6)


def test_dead_maps_are_those_without_a_positive_value():
    maps = np.full((3, 2, 2, 3), -1.0)
    maps[0, 1, 1, 0] = 1e-3  # alive by one value
    maps[0, :, :, 1] = 0.0  # a ReLU that is never open is dead, too
    maps[1] = 1.0
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(dead_maps(tf.constant(maps), tf.constant(weights)), [0.5, 0.0, 0.0])
    np.testing.assert_allclose(dead_maps(tf.constant(maps), tf.ones((3, 3))), [2 / 3, 0.0, 1.0])
    volumes = maps[:, None].repeat(2, axis=1)
    volumes[0, 1, 0, 0, 2] = 5.0  # alive in its second slice
    np.testing.assert_allclose(dead_maps(tf.constant(volumes), tf.ones((3, 3))), [1 / 3, 0.0, 1.0])
