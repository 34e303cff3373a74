"""What a concept autoencoder is made of: the layer that it stands behind, its own layers, and its penalty."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcausal.effects.downstream import Downstream
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.functional import Shape
from tfcausal.graph import OperationGraph
from tfcausal.objectives.interpretability import Interpretability, Penalty, chosen_penalties, weighted_penalty

_LAYERS = {2: keras.layers.Dense, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}


def checked_layer(downstream: Downstream, model_name: str) -> tuple[str, int]:
    """The path of the layer that is coded, from which it is found again in a saved model, and its channels.

    Args:
        downstream: The classifier behind the layer.
        model_name: Name of the classifier, for errors.

    Raises:
        InvalidArgument: The layer gives the logits, its number of channels is unknown, or its path is not unique.
        UnsupportedOperation: The model has its channels first, or the layer gives no maps, volumes or features.
    """
    graph, name, shape = downstream.graph, downstream.layer, downstream.shape
    if downstream.position == graph.logits:
        remedy = "The logits are the answer itself: choose a layer before the head."
        raise InvalidArgument(message("layer", "a layer before the logits", repr(name), remedy))
    if any(getattr(operation.layer, "data_format", None) == "channels_first" for operation in graph.operations):
        raise UnsupportedOperation(
            f"Model `{model_name}` has its channels first; concepts are made of the last axis. "
            "Build the model with data_format='channels_last'."
        )
    if len(shape) not in _LAYERS:
        raise UnsupportedOperation(
            f"Layer `{name}` gives {shape}; an autoencoder codes maps (N, height, width, channels), volumes (N, "
            "slices, height, width, channels) or features (N, channels). Choose a layer that gives one of these."
        )
    if shape[-1] is None:
        expected = "a layer with a known number of channels on its last axis"
        raise InvalidArgument(message("layer", expected, f"{name!r} of shape {shape}"))
    producer = graph.producer(downstream.position)
    paths = [name] if producer is None else [name, producer.path.removesuffix("/activation")]
    for path in paths:
        if _stands_for(graph, path, downstream.position):
            return path, int(shape[-1])
    expected = "a layer whose name or path finds it again"
    raise InvalidArgument(message("layer", expected, repr(name), "Give the path of the layer in the model."))


def coding_layers(
    shape: Shape, hidden: int, concepts: int, kernel_size: int, activation: str | None, dtype: Any
) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """The layers of an encoder and a decoder, built, that start as a projection of every pixel's channels.

    The kernels are 0 but for their centre, where the decoder's are the encoder's transposed. Without an activation all
    four together are the orthogonal projection onto random directions, as many as `concepts` and `hidden` allow.

    Args:
        shape: Shape of the activation.
        hidden: Channels between the activation and the code.
        concepts: Channels of the code.
        kernel_size: Side of the kernels; dense layers have none.
        activation: Name of the activation of the two hidden layers, or None.
        dtype: Dtype or policy of the layers.

    Returns:
        Encoder (two layers) and decoder (two layers).

    Raises:
        InvalidArgument: There is no such activation.
    """
    try:
        keras.activations.get(activation)
    except (ValueError, TypeError):
        expected = "the name of a Keras activation, or None"
        raise InvalidArgument(message("activation", expected, repr(activation))) from None
    channels, rank = int(shape[-1] or 0), len(shape)
    orthogonal = keras.initializers.Orthogonal()
    first = np.asarray(orthogonal((channels, hidden)))
    second = np.asarray(orthogonal((min(channels, hidden), concepts)))
    if hidden > channels:
        second = first.T @ second  # out of what the hidden channels hold
    sizes = {} if rank == 2 else {"kernel_size": kernel_size, "padding": "same"}
    layers = []
    parts = (("encoder", first), ("code", second), ("decoder", second.T), ("reconstruction", first.T))
    for name, matrix in parts:
        inner = activation if name in ("encoder", "decoder") else None
        layer = _LAYERS[rank](matrix.shape[1], **sizes, activation=inner, dtype=dtype, name=name)
        layer.build((*shape[:-1], matrix.shape[0]))
        kernel = np.zeros(layer.kernel.shape, np.float32)
        kernel[((kernel_size - 1) // 2,) * (rank - 2)] = matrix
        layer.kernel.assign(kernel)
        layers.append(layer)
    return layers[:2], layers[2:]


def usable_penalty(interpretability: Interpretability, rank: int) -> Penalty:
    """The penalty that a user has chosen, as one function.

    Args:
        interpretability: Names, weights by name, or a function.
        rank: Number of axes of the activation.

    Raises:
        InvalidArgument: As for :func:`chosen_penalties`; or the activation has no places, and only penalties were
            chosen that compare places.
    """
    if callable(interpretability):
        return interpretability
    weights = chosen_penalties(interpretability)
    if rank == 2 and not weights.get("l1"):
        remedy = "The others compare places, which features (N, channels) do not have."
        received = ", ".join(weights)
        raise InvalidArgument(message("interpretability", "`l1` for a layer without places", received, remedy))
    return weighted_penalty(weights)


def saved_penalty(interpretability: Interpretability) -> Any:
    """A user's choice of penalties in the form in which it is saved."""
    if callable(interpretability):
        return keras.saving.serialize_keras_object(interpretability)
    return chosen_penalties(interpretability)


def _stands_for(graph: OperationGraph, path: str, position: int) -> bool:
    try:
        return graph.layer_output(path) == position
    except InvalidArgument:
        return False
