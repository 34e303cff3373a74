from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, TfCausalError
from tfcausal.saliency import registry
from tfcausal.saliency.composites import COMPOSITES
from tfcausal.saliency.registry import available_explainers, find_explainer, get_explainer, register_rule
from tfcausal.saliency.wbp import WBP

L = keras.layers
NAMES = [entry.name for entry in available_explainers()]


@pytest.fixture(scope="module")
def transfer_model():
    """A backbone inside a model, with a softmax head: what other libraries stumble over."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((12, 10, 3))
    x = L.Conv2D(6, 3, activation="relu", name="conv1")(x)
    x = L.BatchNormalization()(x)
    x = L.MaxPooling2D(2)(x)
    backbone = keras.Model(inputs, L.Conv2D(8, 2, activation="relu", name="conv2")(x), name="backbone")
    outer = keras.Input((12, 10, 3))
    x = L.GlobalAveragePooling2D()(backbone(outer))
    return keras.Model(outer, L.Dense(3, activation="softmax")(x))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).uniform(0.05, 0.95, (3, 12, 10, 3)).astype("float32")


def options_for(name: str) -> dict:
    if name == "occlusion":
        return {"patch": 4, "stride": 2}
    if name == "lrp.epsilon_gamma_box":
        return {"low": 0.0, "high": 1.0}
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_methods_that_are_called_traceable_are_operations_of_tensorflow(name, transfer_model, images):
    if find_explainer(name).needs:
        pytest.importorskip("tf_keras_vis")
    explainer = get_explainer(name, transfer_model, **options_for(name))
    signature = [tf.TensorSpec((None, 12, 10, 3), tf.float32), tf.TensorSpec((None,), tf.int64)]

    @tf.function(input_signature=signature, autograph=False)
    def traced(batch, classes):
        return explainer.maps((batch,), classes)

    if find_explainer(name).traceable:
        np.testing.assert_allclose(traced(images, [0, 1, 2])[0], explainer(images, [0, 1, 2]), atol=1e-4, rtol=1e-3)
    else:
        with pytest.raises(Exception, match=r"symbolic|numpy|Tensor|graph"):
            traced(images, [0, 1, 2])


@pytest.mark.parametrize("name", NAMES)
def test_every_method_explains_a_nested_classifier(name, transfer_model, images):
    if find_explainer(name).needs:
        pytest.importorskip("tf_keras_vis")
    weights = [weight.copy() for weight in transfer_model.get_weights()]
    explainer = get_explainer(name, transfer_model, **options_for(name))
    maps = explainer(images, [0, 1, 2])
    assert maps.dtype == np.float32
    assert maps.shape[:3] == images.shape[:3]
    assert maps.shape[3] in (1, 3)
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0
    np.testing.assert_array_equal(explainer(images, [0, 1, 2]), maps)
    np.testing.assert_allclose(explainer(images[:1], [0])[0], maps[0], rtol=1e-4, atol=1e-6 * np.abs(maps).max())
    assert explainer(images[:2], reducer="sum").shape == (2, 12, 10, 1)
    for before, after in zip(weights, transfer_model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_every_composite_of_lrp_has_a_name():
    assert {f"lrp.{composite}" for composite in COMPOSITES} == {name for name in NAMES if name.startswith("lrp.")}


def test_a_name_stands_for_its_class_and_its_fixed_options(transfer_model, images):
    np.testing.assert_array_equal(
        get_explainer("wbp", transfer_model, batch_size=2)(images), WBP(transfer_model)(images)
    )
    lrp = find_explainer("lrp.gamma")
    np.testing.assert_array_equal(
        get_explainer("lrp.gamma", transfer_model)(images),
        lrp.explainer_class()(transfer_model, composite="gamma")(images),
    )
    assert "composite" not in lrp.options()
    assert "batch_size" in lrp.options()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("wpb", {}, "expected the name of a saliency method; received 'wpb'. Did you mean `wbp`"),
        ("lrp.epsilonplus", {}, "Did you mean `lrp.epsilon_plus` or `lrp.epsilon`"),
        ("gradcam", {}, "Did you mean `grad_cam`"),
        ("zzz", {}, "There are wbp, lrp.epsilon_plus"),
        (None, {}, "received None. There are wbp"),
        (["wbp"], {}, "received \\['wbp'\\]. There are wbp"),
        ("wbp", {"fallbak": "gradient"}, "fallback\\); received 'fallbak'. Did you mean `fallback`"),
        ("wbp", {"layer": "conv1"}, "options of wbp \\(output, batch_size, fallback\\); received 'layer'"),
        ("lrp.epsilon", {"composite": "gamma"}, "received 'composite'"),
    ],
)
def test_unknown_names_and_options_say_what_there_is(transfer_model, name, options, text):
    with pytest.raises(InvalidArgument, match=text):
        get_explainer(name, transfer_model, **options)


def test_a_layer_that_does_not_exist_is_answered_with_the_paths(transfer_model):
    with pytest.raises(InvalidArgument, match=r"backbone/conv1.*received 'conv9'"):
        get_explainer("grad_cam", transfer_model, layer="conv9")


def test_a_method_of_an_extra_that_is_missing_says_how_to_install_it(transfer_model, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError("No module named 'tf_keras_vis'", name="tf_keras_vis")

    monkeypatch.setattr(registry, "import_module", missing)
    with pytest.raises(InvalidArgument, match=r"'score_cam', which needs tf_keras_vis\. Install it: `pip install"):
        get_explainer("score_cam", transfer_model)
    with pytest.raises(ModuleNotFoundError):
        get_explainer("wbp", transfer_model)


def test_the_list_prints_one_line_per_method():
    lines = str(available_explainers()).splitlines()
    assert len(lines) == len(NAMES) == len(set(NAMES))
    assert lines[0].split()[0] == "wbp"
    assert "Selvaraju et al. 2017." in next(line for line in lines if line.startswith("grad_cam "))
    assert next(line for line in lines if line.startswith("score_cam")).endswith("Needs tfcausal[vis].")
    assert all(entry.description and entry.source for entry in available_explainers())


def test_looking_names_up_imports_no_tensorflow():
    code = (
        "import sys; from tfcausal.saliency.registry import available_explainers, find_explainer; "
        "str(available_explainers()), find_explainer('wbp'); "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras', 'numpy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Affine(L.Layer):
    """Not made of Keras operations, so that no rule can be found for what it is made of."""

    def call(self, inputs):
        return tf.raw_ops.AddV2(x=tf.raw_ops.Mul(x=inputs, y=3.0), y=1.0)


def affine_model() -> keras.Model:
    inputs = keras.Input((2,))
    return keras.Model(inputs, Affine()(inputs))


def test_a_registered_rule_is_used_with_its_offset():
    with pytest.raises(Exception, match="register_rule"):
        WBP(affine_model())

    @register_rule(Affine, offset=lambda step, cotangent: tf.reduce_sum(cotangent, axis=1))
    def affine(step, cotangent):
        return (3.0 * cotangent,)

    assert affine(None, 2.0) == (6.0,)
    explained = WBP(affine_model()).decompose(np.array([[2.0, 5.0]], "float32"), [1])
    assert explained.maps.tolist() == [[0.0, 15.0]]
    assert explained.bias.tolist() == [1.0]
    assert explained.logits.tolist() == [16.0]
    with pytest.raises(InvalidArgument, match="a class that wbp has no rule for"):
        register_rule(Affine)(affine)


def test_a_rule_can_be_registered_for_lrp():
    class Tripled(Affine):
        pass

    @register_rule(Tripled, method="lrp", offset=lambda step, relevance: 0.0 * relevance[:, 0])
    def tripled(step, relevance):
        return (relevance,)

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Tripled()(inputs))
    assert get_explainer("lrp.epsilon", model)(np.array([[2.0, 5.0]], "float32"), [1]).tolist() == [[0.0, 16.0]]


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (L.Dense, {}, "a class that wbp has no rule for"),
        (L.Dense(2), {}, "Pass the class itself"),
        (Affine, {"method": "lpr"}, "one of wbp, lrp"),
    ],
)
def test_rules_that_cannot_be_registered(kind, options, text):
    with pytest.raises(InvalidArgument, match=text):
        register_rule(kind, **options)(lambda step, cotangent: (cotangent,))


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_an_error_of_our_own_whatever_the_method(name, transfer_model, images):
    if find_explainer(name).needs:
        pytest.importorskip("tf_keras_vis")
    options = options_for(name)
    explainer = get_explainer(name, transfer_model, **options)
    broken = images.copy()
    broken[1, 0, 0, 0] = np.nan
    for given, targets, text in (
        (images[0], None, r"Add the batch axis"),
        (images[:, :9], None, r"received shape \(3, 9, 10, 3\)"),
        (images[:0], None, "an empty batch"),
        (images.astype(str), None, "of numbers"),
        (broken, None, "NaN or infinity in image 1"),
        (images, [0, 1, 3], r"class indices in \[0, 2\]"),
        (images, [0, 1], r"shape \(3,\)"),
        (images, [0.5, 1.0, 2.0], "integer class indices"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            explainer(given, targets)
    inputs, tokens = keras.Input((12, 10, 3)), keras.Input((5,), dtype="int32")
    features = L.Flatten()(L.Conv2D(2, 3)(inputs))
    for model, text in (
        (keras.Sequential([L.Conv2D(2, 3), L.Flatten(), L.Dense(2)]), "Call `build"),
        (keras.Model(inputs, [L.Dense(2)(features), L.Dense(3)(features)]), "one of the outputs"),
        (keras.Model(tokens, L.Dense(2)(L.Flatten()(L.Embedding(9, 4)(tokens)))), "takes integers of shape"),
        ("model", "a keras.Model; received str"),
    ):
        with pytest.raises(TfCausalError, match=text):
            get_explainer(name, model, **options)
