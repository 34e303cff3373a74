"""Bootstrap intervals of many means at once."""

from __future__ import annotations

import numpy as np

from tfcausal.errors import InvalidArgument, message

_BLOCK_VALUES = 1 << 23


def mean_intervals(
    values: np.ndarray, seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over the first axis with their 95 % percentile bootstrap intervals.

    The resamples are those of :func:`tfcausal.evaluation.statistics.mean` with the same seed, the same ones in every
    column: a column has the interval that it has alone. All resampled means of a block of columns are one product of
    matrices, in memory that does not grow with the number of columns.

    Args:
        values: Observations (n, ...), n >= 1.
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples, at least 1.

    Returns:
        Mean, low and high end, each (...), float64. A single observation has no interval: its ends are NaN.

    Raises:
        InvalidArgument: `resamples` is not positive, `seed` is negative, or there is no observation.

    Example:
        >>> mean, low, high = mean_intervals(np.array([[1.0, 7.0], [3.0, 7.0]]))
        >>> mean.tolist(), low.tolist(), high.tolist()
        ([2.0, 7.0], [1.0, 7.0], [3.0, 7.0])
    """
    if resamples < 1:
        raise InvalidArgument(message("resamples", "a positive integer", resamples))
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidArgument(message("seed", "an integer of at least 0", repr(seed)))
    n = len(values)
    if n == 0:
        raise InvalidArgument(message("values", "at least one observation", "none"))
    columns = np.reshape(values, (n, -1))
    means, lows, highs = (np.empty(columns.shape[1]) for _ in range(3))
    width = max(1, _BLOCK_VALUES // max(n, resamples))
    for start in range(0, columns.shape[1], width):
        block = slice(start, start + width)
        part = columns[:, block].astype(np.float64)
        means[block] = part.mean(axis=0)
        lows[block], highs[block] = _ends(part, seed, resamples)
        # A sum of equal values divided by their number can miss them by rounding.
        constant = (part == part[0]).all(axis=0)
        for ends in (means, lows, highs):
            ends[block] = np.where(constant, part[0], ends[block])
    if n == 1:
        lows[:], highs[:] = np.nan, np.nan
    shape = np.shape(values)[1:]
    return means.reshape(shape), lows.reshape(shape), highs.reshape(shape)


def _ends(part: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    n = len(part)
    random = np.random.default_rng(seed)
    means = np.empty((resamples, part.shape[1]))
    height = max(1, _BLOCK_VALUES // n)
    for start in range(0, resamples, height):
        count = min(height, resamples - start)
        drawn = random.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        means[start : start + count] = times @ part / n
    return np.quantile(means, [0.025, 0.975], axis=0)
