from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.saliency.base import Explainer, check_images, check_targets
from tfcausal.saliency.wbp import WBP

L = keras.layers


def classifier(activation: str = "softmax") -> keras.Model:
    """Layers of every kind that keeps state: batch norm, dropout, a fused activation, gathered losses."""
    x = inputs = keras.Input((6, 5, 2))
    x = L.Conv2D(4, 3, activation="relu", activity_regularizer="l2")(x)
    x = L.Dropout(0.5)(L.BatchNormalization()(x))
    return keras.Model(inputs, L.Dense(3, activation=activation)(L.Flatten()(x)))


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6, 5, 2)).astype("float32")


class Counting(WBP):
    """Counts how often its maps are traced."""

    traces = 0

    def maps(self, inputs, classes):
        self.traces += 1
        return super().maps(inputs, classes)


class Echo(Explainer):
    """Gives the images as maps, so that what surrounds the maps can be checked by hand."""

    name = "echo"

    def maps(self, inputs, classes):
        return inputs


class ClassIndex(Explainer):
    """Gives the class that is explained at every pixel."""

    name = "class_index"

    def maps(self, inputs, classes):
        resolved = self.resolve(self.graph.run(inputs), classes)
        return (tf.zeros_like(inputs[0]) + tf.cast(resolved, tf.float32)[:, None, None, None],)


def test_batch_size_never_changes_a_map():
    model, images = classifier(), images_of(7)
    alone = np.concatenate([WBP(model)(image[None]) for image in images])
    for batch_size in (1, 3, 64):
        maps = WBP(model, batch_size=batch_size)(images)
        assert maps.shape == images.shape
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps, alone, rtol=0, atol=1e-6)


def test_second_call_gives_the_same_maps():
    explainer, images = WBP(classifier()), images_of(4)
    np.testing.assert_array_equal(explainer(images), explainer(images))
    np.testing.assert_array_equal(explainer(images), explainer.explain(images))


def test_maps_are_traced_once_for_all_batches():
    explainer = Counting(classifier(), batch_size=3)
    for count in (7, 3, 1, 2, 6):
        explainer(images_of(count, seed=count))
    explainer(images_of(2), [0, 1])
    explainer(images_of(2), np.eye(3)[:2], reducer="sum")
    assert explainer.traces == 1


def test_images_of_any_size_are_traced_once():
    inputs = keras.Input((None, None, 2))
    explainer = Counting(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(3, 3)(inputs)))))
    assert explainer(np.ones((1, 9, 5, 2))).shape == (1, 9, 5, 2)
    assert explainer(np.ones((2, 4, 7, 2))).shape == (2, 4, 7, 2)
    assert explainer.traces == 1


def test_a_model_with_a_fixed_batch_size_is_explained_in_batches_of_any_size():
    inputs = keras.Input(batch_shape=(4, 6, 5, 2))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs)))
    assert WBP(model, batch_size=2)(images_of(5)).shape == (5, 6, 5, 2)


def state_of(model: keras.Model) -> dict[str, object]:
    layers = model.layers
    return {
        "config": model.get_config(),
        "weights": [weight.numpy().tolist() for weight in model.weights],
        "random state": [generator.state.numpy().tolist() for generator in model.layers[3]._seed_generators],
        "activations": [getattr(layer, "activation", None) for layer in layers],
        "attributes": [sorted(vars(layer)) for layer in layers],
        "nodes": [(list(map(id, layer._inbound_nodes)), list(map(id, layer._outbound_nodes))) for layer in layers],
        "losses": [float(loss) for loss in model.losses],
        "trainable": [layer.trainable for layer in layers],
    }


def test_the_model_is_not_modified():
    model, images = classifier(), images_of(5)
    output = model(images)
    before = state_of(model)
    assert len(before["losses"]) == 1
    assert len(before["random state"]) == 1

    explainer = WBP(model, batch_size=2)
    explainer(images)
    explainer.decompose(images, [0, 1, 2, 0, 1])
    assert state_of(model) == before

    with pytest.raises(InvalidArgument):
        explainer(images[:, 1:])
    with pytest.raises(InvalidArgument):
        explainer(images, [7] * 5)

    class Broken(WBP):
        def maps(self, images, classes):
            super().maps(images, classes)
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="broken on purpose"):
        Broken(model)(images)
    assert state_of(model) == before
    np.testing.assert_array_equal(model(images), output)


