"""ROC curves: the area under them with its interval, paired comparisons, thresholds, and what a threshold gives.

A sample counts as positive where its score is at least the threshold. What is undefined, such as the area where one
class is missing, is NaN and never a number that looks like a result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import erfc, exp, isnan, log, nan, sqrt
from typing import Any

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.roc_arguments import checked_column, checked_groups, checked_rate, checked_samples
from tfcausal.evaluation.statistics import Estimate, proportion

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curves of several scores of the same samples.

    Attributes:
        values: The areas (k,).
        covariance: Their covariance (k, k).
        positives: Number of positive samples.
        negatives: Number of negative samples.
        clusters: Clusters with positive samples, and clusters with negative ones.
    """

    values: np.ndarray
    covariance: np.ndarray
    positives: int
    negatives: int
    clusters: tuple[int, int]


@dataclass(frozen=True)
class Area:
    """The area under one ROC curve with its 95 % interval.

    Attributes:
        value: The area in [0, 1]: the probability that a positive sample scores higher than a negative one, ties
            counting one half; NaN where a class is missing.
        low: Lower end of the interval; NaN where a class has fewer than two clusters.
        high: Upper end of the interval.
        standard_error: Standard error of the area.
        positives: Number of positive samples.
        negatives: Number of negative samples.
    """

    value: float
    low: float
    high: float
    standard_error: float
    positives: int
    negatives: int

    def as_dict(self) -> dict[str, float | int]:
        """The numbers by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The difference of two areas under ROC curves of the same samples, with its 95 % interval and two-sided p-value.

    Attributes:
        difference: First area minus second.
        low: Lower end of the interval, at least -1.
        high: Upper end of the interval, at most 1.
        z: The difference in standard errors.
        p: Probability of a difference at least as large where the areas are the same; 1 where the scores rank alike.
    """

    difference: float
    low: float
    high: float
    z: float
    p: float


@dataclass(frozen=True)
class RocCurve:
    """The points of an ROC curve, one for every threshold that changes an answer.

    Attributes:
        thresholds: Infinity (nothing is positive), and the scores that occur, falling, (points,).
        false_positive_rates: Share of the negative samples that score at least the threshold; NaN without any.
        true_positive_rates: Share of the positive samples that do.
    """

    thresholds: np.ndarray
    false_positive_rates: np.ndarray
    true_positive_rates: np.ndarray


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives.

    Attributes:
        threshold: From this score on a sample counts as positive.
        true_positive_rate: Share of the positive samples that do (sensitivity), with its Wilson interval and their n.
        false_positive_rate: Share of the negative samples that do (1 - specificity).
    """

    threshold: float
    true_positive_rate: Estimate
    false_positive_rate: Estimate


def areas(labels: Any, scores: Any, clusters: Any = None) -> Areas:
    """Areas under ROC curves and their covariance.

    Sources: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, *Comparing the areas under two or more correlated
    receiver operating characteristic curves*, Biometrics 44 (1988), in the O(n log n) form of X. Sun and W. Xu, IEEE
    Signal Processing Letters 21 (2014). With clusters: N. A. Obuchowski, *Nonparametric analysis of clustered ROC curve
    data*, Biometrics 53 (1997), which is DeLong's where every cluster is one sample.

    Args:
        labels: Whether each sample is positive: booleans, or zeros and ones, (n,).
        scores: Scores (n,) or (n, k), finite; a larger one speaks for positive.
        clusters: What samples that are not independent have in common, (n,), for instance the patient or the image of
            which one sample is the clean and one the attacked version; None takes them all as independent.

    Returns:
        The areas; NaN where a class is missing, and a covariance of NaN where one has fewer than two clusters.

    Raises:
        InvalidArgument: Another shape, labels that are not 0 and 1, scores that are not finite, or clusters with
            gaps (None or NaN).

    Example:
        >>> result = areas([0, 0, 1, 1], [[0.1, 0.3], [0.4, 0.2], [0.35, 0.1], [0.8, 0.4]])
        >>> result.values.tolist()
        [0.75, 0.5]
    """
    positive, columns = checked_samples(labels, scores)
    names = checked_groups(clusters, len(positive), "clusters", "samples")
    first, second = columns[positive], columns[~positive]
    m, n, k = len(first), len(second), columns.shape[1]
    counts = len(np.unique(names[positive])), len(np.unique(names[~positive]))
    if not m or not n:
        return Areas(np.full(k, nan), np.full((k, k), nan), m, n, counts)
    above = (_midranks(columns)[positive] - _midranks(first)) / n  # share of the negatives below each positive
    below = 1.0 - (_midranks(columns)[~positive] - _midranks(second)) / m  # share of the positives above each negative
    values = above.mean(axis=0)
    return Areas(values, _covariance(above - values, below - values, names, positive, counts), m, n, counts)


def _covariance(
    above: np.ndarray, below: np.ndarray, names: np.ndarray, positive: np.ndarray, counts: tuple[int, int]
) -> np.ndarray:
    """Obuchowski's covariance from the centred components of the positive and of the negative samples."""
    (m, k), n = above.shape, len(below)
    if min(counts) < 2:
        return np.full((k, k), nan)
    distinct, cluster = np.unique(names, return_inverse=True)
    ones, zeros = np.zeros((len(distinct), k)), np.zeros((len(distinct), k))
    np.add.at(ones, cluster[positive], above)
    np.add.at(zeros, cluster[~positive], below)
    ones, zeros = ones / m, zeros / n
    crossed = ones.T @ zeros * len(distinct) / (len(distinct) - 1)
    of_ones = ones.T @ ones * counts[0] / (counts[0] - 1)
    of_zeros = zeros.T @ zeros * counts[1] / (counts[1] - 1)
    return of_ones + of_zeros + crossed + crossed.T


