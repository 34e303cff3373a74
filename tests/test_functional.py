"""`flatten` gives other libraries one plain model that shares the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.functional import flatten

L = keras.layers


def images_of(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


def block(name: str) -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(3, 3, padding="same", activation="relu", name="conv")(inputs))
    return keras.Model(inputs, L.Add(name="add")([x, inputs * 0.5]), name=name)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner, self.pool = block("inner"), L.GlobalAveragePooling2D(name="pool")
        self.head = L.Dense(2, name="head")

    def call(self, inputs, training=None):
        return self.head(self.pool(self.inner(inputs, training=training)))


def transfer() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    first, second = block("first"), block("second")
    top = keras.Sequential([L.GlobalAveragePooling2D(), L.Dense(2, activation="softmax", name="head")], name="top")
    return keras.Model(inputs, top(second(first(first(inputs)))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(images_of())
    return model


@pytest.mark.parametrize("build", [transfer, subclassed])
def test_the_flat_model_is_the_same_function_of_the_same_weights(build):
    model = build()
    flat = flatten(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert {id(weight) for weight in flat.weights} == {id(weight) for weight in model.weights}
    np.testing.assert_allclose(flat.predict(images_of(), verbose=0), model.predict(images_of(), verbose=0), atol=1e-6)
    for weight in model.weights:
        weight.assign(weight + 0.1)
    np.testing.assert_allclose(flat(images_of()), model(images_of()), atol=1e-6)


def test_the_model_is_left_alone():
    model = transfer()
    layers = [*model.layers, *model.get_layer("first").layers]
    before = [
        (layer.name, layer.get_config(), len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers
    ]
    flatten(model)
    after = [
        (layer.name, layer.get_config(), len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers
    ]
    assert after == before
    assert model.get_layer("first").get_layer("conv").output is not None


def test_names_stay_where_they_are_unique():
    names = [layer.name for layer in flatten(transfer()).layers]
    assert len(set(names)) == len(names)
    assert {"conv", "second_conv", "norm", "second_norm", "head"} < set(names)


def test_a_flat_model_can_be_cut_anywhere_and_saved(tmp_path):
    flat = flatten(transfer())
    cut = keras.Model(flat.input, flat.get_layer("second_norm").output)
    assert cut(images_of()).shape == (3, 8, 8, 3)
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    np.testing.assert_allclose(loaded(images_of()), flat(images_of()), atol=1e-6)


def test_training_the_flat_model_trains_the_model():
    model = transfer()
    flat = flatten(model)
    flat.compile("sgd", "sparse_categorical_crossentropy")
    before = model.predict(images_of(), verbose=0)
    flat.fit(images_of(), np.array([0, 1, 0]), verbose=0)
    after = model.predict(images_of(), verbose=0)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(flat.predict(images_of(), verbose=0), after, atol=1e-6)


def test_several_inputs_and_outputs_keep_their_structure():
    image, age = keras.Input((8, 8, 3), name="image"), keras.Input((1,), name="age")
    hidden = L.Concatenate()([L.GlobalAveragePooling2D()(block("inner")(image)), age])
    model = keras.Model({"image": image, "age": age}, {"kind": L.Dense(3)(hidden), "stage": L.Dense(2)(hidden)})
    values = {"image": images_of(), "age": np.ones((3, 1), "float32")}
    flat, expected = flatten(model)(values), model(values)
    assert set(flat) == {"kind", "stage"}
    for name, value in expected.items():
        np.testing.assert_allclose(flat[name], value, atol=1e-6)


def test_what_cannot_be_flattened():
    with pytest.raises(InvalidArgument, match=r"`model`: expected a keras\.Model; received str"):
        flatten("model.keras")
    with pytest.raises(UnsupportedOperation, match=r"Call `build\(input_shape\)` or call the model once"):
        flatten(keras.Sequential([L.Dense(2)]))
    with pytest.raises(UnsupportedOperation, match="call the model once, so that the shape of its input is known"):
        flatten(Subclassed())
