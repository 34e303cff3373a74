from __future__ import annotations

import logging
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.graph import OperationGraph

L = keras.layers
SHAPE = (6, 5, 2)


def images_of(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def classify(x, units: int = 3, activation: str | None = "softmax"):
    return L.Dense(units, activation=activation, name="head")(L.GlobalAveragePooling2D(name="pool")(x))


def functional() -> keras.Model:
    x = inputs = keras.Input(SHAPE)
    x = L.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, classify(L.BatchNormalization(name="norm")(x)))


def sequential() -> keras.Model:
    return keras.Sequential(
        [keras.Input(SHAPE), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3, activation="softmax")]
    )


def sequential_built_later() -> keras.Model:
    model = keras.Sequential([L.Conv2D(4, 3), L.Flatten(), L.Dense(3)])
    model.build((None, *SHAPE))
    return model


def nested() -> keras.Model:
    """A Sequential inside a functional model inside the model; the softmax is that of a nested head."""
    block = keras.Sequential([keras.Input(SHAPE), L.Conv2D(4, 3, name="conv"), L.ReLU(name="relu")], name="block")
    x = inputs = keras.Input(SHAPE)
    backbone = keras.Model(inputs, L.BatchNormalization(name="norm")(block(x)), name="backbone")
    features = keras.Input((4, 3, 4))
    head = keras.Model(features, classify(features), name="top")
    x = inputs = keras.Input(SHAPE)
    return keras.Model(inputs, head(backbone(x)))


def shared() -> keras.Model:
    inputs, conv = keras.Input(SHAPE), L.Conv2D(2, 3, padding="same", activation="relu", name="conv")
    return keras.Model(inputs, classify(conv(conv(inputs))))


def shared_nested() -> keras.Model:
    block = keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 1, name="conv")], name="block")
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, classify(L.Add(name="add")([block(inputs), block(block(inputs))])))


def branches() -> keras.Model:
    inputs = keras.Input(SHAPE)
    left, right = L.Conv2D(2, 3, padding="same")(inputs), L.Dense(2, activation="tanh")(inputs)
    x = L.Concatenate()([L.Add()([left, inputs, right]), left])
    return keras.Model(inputs, classify(L.Subtract()([x, L.Concatenate()([right, inputs])])))


def nested_with_several_ends() -> keras.Model:
    """Only one of the inner model's two inputs is the image's, and its second output is not used."""
    first, second = keras.Input(SHAPE), keras.Input((2,))
    merged = L.Dense(3, activation="softmax", name="used")(L.Concatenate()([L.Flatten()(first), second]))
    inner = keras.Model([first, second], [merged, L.Dense(2, name="unused")(merged)], name="inner")
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, inner([inputs, L.GlobalMaxPooling2D()(inputs)])[0])


def recurrent() -> keras.Model:
    """A layer with an attribute `activation` that is not the last thing it does."""
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, L.Dense(2)(L.LSTM(4)(L.Reshape((6, 10))(inputs))))


MODELS = {
    build.__name__: build
    for build in (
        functional,
        sequential,
        sequential_built_later,
        nested,
        shared,
        shared_nested,
        branches,
        nested_with_several_ends,
        recurrent,
    )
}


@pytest.mark.parametrize("name", MODELS)
def test_run_and_head_compute_what_the_model_does(name):
    model = MODELS[name]()
    graph = OperationGraph(model)
    activations = graph.run(images_of())
    expected = model.predict(images_of(), verbose=0)
    assert graph.num_classes == expected.shape[1]
    np.testing.assert_allclose(graph.head(activations[graph.logits]), expected, rtol=0, atol=1e-6)
    for operation in graph.operations:
        if operation.output in activations:
            assert activations[operation.output].shape.is_compatible_with(operation.shape), operation.path


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_comes_after_those_that_it_needs(name):
    graph = OperationGraph(MODELS[name]())
    known = {graph.input}
    for operation in graph.operations:
        assert set(operation.inputs) <= known
        known.add(operation.output)
    paths = [operation.path for operation in graph.operations]
    assert len(set(paths)) == len(paths)


def paths_of(model: keras.Model) -> list[str]:
    return [operation.path for operation in OperationGraph(model).operations]


