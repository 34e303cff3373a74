from __future__ import annotations

import builtins
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.functional import flatten
from tfcausal.graph import OperationGraph
from tfcausal.saliency.cam import GradCAM
from tfcausal.saliency.keras_vis import (
    GradCAMPlusPlus,
    KerasVisExplainer,
    LayerCAM,
    ScoreCAM,
    activation_maximization,
    logits_model,
)

pytest.importorskip("tf_keras_vis", exc_type=ImportError)
L = keras.layers
METHODS = (GradCAMPlusPlus, ScoreCAM, LayerCAM)


class PeerGradCAM(KerasVisExplainer):
    """tf-keras-vis's Grad-CAM, through the same doors as the others."""

    name = "peer_grad_cam"
    place = ("gradcam", "Gradcam")


def nested(classes: int = 3) -> keras.Model:
    backbone = keras.Sequential(
        [
            keras.Input((12, 10, 2)),
            *(L.Conv2D(4, 3, activation="relu"), L.MaxPooling2D(), L.BatchNormalization()),
            *(L.Conv2D(5, 3, activation="relu", activity_regularizer="l2", name="last"), L.Dropout(0.5)),
        ],
        name="backbone",
    )
    inputs = keras.Input((12, 10, 2))
    x = L.Dense(6, activation="tanh")(L.Flatten()(backbone(inputs)))
    return keras.Model(inputs, L.Dense(classes, activation="softmax" if classes > 1 else "sigmoid")(x))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.features = L.Conv2D(3, 3, activation="relu", name="features")
        self.head = L.Dense(3)

    def call(self, images):
        x = keras.ops.relu(self.features(images) - 0.1) + self.features(images)
        return keras.ops.softmax(self.head(keras.ops.mean(x**2, axis=(1, 2))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 12, 10, 2), "float32"))
    return model


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 12, 10, 2)).astype("float32")


def top_of(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the last convolution of `nested`, the logits, and every logit's slope, (N, h, w, c, classes)."""
    graph = OperationGraph(model)
    position = graph.layer_output("last")
    activations = graph.run(tf.constant(images))
    features = activations[position]
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = graph.run(tf.constant(images), given={position: features})[graph.logits]
    slopes = np.moveaxis(tape.batch_jacobian(logits, features).numpy(), 1, -1).astype(np.float64)
    return features.numpy().astype(np.float64), logits.numpy().astype(np.float64), slopes


def enlarged(maps: np.ndarray) -> np.ndarray:
    return tf.image.resize(maps[..., np.newaxis], (12, 10)).numpy()


@pytest.mark.parametrize("build", [nested, subclassed])
def test_our_grad_cam_is_that_of_tf_keras_vis(build):
    model, images = build(), images_of(4)
    maps = GradCAM(model)(images)
    assert maps.max() > 0
    np.testing.assert_allclose(PeerGradCAM(model)(images), maps, atol=1e-6)


def test_the_formulas_in_numpy():
    model, images, classes = nested(), images_of(3), [2, 0, 1]
    features, _, jacobian = top_of(model, images)
    slopes = jacobian[np.arange(3), ..., classes]
    layer = np.maximum((features * np.maximum(slopes, 0)).sum(axis=-1), 0)
    np.testing.assert_allclose(LayerCAM(model, "last")(images, classes), enlarged(layer), atol=1e-6)
    denominator = 2 * slopes**2 + features.sum(axis=(1, 2), keepdims=True) * slopes**3
    alphas = slopes**2 / np.where(denominator == 0, 1, denominator)
    alphas = alphas / alphas.sum(axis=(1, 2), keepdims=True)
    weights = (alphas * np.maximum(slopes, 0)).sum(axis=(1, 2), keepdims=True)
    plus_plus = np.maximum((weights * features).sum(axis=-1), 0)
    maps = GradCAMPlusPlus(model, "last")(images, classes)
    np.testing.assert_allclose(maps, enlarged(plus_plus), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [3, 1])
def test_score_cam_weighs_by_the_probability_of_the_masked_image(classes):
    model, images = nested(classes), images_of(2)
    features, logits, _ = top_of(model, images)
    targets = logits.argmax(axis=1)
    from scipy.ndimage import zoom

    maps = np.zeros(features.shape[:3])
    for row in range(2):
        for channel in range(features.shape[-1]):
            values = features[row, ..., channel].astype(np.float32)
            mask = zoom(values, [12 / values.shape[0], 10 / values.shape[1]], order=1, mode="nearest")
            mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-7)
            answer = model.predict(images[row : row + 1] * mask[None, ..., None], verbose=0)[0]
            maps[row] += answer[targets[row]] * features[row, ..., channel]
    np.testing.assert_allclose(ScoreCAM(model, "last")(images), enlarged(np.maximum(maps, 0)), atol=1e-5)


