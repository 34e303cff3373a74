"""A Keras model as an ordered list of operations that can be run with every activation kept.

:class:`OperationGraph` is what the propagation rules walk over and what the training objectives read their logits,
activations and class maps from. Nested models and layers of a user's own are replaced by what they are made of,
activations fused into a layer are operations of their own, and a softmax or sigmoid at the head is split off, so that
a model is always explained at its logits. The model itself is not changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.functional import Shape, functional_graph
from tfcausal.operations import Operation, OperationBuilder

logger = logging.getLogger(__name__)

Activations = dict[int, tf.Tensor]


class OperationGraph:
    """The operations of a Keras model, in an order in which they can run.

    Args:
        model: A functional, Sequential or subclassed Keras model; it may contain nested models, shared layers,
            operations of `keras.ops`, and layers of its own. A subclassed model has been called once, and its `call`
            is made of Keras layers and operations. A wrapper that trains a network names it in its property
            `explained_network`.
        output: Which output is explained, by name or position; may be None where there is only one.
        keep: Takes a layer of a user's own and says whether to keep it whole; others are replaced by what they are
            made of where that can be traced.
        in_training: Whether the model is run in training mode, too. What a user's own layer does differently then
            cannot be followed, so that it is kept whole; a model that does is refused.

    Attributes:
        operations: The operations that the output depends on.
        inputs: Positions of the input tensors.
        input_shapes: Their static shapes.
        input_names: Their names.
        input_dtypes: Their dtypes.
        logits: Position of the tensor before the head's softmax or sigmoid (the output itself where there is none).
        output: Position of the output tensor.
        num_classes: Size of the last axis of the logits.

    Raises:
        InvalidArgument: `model` is not a Keras model; `output` names no output, or is None where there are several.
        UnsupportedOperation: The model is not built, its `call` cannot be traced, or its logits are not
            (batch, classes).

    Example:
        >>> import keras
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(3, activation="softmax", name="head")(2.0 * inputs)
        >>> graph = OperationGraph(keras.Model(inputs, outputs))
        >>> [operation.path for operation in graph.operations][1:]
        ['head', 'head/activation']
        >>> graph.num_classes
        3
    """

    def __init__(
        self,
        model: keras.Model,
        output: str | int | None = None,
        keep: Callable[[Any], bool] = keras_api.is_keras_layer,
        in_training: bool = False,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise InvalidArgument(message("model", "a keras.Model", type(model).__name__))
        functional = functional_graph(model, in_training)
        builder = OperationBuilder(keep, in_training)
        symbolic = keras_api.input_tensors(functional)
        self.inputs = tuple(range(len(symbolic)))
        self.input_shapes: tuple[Shape, ...] = tuple(tuple(tensor.shape) for tensor in symbolic)
        self.input_names = keras_api.input_names(functional)
        self.input_dtypes = tuple(tensor.dtype for tensor in symbolic)
        outputs = builder.add(functional, builder.new_tensors(self.input_shapes), prefix="")
        chosen = _chosen_output(model, functional, output)
        self.output = outputs[chosen]
        self._shapes = builder.shapes
        self._layer_outputs = builder.layer_outputs
        self.operations: list[Operation] = _needed(builder.operations, {self.output})
        self._producers = {position: operation for operation in self.operations for position in operation.outputs}
        self.logits = self._split_head(model.name)
        self.num_classes = self._num_classes(model.name)

    @property
    def input(self) -> int:
        """Position of the only input tensor, or of the first."""
        return self.inputs[0]

    @property
    def input_shape(self) -> Shape:
        """Static shape of the only input, or of the first."""
        return self.input_shapes[0]

    def _split_head(self, name: str) -> int:
        last = self.producer(self.output)
        if last is not None and keras_api.is_probability(last.layer):
            logger.info("Model `%s` is explained at the logits, before `%s`.", name, last.path)
            return last.inputs[0]
        return self.output

    def _num_classes(self, name: str) -> int:
        shape = self._shapes[self.logits]
        if len(shape) != 2 or shape[-1] is None:
            raise UnsupportedOperation(
                f"Model `{name}` gives logits of shape {shape}; a classifier gives (batch, classes). "
                "Add a pooling layer and a head, or take the part of the model that classifies."
            )
        return int(shape[-1])

    def producer(self, tensor: int) -> Operation | None:
        """The operation whose output stands at this position; None for an input."""
        return self._producers.get(tensor)

    def shape(self, tensor: int) -> Shape:
        """Static shape of the tensor at this position."""
        return self._shapes[tensor]

    def find(self, path: str) -> Operation:
        """The operation with this path.

        Raises:
            InvalidArgument: There is none; the message lists the paths.
        """
        for operation in self.operations:
            if operation.path == path:
                return operation
        paths = ", ".join(operation.path for operation in self.operations)
        raise InvalidArgument(message("path", f"one of {paths}", repr(path)))

    def layer_output(self, layer: object) -> int:
        """Position of what a layer or nested model gives, its fused activation included.

        Args:
            layer: The layer itself, its name, or its path through nested models, e.g. `backbone/conv1`.

        Raises:
            InvalidArgument: There is no such layer, its name is not unique, or it gives several tensors; the message
                lists the paths.
        """
        alive = {*self.inputs, *self._producers}
        known = {
            path: (owner, outputs)
            for path, (owner, outputs) in self._layer_outputs.items()
            if alive.issuperset(outputs) and len(outputs) == 1
        }
        if isinstance(layer, str):
            found = [path for path in known if path == layer] or [
                path for path in known if path.rpartition("/")[2] == layer
            ]
        else:
            found = [path for path, (owner, _) in known.items() if owner is layer]
        if len(found) == 1:
            return known[found[0]][1][0]
        received = repr(layer) if isinstance(layer, str) else repr(getattr(layer, "name", layer))
        remedy = f"It stands for {' and '.join(found)}: give the path." if found else ""
        raise InvalidArgument(message("layer", f"one of {', '.join(known)}", received, remedy))

    def run(
        self,
        inputs: tf.Tensor | Sequence[tf.Tensor],
        training: bool = False,
        replace: Mapping[int, Callable[[tf.Tensor], tf.Tensor]] | None = None,
        given: Mapping[int, tf.Tensor] | None = None,
        until: int | None = None,
    ) -> Activations:
        """Run the model up to its logits, keeping every tensor.

        Args:
            inputs: Batch of model inputs, (N, ...); a sequence of them where the model has several.
            training: Whether layers behave as in training (dropout, batch statistics).
            replace: Functions to use instead of the layer, by the position of the output of a one-input operation.
            given: Tensors that are known already, by position; what they come from is not run again.
            until: Position of a tensor to stop at: what it does not depend on is not run.

        Returns:
            Every tensor by its position; the logits stand at `self.logits`.
        """
        single = tf.is_tensor(inputs) or not isinstance(inputs, (list, tuple))
        tensors = [tf.convert_to_tensor(value) for value in ([inputs] if single else inputs)]
        activations: Activations = dict(zip(self.inputs, tensors, strict=True))
        activations.update(given or {})
        wanted = self.logits if until is None else until
        for operation in _needed(self.operations, {wanted}, known=activations):
            function = None if replace is None else replace.get(operation.output)
            if function is None:
                activations.update(zip(operation.outputs, operation.run(activations, training), strict=True))
            else:
                activations[operation.output] = function(activations[operation.inputs[0]])
        return activations

    def head(self, logits: tf.Tensor) -> tf.Tensor:
        """Apply the softmax or sigmoid that was split off: logits (N, classes) become the model's own output.

        It is applied in the precision of the logits, or in that which it has in the model where that is higher.
        """
        producer = self.producer(self.output)
        if self.output == self.logits or producer is None:
            return logits
        own = tf.as_dtype(getattr(producer.layer, "compute_dtype", logits.dtype))
        return producer.compute([tf.cast(logits, own) if own.size > logits.dtype.size else logits])[0]

    def activation_bytes(self) -> int:
        """Memory that the activations of one input take, in bytes of float32; unknown sizes count as 224."""
        shapes = [(1, shape) for shape in self.input_shapes]
        shapes += [(max(1, operation.rows), shape) for operation in self.operations for shape in operation.shapes]
        return sum(4 * rows * prod(224 if size is None else size for size in shape[1:]) for rows, shape in shapes)


def _chosen_output(model: keras.Model, functional: Any, output: str | int | None) -> int:
    names = keras_api.output_names(functional)
    listed = ", ".join(f"{position} ({name})" for position, name in enumerate(names))
    expected = f"a name or position of one of the outputs of model `{model.name}`: {listed}"
    if output is None and len(names) == 1:
        return 0
    if isinstance(output, str) and names.count(output) == 1:
        return names.index(output)
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < len(names):
        return output
    remedy = "Choose one, or take keras.Model(inputs, output) of the one that matters." if output is None else ""
    raise InvalidArgument(message("output", expected, repr(output), remedy))


def _needed(
    operations: Sequence[Operation], outputs: set[int], known: Mapping[int, tf.Tensor] | None = None
) -> list[Operation]:
    """The operations that some tensors depend on, in their order; what comes before known tensors is left out."""
    tensors, needed = set(outputs), []
    for operation in reversed(operations):
        wanted = tensors.intersection(operation.outputs)
        if wanted and not (known is not None and wanted.issubset(known)):
            tensors.update(operation.inputs)
            needed.append(operation)
    return needed[::-1]
