"""Whether a saliency map lies on the cause."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tfcausal.errors import InvalidArgument, message


class MaskEnergy:
    """Share of a map's positive saliency that lies inside the true mask.

    A map that knows nothing of the cause has the mask's area share on average (:meth:`chance`); always show the two
    beside each other.

    Reference: the energy-based pointing game of H. Wang et al., *Score-CAM*, 2020. The positive part is taken of the
    channel sum.

    Attributes:
        name: Name in tables.
        range: Lowest and highest possible value.
        higher_is_better: Which direction is better.

    Example:
        >>> maps = np.array([3.0, 1.0, -9.0, 0.0]).reshape(1, 2, 2, 1)
        >>> masks = np.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
        >>> MaskEnergy()(maps, masks).tolist(), MaskEnergy().chance(masks).tolist()
        ([0.75], [0.25])
    """

    name: ClassVar[str] = "mask_energy"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    def __call__(self, maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Measure maps.

        Args:
            maps: Signed maps (N, height, width, channels).
            masks: True masks of zeros and ones, (N, height, width, 1).

        Returns:
            Shares (N,); NaN for a map without any positive saliency.

        Raises:
            InvalidArgument: The shapes do not go together.
        """
        maps, masks = np.asarray(maps), np.asarray(masks)
        if maps.ndim != 4 or masks.shape != (*maps.shape[:3], 1):
            expected = "masks of shape (N, height, width, 1) for maps of shape (N, height, width, channels)"
            raise InvalidArgument(message("masks", expected, f"masks {masks.shape} and maps {maps.shape}"))
        positive = np.maximum(maps.sum(axis=3, dtype=np.float64), 0)
        total = positive.sum(axis=(1, 2))
        inside = (positive * masks[..., 0]).sum(axis=(1, 2))
        return np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)

    def chance(self, masks: np.ndarray) -> np.ndarray:
        """The value that a uniform map has: the share of the area that each mask covers, (N,)."""
        return np.asarray(masks, dtype=np.float64).mean(axis=(1, 2, 3))
