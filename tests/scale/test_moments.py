"""Means and intervals of blocks put together, against those of all observations at once."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from tfcausal.effects.intervals import mean_intervals
from tfcausal.scale.moments import Moments, moments_of

VALUES = np.random.default_rng(0).normal(1e3, [1.0, 1e-3, 50.0], (1000, 3))


@pytest.mark.parametrize("parts", [[1000], [1, 999], [300, 300, 400], [1] * 1000])
def test_blocks_put_together_have_the_moments_of_all(parts):
    blocks = np.split(VALUES, np.cumsum(parts)[:-1])
    together = reduce(add, map(moments_of, blocks))
    assert together.n == 1000
    np.testing.assert_allclose(together.mean, VALUES.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(together.squares, 1000 * VALUES.var(axis=0), rtol=1e-9)


def test_float32_observations_are_added_in_float64():
    values = VALUES.astype(np.float32)
    together = reduce(add, map(moments_of, np.split(values, 10)))
    assert together.mean.dtype == np.float64
    np.testing.assert_allclose(together.mean, values.astype(np.float64).mean(axis=0), rtol=1e-14)


def test_the_interval_is_that_of_the_bootstrap_for_many_observations():
    mean, low, high = mean_intervals(VALUES, seed=1, resamples=20_000)
    moments = moments_of(VALUES)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    for own, expected in zip(moments.interval(), (low, high), strict=True):
        # Either end is 1.96 standard errors away; the bootstrap finds it to a few hundredths of them.
        np.testing.assert_allclose((own - mean) / (high - low), (expected - mean) / (high - low), atol=0.02)


def test_the_interval_is_the_textbook_one():
    low, high = moments_of(np.array([1.0, 2.0, 3.0, 6.0])).interval()  # variance 14 / 3
    assert (low, high) == pytest.approx((3 - 1.959964 * np.sqrt(14 / 12), 3 + 1.959964 * np.sqrt(14 / 12)))


def test_equal_observations_have_an_interval_without_width():
    together = reduce(add, (moments_of(np.full(size, 0.1)) for size in (3, 7, 90)))
    assert together.mean == 0.1
    assert together.interval() == (0.1, 0.1)


def test_a_single_observation_has_no_interval():
    assert np.isnan(moments_of(np.array([[3.0, 4.0]])).interval()).all()


def test_nothing_adds_nothing():
    nothing, some = Moments(0, np.zeros(()), np.zeros(())), moments_of(VALUES)
    assert nothing + some is some
    assert some + nothing is some
