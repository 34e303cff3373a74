"""Attacks against a twin in NumPy with gradients derived by hand, and against ART on its own classifier."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.interventions.adversarial import Attack, get_attack
from tfcausal.interventions.art_classifier import art_module

L = keras.layers
RANGES = {
    "unit": (0.0, 1.0),
    "centred": (-0.5, 0.5),
    "bytes": (0, 255),
    "channels": (np.array([-2.1, -1.8]), np.array([2.2, 2.6])),
}


class Twin:
    """A dense network with one hidden layer in float64: `tanh`, then a head; gradients by hand."""

    def __init__(self, units: int, activation: str | None, low=0.0, high=1.0, seed: int = 10) -> None:
        random = np.random.default_rng(seed)
        self.low, self.span = np.float64(low), np.float64(high) - np.float64(low)
        first = random.normal(size=(4, 3, 2, 9)) / 3 / self.span[..., None]
        self.first = first.reshape(24, 9)
        # In units of the range, the network is the same for every range.
        self.bias = random.normal(size=9) - (first * (self.low + self.span / 2)[..., None]).reshape(24, 9).sum(axis=0)
        self.second = random.normal(size=(9, units))
        inputs = keras.Input((4, 3, 2))
        hidden = L.Dense(9, activation="tanh")
        head = L.Dense(units, activation=activation, use_bias=False)
        self.model = keras.Model(inputs, head(hidden(L.Flatten()(inputs))))
        hidden.set_weights([self.first, self.bias])
        head.set_weights([self.second])
        self.exclusive = activation == "softmax"

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.tanh(images.reshape(-1, 24) @ self.first + self.bias) @ self.second

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        exponentials = np.exp(self.logits(images))
        return exponentials / (exponentials.sum(axis=1, keepdims=True) if self.exclusive else 1 + exponentials)

    def gradient(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        hidden = np.tanh(images.reshape(-1, 24) @ self.first + self.bias)
        upstream = (self.probabilities(images) - rows) @ self.second.T * (1 - hidden**2)
        return (upstream @ self.first.T).reshape(images.shape)

    def loss(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        p = self.probabilities(images)
        return -np.where(rows > 0, np.log(p), 0 if self.exclusive else np.log1p(-p)).sum(axis=1)

    def attack(self, images, rows, eps, step, steps, start=0.0) -> np.ndarray:
        """The ten lines: the sign of the gradient, the bounds, the ball."""
        images = images.astype("float64")
        changed = np.clip(images + start, self.low, self.low + self.span)
        for _ in range(steps):
            changed = changed + step * self.span * np.sign(self.gradient(changed, rows))
            changed = np.clip(changed, self.low, self.low + self.span)
            changed = images + np.clip(changed - images, -eps * self.span, eps * self.span)
        return changed

    def start(self, count: int, eps: float, seed: int) -> np.ndarray:
        return np.random.RandomState(seed).uniform(-eps, eps, (count, 4, 3, 2)) * self.span


twin_of = cache(Twin)


@cache
def twin_in(kind: str) -> Twin:
    return Twin(3, "softmax", *RANGES[kind])


CLASSIFIERS: dict[int, tuple] = {}


def attack_on(model: keras.Model, name: str, *arguments, **options) -> Attack:
    """An attack whose compiled functions are those of the last one on the model: tracing is what takes the time."""
    made = get_attack(name, model, *arguments, **options)
    kept = CLASSIFIERS.setdefault(id(model), (model, made.classifier))
    return replace(made, classifier=kept[1])


def images_in(low=0.0, high=1.0, count: int = 7) -> np.ndarray:
    units = np.random.default_rng(9).random((count, 4, 3, 2))
    units[0], units[1, 0], units[1, 1] = 0.5, 0.0, 1.0
    return (np.float64(low) + units * (np.float64(high) - np.float64(low))).astype("float32")


def expected_of(name: str, twin: Twin, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if name == "fgsm":
        return twin.attack(images, rows, 0.3, 0.3, 1)
    if name == "bim":
        return twin.attack(images, rows, 0.3, 0.03, 10)
    return twin.attack(images, rows, 0.3, 0.075, 10, twin.start(len(images), 0.3, seed=5))


LABELS = np.array([0, 1, 2, 2, 1, 0, 1])


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
@pytest.mark.parametrize("kind", RANGES)
def test_attacks_are_the_ten_lines_of_numpy(name, kind):
    low, high = bounds = RANGES[kind]
    twin, images, rows = twin_in(kind), images_in(low, high), np.eye(3)[LABELS]
    changed = attack_on(twin.model, name, bounds, seed=5, batch_size=3)(images, LABELS)
    expected = expected_of(name, twin, images, rows)
    span = np.float64(high) - np.float64(low)
    assert changed.dtype == np.float32
    np.testing.assert_allclose((changed - images) / span, (expected - images) / span, atol=1e-6)
    assert (np.abs(expected - images) / span).max() > 0.29
    assert (changed >= np.float32(low)).all()
    assert (changed <= np.float32(high)).all()
    assert (np.abs(changed - images) / span).max() <= 0.3 + 1e-6
    assert (twin.loss(changed, rows) > twin.loss(images, rows)).all()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_several_labels_at_once(name):
    """Rows of labels of any sum: none, all, one. ART divides them by their sum for FGSM."""
    twin, images = twin_of(4, "sigmoid"), images_in()
    rows = np.array([[0] * 4, [1] * 4, [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]])
    changed = attack_on(twin.model, name, seed=5, batch_size=4)(images, rows)
    np.testing.assert_allclose(changed, expected_of(name, twin, images, rows), atol=1e-6)
    assert (twin.loss(changed, rows) > twin.loss(images, rows)).all()
    if name == "fgsm":
        own = art_own(twin.model, keras.losses.BinaryCrossentropy(from_logits=True, reduction="sum"), 4)
        with np.errstate(invalid="ignore"):
            theirs = art_module("art.attacks.evasion").FastGradientMethod(own, eps=0.3).generate(images, rows)
        assert (theirs[0] == images[0]).all()
        assert twin.loss(theirs, rows)[1] < twin.loss(images, rows)[1]


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_one_unit(name):
    twin, images, labels = twin_of(1, "sigmoid"), images_in(), np.array([0, 1, 1, 0, 1, 0, 0])
    expected = expected_of(name, twin, images, labels[:, None])
    for given in (labels, labels[:, None], np.eye(2)[labels], labels.astype(bool), labels.astype(float)):
        changed = attack_on(twin.model, name, seed=5)(images, given)
        np.testing.assert_allclose(changed, expected, atol=1e-6)


@pytest.mark.parametrize(("units", "activation"), [(3, "softmax"), (4, "sigmoid"), (1, "sigmoid")])
def test_without_labels_the_answer_of_the_classifier_is_attacked(units, activation):
    twin, images = Twin(units, activation), images_in()
    logits = twin.logits(images)
    answers = logits.argmax(axis=1) if activation == "softmax" else (logits > 0).astype(int)
    attack = attack_on(twin.model, "fgsm")
    assert len(np.unique(answers)) > 1
    np.testing.assert_array_equal(attack(images), attack(images, answers))


def art_own(model: keras.Model, loss: keras.losses.Loss, classes: int):
    """ART's own classifier, of a Keras model that shares the layers and ends in the logits."""
    head = model.layers[-1]
    logits = L.Dense(head.units, use_bias=head.use_bias)
    twin = keras.Model(model.input, logits(head.input))
    logits.set_weights(head.get_weights())
    own = art_module("art.estimators.classification").TensorFlowV2Classifier
    return own(twin, classes, model.input_shape[1:], loss, clip_values=(0.0, 1.0))