def test_large_logits_do_not_overflow():
    model, images = nested(), images_of(2)
    kernel = model.layers[-1].kernel
    expected = GradCAMPlusPlus(model)(images, [0, 1])
    kernel.assign(1e4 * kernel)
    maps = GradCAMPlusPlus(model)(images, [0, 1])
    assert np.isfinite(maps).all()
    assert maps.max() > 0
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [nested, subclassed])
def test_batches_second_calls_and_the_model(method, build, capsys):
    model, images = build(), images_of(3)
    answers, weights = model(images), [weight.numpy() for weight in model.weights]
    losses, nodes = [float(loss) for loss in model.losses], [len(layer._inbound_nodes) for layer in model.layers]
    explainer = method(model, batch_size=2)
    maps = explainer(images)
    assert maps.shape == (3, 12, 10, 1)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() > 0
    np.testing.assert_array_equal(explainer(images), maps)
    np.testing.assert_allclose(np.concatenate([explainer(image[None]) for image in images]), maps, atol=1e-6)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert [float(loss) for loss in model.losses] == losses
    np.testing.assert_array_equal(model(images), answers)
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    assert capsys.readouterr().out == ""


def test_channels_are_chosen_for_every_image_by_itself():
    model, images = nested(), images_of(3)
    explainer = ScoreCAM(model, max_channels=2)
    maps = explainer(images)
    np.testing.assert_allclose(np.concatenate([explainer(image[None]) for image in images]), maps, atol=1e-6)
    assert np.abs(maps - ScoreCAM(model)(images)).max() > 1e-3


def test_the_logits_model_shares_weights_and_ends_before_the_softmax():
    model, images = nested(), images_of(3)
    graph = OperationGraph(model)
    flat, probe = logits_model(graph, graph.layer_output("last"))
    logits = flat([images])
    np.testing.assert_allclose(keras.ops.softmax(logits), flatten(model)(images), atol=1e-6)
    assert {id(weight) for weight in flat.weights} == {id(weight) for weight in model.weights}
    np.testing.assert_allclose(keras.Model(flat.inputs, probe.output)([images]), top_of(model, images)[0], atol=1e-6)
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    np.testing.assert_allclose(flat([images]) - logits, np.tile([1.0, 2.0, 3.0], (3, 1)), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_of_several_outputs(method):
    inputs = keras.Input((12, 10, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, activation="relu")(inputs))
    both = keras.Model(inputs, [L.Dense(2, name="a")(x), L.Dense(3, name="b")(x)])
    single = keras.Model(inputs, both.outputs[1])
    np.testing.assert_allclose(method(both, output="b")(images_of(2)), method(single)(images_of(2)), atol=1e-7)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, LayerCAM, PeerGradCAM])
