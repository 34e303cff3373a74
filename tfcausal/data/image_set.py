"""What every data source yields: a split that is read on demand, and the splits of one data set together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tfcausal.errors import DataError, InvalidArgument, message

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

    Raises:
        InvalidArgument: An array has not one value per name.
        DataError: A label is outside the classes, or two images have the same name.
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

    def __post_init__(self) -> None:
        for field_name in ("labels", "has_mask", "contexts", "context_agrees"):
            values = getattr(self, field_name)
            if values is not None and values.shape != (len(self.names),):
                expected = f"one value per image, shape ({len(self.names)},)"
                raise InvalidArgument(message(field_name, expected, f"shape {values.shape}"))
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(outside):
            received = f"{self.labels[outside[0]]} for image {self.names[outside[0]]}"
            raise DataError(message("labels", f"class indices in [0, {len(self.class_names)})", received))
        if len(set(self.names)) < len(self.names):
            raise DataError(message("names", "a different name for every image", "the same name more than once"))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read images and masks.

        Args:
            indices: Positions in this split, integers of shape (n,).

        Returns:
            Images, float32 (n, height, width, channels), and masks, float32 (n, height, width, 1).

        Raises:
            DataError: The reader returned another shape, or an image has a value that is NaN or infinite.
        """
        indices = np.asarray(indices, dtype=np.int64)
        images, masks = self.reader(indices)
        for name, values, channels in (("images", images, self.image_shape[2]), ("masks", masks, 1)):
            expected = (len(indices), *self.image_shape[:2], channels)
            if values.shape != expected:
                raise DataError(message(name, f"shape {expected} from the reader", f"shape {values.shape}"))
        broken = indices[~np.isfinite(images).all(axis=(1, 2, 3))]
        if len(broken):
            remedy = "Repair these images or leave them out."
            raise DataError(message("images", "finite pixels", f"NaN or Inf in {self.names[broken[0]]}", remedy))
        return images, masks


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
