"""The only file that knows which Keras this is.

Everything that differs between Keras versions, or that has no public name in Keras, is wrapped here under one name.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

logger = logging.getLogger(__name__)

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


def operation_name(operation: Any) -> str:
    """Name of a layer; for another operation, whose name is numbered through the process, that of its kind."""
    if isinstance(operation, keras.layers.Layer):
        return operation.name
    return re.sub(r"_\d+$", "", operation.name)


def functional_like(functional: Any, inputs: list[Any], outputs: list[Any], name: str) -> keras.Model:
    """A functional model whose inputs and outputs come in the structure (list, dictionary) of another."""

    def packed(structure: Any, tensors: list[Any]) -> Any:
        single = len(tensors) == 1 and isinstance(structure, (list, tuple))
        return tensors[0] if single else keras.tree.pack_sequence_as(structure, tensors)

    return keras.Model(
        packed(functional._inputs_struct, inputs), packed(functional._outputs_struct, outputs), name=name
    )


# What a subclass may override without changing what its forward pass computes from the layer's attributes.
_HARMLESS = {
    "build",
    "build_from_config",
    "compute_output_shape",
    "compute_output_spec",
    "from_config",
    "get_build_config",
    "get_config",
    "load_own_variables",
    "save_own_variables",
}


def overridden(layer_class: type, ancestor: type) -> str:
    """What a class and those between it and an ancestor change of the ancestor's forward pass, spelled out."""
    between = layer_class.__mro__[: layer_class.__mro__.index(ancestor)]
    names = {
        name
        for kind in between
        for name in vars(kind)
        if hasattr(ancestor, name)
        and name not in _HARMLESS
        and (name == "__call__" or not name.startswith(("__", "_api_export")))
    }
    return ", ".join(f"`{name}`" for name in sorted(names))


def is_keras_layer(layer: Any) -> bool:
    """Whether a layer computes what one of Keras's public layers does: it is one, or changes nothing of it."""
    for kind in type(layer).__mro__:
        if vars(keras.layers).get(kind.__name__) is kind:
            return kind is not keras.layers.Layer and not overridden(type(layer), kind)
    return False


def operation_class(function: Callable[..., Any]) -> type:
    """The class of the operations that a function of `keras.ops` leaves in a model, e.g. `Add` for `keras.ops.add`.

    Raises:
        ValueError: The function leaves none of its own.
    """
    wanted = function.__name__.replace("_", "")
    for name, value in vars(inspect.getmodule(function)).items():
        if isinstance(value, type) and issubclass(value, keras.Operation) and name.lower() == wanted:
            return value
    raise ValueError(f"{function.__module__}.{function.__name__} has no operation of its own")


def is_probability(operation: Any) -> bool:
    """Whether an operation is a softmax or a sigmoid."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation in (keras.activations.softmax, keras.activations.sigmoid)
    kinds = (keras.layers.Softmax, operation_class(keras.ops.softmax), operation_class(keras.ops.sigmoid))
    return isinstance(operation, kinds)


def is_softmax(operation: Any) -> bool:
    """Whether an operation is a softmax, whose outputs add up to 1."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.softmax
    return isinstance(operation, (keras.layers.Softmax, operation_class(keras.ops.softmax)))


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
    """A layer that shares the weights and the state of `layer` and leaves its activation out."""
    return twin(layer, activation=keras.activations.linear)


def twin(layer: Any, **changes: Any) -> Any:
    """A layer or operation that shares the weights and the state of `layer` but for a few attributes.

    `copy.copy` of a Keras layer makes new weights; the twin refers to the very same ones, and `layer` is not changed.
    """
    other = object.__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other.__dict__.update(_inbound_nodes=[], _outbound_nodes=[], **changes)
    return other


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


def loss_description(loss: Any) -> tuple[str | None, bool | None]:
    """Name of a cross-entropy that a model was compiled with, and whether it takes logits; None where not known."""
    if isinstance(loss, str):
        return loss, False if loss.endswith("crossentropy") else None
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(loss).__name__).lower()
    return name, config.get("from_logits")


def unscaled_loss(loss: tf.Tensor) -> tf.Tensor:
    """The mean over the samples of this replica, of a loss that Keras has divided by the number of replicas."""
    return loss * tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)


