"""Concepts of a layer: what any source of them offers, and the channels of the layer as concepts of their own."""

from __future__ import annotations

from typing import Protocol

import keras
import tensorflow as tf

from tfcausal.effects.downstream import Downstream
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.models.checks import head_of
from tfcausal.objectives.heads import Head


class Concepts(Protocol):
    """What an activation is taken apart into, and put together from again."""

    @property
    def downstream(self) -> Downstream:
        """The classifier behind the activation."""

    @property
    def concepts(self) -> int:
        """Number of concepts, K."""

    @property
    def network(self) -> keras.Model:
        """The classifier."""

    @property
    def head(self) -> Head:
        """What the units of its head stand for."""

    @property
    def trained(self) -> bool:
        """Whether the codes mean something yet."""

    def encode(self, activation: tf.Tensor) -> tf.Tensor:
        """Codes (N, height, width, K) of an activation (N, height, width, channels), or (N, K) of (N, channels)."""

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """The activation that belongs to codes."""


class ChannelConcepts:
    """Every channel of a layer as a concept.

    The codes are the activation itself: nothing is trained, nothing is lost, and the network through them is the
    network. Which channels mean something to a person is another question; an autoencoder gathers them into fewer.

    Args:
        model: A Keras classifier of images.
        layer: The layer whose channels, on the last axis, are the concepts: the layer, its name or its path.

    Attributes:
        downstream: The classifier behind the layer.
        concepts: Number of channels.
        network: The classifier.
        head: `multi_class`, `binary` or `multi_label`; several units without an activation count as classes.
        trained: True.

    Raises:
        InvalidArgument: There is no such layer, the logits do not depend on it, or its number of channels is unknown.
        UnsupportedOperation: The model has its channels first, or as for :class:`Downstream`.

    Example:
        >>> inputs = keras.Input((4, 4, 1))
        >>> pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 1, name="maps")(inputs))
        >>> model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
        >>> ChannelConcepts(model, "maps").concepts
        2
    """

    trained = True

    def __init__(self, model: keras.Model, layer: object) -> None:
        self.downstream = Downstream(model, layer)
        layers = [operation.layer for operation in self.downstream.graph.operations]
        if any(getattr(layer, "data_format", None) == "channels_first" for layer in layers):
            raise UnsupportedOperation(
                f"Model `{model.name}` has its channels first; concepts are taken from the last axis. "
                "Build the model with data_format='channels_last'."
            )
        shape = self.downstream.shape
        if len(shape) < 2 or shape[-1] is None:
            expected = "a layer with a known number of channels on its last axis"
            raise InvalidArgument(message("layer", expected, f"{self.downstream.layer!r} of shape {shape}"))
        self.concepts = int(shape[-1])
        self.network = model
        self.head = head_of(self.downstream.graph, None)

    def encode(self, activation: tf.Tensor) -> tf.Tensor:
        """The activation itself."""
        return activation

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """The codes themselves."""
        return codes
