"""What docs/effects.md says."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from tfcausal.config import config_from_mapping
from tfcausal.effects.agreement import agreement_of
from tfcausal.errors import ConfigError

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "effects.md").read_text(encoding="utf-8")
L = keras.layers


@pytest.fixture(scope="module")
def two_halves() -> tuple[keras.Model, np.ndarray, np.ndarray, np.ndarray]:
    """Images that are bright on the left (class 0) or on the right (1), and a network that has learned it."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = random.uniform(0, 0.4, (64, 12, 12, 1)).astype("float32")
    masks = np.zeros((64, 12, 12, 1), "float32")
    for index, label in enumerate(labels):
        masks[index, 3:9, 6 * label : 6 * label + 6] = 1
    images = np.clip(images + 0.6 * masks, 0, 1)
    inputs = keras.Input((12, 12, 1))
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs)
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv2")(x)
    network = keras.Model(inputs, L.Dense(2, activation="softmax")(L.Flatten()(x)))
    network.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    network.fit(images, labels, epochs=20, verbose=0)
    return network, images, labels, masks


def test_the_example_runs_and_says_what_the_text_says(two_halves):
    network, images, labels, masks = two_halves
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names = {"network": network, "images": images[:32], "training_images": images, "labels": labels[:32]}
    names["masks"] = masks[:32]
    exec(compile(code, "effects.md", "exec"), names)
    assert names["table"].effect.shape == (8, 1, 2)
    # Masking what speaks for the class takes probability from it: negative with equation 1 as written.
    summary = names["others"].towards(labels[:32])
    assert summary.effect[0, 0, 0] < -0.1
    assert names["linked"].on_cause().value < 0 < names["linked"].on(0).value
    assert names["where"].shape == (32, 12, 12, 1)
    low, high = names["images"].min(), names["images"].max()
    assert np.abs(names["attacked"] - names["images"]).max() == pytest.approx(0.1, abs=1e-6)
    assert 0 <= low <= high <= 1


def test_thresholds_of_a_faithful_autoencoder():
    same, divergence = re.search(
        r"at least (\d+) % of the\s+images, and a mean divergence of at most ([\d.]+) nats", DOCUMENT
    ).groups()
    agreement = agreement_of(np.zeros((4, 2)), np.zeros((4, 2)), "multi_class")
    assert (int(same) / 100, float(divergence)) == (agreement.least_same_answer, agreement.largest_divergence)


def test_settings_that_the_text_names_exist():
    base = {
        "version": 1,
        "name": "try",
        "data": {"source": "textured_digits"},
        "models": {"plain": {"method": "plain"}},
    }
    found = re.findall(r"`((?:sign|reference|values|scale|weighting|autoencoder|levels): [^`]+)`", DOCUMENT)
    assert len(found) >= 7
    for text in found:
        for choice in re.split(r"`, `", text):
            section = yaml.safe_load(choice.split(", posterior")[0])
            assert config_from_mapping({**base, "effects": section}).effects is not None
    with pytest.raises(ConfigError):
        config_from_mapping({**base, "effects": {"sign": "positive"}})


def test_files_that_the_text_names_are_there():
    for name in re.findall(r"\]\(([^)]+\.(?:md|png))\)", DOCUMENT):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(r"configs/\S+\.yaml", DOCUMENT):
        assert (ROOT / name).exists(), name
