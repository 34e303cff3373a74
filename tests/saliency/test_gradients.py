from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.gradients import (
    Gradient,
    GradientTimesInput,
    GuidedBackpropagation,
    IntegratedGradients,
    SmoothGrad,
    VarGrad,
)
from tfcausal.saliency.logit_gradients import gradient, integrated_gradients

L = keras.layers
METHODS = (Gradient, GradientTimesInput, SmoothGrad, VarGrad, IntegratedGradients, GuidedBackpropagation)
OPTIONS = {SmoothGrad: {"samples": 3}, VarGrad: {"samples": 3}, IntegratedGradients: {"steps": 4}}


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.features = L.Conv2D(3, 3, activation="relu")
        self.head = L.Dense(3)

    def call(self, images):
        return keras.ops.softmax(self.head(keras.ops.mean(self.features(images), axis=(1, 2))))


def nested() -> keras.Model:
    backbone = keras.Sequential(
        [keras.Input((6, 5, 2)), L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(), L.Conv2D(3, 2), L.ReLU()],
        name="backbone",
    )
    inputs = keras.Input((6, 5, 2))
    x = L.Dropout(0.5)(L.Flatten()(backbone(inputs)))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(x))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 6, 5, 2), "float32"))
    return model


def linear() -> tuple[keras.Model, np.ndarray]:
    model = keras.Sequential([keras.Input((6, 5, 2)), L.Flatten(), L.Dense(3)])
    return model, model.layers[-1].kernel.numpy()


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6, 5, 2)).astype("float32")


def make(method, model, **options):
    return method(model, **{**OPTIONS.get(method, {}), **options})


class TwoLayers:
    """A network of one ReLU layer, in NumPy and float64, and the same in Keras."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.first, self.shift = random.normal(size=(6, 8)), random.normal(size=8)
        self.second, self.bias = random.normal(size=(8, 3)), random.normal(size=3)
        self.model = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(3)])
        self.model.set_weights([self.first, self.shift, self.second, self.bias])

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.first + self.shift, 0) @ self.second + self.bias

    def gradient(self, x: np.ndarray, classes: np.ndarray, guided: bool = False) -> np.ndarray:
        signal = self.second[:, classes].T
        signal = np.maximum(signal, 0) if guided else signal
        return (signal * (x @ self.first + self.shift > 0)) @ self.first.T


def test_gradients_are_those_of_numpy():
    network, x = TwoLayers(), np.random.default_rng(1).normal(size=(5, 6))
    classes = np.array([0, 1, 2, 2, 0])
    for targets, explained in ((classes, classes), (None, network.logits(x).argmax(axis=1))):
        slopes = network.gradient(x, explained)
        np.testing.assert_allclose(Gradient(network.model)(x, targets), slopes, atol=1e-5)
        np.testing.assert_allclose(GradientTimesInput(network.model)(x, targets), slopes * x, atol=1e-5)
        guided = GuidedBackpropagation(network.model)(x, targets)
        np.testing.assert_allclose(guided, network.gradient(x, explained, guided=True), atol=1e-5)


def test_integrated_gradients_are_a_fine_sum_in_numpy():
    network, x = TwoLayers(), np.random.default_rng(1).normal(size=(4, 6))
    classes, start = np.array([2, 0, 1, 1]), np.linspace(-1, 1, 6)
    points = (np.arange(4000) + 0.5) / 4000
    means = np.mean([network.gradient(start + point * (x - start), classes) for point in points], axis=0)
    for rule in ("gauss_legendre", "midpoint"):
        explainer = IntegratedGradients(network.model, steps=400, baseline=start, rule=rule, batch_size=64)
        np.testing.assert_allclose(explainer(x, classes), (x - start) * means, atol=5e-3)


def test_the_rules_of_integration_by_hand():
    """y = x ** 4 from 0 to 2: the slope's mean is 8. Two points of Gauss and Legendre are exact for a cubic; two
    midpoints give (4 * 0.5 ** 3 + 4 * 1.5 ** 3) / 2 = 7."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.ops.square(keras.ops.square(inputs)))
    x = np.array([[2.0]])
    exact, residual = IntegratedGradients(model, steps=2).explain_with_residual(x)
    assert exact[0, 0] == pytest.approx(16, abs=1e-5)
    assert residual[0] == pytest.approx(0, abs=1e-5)
    midpoint, residual = IntegratedGradients(model, steps=2, rule="midpoint").explain_with_residual(x)
    assert midpoint[0, 0] == pytest.approx(14, abs=1e-5)
    assert residual[0] == pytest.approx(2, abs=1e-5)


