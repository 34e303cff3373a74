"""Masks of random blocks, against the definition of the grid pixel by pixel."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.interventions.masking import random_blocks, remove


def blocks_of(mask: np.ndarray, blocks: tuple[int, int]) -> np.ndarray:
    """The masks of every image by block, (N, rows, columns); a block that is masked in part fails."""
    count, height, width, _ = mask.shape
    result = np.zeros((count, *blocks))
    for row in range(blocks[0]):
        for column in range(blocks[1]):
            # A pixel belongs to the block in which its upper left corner lies.
            inside_rows = [y for y in range(height) if row <= y * blocks[0] / height < row + 1]
            inside_columns = [x for x in range(width) if column <= x * blocks[1] / width < column + 1]
            block = mask[:, inside_rows][:, :, inside_columns, 0]
            assert (block == block[:, :1, :1]).all()
            assert abs(len(inside_rows) - height / blocks[0]) < 1
            assert abs(len(inside_columns) - width / blocks[1]) < 1
            result[:, row, column] = block[:, 0, 0]
    return result


@pytest.mark.parametrize(
    ("size", "blocks", "share", "expected"),
    [
        ((20, 30), (10, 10), 0.1, 10),
        ((28, 28), (10, 10), 0.1, 10),
        ((7, 5), (3, 5), 0.5, 8),
        ((10, 10), (10, 10), 1.0, 100),
        ((10, 10), (10, 10), 0.001, 1),
        ((3, 4), (1, 1), 0.2, 1),
    ],
)
def test_the_share_of_the_blocks_is_masked_whole(size, blocks, share, expected):
    mask = random_blocks(6, size, share, blocks)
    assert mask.shape == (6, *size, 1)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(blocks_of(mask, blocks).sum(axis=(1, 2)), expected)


def test_a_tenth_of_the_area_by_default():
    assert random_blocks(3, (40, 20)).mean() == pytest.approx(0.1)


def test_every_block_is_drawn_as_often_as_the_others():
    """2000 draws of 10 out of 100: each block is drawn 200 times, with a standard deviation of 13.4."""
    counts = blocks_of(random_blocks(2000, (10, 10)), (10, 10)).sum(axis=0)
    assert counts.sum() == 20000
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_masks_in_batches_are_those_made_at_once():
    at_once = random_blocks(7, (20, 20), seed=3)
    parts = [random_blocks(min(3, 7 - first), (20, 20), seed=3, first=first) for first in (0, 3, 6)]
    np.testing.assert_array_equal(np.concatenate(parts), at_once)


def test_seed_and_position_decide():
    np.testing.assert_array_equal(random_blocks(4, (20, 20), seed=1), random_blocks(4, (20, 20), seed=1))
    assert (random_blocks(4, (20, 20), seed=1) != random_blocks(4, (20, 20), seed=2)).any()
    mask = random_blocks(4, (20, 20), seed=1)
    assert len({image.tobytes() for image in mask}) == 4


def test_the_same_grid_at_another_size():
    small, large = random_blocks(2, (10, 10), seed=5), random_blocks(2, (40, 30), seed=5)
    np.testing.assert_array_equal(blocks_of(small, (10, 10)), blocks_of(large, (10, 10)))


def test_masked_pixels_take_the_value_and_the_others_stay():
    images = np.random.default_rng(0).random((3, 20, 20, 2), dtype=np.float32)
    mask = random_blocks(3, (20, 20), share=0.3)
    masked = remove(tf.constant(images), mask, [0.5, -1.0]).numpy()
    expected = np.where(mask == 1, np.array([0.5, -1.0], "float32"), images)
    np.testing.assert_allclose(masked, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"share": 0}, "`share`: expected a share of the area in (0, 1]; received 0."),
        ({"share": 1.5}, "`share`: expected a share of the area in (0, 1]; received 1.5."),
        ({"share": float("nan")}, "`share`: expected a share of the area in (0, 1]; received nan."),
        ({"share": True}, "received True"),
        (
            {"blocks": (10, 21)},
            "`blocks`: expected at most as many rows and columns of blocks as the images have pixels, (20, 20); "
            "received (10, 21). Take fewer blocks, or larger images.",
        ),
        ({"blocks": (0, 2)}, "`blocks`: expected two integers of at least 1; received (0, 2)."),
        ({"blocks": 10}, "`blocks`: expected two integers of at least 1; received 10."),
        ({"size": (20, 20, 3)}, "`size`: expected two integers of at least 1; received (20, 20, 3)."),
        ({"size": (20.0, 20)}, "`size`: expected two integers of at least 1; received (20.0, 20)."),
        ({"count": 0}, "`count`: expected an integer of at least 1; received 0."),
        ({"seed": -1}, "`seed`: expected an integer of at least 0; received -1."),
        ({"first": 0.5}, "`first`: expected an integer of at least 0; received 0.5."),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(InvalidArgument, match=re.escape(error)):
        random_blocks(**{"count": 2, "size": (20, 20), **arguments})