def test_a_model_that_was_explained_can_still_be_trained():
    model, images = classifier(), images_of(4)
    model.compile("sgd", "sparse_categorical_crossentropy")
    explainer = WBP(model)
    before = explainer(images)
    model.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    assert np.abs(explainer(images) - before).max() > 0


def test_targets_as_indices_one_hot_or_the_predicted_class():
    explainer, images = ClassIndex(classifier()), 5 * images_of(12)
    predicted = explainer.graph.head(explainer.graph.run(images)[explainer.graph.logits]).numpy().argmax(axis=1)
    assert len(set(predicted)) > 1
    asked = np.arange(12) * 2 % 3
    for targets, expected in (
        (None, predicted),
        (asked, asked),
        (asked.tolist(), asked),
        (asked.astype("uint8"), asked),
        (np.eye(3)[asked], asked),
        (np.eye(3, dtype=bool)[asked], asked),
        (tf.one_hot(asked, 3), asked),
    ):
        np.testing.assert_array_equal(explainer(images, targets)[:, 0, 0, 0], expected)


def test_reducers_by_hand():
    images = np.zeros((1, 6, 5, 2), "float32")
    images[0, 0, :3] = [[1.0, -4.0], [2.0, 3.0], [-1.0, -3.0]]
    explainer = Echo(classifier())
    expected = {"sum": [-3, 5, -4], "mean": [-1.5, 2.5, -2], "max": [1, 3, -1], "abs_max": [4, 3, 3]}
    for reducer, values in expected.items():
        maps = explainer(images, reducer=reducer)
        assert maps.shape == (1, 6, 5, 1)
        assert maps.dtype == np.float32
        assert maps[0, 0, :3, 0].tolist() == values
    np.testing.assert_array_equal(explainer(images), images)


@pytest.mark.parametrize("reducer", ["min", "", ["sum"], 3])
def test_unknown_reducers(reducer):
    text = f"`reducer`: expected None or one of sum, mean, max, abs_max; received {reducer!r}."
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        Echo(classifier())(images_of(1), reducer=reducer)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "4", True])
def test_batch_size_must_be_a_positive_integer(batch_size):
    text = f"`batch_size`: expected a positive integer or None; received {batch_size!r}."
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        Echo(classifier(), batch_size=batch_size)


def test_batch_size_is_chosen_by_the_size_of_the_model():
    assert Echo(classifier()).batch_size == 64
    inputs = keras.Input((1024, 1024, 3))
    large = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(64, 1)(inputs))))
    # (3 + 64) * 2**20 values of 4 bytes, twice, in 2**30 bytes
    assert Echo(large).batch_size == 1
    small = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(13, 1)(inputs))))
    assert Echo(small).batch_size == 7


