"""What every data source yields: a split that is read on demand, and the splits of one data set together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set. Labels and names are in memory; images and masks are read when asked for.

    Attributes:
        names: One name per image, unique in the data set (a path relative to the data folder, or a made-up one).
        labels: Class indices, int64 of shape (N,), in [0, len(class_names)).
        class_names: Names of the classes, by index.
        image_shape: (height, width, channels) of every image that `reader` returns.
        has_mask: Whether a true mask of the cause is known, bool of shape (N,).
        reader: Takes int64 indices (n,) and returns images, float32 (n, height, width, channels), and masks,
            float32 (n, height, width, 1) of zeros and ones (all ones where there is no mask).
        contexts: Index of the planted context of every image, int64 (N,), or None where contexts are unknown.
        context_agrees: Whether the context is the one that goes with the label in training, bool (N,), or None.
        context_names: Names of the contexts, by index; empty where contexts are unknown.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    has_mask: np.ndarray
    reader: Reader
    contexts: np.ndarray | None = None
    context_agrees: np.ndarray | None = None
    context_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read images and masks.

        Args:
            indices: Positions in this split, integers of shape (n,).

        Returns:
            Images, float32 (n, height, width, channels), and masks, float32 (n, height, width, 1).
        """
        return self.reader(np.asarray(indices, dtype=np.int64))


@dataclass(frozen=True)
class SkippedFile:
    """A file that was left out (`on_error: skip`), and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """The splits of one data set.

    Attributes:
        splits: By name: `train`, `validation`, `test` and, where contexts are planted, `test_shuffled`.
        value_range: Lowest and highest value that a pixel can have.
        description: One sentence for the report.
        skipped: Files that were left out, and why.
    """

    splits: dict[str, ImageSet]
    value_range: tuple[float, float] = (0.0, 1.0)
    description: str = ""
    skipped: tuple[SkippedFile, ...] = field(default_factory=tuple)
