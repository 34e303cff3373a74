"""One step of a Keras model, and how a model becomes a list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.functional import Shape, nested_graph, rows_per_sample, traced


@dataclass(frozen=True)
class Operation:
    """One step of a model.

    Attributes:
        path: Where the step stands in the model, e.g. `backbone/conv1`; a split-off activation is `conv1/activation`,
            the second call of a shared layer `conv1:2`. No two steps of a graph have the same.
        layer: The Keras layer, or the operation of `keras.ops`, that carries it out.
        inputs: Positions of the tensors that go in, one for every place in the call: a tensor can be there twice.
        outputs: Positions of the tensors that come out.
        shapes: Static shapes of the outputs, None where unknown.
        input_shapes: Static shapes of the inputs.
        sources: The steps that the inputs come from; None for an input of the model.
        arguments: Puts one tensor for every input into the places that they have in the call, beside its constants.
        constants: What else the call was given, except None and `training`.
        fixed_training: Whether this call is always made in training or in inference mode; None where it follows the
            model. Only a `call` of a user's own can fix it.
        rows: How many rows of the outputs belong to one sample, one sample's below the other's: more than 1 where a
            reshape has put parts of the samples into the batch, 0 where a row can belong to several samples.
    """

    path: str
    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[Shape, ...]
    input_shapes: tuple[Shape, ...]
    sources: tuple[Operation | None, ...] = field(repr=False)
    arguments: keras_api.Arguments = field(repr=False)
    constants: tuple[Any, ...] = field(default=(), repr=False)
    fixed_training: bool | None = field(default=None, repr=False)
    rows: int = field(default=1, repr=False)

    @property
    def output(self) -> int:
        """Position of the first tensor that comes out."""
        return self.outputs[0]

    @property
    def shape(self) -> Shape:
        """Static shape of the first tensor that comes out."""
        return self.shapes[0]

    def trains(self, training: bool) -> bool:
        """Whether the step is run in training mode when the model is, or is not."""
        return training if self.fixed_training is None else self.fixed_training

    def run(self, activations: Mapping[int, tf.Tensor], training: bool) -> list[tf.Tensor]:
        """Compute the outputs from the tensors by position, as the model does."""
        args, kwargs = self.arguments([activations[position] for position in self.inputs])
        return keras.tree.flatten(keras_api.call_operation(self.layer, args, kwargs, self.trains(training)))

    def compute(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Compute the outputs at inference from one tensor for every input, in the dtype of these tensors."""
        args, kwargs = self.arguments(inputs)
        return keras.tree.flatten(keras_api.compute(self.layer, args, kwargs))


class OperationBuilder:
    """Gathers the operations of a functional model and of everything that is nested in it.

    Args:
        keep: Takes a layer of a user's own and says whether to keep it whole.
        in_training: Whether the model is run in training mode, too.

    Attributes:
        operations: The operations, in an order in which they can run.
        shapes: Static shapes of the tensors, by position.
        layer_outputs: By path, a layer or nested model and the positions of what comes out of it.
    """

    def __init__(self, keep: Callable[[Any], bool], in_training: bool) -> None:
        self.operations: list[Operation] = []
        self.shapes: list[Shape] = []
        self.layer_outputs: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._keep, self._in_training = keep, in_training
        self._producers: dict[int, Operation] = {}
        self._paths: set[str] = set()

    def new_tensors(self, shapes: Sequence[Shape]) -> tuple[int, ...]:
        """Positions for tensors of these static shapes."""
        self.shapes.extend(shapes)
        return tuple(range(len(self.shapes) - len(shapes), len(self.shapes)))

    def add(
        self, functional: Any, inputs: Sequence[int], prefix: str, fixed_training: bool | None = None
    ) -> tuple[int, ...]:
        """Append the operations of a functional model.

        Args:
            functional: The model, or the graph of one.
            inputs: Positions of its inputs.
            prefix: What the paths of its operations begin with.
            fixed_training: As in :class:`Operation`, for those that say nothing else.

        Returns:
            The positions of its outputs.
        """
        position = dict(zip(keras_api.input_ids(functional), inputs, strict=True))
        for node in keras_api.nodes(functional):
            sources = tuple(position[identity] for identity in node.input_ids)
            path = self._unused(f"{prefix}{keras_api.operation_name(node.operation)}", self.layer_outputs)
            fixed = fixed_training if node.fixed_training is None else node.fixed_training
            inner, order = self._expanded(node, path, sources)
            if inner is None:
                outputs = self._append(node, path, sources, fixed)
            else:
                outputs = self.add(inner, [sources[place] for place in order], f"{path}/", fixed)
            self.layer_outputs[path] = (node.operation, outputs)
            position.update(zip(node.output_ids, outputs, strict=True))
        return tuple(position[identity] for identity in keras_api.output_ids(functional))

    def _expanded(self, node: keras_api.Node, path: str, sources: Sequence[int]) -> tuple[Any | None, Sequence[int]]:
        """The graph of a nested model or of a layer of a user's own, and its inputs; None for what is one operation."""
        layer, shapes = node.operation, [self.shapes[source] for source in sources]
        if isinstance(layer, keras.Model):
            return nested_graph(node, path, shapes, self._in_training)
        if isinstance(layer, keras.layers.Layer) and not self._keep(layer):
            return traced(layer, node.arguments, shapes, self._in_training), range(len(sources))
        return None, ()

    def _append(
        self, node: keras_api.Node, path: str, sources: tuple[int, ...], fixed_training: bool | None
    ) -> tuple[int, ...]:
        layer = node.operation
        activation = layer.activation if keras_api.ends_with_activation(layer) else None
        fused = activation is not None and activation is not keras.activations.linear
        path = self._unused(path, self._paths)
        outputs = self.new_tensors(node.output_shapes)
        plain = keras_api.without_activation(layer) if fused else layer
        self._add_operation(path, plain, sources, outputs, node.arguments, node.constants, fixed_training)
        if not fused:
            return outputs
        if not isinstance(activation, keras.layers.Layer):
            activation = keras.layers.Activation(activation, name=f"{layer.name}_activation", dtype=layer.compute_dtype)
        activated = self.new_tensors(node.output_shapes)
        self._add_operation(
            self._unused(f"{path}/activation", self._paths),
            activation,
            outputs,
            activated,
            lambda tensors: (tuple(tensors), {}),
        )
        return activated

    def _add_operation(
        self,
        path: str,
        layer: Any,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        arguments: keras_api.Arguments,
        constants: tuple[Any, ...] = (),
        fixed_training: bool | None = None,
    ) -> None:
        before = tuple(self._producers.get(source) for source in inputs)
        shapes = tuple(self.shapes[output] for output in outputs)
        input_shapes = tuple(self.shapes[source] for source in inputs)
        operation = Operation(
            path=path,
            layer=layer,
            inputs=inputs,
            outputs=outputs,
            shapes=shapes,
            input_shapes=input_shapes,
            sources=before,
            arguments=arguments,
            constants=constants,
            fixed_training=fixed_training,
            rows=rows_per_sample(layer, [getattr(source, "rows", 1) for source in before], input_shapes, shapes),
        )
        self.operations.append(operation)
        self._paths.add(path)
        self._producers.update(dict.fromkeys(outputs, operation))

    def _unused(self, path: str, taken: Any) -> str:
        calls = (path if call == 1 else f"{path}:{call}" for call in count(1))
        return next(name for name in calls if name not in taken)