SHAPE = (None, 6, 5, 2)
BAD_IMAGES = {
    "no batch axis": (
        np.zeros((6, 5, 2)),
        r"shape \(N, 6, 5, 2\); received shape \(6, 5, 2\)\. Add the batch axis: im",
    ),
    "other size": (np.zeros((2, 6, 4, 2)), r"received shape \(2, 6, 4, 2\)\. Resize the images first\."),
    "other channels": (np.zeros((2, 6, 5, 3)), r"received shape \(2, 6, 5, 3\)"),
    "too many axes": (np.zeros((1, 2, 6, 5, 2)), r"received shape \(1, 2, 6, 5, 2\)"),
    "empty": (np.zeros((0, 6, 5, 2)), "expected at least one image; received an empty batch"),
    "text": (np.full((1, 6, 5, 2), "a"), r"of numbers; received dtype <U1"),
    "complex": (np.zeros((1, 6, 5, 2), complex), "of numbers; received dtype complex128"),
    "objects": (None, "of numbers; received dtype object"),
    "ragged": ([[1.0, 2.0], [3.0]], r"shape \(N, 6, 5, 2\); received rows of different lengths"),
    "too large": (np.full((1, 6, 5, 2), 1e300), "finite values of float32; received NaN or infinity in image 0"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name):
    images, text = BAD_IMAGES[name]
    with pytest.raises(InvalidArgument, match=f"`images`: .*{text}"):
        check_images(images, SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_counted_out_by_position(value):
    images = np.zeros((4, 6, 5, 2))
    images[2, 1, 1, 0] = value
    with pytest.raises(InvalidArgument, match=r"NaN or infinity in image 2\. Clean the data\."):
        check_images(images, SHAPE)


def test_any_size_is_spelled_out():
    with pytest.raises(InvalidArgument, match=re.escape("an array of shape (N, any, any, 2)")):
        check_images(np.zeros((1, 6, 5, 3)), (None, None, None, 2))


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16", "float64"])
def test_images_of_every_number_type_become_float32(dtype):
    images = check_images(np.ones((2, 6, 5, 2), dtype)[:, ::-1], SHAPE)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous


EXPECTED_TARGETS = r"integer class indices of shape \(2,\) or one-hot rows of shape \(2, 3\)"
BAD_TARGETS = {
    "too few": ([1], EXPECTED_TARGETS + r"; received shape \(1,\) and dtype int64"),
    "a number": (1, EXPECTED_TARGETS + r"; received shape \(\)"),
    "fractions": ([0.0, 1.0], EXPECTED_TARGETS + r"; received shape \(2,\) and dtype float64"),
    "booleans": ([True, False], EXPECTED_TARGETS + r"; received shape \(2,\) and dtype bool"),
    "other columns": (np.eye(2), EXPECTED_TARGETS + r"; received shape \(2, 2\)"),
    "ragged": ([[1, 0, 0], [1]], EXPECTED_TARGETS + "; received rows of different lengths"),
    "two ones": ([[1, 1, 0], [0, 0, 1]], "one-hot rows with a single 1; received rows of other values"),
    "probabilities": ([[0.5, 0.5, 0], [0, 0, 1]], "one-hot rows with a single 1"),
    "too large": ([0, 3], r"class indices in \[0, 2\]; received values in \[0, 3\]"),
    "negative": ([-1, 0], r"class indices in \[0, 2\]; received values in \[-1, 0\]"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_targets(name):
    targets, text = BAD_TARGETS[name]
    with pytest.raises(InvalidArgument, match=f"`targets`: expected {text}"):
        check_targets(targets, 2, 3)


def test_one_image_of_a_model_with_one_class():
    assert check_targets([0], 1, 1).tolist() == [0]
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 0\]; .* A head of one logit has the one class 0"):
        check_targets([1], 1, 1)


def two_inputs() -> keras.Model:
    image, age = keras.Input((6, 5, 2), name="image"), keras.Input((1,), name="age")
    return keras.Model([image, age], L.Dense(3)(L.Concatenate()([L.Flatten()(image), age])))


def test_models_of_several_inputs_take_lists_and_dictionaries():
    explainer, images, ages = WBP(two_inputs(), batch_size=2), images_of(5), np.arange(5.0)[:, None]
    maps = explainer([images, ages], [0, 1, 2, 0, 1])
    assert [array.shape for array in maps] == [(5, 6, 5, 2), (5, 1)]
    named = explainer({"age": ages, "image": images}, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(named["image"], maps[0])
    np.testing.assert_array_equal(named["age"], maps[1])
    parts = explainer.decompose({"age": ages, "image": images})
    total = parts.maps["image"].sum((1, 2, 3)) + parts.maps["age"].sum(1) + parts.bias
    np.testing.assert_allclose(total, parts.logits, atol=1e-5)
    np.testing.assert_allclose(explainer.outputs([images, ages]).max(1), parts.logits, atol=1e-5)


BAD_INPUTS = {
    "one array": (
        np.zeros((2, 6, 5, 2)),
        r"a list of 2 arrays \(image, age\) or a dictionary of them; received ndarray",
    ),
    "one of two": ([np.zeros((2, 6, 5, 2))], "a list of 2 arrays .* received a list of 1"),
    "other names": ({"image": 0, "sex": 0}, "a dictionary with the keys image, age; received the keys image, sex"),
    "other sizes": ([np.zeros((2, 6, 5, 2)), np.zeros((2, 3))], r"received shape \(2, 3\)"),
    "other lengths": ([np.zeros((2, 6, 5, 2)), np.zeros((3, 1))], "the same number of samples; received lengths 2, 3"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_of_a_model_with_several(name):
    images, text = BAD_INPUTS[name]
    with pytest.raises(InvalidArgument, match=text):
        WBP(two_inputs())(images)


def test_an_output_is_chosen():
    inputs = keras.Input((6, 5, 2))
    hidden = L.Flatten()(inputs)
    model = keras.Model(inputs, {"kind": L.Dense(3)(hidden), "stage": L.Dense(2)(hidden)}, name="both")
    text = "`output`: expected .* outputs of model `both`: 0 (kind), 1 (stage); received None. Choose one"
    with pytest.raises(InvalidArgument, match=re.escape(text).replace("\\.\\*", ".*")):
        WBP(model)
    assert WBP(model, output="stage").graph.num_classes == 2
    assert WBP(model, output=0).graph.num_classes == 3
    for wrong in ("kinds", 2, -1, True):
        with pytest.raises(InvalidArgument, match="`output`"):
            WBP(model, output=wrong)


def test_integers_that_are_no_image_are_refused():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    model = keras.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(L.Embedding(9, 4)(tokens))))
    with pytest.raises(
        UnsupportedOperation, match=r"integers of shape \(None, 7\) as input `tokens`, which is no image"
    ):
        Echo(model)


def test_images_of_bytes_are_explained():
    inputs = keras.Input((6, 5, 2), dtype="uint8")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Rescaling(1 / 255)(inputs))))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2)).astype("uint8")
    parts = WBP(model).decompose(images, [0, 1, 0])
    np.testing.assert_allclose(parts.maps.sum((1, 2, 3)) + parts.bias, parts.logits, atol=1e-5)
    np.testing.assert_allclose(parts.logits, model.predict(images, verbose=0)[[0, 1, 2], [0, 1, 0]], atol=1e-5)


