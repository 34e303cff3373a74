"""Levels of a run whose concepts were learned, and the network that is left without some of them."""

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tfcausal.browsing.classifier import LoadedClassifier
from tfcausal.browsing.concept_levels import Level, channel_levels, learned_levels, load_autoencoder
from tfcausal.browsing.concept_network import ConceptNetwork
from tfcausal.browsing.interventions import Interventions
from tfcausal.config import config_from_mapping
from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.models.loading import LoadedModel
from tfcausal.runs import RunDirectory
from tfcausal.saliency.wbp import WBP

RUN = {
    "version": 1,
    "name": "made",
    "data": {"source": "textured_digits", "image_size": 48, "channels": 1},
    "backbone": {"name": "all_convolutional", "filters": [4], "strides": [1]},
    "models": {"plain": {"method": "plain"}},
}


@pytest.fixture(scope="module")
def model():
    """A network with a shortcut past the layer whose concepts are taken away."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 1))
    first = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    maps = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="maps")(first)
    both = keras.layers.BatchNormalization()(keras.layers.Add()([first, maps]))
    pooled = keras.layers.GlobalAveragePooling2D()(both)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (6, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def autoencoder(model, images):
    made = ConceptAutoencoder(model, "maps", concepts=3, hidden=4, activation="relu")
    made.compile("adam")
    made.fit(images, epochs=1, verbose=0)
    return made


@pytest.fixture(scope="module")
def measured(tmp_path_factory, model, autoencoder):
    """A run with a trained model and with what the measurement of its effects leaves."""
    run = RunDirectory.create(tmp_path_factory.mktemp("runs"), config_from_mapping(RUN))
    path = run.model_path("plain")
    model.save(path)
    folder = run.path / "effects" / "plain"
    level = folder / "levels" / "maps"
    level.mkdir(parents=True)
    autoencoder.save(level / "autoencoder.keras")
    (level / "agreement.json").write_text(json.dumps({"text": "It agrees."}))
    settings = {"model": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "finished.json").write_text("{}")
    return run


@pytest.fixture
def run(measured, tmp_path):
    """The same, to be changed."""
    return RunDirectory.open(shutil.copytree(measured.path, tmp_path / "made"))


def test_the_levels_of_a_run_are_those_whose_effects_were_measured(measured):
    file = measured.path / "effects" / "plain" / "levels" / "maps" / "autoencoder.keras"
    assert learned_levels(measured, "plain") == (Level("learned maps", "maps", file, "It agrees."),)


@pytest.mark.parametrize("change", ["unfinished", "no settings", "damaged settings", "another model", "no model"])
def test_there_are_none_where_the_measurement_does_not_hold(run, change):
    folder = run.path / "effects" / "plain"
    if change == "unfinished":
        (folder / "finished.json").unlink()
    elif change == "no settings":
        (folder / "settings.json").unlink()
    elif change == "damaged settings":
        (folder / "settings.json").write_text("{")
    elif change == "another model":
        with open(run.model_path("plain"), "ab") as file:
            file.write(b"0")
    else:
        run.model_path("plain").unlink()
    assert learned_levels(run, "plain") == ()


def test_a_damaged_agreement_leaves_the_level(run):
    (run.path / "effects" / "plain" / "levels" / "maps" / "agreement.json").write_text("[]")
    (level,) = learned_levels(run, "plain")
    assert level.agreement == ""


def test_a_model_that_the_run_does_not_have_is_refused(measured):
    with pytest.raises(InvalidArgument, match="Did you mean `plain`"):
        learned_levels(measured, "plane")


def test_learned_concepts_are_taken_away_as_by_concept_effects(measured, model, autoencoder, images):
    base = LoadedClassifier(LoadedModel(model, "a model", ("a", "b", "c"), (-0.5, 0.5)))
    interventions = Interventions(base, learned_levels(measured, "plain"))
    assert [level.name for level in interventions.levels] == ["learned maps", "channels maps", "channels first"]
    changed = images[1]
    found = interventions.compare(images[0], changed, "learned maps", [2, 0])
    network = model(images[:1], training=False).numpy()[0]
    assert_allclose(found.network, network, atol=1e-6)
    assert_allclose(found.before, autoencoder(images[:1])[0], atol=1e-6)
    assert np.abs(found.before - network).max() > 1e-3
    known = autoencoder.downstream.known(images[1:2])
    codes = autoencoder.encode(known[autoencoder.downstream.position]).numpy()
    codes[..., [2, 0]] = 0
    logits = autoencoder.logits_from_codes(known, codes).numpy()[0].astype(np.float64)
    assert_allclose(found.after, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    maps = interventions.concept_maps(images[0], "learned maps", [1])
    assert_allclose(maps[0], autoencoder.codes(images[:1])[0, ..., 1], atol=1e-6)


@pytest.mark.filterwarnings("ignore:Through the autoencoder")
@pytest.mark.parametrize("source", ["autoencoder", "channels"])
def test_the_network_without_concepts_answers_as_concept_effects_say(model, autoencoder, images, source):
    concepts = autoencoder if source == "autoencoder" else ChannelConcepts(model, "maps")
    network = ConceptNetwork(concepts)
    weights = [value.copy() for value in model.get_weights()]
    effects = ConceptEffects(concepts)
    untouched = network.model(images, training=False)
    assert_allclose(untouched, effects.engine.untouched(images)[1][1], atol=1e-6)
    if source == "channels":
        assert_allclose(untouched, model(images, training=False), atol=1e-6)
        assert_allclose(WBP(network.model)(images, [1] * 6), WBP(model)(images, [1] * 6), atol=1e-6)
    for node in (2, 0):
        network.zero([node])
        expected = effects(images, [node]).intervened[:, 0, 0]
        assert_allclose(network.model(images, training=False), expected, atol=1e-6)
    network.zero()
    assert_array_equal(network.model(images, training=False), untouched)
    for kept, now in zip(weights, model.get_weights(), strict=True):
        assert_array_equal(now, kept)
    assert len(model.get_layer("maps")._inbound_nodes) == 1


def test_levels_without_places_have_no_network(model):
    with pytest.raises(UnsupportedOperation, match="feature maps"):
        ConceptNetwork(ChannelConcepts(model, model.layers[-2]))


def test_a_model_without_convolutions_has_no_levels():
    dense = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert channel_levels(OperationGraph(dense)) == ()


def test_a_file_that_is_no_autoencoder_is_refused(measured, tmp_path, model):
    with pytest.raises(InvalidArgument, match="a ConceptAutoencoder"):
        load_autoencoder(measured.model_path("plain"))
    (tmp_path / "damaged.keras").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match="an autoencoder that Keras can load"):
        load_autoencoder(tmp_path / "damaged.keras")


def test_code_in_the_file_of_an_autoencoder_is_not_run(tmp_path, images):
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(4, 3, name="maps")(keras.layers.Lambda(lambda x: x * 2.0)(inputs))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps))
    made = ConceptAutoencoder(keras.Model(inputs, outputs), "maps", concepts=2)
    made.trained = True
    made.save(tmp_path / "autoencoder.keras")
    with pytest.raises(InvalidArgument, match="an autoencoder that Keras can load"):
        load_autoencoder(tmp_path / "autoencoder.keras")
