"""Areas, intervals, comparisons and thresholds against brute force, scikit-learn, other formulas, and simulation."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from tfcausal.errors import InvalidArgument
from tfcausal.evaluation import roc


def wins(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Whether each positive beats each negative, ties one half, (m, n)."""
    difference = positives[:, None] - negatives[None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def brute_force(labels: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and DeLong's covariance from all m n pairs, as the definition has it."""
    m, n = int(labels.sum()), int((1 - labels).sum())
    pairs = np.stack([wins(column[labels == 1], column[labels == 0]) for column in columns.T])
    values = pairs.mean(axis=(1, 2))
    of_positives, of_negatives = pairs.mean(axis=2) - values[:, None], pairs.mean(axis=1) - values[:, None]
    covariance = of_positives @ of_positives.T / (m - 1) / m + of_negatives @ of_negatives.T / (n - 1) / n
    return values, covariance


def data(seed: int, m: int, n: int, k: int = 3, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.r_[np.ones(m, int), np.zeros(n, int)])
    columns = random.normal(size=(m + n, k)) + random.normal(size=(m + n, 1)) + 0.8 * labels[:, None]
    return labels, columns if levels is None else np.round(columns * levels) / levels


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (31, 12), (9, 60)])
def test_areas_and_covariance_are_those_of_all_pairs(m, n, levels):
    labels, columns = data(m + n, m, n, levels=levels)
    result = roc.areas(labels, columns)
    values, covariance = brute_force(labels, columns)
    np.testing.assert_allclose(result.values, values, atol=1e-14)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-15)
    np.testing.assert_allclose(result.values, [roc_auc_score(labels, column) for column in columns.T], atol=1e-14)
    assert (result.positives, result.negatives, result.clusters) == (m, n, (m, n))


def test_area_alone_is_the_first_of_several():
    labels, columns = data(5, 20, 30)
    several, one = roc.areas(labels, columns), roc.area(labels.astype(bool), columns[:, 1])
    assert one.value == several.values[1]
    assert one.standard_error == pytest.approx(math.sqrt(several.covariance[1, 1]), rel=1e-12)
    logit = math.log(one.value / (1 - one.value))
    half = 1.959963984540054 * one.standard_error / (one.value * (1 - one.value))
    assert [one.low, one.high] == pytest.approx([1 / (1 + math.exp(-logit + half)), 1 / (1 + math.exp(-logit - half))])
    assert one.as_dict()["positives"] == 20


def jackknifed(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> float:
    """Variance of the area when one cluster after the other is left out: another estimate of the same."""
    distinct = np.unique(clusters)
    left_out = [
        wins(scores[(labels == 1) & (clusters != name)], scores[(labels == 0) & (clusters != name)]).mean()
        for name in distinct
    ]
    return float(np.var(left_out) * (len(distinct) - 1))


def test_clusters_of_one_sample_are_delong():
    labels, columns = data(3, 15, 25, levels=2)
    clustered = roc.areas(labels, columns, clusters=[f"patient {place}" for place in range(40)])
    np.testing.assert_allclose(clustered.covariance, roc.areas(labels, columns).covariance, atol=1e-15)


def test_clustered_variance_is_close_to_the_jackknife_and_far_from_that_of_independent_samples():
    """Clean and attacked versions of 300 images, and 100 patients with samples of either class."""
    random = np.random.default_rng(0)
    image = random.normal(size=300)
    labels, clusters = np.repeat([0, 1], 300), np.tile(np.arange(300), 2)
    scores = np.tile(2 * image, 2) + random.normal(size=600) + 0.5 * labels
    paired = roc.areas(labels, scores, clusters).covariance[0, 0]
    assert paired == pytest.approx(jackknifed(labels, scores, clusters), rel=0.03)
    assert paired < 0.5 * roc.areas(labels, scores).covariance[0, 0]
    patients = np.repeat(np.arange(100), 6)
    sick = np.repeat(random.random(100) < 0.4, 6) & (random.random(600) < 0.9)
    shifted = sick + np.repeat(random.normal(size=100), 6) + 0.5 * random.normal(size=600)
    wide = roc.areas(sick, shifted, patients).covariance[0, 0]
    assert wide == pytest.approx(jackknifed(sick.astype(int), shifted, patients), rel=0.05)
    assert wide > 2 * roc.areas(sick, shifted).covariance[0, 0]


@pytest.mark.parametrize("pairs", [False, True])
def test_intervals_cover_the_truth_in_95_percent_of_repetitions(pairs):
    """Normal scores one standard deviation apart: the area is Phi(1 / sqrt 2), also where pairs share an image."""
    truth = 0.5 * math.erfc(-0.5)
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        image = random.normal(size=40)
        shared = np.sqrt(0.7) * np.r_[image, image] if pairs else 0.0
        scores = shared + math.sqrt(0.3 if pairs else 1.0) * random.normal(size=80) + np.repeat([0, 1], 40)
        clusters = np.tile(np.arange(40), 2) if pairs else None
        estimate = roc.area(np.repeat([0, 1], 40), scores, clusters)
        covered += estimate.low <= truth <= estimate.high
    assert 0.92 <= covered / 400 <= 0.98


def test_complete_separation_and_constant_scores_have_an_interval():
    """It ends where the score equation with Hanley and McNeil's variance, both sizes replaced by their mean, holds."""
    labels = np.repeat([0, 1], [12, 8])
    apart = roc.area(labels, np.arange(20.0))
    assert (apart.value, apart.high, apart.standard_error) == (1.0, 1.0, 0.0)
    area, mean = apart.low, 10
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (mean - 1) * (q1 - area**2) + (mean - 1) * (q2 - area**2)) / (12 * 8)
    assert (1 - area) ** 2 == pytest.approx(1.959963984540054**2 * variance, rel=1e-6)
    assert 0.7 < area < 0.95
    turned = roc.area(labels, -np.arange(20.0))
    assert [turned.value, turned.low, turned.high] == pytest.approx([0.0, 0.0, 1 - area])
    constant = roc.area(labels, np.ones(20))
    assert constant.value == 0.5
    assert constant.low < 0.3
    assert constant.low + constant.high == pytest.approx(1)


