"""The compiled classifier gives what ART's own gives, and what can be derived by hand."""

from __future__ import annotations

import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.interventions.art_classifier import art_classifier, art_module

L = keras.layers


@keras.saving.register_keras_serializable("test_art_classifier")
class Rounded(L.Layer):
    def call(self, inputs):
        return tf.round(inputs)


def network(units: int = 4, activation: str | None = "softmax", seed: int = 1) -> keras.Model:
    """Convolution, batch norm with statistics of its own, dropout, and a head."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(5, 3, activation="tanh", activity_regularizer="l2")(inputs)
    x = L.Dropout(0.5)(L.BatchNormalization()(x))
    model = keras.Model(inputs, L.Dense(units, activation=activation, name="head")(L.Flatten()(x)))
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("moving_mean", "moving_variance", "gamma", "beta", "head/kernel")):
            weight.assign(random.uniform(0.2, 1.2, weight.shape) - 0.7 * weight.path.endswith("kernel"))
    return model


def art_own(model: keras.Model, loss: keras.losses.Loss, classes: int = 4):
    """ART's own classifier, of a Keras model that shares the layers and ends in the logits."""
    head = model.get_layer("head")
    logits = L.Dense(head.units)
    twin = keras.Model(model.input, logits(head.input))
    logits.set_weights(head.get_weights())
    own = art_module("art.estimators.classification").TensorFlowV2Classifier
    return own(twin, classes, (6, 6, 2), loss, clip_values=(0.0, 1.0))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((7, 6, 6, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def softmax() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def compiled(softmax):
    return art_classifier(softmax)


@pytest.fixture(scope="module")
def own(softmax):
    return art_own(softmax, keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"))


def test_it_is_what_art_takes(compiled):
    assert isinstance(compiled, art_module("art.estimators.classification").TensorFlowV2Classifier)
    assert compiled.nb_classes == 4
    assert compiled.input_shape == (6, 6, 2)
    np.testing.assert_array_equal(compiled.clip_values, [0, 1])


def test_predictions_are_the_logits(compiled, own, softmax, images):
    logits = compiled.predict(images)
    np.testing.assert_allclose(logits, own.predict(images), atol=1e-6)
    np.testing.assert_allclose(tf.nn.softmax(logits), softmax(images, training=False), atol=1e-6)
    np.testing.assert_allclose(compiled.model(tf.constant(images), training=True), logits, atol=1e-6)


@pytest.mark.parametrize("label", [None, 2, [3, 0, 0, 1, 2, 3, 3], np.array([1, 1, 1, 1, 1, 1, 0])])
def test_class_gradients_are_those_of_art(compiled, own, images, label):
    expected = own.class_gradient(images, label)
    gradients = compiled.class_gradient(images, label, training_mode=True)
    assert gradients.shape == expected.shape == (7, 4 if label is None else 1, 6, 6, 2)
    np.testing.assert_allclose(gradients, expected, atol=1e-6)


def test_loss_gradients_are_those_of_art(compiled, own, images):
    labels = np.eye(4, dtype="float32")[[0, 1, 2, 3, 3, 2, 1]]
    expected = own.loss_gradient(images, labels)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(compiled.loss_gradient(images, labels, training_mode=True), expected, atol=1e-6)
    tensor = compiled.loss_gradient(tf.constant(images), tf.constant(labels))
    assert tf.is_tensor(tensor)
    np.testing.assert_allclose(tensor, expected, atol=1e-6)
    soft = np.full((7, 4), 0.25, "float32")
    np.testing.assert_allclose(compiled.loss_gradient(images, soft), own.loss_gradient(images, soft), atol=1e-6)


def test_gradient_of_an_image_does_not_depend_on_its_batch(compiled, images):
    labels = np.eye(4, dtype="float32")[[0, 1, 2, 3, 3, 2, 1]]
    np.testing.assert_allclose(
        compiled.loss_gradient(images[2:3], labels[2:3]), compiled.loss_gradient(images, labels)[2:3], atol=1e-7
    )


def test_gradient_where_the_model_is_sure(images):
    """A linear model with a logit of 30 more than the others: the gradient is p_other * (w_other - w_own), as numbers.

    In float32 its probability is 1, and ART's own gradient is p_other * w_other, without the second term.
    """
    random = np.random.default_rng(3)
    kernel = random.normal(size=(72, 3))
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, L.Dense(3, name="head")(L.Flatten()(inputs)))
    bias = np.array([30.0, 1.0, 0.0]) - images[0].ravel() @ kernel
    model.get_layer("head").set_weights([kernel, bias])
    others = np.exp([-29.0, -30.0])
    expected = ((kernel[:, 1:] - kernel[:, :1]) * others).sum(axis=1).reshape(1, 6, 6, 2)
    labels = np.eye(3, dtype="float32")[:1]
    gradient = art_classifier(model).loss_gradient(images[:1], labels)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
    own = art_own(model, keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"), classes=3)
    assert (np.sign(own.loss_gradient(images[:1], labels)) != np.sign(expected)).any()
    assert art_classifier(model).compute_loss(images[:1], labels)[0] == pytest.approx(others.sum(), rel=1e-5)


def test_multi_label_loss_is_the_mean_of_the_labels(images):
    model = network(activation="sigmoid")
    own = art_own(model, keras.losses.BinaryCrossentropy(from_logits=True, reduction="sum"))
    labels = np.array([[0] * 4, [1] * 4, [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]])
    expected = own.loss_gradient(images, labels.astype("float32"))
    compiled = art_classifier(model)
    np.testing.assert_allclose(compiled.loss_gradient(images, labels), expected, atol=1e-6)
    with np.errstate(invalid="ignore"):
        divided = labels / labels.sum(axis=1, keepdims=True)
    assert np.isnan(divided[0]).all()
    np.testing.assert_allclose(compiled.loss_gradient(images, divided), expected, atol=1e-6)


def test_multi_label_gradient_where_the_model_is_sure():
    """At z = 30 with the label 1, the slope of the loss of 2 labels is -exp(-30) / 2 for that logit."""
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, "sigmoid", kernel_initializer="identity")])
    gradient = art_classifier(model).loss_gradient(np.array([[30.0, -30.0]], "float32"), np.array([[1, 0]]))
    np.testing.assert_allclose(gradient, [[-np.exp(-30) / 2, np.exp(-30) / 2]], rtol=1e-5)


