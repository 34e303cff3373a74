"""Functional models as graphs of calls, and subclassed models as far as Keras knows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

Arguments = Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Node:
    """One call of a Keras operation inside a functional model.

    Attributes:
        operation: The layer or other Keras operation that was called.
        input_ids: Identity of every tensor that goes in, in the order of the arguments.
        input_dtypes: Dtype of every tensor that goes in.
        output_ids: Identity of every tensor that comes out.
        output_shapes: Static shape of every tensor that comes out, None where unknown.
        arguments: Takes one tensor for each of `input_ids` and gives the positional and keyword arguments of the call.
        constants: What the call was given that is neither a tensor of the model nor `training`.
        training: The `training` that the call was given; None where it was given none.
        fixed_training: The `training` that a call inside a traced `call` gives whatever it was told itself; None where
            it hands on what it is told.
    """

    operation: Any
    input_ids: tuple[int, ...]
    input_dtypes: tuple[str, ...]
    output_ids: tuple[int, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    arguments: Arguments
    constants: tuple[Any, ...]
    training: bool | None = None
    fixed_training: bool | None = None


def functional_graph(model: Any) -> Any | None:
    """The functional model behind a functional or a built Sequential model, or None where there is no graph.

    A subclass with a `call` of its own may compute something else than its graph, so it counts as having none.
    """
    if overrides_call(model):
        return None
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    return model if hasattr(model, "_nodes_by_depth") else None


def overrides_call(model: Any) -> bool:
    """Whether the class of a model brings a `call` or `__call__` that is not Keras's own."""
    definers = (next(kind for kind in type(model).__mro__ if name in vars(kind)) for name in ("call", "__call__"))
    return any(kind.__module__.partition(".")[0] != "keras" for kind in definers)


def nodes(functional: Any) -> Iterator[Node]:
    """The calls of a functional model in an order in which they can be carried out, its inputs left out."""
    fixed = iter(getattr(functional, "fixed_training", ()))
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            options = {name: value for name, value in node.arguments.kwargs.items() if name != "training"}
            values = keras.tree.flatten((node.arguments.args, options))
            yield Node(
                operation=node.operation,
                input_ids=tuple(id(tensor) for tensor in node.input_tensors),
                input_dtypes=tuple(tensor.dtype for tensor in node.input_tensors),
                output_ids=tuple(id(tensor) for tensor in node.outputs),
                output_shapes=tuple(tuple(tensor.shape) for tensor in node.outputs),
                arguments=_filled_in(node.arguments),
                constants=tuple(
                    value for value in values if not isinstance(value, keras.KerasTensor) and value is not None
                ),
                training=node.arguments.kwargs.get("training"),
                fixed_training=next(fixed, None),
            )


