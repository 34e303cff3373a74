"""What the methods that only tell places apart share: one map of one channel for every input that is an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import keras
import numpy as np

from tfcausal.errors import UnsupportedOperation
from tfcausal.functional import Shape
from tfcausal.graph import OperationGraph
from tfcausal.operations import Operation
from tfcausal.saliency.base import Explainer, Images

_FORWARD_BYTES = 1 << 29
_LARGEST_BATCH = 64


def forward_batch(graph: OperationGraph, kept: Sequence[Operation] = ()) -> int:
    """How many samples to take in a forward pass of which no activation is kept.

    Args:
        graph: The model's operations; what the largest of them reads and writes has to fit.
        kept: Operations whose outputs are kept, for a way back.

    Returns:
        The number of samples, between 1 and 64.
    """
    largest = max(
        max(1, operation.rows) * _bytes((*operation.input_shapes, *operation.shapes)) for operation in graph.operations
    )
    largest += 2 * sum(max(1, operation.rows) * _bytes(operation.shapes) for operation in kept)
    return min(_LARGEST_BATCH, max(1, _FORWARD_BYTES // max(1, largest)))


def _bytes(shapes: Sequence[Shape]) -> int:
    return sum(4 * prod(224 if size is None else size for size in shape[1:]) for shape in shapes)


class SpatialExplainer(Explainer):
    """An explainer whose maps tell places apart and not channels.

    Every input of rank 4, (N, height, width, channels), is an image and gets a map (N, height, width, 1); the other
    inputs of the model take part and get none.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Attributes:
        image_inputs: Positions of the inputs that are images and get a map.

    Raises:
        InvalidArgument: As for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or as for :class:`Explainer`.
    """

    def __init__(self, model: keras.Model, output: str | int | None = None, batch_size: int | None = None) -> None:
        super().__init__(model, output, batch_size)
        shapes = dict(zip(self.graph.inputs, self.graph.input_shapes, strict=True))
        self.image_inputs = tuple(position for position, shape in shapes.items() if len(shape) == 4)
        if not self.image_inputs:
            listed = ", ".join(str(shape) for shape in shapes.values())
            raise UnsupportedOperation(
                f"{self.name}: model `{model.name}` has no image among its inputs; their shapes are {listed}, an image "
                "is (batch, height, width, channels). Explain it with a method of the gradients instead."
            )

    def as_given(self, images: Images, maps: Sequence[np.ndarray]) -> Any:
        """The maps of the image inputs: an array where there is one, else a list; a dictionary for a dictionary."""
        names = [self.graph.input_names[position] for position in self.image_inputs]
        if isinstance(images, Mapping):
            return dict(zip(names, maps, strict=True))
        return maps[0] if len(maps) == 1 else list(maps)
