"""A Keras model as an ordered list of operations that can be run with every activation kept.

:class:`OperationGraph` is what the propagation rules walk over and what the training objectives read their logits,
activations and class maps from. Activations fused into a layer are operations of their own here, and a softmax or
sigmoid at the head is split off, so that a model is always explained at its logits. The model itself is not changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message

logger = logging.getLogger(__name__)

Activations = dict[int, tf.Tensor]


@dataclass(frozen=True)
class Operation:
    """One step of a model.

    Attributes:
        path: Where the step stands in the model, e.g. `backbone/conv1`; a split-off activation is `conv1/activation`,
            the second call of a shared layer `conv1:2`. No two steps of a graph have the same.
        layer: The Keras layer that carries it out.
        inputs: Positions of the tensors that go in.
        output: Position of the tensor that comes out.
        shape: Static shape of the output, None where unknown.
        arguments: Puts tensors into the places that they have in the layer's call.
    """

    path: str
    layer: Any
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int | None, ...]
    arguments: Callable[[Mapping[int, tf.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)

    def run(self, activations: Mapping[int, tf.Tensor], training: bool) -> tf.Tensor:
        """Compute the output from the tensors by position."""
        args, kwargs = self.arguments(activations)
        return keras_api.call_operation(self.layer, args, kwargs, training)


class OperationGraph:
    """The operations of a functional or built Sequential model, in an order in which they can run.

    Args:
        model: A Keras model with one input and one output; it may contain nested models and shared layers. A wrapper
            that trains a network names it in its property `explained_network`.

    Attributes:
        operations: The operations that the output depends on.
        input: Position of the input tensor.
        logits: Position of the tensor before the head's softmax or sigmoid (the output itself where there is none).
        output: Position of the output tensor.
        num_classes: Size of the last axis of the logits.

    Raises:
        InvalidArgument: `model` is not a Keras model.
        UnsupportedOperation: The model has no static graph, is not built, has several inputs or outputs, or calls
            something that is not a layer.

    Example:
        >>> import keras
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(3, activation="softmax", name="head")(inputs)
        >>> graph = OperationGraph(keras.Model(inputs, outputs))
        >>> [operation.path for operation in graph.operations]
        ['head', 'head/activation']
        >>> graph.num_classes
        3
    """

    def __init__(self, model: keras.Model) -> None:
        if not isinstance(model, keras.Model):
            raise InvalidArgument(message("model", "a keras.Model", type(model).__name__))
        functional = _functional(model, model.name)
        inputs, outputs = keras_api.input_ids(functional), keras_api.output_ids(functional)
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnsupportedOperation(
                f"Model `{model.name}` has {len(inputs)} inputs and {len(outputs)} outputs; models with one input and "
                "one output are handled. Build a keras.Model from the input to the output that is to be explained."
            )
        self.operations: list[Operation] = []
        self._tensors = 1
        self.input = 0
        self.input_shape: tuple[int | None, ...] = tuple(functional.inputs[0].shape)
        (self.output,) = self._add(functional, (self.input,), prefix="")
        self.operations = _needed(self.operations, self.output)
        self.logits = self._split_head(model.name)
        self.num_classes = self._num_classes(model.name)

    def _add(self, functional: Any, inputs: Sequence[int], prefix: str) -> tuple[int, ...]:
        """Append the operations of a functional model, nested ones included; gives the positions of its outputs."""
        position = dict(zip(keras_api.input_ids(functional), inputs, strict=True))
        for node in keras_api.nodes(functional):
            path = f"{prefix}{node.operation.name}"
            sources = tuple(position[identity] for identity in node.input_ids)
            nested = isinstance(node.operation, keras.Model)
            if nested and not node.constants:
                results = self._add(_functional(node.operation, path), sources, prefix=f"{path}/")
                position.update(zip(node.output_ids, results, strict=True))
                continue
            is_layer = isinstance(node.operation, keras.layers.Layer)
            if nested or not is_layer or node.constants or len(node.output_ids) != 1:
                raise UnsupportedOperation(
                    f"`{path}` ({type(node.operation).__name__}) is not handled: the graph takes layers that are "
                    "called on tensors of the model only and give one tensor. Wrap other operations in a Keras layer."
                )
            position[node.output_ids[0]] = self._append(node, path, sources)
        return tuple(position[identity] for identity in keras_api.output_ids(functional))

    def _append(self, node: keras_api.Node, path: str, sources: tuple[int, ...]) -> int:
        layer, shape = node.operation, node.output_shapes[0]
        activation = layer.activation if keras_api.ends_with_activation(layer) else None
        fused = activation is not None and activation is not keras.activations.linear
        path = self._unused(path)
        output = self._new_tensor()
        self.operations.append(
            Operation(
                path=path,
                layer=keras_api.without_activation(layer) if fused else layer,
                inputs=sources,
                output=output,
                shape=shape,
                arguments=_renamed(node, sources),
            )
        )
        if fused:
            if not isinstance(activation, keras.layers.Layer):
                activation = keras.layers.Activation(
                    activation, name=f"{layer.name}_activation", dtype=layer.compute_dtype
                )
            source, output = output, self._new_tensor()
            self.operations.append(
                Operation(
                    path=self._unused(f"{path}/activation"),
                    layer=activation,
                    inputs=(source,),
                    output=output,
                    shape=shape,
                    arguments=lambda activations: ((activations[source],), {}),
                )
            )
        return output

    def _unused(self, path: str) -> str:
        taken = {operation.path for operation in self.operations}
        calls = (path if call == 1 else f"{path}:{call}" for call in count(1))
        return next(name for name in calls if name not in taken)

    def _new_tensor(self) -> int:
        self._tensors += 1
        return self._tensors - 1

    def _split_head(self, name: str) -> int:
        last = self.producer(self.output)
        if last is not None and _is_probability(last.layer):
            logger.info("Model `%s` is explained at the logits, before `%s`.", name, last.path)
            return last.inputs[0]
        return self.output

    def _num_classes(self, name: str) -> int:
        producer = self.producer(self.logits)
        shape = self.input_shape if producer is None else producer.shape
        if len(shape) != 2 or shape[-1] is None:
            raise UnsupportedOperation(
                f"Model `{name}` gives logits of shape {shape}; a classifier gives (batch, classes). "
                "Add a pooling layer and a head, or take the part of the model that classifies."
            )
        return int(shape[-1])

    def producer(self, tensor: int) -> Operation | None:
        """The operation whose output stands at this position; None for the input."""
        return next((operation for operation in self.operations if operation.output == tensor), None)

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

    def run(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        replace: Mapping[int, Callable[[tf.Tensor], tf.Tensor]] | None = None,
    ) -> Activations:
        """Run the model up to its logits, keeping every tensor.

        Args:
            inputs: Batch of model inputs, (N, ...).
            training: Whether layers behave as in training (dropout, batch statistics).
            replace: Functions to use instead of the layer, by the position of the output of a one-input operation.

        Returns:
            Every tensor by its position; the logits stand at `self.logits`.
        """
        activations: Activations = {self.input: inputs}
        for operation in self.operations:
            if operation.output == self.output and self.output != self.logits:
                continue
            function = None if replace is None else replace.get(operation.output)
            activations[operation.output] = (
                operation.run(activations, training) if function is None else function(activations[operation.inputs[0]])
            )
        return activations

    def head(self, logits: tf.Tensor) -> tf.Tensor:
        """Apply the softmax or sigmoid that was split off: logits (N, classes) become the model's own output."""
        producer = self.producer(self.output)
        if self.output == self.logits or producer is None:
            return logits
        return producer.run({self.logits: logits}, training=False)

    def activation_bytes(self) -> int:
        """Memory that the activations of one input take, in bytes of float32; unknown sizes count as 224."""
        shapes = [self.input_shape, *(operation.shape for operation in self.operations)]
        return sum(4 * prod(224 if size is None else size for size in shape[1:]) for shape in shapes)


