"""What a trained model takes, from the model itself, and image files as it takes them: for the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfcausal.data.decoding import Source, decode_image, to_shares
from tfcausal.errors import DataError, InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.models.loading import LoadedModel


def image_shape(
    graph: OperationGraph, size: tuple[int, int] | None, command: str, remedy: str = ""
) -> tuple[int, int, int]:
    """Height, width and channels of the images that a model takes.

    Args:
        graph: The model's operations.
        size: Height and width, which a model that takes images of any size needs; None takes the model's own.
        command: The command that asks, for the message.
        remedy: What to do with other models, for the message.

    Raises:
        UnsupportedOperation: The model takes something else than one image, grey or in colour.
        InvalidArgument: A size that is not the model's, or none where the model has none.
    """
    if len(graph.inputs) > 1 or len(graph.input_shape) != 4 or graph.input_shape[3] not in (1, 3):
        shapes = ", ".join(str(shape) for shape in graph.input_shapes)
        raise UnsupportedOperation(
            f"`tfcausal {command}` takes models of one image, (N, height, width, 1 or 3); this one takes {shapes}. "
            f"{remedy}".rstrip()
        )
    _, height, width, channels = graph.input_shape
    if size is None and (height is None or width is None):
        raise InvalidArgument(
            message("size", "the height and width that this model is used with", "none", "Use --size.")
        )
    chosen = size or (int(height or 0), int(width or 0))
    if min(chosen) < 1 or (height or chosen[0], width or chosen[1]) != chosen:
        expected = f"the size of the model's input, {height or 'any'} x {width or 'any'}"
        raise InvalidArgument(message("size", expected, f"{chosen[0]} x {chosen[1]}"))
    return (*chosen, int(channels or 0))


def pixel_range(
    given: tuple[float, float] | None, loaded: LoadedModel, graph: OperationGraph, say: Callable[[str], None]
) -> tuple[float, float]:
    """What black and white are in the model's input.

    Args:
        given: What the user says; None asks the model, and takes a guess by its first layer where it does not know.
        loaded: The model.
        graph: Its operations.
        say: Called with a sentence about a guess.

    Raises:
        InvalidArgument: They are the same, or not finite.
    """
    if given is not None:
        if not (np.isfinite(given).all() and given[0] != given[1]):
            raise InvalidArgument(message("pixels", "two different finite numbers", given))
        return given
    chosen, reason = likely_range(loaded, graph)
    if reason:
        say(f"{reason} Change it with --pixels LOW HIGH.")
    return chosen


def likely_range(loaded: LoadedModel, graph: OperationGraph) -> tuple[tuple[float, float], str]:
    """What black and white are in the model's input, as far as the model tells.

    Args:
        loaded: The model.
        graph: Its operations.

    Returns:
        The two numbers, and a sentence that says why if they are a guess by the model's first layer; empty if not.
    """
    if loaded.pixels is not None:
        return loaded.pixels, ""
    first = next((operation for operation in graph.operations if graph.input in operation.inputs), None)
    scales = first is not None and isinstance(first.layer, (keras.layers.Rescaling, keras.layers.Normalization))
    low, high = (0.0, 255.0) if scales else (0.0, 1.0)
    reason = "begins with a layer that scales them" if scales else "does not begin with a layer that scales them"
    return (low, high), f"Pixels are given as {low:g} to {high:g}: the model {reason}."


def read_image(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file in [0, 1], float32 (height, width, channels).

    Args:
        file: PNG or JPEG.
        shape: What the image is resized to.

    Raises:
        DataError: It cannot be used; the message names it.
    """
    try:
        return read_content(file, shape)
    except DataError as error:
        raise DataError(f"`{file}` cannot be used: {error}. Repair it, or leave it out.") from None


def read_content(content: Source, shape: tuple[int, int, int]) -> np.ndarray:
    """As :func:`read_image`, for a file or what is in it.

    Args:
        content: The file, or its content.
        shape: What the image is resized to.

    Raises:
        DataError: It cannot be used; the text is the reason, without the file's name.
    """
    pixels, _ = decode_image(content, *shape)
    return to_shares(pixels, shape)
