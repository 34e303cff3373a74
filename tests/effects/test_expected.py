"""Effects of concepts: planted causes, hand-derived numbers, and a Keras model with each change built in."""

from __future__ import annotations

import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.engine import run
from tfcausal.effects.equations import effect, expected_effect, posterior_weighted
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.effects.intervals import mean_intervals
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.evaluation.statistics import mean

L = keras.layers


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def channels(model, layer="concepts", **options):
    return ConceptEffects(ChannelConcepts(model, layer), **options)


@pytest.fixture(scope="module")
def planted(planting):
    return planting.planted()


@pytest.fixture(scope="module")
def textures():
    return np.random.default_rng(1).normal(size=(11, 8, 8, 3)).astype("float32")


# Truth


def test_a_planted_cause_has_a_large_effect_and_nothing_else_any(planting, planted):
    result = channels(planted)(planting.population(50, 0))
    np.testing.assert_allclose(result.effects[:, [0, 2]], 0, atol=1e-6)
    summary = result.summary()
    assert summary.estimate(planting.cause, 1).value < -0.2
    assert summary.estimate(planting.cause, 0).value > 0.2
    assert summary.nodes == (0, 1, 2)
    assert summary.n == 50


def test_a_planted_cause_is_found_through_an_autoencoder_that_mixes_the_channels(planting):
    """The layer holds a rotation of the channels; the autoencoder turns it back, so that code 1 is the cause."""
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    model = planting.planted(before=rotation, after=rotation.T)
    concepts = planting.LinearConcepts(model, "concepts", rotation.T, rotation)
    effects = ConceptEffects(concepts)(planting.population(50, 0)).effects
    np.testing.assert_allclose(effects[:, [0, 2]], 0, atol=1e-6)
    plain = channels(planting.planted())(planting.population(50, 0)).effects
    np.testing.assert_allclose(effects[:, 1], plain[:, 1], atol=1e-6)


def test_the_interval_covers_the_truth_in_95_percent_of_200_repetitions(planting, planted):
    """On these images, intervals of 90 % cover it in 91.5 % and intervals of 98 % in 98.5 %."""
    whole = channels(planted)(planting.population(200 * 80, 0), nodes=[planting.cause], classes=[1])
    covered = []
    for seed in range(200):
        part = slice(80 * seed, 80 * (seed + 1))
        result = replace(whole, observed=whole.observed[part], intervened=whole.intervened[part])
        estimate = result.summary(seed=seed).estimate(planting.cause)
        covered.append(estimate.low <= planting.truth <= estimate.high)
    assert 0.925 < np.mean(covered) < 0.975


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_intervals_cover_the_truth_as_often_as_a_bootstrap_of_80_images_does(planting, seed):
    """2000 repetitions. A percentile interval lacks the n / (n - 1) of the variance and Student's wider quantile: of a
    nearly symmetric distribution, 94.5 % of 80 instead of 95 %. Intervals of 90 % and of 98 % would miss by 0.03."""
    n = 80
    expected = 1 - 2 * stats.t.sf(1.959964 * np.sqrt((n - 1) / n), n - 1)
    values = 0.5 - sigmoid(planting.weight * np.random.default_rng(seed).random((n, 2000)))
    _, low, high = mean_intervals(values)
    covered = np.mean((low <= planting.truth) & (planting.truth <= high))
    assert covered == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("layer", ["inside", "norm", "sum", "nested/nested_conv", "both", "shortcut", "pooled"])
def test_equal_to_a_network_with_the_channel_multiplied_by_zero(residual, textures, layer):
    """Shortcuts, concatenations, nested models, features."""
    result = channels(residual, layer)(textures)
    name = layer.rpartition("/")[2]
    width = ChannelConcepts(residual, layer).concepts
    observed = residual(textures, training=False).numpy()
    np.testing.assert_allclose(result.observed, observed, atol=1e-6)
    largest = 0.0
    for node in range(width):
        mask = np.ones(width, "float32")
        mask[node] = 0
        twin = masked_answers(residual, name, mask, textures)
        np.testing.assert_allclose(result.effects[:, node, 0], twin - observed, atol=1e-5)
        largest = max(largest, np.abs(twin - observed).max())
    assert largest > 1e-3


def masked_answers(model, name, mask, images):
    """A whole forward pass of the Keras model while one of its layers multiplies what it gives by a mask."""
    layers = [*model.layers, *model.get_layer("nested").layers]
    layer = next(layer for layer in layers if layer.name == name)
    call = layer.call
    layer.call = lambda *args, **kwargs: call(*args, **kwargs) * mask
    try:
        return model(images, training=False).numpy()
    finally:
        layer.call = call


# What is documented to be exactly zero


def test_what_leaves_the_codes_as_they_are_has_effect_zero_exactly(planting, residual, textures):
    """Whatever a processor does with the rows of a batch: the decoder here adds rounding that differs by row."""

    class Rounding(planting.LinearConcepts):
        def decode(self, codes):
            row = tf.cast(tf.range(tf.shape(codes)[0]), tf.float32)[:, None, None, None]
            return super().decode(codes) * (1 + 1e-3 * row)

    encoder = np.eye(4)
    encoder[:, 2] = 0
    concepts = Rounding(residual, "inside", encoder, np.eye(4))
    for batch_size in (1, 3, None):
        result = ConceptEffects(concepts, batch_size=batch_size)(textures)
        assert not result.effects[:, 2].any()
        assert result.effects[:, 0].any()
        assert result.dead.tolist() == [False, False, True, False]


