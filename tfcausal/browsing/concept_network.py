"""The network that is left when concepts are taken away: a Keras model, so that every saliency method explains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcausal import keras_api
from tfcausal.effects.channels import Concepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.errors import UnsupportedOperation

_RANK = 4


class ConceptNetwork:
    """A classifier with a switch for each concept of one of its layers.

    Behind the layer stand the encoder, a 1x1 depthwise convolution without bias whose weights are 1 or 0, and the
    decoder; then the rest of the classifier. With all weights at 1 it is the network through the untouched
    autoencoder; for channels as concepts, the network itself. A weight of 0 is the papers' zero-out of this concept.
    The layers are twins of the classifier's and the autoencoder's own and share their weights, which are not changed.

    Args:
        concepts: A trained `ConceptAutoencoder`, or :class:`tfcausal.effects.channels.ChannelConcepts`, of a layer that
            gives feature maps.

    Attributes:
        model: The classifier with the switches.

    Raises:
        UnsupportedOperation: The layer gives no feature maps (N, height, width, channels), or a layer of the model is
            always called as in training.

    Example:
        >>> from tfcausal.effects.channels import ChannelConcepts
        >>> inputs = keras.Input((2, 2, 2))
        >>> maps = keras.layers.Activation("relu", name="maps")(inputs)
        >>> network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(maps))
        >>> switched = ConceptNetwork(ChannelConcepts(network, "maps"))
        >>> switched.zero([1])
        >>> np.asarray(switched.model(np.ones((1, 2, 2, 2), np.float32))).tolist()
        [[1.0, 0.0]]
    """

    def __init__(self, concepts: Concepts) -> None:
        downstream = concepts.downstream
        graph, shape = downstream.graph, downstream.shape
        if len(shape) != _RANK:
            raise UnsupportedOperation(
                f"Layer `{downstream.layer}` gives {shape}: a network without some of its concepts is made behind "
                "layers that give feature maps (N, height, width, channels)."
            )
        self._switch = keras.layers.DepthwiseConv2D(
            1, use_bias=False, depthwise_initializer="ones", dtype="float32", name="concept_switch"
        )
        self._concepts = concepts.concepts
        inputs = keras.Input(batch_shape=graph.input_shape, dtype=graph.input_dtypes[0], name="concept_input")
        tensors = {graph.input: inputs}
        twins: dict[int, Any] = {}
        if downstream.position == graph.input:
            tensors[graph.input] = self._switched(concepts, inputs)
        for number, operation in enumerate(graph.operations):
            if operation.fixed_training:
                raise UnsupportedOperation(
                    f"`{operation.path}` is called with training=True whatever the model is told."
                )
            layer = twins.setdefault(id(operation.layer), keras_api.twin(operation.layer, name=f"step_{number}"))
            args, kwargs = operation.arguments([tensors[position] for position in operation.inputs])
            results = keras.tree.flatten(layer(*args, **kwargs))
            tensors.update(zip(operation.outputs, results, strict=True))
            if downstream.position in operation.outputs:
                tensors[downstream.position] = self._switched(concepts, tensors[downstream.position])
        self.model = keras.Model(inputs, tensors[graph.output], name="concept_network")

    def zero(self, nodes: Sequence[int] = ()) -> None:
        """Set some concepts to 0, and leave all others as they are.

        Args:
            nodes: The concepts, each in [0, K).
        """
        weights = np.ones(self._concepts, np.float32)
        weights[list(nodes)] = 0.0
        self._switch.set_weights([weights.reshape(self._switch.get_weights()[0].shape)])

    def _switched(self, concepts: Concepts, tensor: Any) -> Any:
        if not isinstance(concepts, ConceptAutoencoder):
            return self._switch(tensor)
        scale = float(concepts.scale)
        tensor = keras.layers.Rescaling(1 / scale, name="concept_scale")(tensor)
        for layer in concepts.encoder:
            tensor = keras_api.twin(layer, name=f"concept_{layer.name}")(tensor)
        tensor = self._switch(tensor)
        for layer in concepts.decoder:
            tensor = keras_api.twin(layer, name=f"concept_{layer.name}")(tensor)
        return keras.layers.Rescaling(scale, name="concept_rescale")(tensor)
