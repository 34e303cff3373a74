"""Accuracy by group: where a classifier that is right on average is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.statistics import Estimate, proportion


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy by group, and the worst of the groups that are large enough.

    Attributes:
        groups: Accuracy of every group, by name.
        worst: Accuracy of the worst group of at least the minimum size; NaN with n = 0 if no group is large enough.
        worst_name: Its name; empty if there is none.
        minimum_size: The smallest group that can be the worst.
    """

    groups: dict[str, Estimate]
    worst: Estimate
    worst_name: str
    minimum_size: int


def group_accuracy(correct: np.ndarray, groups: Mapping[str, np.ndarray], minimum_size: int = 10) -> GroupAccuracy:
    """Accuracy within every combination of attributes.

    Reference: worst-group accuracy as in S. Sagawa et al., *Distributionally robust neural networks for group shifts*,
    2020. The minimum size keeps a group of a few images from deciding.

    Args:
        correct: Whether each prediction is right, booleans (N,).
        groups: Attributes by name, each with one value per image (N,); a group is a combination of their values.
        minimum_size: The smallest group that can be the worst, at least 1.

    Returns:
        Every group and the worst of them.

    Raises:
        InvalidArgument: No attribute, an attribute of another length, or a minimum size below 1.

    Example:
        >>> correct = np.array([True, True, False, True])
        >>> result = group_accuracy(correct, {"label": np.array(["a", "a", "b", "b"])}, minimum_size=2)
        >>> result.worst_name, result.worst.value
        ('label b', 0.5)
    """
    if not groups:
        raise InvalidArgument(message("groups", "at least one attribute", "none"))
    if minimum_size < 1:
        raise InvalidArgument(message("minimum_size", "a positive integer", minimum_size))
    for name, values in groups.items():
        if len(values) != len(correct):
            raise InvalidArgument(message(f"groups[{name!r}]", f"{len(correct)} values", f"{len(values)}"))
    names = np.array(
        [
            ", ".join(f"{name} {value}" for name, value in zip(groups, row, strict=True))
            for row in zip(*groups.values(), strict=True)
        ],
        dtype=object,
    )
    accuracies = {str(name): proportion(correct[names == name]) for name in sorted(set(names))}
    large = {name: accuracy for name, accuracy in accuracies.items() if accuracy.n >= minimum_size}
    if not large:
        return GroupAccuracy(accuracies, proportion(np.zeros(0, bool)), "", minimum_size)
    worst_name = min(large, key=lambda name: large[name].value)
    return GroupAccuracy(accuracies, large[worst_name], worst_name, minimum_size)