def test_one_unit_has_two_classes(images):
    model = network(1, "sigmoid")
    compiled = art_classifier(model)
    probabilities = np.asarray(model(images, training=False))[:, 0]
    logits = compiled.predict(images)
    np.testing.assert_allclose(tf.nn.softmax(logits)[:, 1], probabilities, atol=1e-6)
    inputs = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = model(inputs, training=False)
        log_odds = tf.reduce_sum(tf.math.log(outputs) - tf.math.log1p(-outputs))
    slopes = tape.gradient(log_odds, inputs).numpy()
    np.testing.assert_allclose(compiled.class_gradient(images, 1)[:, 0], slopes / 2, atol=1e-5)
    np.testing.assert_allclose(compiled.class_gradient(images, 0)[:, 0], -slopes / 2, atol=1e-5)
    rows = np.eye(2, dtype="float32")[[0, 1, 1, 0, 1, 0, 0]]
    expected = (probabilities - rows[:, 1])[:, None, None, None] * slopes
    np.testing.assert_allclose(compiled.loss_gradient(images, rows), expected, atol=1e-5)


def test_losses(compiled, images):
    labels = np.array([0, 1, 2, 3, 3, 2, 1])
    logits = compiled.predict(images).astype("float64")
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), labels]
    np.testing.assert_allclose(compiled.compute_loss(images, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(compiled.compute_loss(images, np.eye(4)[labels]), expected, rtol=1e-5)
    assert compiled.compute_loss(images, labels, "mean") == pytest.approx(expected.mean(), rel=1e-5)
    assert compiled.compute_loss(images, labels, "sum") == pytest.approx(expected.sum(), rel=1e-5)


def test_other_attacks_of_art_run_as_they_are(compiled, own, images):
    attacks = art_module("art.attacks.evasion")
    answers = compiled.predict(images).argmax(axis=1)
    deep_fool, expected = (
        attacks.DeepFool(classifier, batch_size=4, nb_grads=4, verbose=False).generate(images)
        for classifier in (compiled, own)
    )
    assert np.abs(deep_fool - images).max() > 1e-3
    np.testing.assert_allclose(deep_fool, expected, atol=1e-5)
    auto = attacks.AutoProjectedGradientDescent(
        compiled, eps=0.1, eps_step=0.05, max_iter=5, nb_random_init=1, loss_type=None, verbose=False
    )
    changed = auto.generate(images, answers)
    assert np.abs(changed - images).max() <= 0.1 + 1e-6
    assert compiled.compute_loss(changed, answers, "mean") > compiled.compute_loss(images, answers, "mean")


def test_predictions_are_made_in_batches_of_the_size_asked_for(softmax, images, monkeypatch):
    compiled = art_classifier(softmax)
    whole = compiled.predict(images)
    sizes, logits = [], compiled.functions.logits
    monkeypatch.setattr(compiled.functions, "logits", lambda inputs: sizes.append(len(inputs)) or logits(inputs))
    np.testing.assert_allclose(compiled.predict(images, batch_size=3), whole, atol=1e-6)
    assert sizes == [3, 3, 1]
    assert compiled.predict(images[:0]).shape == (0, 4)


def test_one_trace_for_every_batch_size(softmax, images, monkeypatch):
    compiled = art_classifier(softmax)
    traces, run = [], compiled.functions.graph.run
    monkeypatch.setattr(compiled.functions.graph, "run", lambda *args: traces.append(1) or run(*args))
    rows = np.eye(4, dtype="float32")[[0] * 7]
    for size in (7, 7, 3, 1):
        part = images[:size]
        compiled.predict(part)
        compiled.loss_gradient(part, rows[:size])
        compiled.loss_gradient(tf.constant(part), tf.constant(rows[:size]))
        compiled.class_gradient(part)
        compiled.class_gradient(part, 1)
        compiled.class_gradient(part, [2] * size)
        compiled.compute_loss(part, rows[:size])
    assert len(traces) == 5


def test_the_model_is_not_changed(images):
    model = network()
    model.compile("sgd", "categorical_crossentropy")
    model.get_layer("head").trainable = False
    before = [weight.numpy() for weight in model.weights]
    optimizer, trainable = model.optimizer, [layer.trainable for layer in model.layers]
    compiled = art_classifier(model)
    compiled.predict(images, training_mode=True)
    compiled.loss_gradient(images, np.eye(4)[[0] * 7], training_mode=True)
    compiled.class_gradient(images, training_mode=True)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert model.optimizer is optimizer
    assert optimizer.iterations == 0
    assert [layer.trainable for layer in model.layers] == trainable
    assert model.losses == []
    assert model.train_function is None


def test_a_wrapper_says_what_its_units_stand_for(images):
    model = network(3, None)
    assert art_classifier(model).functions.head == "multi_class"
    assert art_classifier(model, head="multi_label").functions.head == "multi_label"
    model.head = "multi_label"
    assert art_classifier(model).functions.head == "multi_label"


def test_sizes_that_are_not_known(images):
    inputs = keras.Input((None, None, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, activation="tanh")(inputs))
    compiled = art_classifier(keras.Model(inputs, L.Dense(2, activation="softmax")(x)))
    assert compiled.class_gradient(images).shape == (7, 2, 6, 6, 2)
    assert compiled.class_gradient(images[:, :5]).shape == (7, 2, 5, 6, 2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"clip_values": (1, 0)}, "`clip_values`: expected low values below the high ones; received (1, 0)."),
        ({"clip_values": (0.5, 0.5)}, "expected low values below the high ones"),
        ({"clip_values": (0, 1, 2)}, "`clip_values`: expected (low, high): two finite numbers, or two arrays"),
        ({"clip_values": 1.0}, "`clip_values`: expected (low, high)"),
        ({"clip_values": ("a", "b")}, "`clip_values`: expected (low, high)"),
        ({"clip_values": (0, float("inf"))}, "`clip_values`: expected (low, high)"),
        ({"head": "multi_label"}, "`head`: expected `multi_class`, as the model's head says; received 'multi_label'."),
        ({"head": "binary"}, "`head`: expected `binary` for a model of one unit; received 4 units."),
        ({"head": "softmax"}, "`head`: expected None or one of multi_class, binary, multi_label; received 'softmax'."),
        ({"output": 3}, "`output`"),
    ],
)
def test_bad_arguments(softmax, arguments, error):
    with pytest.raises(InvalidArgument, match=re.escape(error)):
        art_classifier(softmax, **arguments)


