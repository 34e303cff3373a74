"""The functional model behind any Keras model: nested, Sequential, or subclassed and traced.

:func:`flatten` gives it to other libraries as one plain model; :mod:`tfcausal.graph` takes it apart further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message

Shape = tuple[int | None, ...]


def flatten(model: keras.Model) -> keras.Model:
    """A plain functional model without nested models, with the same weights and the same outputs.

    Other libraries look for layers at the top of a model and cut it at one of them; on a nested model that fails
    ("Graph disconnected"). The layers of the result are twins of the model's own: they share the very same weights,
    so that training either trains both, and the model is not changed.

    Args:
        model: Any model that :class:`OperationGraph` takes; it may have several inputs and outputs.

    Returns:
        The flat model. A layer has the name that it has in `model`; where a name occurs several times, its path with
        underscores (`backbone_conv1`). Layers with a fused activation and heads with a softmax stay as they are.

    Raises:
        InvalidArgument: `model` is not a Keras model.
        UnsupportedOperation: As for :class:`OperationGraph`.

    Example:
        >>> import keras
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="features")])
        >>> outer = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="head")])
        >>> [layer.name for layer in flatten(outer).layers][1:]
        ['features', 'head']
    """
    if not isinstance(model, keras.Model):
        raise InvalidArgument(message("model", "a keras.Model", type(model).__name__))
    functional = functional_graph(model)
    taken: set[str] = set()
    twins: dict[int, Any] = {}

    def unused(*names: str) -> str:
        candidates = [name.replace("/", "_") for name in names]
        candidates += [f"{candidates[-1]}_{number}" for number in range(2, len(taken) + 3)]
        name = next(name for name in candidates if name not in taken)
        taken.add(name)
        return name

    def run(part: Any, tensors: Sequence[Any], prefix: str) -> list[Any]:
        known = dict(zip(keras_api.input_ids(part), tensors, strict=True))
        for node in keras_api.nodes(part):
            layer, path = node.operation, f"{prefix}{keras_api.operation_name(node.operation)}"
            sources = [known[identity] for identity in node.input_ids]
            if isinstance(layer, keras.Model):
                nested = nested_graph(node, path, [tuple(source.shape) for source in sources])
                results = run(nested, sources, f"{path}/")
            else:
                if id(layer) not in twins:
                    twins[id(layer)] = keras_api.twin(layer, name=unused(keras_api.operation_name(layer), path))
                args, kwargs = node.arguments(sources)
                results = keras.tree.flatten(twins[id(layer)](*args, **kwargs))
            known.update(zip(node.output_ids, results, strict=True))
        return [known[identity] for identity in keras_api.output_ids(part)]

    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=unused(tensor.name))
        for tensor in keras_api.input_tensors(functional)
    ]
    return keras_api.functional_like(functional, inputs, run(functional, inputs, ""), f"{model.name}_flat")


def functional_graph(model: keras.Model, in_training: bool = False) -> Any:
    """The functional model behind a model that a user hands over; a subclassed model is traced."""
    model = getattr(model, "explained_network", model)
    functional = keras_api.functional_graph(model)
    if functional is not None:
        return functional
    called = keras_api.called_with(model)
    if keras_api.overrides_call(model) and called is not None:
        functional = keras_api.traced(model, *called, in_training)
    if functional is None:
        raise UnsupportedOperation(_no_graph(model, model.name, model.built, in_training))
    return functional


def nested_graph(node: keras_api.Node, path: str, shapes: Sequence[Shape], in_training: bool = False) -> Any:
    """The functional model behind a model that is called inside another one."""
    model = getattr(node.operation, "explained_network", node.operation)
    functional = keras_api.functional_graph(model)
    if functional is None or len(keras_api.input_ids(functional)) != len(shapes):
        functional = keras_api.traced(model, node.arguments, shapes, in_training)
    if functional is None:
        raise UnsupportedOperation(_no_graph(model, path, True, in_training))
    return functional


def _no_graph(model: keras.Model, path: str, called: bool, in_training: bool) -> str:
    if keras_api.overrides_call(model):
        remedy = "It has a `call` of its own: call the model once, so that the shape of its input is known."
        if called:
            remedy = (
                "Its `call` cannot be traced: make it of Keras layers and `keras.ops` alone, without TensorFlow "
                "functions and without conditions on the values of tensors"
            )
            remedy += ", and have it call the same layers in training as in inference." if in_training else "."
    elif isinstance(model, keras.Sequential):
        remedy = "Call `build(input_shape)` or call the model once."
    else:
        remedy = "Build it from an input and an output: keras.Model(inputs, outputs)."
    return f"Model `{path}` ({type(model).__name__}) has no graph of operations. {remedy}"
