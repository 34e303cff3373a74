from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.attention_mining import attention_mining_loss, external_supervision_loss, min_max_scaled

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(3, 4, 5, 1))
PROBABILITIES = RNG.uniform(size=(4, 3))
LABELS = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
ATTENTION = RNG.uniform(size=(3, 4, 5, 1))
MASKS = RNG.uniform(size=(3, 4, 5, 1)).astype("float32").astype("float64")
HAS_MASK = np.array([1.0, 0.0, 1.0])


def scaled_by_numpy(maps):
    return np.stack([(one - one.min()) / (one.max() - one.min()) for one in maps])


def mining_by_numpy(probabilities, labels):
    return np.array(
        [row[has == 1].mean() if has.any() else 0.0 for row, has in zip(probabilities, labels, strict=True)]
    )


def supervision_by_numpy(attention, masks, has_mask):
    return np.array(
        [has * ((one - mask) ** 2).mean() for one, mask, has in zip(attention, masks, has_mask, strict=True)]
    )


def gradient_of(function, values, weights):
    """The gradient of a weighted sum of what a function gives, by TensorFlow."""
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = tf.reduce_sum(function(values) * weights)
    return tape.gradient(result, values).numpy()


def numeric_gradient(function, values, weights):
    gradient = np.zeros_like(values)
    for position in np.ndindex(*values.shape):
        shift = np.zeros_like(values)
        shift[position] = 1e-6
        gradient[position] = ((function(values + shift) - function(values - shift)) * weights).sum() / 2e-6
    return gradient


def test_every_map_is_scaled_by_its_own_extremes():
    scaled = min_max_scaled(tf.constant(MAPS)).numpy()
    np.testing.assert_allclose(scaled, scaled_by_numpy(MAPS), rtol=1e-12)
    assert (scaled.min(axis=(1, 2, 3)) == 0).all()
    assert (scaled.max(axis=(1, 2, 3)) == 1).all()


def test_slices_of_a_volume_are_scaled_together():
    volume = np.arange(12.0).reshape(1, 3, 2, 2, 1)
    np.testing.assert_allclose(min_max_scaled(tf.constant(volume)), volume / 11, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-30])
def test_a_constant_map_is_zero_and_passes_no_gradient(value):
    maps = np.full((1, 3, 4, 1), value)
    # Enlarging leaves differences of rounding, which are no attention.
    maps[0, 1, 2] *= 1 + 1e-7
    np.testing.assert_array_equal(min_max_scaled(tf.constant(maps)), 0.0)
    np.testing.assert_array_equal(gradient_of(min_max_scaled, maps, RNG.normal(size=maps.shape)), 0.0)


def test_small_differences_between_places_count():
    maps = tf.reshape(tf.constant([1e-20, 3e-20, 2e-20]), (1, 1, 3, 1))
    np.testing.assert_allclose(min_max_scaled(maps)[0, 0, :, 0], [0.0, 1.0, 0.5], rtol=1e-5)


def test_gradient_of_the_scaling():
    weights = RNG.normal(size=MAPS.shape)
    expected = numeric_gradient(scaled_by_numpy, MAPS, weights)
    np.testing.assert_allclose(gradient_of(min_max_scaled, MAPS, weights), expected, rtol=1e-5, atol=1e-7)


def test_mining_is_the_mean_probability_of_the_labels():
    loss = attention_mining_loss(tf.constant(PROBABILITIES), tf.constant(LABELS))
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, mining_by_numpy(PROBABILITIES, LABELS), rtol=1e-12)
    assert float(loss[3]) == 0.0


def test_gradient_of_mining():
    weights = RNG.normal(size=4)
    expected = numeric_gradient(lambda values: mining_by_numpy(values, LABELS), PROBABILITIES, weights)
    own = gradient_of(lambda values: attention_mining_loss(values, tf.constant(LABELS)), PROBABILITIES, weights)
    np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-9)
    assert (own[LABELS == 0] == 0).all()


def test_supervision_is_the_mean_squared_distance():
    loss = external_supervision_loss(*map(tf.constant, (ATTENTION, MASKS, HAS_MASK)))
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, supervision_by_numpy(ATTENTION, MASKS, HAS_MASK), rtol=1e-12)


def test_gradient_of_the_supervision():
    weights = RNG.normal(size=3)
    expected = numeric_gradient(lambda values: supervision_by_numpy(values, MASKS, HAS_MASK), ATTENTION, weights)
    masks, has_mask = tf.constant(MASKS), tf.constant(HAS_MASK)
    own = gradient_of(lambda values: external_supervision_loss(values, masks, has_mask), ATTENTION, weights)
    np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-9)
    assert (own[1] == 0).all()


def test_masks_of_another_size_are_brought_to_the_maps():
    masks = RNG.uniform(size=(3, 8, 10, 1))
    means = masks.reshape(3, 4, 2, 5, 2, 1).mean(axis=(2, 4))
    loss = external_supervision_loss(*map(tf.constant, (ATTENTION, masks, HAS_MASK)))
    np.testing.assert_allclose(loss, supervision_by_numpy(ATTENTION, means, HAS_MASK), rtol=1e-6)


def test_supervision_of_a_volume():
    attention, masks = RNG.uniform(size=(2, 2, 3, 4, 5, 1))
    loss = external_supervision_loss(*map(tf.constant, (attention, masks, np.ones(2))))
    np.testing.assert_allclose(loss, supervision_by_numpy(attention, masks, [1, 1]), rtol=1e-6)
