"""What a layer or another operation of Keras is, and layers made from others."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


def operation_name(operation: Any) -> str:
    """Name of a layer; for another operation, whose name is numbered through the process, that of its kind."""
    if isinstance(operation, keras.layers.Layer):
        return operation.name
    return re.sub(r"_\d+$", "", operation.name)


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