def test_paths():
    assert paths_of(functional()) == ["conv", "conv/activation", "norm", "pool", "head", "head/activation"]
    assert paths_of(nested()) == [
        "backbone/block/conv",
        "backbone/block/relu",
        "backbone/norm",
        "top/pool",
        "top/head",
        "top/head/activation",
    ]
    assert paths_of(shared()) == [
        "conv",
        "conv/activation",
        "conv:2",
        "conv:2/activation",
        "pool",
        "head",
        "head/activation",
    ]
    assert sorted(paths_of(shared_nested()))[:4] == ["add", "block/conv", "block:2/conv", "block:3/conv"]


def test_operations_that_the_output_does_not_need_are_left_out():
    assert not any("unused" in path for path in paths_of(nested_with_several_ends()))
    inputs = keras.Input(SHAPE)
    hidden = L.Conv2D(2, 1, name="kept")(inputs)
    keras.Model(inputs, classify(L.Conv2D(2, 1, name="elsewhere")(hidden)))
    assert paths_of(keras.Model(inputs, classify(hidden, activation=None))) == ["kept", "pool", "head"]


HEADS = {
    "fused softmax": lambda x: L.Dense(3, activation="softmax")(x),
    "fused sigmoid": lambda x: L.Dense(3, activation="sigmoid")(x),
    "softmax activation": lambda x: L.Activation("softmax")(L.Dense(3)(x)),
    "sigmoid activation": lambda x: L.Activation("sigmoid")(L.Dense(3)(x)),
    "softmax layer": lambda x: L.Softmax()(L.Dense(3)(x)),
    "softmax layer, fused": lambda x: L.Dense(3, activation=L.Softmax())(x),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_split_off(name, caplog):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, HEADS[name](inputs), name="judge")
    with caplog.at_level(logging.INFO, "tfcausal.graph"):
        graph = OperationGraph(model)
    assert f"Model `judge` is explained at the logits, before `{graph.operations[-1].path}`." in caplog.messages
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    activations = graph.run(x)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(activations[graph.logits], x @ kernel + bias, atol=1e-6)
    assert graph.output not in activations
    np.testing.assert_allclose(graph.head(activations[graph.logits]), model(x), atol=1e-6)


def test_the_head_keeps_its_own_precision():
    """A softmax in float32 behind layers in bfloat16, as mixed precision is meant: not rounded to 8 bits."""
    inputs = keras.Input((8,))
    logits = L.Dense(3, dtype=keras.DTypePolicy("mixed_bfloat16"))(inputs)
    model = keras.Model(inputs, L.Activation("softmax", dtype="float32")(logits))
    graph = OperationGraph(model)
    images = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    probabilities = graph.head(graph.run(images)[graph.logits])
    assert probabilities.dtype == tf.float32
    np.testing.assert_allclose(probabilities, model(images), rtol=0, atol=1e-7)


@pytest.mark.parametrize("activation", [None, "linear", "relu"])
def test_a_model_of_logits_has_no_head(activation, caplog):
    inputs = keras.Input((4,))
    with caplog.at_level(logging.INFO, "tfcausal.graph"):
        graph = OperationGraph(keras.Model(inputs, L.Dense(3, activation=activation)(inputs)))
    assert graph.logits == graph.output
    assert not caplog.messages
    logits = tf.ones((2, 3))
    assert graph.head(logits) is logits


def test_a_model_that_only_applies_softmax_has_its_input_for_logits():
    inputs = keras.Input((4,))
    graph = OperationGraph(keras.Model(inputs, L.Softmax()(inputs)))
    assert (graph.logits, graph.num_classes) == (graph.input, 4)


class WithTrainStep(keras.Model):
    def train_step(self, data):
        raise NotImplementedError


def test_a_functional_model_with_its_own_training_step_is_handled():
    inputs = keras.Input((4,))
    assert paths_of(WithTrainStep(inputs, L.Dense(3, name="head")(inputs))) == ["head"]


class Wrapper(keras.Model):
    def __init__(self, network):
        super().__init__()
        self.network = network

    @property
    def explained_network(self):
        return self.network

    def call(self, inputs):
        return self.network(inputs)


