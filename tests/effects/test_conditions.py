"""The three causal conditions, each on a network in which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.conditions import conditional_multi_task, several_classes, single_task
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.errors import InvalidArgument


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.fixture(scope="module")
def labels(planting):
    """Three labels, four concepts: Y = 0 lives on concepts 0 (much) and 1 (little), Z = 1 on 1 and 2, 2 on 3."""
    kernel = np.zeros((4, 3))
    kernel[0, 0], kernel[1, 0] = 3.0, 1.0
    kernel[1, 1], kernel[2, 1] = 2.0, 1.0
    kernel[3, 2] = 2.0
    return kernel, planting.network(kernel, activation="sigmoid")


def concept_effects(model, **options):
    return ConceptEffects(ChannelConcepts(model, "concepts"), **options)


# X -> Y


def test_single_task_reads_one_class(planting, labels):
    _, model = labels
    images = planting.flat_images(np.ones((5, 4)))
    summary = single_task(concept_effects(model), images, 0)
    expected = [sigmoid(1) - sigmoid(4), sigmoid(3) - sigmoid(4), 0, 0]
    np.testing.assert_allclose(summary.effect[:, 0, 0], expected, atol=1e-6)
    assert summary.classes.tolist() == [0]
    one = single_task(concept_effects(model), images, 0, nodes=[1], scale="logit")
    assert one.estimate(1).value == pytest.approx(-1, abs=1e-5)


def test_single_task_reads_the_predicted_class(planting):
    """Each image is predicted by the concept that it shows, and loses its own class by its zero-out."""
    model = planting.network(4 * np.eye(2))
    images = planting.flat_images([[1, 0], [0, 1]])
    summary = single_task(concept_effects(model), images)
    np.testing.assert_allclose(summary.effect[:, 0, 0], [(0.5 - sigmoid(4)) / 2] * 2, atol=1e-6)


# X <- Y


def test_several_classes_reads_all_classes_without_the_known_evidence(planting):
    """Class 1 counts the bright pixels of channel 0, of which the left half of the image has 8 of 16."""
    model = planting.network([[0.0, 8.0, 0.0]])
    images = np.zeros((3, 4, 4, 1), "float32")
    images[:, :, :2] = 1
    mask = np.zeros((1, 4, 4, 1))
    mask[:, :2, :2] = 1
    result = several_classes(ImageEffects(model), images, mask)

    def softmax(z):
        return np.array([1, np.exp(z), 1]) / (2 + np.exp(z))

    np.testing.assert_allclose(result.summary().effect[0, 0], softmax(2) - softmax(4), atol=1e-6)
    painted = several_classes(ImageEffects(model), images, mask, masked_value=0.5, scale="logit")
    np.testing.assert_allclose(painted.summary().effect[0, 0], [0, -1, 0], atol=1e-5)


def test_a_mask_for_every_image_and_none_at_all(planting):
    model = planting.network([[0.0, 8.0], [0.0, 8.0]])
    images = planting.population(3, 0)[..., :2]
    masks = np.zeros((3, 4, 4, 1))
    masks[1] = 1
    masks[2] = 0.5
    result = several_classes(ImageEffects(model), images, masks, masked_value=[0.0, 1.0], scale="logit")
    assert not result.effects[0].any()
    whole = 8 * (1 - images[1, 0, 0].sum())
    half = 4 * (1 - images[2, 0, 0].sum())
    np.testing.assert_allclose(result.effects[1:, 0, 0, 1], [whole, half], atol=1e-5)


@pytest.mark.parametrize(
    ("masks", "value", "text"),
    [
        (np.ones((4, 4, 1)), 0.0, r"`masks`: expected shape \(3, 4, 4, 1\), or one mask for all; received shape \(4, "),
        (np.full((1, 4, 4, 1), 2), 0.0, r"`masks`: expected values in \[0, 1\]; received values in \[2.0, 2.0\]"),
        (np.full((1, 4, 4, 1), np.nan), 0.0, r"`masks`: expected values in \[0, 1\]"),
        ([["a"]], 0.0, r"`masks`: expected an array of numbers; received list"),
        (np.ones((1, 4, 4, 1)), [1.0, 2.0], r"`masked_value`: expected a finite number, or finite values of shape"),
        (np.ones((1, 4, 4, 1)), np.inf, r"`masked_value`: expected a finite number"),
    ],
)
def test_masks_that_cannot_be_used(planting, masks, value, text):
    model = planting.network(np.ones((3, 2)))
    with pytest.raises(InvalidArgument, match=text):
        several_classes(ImageEffects(model), planting.population(3, 0), masks, value)


# Z <- X -> Y


def test_conditional_multi_task_of_labels(planting, labels):
    """Y's strongest concept is its own; the next it shares with Z, and label 2 has none of either."""
    _, model = labels
    images = planting.flat_images(np.ones((6, 4)))
    alone = conditional_multi_task(concept_effects(model), images, cause=0, read=[1, 2])
    assert alone.nodes == (0,)
    assert alone.on_cause().value == pytest.approx(sigmoid(1) - sigmoid(4), abs=1e-6)
    assert alone.on(1).value == pytest.approx(0, abs=1e-6)
    both = conditional_multi_task(concept_effects(model), images, cause=0, top=4)
    assert both.nodes == (0, 1)
    assert both.read == (1, 2)
    np.testing.assert_allclose(both.evidence, [sigmoid(4) - sigmoid(1), sigmoid(4) - sigmoid(3)], atol=1e-6)
    assert both.on_cause().value == pytest.approx(0.5 - sigmoid(4), abs=1e-6)
    assert both.on(1).value == pytest.approx(sigmoid(1) - sigmoid(3), abs=1e-6)
    assert both.on(2).value == pytest.approx(0, abs=1e-6)


