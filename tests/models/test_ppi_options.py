"""What PPI's arguments do: heads of several labels, parameters, what is saved, what is refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, TrainingDiverged, UnsupportedOperation
from tfcausal.models.ppi import PPIModel
from tfcausal.models.targets import Targets, read_targets

L = keras.layers
ROWS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
CONTRAST_ALONE = {"regularisation_weight": 0.0, "adversarial_weight": 0.0}


def compiled(
    model: keras.Model, loss: Any = "sparse_categorical_crossentropy", rate: float = 1.0, **options: Any
) -> Any:
    model.compile(keras.optimizers.SGD(rate), loss, **{"run_eagerly": True, **options})
    return model


def multi_label(backbone: keras.Model, rate: float = 0.0, **options: Any) -> Any:
    return compiled(PPIModel(backbone, **options), "binary_crossentropy", rate)


def test_every_label_of_an_image_is_drawn_alike_and_anew_in_every_step(classifier):
    model = multi_label(classifier(activation="sigmoid"))
    counts, orders, steps = np.zeros((6, 3)), set(), 600
    for step in range(steps):
        model.optimizer.iterations.assign(step)
        targets, _ = read_targets(ROWS, "multi_label", 3, model.mask_shape, model._random_scores)
        counts[np.arange(6), targets.classes.numpy()] += 1
        orders.add(tuple(targets.classes.numpy()))
    np.testing.assert_array_equal(targets.present, ROWS.any(axis=1))
    some = ROWS.any(axis=1)
    expected = ROWS[some] / ROWS[some].sum(axis=1, keepdims=True)
    # Five standard deviations of a share.
    np.testing.assert_allclose(counts[some] / steps, expected, atol=5 * np.sqrt(1 / 4 / steps))
    assert (counts[some][ROWS[some] == 0] == 0).all()
    assert len(orders) == 2 * 3 * 2  # images are drawn for apart from each other


def test_what_is_drawn_has_the_mean_over_the_labels_as_its_expectation(classifier, images):
    """The loss of a step is that of the labels drawn, and every label of an image is as likely as the others."""
    seen = []

    class Spied(PPIModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            seen.append(targets.classes.numpy())
            return super().objective(images, targets, training)

    trained = compiled(Spied(classifier(activation="sigmoid"), **CONTRAST_ALONE), "binary_crossentropy", rate=0.0)
    alone = np.zeros((6, 3))
    for label in range(3):
        targets = Targets(tf.constant(ROWS), tf.fill(6, label), tf.ones(6), None, None)
        alone[:, label] = trained.objective(tf.constant(images), targets, True).terms["contrast_loss"].loss
    assert np.ptp(alone, axis=1).min() > 1e-3
    drawn = set()
    for _ in range(12):
        seen.clear()
        value = trained.train_on_batch(images, ROWS, return_dict=True)["contrast_loss"]
        drawn.add(tuple(seen[0]))
        expected = (ROWS.any(axis=1) * alone[np.arange(6), seen[0]]).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(drawn) > 4


def test_images_without_a_label_have_the_classification_loss_alone(classifier, images):
    rows = ROWS * np.array([1, 0, 1, 0, 0, 1])[:, None]
    for options in (CONTRAST_ALONE, {"regularisation_weight": 2.0}):
        backbone = classifier(activation="sigmoid")
        model = multi_label(backbone, rate=1.0, **options)
        for _ in range(2):
            model.train_on_batch(images, np.zeros((6, 3)))
        plain = compiled(classifier(activation="sigmoid"), "binary_crossentropy")
        for _ in range(2):
            plain.train_on_batch(images, np.zeros((6, 3)))
        for own, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    changed = images.copy()
    changed[rows.any(axis=1) == 0] += 1.0
    first, second = (
        multi_label(classifier(activation="sigmoid"), adversarial_weight=0.0).train_on_batch(x, rows, return_dict=True)
        for x in (images, changed)
    )
    assert first["classification_loss"] != second["classification_loss"]
    for name in ("contrast_loss", "regularisation_loss"):
        assert first[name] == second[name] > 0


def test_images_without_a_label_do_not_stop_the_negated_contrast(classifier, images):
    """Of a classifier that knows that they have none of the labels, the cross-entropy of a label is large."""
    backbone = classifier(activation="sigmoid")
    bias = backbone.get_layer("class_maps").bias
    bias.assign([-100.0, 0.0, 0.0])
    model = multi_label(backbone, rate=0.01, contrast="negated", divergence_limit=20.0)
    rows = ROWS * np.array([0, 1, 1])
    assert (rows.sum(axis=1) == 0).any()
    model.train_on_batch(images, rows)
    model.train_on_batch(images, np.zeros((6, 3)))
    bias.assign([0.0, -100.0, -100.0])
    with pytest.raises(TrainingDiverged, match="the negated contrast diverges"):
        model.train_on_batch(images, rows)


VALUES = {
    "contrast_weight": 3.0,
    "regularisation_weight": 4.0,
    "adversarial_weight": 0.25,
    "threshold": 0.6,
    "sharpness": 5.0,
}


def test_a_parameter_changes_the_next_step_which_is_not_traced_again(classifier, images, labels):
    traces = []

    class Counted(PPIModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            traces.append(training)
            return super().objective(images, targets, training)

    model = compiled(Counted(classifier()), rate=0.0, run_eagerly=False)
    assert set(model.parameters) == set(VALUES)
    for name, value in VALUES.items():
        before = float(model.parameters[name].variable)
        model.set_parameter(name, value)
        model.optimizer.iterations.assign(0)
        logs = model.train_on_batch(images, labels, return_dict=True)
        expected = compiled(PPIModel(classifier(), **{name: value}), rate=0.0)
        for key, own in expected.train_on_batch(images, labels, return_dict=True).items():
            np.testing.assert_allclose(logs[key], own, rtol=1e-4, atol=1e-6, err_msg=f"{name}: {key}")
        model.set_parameter(name, before)
    assert traces == [True]
    assert model.get_config()["threshold"] == 0.25


def test_parameters_that_a_model_does_not_have(classifier):
    model = PPIModel(classifier(), threshold_quantile=0.9, adversarial_weight=0.0)
    assert set(model.parameters) == {"contrast_weight", "regularisation_weight", "sharpness"}
    for name in ("threshold", "adversarial_weight", "threshold_quantile"):
        with pytest.raises(InvalidArgument, match="`name`: expected one of contrast_weight, regularisation_weight, sh"):
            model.set_parameter(name, 0.5)
    for name, value in (("sharpness", 0.0), ("sharpness", float("inf")), ("contrast_weight", -1.0)):
        with pytest.raises(InvalidArgument, match=f"`{name}`: expected a finite .*; received {value}"):
            model.set_parameter(name, value)
    model = PPIModel(classifier())
    for value in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="`threshold`: expected a number between 0 and 1; received"):
            model.set_parameter("threshold", value)


SAVED: list[dict[str, Any]] = [
    {"saliency": "gradient", "contrast": "probability", "mask": "box", "largest_component": True, "threshold": 0.4},
    {"saliency": "grad_cam", "layer": "features", "masked_value": [0.1, 0.2, 0.3], "ramp_epochs": 3},
    {"saliency": "lrp.epsilon_gamma_box", "low": -3.0, "high": [3.0, 4.0, 5.0], "regularised": "all_classes"},
    {"saliency": "lrp.epsilon_gamma_box", "low": np.array([-3.0, -4.0, -4.0]), "high": np.float32(5.0)},
    {"second_order": False, "regularisation_weight": 0.0, "masked_value": (0.5, 0.5, 1.0), "warm_up_epochs": 2},
    {"mask": "box", "threshold_quantile": 0.7, "contrast_weight": 0.3, "adversarial_weight": 0.0, "sharpness": 9.0},
    {"contrast": "negated", "divergence_limit": 50.0, "regularisation_weight": 0.7, "multi_label": False},
]


@pytest.mark.parametrize("options", SAVED, ids=range(len(SAVED)))
def test_every_argument_is_saved(classifier, images, labels, tmp_path, options):
    model = compiled(PPIModel(classifier(), **options))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.get_config()
    for name, value in options.items():
        np.testing.assert_array_equal(config[name], value, err_msg=name)
    assert {**config, "backbone": None} == {**model.get_config(), "backbone": None}
    loaded.run_eagerly = True
    expected = model.train_on_batch(images, labels, return_dict=True)
    assert loaded.train_on_batch(images, labels, return_dict=True) == expected


def test_a_multi_label_head_without_an_activation_is_saved_as_such(classifier, tmp_path):
    model = PPIModel(classifier(activation=None), multi_label=True)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").head == "multi_label"


CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    ("saliency", "gradient", {}),
    ("saliency", "grad_cam", {}),
    ("saliency", "lrp.epsilon_plus", {}),
    ("saliency", "lrp.alpha2_beta1", {"saliency": "lrp.epsilon_plus"}),
    ("layer", "features", {"saliency": "grad_cam"}),
    ("low", -30.0, {"saliency": "lrp.epsilon_gamma_box", "low": -5.0, "high": 5.0}),
    ("high", 30.0, {"saliency": "lrp.epsilon_gamma_box", "low": -5.0, "high": 5.0}),
    ("contrast", "probability", {}),
    ("regularised", "all_classes", {"regularisation_weight": 20.0}),
    ("mask", "box", {}),
    ("threshold", 0.9, {"mask": "box"}),
    ("threshold_quantile", 0.9, {"mask": "box"}),
    ("largest_component", True, {"mask": "box", "threshold": 0.3}),
    ("masked_value", 1.0, {}),
    ("masked_value", [1.0, 0.0, 0.0], {"masked_value": [0.0, 0.0, 1.0]}),
    ("second_order", False, {"regularisation_weight": 0.0, "saliency": "gradient", "sharpness": 5.0}),
]


@pytest.mark.parametrize(("name", "value", "base"), CHANGES)
def test_every_argument_changes_the_training(classifier, images, labels, name, value, base):
    followed = []
    for options in (base, {**base, name: value}):
        model = compiled(PPIModel(classifier(), **options))
        before = np.concatenate([weight.ravel() for weight in model.get_weights()])
        model.train_on_batch(images, labels)
        followed.append(before - np.concatenate([weight.ravel() for weight in model.get_weights()]))
    assert np.linalg.norm(followed[1] - followed[0]) > 5e-3 * np.linalg.norm(followed[0])


def test_the_ramp_is_the_share_of_every_weight(classifier, images, labels):
    model = compiled(PPIModel(classifier(), ramp_epochs=3, contrast_weight=2.0), rate=0.0)
    history = model.fit(images, labels, epochs=4, shuffle=False, verbose=0).history
    terms = 2 * np.array(history["contrast_loss"]) + np.array(history["adversarial_loss"])
    terms += 0.1 * np.array(history["regularisation_loss"])
    share = (np.array(history["loss"]) - np.array(history["classification_loss"])) / terms
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0], rtol=1e-4)


def test_a_first_order_step_has_the_loss_of_a_second_order_one(classifier, images, labels):
    for saliency in ("gradient", "grad_cam", "lrp.epsilon_plus"):
        logs = [
            compiled(
                PPIModel(classifier(), saliency=saliency, second_order=second_order, regularisation_weight=0.0)
            ).train_on_batch(images, labels, return_dict=True)
            for second_order in (True, False)
        ]
        assert logs[0].keys() == logs[1].keys()
        np.testing.assert_allclose(list(logs[0].values()), list(logs[1].values()), rtol=1e-6)


KNOWN = "wbp, gradient, grad_cam, lrp.epsilon_plus, .*"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"saliency": "occlusion"}, f"`saliency`: expected one of {KNOWN}; received 'occlusion'"),
        ({"saliency": "lrp"}, f"`saliency`: expected one of {KNOWN}; received 'lrp'"),
        ({"saliency": None}, f"`saliency`: expected one of {KNOWN}; received None"),
        (
            {"layer": "features"},
            "`layer`: expected None with saliency='wbp', which shows no layer; received 'features'",
        ),
        ({"saliency": "grad_cam", "layer": "x"}, "`layer`: expected one of .*features.*; received 'x'"),
        ({"saliency": "grad_cam", "layer": "logits"}, "`layer`: expected a layer whose output is .*'logits'"),
        ({"saliency": "grad_cam", "layer": L.ReLU()}, "`layer`: expected the name or path of a layer, or None; rec"),
        ({"low": 0.0}, "`low`: expected None with saliency='wbp', which has no bounds; received 0.0"),
        (
            {"saliency": "gradient", "high": np.ones(3)},
            r"`high`: expected None with saliency='gradient', which has no bounds; received array\(\[1., 1., 1.\]\)",
        ),
        ({"saliency": "lrp.epsilon_gamma_box"}, "`low`: expected the smallest and largest value of the model's input"),
        ({"saliency": "lrp.epsilon_gamma_box", "low": 0.0}, "`high`: expected the smallest and largest value"),
        (
            {"saliency": "lrp.epsilon_gamma_box", "low": [0.0, 1.0], "high": 5.0},
            r"`low`: expected finite numbers that broadcast to images of shape \(8, 8, 3\); received \[0.0, 1.0\]",
        ),
        ({"saliency": "lrp.epsilon_gamma_box", "low": "0", "high": "x"}, "`high`: expected a number, or one for every"),
        (
            {"saliency": "lrp.epsilon_gamma_box", "low": 1.0, "high": 0.0},
            r"`low`: expected less than high \(0.0\); rec",
        ),
        ({"contrast": None}, "`contrast`: expected one of one_vs_rest, negated, probability; received None"),
        ({"regularised": "all"}, "`regularised`: expected one of label, all_classes; received 'all'"),
        ({"mask": "hard"}, "`mask`: expected one of soft, box; received 'hard'"),
        (
            {"largest_component": True},
            "`largest_component`: expected one of False; received True. Only a box is drawn around a component: set",
        ),
        ({"mask": "box", "largest_component": "yes"}, "`largest_component`: expected one of True, False; rec"),
        ({"second_order": "no"}, "`second_order`: expected one of True, False; received 'no'"),
        (
            {"masked_value": [0.0, 1.0]},
            r"`masked_value`: expected a finite number, or 3 of them; received \[0.0, 1.0\]",
        ),
        ({"masked_value": float("nan")}, "`masked_value`: expected a finite number, or 3 of them; received nan"),
        ({"masked_value": "mean"}, "`masked_value`: expected a finite number, or 3 of them; received 'mean'"),
        ({"masked_value": None}, "`masked_value`: expected a finite number, or 3 of them; received None"),
        ({"ramp_epochs": -1}, "`ramp_epochs`: expected an integer of at least 0; received -1"),
        ({"threshold": "0.3"}, "`threshold`: expected a number between 0 and 1; received '0.3'"),
        ({"sharpness": float("inf")}, "`sharpness`: expected a finite positive number; received inf"),
    ],
)
def test_arguments_outside_their_range(classifier, options, expected):
    with pytest.raises(InvalidArgument, match=f"Invalid value for {expected}"):
        PPIModel(classifier(), **options)


def test_saliency_without_a_rule_for_a_layer():
    inputs = keras.Input((8, 8, 3))
    x = L.Softmax(name="strange")(L.Conv2D(3, 3)(inputs))
    backbone = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    with pytest.raises(UnsupportedOperation, match=r"lrp: `strange` \(Softmax\) has no rule"):
        PPIModel(backbone, saliency="lrp.epsilon")
    for saliency in ("gradient", "grad_cam"):
        PPIModel(backbone, saliency=saliency)


@pytest.mark.parametrize("saliency", ["gradient", "grad_cam"])
def test_a_layer_that_draws_at_random_what_the_map_cannot_know(saliency):
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(3, 3)(L.RandomRotation(0.1, name="turn")(inputs))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    with pytest.raises(UnsupportedOperation, match=r"`turn` \(RandomRotation\) draws at random in training.*pipeline"):
        PPIModel(model, saliency=saliency)


def test_grad_cam_needs_feature_maps(classifier):
    backbone = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(3)])
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        PPIModel(backbone, saliency="grad_cam")
    volumes = keras.Sequential([keras.Input((4, 8, 8, 3)), L.Conv3D(2, 3), L.GlobalAveragePooling3D()])
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        PPIModel(volumes, saliency="grad_cam")