def test_the_untouched_autoencoder_has_effect_zero_and_its_error_is_seen_against_the_model(planting, planted):
    """Setting a concept to the value that it has leaves the autoencoder untouched."""
    images = planting.flat_images(np.full((5, 3), 0.75))
    concepts = planting.LinearConcepts(planted, "concepts", decoder=0.9 * np.eye(3))
    result = ConceptEffects(concepts)(images, values=0.75)
    assert not result.effects.any()
    assert (result.observed == result.untouched).all()
    against_model = ConceptEffects(concepts, reference="model")(images, values=0.75)
    error = sigmoid(0.9 * 3 * 0.75) - sigmoid(3 * 0.75)
    np.testing.assert_allclose(against_model.effects[..., 1], error, atol=1e-6)
    np.testing.assert_array_equal(against_model.effects[:, 0, 0], against_model.untouched - against_model.observed)


def test_dead_concepts(planting, planted):
    """Zero everywhere: no effect. The same value everywhere: zero-out has one, the values of the data have none."""
    values = np.random.default_rng(0).random((6, 3))
    values[:, 0], values[:, 1] = 0, 0.5
    images, effects = planting.flat_images(values), channels(planted)
    zeroed = effects(images)
    assert zeroed.dead.tolist() == [True, True, False]
    assert not zeroed.effects[:, 0].any()
    np.testing.assert_allclose(zeroed.effects[:, 1, 0, 1], 0.5 - sigmoid(1.5), atol=1e-6)
    for values in ("mean", "range", "sampled"):
        result = effects(images, values=values)
        assert not result.effects[:, [0, 1]].any()
        assert result.dead.tolist() == [True, True, False]
        assert np.isfinite(result.summary().effect).all()
    assert zeroed.summary().columns()["dead"].tolist() == [True, True, True, True, False, False]


def test_a_dead_concept_shows_the_error_of_the_autoencoder_against_the_model(planting, planted):
    """Concept 0 is 0 and concept 1 one half in all images; the autoencoder gives 0.9 of them back."""
    values = np.random.default_rng(0).random((6, 3))
    values[:, 0], values[:, 1] = 0, 0.5
    images, concepts = planting.flat_images(values), planting.LinearConcepts(planted, "concepts", None, 0.9 * np.eye(3))
    error = sigmoid(0.9 * 1.5) - sigmoid(1.5)
    for kind, left_alone in (("zero", [0]), ("mean", [0, 1]), ("range", [0, 1]), ("sampled", [0, 1]), (0.5, [1])):
        through = ConceptEffects(concepts)(images, values=kind)
        assert not through.effects[:, left_alone].any()
        assert not through.summary().effect[left_alone].any()
        result = ConceptEffects(concepts, reference="model")(images, values=kind)
        assert result.dead.tolist() == [True, True, False]
        found, exact = result.effects[:, left_alone], (result.untouched - result.observed)[:, None, None]
        np.testing.assert_array_equal(found, np.broadcast_to(exact, found.shape))
        np.testing.assert_allclose(found[..., 1], error, atol=1e-6)
    another = ConceptEffects(concepts)(images, values=0.75)
    np.testing.assert_allclose(another.effects[:, 1, 0, 1], sigmoid(0.9 * 2.25) - sigmoid(0.9 * 1.5), atol=1e-6)


# Sign, reference, weighting, scale


def test_sign_and_reference_by_hand(planting, planted):
    """Cause 1, halved by the autoencoder: sigmoid(3) in the network, sigmoid(1.5) through it, 1/2 without the cause."""
    images = planting.flat_images(np.ones((4, 3)))
    concepts = planting.LinearConcepts(planted, "concepts", decoder=0.5 * np.eye(3))
    expected = {"autoencoder": 0.5 - sigmoid(1.5), "model": 0.5 - sigmoid(3)}
    for reference, value in expected.items():
        for sign, factor in (("do_minus_observed", 1), ("observed_minus_do", -1)):
            summary = ConceptEffects(concepts, reference, sign)(images).summary()
            np.testing.assert_allclose(summary.effect[1, 0], [-factor * value, factor * value], atol=1e-6)


def test_posterior_weighting_of_a_softmax_by_hand(planting, planted):
    """With d = sigmoid(3 u) - 1/2: (1 - p) d - p d, where p = d + 1/2, is -2 d^2 in every image."""
    values = np.array([0.2, 0.5, 0.9])
    result = channels(planted)(planting.flat_images(np.repeat(values[:, None], 3, 1)))
    summary = result.summary("posterior")
    d = sigmoid(3 * values) - 0.5
    assert summary.effect.shape == (3, 1, 1)
    assert summary.classes.tolist() == [-1]
    assert summary.estimate(1).value == pytest.approx(np.mean(-2 * d**2), abs=1e-6)
    assert summary.estimate(0).value == pytest.approx(0, abs=1e-6)
    assert result.summary().estimate(1, 1).value == pytest.approx(np.mean(-d), abs=1e-6)


