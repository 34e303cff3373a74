"""One split of a run, read from `maps.zarr` piece by piece; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tfcausal.browsing.maps import WHOLE, attention, from_codes, lost_files
from tfcausal.browsing.reading import reading
from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.runs import RunDirectory

_BLOCK = 1024  # images whose maps or answers are in memory at once
_REMEDY = "Remove the run's directory and run again."


class StoredSplit:
    """The images of a split and what every model of the run made of them. Opening it reads no image and no map.

    Args:
        run: The run.
        name: Name of the split, one of :func:`split_names`.

    Attributes:
        path: Where it is kept.
        name: Name of the split.
        class_names: Names of the classes, by index.
        names: Name of every image.
        method: The saliency method of the stored maps.
        models: The models that were measured on it, in the order of the configuration.
        context_names: Names of the planted contexts, by index; empty where there are none.
        value_range: Lowest and highest value that a pixel can have; None in a run that kept no images.

    Raises:
        RunError: The run has no maps yet, or they cannot be read.
        InvalidArgument: It has no such split.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        known = split_names(run)
        if name not in known:
            received, remedy = repr(name[:200]), closest(name, known, "splits")
            raise InvalidArgument(message("split", "a split that the run has measured", received, remedy))
        self.path, self.name = run.maps_path, name
        with self._reading():
            import zarr

            self._group = group = zarr.open_group(run.maps_path, path=f"splits/{name}", mode="r")
            attributes: dict[str, Any] = group.attrs.asdict()
            self.class_names = tuple(map(str, attributes["class_names"]))
            self.names = tuple(map(str, attributes["names"]))
            self.method = str(attributes["method"])
            self.context_names = tuple(map(str, attributes.get("context_names", ())))
            self._is_whole = bool(attributes.get(WHOLE, False))
            self.value_range = _pair(attributes["value_range"]) if "images" in group else None
            measured = set(group["probabilities"].array_keys()) if "probabilities" in group else set()
            self.models = tuple(model for model in run.config.models if model in measured)
            if group["labels"].shape != (len(self.names),):
                raise ValueError(f"{len(self.names)} names and labels of shape {group['labels'].shape}")

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    @property
    def has_images(self) -> bool:
        """Whether the images themselves were kept; older releases kept the maps alone."""
        return self.value_range is not None

    @cached_property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images and maps."""
        with self._reading():
            key = "images" if self.has_images else f"maps/{self.models[0]}"
            _, height, width, *_ = self._group[key].shape
        return int(height), int(width)

    @cached_property
    def labels(self) -> np.ndarray:
        """Index of the class of every image, int64 (N,)."""
        labels = self._column("labels")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise self._error("a label is none of the classes")
        return labels

    def column(self, name: str) -> np.ndarray | None:
        """One value per image: `has_mask`, `mask_area`, `contexts` or `context_agrees`.

        Returns:
            The values, (N,); None where the run has not kept them.
        """
        return self._column(name) if name in self._group else None

    def mask_energy(self, model: str) -> np.ndarray | None:
        """Share of a model's positive saliency inside the mask, (N,); None where the run has not kept it."""
        self._check_model(model)
        key = f"mask_energy/{model}"
        return self._column(key) if key in self._group else None

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images as the models see them.

        Args:
            indices: Positions in the split, (n,).

        Returns:
            float32 (n, height, width, channels) in `value_range`.

        Raises:
            RunError: The run kept no images, or they cannot be read.
        """
        if self.value_range is None:
            raise RunError(f"{self.path} holds no images: the run is of an older release. Run it again to see them.")
        return from_codes(self._pictures("images", indices), self.value_range)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images for the eye, float32 (n, height, width, channels) in [0, 1]; mid-grey where the run kept none."""
        if self.value_range is None:
            return np.full((len(indices), *self.image_shape, 1), 0.5, np.float32)
        return from_codes(self._pictures("images", indices), (0.0, 1.0))

    def masks(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray | None]:
        """The true mask of every image, bool (height, width); None where it is not known."""
        known = self.column("has_mask")
        if known is None or "masks" not in self._group:
            return [None] * len(indices)
        masks = self._pictures("masks", indices)
        return [mask if known[index] else None for mask, index in zip(masks, indices, strict=True)]

    def maps(self, model: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored maps of a model for its predicted classes, signed, float32 (n, height, width)."""
        self._check_model(model)
        return self._pictures(f"maps/{model}", indices)

    def probabilities(self, model: str, part: slice | Sequence[int] | np.ndarray = slice(None)) -> np.ndarray:
        """A model's answers, float32 (n, classes).

        Args:
            model: Name of the model.
            part: Positions in the split.
        """
        self._check_model(model)
        with self._reading():
            array = self._group[f"probabilities/{model}"]
            if array.shape != (len(self), len(self.class_names)):
                raise ValueError(f"answers of shape {array.shape}")
            values = array[part] if isinstance(part, slice) else array.oindex[np.asarray(part, np.int64)]
        if not (np.isfinite(values).all() and (values != 0).any(axis=1).all()):
            raise self._error(f"answers of {model} are missing")  # a lost file reads as zeros
        return values

    def attention(self, model: str) -> np.ndarray:
        """Where a model's positive saliency lies, coarsely, float32 (N, rows, columns); see `run_maps.attention`."""
        self._check_model(model)
        key = f"attention/{model}"
        if key in self._group:
            return self._column(key)
        return np.concatenate([attention(self.maps(model, indices)) for indices in self.blocks()])

    def blocks(self) -> Iterator[np.ndarray]:
        """The positions of all images in parts that fit into memory."""
        for start in range(0, len(self), _BLOCK):
            yield np.arange(start, min(start + _BLOCK, len(self)))

    def find(self, name: str) -> int:
        """Position of the image with a name.

        Raises:
            InvalidArgument: No image has this name.
        """
        if name not in self._positions:
            raise InvalidArgument(message("image", f"the name of an image of {self.name}", repr(name[:200])))
        return self._positions[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def _check_model(self, model: str) -> None:
        if model not in self.models:
            remedy = closest(model, self.models, "models")
            raise InvalidArgument(message("model", f"a model measured on {self.name}", repr(model), remedy))

    def _column(self, key: str) -> np.ndarray:
        with self._reading():
            array = self._group[key]
            if array.shape[0] != len(self):
                raise ValueError(f"{key} has {array.shape[0]} values")
            self._check_files(array, range(0, len(self), array.chunks[0]))
            return np.asarray(array[:])

    def _pictures(self, key: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            expected = f"positions from 0 to {len(self) - 1}"
            raise InvalidArgument(message("indices", expected, f"{chosen.min()} to {chosen.max()}"))
        with self._reading():
            array = self._group[key]
            if array.shape[0] != len(self):
                raise ValueError(f"{key} has {array.shape[0]} pictures")
            self._check_files(array, chosen.tolist())
            values = np.asarray(array.oindex[chosen])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._error(f"{key} has values that are not finite")
        return values

    def _check_files(self, array: Any, rows: Iterable[int]) -> None:
        """Where every file was written, one that is not there was lost; zarr reads it as zeros."""
        lost = lost_files(self.path, array, rows) if self._is_whole else []
        if lost:
            raise self._error(f"{lost[0].relative_to(self.path)} is lost")

    def _reading(self) -> Any:
        return reading(self.path, _REMEDY)

    def _error(self, reason: str) -> RunError:
        return RunError(f"{self.path}: {reason} ({self.name}). {_REMEDY}")


def split_names(run: RunDirectory) -> tuple[str, ...]:
    """The splits that a run has measured, the shuffled test split first, then the others.

    Args:
        run: The run.

    Raises:
        RunError: The run has no maps yet, or they cannot be read.
    """
    if not run.maps_path.is_dir():
        raise RunError(f"{run.path} has measured no images yet; go on with it: `tfcausal run --resume {run.path}`.")
    with reading(run.maps_path, _REMEDY):
        import zarr

        names = sorted(zarr.open_group(run.maps_path, path="splits", mode="r").group_keys())
    order = {"test_shuffled": 0, "test": 1, "validation": 3}
    return tuple(sorted(names, key=lambda name: order.get(name, 2)))


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
