from itertools import pairwise

import numpy as np
import pytest

from tfcausal.data.image_set import ImageSet
from tfcausal.data.masks import binarise_mask, resize_mask, select_masked, with_mask_share
from tfcausal.errors import DataError, InvalidArgument

LABELS = np.repeat([0, 1, 2], [100, 40, 3])
HAS_MASK = np.random.default_rng(0).random(143) < 0.7
HAS_MASK[140:] = [True, False, False]


def test_half_of_the_own_maximum_is_not_yet_the_cause():
    np.testing.assert_array_equal(binarise_mask(np.array([[0, 50, 51, 100]])), [[False, False, True, True]])
    with pytest.raises(DataError, match="zero everywhere"):
        binarise_mask(np.zeros((2, 2)))


def test_resizing_keeps_pixels_that_are_covered_by_half():
    mask = np.zeros((4, 6), dtype=bool)
    mask[:2, :3] = True  # covers one block of 2x2 and half of the next
    mask[3, 5] = True  # covers a quarter of a block
    np.testing.assert_array_equal(resize_mask(mask, 2, 3), [[True, True, False], [False, False, False]])


def test_resizing_agrees_with_block_means():
    mask = np.random.default_rng(0).random((60, 40)) < 0.5
    means = mask.reshape(12, 5, 8, 5).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_mask(mask, 12, 8), means >= 0.5)


def test_an_object_that_would_vanish_keeps_the_pixel_it_covers_most():
    mask = np.zeros((40, 40), dtype=bool)
    mask[21:23, 9:11] = True
    mask[22, 11] = True
    resized = resize_mask(mask, 4, 4)
    assert resized.sum() == 1
    assert resized[2, 1]


def test_the_chosen_share_of_every_class():
    for share in (0.1, 0.5, 1.0):
        chosen = select_masked(LABELS, HAS_MASK, share, seed=4)
        assert not np.any(chosen & ~HAS_MASK)
        for label in range(3):
            available = int((HAS_MASK & (label == LABELS)).sum())
            assert chosen[label == LABELS].sum() == max(1, round(share * available))
    assert not select_masked(LABELS, HAS_MASK, 0.0, seed=4).any()
    np.testing.assert_array_equal(select_masked(LABELS, HAS_MASK, 1.0, seed=4), HAS_MASK)


def test_smaller_shares_are_nested_in_larger_ones():
    chosen = [select_masked(LABELS, HAS_MASK, share, seed=4) for share in np.linspace(0, 1, 21)]
    for smaller, larger in pairwise(chosen):
        assert not np.any(smaller & ~larger)


def test_the_choice_is_random_and_seeded():
    np.testing.assert_array_equal(select_masked(LABELS, HAS_MASK, 0.3, 1), select_masked(LABELS, HAS_MASK, 0.3, 1))
    assert np.any(select_masked(LABELS, HAS_MASK, 0.3, 1) != select_masked(LABELS, HAS_MASK, 0.3, 2))


def test_a_class_without_masks_has_none_chosen():
    assert not select_masked(np.zeros(5, dtype=int), np.zeros(5, dtype=bool), 1.0, 0).any()


@pytest.mark.parametrize(
    ("share", "has_mask", "seed", "match"),
    [
        (1.2, HAS_MASK, 0, r"`share`: expected a share in \[0, 1\]; received 1.2"),
        (float("nan"), HAS_MASK, 0, "`share`"),
        (0.5, HAS_MASK[:5], 0, "`has_mask`"),
        (0.5, HAS_MASK, -1, "`seed`"),
    ],
)
def test_bad_arguments(share, has_mask, seed, match):
    with pytest.raises(InvalidArgument, match=match):
        select_masked(LABELS, has_mask, share, seed)


def test_a_split_with_fewer_masks_shows_ones_where_a_mask_is_not_known():
    images = np.random.default_rng(0).random((10, 4, 4, 3), dtype=np.float32)
    masks = np.zeros((10, 4, 4, 1), dtype=np.float32)
    masks[:, 1:3] = 1.0
    whole = ImageSet(
        names=tuple("abcdefghij"),
        labels=np.repeat([0, 1], 5),
        class_names=("left", "right"),
        image_shape=(4, 4, 3),
        has_mask=np.ones(10, dtype=bool),
        reader=lambda indices: (images[indices], masks[indices]),
    )
    part = with_mask_share(whole, 0.4, seed=0)
    assert part.has_mask.sum() == 4
    assert part.names == whole.names
    order = np.array([7, 0, 3, 3, 9, 1, 2, 4, 5, 6, 8])
    read_images, read_masks = part.read(order)
    np.testing.assert_array_equal(read_images, images[order])
    for mask, index in zip(read_masks, order, strict=True):
        np.testing.assert_array_equal(mask, masks[index] if part.has_mask[index] else np.ones((4, 4, 1)))
    assert whole.has_mask.all()