def _filled_in(symbolic: Any) -> Arguments:
    """Puts tensors into the places of a call one by one: the same tensor in two places can become two."""

    def arguments(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        remaining = iter(tensors)
        return symbolic.convert(lambda value: next(remaining) if isinstance(value, keras.KerasTensor) else value)

    return arguments


def input_tensors(functional: Any) -> list[Any]:
    """The symbolic inputs of a functional model; each has a shape, a dtype and a name."""
    return list(functional.inputs)


def input_names(functional: Any) -> tuple[str, ...]:
    """Names of the inputs of a functional model: the keys where they are a dictionary, else those of the tensors."""
    if isinstance(functional._inputs_struct, dict):
        return tuple(sorted(functional._inputs_struct))
    return tuple(tensor.name for tensor in functional.inputs)


def input_order(functional: Any, arguments: Arguments, count: int) -> tuple[int, ...]:
    """Which of the tensors of a call stand for the inputs of a functional model, one after the other.

    Keras takes a dictionary by the names of the inputs where the model was made of a list of them.
    """
    args, _ = arguments(list(range(count)))
    if isinstance(args[0], dict) and not isinstance(functional._inputs_struct, dict):
        return tuple(args[0][tensor.name] for tensor in functional.inputs)
    return tuple(keras.tree.flatten(args[0]))


def input_ids(functional: Any) -> tuple[int, ...]:
    """Identity of the input tensors of a functional model."""
    return tuple(id(tensor) for tensor in functional.inputs)


def output_ids(functional: Any) -> tuple[int, ...]:
    """Identity of the output tensors of a functional model."""
    return tuple(id(tensor) for tensor in functional.outputs)


def call_operation(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
    """Call an operation as a functional model does: every layer is told `training`, and hands it to its sublayers."""
    if "training" in getattr(operation, "_call_context_args", ()):
        kwargs = {**kwargs, "training": training}
    return operation(*args, **kwargs)


def compute(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation computes at inference, in the dtype of the tensors given instead of the layer's own.

    No layer state takes part but the weights: nothing is cast, masked, tracked, or added to the layer's losses.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    return operation.call(*args, **kwargs, **_training(operation, False))


def _training(operation: Any, training: bool) -> dict[str, bool]:
    return {"training": training} if "training" in inspect.signature(operation.call).parameters else {}


def call_in_mode(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> list[Any]:
    """What the `call` of a layer gives in a mode, as a flat list; on symbolic tensors, the graph of what it calls."""
    return keras.tree.flatten(layer.call(*args, **{**kwargs, **_training(layer, training)}))


@contextmanager
def nodes_kept(layer: Any) -> Iterator[None]:
    """Leave no trace of symbolic calls in the layers that are called: `layer.output` would change its meaning."""
    layers = [layer, *layer._flatten_layers(include_self=False)]
    operations = [operation for part in layers for operation in (part, *getattr(part, "_operations", ()))]
    before = [(part, part._inbound_nodes[:], part._outbound_nodes[:]) for part in operations]
    try:
        yield
    finally:
        for part, inbound, outbound in before:
            part._inbound_nodes[:], part._outbound_nodes[:] = inbound, outbound


def called_with(model: Any) -> tuple[Arguments, list[tuple[int | None, ...]], list[str] | None] | None:
    """How a subclassed model has been built or called: its arguments, their shapes, and their names in a dictionary.

    None where it has not been, or with several arguments.
    """
    if hasattr(model, "_inputs_struct"):
        structure = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), model._inputs_struct)
    else:
        built = getattr(model, "_build_shapes_dict", None)
        if not built or len(built) != 1:
            return None
        structure = next(iter(built.values()))
    shapes: list[tuple[int | None, ...]] = []
    keras.tree.map_shape_structure(lambda shape: shapes.append((None, *shape[1:])), structure)

    def arguments(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        remaining = iter(tensors)
        return (keras.tree.map_shape_structure(lambda shape: next(remaining), structure),), {}

    return arguments, shapes, sorted(structure) if isinstance(structure, dict) else None


def takes_several_arguments(model: Any) -> bool:
    """Whether the `call` of a subclassed model needs several arguments, `model(a, b)`."""
    parameters = inspect.signature(model.call).parameters.values()
    needed = [parameter for parameter in parameters if parameter.default is parameter.empty and parameter.kind < 2]
    return len(needed) > 1


def output_names(functional: Any) -> list[str]:
    """Names of the outputs of a functional model: the keys where they are a dictionary, else those of the layers."""
    if isinstance(functional._outputs_struct, dict):
        return sorted(functional._outputs_struct)
    names = getattr(functional, "output_names", None)
    return list(names or (tensor._keras_history.operation.name for tensor in functional.outputs))


def functional_like(functional: Any, inputs: list[Any], outputs: list[Any], name: str) -> keras.Model:
    """A functional model whose inputs and outputs come in the structure (list, dictionary) of another."""

    def packed(structure: Any, tensors: list[Any]) -> Any:
        single = len(tensors) == 1 and isinstance(structure, (list, tuple))
        return tensors[0] if single else keras.tree.pack_sequence_as(structure, tensors)

    return keras.Model(
        packed(functional._inputs_struct, inputs), packed(functional._outputs_struct, outputs), name=name
    )
