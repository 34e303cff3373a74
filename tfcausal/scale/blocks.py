"""Many images divided into blocks, which are done or not done: no part of a block is ever gone on with."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from tfcausal.errors import InvalidArgument, message

_MOST_IMAGES = 1024
_MOST_BYTES = 128 << 20
_LARGEST_CHUNK = 2**31 - 17  # of Blosc


@dataclass(frozen=True)
class Block:
    """Some of many images, one after the other.

    Attributes:
        index: Which block it is, from 0.
        start: Position of its first image among all.
        stop: Position after its last image.
        names: The names of its images, where a reader must be told them.
    """

    index: int
    start: int
    stop: int
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"Block {self.index} (images {self.start} to {self.stop - 1})"


def block_count(images: int, size: int) -> int:
    """How many blocks some images make.

    Args:
        images: Number of images, 0 or more.
        size: Images of a block, 1 or more; the last has what is left.

    Example:
        >>> block_count(10, 4)
        3
    """
    return -(-images // size)


def blocks_to_do(images: int, size: int, finished: Container[int] = ()) -> Iterator[Block]:
    """The blocks that are not finished, in their order.

    Args:
        images: Number of images, 0 or more.
        size: Images of a block, 1 or more.
        finished: The indices of the finished blocks.

    Example:
        >>> [(block.start, block.stop) for block in blocks_to_do(10, 4, finished={0})]
        [(4, 8), (8, 10)]
    """
    for index in range(block_count(images, size)):
        if index not in finished:
            yield Block(index, index * size, min(images, (index + 1) * size))


def block_size(given: int | None, bytes_of_image: int, batch_size: int = 1, largest_array: int | None = None) -> int:
    """Images of a block: what the user asks for, else as many as make 128 MiB of results, at most 1024.

    Args:
        given: What the user asks for; None chooses.
        bytes_of_image: Size of all that is held of an image until its block is written.
        batch_size: Images that are worked on at once: the chosen size is a multiple of it, if it is not below it.
        largest_array: Size of an image's part of the largest array; None: `bytes_of_image`. A block's part of an array
            is compressed at once, which 2 GiB are too much for.

    Raises:
        InvalidArgument: Not a positive integer, or too many.

    Example:
        >>> block_size(None, 224 * 224 * 3 * 4, batch_size=64)
        192
    """
    if given is not None:
        most = _LARGEST_CHUNK // (largest_array or bytes_of_image)
        if not 1 <= given <= most:
            raise InvalidArgument(message("block", f"a number of images, 1 or more, here {most} at most", given))
        return given
    fitting = max(1, min(_MOST_IMAGES, _MOST_BYTES // bytes_of_image))
    return max(fitting // batch_size * batch_size, min(fitting, batch_size))
