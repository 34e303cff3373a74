from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.right_reasons import log_probability_slopes, right_reasons_loss

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(3, 4, 5, 2))
MASKS = RNG.uniform(size=(3, 4, 5, 1)).astype("float32").astype("float64")
HAS_MASK = np.array([1.0, 0.0, 1.0])


def sum_of_log_probabilities(logits, head):
    """The sum that the penalty differentiates, from the probabilities themselves."""
    if head == "multi_class":
        powers = np.exp(logits)
        return np.log(powers / powers.sum(axis=1, keepdims=True)).sum(axis=1)
    probabilities = 1 / (1 + np.exp(-logits))
    return (np.log(probabilities) + np.log(1 - probabilities)).sum(axis=1)


def loss_by_numpy(gradients, masks, has_mask):
    return np.array(
        [
            has * (((1 - mask) * gradient) ** 2).sum()
            for gradient, mask, has in zip(gradients, masks, has_mask, strict=True)
        ]
    )


def numeric_gradient(function, values, weights):
    gradient = np.zeros_like(values)
    for position in np.ndindex(*values.shape):
        shift = np.zeros_like(values)
        shift[position] = 1e-6
        gradient[position] = ((function(values + shift) - function(values - shift)) * weights).sum() / 2e-6
    return gradient


HEADS = [("multi_class", 2), ("multi_class", 4), ("binary", 1), ("multi_label", 3)]


@pytest.mark.parametrize(("head", "outputs"), HEADS)
def test_slopes_are_those_of_the_sum_of_all_log_probabilities(head, outputs):
    logits = RNG.normal(size=(5, outputs))
    expected = numeric_gradient(lambda values: sum_of_log_probabilities(values, head), logits, np.ones(5))
    slopes = log_probability_slopes(tf.constant(logits), head)
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)


def test_a_binary_head_is_one_of_two_classes():
    logits = tf.constant(RNG.normal(size=(5, 1)))
    two = log_probability_slopes(tf.concat([tf.zeros_like(logits), logits], axis=1), "multi_class")
    np.testing.assert_allclose(log_probability_slopes(logits, "binary")[:, 0], two[:, 1], rtol=1e-12)


@pytest.mark.parametrize(("head", "outputs"), HEADS)
def test_slopes_of_extreme_logits_are_finite(head, outputs):
    logits = tf.constant(np.linspace(-1e4, 1e4, 3 * outputs).reshape(3, outputs), tf.float32)
    slopes = log_probability_slopes(logits, head).numpy()
    assert np.isfinite(slopes).all()
    assert np.abs(slopes).max() >= 0.9


def test_loss_is_the_sum_outside_the_mask():
    loss = right_reasons_loss(*map(tf.constant, (GRADIENTS, MASKS, HAS_MASK)))
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, loss_by_numpy(GRADIENTS, MASKS, HAS_MASK), rtol=1e-12)


def test_gradient_of_the_loss():
    weights = RNG.normal(size=3)
    gradients = tf.constant(GRADIENTS)
    with tf.GradientTape() as tape:
        tape.watch(gradients)
        loss = tf.reduce_sum(right_reasons_loss(gradients, tf.constant(MASKS), tf.constant(HAS_MASK)) * weights)
    own = tape.gradient(loss, gradients).numpy()
    expected = numeric_gradient(lambda values: loss_by_numpy(values, MASKS, HAS_MASK), GRADIENTS, weights)
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)
    assert (own[1] == 0).all()


def test_what_lies_in_the_mask_is_free():
    masks = np.ones((3, 4, 5, 1))
    masks[0, 1, 2] = 0
    loss = right_reasons_loss(*map(tf.constant, (GRADIENTS, masks, np.ones(3))))
    np.testing.assert_allclose(loss, [(GRADIENTS[0, 1, 2] ** 2).sum(), 0, 0], rtol=1e-12)


def test_masks_of_another_size_are_brought_to_the_images():
    masks = RNG.uniform(size=(3, 8, 10, 1))
    means = masks.reshape(3, 4, 2, 5, 2, 1).mean(axis=(2, 4))
    loss = right_reasons_loss(*map(tf.constant, (GRADIENTS, masks, HAS_MASK)))
    np.testing.assert_allclose(loss, loss_by_numpy(GRADIENTS, means, HAS_MASK), rtol=1e-6)


def test_loss_of_a_volume():
    gradients, masks = RNG.normal(size=(2, 3, 4, 5, 2)), RNG.uniform(size=(2, 3, 4, 5, 1))
    loss = right_reasons_loss(*map(tf.constant, (gradients, masks, np.ones(2))))
    np.testing.assert_allclose(loss, loss_by_numpy(gradients, masks, [1, 1]), rtol=1e-6)
