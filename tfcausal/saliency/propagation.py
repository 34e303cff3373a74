"""The one backward walk over a model's operations, and the tables of rules that it looks up.

A rule knows one kind of layer and no model. It gets a :class:`Step`, which is one call of that layer with the tensors
of the forward pass, and the cotangent of the step's output, and gives the cotangents of its inputs. No GradientTape
takes part; the rules are made of differentiable operations, so that a loss on the result can be differentiated in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import Activations, Operation, OperationGraph


@dataclass(frozen=True)
class Step:
    """One call of a layer in a forward pass.

    Attributes:
        layer: The layer.
        inputs: The tensors that went in.
        output: The tensor that came out.
        training: Whether the forward pass was run in training mode.
    """

    layer: Any
    inputs: tuple[tf.Tensor, ...]
    output: tf.Tensor
    training: bool


Backward = Callable[[Step, tf.Tensor], tuple[tf.Tensor, ...]]
Offset = Callable[[Step, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Rule:
    """How one kind of layer passes a cotangent back.

    Attributes:
        backward: Takes a step and the cotangent of its output; gives the cotangents of its inputs.
        offset: Takes the same; gives, for every sample (N,), the inner product of the cotangent with the layer's
            additive constants (a bias, a shift). None where the layer has none.
        refuse: Takes a layer; says in words why the rule does not hold for it, or gives None where it does.
    """

    backward: Backward
    offset: Offset | None = None
    refuse: Callable[[Any], str | None] = lambda layer: None


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


class RuleTable:
    """Rules by layer class.

    A subclass uses the rule of the nearest class that has one, as long as it overrides nothing that takes part in the
    forward pass (`call`, `convolution_op`, ...); one that does needs a rule of its own.

    Args:
        method: Name of the saliency method, for messages.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self._rules: dict[type, Rule] = {}

    def register(self, layer_class: type, rule: Rule) -> None:
        """Add a rule.

        Args:
            layer_class: A subclass of keras.layers.Layer.
            rule: The rule.

        Raises:
            InvalidArgument: Not a layer class, not a rule, or the class has one already.
        """
        if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
            remedy = "Pass the class itself, not a layer of it."
            raise InvalidArgument(message("layer_class", "a subclass of keras.layers.Layer", repr(layer_class), remedy))
        if not isinstance(rule, Rule):
            raise InvalidArgument(message("rule", "a Rule", repr(rule)))
        if layer_class in self._rules:
            expected = f"a class that {self.method} has no rule for"
            remedy = "Register a rule for a subclass of it instead."
            raise InvalidArgument(message("layer_class", expected, layer_class.__name__, remedy))
        self._rules[layer_class] = rule

    def find(self, operation: Operation) -> Rule:
        """The rule for an operation.

        Raises:
            UnsupportedOperation: There is none, or it does not hold for this layer's class or settings.
        """
        kind = next((kind for kind in type(operation.layer).__mro__ if kind in self._rules), None)
        reason = "has no rule" if kind is None else self._objection(operation.layer, kind)
        if kind is None or reason is not None:
            known = ", ".join(sorted(kind.__name__ for kind in self._rules))
            raise UnsupportedOperation(
                f"{self.method}: `{operation.path}` ({type(operation.layer).__name__}) {reason}. "
                f"Rules exist for {known or 'no layer yet'}. "
                f"Add one with `tfcausal.saliency.{self.method}.RULES.register(LayerClass, Rule(...))`."
            )
        return self._rules[kind]

    def _objection(self, layer: Any, kind: type) -> str | None:
        overridden = _overridden(type(layer), kind)
        if overridden:
            return f"overrides {overridden} of {kind.__name__}, whose rule may therefore not hold for it"
        return self._rules[kind].refuse(layer)

    def check(self, graph: OperationGraph) -> None:
        """Raise `UnsupportedOperation` unless every operation up to the logits has a rule."""
        for operation in graph.operations:
            if operation.output != graph.output or graph.output == graph.logits:
                self.find(operation)


def _overridden(layer_class: type, ancestor: type) -> str:
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


def propagate(
    graph: OperationGraph,
    activations: Activations,
    cotangent: tf.Tensor,
    rules: RuleTable,
    training: bool = False,
    with_offsets: bool = False,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Walk from the logits back to the input.

    Args:
        graph: The model's operations.
        activations: Every tensor of one forward pass, from `graph.run`; there is no second forward pass.
        cotangent: Start of the walk at the logits, (N, classes).
        rules: Which rule each layer follows.
        training: Whether that forward pass was run in training mode.
        with_offsets: Whether to gather the contributions of additive constants.

    Returns:
        The cotangent of the input, in the input's shape, and the sum of all offsets, (N,), or None; both in the dtype
        of `cotangent`, to which the activations of a model of mixed precision are cast.

    Raises:
        InvalidArgument: A rule gives another number of cotangents than its layer has inputs, or another shape.
    """
    cotangents: dict[int, tf.Tensor] = {graph.logits: cotangent}
    offsets = tf.zeros(tf.shape(cotangent)[:1], cotangent.dtype) if with_offsets else None
    for operation in reversed(graph.operations):
        incoming = cotangents.pop(operation.output, None)
        if incoming is None:
            continue
        rule = rules.find(operation)
        inputs = tuple(tf.cast(activations[position], cotangent.dtype) for position in operation.inputs)
        step = Step(operation.layer, inputs, tf.cast(activations[operation.output], cotangent.dtype), training)
        if with_offsets and rule.offset is not None:
            offsets = offsets + rule.offset(step, incoming)
        for source, outgoing in zip(operation.inputs, _checked(operation, step, rule, incoming), strict=True):
            cotangents[source] = cotangents[source] + outgoing if source in cotangents else outgoing
    if graph.input not in cotangents:
        return tf.zeros_like(activations[graph.input], dtype=cotangent.dtype), offsets
    return cotangents[graph.input], offsets


def _checked(operation: Operation, step: Step, rule: Rule, cotangent: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """What a rule gives, provided that it fits the inputs: one that broadcasts would be wrong without a word."""
    results = rule.backward(step, cotangent)
    shapes = [tuple(value.shape) for value in step.inputs]
    fits = isinstance(results, tuple) and len(results) == len(shapes)
    if not fits or not all(
        result.shape.is_compatible_with(source.shape) for result, source in zip(results, step.inputs, strict=True)
    ):
        received = [tuple(value.shape) for value in results] if isinstance(results, tuple) else type(results).__name__
        name = f"rule for {type(operation.layer).__name__}"
        raise InvalidArgument(
            message(name, f"a tuple of cotangents of shapes {shapes} at `{operation.path}`", received)
        )
    return results
