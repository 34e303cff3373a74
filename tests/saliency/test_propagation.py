from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency import wbp
from tfcausal.saliency.propagation import Rule, RuleTable, Step, check, propagate, unsupported
from tfcausal.saliency.wbp import WBP
from tfcausal.saliency.wbp_rules import RULES

L = keras.layers


class Scale(L.Layer):
    """A user's own layer: every value times a number, plus a number."""

    def __init__(self, factor: float = 3.0, shift: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.shift = shift

    def call(self, inputs):
        return tf.identity(self.factor * inputs + self.shift)


SCALE_RULE = Rule(
    backward=lambda step, cotangent: (step.layer.factor * cotangent,),
    offset=lambda step, cotangent: step.layer.shift * tf.reduce_sum(cotangent, axis=-1),
)


@pytest.fixture
def rules(monkeypatch):
    """A copy of the WBP rules, so that a test that registers one leaves no trace."""
    table = RuleTable("wbp")
    table._rules.update(RULES._rules)
    monkeypatch.setattr(wbp, "RULES", table)
    return table


def vector_model(*layers: L.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *layers])


def inputs_of(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32")


def find(table: RuleTable, layer: L.Layer) -> Rule:
    return table.find(OperationGraph(vector_model(layer), keep=lambda layer: True).operations[0])


def test_a_rule_for_a_users_layer_takes_part(rules):
    model = vector_model(L.Dense(5, activation="relu"), Scale(), L.Dense(2, use_bias=False))
    with pytest.raises(UnsupportedOperation, match=r"`scale.*` \(Scale\) has no rule"):
        WBP(model)
    rules.register(Scale, SCALE_RULE)
    result = WBP(model).decompose(inputs_of(), [0, 1, 1])
    np.testing.assert_allclose(result.maps.sum(axis=1) + result.bias, result.logits, rtol=1e-5)
    np.testing.assert_allclose(result.logits, model(inputs_of()).numpy()[[0, 1, 2], [0, 1, 1]], rtol=1e-5)
    assert np.abs(result.bias).min() > 0


def test_the_message_names_method_layer_path_and_remedy():
    inner = keras.Sequential([keras.Input((4,)), Scale(name="stretch"), L.Dense(2)], name="backbone")
    text = (
        "wbp: `backbone/stretch` (Scale) has no rule and cannot be taken apart: its `call` uses TensorFlow or computes "
        "with weights alone. Write a rule with `tfcausal.register_rule(Scale, method='wbp')`, or let the plain "
        "gradient stand in with fallback='gradient'."
    )
    with pytest.raises(UnsupportedOperation, match=re.escape(text)):
        WBP(vector_model(inner))


def test_a_second_rule_for_a_class_is_refused(rules):
    rules.register(Scale, SCALE_RULE)
    text = "`kind`: expected a class that wbp has no rule for; received Scale. Register a rule for a subclass"
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        rules.register(Scale, Rule(lambda step, cotangent: (cotangent,)))
    assert find(rules, Scale()) is SCALE_RULE


@pytest.mark.parametrize("layer_class", [3, "Dense", int, keras.Variable])
def test_only_layers_and_operations_can_have_a_rule(layer_class):
    with pytest.raises(InvalidArgument, match=r"`kind`: expected a subclass of keras\.layers\.Layer or a func"):
        RuleTable("wbp").register(layer_class, SCALE_RULE)
    with pytest.raises(InvalidArgument, match=r"Pass the class itself, not a layer of it\."):
        RuleTable("wbp").register(L.ReLU(), SCALE_RULE)


def test_only_rules_can_be_registered():
    with pytest.raises(InvalidArgument, match="`rule`: expected a Rule; received <function"):
        RuleTable("wbp").register(Scale, lambda step, cotangent: (cotangent,))


class Labelled(L.Dense):
    """Changes nothing that the forward pass does."""

    def __init__(self, units, label="", **kwargs):
        super().__init__(units, **kwargs)
        self.label = label

    def build(self, input_shape):
        super().build(input_shape)

    def get_config(self):
        return {**super().get_config(), "label": self.label}

    def describe(self):
        return self.label


class Doubled(L.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


class DoubledDeeper(Doubled):
    """Overrides nothing itself."""


class Wrapped(L.Dense):
    def __call__(self, inputs, **kwargs):
        return super().__call__(inputs, **kwargs)


class HalfKernel(L.Dense):
    @property
    def kernel(self):
        return 0.5 * super().kernel


class CallMixin:
    def call(self, inputs):
        return 0 * inputs


class Mixed(CallMixin, L.ReLU):
    pass


def test_a_subclass_that_leaves_the_forward_pass_alone_inherits_the_rule():
    assert find(RULES, Labelled(2)) is RULES._rules[L.Dense]
    result = WBP(vector_model(Labelled(3, activation="relu"), L.Dense(2))).decompose(inputs_of())
    np.testing.assert_allclose(result.maps.sum(axis=1) + result.bias, result.logits, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            lambda: Doubled(2),
            r"\(Doubled\) overrides `call` of Dense, whose rule may therefore not hold for it\. Write",
        ),
        (lambda: DoubledDeeper(2), r"\(DoubledDeeper\) overrides `call` of Dense"),
        (lambda: Wrapped(2), r"\(Wrapped\) overrides `__call__` of Dense"),
        (lambda: HalfKernel(2), r"\(HalfKernel\) overrides `kernel` of Dense"),
        (lambda: Mixed(), r"\(Mixed\) overrides `call` of ReLU"),
    ],
)
def test_a_subclass_that_changes_the_forward_pass_does_not_inherit(layer, text):
    graph = OperationGraph(vector_model(L.Dense(4), layer(), L.Dense(2)), keep=lambda layer: True)
    with pytest.raises(UnsupportedOperation, match=text):
        check(graph, RULES)


