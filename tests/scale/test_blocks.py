import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.scale.blocks import Block, block_count, block_size, blocks_to_do


@pytest.mark.parametrize("seed", range(30))
def test_blocks_are_a_partition_of_the_images(seed):
    random = np.random.default_rng(seed)
    images, size = int(random.integers(0, 200)), int(random.integers(1, 40))
    blocks = list(blocks_to_do(images, size))
    assert [position for block in blocks for position in range(block.start, block.stop)] == list(range(images))
    assert [block.index for block in blocks] == list(range(block_count(images, size)))
    assert all(len(block) == size for block in blocks[:-1])
    assert all(1 <= len(block) <= size for block in blocks)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_finished_is_not_done_again_and_the_rest_does_not_depend_on_it(seed):
    random = np.random.default_rng(seed)
    images, size = int(random.integers(1, 200)), int(random.integers(1, 40))
    every = list(blocks_to_do(images, size))
    finished = {block.index for block in every if random.random() < 0.5}
    left = list(blocks_to_do(images, size, finished))
    assert left == [block for block in every if block.index not in finished]


def test_blocks_are_made_when_they_are_needed():
    assert next(blocks_to_do(10**15, 3)) == Block(0, 0, 3)


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_size_bounds_the_bytes_and_keeps_whole_batches(seed):
    random = np.random.default_rng(seed)
    bytes_of_map, batch = int(10 ** random.uniform(1, 9)), int(random.integers(1, 65))
    size = block_size(None, bytes_of_map, batch)
    assert 1 <= size <= 1024
    assert size == 1 or size * bytes_of_map <= 128 << 20
    assert size % batch == 0 or size < batch


def test_the_given_size_is_taken_or_refused():
    assert block_size(7, 10**8, 64) == 7
    assert block_size(7, 10**12, largest_array=10) == 7
    for bad, most in ((0, 536870907), (-1, 536870907), (3567, 3566)):
        size = 4 if most > 10**8 else 224 * 224 * 3 * 4
        text = f"`block`: expected a number of images, 1 or more, here {most} at most; received {bad}"
        with pytest.raises(InvalidArgument, match=text):
            block_size(bad, size)


def test_the_largest_block_can_be_written(tmp_path):
    """The limit is that of the compression: of bytes, not of what the numbers are."""
    import numcodecs.blosc

    assert block_size(2**31 - 17, 1) == numcodecs.blosc.MAX_BUFFERSIZE
    with pytest.raises(InvalidArgument):
        block_size(2**31 - 16, 1)


def test_a_block_says_which_images_it_is():
    assert str(Block(3, 12, 16)) == "Block 3 (images 12 to 15)"
