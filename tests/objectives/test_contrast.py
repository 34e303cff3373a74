from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.contrast import (
    CONTRASTS,
    cross_entropy,
    negated_contrast,
    one_vs_rest_contrast,
    probability_contrast,
    saliency_l1,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0.0, 3.0, (7, 5))
LABELS = RNG.integers(0, 5, 7)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def label_probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return softmax(logits)[np.arange(len(labels)), labels]


TWINS = {
    cross_entropy: lambda logits, labels: -np.log(label_probability(logits, labels)),
    one_vs_rest_contrast: lambda logits, labels: -np.log(1 - label_probability(logits, labels)),
    negated_contrast: lambda logits, labels: np.log(label_probability(logits, labels)),
    probability_contrast: label_probability,
}
losses = pytest.mark.parametrize("loss", TWINS, ids=lambda loss: loss.__name__)


@losses
def test_loss_is_the_formula(loss):
    result = loss(tf.constant(LOGITS), tf.constant(LABELS))
    assert result.shape == (7,)
    np.testing.assert_allclose(result, TWINS[loss](LOGITS, LABELS), rtol=1e-11)


@losses
def test_gradient_is_that_of_the_formula(loss):
    labels = tf.constant(LABELS)
    with tf.GradientTape() as tape:
        logits = tf.constant(LOGITS)
        tape.watch(logits)
        total = tf.reduce_sum(loss(logits, labels))
    gradient = tape.gradient(total, logits).numpy()
    step = 1e-5
    numeric = np.zeros_like(LOGITS)
    for position in np.ndindex(*LOGITS.shape):
        shift = np.zeros_like(LOGITS)
        shift[position] = step
        difference = TWINS[loss](LOGITS + shift, LABELS) - TWINS[loss](LOGITS - shift, LABELS)
        numeric[position] = difference.sum() / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)


@losses
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_extreme_logits_stay_finite(loss, dtype):
    logits = tf.constant([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]], dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss(logits, tf.zeros(4, tf.int64))
    gradient = tape.gradient(values, logits).numpy()
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


def test_values_where_a_probability_underflows():
    logits = tf.constant([[1e4, 0.0, 0.0], [-1e4, 0.0, 0.0], [0.0, -1e4, -1e4], [-1e4, -1e4, -1e4]])
    labels = tf.constant([0, 0, 0, 0])
    large = 1e4 - np.log(2)
    np.testing.assert_allclose(
        one_vs_rest_contrast(logits, labels), [large, 0.0, large, np.log(1.5)], rtol=1e-6, atol=2e-3
    )
    np.testing.assert_allclose(
        negated_contrast(logits, labels), [0.0, -1e4 - np.log(2), 0.0, -np.log(3)], rtol=1e-6, atol=2e-3
    )


def test_one_vs_rest_is_bounded_below_and_pulls_with_the_probability():
    rng = np.random.default_rng(1)
    logits = tf.constant(rng.normal(0.0, 30.0, (5000, 4)), tf.float32)
    labels = rng.integers(0, 4, 5000)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = one_vs_rest_contrast(logits, tf.constant(labels))
    gradient = tape.gradient(values, logits).numpy()[np.arange(5000), labels]
    assert values.numpy().min() >= 0
    np.testing.assert_allclose(gradient, label_probability(logits.numpy().astype(float), labels), atol=2e-5)


def test_one_vs_rest_of_two_classes_is_the_cross_entropy_of_the_other_class():
    logits, labels = tf.constant(LOGITS[:, :2]), tf.constant(LABELS % 2)
    np.testing.assert_allclose(one_vs_rest_contrast(logits, labels), cross_entropy(logits, 1 - labels), rtol=1e-11)


def test_negated_contrast_falls_without_end_and_its_gradient_tends_to_one():
    logits = tf.constant([[-5.0, 0.0], [-50.0, 0.0], [-500.0, 0.0]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = negated_contrast(logits, tf.zeros(3, tf.int64))
    np.testing.assert_allclose(values, [-5.0067153, -50.0, -500.0], rtol=1e-7)
    np.testing.assert_allclose(tape.gradient(values, logits)[:, 0], [0.9933071, 1.0, 1.0], rtol=1e-7)


def test_contrasts_are_found_by_the_names_of_the_config():
    assert list(CONTRASTS.items()) == [
        ("one_vs_rest", one_vs_rest_contrast),
        ("negated", negated_contrast),
        ("probability", probability_contrast),
    ]


def test_saliency_l1_is_the_mean_magnitude_and_does_not_grow_with_the_resolution():
    maps = RNG.normal(size=(3, 4, 5, 2))
    result = saliency_l1(tf.constant(maps))
    np.testing.assert_allclose(result, np.abs(maps).mean(axis=(1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(saliency_l1(tf.constant(np.tile(maps, (1, 2, 2, 1)))), result, rtol=1e-12)


def test_gradient_of_saliency_l1():
    maps = tf.constant(RNG.normal(size=(2, 3, 3, 1)))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        total = tf.reduce_sum(saliency_l1(maps))
    np.testing.assert_allclose(tape.gradient(total, maps), np.sign(maps) / 9, rtol=1e-12)


def test_saliency_l1_of_volumes_is_the_mean_over_all_slices():
    maps = RNG.normal(size=(2, 3, 4, 4, 2))
    np.testing.assert_allclose(saliency_l1(tf.constant(maps)), np.abs(maps).mean(axis=(1, 2, 3, 4)), rtol=1e-12)