def test_posterior_weighting_of_sigmoids_keeps_the_labels_apart(planting):
    """Label c has the probability sigmoid(w_c u): each has its own p_c times effect_c."""
    kernel = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    images = planting.flat_images([[1.0, 1.0], [0.5, 1.0]])
    result = channels(planting.network(kernel, activation="sigmoid"))(images)
    p = sigmoid(np.array([1.0, 0.5])[:, None] * [2.0, 0.0, -1.0])
    effects = 0.5 - p
    summary = result.summary("posterior")
    assert summary.classes.tolist() == [0, 1, 2]
    p_observed = sigmoid(np.array([[2.0, 1.0, -1.0], [1.0, 1.0, -0.5]]))
    np.testing.assert_allclose(summary.effect[0, 0], (p_observed * effects).mean(0), atol=1e-6)
    np.testing.assert_allclose(result.summary().effect[0, 0], effects.mean(0), atol=1e-6)
    np.testing.assert_allclose(result.effects[:, 0, 0, 1], 0, atol=1e-6)


def test_a_binary_head_has_one_class(planting):
    result = channels(planting.network([[2.0], [0.0]], activation="sigmoid"))(planting.flat_images([[1, 1], [2, 1]]))
    assert result.effects.shape == (2, 2, 1, 1)
    summary = result.summary()
    assert summary.estimate(0).value == pytest.approx(np.mean(0.5 - sigmoid([2, 4])), abs=1e-6)
    assert summary.estimate(1).value == pytest.approx(0, abs=1e-6)