def test_an_attack_that_changes_no_score_gives_one_half_with_a_width():
    scores = np.tile(np.random.default_rng(0).normal(size=37), 2)
    estimate = roc.area(np.repeat([0, 1], 37), scores, np.tile(np.arange(37), 2))
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low < 0.45 < 0.55 < estimate.high


@pytest.mark.parametrize(("labels", "value"), [([0, 0, 0], False), ([1, 1], False), ([0, 1, 1], True)])
def test_one_class_or_one_sample_of_a_class_is_nan(labels, value):
    estimate = roc.area(labels, np.arange(len(labels), dtype=float))
    assert math.isnan(estimate.value) is not value
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    curve = roc.roc_curve(labels, np.arange(len(labels)))
    assert np.isnan(curve.true_positive_rates).all() == (1 not in labels)
    assert np.isnan(curve.false_positive_rates).all() == (0 not in labels)
    compared = roc.compare(labels, np.arange(len(labels)), np.arange(len(labels)))
    assert math.isnan(compared.p)


def test_comparison_is_that_of_all_pairs():
    labels, columns = data(7, 25, 35)
    values, covariance = brute_force(labels, columns)
    result = roc.compare(labels, columns[:, 0], columns[:, 2])
    variance = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    z = (values[0] - values[2]) / math.sqrt(variance)
    assert result.difference == pytest.approx(values[0] - values[2])
    assert result.z == pytest.approx(z)
    assert result.p == pytest.approx(2 * (1 - 0.5 * math.erfc(-abs(z) / math.sqrt(2))))
    assert result.high - result.low == pytest.approx(2 * 1.959963984540054 * math.sqrt(variance))
    swapped = roc.compare(labels, columns[:, 2], columns[:, 0])
    assert (swapped.z, swapped.p) == pytest.approx((-result.z, result.p))


def test_scores_that_rank_alike_do_not_differ():
    labels, columns = data(8, 25, 35)
    for second in (columns[:, 0], np.exp(columns[:, 0])):
        result = roc.compare(labels, columns[:, 0], second)
        assert (result.difference, result.low, result.high, result.z, result.p) == (0, 0, 0, 0, 1)
    apart = roc.compare([0, 0, 1, 1], [0, 1, 2, 3], [5, 5, 5, 5])
    assert apart.difference == 0.5
    assert math.isnan(apart.p)


def test_comparisons_of_scores_that_are_alike_in_truth_reject_in_5_percent():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], 40)
    p_values = []
    for _ in range(400):
        common = random.normal(size=80) + 0.8 * labels
        p_values.append(roc.compare(labels, *(common + 0.7 * random.normal(size=80) for _ in range(2))).p)
    assert 0.025 <= np.mean(np.array(p_values) < 0.05) <= 0.08