def test_several_inputs(method):
    image, number = keras.Input((8, 8, 1), name="image"), keras.Input((2,), name="number")
    x = L.Concatenate()([L.Flatten()(L.Conv2D(2, 3, activation="relu")(image)), number])
    model = keras.Model([image, number], L.Dense(2)(x))
    arrays = {"image": np.random.default_rng(0).normal(size=(2, 8, 8, 1)), "number": np.ones((2, 2))}
    assert method(model)(arrays)["image"].shape == (2, 8, 8, 1)
    with pytest.raises(UnsupportedOperation, match="has 2 inputs; Score-CAM masks a single image"):
        ScoreCAM(model)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision(method):
    inputs = keras.Input((12, 10, 2))
    x = L.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16")(inputs)
    x = L.GlobalAveragePooling2D(dtype="mixed_bfloat16")(x)
    maps = method(keras.Model(inputs, L.Dense(3, dtype="mixed_bfloat16")(x)))(images_of(2))
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.max() > 0


def test_activation_maximisation():
    model = subclassed()
    options = {"steps": 40, "input_range": (-1.0, 1.0), "total_variation": 0.0, "norm": 0.0}
    state = np.random.get_state()[1].copy()
    images = activation_maximization(model, [0, 2], **options)
    assert images.shape == (2, 12, 10, 2)
    assert images.dtype == np.float32
    assert images.min() >= -1
    assert images.max() <= 1
    first = activation_maximization(model, [0, 2], **{**options, "steps": 1})
    graph = OperationGraph(model)
    before, after = (graph.run(tf.constant(x))[graph.logits].numpy()[[0, 1], [0, 2]] for x in (first, images))
    assert (after > before + 0.2).all(), (before, after)
    np.testing.assert_array_equal(activation_maximization(model, [0, 2], **options), images)
    np.testing.assert_allclose(activation_maximization(model, [2], **options)[0], images[1], atol=1e-4)
    assert np.abs(activation_maximization(model, [0, 2], seed=1, **options) - images).max() > 0.1
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"classes": [3]}, "`classes`: expected class indices in [0, 2]; received [3]."),
        ({"classes": []}, "`classes`: expected class indices in [0, 2]; received []."),
        ({"classes": [0.5]}, "`classes`: expected class indices in [0, 2]; received [0.5]."),
        ({"classes": 1}, "`classes`: expected class indices in [0, 2]; received 1."),
        ({"steps": 0}, "`steps`: expected an integer of at least 1; received 0."),
        (
            {"input_range": (1, 0)},
            "`input_range`: expected two finite numbers, the smaller one first; received (1, 0).",
        ),
        ({"input_range": None}, "`input_range`: expected two finite numbers, the smaller one first; received None."),
        ({"norm": -1}, "`norm`: expected a finite number of at least 0; received -1."),
    ],
)
def test_bad_options_of_activation_maximisation(options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        activation_maximization(nested(), **{"classes": [0], **options})


def test_activation_maximisation_needs_an_image_of_known_size():
    with pytest.raises(UnsupportedOperation, match="takes a single image of known size"):
        activation_maximization(keras.Sequential([keras.Input((4,)), L.Dense(2)]), [0])


@pytest.mark.parametrize("method", METHODS)
def test_wrong_layers_models_and_targets(method):
    with pytest.raises(InvalidArgument, match=r"`layer`: expected one of .*backbone/last.*; received 'lost'"):
        method(nested(), "lost")
    with pytest.raises(UnsupportedOperation, match=f"{method.name}: model `numbers` has no image among its inputs"):
        method(keras.Sequential([keras.Input((4,)), L.Dense(2)], name="numbers"))
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        method(nested())(images_of(1), [3])


def test_wrong_numbers_of_channels():
    with pytest.raises(InvalidArgument, match="at most the number of channels of the layer, 5; received 6"):
        ScoreCAM(nested(), max_channels=6)
    with pytest.raises(InvalidArgument, match="`max_channels`: expected an integer of at least 1; received 0"):
        ScoreCAM(nested(), max_channels=0)


def test_the_extra_is_named_where_tf_keras_vis_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tf_keras_vis"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("tf_keras_vis")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", without)
    for make in (lambda: LayerCAM(nested()), lambda: activation_maximization(nested(), [0])):
        with pytest.raises(ImportError, match=re.escape("pip install 'tfcausal[vis]'")):
            make()
