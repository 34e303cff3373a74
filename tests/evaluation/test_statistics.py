import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.statistics import mean, proportion


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Wilson score intervals of Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_proportion_equals_the_published_wilson_intervals(successes, n, low, high):
    estimate = proportion(np.arange(n) < successes)
    assert estimate.value == pytest.approx(successes / n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
    assert estimate.n == n


def test_an_interval_holds_its_proportion_where_all_or_none_are_successes():
    for n in range(1, 60):
        for successes in (0, n):
            estimate = proportion(np.arange(n) < successes)
            assert estimate.low <= estimate.value <= estimate.high


def test_nothing_observed_is_nan_and_not_a_number_out_of_thin_air():
    for estimate in (proportion(np.zeros(0, bool)), mean(np.full(3, np.nan))):
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
        assert estimate.n == 0


def test_bootstrap_interval_approaches_the_normal_one():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    estimate = mean(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_depends_on_its_seed_alone():
    values = np.random.default_rng(0).random(20)
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1) != mean(values, seed=2)
    assert mean(values, resamples=50) != mean(values)


def test_missing_values_are_left_out():
    values = np.array([1.0, np.nan, 2.0, 6.0])
    assert mean(values) == mean(values[~np.isnan(values)])


def test_no_resamples_is_an_error():
    with pytest.raises(InvalidArgument, match=r"`resamples`: expected a positive integer; received 0"):
        mean(np.ones(2), resamples=0)
