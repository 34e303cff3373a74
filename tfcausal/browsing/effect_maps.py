"""The effect maps that a run keeps of a few images, clean and changed, read image by image. No TensorFlow."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from tfcausal.browsing.effects import StoredEffects
from tfcausal.browsing.maps import WHOLE, lost_files
from tfcausal.errors import InvalidArgument, RunError, message


class StoredEffectMaps:
    """Effect maps of a model of a run: the images under every intervention, codes of concepts, effect maps.

    Opening it reads no image and no map; an image that is shown is one chunk.

    Args:
        effects: The measured effects of the model.

    Attributes:
        names: Names of the images.
        conditions: The interventions on the images; the first is `clean`, for none.

    Raises:
        RunError: There are no maps, or they cannot be read.
    """

    def __init__(self, effects: StoredEffects) -> None:
        self._effects, self._path = effects, effects.store.maps
        if effects.settings.get("maps") is None:
            raise RunError(f"Effects of {effects.model} were measured without maps (effects.maps: null).")
        with self._reading():
            import zarr

            self._group = group = zarr.open_group(self._path, mode="r")
            attributes: dict[str, Any] = group.attrs.asdict()
            self.names = tuple(map(str, attributes["names"]))
            self.conditions = tuple(map(str, attributes["conditions"]))
            self._is_whole = bool(attributes.get(WHOLE, False))
            low, high = attributes["value_range"]
            self._range = float(low), float(high)
            if low == high:
                raise ValueError(f"black and white are both {low}")
            names = attributes["class_names"]
            self._class_names = None if names is None else tuple(map(str, names))

    def __len__(self) -> int:
        return len(self.names)

    def nodes(self, layer: str) -> tuple[int, ...]:
        """The concepts of a level whose codes were kept, the one with the largest effect first; may be none.

        Args:
            layer: The level.
        """
        place = self._place(layer)
        with self._reading():
            if f"{place}/codes/{self.conditions[0]}" not in self._group:
                return ()
            return tuple(map(int, self._group[place].attrs["nodes"]))

    @cached_property
    def has_pixel_maps(self) -> bool:
        """Whether pixel-wise maps were kept."""
        with self._reading():
            return f"pixel_wise/{self.conditions[0]}" in self._group

    def has_concept_maps(self, layer: str) -> bool:
        """Whether concept-weighted maps of a level were kept."""
        with self._reading():
            return f"{self._place(layer)}/concept_weighted/{self.conditions[0]}" in self._group

    def picture(self, condition: str, position: int) -> np.ndarray:
        """An image under an intervention, for the eye: float32 (height, width, channels) in [0, 1].

        Args:
            condition: The intervention.
            position: Which image, from 0.
        """
        low, high = self._range
        pixels = self._one(f"images/{condition}", position, 3)
        return np.clip((pixels - low) / (high - low), 0.0, 1.0).astype(np.float32)

    def answer(self, condition: str, position: int) -> tuple[int, str, float]:
        """The answer to an image under an intervention: the class with the largest output, its name, the output."""
        outputs = self._outputs(condition, position)
        index = int(outputs.argmax())
        return index, self._class_name(index, len(outputs)), float(outputs[index])

    def explained(self, condition: str, position: int) -> tuple[str, float]:
        """The class that the maps of an image are for, the answer to the clean image, and its output here."""
        outputs = self._outputs(condition, position)
        index = self.answer(self.conditions[0], position)[0]
        return self._class_name(index, len(outputs)), float(outputs[index])

    def codes(self, layer: str, node: int, condition: str, position: int) -> np.ndarray:
        """Where a concept is active in an image under an intervention: its codes, as large as the image.

        Args:
            layer: The level.
            node: One of :meth:`nodes`.
            condition: The intervention.
            position: Which image, from 0.

        Returns:
            float32 (height, width); every code is spread over the pixels at its place.
        """
        nodes = self.nodes(layer)
        if node not in nodes:
            expected = f"a concept whose codes were kept ({', '.join(map(str, nodes))})"
            raise InvalidArgument(message("node", expected, node))
        values = self._one(f"{self._place(layer)}/codes/{condition}", position, 3)[..., nodes.index(node)]
        return spread(values, self._size)

    def concept_map(self, layer: str, condition: str, position: int) -> np.ndarray:
        """The concept-weighted map of an image, float32 (height, width): codes times what zeroing them takes away."""
        return self._one(f"{self._place(layer)}/concept_weighted/{condition}", position, 2)

    def pixel_map(self, condition: str, position: int) -> np.ndarray:
        """The pixel-wise map of an image, float32 (height, width): the effect of masking the patches around a pixel."""
        return self._one(f"pixel_wise/{condition}", position, 2)

    @cached_property
    def _size(self) -> tuple[int, int]:
        with self._reading():
            _, height, width, _ = self._group[f"images/{self.conditions[0]}"].shape
        return int(height), int(width)

    def _place(self, layer: str) -> str:
        return f"levels/{self._effects.level(layer).folder}"

    def _outputs(self, condition: str, position: int) -> np.ndarray:
        outputs = self._one(f"outputs/{condition}", position, 1)
        if not outputs.any():
            raise RunError(f"{self._path}: answers are missing. {self._effects.remedy}")  # a lost file reads as zeros
        return outputs

    def _class_name(self, index: int, count: int) -> str:
        names = self._class_names
        return str(index) if names is None or len(names) != count else names[index]

    def _one(self, key: str, position: int, rank: int) -> np.ndarray:
        """One image's part of an array, which has one chunk per image."""
        if not 0 <= position < len(self):
            raise InvalidArgument(message("position", f"0 to {len(self) - 1}", position))
        with self._reading():
            array = self._group[key]
            if array.ndim != rank + 1 or array.shape[0] != len(self):
                raise ValueError(f"{key} has the shape {array.shape}")
            lost = lost_files(self._path, array, [position]) if self._is_whole else []
            if lost:  # it would read as zeros
                raise ValueError(f"{lost[0].relative_to(self._path)} is lost")
            values = np.asarray(array[position])
            if not np.isfinite(values).all():
                raise ValueError(f"{key} has values that are not finite")
        return values

    def _reading(self) -> Any:
        return self._effects.reading(self._path)


def spread(codes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Codes spread over the pixels of an image: every pixel has the code at its place, with nothing in between.

    Args:
        codes: (h, w).
        size: Height and width of the image.

    Returns:
        (height, width), of the type of `codes`.

    Example:
        >>> spread(np.array([[1, 2]]), (2, 4)).tolist()
        [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    places = [((np.arange(to) + 0.5) * have / to).astype(int) for have, to in zip(codes.shape, size, strict=True)]
    return codes[np.ix_(*places)]
