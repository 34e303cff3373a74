"""True masks of the cause: from grey values to zeros and ones, resized, and kept for a share of the images only."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from tfcausal.data.image_set import ImageSet
from tfcausal.errors import DataError, InvalidArgument, message


def binarise_mask(values: np.ndarray) -> np.ndarray:
    """Tell the cause from the rest: everything above half of the mask's own maximum.

    Args:
        values: Grey values of a mask, numbers of shape (height, width), 0 or more.

    Returns:
        bool of shape (height, width).

    Raises:
        DataError: The mask is zero everywhere.

    Example:
        >>> binarise_mask(np.array([[0, 1], [100, 255]]))
        array([[False, False],
               [False,  True]])
    """
    highest = float(values.max())
    if highest <= 0.0:
        raise DataError("the mask is zero everywhere; expected the cause in white (delete the mask if there is none)")
    return values > 0.5 * highest


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask: a new pixel belongs to the cause where the cause covers half of it or more.

    Where that would leave nothing of a small object, the pixel that it covers most is kept.

    Args:
        mask: bool of shape (old height, old width), with at least one True.
        height: New height in pixels.
        width: New width in pixels.

    Returns:
        bool of shape (height, width), with at least one True.

    Example:
        >>> resize_mask(np.eye(4, dtype=bool), 2, 2)
        array([[ True, False],
               [False,  True]])
    """
    if mask.shape == (height, width):
        return mask
    enlarged = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    coverage = np.asarray(enlarged)
    resized = coverage >= 0.5
    if not resized.any():
        resized = np.zeros_like(resized)
        resized[np.unravel_index(coverage.argmax(), coverage.shape)] = True
    return resized


def select_masked(labels: np.ndarray, has_mask: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose which images keep their mask: a seeded share of every class.

    For one seed, the images of a smaller share are among those of a larger one.

    Args:
        labels: Class indices, integers of shape (N,).
        has_mask: Whether an image has a mask, bool of shape (N,).
        share: Share of the masks to keep, in [0, 1].
        seed: Seed of the choice, 0 or more.

    Returns:
        bool of shape (N,): of every class `round(share * masks)` images, at least one where the share is above zero and
        the class has a mask.

    Raises:
        InvalidArgument: An argument is out of range.

    Example:
        >>> chosen = select_masked(np.repeat([0, 1], 10), np.ones(20, dtype=bool), share=0.1, seed=0)
        >>> int(chosen[:10].sum()), int(chosen[10:].sum())
        (1, 1)
    """
    if not 0.0 <= share <= 1.0:
        raise InvalidArgument(message("share", "a share in [0, 1]", share, "Use 0.1 for a tenth of the masks."))
    if seed < 0:
        raise InvalidArgument(message("seed", "0 or more", seed))
    labels, has_mask = np.asarray(labels), np.asarray(has_mask, dtype=bool)
    if labels.ndim != 1 or labels.shape != has_mask.shape:
        raise InvalidArgument(message("has_mask", f"one value per label, shape {labels.shape}", has_mask.shape))
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        # The order does not depend on the share: this nests the choices.
        members = generator.permutation(np.flatnonzero((labels == label) & has_mask))
        count = max(1, round(share * len(members))) if share > 0.0 else 0
        chosen[members[:count]] = True
    return chosen


def with_mask_share(image_set: ImageSet, share: float, seed: int) -> ImageSet:
    """The same split, in which only a share of the masks is known.

    Args:
        image_set: A split.
        share: Share of the masks to keep, in [0, 1], chosen by `select_masked`.
        seed: Seed of the choice, 0 or more.

    Returns:
        The split; images that lost their mask have `has_mask` False and a mask of ones.

    Raises:
        InvalidArgument: The share is out of range.
    """
    kept = select_masked(image_set.labels, image_set.has_mask, share, seed)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, masks = image_set.reader(indices)
        return images, np.where(kept[indices][:, None, None, None], masks, np.float32(1.0))

    return dataclasses.replace(image_set, has_mask=kept, reader=read)
