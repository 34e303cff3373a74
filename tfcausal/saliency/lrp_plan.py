"""Which rule every operation of one model follows under a composite, decided once.

Beside the composite's choice it finds first layers, batch normalisations that can be merged into the layer before them,
and tensors that hold no negative value, for which rules leave out terms that are 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.operations import Operation
from tfcausal.saliency.composites import Composite, Flat, LinearRule, WSquare, ZBox
from tfcausal.saliency.linear_maps import DENSE, linear_stages
from tfcausal.saliency.lrp_rules import (
    ACTIVATION,
    BATCH_NORM,
    EXTREMUM,
    FILLED,
    MAX_POOLING,
    MEAN,
    MEAN_OF_STEPS,
    QUOTIENT,
    RESIZING,
    ROUTED,
    RULES,
    SHARED,
    SUM,
    UNCHANGED,
    UPSAMPLING,
    WEIGHTED,
    WINNER,
    Weighted,
    weighted,
)
from tfcausal.saliency.propagation import Rule

L, A, ops = keras.layers, keras.activations, keras.ops

_ZERO_PADDINGS = (L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D)
# What may stand before a first layer; all of it is monotone in every value, as the bounds of z-box need it.
_PREPROCESSING = (
    *(UNCHANGED, ACTIVATION, ROUTED, WINNER, FILLED, MAX_POOLING, UPSAMPLING, MEAN, MEAN_OF_STEPS, RESIZING),
    BATCH_NORM,
)
_WITH_CONSTANTS = (SUM, SHARED, EXTREMUM, QUOTIENT)


class Plan:
    """The rules of the operations of a model under a composite.

    Args:
        graph: The model's operations.
        composite: Which layer with weights follows which rule.
        low: Smallest value of the model's inputs, for z-box rules that name no bounds of their own.
        high: Largest value.

    Attributes:
        layers: The layers with weights, by path in the order in which they run, with the rule that each follows, the
            batch normalisation that is merged into it, and whether its inputs are known to hold no negative value.

    Raises:
        InvalidArgument: The composite names a layer, position or type that the model does not have; it has a z-box rule
            for a layer that is not a first one, or without bounds.
    """

    def __init__(self, graph: OperationGraph, composite: Composite, low: Any = None, high: Any = None) -> None:
        self.graph = graph
        rules = _known_rules(graph)
        operations = {operation.path: operation for operation in graph.operations if _is(rules, operation, WEIGHTED)}
        first = _first_layers(graph, rules)
        nonnegative = _nonnegative(graph)
        merged = _merged(graph, rules)
        chosen = _chosen(composite, operations, first)
        self.layers = {
            path: Weighted(
                _with_bounds(path, chosen[path], path in first, low, high),
                merged[path].layer if path in merged else None,
                operation.inputs[0] in nonnegative,
            )
            for path, operation in operations.items()
        }
        self._operations = operations
        self._rules = {path: weighted(how) for path, how in self.layers.items()}
        self._rules.update(dict.fromkeys((operation.path for operation in merged.values()), UNCHANGED))

    def find(self, operation: Operation) -> Rule:
        """The rule of an operation, or `UnsupportedOperation`."""
        return self._rules[operation.path] if operation.path in self._rules else RULES.find(operation)

    def on(self, activations: Activations) -> BoundPlan:
        """The plan with what it needs to know of a batch: bounds at first layers, and where there is padding."""
        bounded: dict[str, Rule] = {}
        for path, how in self.layers.items():
            position = self._operations[path].inputs[0]
            if isinstance(how.rule, ZBox):
                bounded[path] = weighted(replace(how, rule=self._box(how.rule, activations, position)))
            elif isinstance(how.rule, (Flat, WSquare)):
                bounded[path] = weighted(replace(how, support=self._support(activations, position)))
        return BoundPlan(self, bounded)

    def _box(self, rule: ZBox, activations: Activations, position: int) -> ZBox:
        """The bounds where a first layer stands: those of images full of the smallest and of the largest value."""
        ends = []
        for bound in (rule.low, rule.high):
            images = [activations[source][:1] for source in self.graph.inputs]
            full = [tf.zeros_like(image) + tf.constant(bound, image.dtype) for image in images]
            end = self.graph.run(full, until=position)[position]
            source = self.graph.producer(position)
            if source is not None and source.rows > 1:  # every row of one sample, for every sample of the batch
                samples = tf.shape(activations[position])[0] // tf.shape(end)[0]
                end = tf.tile(end, [samples, *(1 for _ in end.shape[1:])])
            ends.append(end)
        return ZBox(tf.minimum(*ends), tf.maximum(*ends))

    def _support(self, activations: Activations, position: int) -> tf.Tensor:
        """1 where a tensor holds values, 0 where it is the zero of a padding layer."""
        producer = self.graph.producer(position)
        if producer is not None and isinstance(producer.layer, _ZERO_PADDINGS):
            return producer.compute([self._support(activations, producer.inputs[0])])[0]
        if producer is not None and self.find(producer) in (UNCHANGED, ACTIVATION) and len(producer.inputs) == 1:
            return self._support(activations, producer.inputs[0])
        return tf.ones_like(activations[position][:1])


class BoundPlan:
    """A plan on one batch.

    Args:
        plan: The plan.
        bounded: Rules that depend on the batch, by path.
    """

    def __init__(self, plan: Plan, bounded: Mapping[str, Rule]) -> None:
        self._plan, self._bounded = plan, bounded

    def find(self, operation: Operation) -> Rule:
        """The rule of an operation, or `UnsupportedOperation`."""
        return self._bounded.get(operation.path) or self._plan.find(operation)


def _known_rules(graph: OperationGraph) -> dict[str, Rule]:
    """The rules by path, of the operations that have one."""
    rules = {}
    for operation in graph.operations:
        try:
            rules[operation.path] = RULES.find(operation)
        except UnsupportedOperation:
            continue
    return rules


def _is(rules: Mapping[str, Rule], operation: Operation, *wanted: Rule) -> bool:
    return rules.get(operation.path) in wanted


def _first_layers(graph: OperationGraph, rules: Mapping[str, Rule]) -> set[str]:
    """Paths of the layers with weights in front of which there is only preprocessing."""
    raw, first = set(graph.inputs), set()
    for operation in graph.operations:
        if not raw.issuperset(operation.inputs):
            continue
        if _is(rules, operation, WEIGHTED):
            first.add(operation.path)
        elif _is_preprocessing(operation, rules):
            raw.update(operation.outputs)
    return first


def _is_preprocessing(operation: Operation, rules: Mapping[str, Rule]) -> bool:
    layer = operation.layer
    if isinstance(layer, _NOT_MONOTONE) or getattr(layer, "activation", None) in _NOT_MONOTONE_ACTIVATIONS:
        return False
    if _is(rules, operation, *_PREPROCESSING):
        return True
    if len(operation.inputs) > 1 or not _is(rules, operation, *_WITH_CONSTANTS):
        return False
    divides_constant = _is(rules, operation, QUOTIENT) and operation.arguments(["tensor"])[0][:1] != ("tensor",)
    return not divides_constant


def _merged(graph: OperationGraph, rules: Mapping[str, Rule]) -> dict[str, Operation]:
    """Batch normalisations that directly follow a layer with weights, alone, by the path of that layer."""
    uses = Counter(position for operation in graph.operations for position in operation.inputs)
    uses[graph.logits] += 1
    merged = {}
    for operation in graph.operations:
        if not _is(rules, operation, BATCH_NORM):
            continue
        before = operation.sources[0]
        alone = before is not None and _is(rules, before, WEIGHTED) and uses[before.output] == 1
        if before is not None and alone and before.fixed_training == operation.fixed_training:
            rank = len(operation.shape)
            channels_first = getattr(before.layer, "data_format", "channels_last") == "channels_first"
            along_outputs = linear_stages(before.layer, tf.float32)[-1].along_outputs
            if along_outputs is not None and operation.layer.axis % rank == (1 if channels_first else rank - 1):
                merged[before.path] = operation
    return merged


def _chosen(composite: Composite, operations: Mapping[str, Operation], first: set[str]) -> dict[str, LinearRule]:
    """The rule of every layer with weights, by path."""
    paths, names = list(operations), {path: operation.layer.name for path, operation in operations.items()}
    for name in composite.names:
        if name not in paths and name not in names.values():
            raise InvalidArgument(message("names", f"layers with weights ({', '.join(paths)})", repr(name)))
    for position in composite.positions:
        is_position = isinstance(position, int) and not isinstance(position, bool)
        if not is_position or not -len(paths) <= position < len(paths):
            expected = f"positions from {-len(paths)} to {len(paths) - 1}, of {len(paths)} layers with weights"
            raise InvalidArgument(message("positions", expected, repr(position)))
    for kind in composite.types:
        if not any(isinstance(kind, type) and isinstance(operation.layer, kind) for operation in operations.values()):
            present = sorted({type(operation.layer).__name__ for operation in operations.values()})
            expected = f"classes of layers with weights of this model ({', '.join(present)})"
            raise InvalidArgument(message("types", expected, getattr(kind, "__name__", repr(kind))))
    at = {paths[position]: rule for position, rule in composite.positions.items()}
    chosen = {}
    for path, operation in operations.items():
        kinds = [kind for kind in type(operation.layer).__mro__ if kind in composite.types]
        family = composite.dense if isinstance(operation.layer, DENSE) else composite.convolution
        candidates = (
            composite.names.get(path),
            composite.names.get(names[path]),
            at.get(path),
            composite.first if path in first else None,
            composite.types[kinds[0]] if kinds else None,
        )
        chosen[path] = next((rule for rule in candidates if rule is not None), family)
    return chosen


def _with_bounds(path: str, rule: LinearRule, is_first: bool, low: Any, high: Any) -> LinearRule:
    """The rule with bounds, where it is z-box."""
    if not isinstance(rule, ZBox):
        return rule
    if not is_first:
        remedy = "Choose Gamma() or ZPlus() for it."
        raise InvalidArgument(message("composite", "z-box at first layers only", f"z-box at `{path}`", remedy))
    given = {"low": low if rule.low is None else rule.low, "high": high if rule.high is None else rule.high}
    for name, bound in given.items():
        if bound is None:
            expected = "the smallest and largest value of the model's input, which the z-box rule needs"
            raise InvalidArgument(message(name, expected, "None", "For images in [0, 255] pass low=0, high=255."))
    return ZBox(**given)


def _classes(kinds: Sequence[Any]) -> tuple[type, ...]:
    return tuple(kind if isinstance(kind, type) else keras_api.operation_class(kind) for kind in kinds)


_NOT_MONOTONE_ACTIVATIONS = (A.gelu, A.glu, A.hard_silu, A.mish, A.silu)
_NOT_MONOTONE = _classes(
    (ops.abs, ops.absolute, ops.gelu, ops.hard_silu, ops.reciprocal, ops.rsqrt, ops.silu, ops.sin, ops.square, ops.tan)
)
_NONNEGATIVE_ACTIVATIONS = (
    *(A.exponential, A.hard_sigmoid, A.relu, A.relu6, A.sigmoid, A.softmax, A.softplus, A.sparse_plus),
    *(A.sparse_sigmoid, A.squareplus),
)
_NONNEGATIVE = _classes(
    (
        *(L.Softmax, ops.abs, ops.absolute, ops.exp, ops.hard_sigmoid, ops.relu, ops.relu6, ops.sigmoid, ops.softmax),
        *(ops.softplus, ops.sqrt, ops.square),
    )
)
# Of non-negative tensors, without constants, they make non-negative tensors.
_KEEPING = _classes(
    (
        *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D),
        *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
        *(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
        *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
        *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Cropping1D, L.Cropping2D, L.Cropping3D),
        *(L.Flatten, L.Reshape, L.Permute, L.RepeatVector, L.Identity, L.ActivityRegularization),
        *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D),
        *(L.Add, L.Average, L.Concatenate, L.Maximum, L.Minimum, L.Multiply, L.UpSampling1D, L.UpSampling3D),
        *(ops.add, ops.multiply, ops.maximum, ops.minimum),
    )
)
# Their constants only say where values go.
_MOVING = _classes(
    (
        *(ops.concatenate, ops.reshape, ops.transpose, ops.squeeze, ops.expand_dims, ops.get_item, ops.mean, ops.sum),
        *(ops.max, ops.max_pool, ops.average_pool),
    )
)


def _nonnegative(graph: OperationGraph) -> set[int]:
    """Positions of the tensors that hold no negative value, whatever the images."""
    found: set[int] = set()
    for operation in graph.operations:
        values = any(hasattr(constant, "shape") for constant in operation.constants)
        keeps = (isinstance(operation.layer, _MOVING) and not values) or (
            isinstance(operation.layer, _KEEPING) and not operation.constants
        )
        if _gives_nonnegative(operation) or (keeps and found.issuperset(operation.inputs)):
            found.update(operation.outputs)
    return found


def _gives_nonnegative(operation: Operation) -> bool:
    layer = operation.layer
    if isinstance(layer, L.Activation):
        return layer.activation in _NONNEGATIVE_ACTIVATIONS
    if isinstance(layer, L.ReLU):
        return not layer.negative_slope and (layer.threshold or 0) >= 0
    return isinstance(layer, _NONNEGATIVE)
