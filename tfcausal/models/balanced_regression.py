"""The arithmetic of last-layer retraining (DFR): L1 logistic regression on features, with all groups equally large.

Source: P. Kirichenko, P. Izmailov and A. G. Wilson, *Last Layer Re-Training is Sufficient for Robustness to Spurious
Correlations* (deep feature reweighting), 2022, and the settings of its published code.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.checks import require_number
from tfcausal.saliency.arguments import check_integer

#: Candidates for the inverse strength of the L1 penalty: the published ones.
INVERSE_STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-3


class LinearHead(NamedTuple):
    """The weights of a layer that turns features into logits, and how they were chosen.

    Attributes:
        kernel: (features, outputs).
        bias: (outputs,); zeros where there is to be none.
        inverse_strength: The inverse strength of the L1 penalty, `C` of scikit-learn: one, for a multi-label head one
            for every label.
        selection_accuracy: With it, the accuracy in the worst group among the samples that chose it; NaN where there
            was a single candidate. As many as inverse strengths.
    """

    kernel: np.ndarray
    bias: np.ndarray
    inverse_strength: tuple[float, ...]
    selection_accuracy: tuple[float, ...]


def balanced_linear_head(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Any = None,
    *,
    outputs: int,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
    selection_share: float = 0.5,
    subsets: int = 10,
    bias: bool = True,
    seed: int = 0,
) -> LinearHead:
    """L1 logistic regression on standardised features, averaged over random subsets in which all groups are equal.

    To a subset every group gives as many samples as the smallest group has. The strength of the penalty is chosen on a
    part of each group by the accuracy of the worst one (among equals by the mean over the groups, then the strongest
    penalty), from one subset of the other part; with it, `subsets` regressions on subsets of all samples are averaged.

    Departures from the publication. The part that chooses is drawn from each group by itself, so that none is missing
    in it; there are no class weights to choose; more than two classes share one softmax regression.

    Args:
        features: (N, features), finite.
        labels: As :func:`check_labels` gives them.
        groups: Integers or strings (N,); balanced are the pairs of a class and one of these. None: the classes.
        outputs: Number of logits: one per class or label, or 1 for two classes.
        inverse_strengths: Candidates for the inverse strength of the penalty, positive.
        selection_share: Share of each group that chooses among them, in (0, 1).
        subsets: Number of regressions that are averaged, at least 1.
        bias: Whether the head has a bias; without one, features are scaled and not centred.
        seed: Seed of the split, the subsets and the solver, at least 0.

    Returns:
        The head, for features as they were given.

    Raises:
        InvalidArgument: Features that are not finite or not as many as labels, a group that is too small, or an
            argument outside its range.

    Example:
        >>> features = np.array([[0.0], [1.0], [2.0], [3.0]] * 5)
        >>> head = balanced_linear_head(features, features[:, 0].astype(int) // 2, outputs=2, inverse_strengths=[1.0])
        >>> (features @ head.kernel + head.bias).argmax(axis=1)[:4].tolist()
        [0, 0, 1, 1]
    """
    check_options(inverse_strengths, selection_share, subsets, seed)
    of_groups = balanced_groups(labels, groups, choice=len(inverse_strengths) > 1)
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) != len(labels) or not np.isfinite(values).all():
        received = f"shape {values.shape}" if np.isfinite(values).all() else "NaN or infinity"
        expected = f"finite values of shape ({len(labels)}, features)"
        raise InvalidArgument(message("features", expected, received))
    centre = values.mean(axis=0) if bias else np.zeros(values.shape[1])
    scale = np.sqrt(np.square(values - centre).mean(axis=0))
    scale[scale <= 1e-6 * np.abs(values).max(axis=0)] = 1.0  # what varies by rounding alone is constant
    values = (values - centre) / scale

    kernels, offsets, chosen, accuracies = [], [], [], []
    for number, of_label in enumerate(_regressions(labels)):
        random = np.random.default_rng([seed, number])
        regression = _Regression(values, of_label, of_groups[number], bias, random)
        strength, accuracy = float(inverse_strengths[0]), nan
        if len(inverse_strengths) > 1:
            strength, accuracy = regression.best(sorted(inverse_strengths), selection_share)
        kernel, offset = regression.averaged(strength, subsets)
        kernels.append(kernel)
        offsets.append(offset)
        chosen.append(strength)
        accuracies.append(accuracy)
    kernel, offset = np.concatenate(kernels, axis=1), np.concatenate(offsets)
    if labels.ndim == 1 and outputs == 2:  # two logits whose difference is the single one of the regression
        kernel, offset = np.hstack([-kernel / 2, kernel / 2]), np.hstack([-offset / 2, offset / 2])
    kernel = kernel / scale[:, None]
    return LinearHead(kernel, offset - centre @ kernel, tuple(chosen), tuple(accuracies))


def check_labels(labels: Any, count: int, outputs: int, multi_label: bool) -> np.ndarray:
    """The labels of a held-out set as integers.

    Args:
        labels: Class indices (N,) or (N, 1), one-hot rows (N, classes), or rows of 0 and 1 (N, labels).
        count: Number of images N.
        outputs: Number of logits.
        multi_label: Whether each logit is a label of its own.

    Returns:
        Class indices (N,), or rows of 0 and 1 (N, labels) for a multi-label head.

    Raises:
        InvalidArgument: Another shape, other values, or a class without images.

    Example:
        >>> check_labels([[0, 1], [1, 0]], 2, outputs=2, multi_label=False).tolist()
        [1, 0]
    """
    classes = 2 if multi_label else max(outputs, 2)
    expected = f"class indices in [0, {classes - 1}] of shape ({count},)"
    if multi_label:
        expected = f"rows of 0 and 1 of shape ({count}, {outputs})"
    elif outputs > 1:
        expected += f", or one-hot rows of shape ({count}, {outputs})"
    try:
        values = np.asarray(labels)
    except ValueError:
        raise InvalidArgument(message("labels", expected, "rows of different lengths")) from None
    if values.dtype.kind not in "fiub" or not (np.isfinite(values) & (values == np.floor(values))).all():
        raise InvalidArgument(message("labels", expected, "values that are no integers"))
    values = values.astype(np.int64)
    if not multi_label and values.shape == (count, 1):
        values = values[:, 0]
    if not multi_label and outputs > 1 and values.shape == (count, outputs):
        if not (np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()):
            raise InvalidArgument(message("labels", expected, "rows that have not a single 1 among zeros"))
        values = values.argmax(axis=1)
    if values.shape != ((count, outputs) if multi_label else (count,)):
        raise InvalidArgument(message("labels", expected, f"shape {values.shape}"))
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        raise InvalidArgument(message("labels", expected, f"the label {outside[0]}"))
    for number, of_label in enumerate(_regressions(values)):
        missing = np.setdiff1d(np.arange(classes), of_label)
        if missing.size:
            name = f"images with {missing[0]} for label {number}" if multi_label else f"images of class {missing[0]}"
            remedy = "Add some to the held-out set: a class without images cannot be learned."
            raise InvalidArgument(message("labels", "images of every class", f"no {name}", remedy))
    return values


def balanced_groups(labels: np.ndarray, groups: Any, choice: bool) -> list[np.ndarray]:
    """Which of the groups to be balanced every sample belongs to: the pairs of a class and a group that occur.

    Args:
        labels: As :func:`check_labels` gives them.
        groups: Integers or strings (N,), or None for a single one.
        choice: Whether a part of each group is left out to choose the penalty.

    Returns:
        Numbers from 0 on, (N,), for every regression: one, for a multi-label head one per label.

    Raises:
        InvalidArgument: Another shape or type, or a group that is too small.

    Example:
        >>> balanced_groups(np.array([0, 0, 1]), ["a", "b", "a"], choice=False)[0].tolist()
        [0, 1, 2]
    """
    names, of_sample = np.zeros(1, np.int64), np.zeros(len(labels), np.int64)
    if groups is not None:
        given = np.asarray(groups)
        usable = given.dtype.kind in "iubUS" or (given.dtype.kind == "f" and np.isfinite(given).all())
        if given.shape != (len(labels),) or not usable:
            received = f"shape {given.shape} and dtype {given.dtype}" if usable else f"dtype {given.dtype} or NaN"
            raise InvalidArgument(message("groups", f"integers or strings of shape ({len(labels)},)", received))
        names, of_sample = np.unique(given, return_inverse=True)
    numbers = []
    for number, of_label in enumerate(_regressions(labels)):
        pairs, balanced, sizes = np.unique(of_label * len(names) + of_sample, return_inverse=True, return_counts=True)
        least, smallest = 2 if choice else 1, int(sizes.argmin())
        if sizes[smallest] < least:
            value, group = divmod(int(pairs[smallest]), len(names))
            name = f"class {value}" if labels.ndim == 1 else f"label {number} = {value}"
            name += "" if groups is None else f" in group {names[group]}"
            expected = "at least 2 images in every group, to learn from one part and choose the penalty by the other"
            remedy = "Add images of it, merge groups, or give a single number in `inverse_strengths`."
            raise InvalidArgument(message("groups", expected, f"{sizes[smallest]} of {name}", remedy))
        numbers.append(balanced)
    return numbers


def check_options(inverse_strengths: Any, selection_share: Any, subsets: Any, seed: Any) -> None:
    """Check the arguments of :func:`balanced_linear_head` that are not data.

    Raises:
        InvalidArgument: One of them is outside its range.
    """
    expected = "a sequence of finite positive numbers"
    if not isinstance(inverse_strengths, (Sequence, np.ndarray)) or len(inverse_strengths) == 0:
        raise InvalidArgument(message("inverse_strengths", expected, repr(inverse_strengths)))
    for strength in inverse_strengths:
        require_number("inverse_strengths", strength, expected, lambda number: 0 < number < inf)
    require_number("selection_share", selection_share, "a number between 0 and 1", lambda number: 0 < number < 1)
    check_integer("subsets", subsets)
    check_integer("seed", seed, least=0)


def _regressions(labels: np.ndarray) -> list[np.ndarray]:
    """The class indices of every regression: one, for a multi-label head one per label."""
    return list(labels.T) if labels.ndim == 2 else [labels]


class _Regression:
    """Logistic regression of one choice, on subsets in which all groups are equal."""

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, bias: bool, random: np.random.Generator
    ) -> None:
        self.features, self.labels, self.bias, self.random = features, labels, bias, random
        self.members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]

    def best(self, strengths: Sequence[float], share: float) -> tuple[float, float]:
        """The inverse strength that is best for the worst group of a part that is left out, and the accuracy there."""
        fitting, selecting = [], []
        for members in self.members:
            shuffled = self.random.permutation(members)
            left_out = int(np.clip(round(share * len(members)), 1, len(members) - 1))
            selecting.append(shuffled[:left_out])
            fitting.append(shuffled[left_out:])
        subset = self._balanced(fitting)
        results = []
        for strength in strengths:
            kernel, offset = self._fitted(subset, strength)
            correct = self._predicted(kernel, offset) == self.labels
            accuracies = [float(correct[members].mean()) for members in selecting]
            results.append((min(accuracies), float(np.mean(accuracies))))
        best = max(range(len(results)), key=results.__getitem__)  # the first of equals: the strongest penalty
        return float(strengths[best]), results[best][0]

    def averaged(self, strength: float, subsets: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean kernel (features, columns) and bias (columns,) over regressions on random balanced subsets."""
        fitted = [self._fitted(self._balanced(self.members), strength) for _ in range(subsets)]
        return np.mean([kernel for kernel, _ in fitted], axis=0), np.mean([offset for _, offset in fitted], axis=0)

    def _balanced(self, members: Sequence[np.ndarray]) -> np.ndarray:
        size = min(len(group) for group in members)
        return np.concatenate([self.random.choice(group, size, replace=False) for group in members])

    def _fitted(self, subset: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        regression = LogisticRegression(
            l1_ratio=1.0,
            C=strength,
            solver="liblinear" if self.labels.max() == 1 else "saga",
            fit_intercept=self.bias,
            tol=_TOLERANCE,
            max_iter=_MAX_ITERATIONS,
            random_state=int(self.random.integers(2**31)),
        )
        with warnings.catch_warnings():
            # What still moves after so many iterations are weights of a penalty too weak to settle them.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(self.features[subset], self.labels[subset])
        return regression.coef_.T, np.broadcast_to(regression.intercept_, len(regression.coef_))

    def _predicted(self, kernel: np.ndarray, offset: np.ndarray) -> np.ndarray:
        logits = self.features @ kernel + offset
        return logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
