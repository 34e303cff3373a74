from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.causal_focus import causal_focus_loss, resize_masks

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(4, 3, 5, 2))
LABELS = np.array([0, 1, 1, 0])
MASKS = RNG.uniform(size=(4, 3, 5, 1))
HAS_MASK = np.array([1.0, 1.0, 0.0, 1.0])


def loss_by_numpy(maps, labels, masks, has_mask, epsilon=1e-7):
    values = []
    for image, label in enumerate(labels):
        activation = np.maximum(maps[image, :, :, label], 0)
        share = (masks[image, :, :, 0] * activation).sum() / (activation.sum() + epsilon)
        values.append(has_mask[image] * (1 - share))
    return np.array(values)


def loss_and_gradient(maps, labels, masks, has_mask):
    maps = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = causal_focus_loss(maps, tf.constant(labels), tf.constant(masks), tf.constant(has_mask))
    return loss.numpy(), tape.gradient(loss, maps).numpy()


def one_map(values: list[list[float]]) -> np.ndarray:
    return np.array(values)[None, :, :, None]


def test_loss_by_hand():
    maps = one_map([[3.0, 1.0], [-8.0, 4.0]])
    mask = one_map([[1.0, 0.0], [1.0, 0.5]])
    loss, _ = loss_and_gradient(maps, [0], mask, [1.0])
    np.testing.assert_allclose(loss, [1 - (3 + 0.5 * 4) / (3 + 1 + 4)], rtol=1e-6)


def test_only_the_map_of_the_true_class_counts():
    maps = np.concatenate([one_map([[1.0, 1.0]]), one_map([[0.0, 7.0]])], axis=3)
    maps = np.concatenate([maps, maps])
    masks = np.concatenate([one_map([[0.0, 1.0]])] * 2)
    loss, gradient = loss_and_gradient(maps, [0, 1], masks, [1.0, 1.0])
    np.testing.assert_allclose(loss, [0.5, 0.0], atol=1e-6)
    assert (gradient[0, :, :, 1] == 0).all()
    assert (gradient[0, :, :, 0] != 0).all()


def test_loss_is_the_formula():
    loss, _ = loss_and_gradient(MAPS, LABELS, MASKS.astype("float32"), HAS_MASK)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, loss_by_numpy(MAPS, LABELS, MASKS.astype("float32"), HAS_MASK), rtol=1e-12)


def test_gradient_is_that_of_the_formula():
    masks = MASKS.astype("float32").astype("float64")
    _, gradient = loss_and_gradient(MAPS, LABELS, masks, HAS_MASK)
    numeric = np.zeros_like(MAPS)
    for position in np.ndindex(*MAPS.shape):
        shift = np.zeros_like(MAPS)
        shift[position] = 1e-6
        difference = loss_by_numpy(MAPS + shift, LABELS, masks, HAS_MASK)
        difference -= loss_by_numpy(MAPS - shift, LABELS, masks, HAS_MASK)
        numeric[position] = difference.sum() / 2e-6
    assert np.abs(numeric).max() > 1e-3
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def test_image_without_a_mask_has_no_loss_and_no_gradient():
    dummy = np.ones_like(MASKS)
    loss, gradient = loss_and_gradient(
        MAPS, LABELS, np.where(HAS_MASK[:, None, None, None] > 0, MASKS, dummy), HAS_MASK
    )
    assert loss[2] == 0
    assert (gradient[2] == 0).all()
    assert (loss[[0, 1, 3]] > 0).all()


def test_map_without_positive_activation_has_loss_one_and_no_gradient():
    loss, gradient = loss_and_gradient(-np.abs(MAPS), LABELS, MASKS, np.ones(4))
    assert (loss == 1).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_scale_of_the_maps_does_not_matter(scale):
    loss, _ = loss_and_gradient(MAPS, LABELS, MASKS, HAS_MASK)
    scaled, _ = loss_and_gradient(scale * MAPS, LABELS, MASKS, HAS_MASK)
    np.testing.assert_allclose(scaled, loss, rtol=1e-4)


def test_mask_of_everything_leaves_nothing_outside():
    loss, gradient = loss_and_gradient(MAPS, LABELS, np.ones_like(MASKS), np.ones(4))
    np.testing.assert_allclose(loss, 0, atol=1e-7)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_gradient_moves_activation_into_the_mask():
    maps = np.ones((1, 2, 2, 1))
    mask = one_map([[1.0, 0.0], [0.0, 0.0]])
    _, gradient = loss_and_gradient(maps, [0], mask, [1.0])
    assert gradient[0, 0, 0, 0] < 0
    assert (np.delete(gradient.ravel(), 0) > 0).all()


def test_epsilon_is_added_to_the_denominator():
    maps, masks = tf.ones((1, 1, 1, 1)), tf.ones((1, 1, 1, 1))
    loss = causal_focus_loss(maps, tf.constant([0]), masks, tf.ones(1), epsilon=1.0)
    np.testing.assert_allclose(loss, [0.5])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float64"])
def test_masks_and_flags_of_any_type(dtype):
    masks, has_mask = (MASKS > 0.5).astype(dtype), HAS_MASK.astype(dtype)
    loss = causal_focus_loss(tf.constant(MAPS, tf.float32), LABELS, tf.constant(masks), tf.constant(has_mask))
    np.testing.assert_allclose(loss, loss_by_numpy(MAPS, LABELS, MASKS > 0.5, HAS_MASK), rtol=1e-5)


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
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [0], mask, [1.0])
    np.testing.assert_allclose(loss, [3 / 8], rtol=1e-6)
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [0], one_map([[1.0]]), [1.0])
    np.testing.assert_allclose(loss, [0.0], atol=1e-6)
    loss, _ = loss_and_gradient(one_map([[3.0, 1.0], [2.0, 2.0]]), [0], one_map([[0.0], [1.0]]), [1.0])
    np.testing.assert_allclose(loss, [0.5], rtol=1e-6)