def test_a_subclass_can_have_a_rule_of_its_own(rules):
    own = Rule(lambda step, cotangent: (tf.matmul(cotangent, 2 * step.layer.kernel, transpose_b=True),))
    rules.register(Doubled, own)
    assert find(rules, Doubled(2)) is own
    assert find(rules, DoubledDeeper(2)) is own
    assert find(rules, L.Dense(2)) is RULES._rules[L.Dense]
    model = vector_model(Doubled(2, use_bias=False))
    np.testing.assert_allclose(WBP(model)(inputs_of()).sum(axis=1), model(inputs_of()).numpy().max(axis=1), rtol=1e-5)


def test_no_class_of_keras_inherits_a_rule_by_accident():
    inheriting = {
        name
        for name, kind in vars(L).items()
        if isinstance(kind, type) and issubclass(kind, tuple(RULES._rules)) and kind not in RULES._rules
    }
    # A new name here must be looked at.
    assert inheriting == set()


def test_check_skips_the_head_that_was_split_off():
    model = vector_model(L.Dense(2, activation="softmax"))
    check(OperationGraph(model), RULES)
    without_head = RuleTable("empty")
    with pytest.raises(UnsupportedOperation, match=r"empty: `dense.*` .* has no rule\. Write a rule with"):
        check(OperationGraph(model), without_head)


def test_an_input_that_only_steers_needs_no_rules_on_its_way():
    inputs = keras.Input((4,))
    gate = L.Softmax(name="gate")(L.Embedding(9, 4, name="on the way")(keras.ops.cast(inputs, "int32"))[:, 0])
    model = keras.Model(inputs, L.Dense(2)(inputs * gate))
    graph = OperationGraph(model)
    assert unsupported(graph, RULES) == {}
    steered = keras.Model(inputs, L.Dense(2)(inputs + gate))
    assert list(unsupported(OperationGraph(steered), RULES))[:2] == ["gate", "on the way"]


def test_rules_that_hold_at_inference_only_are_refused_in_training():
    table = RuleTable("wbp")
    table.register(Scale, Rule(SCALE_RULE.backward, inference_only=True))
    graph = OperationGraph(vector_model(Scale(name="own")))
    check(graph, table)
    with pytest.raises(UnsupportedOperation, match=r"`own` \(Scale\) draws at random in training"):
        check(graph, table, training=True)


@pytest.mark.parametrize(
    ("backward", "received"),
    [
        (lambda step, cotangent: cotangent, "received EagerTensor"),
        (lambda step, cotangent: (), r"received \[\]"),
        (lambda step, cotangent: (cotangent, cotangent), r"received \[\(3, 4\), \(3, 4\)\]"),
        (lambda step, cotangent: (cotangent[:, :1],), r"received \[\(3, 1\)\]"),
        (lambda step, cotangent: (cotangent[:, None],), r"received \[\(3, 1, 4\)\]"),
        (lambda step, cotangent: (None,), r"received \[None\]"),
    ],
)
def test_a_rule_whose_result_does_not_fit_is_an_error(rules, backward, received):
    rules.register(Scale, Rule(backward))
    graph = OperationGraph(vector_model(Scale(name="own"), L.Dense(2)))
    activations = graph.run(inputs_of())
    text = rf"`rule for Scale`: expected a tuple of tensors of shapes \[\(3, 4\)\] at `own`; {received}"
    with pytest.raises(InvalidArgument, match=text):
        propagate(graph, activations, tf.ones((3, 2)), rules)