def test_a_wrapper_names_the_network_that_is_explained():
    model = functional()
    wrapper = Wrapper(model)
    assert paths_of(wrapper) == paths_of(model)
    inputs = keras.Input(SHAPE)
    assert paths_of(keras.Model(inputs, wrapper(inputs)))[0] == f"{wrapper.name}/conv"


def test_find():
    graph = OperationGraph(functional())
    assert graph.find("conv/activation").inputs == (graph.find("conv").output,)
    assert graph.producer(graph.find("norm").output) is graph.find("norm")
    assert graph.producer(graph.input) is None
    text = (
        "Invalid value for `path`: expected one of conv, conv/activation, norm, pool, head, head/activation; "
        "received 'conv2'."
    )
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        graph.find("conv2")


def test_replace_uses_a_function_instead_of_the_layer():
    graph = OperationGraph(functional())
    norm = graph.find("norm")
    plain = graph.run(images_of())
    replaced = graph.run(images_of(), replace={norm.output: lambda x: 2.0 * x})
    np.testing.assert_array_equal(replaced[norm.output], 2.0 * plain[norm.inputs[0]])
    np.testing.assert_array_equal(replaced[norm.inputs[0]], plain[norm.inputs[0]])
    pooled = tf.reduce_mean(replaced[norm.output], axis=(1, 2))
    np.testing.assert_allclose(replaced[graph.find("pool").output], pooled, rtol=1e-6)


def test_replaced_batch_normalization_leaves_its_moving_statistics_alone():
    graph = OperationGraph(functional())
    norm = graph.find("norm")
    before = norm.layer.moving_mean.numpy()
    graph.run(images_of() + 3, training=True, replace={norm.output: tf.identity})
    np.testing.assert_array_equal(norm.layer.moving_mean, before)
    graph.run(images_of() + 3, training=True)
    assert np.abs(norm.layer.moving_mean.numpy() - before).max() > 0


def test_activation_bytes_by_hand():
    # input 60, conv and its activation 48 each, norm 48, pool 4, head and its activation 3 each
    assert OperationGraph(functional()).activation_bytes() == 4 * (60 + 3 * 48 + 4 + 2 * 3)
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(inputs)))
    assert OperationGraph(model).activation_bytes() == 4 * (224 * 224 + 1 + 2)


def test_rows_of_a_sample():
    inputs = keras.Input((6, 8, 2))
    rows = keras.ops.reshape(inputs, (-1, 8, 2))
    rows = L.Flatten()(L.Dense(3, activation="relu")(rows))
    parts = keras.ops.reshape(rows, (-1, 3, 24))
    outputs = L.Dense(2)(L.Flatten()(keras.ops.reshape(L.Dense(1)(parts), (-1, 6))))
    graph = OperationGraph(keras.Model(inputs, outputs))
    assert [operation.rows for operation in graph.operations] == [6, 6, 6, 6, 2, 2, 1, 1, 1]
    in_batch = 6 * (16 + 24 + 24 + 24) + 2 * (72 + 3)
    assert graph.activation_bytes() == 4 * (96 + in_batch + 6 + 6 + 2)
    mixed = keras.ops.reshape(keras.ops.reshape(inputs, (-1, 64)), (-1, 96))
    graph = OperationGraph(keras.Model(inputs, L.Dense(2)(mixed)))
    assert [operation.rows for operation in graph.operations] == [0, 0, 0]


def test_layers_that_are_part_of_another_model_too():
    model = functional()
    expected = model.predict(images_of(), verbose=0)
    first = OperationGraph(model)
    inputs = keras.Input((9, 9, 2))
    other = L.Flatten()(model.get_layer("conv")(L.Dense(2)(inputs)))
    keras.Model(inputs, L.Dense(2)(other))
    model.get_layer("norm")(model.get_layer("conv")(keras.Input((4, 4, 2))))  # a call that no model uses
    for graph in (first, OperationGraph(model)):
        assert len(graph.operations) == 6
        np.testing.assert_allclose(graph.head(graph.run(images_of())[graph.logits]), expected, atol=1e-6)