def test_bad_input_is_refused_before_anything_is_computed():
    explainer = Counting(classifier())
    with pytest.raises(InvalidArgument):
        explainer(images_of(2), [0, 3])
    with pytest.raises(InvalidArgument):
        explainer(images_of(2), reducer="min")
    assert explainer.traces == 0


def test_outputs_are_what_the_model_predicts() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Flatten()(keras.layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype("float32")
    assert WBP(model, batch_size=2).outputs(images) == pytest.approx(model.predict(images, verbose=0), abs=1e-6)
    with pytest.raises(InvalidArgument, match="`images`"):
        WBP(model).outputs(images[0])


def test_values_that_overflow_are_refused_and_give_no_nan():
    model = keras.Sequential([keras.Input((6, 5, 2)), L.Flatten(), L.Dense(2, kernel_initializer="ones")])
    with pytest.raises(InvalidArgument, match=r"compute with in its precision; received values up to 3e\+38, which"):
        WBP(model).decompose(np.full((1, 6, 5, 2), 3e38))


def test_images_that_a_layer_cannot_take():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(3, 5)(inputs))))
    with pytest.raises(InvalidArgument, match=r"a size that every layer of the model can take; received shape \(1, 3"):
        WBP(model)(np.ones((1, 3, 3, 2)))
    with pytest.raises(InvalidArgument, match=r"expected images with pixels; received shape \(1, 0, 7, 2\)"):
        WBP(model)(np.ones((1, 0, 7, 2)))


def test_fractions_are_refused_where_the_model_takes_integers():
    inputs = keras.Input((6, 5, 2), dtype="uint8")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Rescaling(1 / 255)(inputs))))
    with pytest.raises(InvalidArgument, match="expected whole numbers, as the model takes uint8; received fractions"):
        WBP(model)(images_of(1))


def test_channels_are_not_reduced_along_the_wrong_axis():
    inputs = keras.Input((2, 6, 5))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.ZeroPadding2D(1, data_format="channels_first")(inputs))))
    images = np.moveaxis(images_of(2), -1, 1)
    assert WBP(model)(images).shape == images.shape
    with pytest.raises(InvalidArgument, match="expected None; received 'sum' for a model with the channels first"):
        WBP(model)(images, reducer="sum")


def test_a_model_tied_to_a_batch_size_says_so():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2)(inputs + np.ones((3, 4), "float32")))
    explainer = WBP(model)
    assert explainer(np.ones((3, 4))).shape == (3, 4)
    with pytest.raises(
        InvalidArgument, match=r"a batch that the model can run; received shape .* fix the batch size\?"
    ):
        explainer(np.ones((2, 4)))
