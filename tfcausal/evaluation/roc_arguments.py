"""Arguments of ROC curves and detectors, checked: labels, scores, groups and numbers."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcausal.errors import InvalidArgument, message


def checked_samples(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels as booleans (n,) and scores as float64 (n, k).

    Raises:
        InvalidArgument: Another shape, labels that are not 0 and 1, or scores that are not finite.

    Example:
        >>> positive, columns = checked_samples([0, 1], [0.5, 0.25])
        >>> positive.tolist(), columns.shape
        ([False, True], (2, 1))
    """
    expected = "booleans, or zeros and ones, of shape (n,)"
    positive = array_of("labels", labels, expected)
    if positive.ndim != 1 or positive.dtype.kind not in "biuf" or not np.isin(positive, (0, 1)).all():
        received = f"shape {positive.shape}" if positive.ndim != 1 else "other values"
        raise InvalidArgument(message("labels", expected, received))
    expected = f"numbers of shape ({len(positive)},) or ({len(positive)}, k), one row for every label"
    columns = array_of("scores", scores, expected)
    columns = columns[:, np.newaxis] if columns.ndim == 1 else columns
    if columns.ndim != 2 or columns.dtype.kind not in "biuf" or len(columns) != len(positive):
        received = f"shape {np.shape(scores)} and dtype {columns.dtype}"
        raise InvalidArgument(message("scores", expected, received))
    columns = columns.astype(np.float64)
    if not np.isfinite(columns).all():
        bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
        received = f"NaN or infinity in {len(bad)} of {len(columns)} samples, first in sample {bad[0]}"
        raise InvalidArgument(message("scores", "finite numbers", received))
    return positive.astype(bool), columns


def checked_column(scores: Any, name: str = "scores") -> np.ndarray:
    """One score for every sample, (n, 1).

    Raises:
        InvalidArgument: Another shape.
    """
    expected = "an array of shape (n,)"
    array = array_of(name, scores, expected)
    if array.ndim != 1:
        raise InvalidArgument(message(name, expected, f"shape {array.shape}"))
    return array[:, np.newaxis]


def checked_groups(groups: Any, count: int, name: str = "groups", of: str = "images") -> np.ndarray:
    """What each of `count` images or samples belongs to, (count,); its own number where `groups` is None.

    A missing name is refused: NaN is equal to nothing, so that what has none would be in no group.

    Args:
        groups: Names or numbers, (count,), or None.
        count: How many there are to be.
        name: What to call the argument in an error.
        of: What is grouped, in words.

    Raises:
        InvalidArgument: Another shape, or a group that is missing or neither a name nor a number.

    Example:
        >>> checked_groups(["a", "b", "a"], 3).tolist()
        ['a', 'b', 'a']
    """
    if groups is None:
        return np.arange(count)
    expected = f"one value for each of {count} {of}"
    # As objects: an array of names would have the names "None" and "nan".
    given = array_of(name, groups, expected, object)
    if given.shape != (count,):
        raise InvalidArgument(message(name, expected, f"shape {given.shape}"))
    wrong = [
        place
        for place, group in enumerate(given)
        if not isinstance(group, (str, bytes, numbers.Real, np.generic)) or group != group
    ]
    if wrong:
        received = f"{given[wrong[0]]!r} in {len(wrong)} of {count} {of}, first at {wrong[0]}"
        remedy = "Give what has no group one of its own, or leave it out."
        raise InvalidArgument(message(name, "names or numbers without gaps", received, remedy))
    return np.asarray(given.tolist())


def checked_rate(name: str, value: Any, expected: str, valid: Callable[[float], bool]) -> float:
    """A number for which something holds.

    Raises:
        InvalidArgument: No number, or one for which it does not hold.

    Example:
        >>> checked_rate("false_positive_rate", 0.25, "a number in [0, 1)", lambda rate: 0 <= rate < 1)
        0.25
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not valid(float(value)):
        raise InvalidArgument(message(name, expected, repr(value)))
    return float(value)


def array_of(name: str, values: Any, expected: str, dtype: Any = None) -> np.ndarray:
    """Values as an array.

    Raises:
        InvalidArgument: They are none, or not of this type.
    """
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError, OverflowError):
        received = f"a {type(values).__name__} of other things, or rows of different lengths"
        raise InvalidArgument(message(name, expected, received)) from None
