"""Estimates with their interval and the number of observations behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np

from tfcausal.errors import InvalidArgument, message

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval, and n.

    Attributes:
        value: The estimate; NaN where nothing was observed.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of observations.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """The four numbers by name, for JSON."""
        return asdict(self)


def proportion(successes: np.ndarray) -> Estimate:
    """A proportion with its Wilson score interval.

    Reference: E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22 (1927).

    Args:
        successes: Booleans (n,).

    Returns:
        The share of True with its interval; NaN for n = 0.

    Example:
        >>> estimate = proportion(np.array([True, True, True, False]))
        >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
        (0.75, 0.301, 0.954)
    """
    n = len(successes)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    share = float(np.mean(successes))
    z2 = _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Where all or none are successes, an end of the interval is the share itself, but for rounding.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)


def mean(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> Estimate:
    """A mean with its percentile bootstrap interval.

    Args:
        values: Observations (n,); NaN counts as not observed.
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples, at least 1.

    Returns:
        The mean with its interval; NaN where nothing was observed.

    Raises:
        InvalidArgument: `resamples` is not positive.

    Example:
        >>> estimate = mean(np.array([1.0, 3.0, np.nan]))
        >>> estimate.value, estimate.n
        (2.0, 2)
    """
    if resamples < 1:
        raise InvalidArgument(message("resamples", "a positive integer", resamples))
    observed = np.asarray(values, dtype=np.float64)
    observed = observed[~np.isnan(observed)]
    n = len(observed)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    random = np.random.default_rng(seed)
    means = np.array([observed[random.integers(0, n, n)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(observed.mean()), float(low), float(high), n)
