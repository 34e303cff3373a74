from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal import keras_api

L = keras.layers


def noisy(names: tuple[str, ...] = ("first", "second")) -> keras.Model:
    x = inputs = keras.Input((64,))
    for name in names:
        x = L.Dropout(0.5, name=name)(x)
    return keras.Model(inputs, x)


def draws(model: keras.Model, count: int = 3) -> np.ndarray:
    """Which values every dropout layer keeps in the next calls."""
    ones = np.ones((1, 64), "float32")
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, L.Dropout)]
    return np.array([[layer(ones, training=True) for layer in layers] for _ in range(count)])


def test_reset_random_state_repeats_the_draws():
    model = noisy()
    keras_api.reset_random_state(model, 5)
    first = draws(model)
    assert np.abs(first[0] - first[1]).max() > 0, "the draws of one run differ from each other"
    assert np.abs(first[:, 0] - first[:, 1]).max() > 0, "the layers draw differently"
    keras_api.reset_random_state(model, 5)
    np.testing.assert_array_equal(draws(model), first)
    keras_api.reset_random_state(model, 6)
    assert np.abs(draws(model) - first).max() > 0


def test_reset_random_state_does_not_depend_on_what_was_before():
    first, second = noisy(), noisy()
    draws(second, count=7)
    for model in (first, second):
        keras_api.reset_random_state(model, 5)
    np.testing.assert_array_equal(draws(first), draws(second))


def test_reset_random_state_reaches_nested_models():
    inputs = keras.Input((64,))
    model = keras.Model(inputs, L.Dropout(0.5)(noisy()(inputs)))
    keras_api.reset_random_state(model, 5)
    first = draws(model)
    assert first.shape[1] == 3
    keras_api.reset_random_state(model, 5)
    np.testing.assert_array_equal(draws(model), first)


def test_without_activation_shares_the_variables_and_leaves_the_layer_alone():
    layer = L.Dense(3, activation="relu", name="dense")
    layer(keras.Input((4,)))
    config, nodes = layer.get_config(), list(layer._inbound_nodes)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")

    twin = keras_api.without_activation(layer)
    before = twin(x).numpy()

    assert before.min() < 0
    np.testing.assert_allclose(np.maximum(before, 0), layer(x), atol=1e-6)
    assert len(twin.weights) == 2
    assert all(ours is theirs for ours, theirs in zip(twin.weights, layer.weights, strict=True))
    layer.kernel.assign(2 * layer.kernel)
    np.testing.assert_allclose(twin(x), 2 * before, rtol=1e-5)
    assert layer.activation is keras.activations.relu
    assert layer.get_config() == config
    twin(keras.Input((4,)))
    assert layer._inbound_nodes == nodes


class OwnCall(L.Dense):
    def call(self, inputs, training=None):
        return super().call(inputs) - 1.0


class Renamed(L.Dense):
    pass


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: L.Dense(2), True),
        (lambda: L.Conv1D(2, 3), True),
        (lambda: L.Conv2D(2, 3), True),
        (lambda: L.DepthwiseConv2D(3), True),
        (lambda: L.SeparableConv2D(2, 3), True),
        (lambda: L.Conv2DTranspose(2, 3), True),
        (lambda: L.EinsumDense("ab,bc->ac", 2), True),
        (lambda: Renamed(2), True),
        (lambda: OwnCall(2), False),
        (lambda: L.LSTM(2), False),
        (lambda: L.Activation("relu"), False),
        (lambda: keras.Sequential(), False),
        (lambda: keras.ops.relu, False),
    ],
)
def test_ends_with_activation(layer, expected):
    assert keras_api.ends_with_activation(layer()) is expected


@pytest.mark.parametrize("name", keras_api.layers._ACTIVATION_LAST.split())
def test_layers_said_to_end_with_their_activation_do(name):
    rank = 1 if "1D" in name else 3 if "3D" in name else 2
    options = {"activation": "tanh", "bias_initializer": "ones"}
    if name == "EinsumDense":
        layer = L.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d", **options)
    else:
        arguments = () if "Depthwise" in name else (3,)
        layer = getattr(L, name)(*arguments, **({} if name == "Dense" else {"kernel_size": 2}), **options)
    shape = (2, 4, 2) if name == "EinsumDense" else (2, *[4] * rank, 2)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = layer(x)
    np.testing.assert_allclose(np.tanh(keras_api.without_activation(layer)(x)), expected, atol=1e-6)


