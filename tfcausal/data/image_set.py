"""What every data source yields: a split that is read on demand, and the splits of one data set together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

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


def centred(data_set: DataSet) -> DataSet:
    """The same data set with the middle of its value range moved to 0.

    Zero is what a masked or deleted pixel becomes, and the point from which WBP measures contributions. In the range
    [0, 1] it is black: a dark object that is masked leaves its own silhouette, and its pixels can have no saliency.
    Mid-grey is as far from dark as from light.

    Args:
        data_set: The data set.

    Returns:
        A data set whose images have the middle of `value_range` subtracted.

    Example:
        >>> import numpy as np
        >>> read = lambda indices: (np.ones((len(indices), 1, 1, 1), "float32"),) * 2
        >>> split = ImageSet(("a",), np.array([0]), ("x",), (1, 1, 1), np.array([False]), read)
        >>> data_set = centred(DataSet({"train": split}))
        >>> data_set.value_range, data_set.splits["train"].read(np.array([0]))[0].item()
        ((-0.5, 0.5), 0.5)
    """
    middle = np.float32(sum(data_set.value_range) / 2)

    def moved(reader: Reader) -> Reader:
        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            images, masks = reader(indices)
            return images - middle, masks

        return read

    splits = {name: replace(split, reader=moved(split.reader)) for name, split in data_set.splits.items()}
    low, high = data_set.value_range
    return replace(data_set, splits=splits, value_range=(low - float(middle), high - float(middle)))