@pytest.fixture(scope="module")
def convolutional(pictures) -> keras.Model:
    """A network that answers with different classes."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((10, 10, 1))
    x = L.MaxPooling2D()(L.Conv2D(6, 3, activation="relu", bias_initializer="normal")(inputs))
    x = L.BatchNormalization()(L.Conv2D(6, 3, activation="relu", activity_regularizer="l2")(x))
    model = keras.Model(inputs, L.Dense(4, activation="softmax")(L.Dropout(0.5)(L.Flatten()(x))))
    head = model.layers[-1]
    head.kernel.assign(head.kernel * 3)
    head.bias.assign(-np.log(model(pictures, training=False).numpy()).mean(axis=0))
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).random((9, 10, 10, 1), dtype=np.float32)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "jsma"])
def test_attacks_are_those_of_art_on_its_own_classifier(name, convolutional, pictures):
    own = art_own(convolutional, keras.losses.CategoricalCrossentropy(from_logits=True), 4)
    attacks = art_module("art.attacks.evasion")
    steps = {"eps_step": 0.03, "max_iter": 10, "verbose": False}
    theirs = {
        "fgsm": lambda: attacks.FastGradientMethod(own, eps=0.3),
        "bim": lambda: attacks.BasicIterativeMethod(own, eps=0.3, **steps),
        "pgd": lambda: attacks.ProjectedGradientDescent(own, eps=0.3, num_random_init=1, **steps),
        "jsma": lambda: attacks.SaliencyMapMethod(own, theta=0.3, gamma=0.2, batch_size=4, verbose=False),
    }[name]()
    logits = own.predict(pictures)
    classes = np.argsort(logits, axis=1)[:, -2 if name == "jsma" else -1]
    np.random.seed(8)
    expected = theirs.generate(pictures, np.eye(4)[classes])
    eps_step = 0.03 if name in ("bim", "pgd") else None
    attack = attack_on(convolutional, name, eps_step=eps_step, gamma=0.2, seed=8, batch_size=4)
    changed = attack(pictures)
    assert np.abs(expected - pictures).max() > 0.1
    np.testing.assert_allclose(changed, expected, atol=1e-6)


def test_jsma_leads_to_the_runner_up_or_to_the_class_asked_for(convolutional, pictures):
    logits = np.log(convolutional(pictures, training=False).numpy())
    order = np.argsort(logits, axis=1)
    assert len(np.unique(order[:, -1])) > 2
    attack = attack_on(convolutional, "jsma", gamma=0.5)

    def answers(images):
        return convolutional(images, training=False).numpy().argmax(axis=1)

    for changed, targets in (
        (attack(pictures), order[:, -2]),
        (attack(pictures, targets=order[:, 0]), order[:, 0]),
    ):
        led = answers(changed) == targets
        assert led.sum() >= 7
        assert ((changed != pictures).reshape(9, -1).mean(axis=1) > 0.5)[~led].all()
        assert (changed >= pictures).all()
        assert changed.max() <= 1
    # With a label that is not the answer, the answer is what it leads to: there is nothing to do.
    np.testing.assert_array_equal(attack(pictures, labels=order[:, 0]), pictures)
    np.testing.assert_array_equal(attack(pictures, targets=order[:, -1]), pictures)


def test_jsma_changes_no_more_features_than_it_may(convolutional, pictures):
    least = convolutional(pictures, training=False).numpy().argmin(axis=1)
    changed = attack_on(convolutional, "jsma", eps=0.01, gamma=0.1)(pictures, targets=least)
    assert 10 < (changed != pictures).reshape(9, -1).sum(axis=1).max() <= 12


def test_jsma_with_a_range_for_every_channel():
    low, high = RANGES["channels"]
    twin, scaled, units = twin_in("unit"), twin_in("channels"), images_in()
    changed = attack_on(scaled.model, "jsma", (low, high), eps=0.2, gamma=0.5)(images_in(low, high))
    expected = attack_on(twin.model, "jsma", eps=0.2, gamma=0.5)(units)
    assert (expected != units).any()
    np.testing.assert_allclose((changed - low) / (high - low), expected, atol=1e-6)
    untouched = expected == units
    np.testing.assert_array_equal(changed[untouched], images_in(low, high)[untouched])


def test_jsma_leads_a_head_of_one_unit_to_either_class():
    twin, images = twin_of(1, "sigmoid"), images_in()
    answers = (twin.logits(images)[:, 0] > 0).astype(int)
    assert set(answers) == {0, 1}
    changed = attack_on(twin.model, "jsma", eps=0.1, gamma=1.0)(images)
    assert ((twin.logits(changed)[:, 0] > 0) != answers).all()
    assert (changed - images).sum(axis=(1, 2, 3)).max() < 5


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "jsma"])
def test_batch_size_does_not_change_the_result(name, convolutional, pictures):
    whole, *parts = (attack_on(convolutional, name, batch_size=size)(pictures) for size in (32, 1, 4))
    for part in parts:
        np.testing.assert_allclose(part, whole, atol=1e-6)


def test_random_start_is_that_of_the_seed_and_the_random_state_of_the_user_stays(convolutional, pictures):
    np.random.seed(3)
    expected = np.random.random(3)
    np.random.seed(3)
    first = attack_on(convolutional, "pgd", seed=1)(pictures)
    np.testing.assert_array_equal(np.random.random(3), expected)
    attack = attack_on(convolutional, "pgd", seed=1)
    np.testing.assert_array_equal(attack(pictures), first)
    np.testing.assert_array_equal(attack(pictures), first)
    assert (attack_on(convolutional, "pgd", seed=2)(pictures) != first).any()


def test_random_state_stays_when_an_attack_fails(convolutional, pictures, monkeypatch):
    attack = get_attack("pgd", convolutional)
    np.random.seed(3)
    expected = np.random.random(3)
    np.random.seed(3)
    monkeypatch.setattr(attack.classifier.functions, "loss_gradient", None)
    with pytest.raises(TypeError):
        attack(pictures)
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_one_trace_whatever_the_batches(convolutional, pictures, monkeypatch):
    for name, functions in (("bim", 2), ("jsma", 2)):
        attack, traces = get_attack(name, convolutional, steps=3, gamma=0.05, batch_size=4), []
        run = attack.classifier.functions.graph.run
        monkeypatch.setattr(
            attack.classifier.functions.graph, "run", lambda *args, r=run, t=traces: t.append(1) or r(*args)
        )
        for count in (5, 5, 3, 1):
            attack(pictures[:count])
        assert len(traces) == functions


def test_the_model_is_not_changed(convolutional, pictures):
    convolutional.compile("sgd", "categorical_crossentropy")
    before, optimizer, losses = convolutional.get_weights(), convolutional.optimizer, list(convolutional.losses)
    for name in ("pgd", "jsma"):
        get_attack(name, convolutional)(pictures)
    for weight, value in zip(convolutional.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert convolutional.optimizer is optimizer
    assert len(convolutional.losses) == len(losses)
    assert all(layer.trainable for layer in convolutional.layers)


def test_defaults_are_the_presets_of_the_paper(convolutional):
    steps = {name: attack_on(convolutional, name) for name in ("bim", "pgd")}
    assert (steps["bim"].eps, steps["bim"].steps, steps["bim"].eps_step) == (0.3, 10, pytest.approx(0.03))
    assert steps["pgd"].eps_step == pytest.approx(0.075)
    assert attack_on(convolutional, "pgd", eps=0.1, steps=2).eps_step == pytest.approx(0.1)


def test_images_may_be_tensors_of_any_numbers_and_outside_by_rounding(convolutional, pictures):
    attack = attack_on(convolutional, "fgsm")
    expected = attack(pictures)
    np.testing.assert_array_equal(attack(tf.constant(pictures)), expected)
    np.testing.assert_array_equal(attack(pictures.astype("float64")), expected)
    nearly = pictures.copy()
    nearly[0, 0, 0, 0] = 1 + 5e-6
    assert attack(nearly).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "fgms"}, "`name`: expected one of fgsm, bim, pgd, jsma; received 'fgms'. Did you mean `fgsm`?"),
        ({"name": 3}, "`name`: expected one of fgsm, bim, pgd, jsma; received 3."),
        ({"eps": 0}, "`eps`: expected a share of the range of clip_values, in (0, 1]; received 0. 8 grey levels"),
        ({"eps": 8.0}, "received 8.0. 8 grey levels of 255 are 8 / 255, whatever the input space."),
        ({"eps": float("nan")}, "`eps`: expected a share of the range"),
        ({"eps": "0.3"}, "`eps`: expected a share of the range"),
        ({"steps": 0}, "`steps`: expected a positive integer; received 0."),
        ({"steps": 2.5}, "`steps`: expected a positive integer; received 2.5."),
        ({"eps_step": 0.4}, "`eps_step`: expected None or a share of the range in (0, 0.3]; received 0.4."),
        ({"eps_step": 0.0}, "`eps_step`: expected None or a share of the range in (0, 0.3]; received 0.0."),
        ({"gamma": 1.5}, "`gamma`: expected None or a share of the features in (0, 1]; received 1.5."),
        ({"seed": -1}, "`seed`: expected an integer in [0, 2**32); received -1."),
        ({"seed": 0.5}, "`seed`: expected an integer in [0, 2**32); received 0.5."),
        ({"batch_size": 0}, "`batch_size`: expected a positive integer; received 0."),
        ({"batch_size": True}, "`batch_size`: expected a positive integer; received True."),
        ({"clip_values": (1, 0)}, "`clip_values`: expected low values below the high ones; received (1, 0)."),
        ({"clip_values": (0, [1, 0])}, "`clip_values`: expected low values below the high ones"),
        ({"clip_values": (0, [1, 2, 3])}, "for inputs (10, 10, 1); received arrays of shape (3,)."),
        ({"clip_values": 255}, "`clip_values`: expected (low, high): two finite numbers"),
        ({"head": "multi_label"}, "`head`: expected `multi_class`"),
    ],
)
def test_bad_arguments(convolutional, arguments, error):
    with pytest.raises(InvalidArgument, match=re.escape(error)):
        get_attack(**{"name": "pgd", "model": convolutional, **arguments})


def test_models_that_cannot_be_attacked():
    with pytest.raises(InvalidArgument, match="expected an attack for labels that do not exclude each other; received"):
        get_attack("jsma", twin_of(3, "sigmoid").model)
    inputs = [keras.Input((2,)), keras.Input((2,))]
    with pytest.raises(UnsupportedOperation, match="Attacks change the one floating-point input of a classifier"):
        get_attack("fgsm", keras.Model(inputs, L.Dense(2)(L.Add()(inputs))))


def with_pixel(value: float) -> np.ndarray:
    images = np.full((9, 10, 10, 1), 0.5)
    images[6, 3, 2, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (
            with_pixel(1.1),
            "`images`: expected values within clip_values, 0.0 to 1.0; received values from 0.5 to 1.1 in image 6. "
            "Give the range of the classifier's inputs as clip_values.",
        ),
        (with_pixel(-0.01), "received values from -0.01 to 0.5 in image 6."),
        (with_pixel(np.nan), "`images`: expected finite values of float32; received NaN or infinity in image 6."),
        (with_pixel(1e39), "`images`: expected finite values of float32; received NaN or infinity in image 6."),
        (np.zeros((10, 10, 1)), "(N, 10, 10, 1); received shape (10, 10, 1). Add the batch axis: images[None]."),
        (np.zeros((2, 8, 10, 1)), "`images`: expected an array of numbers of shape (N, 10, 10, 1); received shape (2,"),
        (np.zeros((0, 10, 10, 1)), "received shape (0, 10, 10, 1)."),
        (
            np.full((1, 10, 10, 1), "a"),
            "`images`: expected an array of numbers of shape (N, 10, 10, 1); received dtype",
        ),
        ([[1.0], [1.0, 2.0]], "received rows of different lengths."),
    ],
)
def test_bad_images(convolutional, images, error):
    with pytest.raises(InvalidArgument, match=re.escape(error)):
        attack_on(convolutional, "fgsm")(images)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (
            [0, 1],
            "`labels`: expected class indices of shape (9,), or one-hot rows of 0 and 1 of shape (9, 4); received",
        ),
        ([0] * 8 + [4], "`labels`: expected class indices of shape (9,) in [0, 3]; received values from 0 to 4."),
        ([0] * 8 + [-1], "received values from -1 to 0."),
        ([0] * 8 + [0.5], "received values from 0 to 0.5."),
        ([0] * 8 + [np.nan], "received values from nan to nan."),
        (np.ones((9, 4)), "`labels`: expected one-hot rows with a single 1; received rows with another sum."),
        (np.full((9, 4), 0.25), "received rows with other values."),
        (np.zeros((9, 3)), "received shape (9, 3)."),
        (["cat"] * 9, "`labels`: expected class indices of shape (9,), or one-hot rows"),
    ],
)
def test_bad_labels(convolutional, pictures, labels, error):
    with pytest.raises(InvalidArgument, match=re.escape(error)):
        attack_on(convolutional, "fgsm")(pictures, labels)


def test_bad_labels_of_several_at_once():
    attack, images = get_attack("fgsm", twin_of(4, "sigmoid").model), images_in()
    with pytest.raises(
        InvalidArgument, match=re.escape("`labels`: expected rows of 0 and 1 of shape (7, 4); received")
    ):
        attack(images, [0] * 7)
    with pytest.raises(InvalidArgument, match="received rows with other values"):
        attack(images, np.full((7, 4), 2))


def test_bad_targets(convolutional, pictures):
    with pytest.raises(InvalidArgument, match="`targets`: expected None, as only jsma leads to a class; received"):
        attack_on(convolutional, "bim")(pictures, targets=[0] * 9)
    with pytest.raises(InvalidArgument, match=re.escape("`targets`: expected class indices of shape (9,) in [0, 3]")):
        attack_on(convolutional, "jsma")(pictures, targets=[4] * 9)