def test_logits_by_hand(planting, planted):
    """The logit of class 1 is 3 u, that of class 0 is 0: a softmax passes the effect on, the logits do not."""
    images = planting.population(9, 4)
    result = channels(planted)(images, scale="logit")
    np.testing.assert_allclose(result.effects[:, 1, 0, 1], -3 * images[:, 0, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(result.effects[..., 0], 0, atol=1e-6)
    np.testing.assert_allclose(result.posterior[:, 1], sigmoid(3 * images[:, 0, 0, 1]), atol=1e-6)
    linear = channels(planting.planted(activation=None))(images)
    np.testing.assert_allclose(linear.effects, result.effects, atol=1e-6)
    with pytest.raises(InvalidArgument, match=r"`head`: expected a softmax or sigmoid, .*; received linear"):
        linear.summary("posterior")


# Values of a concept


def test_values_and_their_frequencies_by_hand(planting, planted):
    """The cause is 0.2 in a quarter of the images and 1 in the others."""
    cause = np.array([0.2, 1, 1, 1])
    images = planting.flat_images(np.stack([cause * 0, cause, cause + 1], 1))
    effects, at = channels(planted), sigmoid(3 * cause).astype("float32")

    average = effects(images, values="mean").summary()
    assert average.values[:, 0].tolist() == pytest.approx([0, 0.8, 1.8])
    assert average.estimate(1, 1).value == pytest.approx(np.mean(sigmoid(2.4) - at), abs=1e-6)

    result = effects(images, values="range", points=3)
    np.testing.assert_allclose(result.values, [[0, 0, 0], [0.2, 0.6, 1.0], [1.2, 1.6, 2.0]], atol=1e-6)
    np.testing.assert_allclose(result.frequencies[1:], [[0.25, 0, 0.75], [0.25, 0, 0.75]])
    by_value = [np.mean(sigmoid(3 * value) - at) for value in (0.2, 0.6, 1.0)]
    one_by_one = result.summary(expected=False)
    np.testing.assert_allclose(one_by_one.effect[1, :, 1], by_value, atol=1e-6)
    expected = result.summary()
    assert expected.estimate(1, 1).value == pytest.approx(0.25 * by_value[0] + 0.75 * by_value[2], abs=1e-6)
    assert np.isnan(expected.values).all()
    assert expected.estimate(2, 1).value == pytest.approx(0, abs=1e-6)

    numbers = effects(images, values=[1.0, 0.0])
    assert numbers.values[1].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(numbers.frequencies[1], [0.25, 0.75])
    np.testing.assert_allclose(numbers.frequencies[2], [0.0, 1.0])
    assert effects(images, values=0.5).summary().values[:, 0].tolist() == [0.5] * 3


def test_frequencies_count_places_within_images(planting, planted):
    """One pixel of sixteen is 1, the others 0."""
    images = np.zeros((2, 4, 4, 3), "float32")
    images[:, 1, 2, 1] = 1
    result = channels(planted, batch_size=1)(images, values="range", points=2)
    np.testing.assert_allclose(result.frequencies[1], [15 / 16, 1 / 16])
    average = channels(planted, batch_size=1)(images, values="mean")
    assert average.values[1, 0] == pytest.approx(1 / 16)


def test_sampled_values_are_those_of_other_images(planting, planted):
    """Of two images each gets the value of the other; of many, values that some other image has."""
    images = planting.flat_images([[0.2, 0.3, 0], [0.9, 0.4, 0]])
    result = channels(planting.network(3 * np.eye(3), activation=None))(images, values="sampled", points=4)
    other = 3 * np.array([[0.9, 0.4], [0.2, 0.3]])
    for node in (0, 1):
        np.testing.assert_allclose(result.effects[:, node, :, 2], 0, atol=1e-6)
        found = result.intervened[:, node, :, node]
        np.testing.assert_allclose(found, np.repeat(other[:, node, None], 4, 1), atol=1e-6)
    assert np.isnan(result.values).all()
    np.testing.assert_allclose(result.frequencies, 0.25)

    many = planting.population(30, 5)
    draws = channels(planted)(many, values="sampled", points=200, seed=1).intervened[:, 1, :, 1]
    values = np.log(draws / (1 - draws)) / 3
    nearest = np.abs(values[..., None] - many[:, 0, 0, 1]).argmin(-1)
    np.testing.assert_allclose(values, many[nearest, 0, 0, 1], atol=1e-4)
    assert not (nearest == np.arange(30)[:, None]).any()
    counts = np.bincount(nearest.ravel(), minlength=30)
    assert counts.min() > 130
    assert counts.max() < 280


def test_values_and_frequencies_of_other_images_by_hand(planting, planted):
    """The cause is 0.2 in a quarter of these images and 1 in the others; the images intervened on have it at 2."""
    reference = planting.flat_images(np.array([[0.2, 1, 1, 1]] * 3).T)
    images, effects = planting.flat_images(np.full((2, 3), 2.0)), channels(planted)
    observed = sigmoid(6)
    average = effects(images, values="mean", distribution_images=reference)
    np.testing.assert_allclose(average.effects[:, 1, 0, 1], sigmoid(2.4) - observed, atol=1e-6)
    assert average.values[1, 0] == pytest.approx(0.8)
    spread = effects(images, values="range", points=2, distribution_images=reference)
    np.testing.assert_allclose(spread.values[1], [0.2, 1.0])
    np.testing.assert_allclose(spread.frequencies[1], [0.25, 0.75])
    expected = 0.25 * sigmoid(0.6) + 0.75 * sigmoid(3) - observed
    assert spread.summary().estimate(1, 1).value == pytest.approx(expected, abs=1e-6)
    numbers = effects(images, values=[0.0, 1.0], distribution_images=reference)
    np.testing.assert_allclose(numbers.frequencies[1], [0.25, 0.75])
    np.testing.assert_allclose(effects(images, values=[0.0, 1.0]).frequencies[1], [0, 1])
    drawn = effects(images, values="sampled", points=200, distribution_images=reference).intervened[0, 1, :, 1]
    low, high = (np.isclose(drawn, sigmoid(3 * value), atol=1e-6) for value in (0.2, 1.0))
    assert (low | high).all()
    assert 0.17 < low.mean() < 0.33


@pytest.mark.parametrize("values", ["zero", "mean", "range", "sampled", [0.0, 0.5, 2.0]])
def test_with_a_distribution_the_other_images_of_a_call_do_not_matter(residual, textures, values):
    others = np.random.default_rng(9).normal(size=(7, 8, 8, 3)).astype("float32")
    effects = channels(residual, "norm", batch_size=4)
    whole = effects(textures, values=values, distribution_images=others)
    part = effects(textures[[7, 2]], values=values, distribution_images=others)
    alone = effects(textures[2:3], values=values, distribution_images=others)
    for result, rows in ((part, [7, 2]), (alone, [2])):
        np.testing.assert_allclose(result.effects, whole.effects[rows], atol=1e-6)
        np.testing.assert_array_equal(result.values, whole.values)
        np.testing.assert_array_equal(result.frequencies, whole.frequencies)
    if values in ("mean", "range", "sampled"):
        without = effects(textures[[7, 2]], values=values).effects
        assert np.abs(without - whole.effects[[7, 2]]).max() > 1e-3


def test_a_distribution_of_the_images_themselves_is_the_default(residual, textures):
    effects = channels(residual, "norm", batch_size=4)
    for values in ("mean", "range", [0.0, 0.5, 2.0]):
        given, default = (
            effects(textures, values=values, distribution_images=textures),
            effects(textures, values=values),
        )
        np.testing.assert_array_equal(given.effects, default.effects)
        np.testing.assert_array_equal(given.frequencies, default.frequencies)


def test_sampling_is_seeded(planting, planted):
    images, effects = planting.population(10, 6), channels(planted)
    first, again, other = (effects(images, values="sampled", seed=seed).intervened for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_joint_nodes_are_set_together(residual, textures):
    result = channels(residual, "inside")(textures, nodes=[2, (0, 3)])
    twin = masked_answers(residual, "inside", np.array([0, 1, 1, 0], "float32"), textures)
    np.testing.assert_allclose(result.intervened[:, 1, 0], twin, atol=1e-5)
    assert result.nodes == (2, (0, 3))
    columns = result.summary().columns()
    assert columns["node"].tolist() == [2, 2, 2, -1, -1, -1]
    assert columns["concepts"].tolist() == ["2"] * 3 + ["0+3"] * 3


def test_joint_nodes_are_sampled_from_one_place(planting):
    """Channel 0 is channel 1 in all places: sampled together they stay equal, and the logit 5 (a - b) stays 0."""
    model = planting.network([[5.0], [-5.0]], activation=None)
    values = np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
    images = np.repeat(values, 2, axis=-1)
    result = channels(model)(images, nodes=[(0, 1), 0], values="sampled")
    np.testing.assert_allclose(result.intervened[:, 0], 0, atol=1e-6)
    assert np.abs(result.intervened[:, 1]).max() > 0.1


# Images that were changed


def test_zero_out_on_changed_images_and_both_together(planting, planted):
    """Masking takes half of the cause, zero-out all of it."""
    clean, masked = planting.flat_images([[1, 1.0, 1]] * 3), planting.flat_images([[1, 0.5, 1]] * 3)
    effects = channels(planted)
    assert effects(masked).summary().estimate(1, 1).value == pytest.approx(0.5 - sigmoid(1.5), abs=1e-6)
    both = effects(masked, observed_images=clean)
    assert both.summary().estimate(1, 1).value == pytest.approx(0.5 - sigmoid(3), abs=1e-6)
    assert both.summary().estimate(0, 1).value == pytest.approx(sigmoid(1.5) - sigmoid(3), abs=1e-6)
    alone = ImageEffects(planted)(masked, clean)
    assert alone.summary().estimate(-1, 1).value == pytest.approx(sigmoid(1.5) - sigmoid(3), abs=1e-6)
    logits = ImageEffects(planted, sign="observed_minus_do")(masked, clean, scale="logit")
    assert logits.summary().estimate(-1, 1).value == pytest.approx(1.5, abs=1e-5)
    columns = alone.summary().columns()
    assert columns["node"].tolist() == [-1, -1]
    assert columns["intervention"].tolist() == ["image", "image"]


def test_images_that_were_not_changed_have_effect_zero_exactly(residual, textures):
    changed = textures.copy()
    changed[3:] += 0.1
    for batch_size in (2, None):
        effects = ImageEffects(residual, batch_size=batch_size)(changed, textures).effects
        assert not effects[:3].any()
        assert np.abs(effects[3:]).min() > 0


# Batches, tracing, memory


@pytest.mark.parametrize("values", ["zero", "range", "sampled"])
def test_the_batch_size_changes_nothing_but_rounding(residual, textures, values):
    results = [channels(residual, "norm", batch_size=size)(textures, values=values) for size in (1, 4, None)]
    for result in results[1:]:
        np.testing.assert_allclose(result.effects, results[0].effects, atol=1e-6)
        np.testing.assert_allclose(result.frequencies, results[0].frequencies)
    assert np.abs(results[0].effects).max() > 1e-3


def test_nothing_is_traced_again_for_another_number_of_images_nodes_or_values(planting, residual, textures):
    concepts = planting.LinearConcepts(residual, "inside")
    effects = ConceptEffects(concepts, batch_size=4)
    effects(textures)
    effects(textures, values="range")
    before = dict(concepts.traces)
    effects(textures[:3], nodes=[1], values=0.5)
    effects(textures[:6], nodes=[1, (0, 2)], classes=[2])
    effects(textures[:7], values="range", points=9)
    effects(textures[:7], values=[0.0, 1.0, 2.0])
    assert concepts.traces == before


@pytest.mark.parametrize("batch_size", [1, 5])
def test_rows_per_pass_are_bounded_and_images_are_encoded_once(planting, residual, textures, batch_size):
    concepts = planting.LinearConcepts(residual, "inside", spy=True)
    ConceptEffects(concepts, batch_size=batch_size)(textures, values=[0.0, 0.5, 1.0])
    assert sum(concepts.rows["encode"]) == len(textures)
    assert max(concepts.rows["encode"]) <= batch_size
    # One untouched row for every image, and one for every image, node and value.
    assert sum(concepts.rows["decode"]) == len(textures) * (1 + 4 * 3)
    assert max(concepts.rows["decode"]) <= batch_size


def test_passes_have_equal_sizes(planting, residual, textures):
    """4 nodes of 4 images are 16 rows: 4 passes of 4 at a limit of 5, not three of 5 and one of 1."""
    concepts = planting.LinearConcepts(residual, "inside", spy=True)
    effects = ConceptEffects(concepts)
    effects.engine.rows = 5
    effects(textures[:4])
    assert concepts.rows["decode"] == [4, 4, 4, 4, 4]


def test_limits_follow_from_the_memory_that_activations_take():
    """A million places of 64 channels take 256 MiB a tensor: one row at a time; a small network takes many."""
    inputs = keras.Input((1024, 1024, 3))
    x = L.GlobalAveragePooling2D(name="pooled")(L.Conv2D(64, 1, name="maps")(L.Conv2D(64, 1)(inputs)))
    model = keras.Model(inputs, L.Dense(2)(x))
    engine = channels(model, "maps").engine
    assert (engine.batch_size, engine.rows) == (1, 1)
    last = channels(model, "pooled").engine
    assert (last.batch_size, last.rows) == (1, 256)
    given = channels(model, "maps", batch_size=3).engine
    assert (given.batch_size, given.rows) == (3, 3)


def test_images_of_any_size(planting):
    inputs = keras.Input((None, None, 3))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu", name="maps")(inputs))
    model = keras.Model(inputs, L.Dense(2, activation="softmax")(pooled))
    effects = channels(model, "maps")
    for size in (6, 9):
        images = np.random.default_rng(size).normal(size=(3, size, size + 1, 3)).astype("float32")
        result = effects(images)
        np.testing.assert_allclose(result.observed, model(images), atol=1e-6)
        assert effects(images, values="sampled").effects.any()
    with pytest.raises(
        InvalidArgument, match=r"`images`: expected images that every layer .*; received shape \(2, 1, 1, 3\)"
    ):
        effects(np.ones((2, 1, 1, 3)))


@pytest.mark.parametrize("compiled", [True, False])
def test_an_error_of_tensorflow_is_given_with_what_it_says(compiled):
    """The first line of a compiled function's error says `Graph execution error:`, and the last names an operation."""

    def reshaped(images):
        return (tf.reshape(images, (-1, 7)),)

    signature = [tf.TensorSpec((None, None, None, 1))]
    function = tf.function(reshaped, input_signature=signature) if compiled else reshaped
    with pytest.raises(InvalidArgument, match="TensorFlow says: Input to reshape is a tensor with 32 values") as raised:
        run(function, np.ones((2, 4, 4, 1), "float32"))
    assert "{{" not in str(raised.value)
    assert "size that" not in str(raised.value)


def test_the_network_stays_as_it_is(planting):
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(4, 1, activity_regularizer="l2", name="maps")(inputs)
    x = L.BatchNormalization()(L.Conv2D(4, 1, activity_regularizer="l2")(x))
    model = keras.Model(inputs, L.Dense(2, activation="softmax")(L.GlobalAveragePooling2D()(x)))
    images = planting.population(4, 0)
    model(images)
    losses, weights = [float(loss) for loss in model.losses], model.get_weights()
    channels(model, "maps")(images, values="range")
    assert [float(loss) for loss in model.losses] == losses
    assert all((old == new).all() for old, new in zip(weights, model.get_weights(), strict=True))


# Summaries


def test_intervals_are_those_of_the_mean_of_each_column():
    values = np.random.default_rng(0).normal(size=(37, 3, 2))
    found = mean_intervals(values, seed=4, resamples=300)
    for place in np.ndindex(3, 2):
        estimate = mean(values[:, *place], seed=4, resamples=300)
        np.testing.assert_allclose([part[place] for part in found], [estimate.value, estimate.low, estimate.high])


def test_intervals_do_not_depend_on_the_blocks_that_they_are_computed_in(monkeypatch):
    values = np.random.default_rng(0).normal(size=(37, 11))
    whole = mean_intervals(values, resamples=300)
    monkeypatch.setattr("tfcausal.effects.intervals._BLOCK_VALUES", 700)
    for part, blocked in zip(whole, mean_intervals(values, resamples=300), strict=True):
        np.testing.assert_allclose(blocked, part, rtol=1e-12)


def test_many_intervals_take_less_than_two_seconds():
    values = np.random.default_rng(0).normal(size=(1000, 16, 1, 10)).astype("float32")
    start = time.perf_counter()
    mean_intervals(values)
    assert time.perf_counter() - start < 2


def test_one_image_has_no_interval(planting, planted):
    estimate = channels(planted)(planting.population(1, 0)).summary().estimate(1, 1)
    assert estimate.value < 0
    assert estimate.n == 1
    assert np.isnan([estimate.low, estimate.high]).all()


def test_a_class_that_is_never_predicted_has_its_effect(planting):
    """Class 2 has a probability of about 5e-5 in all images; zeroing what it lives on takes most of that."""
    model = planting.network([[0, 0, 4.0]], bias=[0, 0, -12])
    result = channels(model)(planting.flat_images([[0.5]] * 4))
    before, after = (np.exp(z) / (2 + np.exp(z)) for z in (-10.0, -12.0))
    assert result.observed.argmax(1).max() < 2
    assert result.summary().estimate(0, 2).value == pytest.approx(after - before, rel=1e-3)


def test_effects_towards_a_class_of_every_image(planting):
    model = planting.network([[4.0, 0.0], [0.0, 4.0]])
    images = planting.flat_images([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    result = channels(model)(images)
    own = 0.5 - sigmoid(4)
    predicted = result.towards()
    assert predicted.classes.tolist() == [-1]
    np.testing.assert_allclose(predicted.effect[:, 0, 0], [2 / 3 * own, 1 / 3 * own], atol=1e-6)
    np.testing.assert_allclose(result.towards([0, 1, 0]).effect, predicted.effect)
    one = result.towards(1)
    assert one.classes.tolist() == [1]
    np.testing.assert_allclose(one.effect, result.summary().effect[..., 1:])
    swapped = channels(model)(images, classes=[1, 0])
    np.testing.assert_allclose(swapped.towards([0, 1, 0]).effect, predicted.effect)
    with pytest.raises(InvalidArgument, match=r"`targets`: expected among the classes measured, 1; received class 0"):
        channels(model)(images, classes=[1]).towards(0)


def test_the_columns_of_a_table(planting, planted):
    summary = channels(planted)(planting.population(8, 0), values=[0.0, 1.0]).summary(expected=False)
    columns = summary.columns()
    assert {len(column) for column in columns.values()} == {3 * 2 * 2}
    assert columns["node"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert columns["value"].tolist() == [0, 0, 1, 1] * 3
    assert columns["class"].tolist() == [0, 1] * 6
    for row in range(12):
        estimate = summary.estimate(columns["node"][row], columns["class"][row], int(columns["value"][row]))
        assert (columns["effect"][row], columns["low"][row]) == (estimate.value, estimate.low)
    assert set(columns["intervention"]) == {"values"}
    assert set(columns["n"]) == {8}


def test_some_of_the_classes(residual, textures):
    whole, some = (channels(residual, "inside")(textures, classes=classes) for classes in (None, [2, 0]))
    np.testing.assert_allclose(some.effects, whole.effects[..., [2, 0]], atol=1e-6)
    assert some.summary().classes.tolist() == [2, 0]
    with pytest.raises(InvalidArgument, match=r"`weighting`: expected effects on all classes, .*; received 2 of 3"):
        some.summary("posterior")


# What cannot be measured


def test_an_untrained_autoencoder_is_refused(planting, planted):
    concepts = planting.LinearConcepts(planted, "concepts", trained=False)
    effects = ConceptEffects(concepts)
    with pytest.raises(InvalidArgument, match=r"`concepts`: expected a trained autoencoder; .* Call its `fit` first"):
        effects(planting.population(2, 0))
    concepts.trained = True
    assert effects(planting.population(2, 0)).effects.any()


def test_an_autoencoder_that_changes_the_answers_is_not_called_causal(planting, planted):
    concepts = planting.LinearConcepts(planted, "concepts", decoder=-np.eye(3))
    with pytest.warns(UserWarning, match="the autoencoder changes the answers"):
        result = ConceptEffects(concepts)(planting.population(20, 0))
    assert not result.causal
    assert not result.summary().columns()["causal"].any()
    faithful = channels(planted)(planting.population(20, 0))
    assert faithful.causal
    assert faithful.agreement.divergence.value == 0


def test_a_trained_concept_autoencoder(residual, textures):
    """Its own agreement, answers and codes are those that the effects are made of."""
    autoencoder = ConceptAutoencoder(residual, "sum", concepts=4, hidden=4, kernel_size=1)
    autoencoder.fit(textures, epochs=1, batch_size=4, verbose=0)
    result = ConceptEffects(autoencoder)(textures)
    agreement = autoencoder.agreement(textures)
    assert result.agreement.same_answer == agreement.same_answer
    assert result.agreement.divergence.value == pytest.approx(agreement.divergence.value, rel=1e-3, abs=1e-7)
    assert result.causal
    np.testing.assert_allclose(result.untouched, autoencoder.predict(textures, verbose=0), atol=1e-5)
    code = autoencoder.codes(textures)
    code[..., 2] = 0
    known = autoencoder.downstream.known(tf.constant(textures))
    twin = autoencoder.downstream.output(autoencoder.logits_from_codes(known, tf.constant(code)))
    np.testing.assert_allclose(result.intervened[:, 2, 0], twin, atol=1e-5)
    assert np.abs(result.effects).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": [3]}, r"`nodes`: expected indices of concepts in \[0, 2\], .*; received 3"),
        ({"nodes": [-1]}, r"`nodes`: .*; received -1"),
        ({"nodes": [1, 1]}, r"`nodes`: .*each once; received \[1, 1\]"),
        ({"nodes": [(0, 1), (1, 0)]}, r"`nodes`: .*each once"),
        ({"nodes": [(1, 1)]}, r"`nodes`: .*; received \(1, 1\)"),
        ({"nodes": []}, r"`nodes`: .*; received \[\]"),
        ({"nodes": 1}, r"`nodes`: .*; received 1"),
        ({"nodes": [True]}, r"`nodes`: .*; received True"),
        ({"nodes": [()]}, r"`nodes`: .*; received \(\)"),
        ({"values": "median"}, r"`values`: expected zero, mean, range, sampled, a number.*; received 'median'"),
        ({"values": [0.5, 0.5]}, r"`values`: .*different finite numbers; received \[0.5, 0.5\]"),
        ({"values": []}, r"`values`: .*; received \[\]"),
        ({"values": np.nan}, r"`values`: .*finite numbers; received nan"),
        ({"values": [[1.0]]}, r"`values`: .*; received \[\[1.0\]\]"),
        ({"values": True}, r"`values`: .*different finite numbers; received True"),
        ({"values": [0.5, True]}, r"`values`: .*; received \[0.5, True\]"),
        ({"values": ["0.5"]}, r"`values`: .*; received \['0.5'\]"),
        ({"values": "sampled", "seed": -1}, r"`seed`: expected an integer of at least 0; received -1"),
        ({"values": "sampled", "seed": 1.5}, r"`seed`: expected an integer of at least 0; received 1.5"),
        (
            {"values": "mean", "distribution_images": np.ones((2, 5, 4, 3))},
            r"`distribution_images`: expected an array of shape \(N, 4, 4, 3\)",
        ),
        ({"values": "range", "points": 1}, r"`points`: expected an integer of at least 2; received 1"),
        ({"values": "sampled", "points": 0}, r"`points`: expected an integer of at least 1; received 0"),
        ({"values": "range", "nodes": [(0, 1)]}, r"`values`: expected one value for the joint node \(0, 1\)"),
        ({"values": [0, 1], "nodes": [(0, 1)]}, r"`values`: .*joint node.*; received 2 numbers"),
        ({"scale": "log"}, r"`scale`: expected probability or logit; received 'log'"),
        ({"classes": [2]}, r"`classes`: expected class indices in \[0, 1\], each once; received \[2\]"),
        ({"classes": [1, 1]}, r"`classes`: .*each once"),
        ({"classes": []}, r"`classes`: .*; received \[\]"),
        ({"observed_images": np.ones((2, 4, 4, 3))}, r"`observed_images`: .*\(3, 4, 4, 3\); received shape \(2, 4, 4"),
        ({"observed_images": np.ones((3, 4, 4, 1))}, r"`observed_images`: expected an array of shape \(N, 4, 4, 3\)"),
    ],
)
def test_arguments_outside_their_range(planting, planted, options, text):
    with pytest.raises(InvalidArgument, match=text):
        channels(planted)(planting.population(3, 0), **options)


def test_images_that_the_network_does_not_take(planting, planted):
    effects = channels(planted)
    with pytest.raises(InvalidArgument, match=r"`images`: expected an array of shape \(N, 4, 4, 3\)"):
        effects(np.ones((2, 5, 5, 3)))
    with pytest.raises(InvalidArgument, match="NaN or infinity in image 1"):
        effects(np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), np.nan)]))
    with pytest.raises(InvalidArgument, match="at least two images for sampled values; received 1"):
        effects(planting.population(1, 0), values="sampled")
    with pytest.raises(InvalidArgument, match=r"in its precision; received values up to 1e\+38, with which it gives"):
        effects(np.full((2, 4, 4, 3), 1e38))


