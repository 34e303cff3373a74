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
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class DoubledFunctional(keras.Model):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


class DoubledSequential(keras.Sequential):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


def test_subclassed_models_are_refused_until_they_have_been_called():
    model = Subclassed()
    text = r"`.*` \(Subclassed\) has no graph of operations\. It has a `call` of its own: call the model once, so that"
    with pytest.raises(UnsupportedOperation, match=text):
        OperationGraph(model)
    model(np.zeros((2, 4)))
    assert OperationGraph(model).num_classes == 3


@pytest.mark.parametrize("kind", [DoubledFunctional, DoubledSequential])
def test_a_call_of_its_own_counts_and_not_the_graph_behind_it(kind):
    inputs = keras.Input((4,))
    model = kind(inputs, L.Dense(3)(inputs)) if kind is DoubledFunctional else kind([inputs, L.Dense(3)])
    values = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    graph = OperationGraph(model)
    np.testing.assert_allclose(graph.run(values)[graph.logits], model(values), rtol=1e-6)
    outer = keras.Input((4,))
    nested = keras.Model(outer, model(outer))
    graph = OperationGraph(nested)
    np.testing.assert_allclose(graph.run(values)[graph.logits], nested(values), rtol=1e-6)


class WithTensorFlow(Subclassed):
    def call(self, inputs):
        return self.dense(tf.nn.relu(inputs))


class OnValues(Subclassed):
    def call(self, inputs):
        return self.dense(inputs) if keras.ops.max(inputs) > 0 else inputs


class Frozen(Subclassed):
    """Its kernel is computed beside the graph: a trace would keep the value that it has now."""

    def call(self, inputs):
        self.dense(inputs)
        return keras.ops.matmul(inputs, keras.ops.multiply(self.dense.kernel, 2.0))


class Unsteady(Subclassed):
    """Does something else each time."""

    count = 0

    def call(self, inputs):
        self.count += 1
        return self.dense(inputs) * self.count


@pytest.mark.parametrize("kind", [WithTensorFlow, OnValues, Frozen, Unsteady])
def test_calls_that_cannot_be_traced_are_refused(kind):
    model = kind(name="own")
    model(np.ones((2, 4), "float32"))
    text = rf"Model `own` \({kind.__name__}\) has no graph of operations\. Its `call` cannot be traced: make it of"
    with pytest.raises(UnsupportedOperation, match=text):
        OperationGraph(model)
    inputs = keras.Input((4,))
    if kind is Frozen:
        with pytest.raises(UnsupportedOperation, match=r"Model `own` \(Frozen\) has no graph"):
            OperationGraph(keras.Model(inputs, model(inputs)))


class LouderInTraining(Subclassed):
    def call(self, inputs, training=None):
        return self.dense(2 * inputs if training else inputs)


def test_calls_that_differ_in_training_are_refused_where_the_model_is_trained():
    model = LouderInTraining(name="own")
    model(np.ones((2, 4), "float32"))
    assert len(OperationGraph(model).operations) == 1
    with pytest.raises(UnsupportedOperation, match="have it call the same layers in training as in inference"):
        OperationGraph(model, in_training=True)
    plain = Subclassed()
    plain(np.ones((2, 4), "float32"))
    assert len(OperationGraph(plain, in_training=True).operations) == 1


def test_models_that_are_not_built_are_refused():
    model = keras.Sequential([L.Dense(3)], name="bare")
    text = "Model `bare` (Sequential) has no graph of operations. Call `build(input_shape)` or call the model once."
    with pytest.raises(UnsupportedOperation, match=re.escape(text)):
        OperationGraph(model)
    model(np.zeros((2, 4)))
    assert OperationGraph(model).num_classes == 3
    with pytest.raises(UnsupportedOperation, match=re.escape("Build it from an input and an output: keras.Model(")):
        OperationGraph(keras.Model(name="empty"))


def test_logits_that_are_maps_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Reshape((2, 2))(inputs))
    with pytest.raises(UnsupportedOperation, match=r"gives logits of shape \(None, 2, 2\); a classifier gives \(b"):
        OperationGraph(model)


@pytest.mark.parametrize("model", [None, "model.keras", L.Dense(3)])
def test_only_keras_models_have_a_graph(model):
    with pytest.raises(InvalidArgument, match=f"`model`: expected a keras.Model; received {type(model).__name__}"):
        OperationGraph(model)


class TwoArguments(Subclassed):
    def call(self, first, second):
        return self.dense(first + second)


def test_models_of_several_arguments_say_so():
    model = TwoArguments(name="own")
    model(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(UnsupportedOperation, match="It is called with several arguments: have its `call` take one"):
        OperationGraph(model)


def test_calls_that_keras_converts_without_a_word_are_refused():
    column, whole = keras.Input((4, 1)), keras.Input((4,), dtype="uint8")
    for inputs in (column, whole):
        inner = keras.Model(inputs, L.Flatten()(L.Rescaling(0.5)(inputs)), name="inner")
        outer = keras.Input((4,))
        model = keras.Model(outer, L.Dense(2)(inner(outer)))
        with pytest.raises(UnsupportedOperation, match=r"Model `inner` takes .* and is called on float32 of shape"):
            OperationGraph(model)
