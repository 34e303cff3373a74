import keras
import numpy as np
import pytest

from tfcausal.browsing.classifier import LoadedClassifier, RunClassifier
from tfcausal.browsing.stored_split import StoredSplit
from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.faithfulness import Deletion
from tfcausal.models.loading import LoadedModel
from tfcausal.runs import RunDirectory
from tfcausal.saliency.wbp import WBP


@pytest.fixture(scope="module")
def run(small_run):
    return RunDirectory.open(small_run[0])


@pytest.fixture(scope="module")
def images(run):
    return StoredSplit(run, "test").images(range(5))


@pytest.fixture(scope="module")
def classifier(run):
    return RunClassifier(run, "cfcn")


def test_its_answers_and_maps_are_those_that_the_run_stored(run, images, classifier):
    stored = StoredSplit(run, "test")
    answers = stored.probabilities("cfcn")[:5]
    np.testing.assert_allclose(classifier.answers(images), answers, atol=1e-5)
    maps = classifier.maps("wbp", images, answers.argmax(axis=1))
    np.testing.assert_allclose(maps, stored.maps("cfcn", range(5)), atol=1e-5)
    assert classifier.class_names == stored.class_names


def test_logits_are_taken_apart_into_pixels_and_biases(run, images, classifier):
    parts = classifier.logit_parts(images[0], most=4)
    model = keras.models.load_model(run.model_path("cfcn"), compile=False)
    explainer = WBP(model)
    logits = np.log(model(images[:1], training=False).numpy()[0])
    logits += parts.logits[0] - logits[parts.classes[0]]
    assert parts.classes.tolist() == np.argsort(-logits)[:4].tolist()
    np.testing.assert_allclose(parts.logits, logits[parts.classes], atol=1e-4)
    np.testing.assert_allclose(parts.pixels + parts.biases, parts.logits, atol=1e-5)
    sums = [explainer(images[:1], [index]).sum() for index in parts.classes]
    np.testing.assert_allclose(parts.pixels, sums, atol=1e-5)
    np.testing.assert_allclose(parts.pixel_shares, parts.pixels / parts.logits, rtol=1e-6)


def test_the_share_of_a_logit_of_zero_is_unknown(classifier, images):
    parts = classifier.logit_parts(images[0], most=1)
    zero = type(parts)(parts.classes, np.zeros(1), parts.probabilities, np.ones(1), -np.ones(1))
    assert np.isnan(zero.pixel_shares).all()


def test_deletion_by_several_maps_ends_with_the_random_control(run, images, classifier):
    maps = classifier.maps("gradient", images[:1], [3])
    curves = classifier.deletion_curves(images[0], np.stack([maps[0], -maps[0]]), steps=4, seed=5)
    deletion = Deletion(keras.models.load_model(run.model_path("cfcn"), compile=False), 4)
    np.testing.assert_allclose(curves[0], deletion.curves(images[:1], maps[..., None])[0], atol=1e-6)
    control = deletion.random_maps(images[:1], 5)
    np.testing.assert_allclose(curves[2], deletion.curves(images[:1], control)[0], atol=1e-6)
    assert curves.shape == (3, 5)


def test_deleted_pixels_become_the_middle_between_black_and_white():
    inputs = keras.Input((4, 4, 1))
    head = keras.layers.Dense(2, activation="softmax", kernel_initializer="ones")
    model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    weights = np.stack([np.ones(16), np.zeros(16)], axis=1) / 1000
    model.set_weights([weights, np.zeros(2)])
    classifier = LoadedClassifier(LoadedModel(model, "a model", ("a", "b"), (0.0, 200.0)))
    curves = classifier.deletion_curves(np.full((4, 4, 1), 200, np.float32), np.ones((1, 4, 4)), steps=4)
    grey = np.array([200.0, 175.0, 150.0, 125.0, 100.0]) * 16 / 1000  # the mean pixel after every step, as a logit
    np.testing.assert_allclose(curves, [1 / (1 + np.exp(-grey))] * 2, rtol=1e-5)


def test_methods_that_need_the_range_of_pixels_get_it_and_few_stay_compiled(images, classifier):
    names = ["lrp.epsilon_gamma_box", "gradient", "gradient_times_input", "grad_cam", "lrp.epsilon", "lrp.z_plus"]
    names += ["lrp.flat", "guided_backpropagation", "wbp", "gradient"]
    for name in names:
        assert np.isfinite(classifier.maps(name, images[:1], [0])).all()
    assert len(classifier._explainers) == 8
    assert list(classifier._explainers)[-1] == "gradient"


def test_it_is_prepared_for_any_image_and_leaves_out_what_it_cannot_do(run, images):
    classifier = RunClassifier(run, "plain")
    classifier.prepare(["gradient", "nothing"], images[0])
    assert list(classifier._explainers) == ["gradient", "wbp"]


def test_a_model_that_the_run_does_not_have_is_refused(run):
    with pytest.raises(InvalidArgument, match="Did you mean `plain`"):
        RunClassifier(run, "plane")
