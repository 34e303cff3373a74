"""Both reconstruction losses against NumPy in float64, their gradients against differences, and extreme logits."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.reconstruction import deep_loss, shallow_loss

RNG = np.random.default_rng(0)
LOGITS, RECONSTRUCTED = RNG.normal(scale=2.0, size=(2, 4, 3))
HEADS = ["multi_class", "multi_label", "binary"]


def logits_for(head):
    return (LOGITS[:, :1], RECONSTRUCTED[:, :1]) if head == "binary" else (LOGITS, RECONSTRUCTED)


def deep_by_numpy(logits, reconstructed, head):
    """Probabilities first, then the definition: sum of p log(p/q) over the outcomes of every distribution."""
    if head == "multi_class":
        p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, reconstructed))
        return (p * np.log(p / q)).sum(axis=1)
    p, q = (1 / (1 + np.exp(-z)) for z in (logits, reconstructed))
    return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1)


def gradient_of(function, values, weights):
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


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 6), (3, 2, 4, 5, 2)])
def test_shallow_loss_is_the_mean_absolute_difference(shape):
    activation, reconstruction = RNG.normal(size=(2, *shape))
    loss = shallow_loss(tf.constant(activation), tf.constant(reconstruction))
    expected = np.abs(activation - reconstruction).reshape(3, -1).mean(axis=1)
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_shallow_loss_pulls_the_reconstruction():
    """The authors' code cuts off this very gradient."""
    activation, reconstruction = RNG.normal(size=(2, 3, 2, 2, 2))
    weights = np.array([1.0, -2.0, 0.5])
    own = gradient_of(lambda values: shallow_loss(tf.constant(activation), values), reconstruction, weights)
    expected = np.sign(reconstruction - activation) / 8 * weights[:, None, None, None]
    np.testing.assert_allclose(own, expected, rtol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_deep_loss_is_the_divergence_of_the_probabilities(head):
    logits, reconstructed = logits_for(head)
    loss = deep_loss(tf.constant(logits), tf.constant(reconstructed), head)
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, deep_by_numpy(logits, reconstructed, head), rtol=1e-10)
    assert (loss.numpy() > 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_deep_loss_is_from_the_network_to_the_autoencoder(head):
    """KL is not symmetric, and the network stands first."""
    logits, reconstructed = logits_for(head)
    swapped = deep_loss(tf.constant(reconstructed), tf.constant(logits), head)
    assert np.abs(swapped - deep_by_numpy(logits, reconstructed, head)).max() > 0.01


@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_deep_loss(head):
    logits, reconstructed = logits_for(head)
    weights = RNG.normal(size=4)
    expected = numeric_gradient(lambda values: deep_by_numpy(logits, values, head), reconstructed, weights)
    own = gradient_of(lambda values: deep_loss(tf.constant(logits), values, head), reconstructed, weights)
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-8)
    expected = numeric_gradient(lambda values: deep_by_numpy(values, reconstructed, head), logits, weights)
    own = gradient_of(lambda values: deep_loss(values, tf.constant(reconstructed), head), logits, weights)
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("head", HEADS)
def test_equal_logits_have_no_divergence(head):
    logits, _ = logits_for(head)
    for scale in (1.0, 1e4, 1e30):
        values = tf.constant(scale * logits, tf.float32)
        np.testing.assert_array_equal(deep_loss(values, values, head), 0.0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [50.0, 1e3, 1e6, 1e30, 3e38])
def test_extreme_logits_have_a_divergence_and_a_gradient(head, size):
    """A certain network and an autoencoder that makes it a bit less certain, or undecided."""
    columns = 1 if head == "binary" else 3
    certain = np.full((2, columns), -size, np.float32)
    certain[:, 0] = size
    logits, reconstructed = tf.constant(certain), tf.constant(np.stack([certain[0] / 2, 0 * certain[0]]))
    loss = deep_loss(logits, reconstructed, head)
    units = {"multi_class": np.log(3), "multi_label": 3 * np.log(2), "binary": np.log(2)}
    np.testing.assert_allclose(loss, [0.0, units[head]], rtol=1e-5, atol=1e-10)
    gradients = [gradient_of(lambda values: deep_loss(logits, values, head), reconstructed, np.float32([1.0, 1.0]))]
    if size < 1e38:  # the network itself is not trained; its logarithms have overflowed here
        gradients.append(gradient_of(lambda values: deep_loss(values, reconstructed, head), logits, np.float32([1, 1])))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_an_opposite_answer_costs_the_distance_of_the_logits():
    logits = tf.constant([[1000.0, 0.0]])
    np.testing.assert_allclose(deep_loss(logits, logits[:, ::-1], "multi_class"), [1000.0])
    np.testing.assert_allclose(deep_loss(logits, -logits, "binary"), [1000.0])