def area(labels: Any, scores: Any, clusters: Any = None) -> Area:
    """The area under an ROC curve with its 95 % interval.

    The interval is DeLong's on the scale of the logit, so that it stays within [0, 1] (M. Pohar Perme and D. Manevski,
    *Confidence intervals for the Mann-Whitney test*, Statistical Methods in Medical Research 28, 2019). Where the
    variance is 0 (complete separation, scores that are all the same) it says nothing; the interval is then the score
    interval of R. G. Newcombe, *Confidence intervals for an effect size measure based on the Mann-Whitney statistic*,
    part 2, Statistics in Medicine 25 (2006), method 5, with clusters as samples.

    Arguments and errors are those of :func:`areas`, for one score, (n,).

    Example:
        >>> result = area([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.3, 0.7, 0.8])
        >>> round(result.value, 3), round(result.low, 3), round(result.high, 3)
        (0.889, 0.261, 0.995)
    """
    result = areas(labels, checked_column(scores), clusters)
    value, variance = float(result.values[0]), float(result.covariance[0, 0])
    if isnan(variance):
        return Area(value, nan, nan, nan, result.positives, result.negatives)
    error = sqrt(max(0.0, variance))
    rounding = 1e-12 * value * (1 - value) / (result.positives + result.negatives)
    if variance <= rounding:
        low, high = _score_bound(value, result.clusters), 1 - _score_bound(1 - value, result.clusters)
    else:
        centre, half = log(value / (1 - value)), _Z_95 * error / (value * (1 - value))
        low, high = _logistic(centre - half), _logistic(centre + half)
    return Area(value, low, high, error, result.positives, result.negatives)


def _logistic(value: float) -> float:
    return 1 / (1 + exp(-value)) if value > 0 else exp(value) / (1 + exp(value))


def _score_bound(value: float, counts: tuple[int, int]) -> float:
    """The smallest area from which the one measured is no more than 1.96 of Newcombe's standard errors away."""
    size = sum(counts) / 2 - 1
    outside, inside = 0.0, value
    for _ in range(60):
        middle = (outside + inside) / 2
        spread = 1 + size * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        variance = middle * (1 - middle) * spread / (counts[0] * counts[1])
        if (value - middle) ** 2 < _Z_95**2 * variance:
            inside = middle
        else:
            outside = middle
    return inside


def compare(labels: Any, first: Any, second: Any, clusters: Any = None) -> Comparison:
    """Compare the areas under the ROC curves of two scores of the same samples (paired; DeLong's test).

    Arguments and errors are those of :func:`areas`, with scores (n,) each.

    Returns:
        The difference with its Wald interval, cut at -1 and 1. Where both rank the samples alike the variance is 0 and
        p is 1; where it is 0 for areas that differ (one separates completely, one is constant) DeLong's test does not
        apply, and interval, z and p are NaN, as they are without two clusters of each class.

    Example:
        >>> result = compare([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.3, 0.7, 0.8], [0.2, 0.7, 0.1, 0.4, 0.3, 0.8])
        >>> round(result.difference, 3), round(result.p, 3)
        (0.111, 0.724)
    """
    result = areas(
        labels, np.concatenate([checked_column(first, "first"), checked_column(second, "second")], axis=1), clusters
    )
    difference = float(result.values[0] - result.values[1])
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ result.covariance @ contrast)
    if isnan(variance):
        return Comparison(difference, nan, nan, nan, nan)
    if variance <= 1e-12 * float(np.trace(result.covariance)):
        same = abs(difference) < 1e-12
        return Comparison(difference, 0.0, 0.0, 0.0, 1.0) if same else Comparison(difference, nan, nan, nan, nan)
    error = sqrt(variance)
    z = difference / error
    low, high = max(-1.0, difference - _Z_95 * error), min(1.0, difference + _Z_95 * error)
    return Comparison(difference, low, high, z, erfc(abs(z) / sqrt(2)))


def roc_curve(labels: Any, scores: Any) -> RocCurve:
    """Every point of an ROC curve; arguments and errors are those of :func:`areas`, for one score, (n,).

    Example:
        >>> curve = roc_curve([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        >>> curve.thresholds.tolist()
        [inf, 0.8, 0.4, 0.1]
        >>> curve.true_positive_rates.tolist(), curve.false_positive_rates.tolist()
        ([0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0])
    """
    positive, columns = checked_samples(labels, checked_column(scores))
    thresholds, hits, alarms = _counted(positive, columns[:, 0])
    m, n = hits[-1], alarms[-1]
    nothing = np.full(len(thresholds), nan)
    return RocCurve(thresholds, alarms / n if n else nothing, hits / m if m else nothing)


