"""What a run keeps of every image that it measured: `maps.zarr`, written image by image and read the same way.

    splits/<split>/            attributes: class_names, names, method, value_range, context_names
      labels                   (N,)            index of the class
      images                   (N, H, W, C)    uint16, 0 black and 65535 white
      masks, has_mask          (N, H, W), (N,) the true cause, and whether it is known
      mask_area                (N,)            its share of the image
      contexts, context_agrees (N,)            where contexts are planted
      probabilities/<model>    (N, classes)
      maps/<model>             (N, H, W)       signed, summed over the channels
      mask_energy/<model>      (N,)            share of positive saliency inside the mask
      attention/<model>        (N, 8, 8)       where the positive saliency lies, coarsely

What has one value per image is one small column, whatever the number of images; pictures have a chunk each. Every file
is written, also one of zeros alone: a file that is not there was lost (attribute `whole`). Images of 8 bits come back
exactly as the models saw them, others to within 1/131070 of the pixels' range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcausal.errors import InvalidArgument, message

if TYPE_CHECKING:
    import zarr

    from tfcausal.data.image_set import ImageSet

CELLS = 8
"""Cells of the coarse attention along each axis of the image, or the image's pixels where it has fewer."""
WHITE = 65535
WHOLE = "whole"
"""Attribute of a group whose arrays were written with :data:`EVERY_FILE`."""
EVERY_FILE: Any = {"write_empty_chunks": True}
"""How zarr writes an array so that a file of zeros alone can be told from one that was lost."""


def write_split(
    group: zarr.Group,
    split: ImageSet,
    value_range: tuple[float, float],
    method: str,
    batch_size: int,
    advance: Callable[[int], Any] = lambda images: None,
) -> None:
    """Keep the images of a split and what is known of them.

    Args:
        group: The group of the split, new.
        split: The split.
        value_range: Lowest and highest value that a pixel can have.
        method: The saliency method whose maps come beside them.
        batch_size: Images that are read at once, and kept in one file.
        advance: Called with the number of images after each batch.
    """
    import zarr.codecs

    height, width, channels = split.image_shape
    count, shard = len(split), min(batch_size, len(split))
    group.attrs.update(
        class_names=list(split.class_names),
        names=list(split.names),
        method=method,
        value_range=list(value_range),
        context_names=list(split.context_names),
        **{WHOLE: True},
    )
    for name in ("labels", "has_mask", "contexts", "context_agrees"):
        if (values := getattr(split, name)) is not None:
            group.create_array(name, data=values, config=EVERY_FILE)
    # Shuffled, the two equal bytes of an 8-bit value cost hardly more than one.
    packed = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    images = group.create_array(
        "images",
        shape=(count, height, width, channels),
        chunks=(1, height, width, channels),
        shards=(shard, height, width, channels),
        dtype="uint16",
        compressors=packed,
        config=EVERY_FILE,
    )
    masks = group.create_array(
        "masks",
        shape=(count, height, width),
        chunks=(1, height, width),
        shards=(shard, height, width),
        dtype="bool",
        config=EVERY_FILE,
    )
    area = np.full(count, np.nan, np.float32)
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        pixels, inside = split.read(np.arange(part.start, part.stop))
        known = split.has_mask[part]
        images[part] = to_codes(pixels, value_range)
        masks[part] = (inside[..., 0] > 0.5) & known[:, None, None]
        area[part][known] = inside[known].mean(axis=(1, 2, 3))
        advance(len(pixels))
    group.create_array("mask_area", data=area, config=EVERY_FILE)


