"""Means and intervals of more observations than fit into memory: moments of blocks, put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Moments:
    """How many observations there are, their mean, and how far they are from it.

    Attributes:
        n: Number of observations.
        mean: Their mean, (...), float64.
        squares: Sum of their squared distances from the mean, (...), float64.
    """

    n: int
    mean: np.ndarray
    squares: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together: T. F. Chan, G. H. Golub and R. J. LeVeque, *Updating formulae and a pairwise
        algorithm for computing sample variances*, 1979.
        """
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        between = other.mean - self.mean
        return Moments(
            n, self.mean + between * (other.n / n), self.squares + other.squares + between**2 * (self.n * other.n / n)
        )

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % interval of the mean by the normal approximation; NaN for a single observation.

        For a thousand observations and more it differs little from the percentile bootstrap of
        :func:`tfcausal.effects.intervals.mean_intervals`, which needs all of them at once.
        """
        if self.n < 2:
            nothing = np.full(np.shape(self.mean), np.nan)
            return nothing, nothing
        half = _Z * np.sqrt(self.squares / (self.n - 1) / self.n)
        return self.mean - half, self.mean + half


def moments_of(values: np.ndarray) -> Moments:
    """The moments of observations over the first axis.

    Args:
        values: Observations (n, ...), n >= 1.

    Example:
        >>> both = moments_of(np.array([1.0, 2.0])) + moments_of(np.array([6.0]))
        >>> both.n, float(both.mean), float(both.squares)
        (3, 3.0, 14.0)
    """
    exact = np.asarray(values, np.float64)
    mean = exact.mean(axis=0)
    # A sum of equal values divided by their number can miss them by rounding.
    mean = np.where((exact == exact[0]).all(axis=0), exact[0], mean)
    return Moments(len(exact), mean, ((exact - mean) ** 2).sum(axis=0))