def youden_threshold(labels: Any, scores: Any) -> float:
    """The threshold with the largest true positive rate minus false positive rate.

    Source: W. J. Youden, *Index for rating diagnostic tests*, Cancer 3 (1950). Of thresholds that are as good the
    highest is taken, the one with the fewest false alarms. It lies halfway between the score from which samples count
    as positive and the next lower one, so that it favours neither class in other data.

    Args:
        labels: As for :func:`areas`, of both classes.
        scores: Scores (n,), finite: those of a validation split, never of the test.

    Returns:
        The threshold; infinity where it is best to call nothing positive.

    Raises:
        InvalidArgument: A class is missing; or as for :func:`areas`.

    Example:
        >>> youden_threshold([0, 0, 1, 1], [0.0, 0.25, 0.75, 1.0])
        0.5
    """
    positive, columns = checked_samples(labels, checked_column(scores))
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        received = f"{m} positive and {n} negative"
        raise InvalidArgument(message("labels", "samples of both classes to choose a threshold with", received))
    thresholds, hits, alarms = _counted(positive, columns[:, 0])
    return _between(thresholds, int(np.argmax(hits * n - alarms * m)))


def threshold_at(labels: Any, scores: Any, false_positive_rate: float) -> float:
    """The lowest threshold that keeps to a false positive rate on the given samples.

    Args:
        labels: As for :func:`areas`, with negative samples; the others have no influence.
        scores: Scores (n,), finite: those of a validation split, never of the test.
        false_positive_rate: The largest share of the negative samples at or above the threshold, in [0, 1).

    Returns:
        The threshold, halfway between two scores of negative samples, or just above the highest of them.

    Raises:
        InvalidArgument: There is no negative sample, or the rate is outside its range; or as for :func:`areas`.

    Example:
        >>> threshold_at([0, 0, 0, 0, 1], [0.0, 0.5, 0.25, 1.0, 2.0], 0.25)
        0.75
    """
    rate = checked_rate("false_positive_rate", false_positive_rate, "a number in [0, 1)", lambda rate: 0 <= rate < 1)
    positive, columns = checked_samples(labels, checked_column(scores))
    negatives = columns[~positive, 0]
    if not len(negatives):
        raise InvalidArgument(message("labels", "negative samples to choose a threshold with", "positive ones only"))
    thresholds, _, alarms = _counted(np.zeros(len(negatives), bool), negatives)
    kept = int(np.flatnonzero(alarms <= rate * len(negatives) + 1e-9)[-1])
    return _between(thresholds, kept) if kept else float(np.nextafter(thresholds[1], np.inf))


def operating_point(labels: Any, scores: Any, threshold: float) -> OperatingPoint:
    """True and false positive rate at a threshold that was chosen elsewhere, with Wilson intervals.

    The intervals take all samples of a class as independent. Where several are of one cluster, such as the images of a
    patient, they are too narrow, unlike those of :func:`area`, which knows the clusters.

    Args:
        labels: As for :func:`areas`.
        scores: Scores (n,), finite.
        threshold: From this score on a sample counts as positive; not NaN.

    Raises:
        InvalidArgument: The threshold is NaN or no number; or as for :func:`areas`.

    Example:
        >>> point = operating_point([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.8], 0.5)
        >>> point.true_positive_rate.value, point.false_positive_rate.value
        (0.5, 0.5)
    """
    threshold = checked_rate("threshold", threshold, "a number", lambda number: not isnan(number))
    positive, columns = checked_samples(labels, checked_column(scores))
    called = columns[:, 0] >= threshold
    return OperatingPoint(threshold, proportion(called[positive]), proportion(called[~positive]))


def _counted(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, falling from infinity, and how many positive and negative samples score at least as much."""
    thresholds, place = np.unique(-scores, return_inverse=True)
    hits = np.bincount(place[positive], minlength=len(thresholds)).cumsum()
    alarms = np.bincount(place[~positive], minlength=len(thresholds)).cumsum()
    return np.append(np.inf, -thresholds), np.append(0, hits), np.append(0, alarms)


def _between(thresholds: np.ndarray, chosen: int) -> float:
    """Halfway from a threshold down to the next one, and above that one for certain."""
    if chosen in (0, len(thresholds) - 1):
        return float(thresholds[chosen])
    low, high = thresholds[chosen + 1], thresholds[chosen]
    return float(max(low + (high - low) / 2, np.nextafter(low, np.inf)))


def _midranks(columns: np.ndarray) -> np.ndarray:
    """Ranks from 1 on within every column; equal values share the mean of theirs."""
    ranks = np.empty(columns.shape)
    for place, column in enumerate(columns.T):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks[:, place] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks
