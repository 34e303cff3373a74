"""What a trained model takes and gives, for images that are no run's: its size, its pixels, its classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tfcausal.browsing.classifier import LoadedClassifier
from tfcausal.effects.equations import Head
from tfcausal.effects.expected import head_kind
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.models.inputs import image_shape, likely_range, pixel_range
from tfcausal.models.loading import LoadedModel

LARGEST_SIDE = 1024
"""Pixels along one side of the images that a model of any size is shown."""
_COMMAND = "explore"


class ImageModel:
    """A trained model that is shown images from anywhere.

    Args:
        loaded: The model, from a run or from a file of its own.

    Attributes:
        class_names: Names of the classes, by index; the indices themselves where they are unknown.
        pixels: What black and white are in the model's input, or seem to be.
        guess: A sentence that says why they seem so; empty where they are known.
        takes_any_size: Whether the height or the width of its images is open.
        kind: What stands behind its logits: `softmax`, `sigmoid`, or `linear` where its answers are logits.

    Raises:
        UnsupportedOperation: The model takes something else than one image, grey or in colour.

    Example:
        >>> import keras
        >>> from tfcausal.models.loading import LoadedModel
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> shown = ImageModel(LoadedModel(model, "model.keras"))
        >>> shown.image_shape(), shown.class_names, shown.pixels, shown.kind
        ((8, 8, 1), ('0', '1', '2'), (0.0, 1.0), 'linear')
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._graph = graph = OperationGraph(loaded.model)
        known = graph.input_shape[1:3]
        self.takes_any_size = len(graph.input_shape) == 4 and None in known
        image_shape(graph, (known[0] or 1, known[1] or 1) if self.takes_any_size else None, _COMMAND)
        self.pixels, self.guess = likely_range(loaded, graph)
        self.kind: Head = head_kind(graph)
        self.class_names = loaded.class_names or tuple(str(index) for index in range(graph.num_classes))
        self._loaded = replace(loaded, class_names=self.class_names)

    def image_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Height, width and channels of the images that it is shown.

        Args:
            size: Height and width, needed if it takes any; else None.

        Raises:
            InvalidArgument: The model has another size, or one is needed, or it is above :data:`LARGEST_SIDE`.
        """
        if size is None and self.takes_any_size:
            remedy = "This model takes images of any size: say which."
            raise InvalidArgument(message("size", "the height and width that the model is used with", "none", remedy))
        if size is not None and not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
            raise InvalidArgument(message("size", f"a height and a width from 1 to {LARGEST_SIDE}", size))
        return image_shape(self._graph, size, _COMMAND)

    def classifier(self, pixels: tuple[float, float] | None = None) -> LoadedClassifier:
        """The classifier that answers and explains.

        Args:
            pixels: What black and white are in the model's input; None takes what is known of it.

        Raises:
            InvalidArgument: They are the same, or not finite.
        """
        chosen = pixel_range(pixels or self.pixels, self._loaded, self._graph, lambda text: None)
        return LoadedClassifier(replace(self._loaded, pixels=chosen))


def as_inputs(pictures: np.ndarray, pixels: tuple[float, float]) -> np.ndarray:
    """Pictures as a model takes them.

    Args:
        pictures: In [0, 1], of any shape.
        pixels: What black and white are in the model's input.

    Returns:
        float32 of the same shape.

    Example:
        >>> as_inputs(np.array([0.0, 0.5, 1.0]), (-1.0, 1.0)).tolist()
        [-1.0, 0.0, 1.0]
    """
    low, high = pixels
    return (low + (high - low) * np.asarray(pictures, np.float32)).astype(np.float32)
