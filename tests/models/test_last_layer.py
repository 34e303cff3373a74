from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.models import balanced_regression
from tfcausal.models.balanced_regression import balanced_linear_head, check_labels
from tfcausal.models.last_layer import retrain_last_layer
from tfcausal.models.ppi import PPIModel

L = keras.layers
SIDE = 6


def planted(count: int, agreement: float, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images whose class is the row of a faint line, beside the row of a bright line that agrees with it so often."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    others = (labels + random.integers(1, classes, size=count)) % classes
    contexts = np.where(random.random(count) < agreement, labels, others)
    images = random.normal(scale=0.4, size=(count, SIDE, SIDE, 1))
    images[np.arange(count), labels, :3] += 0.5
    images[np.arange(count), contexts, 3:] += 2.5
    return images.astype("float32"), labels, contexts


def network(units: int = 2, activation: str | None = "softmax", **options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((SIDE, SIDE, 1))
    x = L.Conv2D(8, (1, 3), strides=(1, 3), activation="relu")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Flatten(name="features")(x)
    return keras.Model(inputs, L.Dense(units, activation=activation, name="last", **options)(x))


def worst_group(answers: np.ndarray, labels: np.ndarray, contexts: np.ndarray) -> float:
    correct = answers == labels
    return min(correct[(labels == a) & (contexts == b)].mean() for a in set(labels) for b in set(contexts))


def answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    outputs = np.asarray(model(images, training=False))
    return outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(int)


HELD_OUT = planted(400, 0.9, seed=2)
TEST = planted(1000, 0.5, seed=3)


@pytest.mark.parametrize(("units", "activation", "classes"), [(2, "softmax", 2), (1, "sigmoid", 2), (3, "softmax", 3)])
def test_a_planted_shortcut_loses_its_weight(units, activation, classes):
    model = network(units, activation)
    loss = "binary_crossentropy" if units == 1 else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.01), loss)
    images, labels, _ = planted(600, 0.99, 1, classes)
    model.fit(images, labels, epochs=4, verbose=0)
    images, labels, contexts = planted(600, 0.8, 2, classes)
    retrained = retrain_last_layer(model, images, labels, contexts)
    images, labels, contexts = planted(1000, 0.5, 3, classes)
    before = worst_group(answers(model, images), labels, contexts)
    after = worst_group(answers(retrained.model, images), labels, contexts)
    assert before < 0.6
    assert after > before + 0.2
    assert len(retrained.head.inverse_strength) == 1
    # What is promised of the worst group is not far from what is found.
    assert abs(retrained.head.selection_accuracy[0] - after) < 0.25


def test_every_label_of_a_multi_label_head_is_balanced_by_itself():
    images, first, contexts = HELD_OUT
    labels = np.stack([first, contexts], axis=1)
    retrained = retrain_last_layer(network(2, "sigmoid"), images, labels)
    assert len(retrained.head.inverse_strength) == 2
    images, first, contexts = TEST
    found = np.asarray(retrained.model(images)) > 0.5
    assert (found[:, 1] == contexts).mean() > 0.95
    # The first label with its context balanced; without, it is told by the second.
    images, first, contexts = HELD_OUT
    single = retrain_last_layer(network(2, "sigmoid"), images, labels, groups=contexts, inverse_strengths=[0.3])
    images, first, contexts = TEST
    balanced = np.asarray(single.model(images)) > 0.5
    apart = first != contexts
    assert (balanced[apart, 0] == first[apart]).mean() > (found[apart, 0] == first[apart]).mean() + 0.1


