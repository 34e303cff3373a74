"""How well causal effects, effect maps, or plain confidence tell attacked images from clean ones.

The images are split into three parts: a detector is fitted on the first, its threshold chosen on the second, and all
that is reported measured on the third. An image and its attacked versions are always in the same part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isnan, nan
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.roc import (
    Area,
    Comparison,
    OperatingPoint,
    RocCurve,
    area,
    compare,
    operating_point,
    roc_curve,
    threshold_at,
    youden_threshold,
)
from tfcausal.evaluation.roc_arguments import array_of, checked_groups, checked_rate
from tfcausal.evaluation.statistics import proportion
from tfcausal.saliency.arguments import check_integer

Rule = Literal["youden", "false_positive_rate"]
Features = Mapping[str, Any]
PARTS = ("fit", "validation", "test")
_RULES = ("youden", "false_positive_rate")


@dataclass(frozen=True)
class ImageSplit:
    """Which images a detector is fitted on, its threshold is chosen on, and it is tested on.

    Attributes:
        fit: Indices of images.
        validation: Indices of other images.
        test: Indices of other images again.
    """

    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Detection:
    """How well one detector tells the images of one attack from clean ones, measured on the test part.

    Attributes:
        attack: Name of the attack.
        detector: Name of the detector.
        fitted_on: The attack that the detector and its threshold were made with.
        features: Number of features; 0 where a number is used as it is.
        area: The area under the ROC curve with its interval. An image and its attacked version are not independent: it
            takes them, or the images of a group, as clusters.
        n_clean: Number of clean images in the test part.
        n_attacked: Number of attacked images that were used there.
        n_successful: For how many of the test part the attack succeeds; None where this was not said.
        only_successful: Whether attacks that fail were left out, in all three parts.
        point: What the threshold gives: its value, the true and the false positive rate with Wilson intervals. Those
            take the images as independent: with `groups` of several images each they are too narrow.
        curve: The ROC curve.
        scores: The scores of the test part, clean images first.
        labels: Which of them are attacked.
        clusters: The image or group of each.
    """

    attack: str
    detector: str
    fitted_on: str
    features: int
    area: Area
    n_clean: int
    n_attacked: int
    n_successful: int | None
    only_successful: bool
    point: OperatingPoint
    curve: RocCurve = field(repr=False)
    scores: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    clusters: np.ndarray = field(repr=False)

    def row(self) -> dict[str, Any]:
        """The numbers by column, for a row of a table."""
        rates = {"true_positive_rate": self.point.true_positive_rate}
        rates["false_positive_rate"] = self.point.false_positive_rate
        columns: dict[str, Any] = {
            "attack": self.attack,
            "detector": self.detector,
            "fitted_on": self.fitted_on,
            "features": self.features,
            "auc": self.area.value,
            "low": self.area.low,
            "high": self.area.high,
            "n_clean": self.n_clean,
            "n_attacked": self.n_attacked,
            "n_successful": self.n_successful,
            "only_successful": self.only_successful,
            "threshold": self.point.threshold,
        }
        for name, rate in rates.items():
            columns |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return columns

    def against(self, other: Detection) -> Comparison:
        """The area of this detector minus that of another one for the same images, with interval and p-value.

        Raises:
            InvalidArgument: The two were not measured on the same images.
        """
        same = len(self.labels) == len(other.labels) and np.array_equal(self.clusters, other.clusters)
        if self.attack != other.attack or not same:
            expected = f"a detection of {self.attack!r} in the same images"
            raise InvalidArgument(message("other", expected, f"one of {other.attack!r}, or in other images"))
        return compare(self.labels, self.scores, other.scores, self.clusters)


def split_images(count: int, shares: Sequence[float] = (0.4, 0.2), groups: Any = None, seed: int = 0) -> ImageSplit:
    """Split images into three parts at random, group by group.

    Args:
        count: Number of images N; their attacked versions follow them.
        shares: Share of the images, or of the groups, to fit on and to choose a threshold on, in all less than 1; the
            rest is the test part.
        groups: What images have in common that must not be in two parts, such as the patient, (N,), names or numbers
            without gaps; None for nothing.
        seed: Seed of the split, 0 or more.

    Raises:
        InvalidArgument: An argument is outside its range, or there are fewer than three images or groups.

    Example:
        >>> split = split_images(10)
        >>> len(split.fit), len(split.validation), len(split.test)
        (4, 2, 4)
    """
    names = checked_groups(groups, check_integer("count", count, 3))
    check_integer("seed", seed, 0)
    expected = "two shares in (0, 1), in all less than 1"
    given = array_of("shares", shares, expected)
    if given.shape != (2,) or given.dtype.kind != "f" or not (given > 0).all() or not given.sum() < 1:
        raise InvalidArgument(message("shares", expected, repr(shares)))
    distinct = np.unique(names)
    if len(distinct) < 3:
        raise InvalidArgument(message("groups", "at least three groups, one for each part", len(distinct)))
    order = np.random.default_rng(seed).permutation(distinct)
    first = min(max(1, round(shares[0] * len(order))), len(order) - 2)
    second = min(max(1, round(shares[1] * len(order))), len(order) - first - 1)
    parts = np.split(order, [first, first + second])
    return ImageSplit(*(np.flatnonzero(np.isin(names, part)) for part in parts))


def detect(
    clean: Features,
    attacked: Mapping[str, Features],
    split: ImageSplit,
    groups: Any = None,
    successful: Mapping[str, Any] | None = None,
    only_successful: bool = False,
    rule: Rule = "youden",
    false_positive_rate: float = 0.05,
    fitted_on: str | None = None,
    minimum: int = 10,
    seed: int = 0,
) -> list[Detection]:
    """Measure how well every detector finds every attack.

    A detector is a set of features of images, such as those of :mod:`tfcausal.effects.features`. A single number, (N,),
    is used as it is, the larger the more suspicious. Several features, (N, F), go into a logistic regression
    (standardised, L2 with weight 1, both classes weighing the same; F = 1 learns which direction is suspicious), fitted
    on the fitting part. Features are to be measured without knowledge of the true label: for the predicted class, or
    for all classes.

    Args:
        clean: Features of the clean images by detector, each (N,) or (N, F).
        attacked: By attack the same for the attacked versions, in the same order.
        split: Which images are used for what, from :func:`split_images`.
        groups: As for :func:`split_images`; the intervals then take the images of a group as a cluster.
        successful: By attack, whether it changed the answer to the image, booleans (N,).
        only_successful: Whether attacks that fail are left out, in all parts; the clean images stay.
        rule: How the threshold is chosen on the validation part: `youden`, or `false_positive_rate`, the lowest
            threshold that keeps to the rate there.
        false_positive_rate: The rate for that rule.
        fitted_on: An attack to make all detectors and thresholds with, to see what they are worth against one that they
            do not know; None makes those of each attack with that attack.
        minimum: The fewest images that a part must have.
        seed: Seed of the logistic regression.

    Returns:
        One result for every attack and detector. Where so few attacks succeed that a part has less than `minimum`
        attacked images, its numbers are NaN and its counts tell.

    Raises:
        InvalidArgument: Features with NaN, of another shape or for other detectors than the clean ones; groups
            with gaps; too few images in a part; an image or a group in two parts; or an argument outside its range.

    Example:
        >>> random = np.random.default_rng(0)
        >>> clean = {"effects": random.normal(size=(100, 3))}
        >>> attacked = {"fgsm": {"effects": random.normal(size=(100, 3)) + [3.0, 0.0, 0.0]}}
        >>> detection, = detect(clean, attacked, split_images(100))
        >>> detection.area.low > 0.9, detection.n_clean, detection.n_attacked
        (True, 40, 40)
    """
    _check_rule(rule, false_positive_rate)
    check_integer("seed", seed, 0)
    _check_mapping("attacked", attacked, "the features of every attack by its name")
    if not attacked or (fitted_on is not None and fitted_on not in attacked):
        expected = f"None or one of {', '.join(attacked)}" if attacked else "at least one attack"
        name, received = ("fitted_on", repr(fitted_on)) if attacked else ("attacked", "none")
        raise InvalidArgument(message(name, expected, received))
    plain = _checked_features("clean", clean)
    changed = {attack: _checked_features("attacked", features, attack, plain) for attack, features in attacked.items()}
    count = len(next(iter(plain.values())))
    names = checked_groups(groups, count)
    _check_split(split, names, check_integer("minimum", minimum, 2))
    succeeds = _checked_success(successful, attacked, count, only_successful)

    def part(attack: str, detector: str, images: np.ndarray) -> _Part:
        used = images[succeeds[attack][images]] if only_successful else images
        values = np.concatenate([plain[detector][images], changed[attack][detector][used]])
        return _Part(values, np.repeat([False, True], [len(images), len(used)]), names[np.append(images, used)])

    results = []
    for attack in attacked:
        for detector, values in plain.items():
            source = fitted_on or attack
            fit, validation = (part(source, detector, images) for images in (split.fit, split.validation))
            test = part(attack, detector, split.test)
            scores, threshold = np.full(len(test.labels), nan), nan
            if min(each.labels.sum() for each in (fit, validation, test)) >= minimum:
                score = _fitted(fit, seed)
                scores = score(test.values)
                threshold = _threshold(validation.labels, score(validation.values), rule, false_positive_rate)
            measured = _measured(test, scores, threshold)
            used = int(test.labels.sum())
            success = int(succeeds[attack][split.test].sum()) if attack in succeeds else None
            size = 0 if values.ndim == 1 else values.shape[1]
            counts = len(split.test), used, success, only_successful
            kept = scores, test.labels, test.clusters
            results.append(Detection(attack, detector, source, size, measured[0], *counts, *measured[1:], *kept))
    return results


@dataclass(frozen=True)
class _Part:
    """Features of one part of the images, whether each is attacked, and its image or group."""

    values: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray


def _fitted(part: _Part, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """What gives scores to features: larger for attacked images."""
    if part.values.ndim == 1:
        return np.asarray
    regression = LogisticRegression(class_weight="balanced", max_iter=10_000, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), regression).fit(part.values, part.labels)
    return lambda values: np.asarray(pipeline.decision_function(values))


def _threshold(labels: np.ndarray, scores: np.ndarray, rule: Rule, false_positive_rate: float) -> float:
    if rule == "youden":
        return youden_threshold(labels, scores)
    return threshold_at(labels, scores, false_positive_rate)


def _measured(test: _Part, scores: np.ndarray, threshold: float) -> tuple[Area, OperatingPoint, RocCurve]:
    """Area, operating point and curve; of NaN where there are no scores."""
    if not isnan(threshold):
        found = area(test.labels, scores, test.clusters)
        return found, operating_point(test.labels, scores, threshold), roc_curve(test.labels, scores)
    counts = int(test.labels.sum()), int((~test.labels).sum())
    nothing, none = proportion(np.zeros(0, bool)), np.zeros(0)
    return Area(nan, nan, nan, nan, *counts), OperatingPoint(nan, nothing, nothing), RocCurve(none, none, none)


def _check_rule(rule: object, false_positive_rate: float) -> None:
    if rule not in _RULES:
        raise InvalidArgument(message("rule", " or ".join(_RULES), repr(rule)))
    checked_rate("false_positive_rate", false_positive_rate, "a number in [0, 1)", lambda rate: 0 <= rate < 1)


def _check_mapping(name: str, value: object, expected: str) -> None:
    if not isinstance(value, Mapping):
        raise InvalidArgument(message(name, f"a dictionary of {expected}", type(value).__name__))


def _checked_features(
    name: str, features: Features, attack: str | None = None, clean: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Features by detector, float64, all of the same images and, for an attack, of the shapes of the clean ones."""
    name = name if attack is None else f"{name}[{attack!r}]"
    _check_mapping(name, features, "features by detector")
    if not features or (clean is not None and set(features) != set(clean)):
        expected = "the features of at least one detector" if clean is None else f"those of {', '.join(clean)}"
        raise InvalidArgument(message(name, expected, ", ".join(map(str, features)) or "none"))
    arrays: dict[str, np.ndarray] = {}
    for detector in features if clean is None else clean:
        own, numbers = f"{name}[{detector!r}]", "numbers of shape (N,) or (N, features)"
        array = array_of(own, features[detector], numbers)
        received = f"shape {array.shape} and dtype {array.dtype}"
        if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "fiub":
            raise InvalidArgument(message(own, numbers, received))
        if clean is None and len(array) != len(next(iter(arrays.values()), array)):
            raise InvalidArgument(message(own, f"features of {len(next(iter(arrays.values())))} images", received))
        if clean is not None and array.shape != clean[detector].shape:
            expected = f"one row for every clean image, shape {clean[detector].shape}"
            raise InvalidArgument(message(own, expected, received))
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            received = f"NaN or infinity in {len(bad)} of {len(array)} images, first in image {bad[0]}"
            raise InvalidArgument(message(own, "finite numbers", received))
        arrays[detector] = array.astype(np.float64)
    return arrays