def apply_gradients(model: Any, tape: tf.GradientTape, loss: tf.Tensor) -> None:
    """Differentiate a loss that was computed under `tape` and update the model's weights."""
    with tape:
        scaled = model.optimizer.scale_loss(loss)
    weights = model.trainable_weights
    gradients = tape.gradient(scaled, weights)
    # What is computed again for a gradient reads weights late. TensorFlow orders these reads before the updates; its
    # graph optimisation loses that order unless the updates wait for all gradients.
    with tf.control_dependencies([gradient for gradient in gradients if gradient is not None]):
        complete = [None if gradient is None else tf.identity(gradient) for gradient in gradients]
    model.optimizer.apply_gradients(zip(complete, weights, strict=True))


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


def symbolic_build(model: Any, iterator: Any, data_batch: Any) -> None:
    """Build metrics and losses before the first step, as `fit` does under a strategy.

    Keras averages the first batch over the workers before it does so, which fails with several of them; only shapes
    matter, so that the part of one replica will do.
    """
    strategy = model._distribute_strategy
    if strategy is None:
        return
    if iterator is not None:
        for _, _, steps in iterator:
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], next(steps)
            )
            break
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def reducible_logs(model: Any, logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The results of a step in the shape in which `fit` can average them over several workers: along axis 0."""
    strategy = model._distribute_strategy
    if not _has_several_workers(strategy) or not _averages_along_samples():
        return logs
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def results_of_epoch(model: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """What the metrics of a model say after an epoch, of those that its steps report.

    Keras takes the results of the last step where a model has metrics that its steps do not report; under a strategy
    these are the mean over the replicas, however unequal the parts of the samples that they have had.
    """
    results = model.get_metrics_result()
    return {name: results[name] for name in logs} if logs.keys() <= results.keys() else logs


@contextmanager
def steps_of_several_workers(model: Any) -> Iterator[None]:
    """Have `fit` and `evaluate` of any Keras model run on several workers; elsewhere nothing changes.

    What a model of ours has in its class, another one is given for as long as this lasts.
    """
    if not _has_several_workers(model._distribute_strategy):
        yield
        return

    def with_reducible_logs(step: Callable[[Any], dict[str, tf.Tensor]]) -> Callable[[Any], dict[str, tf.Tensor]]:
        return lambda data: reducible_logs(model, step(data))

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        symbolic_build(model, iterator, data_batch)

    own = {
        "_maybe_symbolic_build": build,
        "train_step": with_reducible_logs(model.train_step),
        "test_step": with_reducible_logs(model.test_step),
    }
    try:
        for name, function in own.items():
            setattr(model, name, function)
        model.train_function = model.test_function = None
        yield
    finally:
        for name in own:
            delattr(model, name)
        model.train_function = model.test_function = None


def _has_several_workers(strategy: Any) -> bool:
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several and strategy.extended._in_multi_worker_mode()


@cache
def _averages_along_samples() -> bool:
    """Whether this Keras averages the results of a step over workers along axis 0, which scalars do not have."""
    axes = []

    class Recorder(tf.distribute.MultiWorkerMirroredStrategy):
        extended = SimpleNamespace(_in_multi_worker_mode=lambda: True)

        def __init__(self) -> None:
            """Connects to no one."""

        def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
            axes.append(axis)
            return value

    trainer = sys.modules[keras.Model.make_train_function.__module__]
    trainer.reduce_per_replica(0.0, Recorder(), reduction="auto")
    return axes == [0]


def batch_moments(layer: Any, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and variance (C,) that a batch normalisation uses in training, of the batch of all replicas if it does.

    In float32 at least, as Keras has it.
    """
    return layer._moments(tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32")), None)


def training_policy(model: Any) -> Any:
    """The dtype policy that a model around another one needs, for Keras to scale the loss if gradients are float16.

    That of the model, unless its layers compute in float16 without it saying so: one that was loaded, cloned or put
    together of layers has the global policy, whatever its layers have.
    """
    policies = [layer.dtype_policy for layer in model._flatten_layers(include_self=False)]
    return next((policy for policy in policies if policy.name == "mixed_float16"), model.dtype_policy)