def test_integrated_gradients_are_complete():
    model, images = nested(), images_of(3)
    logits = OperationGraph(model)
    for baseline in ([0.1, -0.3], images_of(1, seed=5)[0]):
        start = np.broadcast_to(np.asarray(baseline, "float32"), images.shape)
        coarse, fine = (IntegratedGradients(model, steps=steps, baseline=baseline, batch_size=16) for steps in (2, 64))
        maps, residual = fine.explain_with_residual(images, [0, 1, 2])
        values = [logits.run(tf.constant(x))[logits.logits].numpy()[range(3), [0, 1, 2]] for x in (images, start)]
        change = values[0] - values[1]
        np.testing.assert_allclose(change - maps.sum(axis=(1, 2, 3)), residual, atol=1e-5)
        assert np.abs(residual).max() < 0.02
        assert np.abs(residual).max() < np.abs(coarse.explain_with_residual(images, [0, 1, 2])[1]).max()
        np.testing.assert_array_equal(maps, fine(images, [0, 1, 2]))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_points_on_the_way_are_taken_together_without_a_change(batch_size):
    model, images = nested(), images_of(3)
    expected = IntegratedGradients(model, steps=5, batch_size=3)(images)
    np.testing.assert_allclose(IntegratedGradients(model, steps=5, batch_size=batch_size)(images), expected, atol=1e-6)


def test_noise_changes_nothing_on_a_linear_model():
    model, kernel = linear()
    images, classes = images_of(3), np.array([0, 1, 2])
    slopes = kernel[:, classes].T.reshape(images.shape)
    np.testing.assert_allclose(SmoothGrad(model)(images, classes), slopes, atol=1e-6)
    np.testing.assert_allclose(VarGrad(model)(images, classes), 0, atol=1e-12)


def test_smoothgrad_and_vargrad_are_mean_and_variance_of_a_stack():
    """y = x ** 3 has the slope 3 * x ** 2; the noise is drawn here as the explainer says it draws it."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.square(inputs) * inputs)
    x = np.array([[1.0, -1.0, 0.5, 2.0], [10.0, 0.0, 0.0, 2.0]])
    spread = 0.2 * np.array([[3.0], [10.0]])
    noise = np.stack([tf.random.stateless_normal((4,), [7, sample]) for sample in range(9)]).astype(np.float64)
    slopes = 3 * (x + spread * noise[:, np.newaxis]) ** 2 * np.eye(4)[[0, 3]]
    options = {"samples": 9, "noise_level": 0.2, "seed": 7}
    np.testing.assert_allclose(SmoothGrad(model, **options)(x, [0, 3]), slopes.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(VarGrad(model, **options)(x, [0, 3]), slopes.var(axis=0), rtol=1e-3, atol=1e-9)
    assert np.abs(SmoothGrad(model, samples=9, seed=8)(x, [0, 3]) - slopes.mean(axis=0)).max() > 0.01


def test_no_noise_is_the_gradient():
    model, images = nested(), images_of(2)
    np.testing.assert_allclose(SmoothGrad(model, noise_level=0)(images), Gradient(model)(images), atol=1e-6)


def test_guided_backpropagation_on_four_numbers():
    """Units 1 and 2 are open; the weight above unit 2 is negative, so that unit 1 alone passes its signal."""
    model = keras.Sequential([keras.Input((4,)), L.ReLU(), L.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.array([[2.0], [-3.0], [5.0], [-7.0]])])
    x = np.array([[1.0, 1.0, -1.0, -1.0]])
    assert GuidedBackpropagation(model)(x).tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert Gradient(model)(x).tolist() == [[2.0, -3.0, 0.0, 0.0]]


RELUS = {
    "layer": L.ReLU(),
    "limited": L.ReLU(max_value=1.0),
    "leaky": L.ReLU(negative_slope=0.5),
    "threshold": L.ReLU(threshold=0.5),
    "activation": L.Activation("relu"),
    "relu6": L.Activation("relu6"),
    "layer as an activation": L.Activation(L.ReLU(max_value=6.0)),
    "function": keras.activations.relu,
    "function with arguments": lambda x: keras.activations.relu(x, max_value=1.0),
    "operation": keras.ops.relu,
    "operation relu6": keras.ops.relu6,
}


@pytest.mark.parametrize("kind", RELUS)
def test_every_kind_of_relu_is_guided(kind):
    """The signal 2 at an active unit passes, -3 does not, nor does anything at an inactive one."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(1, use_bias=False)(RELUS[kind](inputs)))
    model.layers[-1].set_weights([np.array([[2.0], [-3.0], [5.0], [-7.0]])])
    assert GuidedBackpropagation(model)([[0.75, 0.75, -1.0, -1.0]]).tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_a_limited_relu_passes_nothing_beyond_its_limit():
    model = keras.Sequential([keras.Input((2,)), L.ReLU(max_value=1.0), L.Dense(1, use_bias=False)])
    model.layers[-1].set_weights([np.array([[2.0], [3.0]])])
    assert GuidedBackpropagation(model)([[0.5, 1.5]]).tolist() == [[2.0, 0.0]]


