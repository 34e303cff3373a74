"""The one backward walk over a model's operations, and the tables of rules that it looks up.

A rule knows one kind of layer and no model. It gets a :class:`Step`, which is one call of that layer with the tensors
of the forward pass, and the message at the step's output (WBP's cotangent, LRP's relevance), and gives the messages at
its inputs. The rules are made of differentiable operations, so that a loss on the result can be differentiated in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.operations import Operation

Fallback = Literal["gradient"] | None


@dataclass(frozen=True)
class Step:
    """One call of a layer in a forward pass.

    Attributes:
        operation: What was called, in which place of the model's graph.
        inputs: The tensors that went in.
        outputs: The tensors that came out.
        training: Whether the layer was run in training mode.
    """

    operation: Operation
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    training: bool

    @property
    def layer(self) -> Any:
        """The layer, or the operation of `keras.ops`."""
        return self.operation.layer

    @property
    def output(self) -> tf.Tensor:
        """The tensor that came out, or the first of them."""
        return self.outputs[0]


Backward = Callable[[Step, Any], tuple[tf.Tensor | None, ...]]
Offset = Callable[[Step, Any], tf.Tensor]


@dataclass(frozen=True)
class Rule:
    """How one kind of layer passes a message back.

    Attributes:
        backward: Takes a step and the message at its output (a tuple of them where the layer gives several tensors);
            gives the messages at its inputs, None for an input that only steers, such as a gate.
        offset: Takes the same; gives, for every sample (N,), what the layer's additive constants (a bias, a shift)
            contribute: for WBP the inner product of the cotangent with them. None where the layer has none.
        refuse: Takes an operation; says in words why the rule does not hold for it, or gives None where it does.
        steers: Takes an operation; tells for every input whether it only steers and gets None.
        inference_only: Whether the rule holds at inference only, because the layer draws at random in training.
    """

    backward: Backward
    offset: Offset | None = None
    refuse: Callable[[Operation], str | None] = lambda operation: None
    steers: Callable[[Operation], tuple[bool, ...]] = lambda operation: (False,) * len(operation.inputs)
    inference_only: bool = False


class Rules(Protocol):
    """Where the walk finds the rule of an operation."""

    def find(self, operation: Operation) -> Rule:
        """The rule, or `UnsupportedOperation`."""


def vector_jacobian_products(
    step: Step, cotangent: Any, function: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]] | None = None
) -> tuple[tf.Tensor, ...]:
    """The cotangent of every output times the Jacobian of a function at the step's inputs.

    Args:
        step: The step.
        cotangent: As a rule gets it.
        function: Takes the inputs, gives the outputs; None is the operation itself at inference. A compiled graph
            leaves out what the result does not depend on: for a linear function there is no second forward pass.

    Returns:
        One tensor for every input, in its shape; zeros where the function does not depend on it. For an input that is
        not floating they have the dtype of the cotangent.

    Raises:
        UnsupportedOperation: TensorFlow has no gradient for the operation.
    """
    inputs = [tf.identity(value) for value in step.inputs]
    floating = [value for value in inputs if value.dtype.is_floating]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(floating)
        outputs = list((function or step.operation.compute)(inputs))
    cotangents = list(cotangent) if isinstance(cotangent, tuple) else [cotangent]
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].dtype.is_floating]
    targets, given = [output for output, _ in pairs], [tf.cast(value, output.dtype) for output, value in pairs]
    try:
        found = tape.gradient(targets, floating, given, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except LookupError:
        raise UnsupportedOperation(
            f"`{step.operation.path}` ({type(step.layer).__name__}) runs an operation for which TensorFlow has no "
            "gradient. Replace it, or leave it out of the model that is explained."
        ) from None
    products, dtype = iter(found), next((value.dtype for value in cotangents if value.dtype.is_floating), tf.float32)
    return tuple(
        tf.cast(next(products), value.dtype) if value.dtype.is_floating else tf.zeros_like(value, dtype)
        for value in inputs
    )


def inner_product(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Sum over everything but the samples: (N, ...) and what broadcasts to it give (N,)."""
    product = first * tf.cast(second, first.dtype)
    return tf.reduce_sum(product, axis=list(range(1, product.shape.rank)))


def _offset_of_gradient(step: Step, cotangent: Any) -> tf.Tensor:
    cotangents = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    pairs = [pair for pair in zip(cotangents, step.outputs, strict=True) if pair[0].dtype.is_floating]
    at_output = [inner_product(value, output) for value, output in pairs]
    products = vector_jacobian_products(step, cotangent)
    at_input = [inner_product(value, source) for value, source in zip(products, step.inputs, strict=True)]
    return tf.add_n(at_output) - tf.add_n(at_input)


