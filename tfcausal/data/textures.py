"""Ten photographs of textures out of scikit-image, each divided among the splits.

Only files inside the installed package are read: nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import skimage.color
import skimage.data

from tfcausal.errors import DataError, message

SPLITS = ("train", "validation", "test")
TEXTURE_RANGE = (0.25, 0.75)
"""Lowest and highest pixel value of a background, so that light and dark digits stand out on every one."""
PAPER_WHITE = 0.85
"""Brightness of the paper of a photograph whose lighting is evened out."""


@dataclass(frozen=True)
class Texture:
    """A photograph of scikit-image, and the part of it that looks the same all over.

    Attributes:
        name: Name of the photograph, and of its function in `skimage.data`.
        file: Its file in the package scikit-image.
        rows: First and last-plus-one row of the part that is used.
        columns: First and last-plus-one column of the part that is used.
        split_axis: The direction in which the regions of the splits follow each other, 0 (rows) or 1 (columns): the one
            in which the photograph changes less.
        reduction: The factor by which the part is averaged down.
        even_lighting: Whether each column is divided by its paper white, which makes the regions equally bright.
    """

    name: str
    file: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    split_axis: int = 1
    reduction: int = 1
    even_lighting: bool = False

    def region(self, split: str) -> tuple[slice, slice]:
        """The rows and columns of the photograph that belong to a split; the splits' regions are disjoint."""
        bounds = [self.rows, self.columns]
        first, last = bounds[self.split_axis]
        length = (last - first) // (3 * self.reduction) * self.reduction
        first += SPLITS.index(split) * length
        bounds[self.split_axis] = (first, first + length)
        return slice(*bounds[0]), slice(*bounds[1])

    def patch_limit(self) -> int:
        """Side in pixels of the largest square patch that fits into a split's region."""
        return min(part.stop - part.start for part in self.region("train")) // self.reduction


TEXTURES = (
    Texture("brick", "brick.png", (0, 512), (0, 512)),
    Texture("grass", "grass.png", (0, 512), (0, 512)),
    Texture("gravel", "gravel.png", (0, 512), (0, 512)),
    Texture("coins", "coins.png", (0, 303), (0, 360)),  # black beyond
    Texture("immunohistochemistry", "ihc.png", (0, 512), (0, 512)),
    Texture("hubble_deep_field", "hubble_deep_field.jpg", (0, 872), (0, 996), reduction=2),
    Texture("moon", "moon.png", (0, 512), (0, 512), split_axis=0),
    Texture("page", "page.png", (4, 140), (0, 384), even_lighting=True),  # blank paper below
    # The square inside the disc of the eye.
    Texture("retina", "retina.jpg", (225, 1185), (225, 1185), split_axis=0, reduction=2),
    Texture("rocket", "rocket.jpg", (0, 300), (0, 640)),  # sky and masts; the ground and its lights below
)


def read_textures(channels: int) -> dict[str, list[np.ndarray]]:
    """Read the photographs and divide them.

    Args:
        channels: 3 for colour, 1 for grey.

    Returns:
        For `train`, `validation` and `test` one array per texture in the order of `TEXTURES`, float32 of shape
        (height, width, channels) in `TEXTURE_RANGE`. No two splits share a pixel of a photograph.

    Raises:
        DataError: The installed scikit-image lacks a photograph.
    """
    photographs = [_photograph(texture, channels) for texture in TEXTURES]
    return {
        split: [_region(photo, texture, split) for photo, texture in zip(photographs, TEXTURES, strict=True)]
        for split in SPLITS
    }


def _photograph(texture: Texture, channels: int) -> np.ndarray:
    """A photograph as float64 (height, width, channels) in [0, 1]."""
    # Without its file, scikit-image would try to download the photograph.
    if not resources.files("skimage").joinpath("data", texture.file).is_file():
        remedy = "Install scikit-image from its wheel on PyPI, which has the file."
        raise DataError(message(f"skimage/data/{texture.file}", "a photograph", "no such file", remedy))
    photograph = getattr(skimage.data, texture.name)() / 255.0
    if photograph.ndim == 2:
        return np.repeat(photograph[..., None], channels, axis=2)
    return photograph if channels == 3 else skimage.color.rgb2gray(photograph)[..., None]


def _region(photograph: np.ndarray, texture: Texture, split: str) -> np.ndarray:
    """A split's region of a photograph, averaged down and brought into `TEXTURE_RANGE`."""
    region, step = photograph[texture.region(split)], texture.reduction
    height, width = region.shape[0] // step, region.shape[1] // step
    region = region[: height * step, : width * step].reshape(height, step, width, step, -1).mean(axis=(1, 3))
    if texture.even_lighting:
        region = np.clip(PAPER_WHITE * region / np.quantile(region, 0.9, axis=0), 0.0, 1.0)
    low, high = TEXTURE_RANGE
    return (low + (high - low) * region).astype(np.float32)
