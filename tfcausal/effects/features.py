"""Features of images to detect attacks by: from the answers of a classifier, causal effects, and effect maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.roc_arguments import array_of

MAP_STATISTICS = ("total_variation", "mean_magnitude", "largest_magnitude", "entropy")


def low_confidence(outputs: Any, multi_label: bool = False) -> np.ndarray:
    """One minus the confidence of a classifier: the plain detector that others are compared with.

    Source: D. Hendrycks and K. Gimpel, *A baseline for detecting misclassified and out-of-distribution examples in
    neural networks*, ICLR 2017: the largest softmax probability. A sigmoid's confidence is max(p, 1 - p), of several
    their mean. Strong attacks make a classifier more confident, not less: the area is then less than one half.

    Args:
        outputs: Probabilities (N, classes).
        multi_label: Whether they are sigmoids; a single column always is one.

    Returns:
        (N,) in [0, 1].

    Raises:
        InvalidArgument: Not probabilities, or of another shape.

    Example:
        >>> low_confidence([[0.75, 0.25], [0.0, 1.0]]).tolist()
        [0.25, 0.0]
    """
    expected = "probabilities of shape (N, classes)"
    array = array_of("outputs", outputs, expected, np.float64)
    if array.ndim != 2 or not array.size or not ((array >= 0) & (array <= 1)).all():
        received = f"shape {array.shape}" if array.ndim != 2 or not array.size else "values outside [0, 1]"
        raise InvalidArgument(message("outputs", expected, received))
    if multi_label or array.shape[1] == 1:
        return np.minimum(array, 1 - array).mean(axis=1)
    return 1 - array.max(axis=1)


def largest_effect(effects: Any) -> np.ndarray:
    """The largest absolute effect in every image: a detector of a single number.

    Args:
        effects: (N, ...).

    Returns:
        (N,).

    Raises:
        InvalidArgument: No effects, or NaN or infinity among them.

    Example:
        >>> largest_effect([[0.25, -0.5], [0.0, 0.125]]).tolist()
        [0.5, 0.125]
    """
    array = _finite("effects", effects, "effects of shape (N, ...)")
    if not array.ndim or not array.size:
        raise InvalidArgument(message("effects", "effects of shape (N, ...), at least one", f"shape {array.shape}"))
    return np.abs(array.reshape(len(array), -1)).max(axis=1)


def map_statistics(maps: Any) -> np.ndarray:
    """What effect maps are like, whatever they show: features of a detector.

    Args:
        maps: (N, height, width, 1), at least two pixels in each direction.

    Returns:
        (N, 4), the columns of :data:`MAP_STATISTICS`: total variation, the mean absolute difference of neighbours
        (below and to the right); mean and largest absolute value; and the entropy of the absolute values as shares of
        their sum, divided by that of a uniform map, in [0, 1], 0 for a map of zeros.

    Raises:
        InvalidArgument: Another shape, or NaN or infinity.

    Example:
        >>> map_statistics(np.array([[0.0, 0.0], [0.0, -4.0]]).reshape(1, 2, 2, 1)).tolist()
        [[2.0, 1.0, 4.0, 0.0]]
    """
    expected = "maps of shape (N, height, width, 1)"
    array = _finite("maps", maps, expected)
    if array.ndim != 4 or array.shape[3] != 1 or min(array.shape[1:3]) < 2 or not len(array):
        raise InvalidArgument(message("maps", expected, f"shape {array.shape}"))
    strength = np.abs(array).reshape(len(array), -1)
    steps = [np.abs(np.diff(array, axis=axis)).reshape(len(array), -1) for axis in (1, 2)]
    total = strength.sum(axis=1, keepdims=True)
    shares = np.divide(strength, total, out=np.zeros_like(strength), where=total > 0)
    surprise = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = np.abs((shares * surprise).sum(axis=1)) / np.log(strength.shape[1])
    variation = np.concatenate(steps, axis=1).mean(axis=1)
    return np.stack([variation, strength.mean(axis=1), strength.max(axis=1), entropy], axis=1)


def _finite(name: str, values: Any, expected: str) -> np.ndarray:
    """Numbers as float64; NaN would become the feature of an image."""
    array = array_of(name, values, expected, np.float64)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise InvalidArgument(message(name, "finite numbers", f"NaN or infinity in {bad} of {array.size} values"))
    return array