class Composite(L.Layer):
    """Does not take `training`; its sublayer does."""

    def __init__(self):
        super().__init__()
        self.dropout = L.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(inputs)


@pytest.mark.parametrize("layer", [L.Dropout(0.5), Composite(), noisy()])
def test_call_operation_hands_training_on(layer):
    ones = tf.ones((2, 64))
    np.testing.assert_array_equal(keras_api.call_operation(layer, (ones,), {}, training=False), ones)
    assert keras_api.call_operation(layer, (ones,), {}, training=True).numpy().min() == 0


def test_call_operation_of_an_operation_that_knows_no_training():
    relu = keras.ops.relu(keras.Input((2,)))._keras_history.operation
    np.testing.assert_array_equal(keras_api.call_operation(relu, (tf.constant([[-1.0, 2.0]]),), {}, True), [[0, 2]])


def test_nodes_say_what_is_constant_and_what_is_not():
    inputs = keras.Input((4,))
    dropped = L.Dropout(0.5, name="drop")(inputs, training=True)
    model = keras.Model(inputs, L.Add(name="add")([dropped, keras.ops.multiply(inputs, 2.0)]))
    nodes = {node.operation.name.partition("_")[0]: node for node in keras_api.nodes(model)}
    assert {name: node.constants for name, node in nodes.items()} == {"drop": (), "multiply": (2.0,), "add": ()}
    add = nodes["add"]
    assert add.output_shapes == ((None, 4),)
    assert add.output_ids == keras_api.output_ids(model)
    assert len(add.input_ids) == 2
    assert add.arguments([1, 2]) == (([1, 2],), {})
    assert nodes["drop"].input_ids == keras_api.input_ids(model)


def test_losses_kept():
    inputs = keras.Input((2,))
    dense = L.Dense(1, activity_regularizer="l1", kernel_initializer="ones")
    model = keras.Model(inputs, keras.Sequential([keras.Input((2,)), dense])(inputs))
    model(np.array([[1.0, 2.0]]))
    with keras_api.losses_kept(model):
        model(np.array([[5.0, 5.0]]))
        inside = [float(loss) for loss in model.losses]
    assert inside == [pytest.approx(0.1)]
    assert [float(loss) for loss in model.losses] == [pytest.approx(0.03)]

    def interrupted() -> None:
        with keras_api.losses_kept(model):
            model(np.array([[5.0, 5.0]]))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        interrupted()
    assert [float(loss) for loss in model.losses] == [pytest.approx(0.03)]
    model(np.array([[4.0, 4.0]]))
    assert [float(loss) for loss in model.losses] == [pytest.approx(0.08)]


def test_unpack():
    assert keras_api.unpack((1, 2)) == (1, 2, None)
    assert keras_api.unpack((1, 2, 3)) == (1, 2, 3)


def test_track_loss_weighs_by_batch_size():
    model = noisy()
    model.compile("sgd", "mse")
    keras_api.track_loss(model, tf.constant(1.0), tf.constant(3))
    keras_api.track_loss(model, tf.constant(5.0), tf.constant(1))
    metrics = {metric.name: float(metric.result()) for metric in model.metrics}
    assert metrics["loss"] == pytest.approx(2.0)


@pytest.mark.parametrize("scaled", [False, True])
def test_apply_gradients_updates_the_weights_whatever_the_loss_scale(scaled):
    model = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones")])
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0) if scaled else optimizer, "mse")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.constant([[3.0]])))
    keras_api.apply_gradients(model, tape, loss)
    np.testing.assert_allclose(model.get_weights()[0], [[1.0 - 0.1 * 3.0]], rtol=1e-6)


def test_rebuild_train_function_sees_a_python_value_that_changed():
    class Stepper(keras.Model):
        value = 1.0

        def train_step(self, data):
            return {"value": tf.constant(self.value)}

    inputs = keras.Input((1,))
    model = Stepper(inputs, L.Dense(1)(inputs))
    model.compile("sgd", "mse")
    zeros = np.zeros((2, 1), "float32")

    def fitted() -> float:
        return model.fit(zeros, zeros, verbose=0).history["value"][0]

    assert fitted() == 1.0
    model.value = 2.0
    assert fitted() == 1.0
    keras_api.rebuild_train_function(model)
    assert fitted() == 2.0