def test_the_other_weights_and_the_model_itself_stay_as_they_are():
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    images, labels, contexts = HELD_OUT
    model.fit(images, labels, verbose=0)
    weights, outputs = model.get_weights(), np.asarray(model(images))
    retrained = retrain_last_layer(model, images, labels, contexts, subsets=2)
    assert retrained.layer == "last"
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    copied = retrained.model.get_weights()
    for before, after in zip(weights[:-2], copied[:-2], strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(copied[-2], retrained.head.kernel, rtol=1e-6)
    np.testing.assert_allclose(copied[-1], retrained.head.bias, rtol=1e-6)
    # The copy is compiled, trains, and shares nothing with the model.
    retrained.model.fit(images, labels, verbose=0)
    np.testing.assert_array_equal(np.asarray(model(images)), outputs)


def test_logits_are_the_head_on_the_features():
    model = network(3, None)
    images, labels, _ = planted(120, 0.5, 4, classes=3)
    retrained = retrain_last_layer(model, images, labels, batch_size=7, subsets=2)
    features = keras.Model(model.input, model.get_layer("features").output).predict(images, verbose=0)
    expected = features.astype("float64") @ retrained.head.kernel + retrained.head.bias
    np.testing.assert_allclose(np.asarray(retrained.model(images)), expected, rtol=1e-3, atol=1e-3)


def test_nested_and_wrapped_models():
    images, labels, contexts = HELD_OUT
    plain = retrain_last_layer(network(), images, labels, contexts, subsets=2)
    inner = network()
    nested = keras.Sequential([keras.Input((SIDE, SIDE, 1)), inner])
    wrapped = PPIModel(network())
    for model, layer in ((nested, f"{inner.name}/last"), (wrapped, "last")):
        retrained = retrain_last_layer(model, images, labels, contexts, subsets=2)
        assert type(retrained.model) is type(model)
        assert retrained.layer == layer
        np.testing.assert_array_equal(retrained.head.kernel, plain.head.kernel)
        np.testing.assert_allclose(np.asarray(retrained.model(images)), np.asarray(plain.model(images)), rtol=1e-5)


def test_head_without_bias_and_in_mixed_precision():
    images, labels, contexts = HELD_OUT
    retrained = retrain_last_layer(network(use_bias=False), images, labels, contexts, subsets=3)
    assert (retrained.head.bias == 0).all()
    assert worst_group(answers(retrained.model, images), labels, contexts) > 0.6
    retrained = retrain_last_layer(network(dtype="mixed_bfloat16"), images, labels, contexts, subsets=3)
    assert worst_group(answers(retrained.model, images), labels, contexts) > 0.7


# The regression itself.

RANDOM = np.random.default_rng(5)


def samples(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % classes
    features = RANDOM.normal(size=(count, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 5, 0, 0, 1, -3]
    features[:, :3] += labels[:, None] * [0.7, -4, 0.05]
    return features, labels


@pytest.mark.parametrize(("classes", "strength"), [(2, 0.2), (2, 1.0), (3, 0.2), (3, 1.0)])
def test_weights_are_the_optimum_of_the_penalised_likelihood(classes, strength):
    features, labels = samples(120, classes)
    head = balanced_linear_head(features, labels, outputs=classes, inverse_strengths=[strength], subsets=1)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    kernel = head.kernel * deviation[:, None]
    logits = features @ head.kernel + head.bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    residuals = np.eye(classes)[labels] - probabilities
    slopes = strength * ((features - mean) / deviation).T @ residuals
    if classes == 2:  # One weight w stands for the two, -w/2 and w/2: |w| is penalised.
        kernel, slopes = kernel[:, 1:] * 2, slopes[:, 1:]
    used = np.abs(kernel) > 1e-6
    assert used.any()
    # The likelihood pulls a weight that is used with the force of the penalty, and no other one harder than that.
    np.testing.assert_allclose(slopes[used], np.sign(kernel[used]), atol=0.06)
    assert (np.abs(slopes[~used]) <= 1.06).all()


def test_groups_of_equal_size_leave_no_preference():
    features = RANDOM.normal(size=(400, 3))
    labels = (np.arange(400) % 10 == 0).astype(int)
    head = balanced_linear_head(features, labels, outputs=1, inverse_strengths=[0.01])
    assert abs(head.bias[0]) < 0.1  # of all samples together it would be -log 9


def test_a_feature_that_tells_the_group_has_no_weight_once_groups_are_balanced():
    labels = np.repeat([0, 1], 300)
    groups = np.where(RANDOM.random(600) < 0.9, labels, 1 - labels)
    features = np.stack([groups + RANDOM.normal(scale=0.1, size=600), labels + RANDOM.normal(size=600)], axis=1)
    options = {"outputs": 1, "inverse_strengths": [1.0]}
    by_class = balanced_linear_head(features, labels, **options).kernel[:, 0]
    by_group = balanced_linear_head(features, labels, groups, **options).kernel[:, 0]
    assert by_class[0] > 2
    assert abs(by_group[0]) < 0.4
    assert by_group[1] > 0.5
    named = balanced_linear_head(features, labels, np.array(["land", "water"])[groups], **options).kernel[:, 0]
    np.testing.assert_array_equal(named, by_group)


def test_the_penalty_is_chosen_by_the_worst_group():
    features, labels = samples(120, 2)
    for strengths in ([1e-6, 1.0], [1.0, 1e-6]):
        head = balanced_linear_head(features, labels, outputs=2, inverse_strengths=strengths)
        assert head.inverse_strength == (1.0,)
    # Among equals the strongest penalty.
    features[:, 0] = labels
    head = balanced_linear_head(features, labels, outputs=2, inverse_strengths=[10.0, 1.0])
    assert head.inverse_strength == (1.0,)
    assert head.selection_accuracy == (1.0,)
    assert np.isnan(balanced_linear_head(features, labels, outputs=2, inverse_strengths=[1.0]).selection_accuracy[0])


def test_the_worst_group_decides_and_not_the_mean(monkeypatch):
    # One feature is right for all of class 0 and for 40 of 100 of class 1, the other for 60 of 100 of each.
    right = np.array([np.arange(100) < share for share in (100, 40, 60, 60)]).reshape(2, 200)
    labels = np.repeat([0, 1], 100)
    features = np.where(right.T, 1.0, -1.0) * np.where(labels == 1, 1, -1)[:, None]

    def fitted(self: Any, subset: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[strength == 2.0], [strength == 1.0]], float), np.zeros(1)

    monkeypatch.setattr(balanced_regression._Regression, "_fitted", fitted)
    head = balanced_linear_head(features, labels, outputs=1, bias=False, inverse_strengths=[1.0, 2.0])
    assert head.inverse_strength == (1.0,)
    # On the half of the images that is drawn for it: the standard error is 0.05, and the mean would give 0.7 and 0.6.
    np.testing.assert_allclose(head.selection_accuracy, 0.6, atol=0.1)


def test_constant_features_and_huge_scales_are_harmless():
    features, labels = samples(60, 2)
    features = np.concatenate([features * 1e6, np.full((60, 1), 1 / 3), np.zeros((60, 1))], axis=1)
    head = balanced_linear_head(features, labels, outputs=2)
    assert np.isfinite(head.kernel).all()
    assert (head.kernel[-2:] == 0).all()
    only_constant = balanced_linear_head(np.ones((60, 2)), labels, outputs=2)
    np.testing.assert_allclose(only_constant.bias, 0, atol=1e-3)


ARGUMENTS = [
    ({"inverse_strengths": [0.1]}, True),
    ({"selection_share": 0.2}, True),
    ({"subsets": 3}, True),
    ({"seed": 1}, True),
    ({"groups": None}, True),
    ({"seed": 0}, False),
    ({"batch_size": 9}, False),
    ({"multi_label": False}, False),
]


@pytest.mark.parametrize(("changed", "differs"), ARGUMENTS)
def test_every_argument_changes_the_weights(changed, differs):
    images, labels, contexts = planted(160, 0.8, seed=6)
    options = {"groups": contexts, "inverse_strengths": [1.0, 0.7, 0.3, 0.1, 0.07], "subsets": 4}
    first = retrain_last_layer(network(), images, labels, **options).head.kernel
    other = retrain_last_layer(network(), images, labels, **{**options, **changed}).head.kernel
    difference = np.abs(first - other).max() / np.abs(first).max()
    # Batches of another size round the features otherwise, which the solver's tolerance lets show.
    assert (difference > 0.02) if differs else (difference < 1e-3)


def test_labels_in_every_form_are_the_same():
    indices = np.array([0, 2, 1, 2])
    for given in (indices, indices[:, None], np.eye(3)[indices], indices.astype("float32"), indices.tolist()):
        np.testing.assert_array_equal(check_labels(given, 4, outputs=3, multi_label=False), indices)


def pooled_at_the_end() -> keras.Model:
    inputs = keras.Input((SIDE, SIDE, 1))
    return keras.Model(inputs, L.GlobalAveragePooling2D(name="pooled")(L.Conv2D(2, 1)(inputs)), name="network")


def last_layer_twice() -> keras.Model:
    x = inputs = keras.Input((SIDE, SIDE, 1))
    dense = L.Dense(2, name="both")
    return keras.Model(inputs, dense(dense(L.Dense(2)(L.Flatten()(x)))))


class Own(keras.Model):
    """Neither registered nor with a configuration of its own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense = L.Dense(units)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.dense(keras.ops.reshape(inputs, (-1, SIDE * SIDE)))


def own() -> keras.Model:
    model = Own(2)
    model(np.zeros((1, SIDE, SIDE, 1)))
    return model


IMAGES, CLASSES, CONTEXTS = planted(40, 0.5, seed=7)
ONE_SMALL_GROUP = np.where(np.arange(40) == np.flatnonzero(CLASSES == 1)[0], "rare", "common")
WITH_NAN = np.where(np.arange(40) == 3, np.nan, CONTEXTS)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"labels": np.zeros(40, int)}, "`labels`: expected images of every class; received no images of class 1"),
        ({"labels": CLASSES + 1}, r"`labels`: expected class indices in \[0, 1\].*received the label 2"),
        ({"labels": CLASSES - 1}, "received the label -1"),
        ({"labels": CLASSES[:-1]}, r"of shape \(40,\).*received shape \(39,\)"),
        ({"labels": CLASSES + 0.5}, "values that are no integers"),
        ({"labels": ["a"] * 40}, "values that are no integers"),
        ({"labels": np.ones((40, 2))}, "not a single 1 among zeros"),
        ({"labels": [[1], [1, 2]]}, "rows of different lengths"),
        ({"groups": CONTEXTS[:-1]}, r"`groups`: expected integers or strings of shape \(40,\); received shape \(39,\)"),
        ({"groups": WITH_NAN}, "received dtype float64 or NaN"),
        ({"groups": ONE_SMALL_GROUP}, "at least 2 images in every group.*received 1 of class 1 in group rare"),
        ({"images": IMAGES[:, :4]}, r"`images`: expected an array of shape \(N, 6, 6, 1\)"),
        ({"images": np.full_like(IMAGES, np.nan)}, "NaN or infinity in image 0"),
        ({"inverse_strengths": []}, "`inverse_strengths`: expected a sequence of finite positive numbers"),
        ({"inverse_strengths": 1.0}, "`inverse_strengths`"),
        ({"inverse_strengths": [1.0, 0.0]}, "`inverse_strengths`.*received 0.0"),
        ({"inverse_strengths": [np.inf]}, "`inverse_strengths`.*received inf"),
        ({"selection_share": 1.0}, "`selection_share`: expected a number between 0 and 1"),
        ({"subsets": 0}, "`subsets`: expected an integer of at least 1"),
        ({"seed": -1}, "`seed`: expected an integer of at least 0"),
        ({"batch_size": 0}, "`batch_size`: expected an integer of at least 1"),
        ({"multi_label": "yes"}, "`multi_label`: expected True, False or None"),
        ({"multi_label": True}, "`multi_label`: expected False for a head with a softmax"),
    ],
)
def test_bad_input(changed, text):
    arguments = {"images": IMAGES, "labels": CLASSES, "groups": None, **changed}
    with pytest.raises(InvalidArgument, match=text):
        retrain_last_layer(network(), **arguments)


def test_features_that_overflow_are_refused():
    model = network()
    model.set_weights([100 * weights for weights in model.get_weights()])
    with pytest.raises(InvalidArgument, match="`images`: expected images whose features are finite"):
        retrain_last_layer(model, np.full_like(IMAGES, 3e38), CLASSES)


@pytest.mark.parametrize(
    ("model", "labels", "text"),
    [
        (
            network(1, "sigmoid"),
            np.eye(2)[CLASSES],
            r"class indices in \[0, 1\] of shape \(40,\); received shape \(40, 2",
        ),
        (network(2, "sigmoid"), CLASSES, r"rows of 0 and 1 of shape \(40, 2\); received shape \(40,\)"),
        (network(2, "sigmoid"), np.eye(2)[CLASSES] * 2, "received the label 2"),
        (network(2, "sigmoid"), np.stack([CLASSES, CLASSES * 0], 1), "no images with 1 for label 1"),
    ],
)
def test_labels_that_do_not_fit_the_head(model, labels, text):
    with pytest.raises(InvalidArgument, match=text):
        retrain_last_layer(model, IMAGES, labels)


def test_small_groups_will_do_without_a_choice():
    retrained = retrain_last_layer(network(), IMAGES, CLASSES, ONE_SMALL_GROUP, inverse_strengths=[0.1])
    assert np.isfinite(retrained.head.kernel).all()


def test_group_of_one_label_is_named():
    labels = np.stack([CLASSES, np.arange(40) == 0], axis=1)
    with pytest.raises(InvalidArgument, match="received 1 of label 1 = 1"):
        retrain_last_layer(network(2, "sigmoid"), IMAGES, labels)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (pooled_at_the_end, r"logits of model `network` come from `pooled` \(GlobalAveragePooling2D\).*a Dense layer"),
        (last_layer_twice, "`both:2`, the last layer of model .* is called several times"),
        (own, "cannot be copied.*register_keras_serializable"),
    ],
)
def test_models_that_cannot_be_retrained(build, text):
    with pytest.raises(UnsupportedOperation, match=text):
        retrain_last_layer(build(), IMAGES, CLASSES)


def test_features_and_labels_must_belong_together():
    with pytest.raises(InvalidArgument, match=r"`features`: expected finite values of shape \(4, features\)"):
        balanced_linear_head(np.zeros((3, 2)), np.array([0, 1, 0, 1]), outputs=2, inverse_strengths=[1.0])
    with pytest.raises(InvalidArgument, match="received NaN or infinity"):
        balanced_linear_head(np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), outputs=2, inverse_strengths=[1.0])
