"""The only file that knows which Keras this is.

Everything that differs between Keras versions, or that has no public name in Keras, is wrapped here under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Node:
    """One call of a Keras operation inside a functional model.

    Attributes:
        operation: The layer (or other Keras operation) that was called.
        input_ids: Identity of every tensor that goes in.
        output_ids: Identity of every tensor that comes out.
        output_shapes: Static shape of every tensor that comes out, None where unknown.
        arguments: Takes tensors by identity and gives the positional and keyword arguments of the call.
        constants: Whether the call also has arguments that are not tensors of the model.
    """

    operation: Any
    input_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    arguments: Callable[[dict[int, tf.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
    constants: bool


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
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            options = {name: value for name, value in node.arguments.kwargs.items() if name != "training"}
            values = keras.tree.flatten((node.arguments.args, options))
            constants = [value for value in values if not isinstance(value, keras.KerasTensor) and value is not None]
            yield Node(
                operation=node.operation,
                input_ids=tuple(id(tensor) for tensor in node.input_tensors),
                output_ids=tuple(id(tensor) for tensor in node.outputs),
                output_shapes=tuple(tuple(tensor.shape) for tensor in node.outputs),
                arguments=node.arguments.fill_in,
                constants=bool(constants),
            )


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


_ACTIVATION_LAST = (
    "Dense EinsumDense Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose "
    "DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D"
)


def ends_with_activation(layer: Any) -> bool:
    """Whether the last thing that a layer does is to apply its `activation`.

    Recurrent layers use it inside, and what a user's own layer does with an attribute of that name is not known.
    """
    calls = {getattr(keras.layers, name).call for name in _ACTIVATION_LAST.split()}
    return getattr(type(layer), "call", None) in calls


def without_activation(layer: Any) -> Any:
    """A layer that shares the weights and the state of `layer` and leaves its activation out.

    `copy.copy` of a Keras layer makes new weights; the twin refers to the very same ones, and `layer` is not changed.
    """
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin.__dict__.update(activation=keras.activations.linear, _inbound_nodes=[], _outbound_nodes=[])
    return twin


@contextmanager
def losses_kept(model: Any) -> Iterator[None]:
    """Leave the losses that a model's layers have gathered (activity regularisation) as they were."""
    gathered = [
        (values, values.copy())
        for layer in [model, *model._flatten_layers(include_self=False)]
        for values in (layer._losses, layer._loss_ids)
    ]
    try:
        yield
    finally:
        for values, before in gathered:
            values.clear()
            (values.extend if isinstance(values, list) else values.update)(before)


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """Split what `fit` hands to a step into inputs, targets and sample weights."""
    return keras.utils.unpack_x_y_sample_weight(data)


def track_loss(model: Any, loss: tf.Tensor, batch_size: tf.Tensor) -> None:
    """Record the loss of a step under the name `loss`, as `fit` does."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def apply_gradients(model: Any, tape: tf.GradientTape, loss: tf.Tensor) -> None:
    """Differentiate a loss that was computed under `tape` and update the model's weights."""
    with tape:
        scaled = model.optimizer.scale_loss(loss)
    weights = model.trainable_weights
    model.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))


def rebuild_train_function(model: Any) -> None:
    """Have `fit` trace the training step anew, because a Python value that it depends on has changed."""
    model.make_train_function(force=True)


def reset_random_state(model: Any, seed: int) -> None:
    """Set the random generators of a model's layers (dropout, noise) to a state that depends on `seed` only.

    Keras does not save that state with the weights; a resumed training needs it to be what it would have been.
    """
    generators: dict[int, Any] = {}
    for layer in [model, *model._flatten_layers(include_self=False)]:
        for generator in getattr(layer, "_seed_generators", []):
            generators[id(generator.state)] = generator
    for position, generator in enumerate(generators.values()):
        words = np.random.SeedSequence([seed, position]).generate_state(2, dtype=np.uint32)
        generator.state.assign(np.asarray(words >> 1, dtype="int64"))