def test_a_step_tells_the_rule_what_happened(rules):
    steps: list[Step] = []

    def backward(step: Step, cotangent: tf.Tensor) -> tuple[tf.Tensor]:
        steps.append(step)
        return (step.layer.factor * cotangent,)

    rules.register(Scale, Rule(backward))
    layer = Scale()
    graph = OperationGraph(vector_model(layer))
    for training in (False, True):
        propagate(graph, graph.run(inputs_of(), training), tf.ones((3, 4)), rules, training)
    assert [step.training for step in steps] == [False, True]
    assert steps[0].layer is layer
    np.testing.assert_array_equal(steps[0].inputs[0], inputs_of())
    np.testing.assert_array_equal(steps[0].output, layer(inputs_of()))


def test_cotangents_of_a_tensor_that_is_used_twice_add_up():
    inputs = keras.Input((4,))
    dense = L.Dense(4, use_bias=False)
    hidden = dense(inputs)
    model = keras.Model(inputs, L.Add()([dense(hidden), hidden, inputs]))  # x K K + x K + x
    kernel = dense.kernel.numpy()
    graph = OperationGraph(model)
    cotangent = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    (weights,), offsets = propagate(graph, graph.run(inputs_of()), tf.constant(cotangent), RULES)
    np.testing.assert_allclose(weights, cotangent @ (kernel @ kernel + kernel + np.eye(4)).T, rtol=1e-5, atol=1e-5)
    assert offsets is None


def test_a_model_that_ignores_its_input_has_a_map_of_zeros():
    class Constant(L.Layer):
        def call(self, inputs):
            return tf.ones_like(inputs)

    table = RuleTable("constant")
    table.register(Constant, Rule(lambda step, cotangent: (tf.zeros_like(cotangent),)))
    graph = OperationGraph(vector_model(Constant()))
    (weights,), _ = propagate(graph, graph.run(inputs_of()), tf.ones((3, 4)), table)
    np.testing.assert_array_equal(weights, np.zeros((3, 4)))


def test_cotangents_keep_their_precision_in_a_model_of_mixed_precision():
    model = vector_model(L.Dense(4, activation="relu", dtype="mixed_float16"), L.Dense(2, dtype="mixed_float16"))
    graph = OperationGraph(model)
    activations = graph.run(inputs_of())
    assert activations[graph.logits].dtype == tf.float16
    (weights,), offsets = propagate(graph, activations, tf.ones((3, 2)), RULES, with_offsets=True)
    assert weights.dtype == offsets.dtype == tf.float32


def test_a_layer_that_gives_several_tensors_gets_a_message_for_each():
    received = []

    class Halves(L.Layer):
        def call(self, inputs):
            return tuple(tf.split(inputs, 2, axis=-1))

        def compute_output_spec(self, inputs):
            return tuple(keras.KerasTensor((None, 2)) for _ in range(2))

    def backward(step, messages):
        received.append(messages)
        return (tf.concat(messages, axis=-1),)

    table = RuleTable("wbp")
    table._rules.update(RULES._rules)
    table.register(Halves, Rule(backward))
    inputs = keras.Input((4,))
    first, _ = Halves()(inputs)
    graph = OperationGraph(keras.Model(inputs, first))
    (weights,), _ = propagate(graph, graph.run(inputs_of()), tf.ones((3, 2)), table)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 0]] * 3)
    assert [message.numpy().tolist() for message in received[0]] == [[[1, 1]] * 3, [[0, 0]] * 3]


def test_every_input_of_a_model_gets_its_message():
    first, second = keras.Input((4,)), keras.Input((2,))
    kernel = L.Dense(3, use_bias=False)
    model = keras.Model([first, second], kernel(L.Concatenate()([second, first])))
    graph = OperationGraph(model)
    start = np.random.default_rng(1).normal(size=(3, 3)).astype("float32")
    activations = graph.run([inputs_of(), inputs_of()[:, :2]])
    (of_first, of_second), _ = propagate(graph, activations, tf.constant(start), RULES)
    expected = start @ kernel.kernel.numpy().T
    np.testing.assert_allclose(of_first, expected[:, 2:], rtol=1e-5)
    np.testing.assert_allclose(of_second, expected[:, :2], rtol=1e-5)


def test_subclasses_of_a_layer_with_a_rule_use_it_everywhere(rules):
    class Stretched(Scale):
        def get_config(self):
            return super().get_config()

    rules.register(Scale, SCALE_RULE)
    assert Stretched in rules
    assert Doubled not in rules
    assert WBP(vector_model(Stretched(name="own"), L.Dense(2))).graph.operations[0].path == "own"


def test_an_operation_without_a_rule_is_called_as_users_call_it():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2)(keras.ops.sqrt(inputs)))
    with pytest.raises(UnsupportedOperation, match=r"`tfcausal.register_rule\(keras.ops.sqrt, method='wbp'\)`"):
        WBP(model)
    with pytest.raises(UnsupportedOperation, match=r"\(Scale\) has no rule and cannot be taken apart: its `call` "):
        WBP(vector_model(Scale(), L.Dense(2)))
