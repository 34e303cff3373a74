"""Every penalty against loops in NumPy, gradients against differences, and the choice of penalties."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.objectives.interpretability import (
    PENALTIES,
    chosen_penalties,
    entropy,
    l1,
    relative_to_strength,
    tv,
    tv_texture,
    weighted_penalty,
)

RNG = np.random.default_rng(0)
CODE = RNG.normal(size=(3, 4, 5, 2))
BEFORE, BEHIND = RNG.normal(size=(2, 3, 4, 5, 6))


def tv_by_loops(code, before, behind):
    across = [abs(code[:, :, x + 1] - code[:, :, x]) for x in range(code.shape[2] - 1)]
    down = [abs(code[:, y + 1] - code[:, y]) for y in range(code.shape[1] - 1)]
    return np.mean(across, axis=(0, 2, 3)) + np.mean(down, axis=(0, 2, 3))


def l1_by_loops(code, before, behind):
    return np.array([np.mean([abs(value) for value in one.ravel()]) for one in code])


def entropy_by_loops(code, before, behind):
    result = []
    for one in code:
        values = []
        for concept in np.moveaxis(np.abs(one), -1, 0):
            share = concept.ravel() / concept.sum()
            values.append(-(share * np.log(share)).sum() / np.log(share.size))
        result.append(np.mean(values))
    return np.array(result)


def tv_texture_by_loops(code, before, behind):
    rows = [
        abs(abs(behind[:, y + 1] - behind[:, y]) - abs(before[:, y + 1] - before[:, y]))
        for y in range(before.shape[1] - 1)
    ]
    return np.mean(rows, axis=(0, 2, 3))


TWINS = {"tv": tv_by_loops, "l1": l1_by_loops, "entropy": entropy_by_loops, "tv_texture": tv_texture_by_loops}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_equal_their_loops(name):
    loss = PENALTIES[name](*map(tf.constant, (CODE, BEFORE, BEHIND)))
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, TWINS[name](CODE, BEFORE, BEHIND), rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_of_the_penalties(name):
    weights = RNG.normal(size=3)
    given = [CODE, BEFORE, BEHIND]
    tensors = [tf.constant(values) for values in given]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(PENALTIES[name](*tensors) * weights)
    gradients = tape.gradient(loss, tensors, unconnected_gradients="zero")
    used = {"tv_texture": (1, 2)}.get(name, (0,))
    for place, gradient in enumerate(gradients):
        if place not in used:
            np.testing.assert_array_equal(gradient, 0.0)
            continue
        for position in [(0, 0, 0, 0), (1, 3, 4, 1), (2, 1, 2, 0), (2, 2, 0, 1)]:
            changed = []
            for step in (1e-6, -1e-6):
                values = [np.array(array) for array in given]
                values[place][position] += step
                changed.append((TWINS[name](*values) * weights).sum())
            expected = (changed[0] - changed[1]) / 2e-6
            np.testing.assert_allclose(gradient.numpy()[position], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 1, 3), (2, 1, 4, 3), (2, 4, 1, 3), (2, 3, 4, 5, 2)])
def test_features_single_places_and_volumes(name, shape):
    code, before, behind = (tf.constant(RNG.normal(size=shape)) for _ in range(3))
    with tf.GradientTape() as tape:
        tape.watch([code, before, behind])
        loss = PENALTIES[name](code, before, behind)
    assert loss.shape == (2,)
    gradients = tape.gradient(loss, [code, before, behind], unconnected_gradients="zero")
    assert all(np.isfinite(value).all() for value in (loss, *gradients))
    without_neighbours = {"tv": len(shape) == 2 or shape[1:3] == (1, 1), "l1": False}
    without_neighbours["entropy"] = without_neighbours["tv"]
    without_neighbours["tv_texture"] = len(shape) == 2 or shape[-3] == 1
    assert (loss.numpy() == 0).all() == without_neighbours[name]


def test_a_volume_has_neighbours_in_three_directions():
    volume = np.zeros((1, 2, 2, 2, 1))
    volume[0, 1] = 3.0  # the second slice differs from the first, and nothing else does
    assert float(tv(*[tf.constant(volume)] * 3)[0]) == 3.0
    assert float(tv_texture(tf.constant(volume), tf.constant(volume), tf.constant(0 * volume))[0]) == 0.0
    height = np.zeros((1, 2, 2, 2, 1))
    height[0, :, 1] = 3.0
    assert float(tv_texture(tf.constant(volume), tf.constant(height), tf.constant(0 * height))[0]) == 3.0


def test_texture_may_be_inverted_and_shifted():
    """Absolute differences: brightness and sign do not count, the strength of the texture does."""
    behind = tf.constant(5.0 - BEFORE)
    np.testing.assert_allclose(tv_texture(tf.constant(CODE), tf.constant(BEFORE), behind), 0.0, atol=1e-12)
    assert (tv_texture(tf.constant(CODE), tf.constant(BEFORE), 2 * behind).numpy() > 0.1).all()


def test_entropy_tells_one_place_from_everywhere():
    spread, single = np.ones((1, 4, 5, 1)), np.zeros((1, 4, 5, 1))
    single[0, 2, 3] = -7.0
    both = np.concatenate([spread, single, np.zeros_like(single)])
    np.testing.assert_allclose(entropy(*[tf.constant(both)] * 3), [1.0, 0.0, 0.0], atol=1e-12)


def test_zero_codes_have_finite_gradients():
    code = tf.zeros((2, 3, 3, 2))
    for name, penalty in PENALTIES.items():
        with tf.GradientTape() as tape:
            tape.watch(code)
            loss = penalty(relative_to_strength(code), code, code)
        assert np.isfinite(tape.gradient(loss, code)).all(), name
        np.testing.assert_array_equal(loss, 0.0)


def test_a_concept_is_divided_by_its_strength_in_the_batch():
    own = relative_to_strength(tf.constant(CODE * [1e3, 1e-1])).numpy()
    np.testing.assert_allclose(own, CODE / np.sqrt((CODE**2).mean(axis=(0, 1, 2))), rtol=1e-3)


def test_making_codes_small_gains_nothing():
    """The gradient of a penalty on relative codes is orthogonal to the codes of each concept."""
    code = tf.constant(CODE)
    for penalty in (tv, l1):
        with tf.GradientTape() as tape:
            tape.watch(code)
            loss = tf.reduce_mean(penalty(relative_to_strength(code, smallest=0.0), code, code))
        gradient = tape.gradient(loss, code)
        np.testing.assert_allclose(tf.reduce_sum(gradient * code, axis=(0, 1, 2)), 0.0, atol=1e-12)
        assert np.abs(gradient).max() > 1e-3


def test_dead_concepts_stay_small():
    assert np.abs(relative_to_strength(tf.constant(CODE * 1e-6))).max() < 0.01


def test_several_penalties_are_added_with_their_weights():
    tensors = [tf.constant(values) for values in (CODE, BEFORE, BEHIND)]
    both = weighted_penalty(chosen_penalties(("tv", "l1")))(*tensors)
    np.testing.assert_allclose(both, tv(*tensors) + l1(*tensors), rtol=1e-12)
    weighted = weighted_penalty(chosen_penalties({"tv": 0.5, "entropy": 2, "l1": 0}))(*tensors)
    np.testing.assert_allclose(weighted, 0.5 * tv(*tensors) + 2 * entropy(*tensors), rtol=1e-12)
    np.testing.assert_allclose(weighted_penalty(chosen_penalties("l1"))(*tensors), l1(*tensors), rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("tv_textur", "received 'tv_textur'. Did you mean `tv_texture`?"),
        (("tv", "sparsity"), "expected a callable, or names of tv, l1, entropy, tv_texture, in a sequence or as the"),
        ({"tv": -1.0}, "expected weights that are finite and at least 0; received -1.0 for `tv`."),
        ({"tv": float("nan")}, "received nan for `tv`"),
        ({"tv": "1"}, "received '1' for `tv`"),
        ({"tv": True}, "received True for `tv`"),
        ({"tv": 0.0}, "expected a weight above 0; received none. To train without, set interpretability_weight=0."),
        ((), "received ()."),
        (None, "received None."),
        (3, "received 3."),
        ((["tv"],), "received ['tv']."),
        (("tv", len), "received <built-in function len>."),
    ],
)
def test_choices_that_are_none(given, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        chosen_penalties(given)