def _check_split(split: ImageSplit, names: np.ndarray, minimum: int) -> None:
    count = len(names)
    if not isinstance(split, ImageSplit):
        raise InvalidArgument(message("split", "what split_images gives", type(split).__name__))
    indices = "indices of images (n,)"
    parts = {name: array_of(f"split.{name}", getattr(split, name), indices) for name in PARTS}
    for name, images in parts.items():
        if images.ndim != 1 or (images.size and images.dtype.kind not in "iu"):
            raise InvalidArgument(message(f"split.{name}", indices, f"dtype {images.dtype}"))
        if len(images) < minimum:
            remedy = "Take more images, or other shares."
            raise InvalidArgument(message(f"split.{name}", f"at least {minimum} images", len(images), remedy))
        if images.min() < 0 or images.max() >= count or len(np.unique(images)) < len(images):
            expected = f"indices in [0, {count - 1}], each once"
            raise InvalidArgument(message(f"split.{name}", expected, "others, or one twice"))
    for first, second in combinations(PARTS, 2):
        shared = np.intersect1d(names[parts[first]], names[parts[second]])
        if len(shared):
            expected = "parts without an image or group in common"
            raise InvalidArgument(message("split", expected, f"{shared[0]} in {first} and in {second}"))


def _checked_success(
    successful: Mapping[str, Any] | None, attacked: Mapping[str, Features], count: int, needed: bool
) -> dict[str, np.ndarray]:
    if successful is not None:
        _check_mapping("successful", successful, "booleans by attack")
    expected = f"booleans of shape ({count},)"
    known = {
        attack: array_of(f"successful[{attack!r}]", values, expected) for attack, values in (successful or {}).items()
    }
    missing = [attack for attack in attacked if attack not in known]
    if needed and missing:
        remedy = "Say for which images the attack changes the answer."
        raise InvalidArgument(message("successful", "an entry for every attack", f"none for {missing[0]}", remedy))
    for attack, values in known.items():
        if values.shape != (count,) or values.dtype.kind != "b":
            received = f"shape {values.shape} and dtype {values.dtype}"
            raise InvalidArgument(message(f"successful[{attack!r}]", expected, received))
    return known