def test_a_part_of_a_model_is_a_model():
    model = functional()
    assert paths_of(keras.Model(model.inputs, model.outputs)) == paths_of(model)
    from_within = keras.Model(model.get_layer("norm").output, model.output)
    assert paths_of(from_within) == ["pool", "head", "head/activation"]
    features = keras.Model(model.input, model.get_layer("conv").output, name="features")
    inputs = keras.Input(SHAPE)
    probe = keras.Model(inputs, L.Dense(2, name="probe")(L.Flatten(name="flat")(features(inputs))))
    graph = OperationGraph(probe)
    assert paths_of(probe) == ["features/conv", "features/conv/activation", "flat", "probe"]
    np.testing.assert_allclose(graph.run(images_of())[graph.logits], probe(images_of()), atol=1e-6)


def test_frozen_batch_normalization_uses_moving_statistics_in_training():
    model = functional()
    model.get_layer("norm").moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    graph = OperationGraph(model)
    norm = graph.find("norm").output
    in_inference = graph.run(images_of())[norm].numpy()
    model.get_layer("norm").trainable = False
    np.testing.assert_array_equal(graph.run(images_of(), training=True)[norm], in_inference)
    model.get_layer("norm").trainable = True
    assert np.abs(graph.run(images_of(), training=True)[norm].numpy() - in_inference).max() > 0.1


class Composite(L.Layer):
    """Does not take `training` itself; what is inside does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization()

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs):
        return self.norm(inputs)


class Gated(L.Layer):
    """Uses an attribute `activation` in its own way."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.sigmoid

    def call(self, inputs):
        return inputs * self.activation(inputs) - 1.0


def test_training_reaches_the_layers_inside_a_layer():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, classify(Composite()(inputs), activation=None))
    graph = OperationGraph(model)
    for training in (False, True):
        expected = model(images_of(), training=training)
        np.testing.assert_allclose(graph.run(images_of(), training)[graph.logits], expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_training_that_was_fixed_in_the_call_is_treated_as_keras_treats_it(training):
    block = keras.Sequential([keras.Input(SHAPE), L.BatchNormalization()])
    inputs = keras.Input(SHAPE)
    hidden = L.BatchNormalization()(block(inputs, training=False), training=True)
    model = keras.Model(inputs, classify(hidden, activation=None))
    graph = OperationGraph(model)
    got = graph.run(images_of(), training)[graph.logits]
    np.testing.assert_allclose(got, model(images_of(), training=training), atol=1e-6)


def test_an_activation_that_a_layer_uses_in_its_own_way_is_not_split_off():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, classify(Gated(name="gated")(inputs)))
    graph = OperationGraph(model)
    assert {"gated/sigmoid", "gated/subtract"} < {operation.path for operation in graph.operations}
    np.testing.assert_allclose(graph.head(graph.run(images_of())[graph.logits]), model(images_of()), atol=1e-6)
    assert "lstm/activation" not in paths_of(recurrent())


