"""Seeded splits that keep the share of every class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfcausal.errors import InvalidArgument, message


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which the members of every class are spread evenly, so that any slice of it is stratified.

    Args:
        labels: Class indices, integers of shape (N,).
        seed: Seed of the order, 0 or more.

    Returns:
        A permutation of 0 to N - 1, int64 of shape (N,).

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> sorted(labels[stratified_order(labels, seed=3)[:2]].tolist())
        [0, 1]
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((generator.random(len(labels)), position))


def stratified_split(labels: np.ndarray, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Split into parts of given shares and a rest, with at least one member of every class in each part and the rest.

    Args:
        labels: Class indices, integers of shape (N,).
        shares: The share of each part, in (0, 1), in all less than 1.
        seed: Seed of the split, 0 or more.

    Returns:
        Sorted indices by part, and those of the rest under the name `rest`. A class of n members gives
        `round(share * n)` of them to a part, but at least one, and keeps at least one for the rest.

    Raises:
        InvalidArgument: The shares are out of range, or a class has fewer members than there are parts with the rest.

    Example:
        >>> parts = stratified_split(np.array([0] * 8 + [1] * 4), {"test": 0.25}, seed=0)
        >>> len(parts["test"]), len(parts["rest"])
        (3, 9)
    """
    if any(not 0.0 < share < 1.0 for share in shares.values()) or sum(shares.values()) >= 1.0:
        raise InvalidArgument(message("shares", "shares in (0, 1), in all less than 1", dict(shares)))
    labels = np.asarray(labels)
    if not len(labels):
        raise InvalidArgument(message("labels", "at least one label", "none"))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in [*shares, "rest"]}
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) <= len(shares):
            expected = f"at least {len(shares) + 1} members of every class"
            raise InvalidArgument(message("labels", expected, f"{len(members)} of class {label}"))
        sizes = {name: max(1, round(share * len(members))) for name, share in shares.items()}
        while sum(sizes.values()) >= len(members):
            sizes[max(sizes, key=lambda name: sizes[name])] -= 1
        for name, part in zip(parts, np.split(members, np.cumsum(list(sizes.values()))), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(chunks)) for name, chunks in parts.items()}