def test_relus_of_a_nested_model_are_guided():
    model = keras.Sequential([keras.Input((4,)), keras.Sequential([L.Dense(4, activation="relu")]), L.Dense(1)])
    model.set_weights([np.eye(4), np.zeros(4), np.array([[2.0], [-3.0], [5.0], [-7.0]]), np.zeros(1)])
    assert GuidedBackpropagation(model)([[1.0, 1.0, -1.0, -1.0]]).tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_a_model_without_relu_cannot_be_guided():
    with pytest.raises(UnsupportedOperation, match="guided_backpropagation: model `plain` has no ReLU"):
        GuidedBackpropagation(keras.Sequential([keras.Input((4,)), L.Dense(2, activation="tanh")], name="plain"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [nested, subclassed])
def test_every_method_on_nested_and_subclassed_models(method, build):
    model, images = build(), images_of(5)
    answers = model(images)
    weights = [weight.numpy() for weight in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    explainer = make(method, model, batch_size=2)
    maps = explainer(images)
    assert maps.shape == images.shape
    assert maps.dtype == np.float32
    assert np.abs(maps).max() > 0
    another = make(method, model, batch_size=4)
    alone = np.concatenate([another(image[None]) for image in images])
    np.testing.assert_allclose(maps, alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(explainer(images), maps)
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(model(images), answers)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


@pytest.mark.parametrize("method", METHODS)
def test_another_batch_is_not_traced_again(method):
    class Counting(method):
        traces = 0

        def maps(self, inputs, classes):
            self.traces += 1
            return super().maps(inputs, classes)

    explainer = make(Counting, nested(), batch_size=3)
    for count in (5, 3, 1):
        explainer(images_of(count, seed=count))
    explainer(images_of(2), [0, 1])
    assert explainer.traces == 1


def two_inputs() -> keras.Model:
    image, number = keras.Input((4, 3, 1), name="image"), keras.Input((2,), name="number")
    x = L.Concatenate()([L.Flatten()(image), number])
    return keras.Model([image, number], L.Dense(2)(L.Dense(5, activation="relu")(x)))


@pytest.mark.parametrize("method", METHODS)
def test_a_map_for_every_input(method):
    model = two_inputs()
    random = np.random.default_rng(0)
    image, number = random.normal(size=(3, 4, 3, 1)), random.normal(size=(3, 2))
    maps = make(method, model)([image, number])
    assert [values.shape for values in maps] == [image.shape, number.shape]
    named = make(method, model)({"number": number, "image": image})
    np.testing.assert_array_equal(named["number"], maps[1])


def test_a_baseline_for_every_input():
    model = two_inputs()
    image, number = np.ones((2, 4, 3, 1)), np.ones((2, 2))
    for baseline in (0.5, [0.5, [0.5, 0.5]], {"number": 0.5, "image": np.full((4, 3, 1), 0.5)}):
        maps, residual = IntegratedGradients(model, baseline=baseline, steps=8).explain_with_residual([image, number])
        total = maps[0].sum(axis=(1, 2, 3)) + maps[1].sum(axis=1)
        expected = IntegratedGradients(model, baseline=0.5, steps=8)([image, number])
        np.testing.assert_allclose(maps[0], expected[0], atol=1e-6)
        change = (model([image, number]) - model([image / 2, number / 2])).numpy()
        classes = model([image, number]).numpy().argmax(axis=1)
        np.testing.assert_allclose(total + residual, change[range(2), classes], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision(method):
    inputs = keras.Input((6, 5, 2))
    x = L.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, L.Dense(3, dtype="mixed_bfloat16")(L.Flatten(dtype="mixed_bfloat16")(x)))
    maps = make(method, model)(images_of(2))
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


def test_the_functions_can_be_differentiated():
    """y = w * x ** 2, so that the slope is 2 * w * x and its derivative by w is 2 * x."""
    weight = tf.Variable([[3.0]])
    inputs = keras.Input((1,))
    dense = L.Dense(1, use_bias=False)
    graph = OperationGraph(keras.Model(inputs, dense(keras.ops.square(inputs))))
    dense.kernel.assign(weight)
    with tf.GradientTape() as tape:
        (slopes,), logits = gradient(graph, (tf.constant([[5.0]]),), tf.constant([0]))
    assert slopes.numpy() == pytest.approx(30)
    assert logits.numpy() == pytest.approx(75)
    assert tape.gradient(slopes, dense.kernel.value).numpy() == pytest.approx(10)
    nodes, weights = np.array([0.5]), np.array([1.0])
    (maps,), residual = integrated_gradients(
        graph, (tf.constant([[5.0]]),), tf.constant([-1]), (0.0,), nodes, weights, rows=4
    )
    assert maps.numpy() == pytest.approx(75)
    assert residual.numpy() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        (SmoothGrad, {"samples": 0}, "`samples`: expected an integer of at least 1; received 0."),
        (VarGrad, {"samples": 1}, "`samples`: expected an integer of at least 2; received 1."),
        (SmoothGrad, {"samples": 2.5}, "`samples`: expected an integer of at least 1; received 2.5."),
        (SmoothGrad, {"noise_level": -0.1}, "`noise_level`: expected a finite number of at least 0; received -0.1."),
        (SmoothGrad, {"noise_level": float("nan")}, "`noise_level`: expected a finite number of at least 0; rec"),
        (SmoothGrad, {"noise_level": "high"}, "`noise_level`: expected a finite number of at least 0; received 'high'"),
        (SmoothGrad, {"seed": -1}, "`seed`: expected an integer of at least 0; received -1."),
        (IntegratedGradients, {"steps": True}, "`steps`: expected an integer of at least 1; received True."),
        (IntegratedGradients, {"rule": "simpson"}, "`rule`: expected gauss_legendre or midpoint; received 'simpson'."),
        (IntegratedGradients, {"baseline": [1, 2, 3]}, "of shape (2,) or (6, 5, 2); received shape (3,)."),
        (IntegratedGradients, {"baseline": float("inf")}, "received NaN or infinity."),
        (IntegratedGradients, {"baseline": "black"}, "`baseline`: expected a finite number, or finite values"),
        (IntegratedGradients, {"baseline": [[1], [2, 3]]}, "received rows of different lengths."),
    ],
)
def test_bad_options(method, options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        method(linear()[0], **options)


@pytest.mark.parametrize("baseline", [[0.0], {"image": 0.0}, {"image": 0.0, "other": 0.0}])
def test_a_baseline_for_other_inputs(baseline):
    with pytest.raises(InvalidArgument, match=r"one baseline for every input \(image, number\)"):
        IntegratedGradients(two_inputs(), baseline=baseline)


@pytest.mark.parametrize("method", METHODS)
def test_wrong_targets(method):
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        make(method, nested())(images_of(1), [3])
