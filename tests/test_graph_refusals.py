"""What OperationGraph does not take, and what it says then."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph

L = keras.layers


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class DoubledFunctional(keras.Model):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


class DoubledSequential(keras.Sequential):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


def test_models_whose_call_is_their_own_are_refused():
    inputs = keras.Input((4,))
    own_call = r"has no graph of operations\. It has a `call` of its own\. Rebuild it as a functional model; subclassed"
    with pytest.raises(UnsupportedOperation, match=rf"`.*` \(Subclassed\) {own_call}"):
        OperationGraph(Subclassed())
    with pytest.raises(UnsupportedOperation, match=rf"\(DoubledFunctional\) {own_call}"):
        OperationGraph(DoubledFunctional(inputs, L.Dense(3)(inputs)))
    with pytest.raises(UnsupportedOperation, match=rf"\(DoubledSequential\) {own_call}"):
        OperationGraph(DoubledSequential([inputs, L.Dense(3)]))
    inner = DoubledFunctional(inputs, L.Dense(3)(inputs), name="inner")
    outer = keras.Input((4,))
    with pytest.raises(UnsupportedOperation, match=r"Model `inner` \(DoubledFunctional\) has no graph"):
        OperationGraph(keras.Model(outer, inner(outer)))


def test_models_that_are_not_built_are_refused():
    model = keras.Sequential([L.Dense(3)], name="bare")
    text = "Model `bare` (Sequential) has no graph of operations. Call `build(input_shape)` or call the model once."
    with pytest.raises(UnsupportedOperation, match=re.escape(text)):
        OperationGraph(model)
    model(np.zeros((2, 4)))
    assert OperationGraph(model).num_classes == 3
    with pytest.raises(UnsupportedOperation, match=re.escape("Build it from an input and an output: keras.Model(")):
        OperationGraph(keras.Model(name="empty"))


def unsupported() -> dict[str, tuple[object, str]]:
    inputs = keras.Input((4,))
    hidden = L.Dense(4)(inputs)
    second = keras.Input((4,))
    inner = keras.Model([inputs, second], L.Add()([inputs, second]), name="inner")
    handled = "the graph takes layers that are called on tensors of the model only and give one tensor. Wrap other"

    class Two(L.Layer):
        def call(self, inputs):
            return inputs, inputs

    class Scaled(L.Layer):
        def call(self, inputs, factor=1.0):
            return factor * inputs

    return {
        "operation": (keras.ops.relu(hidden), rf"`relu.*` \(Relu\) is not handled: {handled}"),
        "operator": (hidden + inputs, rf"\(Add\) is not handled: {handled}"),
        "constant in an operator": (hidden * 2.0, rf"\(Multiply\) is not handled: {handled}"),
        "constant in a call": (
            Scaled(name="scaled")(hidden, factor=2.0),
            rf"`scaled` \(Scaled\) is not handled: {handled}",
        ),
        "constant in a merge": (L.Add(name="plus")([hidden, tf.ones((1, 4))]), r"`plus` \(Add\) is not handl"),
        "constant into a model": (inner([hidden, tf.ones((1, 4))]), r"`inner` \(Functional\) is not handled"),
        "two tensors": (Two(name="two")(hidden)[0], rf"`two` \(Two\) is not handled: {handled}"),
        "two outputs": ([hidden, hidden], "has 1 inputs and 2 outputs; models with one input and one output are han"),
        "two inputs": (
            L.Add()([hidden, second]),
            "has 2 inputs and 1 outputs; .* Build a keras.Model from the input to",
        ),
        "maps": (
            L.Reshape((2, 2))(hidden),
            r"gives logits of shape \(None, 2, 2\); a classifier gives \(batch, classes",
        ),
        "inputs": (inputs, second),
    }


@pytest.mark.parametrize("name", [name for name in unsupported() if name != "inputs"])
def test_what_is_not_handled_says_so(name):
    cases = unsupported()
    outputs, text = cases[name]
    inputs = list(cases["inputs"]) if name == "two inputs" else cases["inputs"][0]
    with pytest.raises(UnsupportedOperation, match=text):
        OperationGraph(keras.Model(inputs, outputs))


@pytest.mark.parametrize("model", [None, "model.keras", L.Dense(3)])
def test_only_keras_models_have_a_graph(model):
    with pytest.raises(InvalidArgument, match=f"`model`: expected a keras.Model; received {type(model).__name__}"):
        OperationGraph(model)