def test_building_a_graph_leaves_the_model_alone():
    model = nested()
    layers = [layer for part in ("backbone", "top") for layer in model.get_layer(part).layers]
    before = [(layer.get_config(), len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    weights = [weight.numpy() for weight in model.weights]
    graph = OperationGraph(model)
    graph.run(images_of())
    assert [(layer.get_config(), len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers] == before
    for weight, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert model.get_layer("top").get_layer("head").activation is keras.activations.softmax


def with_operations() -> keras.Model:
    """Operations of keras.ops, constants in calls, a layer that gives two tensors, a broadcast constant."""
    inputs = keras.Input(SHAPE)
    x = L.Conv2D(4, 3, name="conv")(inputs) * 2.0 + np.arange(4, dtype="float32")
    first, second = keras.ops.split(keras.ops.relu(1.0 - x), 2, axis=-1)
    x = keras.ops.concatenate([second, L.Add(name="plus")([first, tf.ones((1, 1, 1, 2))]), first / 3], axis=-1)
    return keras.Model(inputs, L.Dense(3, name="head")(keras.ops.mean(x, axis=(1, 2))[:, 1:]))


class Residual(L.Layer):
    """A layer made of layers, with a weight of its own, whose branch behaves differently in training."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(filters, 3, padding="same", activation="relu", name="conv")
        self.drop = L.Dropout(0.5, name="drop")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs, training=None):
        return inputs + self.drop(self.conv(inputs), training=training) * self.gain


class Network(keras.Model):
    def __init__(self):
        super().__init__(name="network")
        self.first, self.second = Residual(2, name="first"), Residual(2, name="second")
        self.pool, self.head = L.GlobalAveragePooling2D(name="pool"), L.Dense(3, activation="softmax", name="head")

    def call(self, inputs, training=None):
        x = self.second(self.first(inputs, training=training), training=training)
        return self.head(self.pool(keras.ops.maximum(x, 0.1)))


def subclassed() -> keras.Model:
    model = Network()
    model(images_of())
    model.first.gain.assign(1.5)
    return model


@pytest.mark.parametrize("build", [with_operations, subclassed])
def test_operations_and_subclassed_models(build):
    model = build()
    graph = OperationGraph(model)
    np.testing.assert_allclose(graph.head(graph.run(images_of())[graph.logits]), model(images_of()), atol=1e-6)


def test_a_subclassed_model_follows_its_weights_and_is_left_alone():
    model = subclassed()
    layers = [model.first.conv, model.second.drop, model.head]
    graph = OperationGraph(model)
    assert all(layer._inbound_nodes == [] for layer in layers)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(weight + 0.1)
    np.testing.assert_allclose(graph.head(graph.run(images_of())[graph.logits]), model(images_of()), atol=1e-6)
    dropped = graph.run(images_of(), training=True)[graph.logits]
    assert np.abs(dropped - graph.run(images_of())[graph.logits]).max() > 1e-3
    assert "second/conv/activation" in paths_of(model)
    assert "maximum" in paths_of(model)


def test_layers_of_a_users_own_are_kept_whole_where_asked():
    model = subclassed()
    graph = OperationGraph(model, keep=lambda layer: True)
    assert [operation.path for operation in graph.operations][:2] == ["first", "second"]
    np.testing.assert_allclose(graph.head(graph.run(images_of())[graph.logits]), model(images_of()), atol=1e-6)


class Centred(L.Layer):
    """Computes with TensorFlow, which cannot be followed."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)


def test_a_layer_that_cannot_be_followed_stays_whole():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, classify(Centred(name="centred")(inputs)))
    assert paths_of(model)[0] == "centred"


def test_a_run_can_stop_and_go_on():
    graph = OperationGraph(nested())
    everything = graph.run(images_of())
    middle = graph.find("backbone/norm").output
    until = graph.run(images_of(), until=middle)
    assert max(until) == middle
    np.testing.assert_array_equal(until[middle], everything[middle])
    changed = {**until, middle: 2.0 * until[middle]}
    rest = graph.run(images_of(), given=changed)
    pooled = tf.reduce_mean(2.0 * everything[middle], axis=(1, 2))
    np.testing.assert_allclose(rest[graph.find("top/pool").output], pooled, rtol=1e-6)
    np.testing.assert_array_equal(rest[graph.find("backbone/block/conv").output], until[min(set(until) - {0})])


def test_layers_are_found_by_name_path_and_identity():
    model = nested()
    graph = OperationGraph(model)
    conv = model.get_layer("backbone").get_layer("block").get_layer("conv")
    position = graph.find("backbone/block/conv").output
    assert (
        graph.layer_output("conv") == graph.layer_output("backbone/block/conv") == graph.layer_output(conv) == position
    )
    assert graph.layer_output("head") == graph.find("top/head/activation").output
    assert graph.layer_output("backbone") == graph.find("backbone/norm").output
    with pytest.raises(InvalidArgument, match=r"`layer`: expected one of backbone/block/conv, .* received 'nowhere'"):
        graph.layer_output("nowhere")
    with pytest.raises(InvalidArgument, match=r"`layer`: .* received 'dense'"):
        graph.layer_output(L.Dense(3, name="dense"))
    twice = OperationGraph(shared_nested())
    with pytest.raises(
        InvalidArgument, match="It stands for block/conv and block:2/conv and block:3/conv: give the path"
    ):
        twice.layer_output("conv")
    assert twice.layer_output("block:2/conv") == twice.find("block:2/conv").output


def test_several_inputs_and_outputs():
    image, age = keras.Input(SHAPE, name="image"), keras.Input((1,), name="age")
    hidden = L.Concatenate()([L.Flatten()(image), age])
    model = keras.Model({"image": image, "age": age}, {"kind": L.Dense(3)(hidden), "stage": L.Dense(2)(hidden)})
    graph = OperationGraph(model, output="stage")
    assert graph.input_names == ("age", "image")
    assert graph.num_classes == 2
    ages = np.ones((len(images_of()), 1), "float32")
    expected = model({"image": images_of(), "age": ages})["stage"]
    np.testing.assert_allclose(graph.run([ages, images_of()])[graph.logits], expected, atol=1e-6)


@pytest.mark.parametrize("head", [L.Softmax(), L.Activation("sigmoid"), keras.ops.softmax, keras.ops.sigmoid])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1:UserWarning")
@pytest.mark.filterwarnings("ignore:Exception encountered when calling Softmax:UserWarning")
def test_heads_of_every_kind_are_split_off(head, classes):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head(L.Dense(classes, name="logits")(inputs)))
    graph = OperationGraph(model)
    assert graph.producer(graph.logits).path == "logits"
    values = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_allclose(graph.head(graph.run(values)[graph.logits]), model(values), atol=1e-6)


def test_a_dictionary_is_taken_by_the_names_of_a_nested_models_inputs():
    first, second = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    inner = keras.Model([first, second], L.Dense(3)(first) + 2.0 * L.Dense(3)(second), name="inner")
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([left, right], inner({"b": left, "a": right}))
    values = list(np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32"))
    graph = OperationGraph(model)
    np.testing.assert_allclose(graph.run(values)[graph.logits], model(values), atol=1e-6)


class Transfer(keras.Model):
    """The idiom of transfer learning: the backbone's statistics stay as they are, whatever the model is told."""

    def __init__(self):
        super().__init__(name="transfer")
        inputs = keras.Input(SHAPE)
        self.backbone = keras.Model(inputs, L.BatchNormalization(name="norm")(inputs), name="backbone")
        self.top = L.BatchNormalization(name="top")
        self.pool, self.head = L.GlobalAveragePooling2D(), L.Dense(3)

    def call(self, inputs, training=None):
        return self.head(self.pool(self.top(self.backbone(inputs, training=False), training=training)))


def test_a_mode_that_a_call_fixes_stays_fixed():
    model = Transfer()
    model(images_of())
    graph = OperationGraph(model, in_training=True)
    inner, outer = graph.find("backbone/norm"), graph.find("top")
    assert (inner.fixed_training, outer.fixed_training) == (False, None)
    assert (inner.trains(True), outer.trains(True)) == (False, True)
    expected = Transfer()
    expected(images_of())
    expected.set_weights(model.get_weights())
    trained = graph.run(3 * images_of() + 1, training=True)[graph.logits]
    np.testing.assert_allclose(trained, expected(3 * images_of() + 1, training=True), atol=1e-5)
    for weight, other in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-6)


class Uncertain(keras.Model):
    """Drops at inference, too."""

    def __init__(self):
        super().__init__(name="uncertain")
        self.drop, self.flat, self.head = L.Dropout(0.5, name="drop"), L.Flatten(), L.Dense(3)

    def call(self, inputs):
        return self.head(self.flat(self.drop(inputs, training=True)))


def test_dropout_that_is_always_on_stays_on():
    model = Uncertain()
    model(images_of())
    graph = OperationGraph(model)
    drop = graph.find("drop")
    assert drop.fixed_training is True
    dropped = graph.run(tf.ones((3, *SHAPE)))[drop.output]
    assert set(np.unique(dropped)) == {0, 2}


class Named(keras.Model):
    def __init__(self):
        super().__init__(name="named")
        self.head = L.Dense(3)

    def call(self, inputs):
        return self.head(inputs["zoom"] - 2.0 * inputs["age"])


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict:UserWarning")
def test_inputs_of_a_dictionary_are_called_by_its_keys():
    model = Named()
    values = {"zoom": np.ones((2, 4), "float32"), "age": np.full((2, 4), 3.0, "float32")}
    model(values)
    graph = OperationGraph(model)
    assert graph.input_names == ("age", "zoom")
    np.testing.assert_allclose(graph.run([values["age"], values["zoom"]])[graph.logits], model(values), atol=1e-6)
    inputs = keras.Input((4,), name="x")
    assert OperationGraph(keras.Model({"img": inputs}, L.Dense(2)(inputs))).input_names == ("img",)