def _functional(model: keras.Model, path: str) -> Any:
    model = getattr(model, "explained_network", model)
    functional = keras_api.functional_graph(model)
    if functional is None:
        if keras_api.overrides_call(model):
            remedy = (
                "It has a `call` of its own. Rebuild it as a functional model; subclassed models are not handled yet."
            )
        elif isinstance(model, keras.Sequential):
            remedy = "Call `build(input_shape)` or call the model once."
        else:
            remedy = "Build it from an input and an output: keras.Model(inputs, outputs)."
        raise UnsupportedOperation(f"Model `{path}` ({type(model).__name__}) has no graph of operations. {remedy}")
    return functional


def _needed(operations: Sequence[Operation], output: int) -> list[Operation]:
    """The operations that a tensor depends on, in their order."""
    tensors, needed = {output}, []
    for operation in reversed(operations):
        if operation.output in tensors:
            tensors.update(operation.inputs)
            needed.append(operation)
    return needed[::-1]


def _renamed(node: keras_api.Node, sources: tuple[int, ...]) -> Callable[[Mapping[int, tf.Tensor]], Any]:
    pairs = tuple(zip(node.input_ids, sources, strict=True))
    return lambda activations: node.arguments({identity: activations[source] for identity, source in pairs})


def _is_probability(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Softmax):
        return True
    return isinstance(layer, keras.layers.Activation) and layer.activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )
