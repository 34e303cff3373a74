"""The functional model behind any Keras model: nested, Sequential, or subclassed and traced.

:func:`flatten` gives it to other libraries as one plain model; :mod:`tfcausal.graph` takes it apart further.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message

logger = logging.getLogger(__name__)

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
                nested, order = nested_graph(node, path, [tuple(source.shape) for source in sources])
                results = run(nested, [sources[place] for place in order], f"{path}/")
            elif node.fixed_training:
                raise UnsupportedOperation(f"`{path}` is called with training=True whatever the model is told.")
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
        arguments, shapes, names = called
        functional = traced(model, arguments, shapes, in_training, names)
    if functional is None:
        raise UnsupportedOperation(_no_graph(model, model.name, model.built, in_training))
    return functional


def nested_graph(
    node: keras_api.Node, path: str, shapes: Sequence[Shape], in_training: bool = False
) -> tuple[Any, tuple[int, ...]]:
    """The functional model behind a model that is called inside another one, and which tensors are its inputs."""
    model = getattr(node.operation, "explained_network", node.operation)
    functional = keras_api.functional_graph(model)
    order = tuple(range(len(shapes)))
    if functional is not None and not node.constants:
        order = keras_api.input_order(functional, node.arguments, len(shapes))
        for place, tensor in zip(order, keras_api.input_tensors(functional), strict=True):
            converted = _is_floating(node.input_dtypes[place]) and not _is_floating(tensor.dtype)
            if len(shapes[place]) != len(tensor.shape) or converted:
                raise UnsupportedOperation(
                    f"Model `{path}` takes {tensor.dtype} of shape {tuple(tensor.shape)} and is called on "
                    f"{node.input_dtypes[place]} of shape {shapes[place]}, which Keras converts without a word. "
                    "Reshape or cast before the call."
                )
    else:
        functional = traced(model, node.arguments, shapes, in_training)
    if functional is None:
        raise UnsupportedOperation(_no_graph(model, path, True, in_training))
    return functional, order


def rows_per_sample(layer: Any, rows: Sequence[int], before: Sequence[Shape], after: Sequence[Shape]) -> int:
    """How many rows of what an operation gives belong to one sample; 0 where a row can belong to several samples.

    A reshape keeps the order of the values, so that its rows stay apart as long as each fits into a sample: parts of
    the samples can go into the batch, one sample's below the other's, and come back. With a size that is not known it
    counts as one that leaves the rows as they are. Every other operation does, too: none that a saliency rule holds for
    acts along the first axis.

    Args:
        layer: The layer, or the operation of `keras.ops`.
        rows: Rows per sample of its inputs.
        before: Shapes of its inputs.
        after: Shapes of its outputs.

    Example:
        >>> import keras
        >>> model = keras.Function(x := keras.Input((5, 8, 2)), keras.ops.reshape(x, (-1, 8, 2)))
        >>> rows_per_sample(model.operations[-1], [1], [(None, 5, 8, 2)], [(None, 8, 2)])
        5
    """
    count = max(rows, default=1)
    if not isinstance(layer, _RESHAPES):
        return count
    old, new = (prod(size or 0 for size in shapes[0][1:]) for shapes in (before, after))  # 0 where one is not known
    if not old or not new:
        return count
    whole, rest = divmod(count * old, new)
    return 0 if rest else whole


_RESHAPES = (keras_api.operation_class(keras.ops.reshape), keras_api.operation_class(keras.ops.ravel))


def _is_floating(dtype: str) -> bool:
    return "float" in dtype


def _no_graph(model: keras.Model, path: str, called: bool, in_training: bool) -> str:
    if keras_api.overrides_call(model):
        remedy = "It has a `call` of its own: call the model once, so that the shape of its input is known."
        if keras_api.takes_several_arguments(model):
            remedy = "It is called with several arguments: have its `call` take one list or dictionary."
        elif called:
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


def traced(
    layer: Any,
    arguments: keras_api.Arguments,
    shapes: Sequence[Shape],
    in_training: bool = False,
    names: Sequence[str] | None = None,
) -> Any | None:
    """The operations that the `call` of a layer or model of a user's own is made of, as a functional graph.

    Args:
        layer: The layer; it has been built.
        arguments: Takes one tensor for each of `shapes` and gives the arguments of the call.
        shapes: Shapes of the tensors that the layer is called on, the batch axis first.
        in_training: Whether the graph has to hold in training, too. It is that of inference, made of layers that are
            told themselves when they train.
        names: Names of the tensors; may be None.

    Returns:
        A graph for :func:`keras_api.nodes`; None where the call cannot be followed: it uses TensorFlow functions on its
        tensors, depends on their values, computes tensors beside the graph, which would be frozen in it, or, with
        `in_training`, calls other operations in training.
    """
    with keras_api.nodes_kept(layer):
        try:
            first, second, other = (_trace(layer, arguments, shapes, names, mode) for mode in (False, False, True))
        except Exception as error:
            logger.debug("`%s` cannot be traced: %s", layer.name, error)
            return None
    # What is created anew in each call was computed from something, such as a weight, and would never change again.
    if _description(first) != _description(second):
        return None
    same_in_training = _description(other) == _description(first)
    if in_training and not same_in_training:
        return None
    if same_in_training:
        # A call that is told the same in both modes was given a constant, such as `self.norm(x, training=False)`.
        told = zip(keras_api.nodes(first), keras_api.nodes(other), strict=True)
        first.fixed_training = [here.training if here.training == there.training else None for here, there in told]
    return first


def _trace(
    layer: Any,
    arguments: keras_api.Arguments,
    shapes: Sequence[Shape],
    names: Sequence[str] | None,
    training: bool,
) -> Any:
    inputs = [
        keras.Input(batch_shape=(None, *shape[1:]), name=names[place] if names else None)
        for place, shape in enumerate(shapes)
    ]
    args, kwargs = arguments(inputs)
    return keras.Function(inputs, keras_api.call_in_mode(layer, args, kwargs, training))


def _description(functional: Any) -> list[Any]:
    """What a graph computes from what: equal for two traces of one call that does the same each time."""
    order = {identity: place for place, identity in enumerate(keras_api.input_ids(functional))}
    calls = []
    for node in keras_api.nodes(functional):
        operation = node.operation
        kind = id(operation) if isinstance(operation, keras.layers.Layer) else type(operation).__name__
        constants = [
            id(value) if tf.is_tensor(value) or isinstance(value, keras.Variable) else repr(value)
            for value in node.constants
        ]
        calls.append((kind, [order[identity] for identity in node.input_ids], constants))
        for identity in node.output_ids:
            order[identity] = len(order)
    return [calls, [order[identity] for identity in keras_api.output_ids(functional)]]