@pytest.mark.parametrize("label", [4, -1, 0.5, [0, 1], [0, 1, 2, 3, 4, 0, 0], "a"])
def test_bad_labels_of_class_gradients(compiled, images, label):
    with pytest.raises(InvalidArgument, match=re.escape("`label`: expected an integer or 7 of them, in [0, 3]")):
        compiled.class_gradient(images, label)


def test_other_bad_use(compiled, images):
    with pytest.raises(InvalidArgument, match="`reduction`: expected one of none, mean, sum; received 'max'"):
        compiled.compute_loss(images, np.zeros(7, int), "max")
    defence = art_module("art.defences.preprocessor").FeatureSqueezing(clip_values=(0, 1))
    with pytest.raises(UnsupportedOperation, match="has no defences"):
        art_classifier(network()).set_params(preprocessing_defences=[defence])


def test_models_that_cannot_be_attacked():
    inputs = keras.Input((2,))
    with pytest.raises(InvalidArgument, match="expected one unit with a sigmoid, or several; received a softmax over"):
        art_classifier(keras.Model(inputs, L.Softmax()(L.Dense(1)(inputs))))
    both = [inputs, keras.Input((2,))]
    with pytest.raises(UnsupportedOperation, match="takes float32, float32"):
        art_classifier(keras.Model(both, L.Dense(2)(L.Add()(both))))
    integers = keras.Input((2,), dtype="uint8")
    with pytest.raises(UnsupportedOperation, match="takes uint8"):
        art_classifier(keras.Model(integers, L.Dense(2)(L.Rescaling(0.1)(integers))))


@pytest.mark.parametrize("method", ["loss_gradient", "class_gradient"])
def test_no_gradient_reaches_the_input(method):
    inputs = keras.Input((2,))
    compiled = art_classifier(keras.Model(inputs, L.Dense(2)(Rounded()(inputs))))
    arguments = (np.ones((1, 2), "float32"), np.eye(2)[:1]) if method == "loss_gradient" else (np.ones((1, 2)),)
    with pytest.raises(UnsupportedOperation, match="No gradient of the logits of model"):
        getattr(compiled, method)(*arguments)


def test_without_art(monkeypatch):
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(ImportError, match=re.escape('pip install "tfcausal[adversarial]"')):
        art_module("art.attacks.evasion")
