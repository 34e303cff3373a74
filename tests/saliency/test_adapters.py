from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.saliency.adapters import XpliqueExplainer, quantus_explain_func
from tfcausal.saliency.registry import get_explainer
from tfcausal.saliency.wbp import WBP

L = keras.layers


class Counting(WBP):
    """Counts how many explainers are made, and how often their maps are traced."""

    made = 0
    traces = 0

    def __init__(self, *args, **options):
        Counting.made += 1
        super().__init__(*args, **options)

    def maps(self, inputs, classes):
        Counting.traces += 1
        return super().maps(inputs, classes)


@pytest.fixture(autouse=True)
def _not_counted():
    Counting.made = Counting.traces = 0


def classifier(classes: int = 3) -> keras.Model:
    inputs = keras.Input((6, 5, 2))
    x = L.Conv2D(4, 3, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(classes, activation="softmax")(L.Flatten()(x)))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(4, 6, 5, 2)).astype("float32")


LABELS = np.array([0, 2, 1, 1])


@pytest.mark.parametrize("channels_first", [False, True])
def test_quantus_gets_one_channel_in_front_whatever_the_layout(images, channels_first):
    model = classifier()
    explain_func = quantus_explain_func("wbp", batch_size=3)
    inputs = np.moveaxis(images, -1, 1) if channels_first else images
    # As Quantus calls it, with the arguments that it adds on its own.
    maps = explain_func(model=model, inputs=inputs, targets=LABELS, device=None, method="wbp")
    assert type(maps) is np.ndarray
    assert maps.shape == (4, 1, 6, 5)
    expected = get_explainer("wbp", model)(images, LABELS).sum(axis=-1)
    np.testing.assert_allclose(maps[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_quantus_may_explain_a_single_image_with_a_plain_label(images):
    assert quantus_explain_func("wbp")(model=classifier(), inputs=images[:1], targets=2).shape == (1, 1, 6, 5)


def test_an_explainer_is_made_and_compiled_once_per_model(images):
    explain_func = quantus_explain_func(Counting)
    first, second = classifier(), classifier()
    for count in (4, 3, 2):
        for model in (first, second):
            explain_func(model, images[:count], LABELS[:count])
    assert (Counting.made, Counting.traces) == (2, 2)


def test_new_weights_of_a_model_are_seen(images):
    explain_func, model = quantus_explain_func(Counting), classifier()
    before = explain_func(model, images, LABELS)
    model.set_weights([2 * weight for weight in model.get_weights()])
    np.testing.assert_allclose(explain_func(model, images, LABELS), 4 * before, rtol=1e-4, atol=1e-6)
    assert Counting.made == 1


def test_only_the_last_models_are_kept(images):
    explain_func = quantus_explain_func("wbp")
    models = []
    for _ in range(4):
        model = classifier()
        explain_func(model, images, LABELS)
        models.append(weakref.ref(model))
        del model
    keras.utils.clear_session()
    gc.collect()
    assert [reference() is None for reference in models] == [True, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("wpb",), "Did you mean `wbp`"),
        ((3,), "the name of a saliency method, or a class of explainers; received 3"),
        (("wbp", None), "a way to reduce the channels to one; received None"),
        (("wbp", "median"), "sum, mean, max, abs_max"),
    ],
)
def test_quantus_adapter_is_checked_before_a_metric_runs(arguments, text):
    with pytest.raises(InvalidArgument, match=text):
        quantus_explain_func(*arguments)


def test_an_explainer_of_one_model_is_refused():
    # A metric that randomises the model would silently get the maps of the first one.
    with pytest.raises(InvalidArgument, match=r"received an explainer \(wbp\)\. Metrics bring models of their own"):
        quantus_explain_func(WBP(classifier()))


def test_images_that_fit_in_no_layout_are_an_error(images):
    with pytest.raises(InvalidArgument, match=r"shape \(N, 6, 5, 2\); received shape \(4, 6, 5, 1\)"):
        quantus_explain_func("wbp")(classifier(), images[..., :1], LABELS)


def test_xplique_gives_one_hot_tensors_and_gets_a_tensor(images):
    model = classifier()
    explainer = XpliqueExplainer("wbp", model, batch_size=3)
    one_hot = tf.one_hot(LABELS, 3)
    maps = explainer.explain(inputs=tf.constant(images), targets=one_hot)
    assert isinstance(maps, tf.Tensor)
    expected = WBP(model)(images, LABELS)
    np.testing.assert_allclose(maps, expected.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(explainer(images, one_hot.numpy()), maps)
    np.testing.assert_allclose(
        XpliqueExplainer("wbp", model, reducer=None)(images, one_hot), expected, rtol=1e-5, atol=1e-7
    )
    assert explainer.batch_size == 3
    assert explainer.model is model


def test_a_metric_may_put_another_model_into_the_explainer(images):
    model, other = classifier(), classifier()
    explainer, one_hot = XpliqueExplainer(Counting, model), tf.one_hot(LABELS, 3)
    before = explainer(images, one_hot)
    explainer.model = other
    np.testing.assert_allclose(explainer(images, one_hot), WBP(other)(images, LABELS, "sum"), rtol=1e-4, atol=1e-6)
    explainer.model = model
    np.testing.assert_array_equal(explainer(images, one_hot), before)
    assert Counting.made == 2


def test_a_head_of_one_logit_takes_a_column_of_ones(images):
    inputs = keras.Input((6, 5, 2))
    model = keras.Model(inputs, L.Dense(1, activation="sigmoid")(L.Flatten()(inputs)))
    explainer = XpliqueExplainer("wbp", model)
    np.testing.assert_array_equal(explainer(images, np.ones((4, 1), "float32")), explainer(images))
    with pytest.raises(InvalidArgument, match="integer class indices"):
        explainer(images, np.zeros((4, 1), "float32"))


def test_the_metrics_of_quantus_take_the_maps():
    quantus = pytest.importorskip("quantus")
    inputs = keras.Input((10, 8, 3))
    x = L.Conv2D(4, 3, activation="relu")(inputs)
    model = keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x)))
    images = np.random.default_rng(0).normal(size=(4, 10, 8, 3)).astype("float32")
    explain_func = quantus_explain_func("wbp")
    options = {"disable_warnings": True, "display_progressbar": False}
    given = {"model": model, "x_batch": images, "y_batch": LABELS, "channel_first": False}
    flipping = quantus.PixelFlipping(features_in_step=8, perturb_baseline="mean", **options)
    alone = flipping(**given, explain_func=explain_func)
    assert np.shape(alone) == (4, 30)  # 240 values, 8 at a time
    assert np.isfinite(alone).all()
    maps = explain_func(model=model, inputs=images, targets=LABELS)
    np.testing.assert_allclose(flipping(**given, a_batch=maps), alone, rtol=1e-4)
    sparseness = quantus.Sparseness(**options)(**given, explain_func=explain_func)
    assert np.isfinite(sparseness).all()


def test_the_metrics_of_xplique_take_the_explainer(images):
    metrics = pytest.importorskip("xplique.metrics")
    model = classifier()
    explainer, one_hot = XpliqueExplainer("wbp", model), tf.one_hot(LABELS, 3)
    assert 0 <= metrics.Deletion(model, images, one_hot, steps=4)(explainer(images, one_hot)) <= 1
    assert metrics.AverageStability(model, images, one_hot, nb_samples=3)(explainer) > 0
