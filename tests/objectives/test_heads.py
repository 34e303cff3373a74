from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.objectives.contrast import CONTRASTS, cross_entropy
from tfcausal.objectives.heads import choice, evidence_weights, one_label

RNG = np.random.default_rng(0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def losses(logits: np.ndarray, classes: np.ndarray, head: str) -> dict[str, np.ndarray]:
    exclusive, true = choice(tf.constant(logits), tf.constant(classes), head)
    named = {"cross_entropy": cross_entropy, **CONTRASTS}
    return {name: loss(exclusive, true).numpy() for name, loss in named.items()}


def assert_are_those_of(found: dict[str, np.ndarray], probability: np.ndarray) -> None:
    expected = {
        "cross_entropy": -np.log(probability),
        "one_vs_rest": -np.log(1 - probability),
        "negated": np.log(probability),
        "probability": probability,
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-10, err_msg=name)


def test_several_exclusive_classes_are_left_as_they_are():
    logits, classes = tf.constant(RNG.normal(size=(4, 3))), tf.constant([0, 2, 1, 1])
    exclusive, true = choice(logits, classes, "multi_class")
    assert exclusive is logits
    assert true is classes


def test_binary_losses_are_those_of_the_sigmoid():
    logits, classes = RNG.normal(0, 2, (6, 1)), np.array([0, 1, 1, 0, 1, 0])
    of_one = sigmoid(logits[:, 0])
    assert_are_those_of(losses(logits, classes, "binary"), np.where(classes == 1, of_one, 1 - of_one))


def test_multi_label_losses_are_those_of_the_sigmoid_of_one_label():
    logits, classes = RNG.normal(0, 2, (6, 4)), np.array([0, 3, 1, 2, 3, 0])
    assert_are_those_of(losses(logits, classes, "multi_label"), sigmoid(logits[np.arange(6), classes]))


def test_other_labels_get_no_gradient():
    logits, classes = tf.constant(RNG.normal(size=(3, 4))), tf.constant([2, 0, 3])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(cross_entropy(*choice(logits, classes, "multi_label")))
    touched = tape.gradient(total, logits).numpy() != 0
    np.testing.assert_array_equal(touched, np.eye(4, dtype=bool)[[2, 0, 3]])


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_evidence_of_every_head(dtype):
    classes = tf.constant([1, 0], tf.int64)
    for head, outputs, expected in (
        ("multi_class", 3, [[0, 1, 0], [1, 0, 0]]),
        ("multi_label", 3, [[0, 1, 0], [1, 0, 0]]),
        ("binary", 1, [[1], [-1]]),
    ):
        weights = evidence_weights(classes, outputs, head, dtype)
        assert weights.dtype == dtype
        np.testing.assert_array_equal(weights, expected)


def test_evidence_grows_with_the_probability_of_its_class():
    """By as much as the logit does: the map of class 0 of a binary head explains what speaks against class 1."""
    for classes in (np.array([1]), np.array([0])):
        before, after = (-losses(np.array([[z]]), classes, "binary")["cross_entropy"] for z in (0.5, 0.6))
        direction = float(evidence_weights(tf.constant(classes), 1, "binary")[0, 0])
        assert np.sign(after - before) == direction


def test_one_label_is_the_present_one_with_the_highest_score():
    labels = tf.constant([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    scores = tf.constant([[0.1, 0.9, 0.0], [0.9, 0.0, 0.9], [0.9, 0.9, 0.9], [0.1, 0.2, 0.999]])
    chosen, present = one_label(labels, scores)
    np.testing.assert_array_equal(chosen[:2], [0, 1])
    assert chosen.dtype == tf.int64
    assert int(chosen[3]) == 2
    np.testing.assert_array_equal(present, [1, 1, 0, 1])
    assert present.dtype == tf.float32


@pytest.mark.parametrize("dtype", [tf.bool, tf.int32, tf.float32])
def test_scores_of_zero_choose_the_first_label_present(dtype):
    labels = tf.cast(tf.constant([[0, 1, 1], [0, 0, 1]]), dtype)
    chosen, present = one_label(labels, tf.zeros((2, 3)))
    np.testing.assert_array_equal(chosen, [1, 2])
    np.testing.assert_array_equal(present, [1, 1])


def test_uniform_scores_draw_every_label_of_an_image_alike():
    labels = tf.tile(tf.constant([[1, 0, 1, 1]]), (30000, 1))
    scores = np.random.default_rng(1).uniform(size=(30000, 4)).astype("float32")
    chosen, _ = one_label(labels, tf.constant(scores))
    counts = np.bincount(chosen, minlength=4)
    assert counts[1] == 0
    # Five standard deviations of a share of one third.
    np.testing.assert_allclose(counts[[0, 2, 3]] / 30000, 1 / 3, atol=5 * np.sqrt(2 / 9 / 30000))
