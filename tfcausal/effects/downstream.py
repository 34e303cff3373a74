"""The part of a classifier behind a tensor: run once up to there, and on from there for every intervention."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.functional import Shape
from tfcausal.graph import Activations, OperationGraph


class Downstream:
    """What a classifier makes of one of its activations.

    The classifier is run at inference (no dropout, moving statistics in batch normalisation), and is not changed. Where
    other tensors lead past the layer, as the shortcut of a residual block does, they are kept with the activation.

    Args:
        model: A Keras classifier of images.
        layer: The layer behind which the rest begins: the layer itself, its name, or its path in nested models.

    Attributes:
        graph: The operations of the classifier.
        position: Where the activation stands in the graph.
        layer: The layer as it was given, its name where it was a layer.
        shape: Static shape of the activation, (None, ...).
        operations: How many operations lie behind the layer, up to the logits.

    Raises:
        InvalidArgument: There is no such layer, or the logits do not depend on it.
        UnsupportedOperation: The model has several inputs or no static graph, or the layer, or another one that the
            rest reads from, works on parts of the images as if they were images of their own.

    Example:
        >>> inputs = keras.Input((4, 4, 1))
        >>> maps = keras.layers.Conv2D(2, 1, name="maps")(inputs)
        >>> pooled = keras.layers.GlobalAveragePooling2D()(maps)
        >>> model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
        >>> downstream = Downstream(model, "maps")
        >>> known = downstream.known(tf.ones((2, 4, 4, 1)))
        >>> logits = downstream.logits(known, tf.zeros((2, 4, 4, 2)))
        >>> [round(float(p), 3) for p in downstream.output(logits)[0]]
        [0.333, 0.333, 0.333]
    """

    def __init__(self, model: keras.Model, layer: object) -> None:
        self.graph = OperationGraph(model)
        if len(self.graph.inputs) != 1:
            raise UnsupportedOperation(
                f"Effects are measured in classifiers of one input; model `{model.name}` has {len(self.graph.inputs)}."
            )
        self.position = self.graph.layer_output(layer)
        self.layer = layer if isinstance(layer, str) else str(getattr(layer, "name", layer))
        self.shape: Shape = self.graph.shape(self.position)
        behind = {self.position}
        passed: set[int] = set()
        self.operations = 0
        for operation in self.graph.operations:
            if behind.isdisjoint(operation.inputs):
                continue
            self.operations += 1
            behind.update(operation.outputs)
            passed.update(operation.inputs)
        if self.graph.logits not in behind:
            remedy = "It stands behind the logits, or leads to another output."
            raise InvalidArgument(message("layer", "a layer that the logits depend on", repr(self.layer), remedy))
        # What the rest reads and does not depend on the activation itself.
        self._passed = tuple(sorted(passed - behind))
        for position in (self.position, *self._passed):
            producer = self.graph.producer(position)
            if producer is None or producer.rows == 1:
                continue
            reason = "a change in one of them is no intervention on the image"
            if position != self.position:
                reason = f"what lies behind `{self.layer}` reads them, and an intervention has one row for every image"
            raise UnsupportedOperation(
                f"`{producer.path}` gives {producer.rows} rows for every image: {reason}. Choose a layer before the "
                "images are taken apart."
            )

    def known(self, images: tf.Tensor) -> Activations:
        """Run the classifier up to the layer.

        Args:
            images: (N, height, width, channels) in the classifier's input space.

        Returns:
            The activation, at `position`, and all else that the rest needs, each (N, ...).
        """
        activations = self.graph.run(images, until=self.position)
        for position in self._passed:
            if position not in activations:
                activations = self.graph.run(images, given=activations, until=position)
        return {position: activations[position] for position in (self.position, *self._passed)}

    def repeated(self, known: Mapping[int, tf.Tensor], count: int | tf.Tensor) -> Activations:
        """The same images `count` times each, one image's copies in a row, for as many interventions at once."""
        return {position: tf.repeat(value, count, axis=0) for position, value in known.items()}

    def logits(self, known: Mapping[int, tf.Tensor], activation: tf.Tensor | None = None) -> tf.Tensor:
        """Run on from the layer.

        Args:
            known: What :meth:`known` gave.
            activation: What takes the place of the layer's activation, (N, ...); None leaves it.

        Returns:
            The logits (N, classes).
        """
        given = dict(known)
        if activation is not None:
            given[self.position] = tf.cast(activation, known[self.position].dtype)
        # The input is not read again: all that depends on it alone is known.
        given.setdefault(self.graph.input, tf.zeros((0,)))
        return self.graph.run(given[self.graph.input], given=given)[self.graph.logits]

    def output(self, logits: tf.Tensor) -> tf.Tensor:
        """The classifier's own output for logits: probabilities where it has a softmax or sigmoid."""
        return self.graph.head(logits)