class MapWriter:
    """Keeps what one model makes of a split: call it with every batch of maps, then :meth:`finish`.

    Args:
        group: The group of the split.
        model: Name of the model.
        image_shape: (height, width, channels) of the images.
        count: Images of the split.
        batch_size: Maps that are kept in one file.
    """

    def __init__(
        self, group: zarr.Group, model: str, image_shape: tuple[int, int, int], count: int, batch_size: int
    ) -> None:
        height, width, _ = image_shape
        self._group, self._model = group, model
        self._maps = group.create_array(
            f"maps/{model}",
            shape=(count, height, width),
            chunks=(1, height, width),
            shards=(min(batch_size, count), height, width),
            dtype="float32",
            config=EVERY_FILE,
        )
        self._attention = np.zeros((count, min(CELLS, height), min(CELLS, width)), np.float32)

    def __call__(self, part: slice, maps: np.ndarray) -> None:
        """Keep the maps of a batch.

        Args:
            part: Positions in the split.
            maps: Signed maps, float32 (n, height, width).
        """
        self._maps[part] = maps
        self._attention[part] = attention(maps)

    def finish(self, probabilities: np.ndarray, mask_energy: np.ndarray) -> None:
        """Keep what was measured on every image.

        Args:
            probabilities: The model's answers, float32 (N, classes).
            mask_energy: Share of positive saliency inside the mask, (N,), NaN where there is none.
        """
        columns = {"attention": self._attention, "probabilities": probabilities}
        for name, values in {**columns, "mask_energy": mask_energy.astype(np.float32)}.items():
            self._group.create_array(f"{name}/{self._model}", data=values, config=EVERY_FILE)


def lost_files(store: Path, array: zarr.Array[Any], rows: Iterable[int]) -> list[Path]:
    """The files of an array that are not there, which zarr reads as zeros.

    Args:
        store: Where the store is.
        array: An array of it, all of whose files were written.
        rows: The places along its first axis that are looked at.
    """
    lengths = array.shards or array.chunks
    grid = [range(math.ceil(size / length)) for size, length in zip(array.shape, lengths, strict=True)]
    keys = product(sorted({row // lengths[0] for row in rows}), *grid[1:])
    files = [store / array.path / array.metadata.encode_chunk_key(key) for key in keys]
    return [file for file in files if not file.is_file()]


def attention(maps: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Where the positive saliency of maps lies: its share in every cell of a coarse grid.

    Args:
        maps: Signed maps (N, height, width).
        cells: Cells along each axis; fewer where the image has fewer pixels.

    Returns:
        Shares, float32 (N, rows, columns), that sum to 1 for every map; all 0 for a map without positive saliency.

    Example:
        >>> attention(np.array([[[3.0, -5.0], [0.0, 1.0]]])).tolist()
        [[[0.75, 0.0], [0.0, 0.25]]]
    """
    maps = np.asarray(maps)
    if maps.ndim != 3:
        raise InvalidArgument(message("maps", "maps (N, height, width)", f"shape {maps.shape}"))
    positive = np.maximum(maps, 0.0).astype(np.float64)
    for axis in (1, 2):
        size = maps.shape[axis]
        starts = np.arange(min(cells, size)) * size // min(cells, size)
        positive = np.add.reduceat(positive, starts, axis=axis)
    total = positive.sum(axis=(1, 2), keepdims=True)
    return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0).astype(np.float32)


def to_codes(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Pixels as 16-bit codes, 0 for the lowest and 65535 for the highest value of the range.

    Args:
        images: Pixels, float32.
        value_range: Lowest and highest value that a pixel can have; what lies outside is cut off.

    Returns:
        Codes, uint16 in the shape of `images`.

    Example:
        >>> to_codes(np.array([-0.5, 0.0, 0.5]), (-0.5, 0.5)).tolist()
        [0, 32768, 65535]
    """
    low, high = value_range
    share = (np.asarray(images, np.float64) - low) / (high - low)
    return np.rint(np.clip(share, 0.0, 1.0) * WHITE).astype(np.uint16)


def from_codes(codes: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """The pixels of :func:`to_codes`.

    Args:
        codes: Codes, uint16.
        value_range: As for :func:`to_codes`.

    Returns:
        Pixels, float32 in the shape of `codes`.

    Example:
        >>> from_codes(np.array([0, 65535], np.uint16), (-0.5, 0.5)).tolist()
        [-0.5, 0.5]
    """
    low, high = value_range
    return codes.astype(np.float32) / np.float32(WHITE) * np.float32(high - low) + np.float32(low)