def test_the_sign_turns_the_effects_but_not_the_evidence(planting, labels):
    _, model = labels
    images = planting.flat_images(np.ones((6, 4)))
    turned = conditional_multi_task(concept_effects(model, sign="observed_minus_do"), images, cause=0, top=2)
    assert turned.nodes == (0, 1)
    assert turned.evidence.min() > 0
    assert turned.on_cause().value == pytest.approx(sigmoid(4) - 0.5, abs=1e-6)


def test_conditional_multi_task_of_a_softmax(planting):
    """Nothing is shared: a softmax hands what Y loses to Z all the same, and the logits say that nothing was shared."""
    model = planting.network(np.diag([3.0, 1.0, 1.0]))
    images = planting.flat_images(np.ones((4, 3)))
    result = conditional_multi_task(concept_effects(model), images, cause=0, read=[1])
    assert result.nodes == (0,)
    shared = np.exp(1) / (1 + 2 * np.exp(1)) - np.exp(1) / (np.exp(3) + 2 * np.exp(1))
    assert result.on(1).value == pytest.approx(shared, abs=1e-6)
    logits = conditional_multi_task(concept_effects(model), images, cause=0, read=[1], scale="logit")
    assert logits.on(1).value == pytest.approx(0, abs=1e-6)
    assert logits.on_cause().value == pytest.approx(-3, abs=1e-5)


def test_concepts_are_chosen_on_images_of_their_own(planting, labels):
    """The images to choose in lack concept 0."""
    _, model = labels
    images = planting.flat_images(np.ones((4, 4)))
    others = planting.flat_images([[0.0, 1, 1, 1]] * 3)
    result = conditional_multi_task(concept_effects(model), images, cause=0, selection_images=others)
    assert result.nodes == (1,)
    np.testing.assert_allclose(result.evidence, [sigmoid(1) - 0.5], atol=1e-6)
    assert result.on_cause().value == pytest.approx(sigmoid(3) - sigmoid(4), abs=1e-6)
    assert len(result.result.observed) == 4


def test_the_error_of_the_autoencoder_is_no_evidence(planting, labels):
    """The autoencoder halves all concepts. Concept 3 is dead and 0; against the model, even its zero-out lowers Y."""
    _, model = labels
    images = planting.flat_images([[1.0, 1, 1, 0]] * 6)
    concepts = planting.LinearConcepts(model, "concepts", decoder=0.5 * np.eye(4))
    against_model = ConceptEffects(concepts, reference="model")
    with pytest.warns(UserWarning, match="Through the autoencoder"):
        single = against_model(images)
    assert single.effects[:, 3, 0, 0].max() < -0.05
    with pytest.warns(UserWarning, match="Through the autoencoder"):
        result = conditional_multi_task(against_model, images, cause=0, top=4)
    assert result.nodes == (0, 1)
    np.testing.assert_allclose(result.evidence, [sigmoid(2) - sigmoid(0.5), sigmoid(2) - sigmoid(1.5)], atol=1e-6)
    assert result.on_cause().value == pytest.approx(0.5 - sigmoid(4), abs=1e-6)
    dark = planting.flat_images([[0.0, 0, 0.5, 0]] * 6)
    with pytest.raises(InvalidArgument, match=r"`cause`: expected a class that some concept speaks for; received 0"):
        conditional_multi_task(against_model, dark, cause=0)


def test_classes_that_cannot_be_asked_for(planting, labels):
    _, model = labels
    images, effects = planting.flat_images(np.ones((2, 4))), concept_effects(labels[1])
    for options, text in (
        ({"cause": 3}, r"`cause`: expected class indices in \[0, 2\], each once; received \[3\]"),
        ({"cause": 0, "read": [1, 5]}, r"`read`: expected class indices in \[0, 2\], each once; received \[1, 5\]"),
        ({"cause": 0, "read": [0, 1]}, r"`read`: expected classes other than the cause.*; received cause 0, read \[0"),
        ({"cause": 0, "top": 0}, r"`top`: expected an integer of at least 1; received 0"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            conditional_multi_task(effects, images, **options)
    binary = concept_effects(planting.network(np.ones((4, 1)), activation="sigmoid"))
    with pytest.raises(InvalidArgument, match=r"`read`: .*at least one; received cause 0, read \[\]"):
        conditional_multi_task(binary, images, cause=0)
    dark = planting.flat_images(np.zeros((2, 4)))
    with pytest.raises(InvalidArgument, match=r"`cause`: expected a class that some concept speaks for; received 0"):
        conditional_multi_task(concept_effects(model), dark, cause=0)