def test_constructors_refuse_what_they_do_not_know(planted):
    concepts = ChannelConcepts(planted, "concepts")
    for options, text in (
        ({"reference": "network"}, r"`reference`: expected autoencoder or model; received 'network'"),
        ({"sign": "plus"}, r"`sign`: expected do_minus_observed or observed_minus_do; received 'plus'"),
        ({"batch_size": 0}, r"`batch_size`: expected a positive integer or None; received 0"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            ConceptEffects(concepts, **options)
    with pytest.raises(InvalidArgument, match="`sign`"):
        ImageEffects(planted, sign="plus")
    with pytest.raises(InvalidArgument, match="`batch_size`"):
        ImageEffects(planted, batch_size=True)
    first, second = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    both = keras.Model([first, second], L.Dense(2)(L.Flatten()(L.Add()([first, second]))), name="both")
    with pytest.raises(UnsupportedOperation, match="classifiers of one input; model `both` has 2"):
        ImageEffects(both)


def test_layers_without_channels():
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(2, 1, data_format="channels_first", name="maps")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)), name="first")
    with pytest.raises(UnsupportedOperation, match="Model `first` has its channels first"):
        ChannelConcepts(model, "maps")


def test_summaries_refuse_what_they_do_not_have(planting, planted):
    result = channels(planted)(planting.population(3, 0), values="sampled")
    with pytest.raises(InvalidArgument, match=r"`expected`: expected True for sampled values; received False"):
        result.summary(expected=False)
    with pytest.raises(InvalidArgument, match=r"`weighting`: expected class or posterior; received 'mean'"):
        result.summary("mean")
    for options, text in (
        ({"resamples": 0}, r"`resamples`: expected an integer of at least 1; received 0"),
        ({"resamples": 1.5}, r"`resamples`: expected an integer of at least 1; received 1.5"),
        ({"resamples": "9"}, r"`resamples`: expected an integer of at least 1; received '9'"),
        ({"seed": -1}, r"`seed`: expected an integer of at least 0; received -1"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            result.summary(**options)
        with pytest.raises(InvalidArgument, match=text):
            result.towards(1, **options)
    summary = result.summary()
    with pytest.raises(InvalidArgument, match=r"`node`: expected one of 0, 1, 2; received 5"):
        summary.estimate(5, 0)
    with pytest.raises(InvalidArgument, match=r"`of`: expected one of the classes 0, 1; received None"):
        summary.estimate(1)
    with pytest.raises(InvalidArgument, match=r"`value`: expected a position below 1; received 1"):
        summary.estimate(1, 0, 1)
    with pytest.raises(InvalidArgument, match=r"`value`: expected a position below 1; received 'a'"):
        summary.estimate(1, 0, "a")
    with pytest.raises(InvalidArgument, match=r"`node`: expected one of 0, 1, 2; received array"):
        summary.estimate(np.array([0, 1]), 0)


def test_equations_refuse_what_is_no_probability():
    with pytest.raises(InvalidArgument, match=r"`weights`: expected probabilities with sum 1"):
        expected_effect(np.ones(2), np.array([0.5, 0.6]))
    with pytest.raises(InvalidArgument, match=r"`weights`: expected probabilities with sum 1"):
        expected_effect(np.ones(2), np.array([-0.5, 1.5]))
    with pytest.raises(InvalidArgument, match=r"`weights`: expected one probability for each of the 3 values"):
        expected_effect(np.ones(3), np.array([0.5, 0.5]))
    with pytest.raises(InvalidArgument, match=r"`weights`: expected probabilities with sum 1"):
        expected_effect(np.ones(2), np.array([np.nan, 1.0]))
    with pytest.raises(InvalidArgument, match=r"`weights`: expected shape \(3, 2\); received shape \(4, 2\)"):
        expected_effect(np.ones((3, 2)), np.full((4, 2), 0.5))
    with pytest.raises(InvalidArgument, match=r"`effects`: expected numbers of shape .*; received a single number"):
        expected_effect(5, 1)
    with pytest.raises(InvalidArgument, match=r"`effects`: .*; received dtype <U1"):
        expected_effect(["a", "b"], [0.5, 0.5])
    with pytest.raises(InvalidArgument, match=r"`weights`: .*; received rows of different lengths"):
        expected_effect(np.ones(2), [[0.5, 0.5], [1.0]])
    text = r"`posterior`: expected shape \(3, 2\); received shape \(2, 2\) for effects of shape \(3, 4, 1, 2\)"
    with pytest.raises(InvalidArgument, match=text):
        posterior_weighted(np.ones((3, 4, 1, 2)), np.full((2, 2), 0.5), "softmax")
    with pytest.raises(InvalidArgument, match=r"`posterior`: expected shape \(3, 2\); received shape \(3, 1\)"):
        posterior_weighted(np.ones((3, 2)), np.ones((3, 1)), "sigmoid")
    with pytest.raises(InvalidArgument, match=r"`sign`: expected do_minus_observed or observed_minus_do"):
        effect(1.0, 2.0, "minus")
    with pytest.raises(InvalidArgument, match=r"`head`: expected a softmax or sigmoid"):
        posterior_weighted(np.ones((1, 2)), np.ones((1, 2)), "linear")
    with pytest.raises(InvalidArgument, match=r"`values`: expected at least one observation; received none"):
        mean_intervals(np.ones((0, 2)))
    with pytest.raises(InvalidArgument, match="`seed`: expected an integer of at least 0; received -1"):
        mean_intervals(np.ones((2, 2)), seed=-1)