# What is left of an operation beside its gradient counts as a constant of it: an account, not an explanation.
GRADIENT = Rule(vector_jacobian_products, _offset_of_gradient)


class RuleTable:
    """Rules by class of layer or of operation.

    A subclass uses the rule of the nearest class that has one, as long as it overrides nothing that takes part in the
    forward pass (`call`, `convolution_op`, ...); one that does needs a rule of its own.

    Args:
        method: Name of the saliency method, for messages.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self._rules: dict[type, Rule] = {}

    def __contains__(self, layer_class: type) -> bool:
        kind = next((kind for kind in layer_class.__mro__ if kind in self._rules), None)
        return kind is not None and not keras_api.overridden(layer_class, kind)

    def register(self, kind: type | Callable[..., Any], rule: Rule) -> None:
        """Add a rule.

        Args:
            kind: A subclass of keras.layers.Layer, or a function of `keras.ops`.
            rule: The rule.

        Raises:
            InvalidArgument: Neither, not a rule, or there is a rule for it already.
        """
        if isinstance(kind, type) and issubclass(kind, keras.Operation):
            layer_class = kind
        else:
            try:
                layer_class = keras_api.operation_class(kind)
            except (AttributeError, TypeError, ValueError):
                expected = "a subclass of keras.layers.Layer or a function of keras.ops"
                remedy = "Pass the class itself, not a layer of it."
                raise InvalidArgument(message("kind", expected, repr(kind), remedy)) from None
        if not isinstance(rule, Rule):
            raise InvalidArgument(message("rule", "a Rule", repr(rule)))
        if layer_class in self._rules:
            expected = f"a class that {self.method} has no rule for"
            remedy = "Register a rule for a subclass of it instead."
            raise InvalidArgument(message("kind", expected, layer_class.__name__, remedy))
        self._rules[layer_class] = rule

    def find(self, operation: Operation) -> Rule:
        """The rule for an operation.

        Raises:
            UnsupportedOperation: There is none, or it does not hold for this layer's class or settings.
        """
        kind = next((kind for kind in type(operation.layer).__mro__ if kind in self._rules), None)
        reason = "has no rule" if kind is None else self._objection(operation, kind)
        if kind is None or reason is not None:
            name = kind_name = type(operation.layer).__name__
            if not isinstance(operation.layer, keras.layers.Layer):
                kind_name = f"keras.ops.{keras_api.operation_name(operation.layer)}"
            elif kind is None and not keras_api.is_keras_layer(operation.layer):
                reason = (
                    "has no rule and cannot be taken apart: its `call` uses TensorFlow or computes with weights alone"
                )
            raise UnsupportedOperation(
                f"{self.method}: `{operation.path}` ({name}) {reason}. Write a rule with "
                f"`tfcausal.register_rule({kind_name}, method={self.method!r})`, or let the plain gradient stand in "
                "with fallback='gradient'."
            )
        return self._rules[kind]

    def _objection(self, operation: Operation, kind: type) -> str | None:
        changed = keras_api.overridden(type(operation.layer), kind)
        if changed:
            return f"overrides {changed} of {kind.__name__}, whose rule may therefore not hold for it"
        return self._rules[kind].refuse(operation)


class WithFallback:
    """Rules with one to use wherever they have none.

    Args:
        rules: The rules to ask first.
        rule: The rule that stands in.
    """

    def __init__(self, rules: Rules, rule: Rule) -> None:
        self._rules, self._rule = rules, rule

    def find(self, operation: Operation) -> Rule:
        """The rule for an operation."""
        try:
            return self._rules.find(operation)
        except UnsupportedOperation:
            return self._rule


def check_fallback(fallback: object) -> None:
    """Raise `InvalidArgument` unless a fallback is known or None."""
    if fallback not in (None, "gradient"):
        raise InvalidArgument(message("fallback", "None or 'gradient'", repr(fallback)))


def unsupported(graph: OperationGraph, rules: Rules, training: bool = False) -> dict[str, UnsupportedOperation]:
    """The operations between the inputs and the logits that no rule holds for: what each would raise, by path.

    What only steers another operation, such as the way to a gate, needs no rule.

    Args:
        graph: The model's operations.
        rules: Where rules are looked up.
        training: Whether they are needed in training mode.
    """
    reached, errors = {graph.logits}, {}
    last = graph.producer(graph.logits)
    if last is not None and last.rows > 1:
        path = next(operation.path for operation in graph.operations if operation.rows > 1)
        errors[path] = UnsupportedOperation(
            f"`{path}` acts along the first axis, the samples of the batch, on which a map must not depend: the logits "
            f"have {last.rows} rows for every sample. Reshape them back, or pool them."
        )
    for operation in reversed(graph.operations):
        if not reached.intersection(operation.outputs):
            continue
        try:
            rule = rules.find(operation)
        except UnsupportedOperation as error:
            errors[operation.path] = error
            reached.update(operation.inputs)
            continue
        if operation.trains(training) and rule.inference_only:
            errors[operation.path] = UnsupportedOperation(
                f"`{operation.path}` ({type(operation.layer).__name__}) draws at random in training, where its map is "
                "not known. Move it into the input pipeline."
            )
        steering = rule.steers(operation)
        reached.update(source for source, steers in zip(operation.inputs, steering, strict=True) if not steers)
    return errors


def check(graph: OperationGraph, rules: Rules, training: bool = False) -> None:
    """Raise `UnsupportedOperation` unless every operation that the walk comes to has a rule."""
    for error in unsupported(graph, rules, training).values():
        raise error


def propagate(
    graph: OperationGraph,
    activations: Activations,
    start: tf.Tensor,
    rules: Rules,
    training: bool = False,
    with_offsets: bool = False,
    to: Sequence[int] | None = None,
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
    """Walk from the logits back to the inputs, or to tensors on the way.

    Args:
        graph: The model's operations.
        activations: Every tensor of one forward pass, from `graph.run`; there is no second forward pass.
        start: The message at the logits, (N, classes).
        rules: Which rule each layer follows.
        training: Whether that forward pass was run in training mode.
        with_offsets: Whether to gather the contributions of additive constants.
        to: Positions of the tensors to stop at; None stands for the inputs.

    Returns:
        The messages at these tensors, each in the tensor's shape, and the sum of all offsets, (N,), or None; all in the
        dtype of `start`, to which the activations of a model of mixed precision are cast.

    Raises:
        InvalidArgument: A rule gives another number of messages than its layer has inputs, or another shape.
    """
    messages: dict[int, tf.Tensor] = {graph.logits: start}
    offsets = tf.zeros(tf.shape(start)[:1], start.dtype) if with_offsets else None
    ends = graph.inputs if to is None else tuple(to)

    def value(position: int) -> tf.Tensor:
        tensor = activations[position]
        return tf.cast(tensor, start.dtype) if tensor.dtype.is_floating else tensor

    for operation in reversed(graph.operations):
        if set(operation.outputs).intersection(ends):
            continue
        received = [messages.pop(position, None) for position in operation.outputs]
        if all(incoming is None for incoming in received):
            continue
        rule = rules.find(operation)
        inputs, outputs = (tuple(map(value, positions)) for positions in (operation.inputs, operation.outputs))
        step = Step(operation, inputs, outputs, operation.trains(training))
        filled = tuple(
            tf.zeros_like(output) if incoming is None else incoming
            for incoming, output in zip(received, outputs, strict=True)
        )
        incoming = filled if len(filled) > 1 else filled[0]
        if with_offsets and rule.offset is not None:
            offset = rule.offset(step, incoming)
            offsets += tf.reduce_sum(tf.reshape(offset, (-1, operation.rows)), 1) if operation.rows > 1 else offset
        for source, outgoing in zip(operation.inputs, _checked(step, rule, incoming), strict=True):
            if outgoing is not None:
                messages[source] = messages[source] + outgoing if source in messages else outgoing
    arrived = tuple(
        messages[position] if position in messages else tf.zeros_like(activations[position], dtype=start.dtype)
        for position in ends
    )
    return arrived, offsets


def _checked(step: Step, rule: Rule, incoming: Any) -> tuple[tf.Tensor | None, ...]:
    """What a rule gives, provided that it fits the inputs: one that broadcasts would be wrong without a word."""
    results = rule.backward(step, incoming)
    steering = rule.steers(step.operation)
    shapes = [tuple(value.shape) for value in step.inputs]
    fits = isinstance(results, tuple) and len(results) == len(shapes)
    if not fits or not all(
        steers if result is None else result.shape.is_compatible_with(source.shape)
        for result, source, steers in zip(results, step.inputs, steering, strict=True)
    ):
        received: Any = type(results).__name__
        if isinstance(results, tuple):
            received = [None if value is None else tuple(value.shape) for value in results]
        name = f"rule for {type(step.layer).__name__}"
        expected = f"a tuple of tensors of shapes {shapes} at `{step.operation.path}`"
        raise InvalidArgument(message(name, expected, received))
    return results
