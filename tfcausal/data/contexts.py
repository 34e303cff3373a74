"""Planted shortcuts: which context goes with which image, and how an object is drawn onto its context."""

from __future__ import annotations

import numpy as np

from tfcausal.errors import InvalidArgument, message


def assign_contexts(labels: np.ndarray, num_classes: int, strength: float, seed: int) -> np.ndarray:
    """Draw a context for every image that agrees with its label with a given probability.

    Context k is the one that goes with class k. An image that does not get its own context gets each of the others
    with equal probability.

    Args:
        labels: Class indices, integers of shape (N,), in [0, num_classes).
        num_classes: How many classes, and contexts, there are; 2 or more.
        strength: Probability of the context that goes with the label, in [0, 1].
        seed: Seed of the draw, 0 or more.

    Returns:
        Context indices, int64 of shape (N,), in [0, num_classes).

    Raises:
        InvalidArgument: An argument is out of its range.

    Example:
        >>> assign_contexts(np.array([2, 0, 1]), num_classes=3, strength=1.0, seed=0)
        array([2, 0, 1])
    """
    labels = _checked_labels(labels, num_classes, seed)
    if not 0.0 <= strength <= 1.0:
        raise InvalidArgument(
            message("strength", "a probability in [0, 1]", strength, "Set 0.9 for a strong shortcut.")
        )
    generator = np.random.default_rng(seed)
    agrees = generator.random(len(labels)) < strength
    others = (labels + generator.integers(1, num_classes, size=len(labels))) % num_classes
    return np.where(agrees, labels, others)


def shuffle_contexts(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Draw a context for every image that says nothing about its label.

    The draw is balanced: within a class, and over all images, the counts of two contexts differ by one at most.

    Args:
        labels: Class indices, integers of shape (N,), in [0, num_classes).
        num_classes: How many classes, and contexts, there are; 2 or more.
        seed: Seed of the draw, 0 or more.

    Returns:
        Context indices, int64 of shape (N,), in [0, num_classes).

    Raises:
        InvalidArgument: An argument is out of its range.

    Example:
        >>> contexts = shuffle_contexts(np.array([0, 0, 1, 1]), num_classes=2, seed=0)
        >>> sorted(contexts[:2].tolist()), sorted(contexts[2:].tolist())
        ([0, 1], [0, 1])
    """
    labels = _checked_labels(labels, num_classes, seed)
    generator = np.random.default_rng(seed)
    contexts = np.empty(len(labels), dtype=np.int64)
    cycle = generator.permutation(num_classes)
    start = 0
    for label in range(num_classes):
        members = generator.permutation(np.flatnonzero(labels == label))
        # The cycle goes on where the last class stopped, which balances the contexts over all classes as well.
        contexts[members] = cycle[(start + np.arange(len(members))) % num_classes]
        start += len(members)
    return contexts


def composite(background: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Draw an object of one colour onto a background.

    Args:
        background: Images, float of shape (N, height, width, channels).
        colour: The object's colour in every image, float of shape (N, channels).
        coverage: How far the object hides each pixel, float of shape (N, height, width), in [0, 1].

    Returns:
        `coverage * colour + (1 - coverage) * background`, of the background's shape and type.

    Raises:
        InvalidArgument: The shapes do not go together.

    Example:
        >>> composite(np.zeros((1, 1, 2, 1)), np.ones((1, 1)), np.array([[[0.0, 0.5]]])).ravel()
        array([0. , 0.5])
    """
    if background.ndim != 4 or colour.shape != (len(background), background.shape[3]):
        expected = "one colour (N, channels) for a background (N, height, width, channels)"
        raise InvalidArgument(message("colour", expected, f"shapes {colour.shape} and {background.shape}"))
    if coverage.shape != background.shape[:3]:
        expected = f"one value per pixel of the background, shape {background.shape[:3]}"
        raise InvalidArgument(message("coverage", expected, f"shape {coverage.shape}"))
    alpha = coverage[..., None]
    return (alpha * colour[:, None, None, :] + (1.0 - alpha) * background).astype(background.dtype, copy=False)


def _checked_labels(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    labels = np.asarray(labels)
    if num_classes < 2:
        raise InvalidArgument(message("num_classes", "2 or more", num_classes, "One class has no other context."))
    if seed < 0:
        raise InvalidArgument(message("seed", "0 or more", seed))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidArgument(message("labels", "integers of shape (N,)", f"{labels.dtype} of shape {labels.shape}"))
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        received = f"values from {labels.min()} to {labels.max()}"
        raise InvalidArgument(message("labels", f"class indices in [0, {num_classes})", received))
    return labels.astype(np.int64)