@pytest.mark.parametrize("levels", [None, 2])
def test_curve_is_that_of_scikit_learn(levels):
    labels, columns = data(9, 20, 30, levels=levels)
    curve = roc.roc_curve(labels, columns[:, 0])
    false, true, thresholds = sklearn_curve(labels, columns[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rates, false)
    np.testing.assert_allclose(curve.true_positive_rates, true)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    trapezoids = np.trapezoid(curve.true_positive_rates, curve.false_positive_rates)
    assert trapezoids == pytest.approx(roc.area(labels, columns[:, 0]).value)


def test_threshold_of_youden():
    """By hand: sensitivity minus false alarms is 1 - 1/3 at 3; 1/2 at 5; and 1/2 at both 4 and 2."""
    assert roc.youden_threshold([0, 0, 1, 0, 1], [1, 2, 3, 4, 5]) == 2.5
    assert roc.youden_threshold([0, 1, 0, 0, 1], [1, 2, 3, 4, 5]) == 4.5
    assert roc.youden_threshold([0, 1, 0, 1], [1, 2, 3, 4]) == 3.5
    assert roc.youden_threshold([0, 0, 1, 1], [1, 2, 4, 5]) == 3.0
    assert roc.youden_threshold([1, 1, 0, 0], [1, 2, 4, 5]) == np.inf
    assert roc.youden_threshold([0, 1], [2, 2]) == np.inf
    close = np.nextafter(1.0, 2.0)
    threshold = roc.youden_threshold([0, 1], [1.0, close])
    assert threshold == close
    assert roc.operating_point([0, 1], [1.0, close], threshold).false_positive_rate.value == 0
    labels, columns = data(10, 30, 40, levels=2)
    chosen = roc.operating_point(labels, columns[:, 0], roc.youden_threshold(labels, columns[:, 0]))
    curve = roc.roc_curve(labels, columns[:, 0])
    best = (curve.true_positive_rates - curve.false_positive_rates).max()
    assert chosen.true_positive_rate.value - chosen.false_positive_rate.value == pytest.approx(best)


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5, 0.99])
def test_threshold_keeps_to_a_false_positive_rate_and_uses_it(rate, levels):
    labels, columns = data(11, 10, 40, levels=levels)
    scores = columns[:, 0]
    threshold = roc.threshold_at(labels, scores, rate)
    negatives = scores[labels == 0]
    assert (negatives >= threshold).mean() <= rate
    next_lower = negatives[negatives < threshold].max()
    assert (negatives >= next_lower).mean() > rate
    other = scores.copy()
    other[labels == 1] += 7.0
    assert roc.threshold_at(labels, other, rate) == threshold


def test_operating_point_has_wilson_intervals():
    point = roc.operating_point([1, 1, 1, 1, 0, 0], [5, 4, 3, 1, 3, 0], 3)
    assert (point.threshold, point.true_positive_rate.n, point.false_positive_rate.n) == (3.0, 4, 2)
    assert (point.true_positive_rate.value, point.false_positive_rate.value) == (0.75, 0.5)
    assert round(point.true_positive_rate.low, 3) == 0.301  # Wilson's interval for 3 of 4
    nothing = roc.operating_point([1, 1], [1, 2], np.inf)
    assert (nothing.true_positive_rate.value, nothing.false_positive_rate.n) == (0.0, 0)
    assert math.isnan(nothing.false_positive_rate.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: roc.area([0, 2], [0, 1]),
            "`labels`: expected booleans, or zeros and ones, of shape (n,); received ot",
        ),
        (
            lambda: roc.area([[0, 1]], [0, 1]),
            "`labels`: expected booleans, or zeros and ones, of shape (n,); received sh",
        ),
        (lambda: roc.area(["a", "b"], [0, 1]), "zeros and ones, of shape (n,); received other values."),
        (lambda: roc.area([0, 1], [0, 1, 2]), "`scores`: expected numbers of shape (2,) or (2, k), one row for every"),
        (lambda: roc.area([0, 1], ["a", "b"]), "one row for every label; received shape (2, 1) and dtype <U1."),
        (
            lambda: roc.area([0, 1], [[0, 1], [2, 3]]),
            "`scores`: expected an array of shape (n,); received shape (2, 2).",
        ),
        (lambda: roc.compare([0, 1], [0, 1], [[1], [2]]), "`second`: expected an array of shape (n,); received shape"),
        (lambda: roc.area([0, 1], [0, np.nan]), "received NaN or infinity in 1 of 2 samples, first in sample 1."),
        (
            lambda: roc.area([0, 1], [0, 1], [1]),
            "`clusters`: expected one value for each of 2 samples; received shape (1,).",
        ),
        (
            lambda: roc.youden_threshold([1, 1], [0, 1]),
            "to choose a threshold with; received 2 positive and 0 negative.",
        ),
        (
            lambda: roc.threshold_at([1, 1], [0, 1], 0.1),
            "`labels`: expected negative samples to choose a threshold with",
        ),
        (
            lambda: roc.threshold_at([0, 1], [0, 1], 1.0),
            "`false_positive_rate`: expected a number in [0, 1); received 1",
        ),
        (lambda: roc.operating_point([0, 1], [0, 1], np.nan), "`threshold`: expected a number; received nan."),
        (lambda: roc.operating_point([0, 1], [0, 1], None), "`threshold`: expected a number; received None."),
        (
            lambda: roc.threshold_at([0, 1], [0, 1], "x"),
            "`false_positive_rate`: expected a number in [0, 1); received 'x'",
        ),
        (lambda: roc.areas([0, 1], [[0, 1], [2]]), "`scores`: expected numbers of shape (2,) or (2, k), one row for"),
        (
            lambda: roc.areas([0, [1]], [0, 1]),
            "`labels`: expected booleans, or zeros and ones, of shape (n,); received a",
        ),
        (lambda: roc.area([0, 1], [0, [1]]), "`scores`: expected an array of shape (n,); received a list of other"),
        (
            lambda: roc.area([0, 1], [0, 1], [np.nan, 1.0]),
            "`clusters`: expected names or numbers without gaps; received nan in 1 of 2 samples, first at 0.",
        ),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        call()
