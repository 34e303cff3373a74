"""What docs/saliency.md says."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal import available_explainers, get_explainer
from tfcausal.saliency.wbp_rules import RULES

DOCUMENT = (Path(__file__).parent.parent / "docs" / "saliency.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def model_with(*layers: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((6, 6, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(2)])


@pytest.fixture
def names():
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    return {
        "model": model_with(),
        "images": images,
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(2),
        "get_explainer": get_explainer,
    }


def block(*words: str) -> str:
    (found,) = [text for text in BLOCKS if all(word in text for word in words)]
    return found


def test_explaining(names):
    exec(compile(block("print(available_explainers())"), "saliency.md", "exec"), names)
    assert names["maps"].shape == (4, 6, 6, 3)


def test_streaming(names):
    exec(compile(block(".stream(dataset"), "saliency.md", "exec"), names)
    assert names["maps"].shape == (2, 6, 6, 1)


def test_registering_a_rule(names, monkeypatch):
    monkeypatch.setattr(RULES, "_rules", dict(RULES._rules))
    exec(compile(block("@register_rule(Gain)"), "saliency.md", "exec"), names)
    model = model_with(names["Gain"]())
    parts = get_explainer("wbp", model).decompose(names["images"])
    assert parts.maps.sum((1, 2, 3)) + parts.bias == pytest.approx(parts.logits, abs=1e-4)


def test_every_method_is_described():
    described = DOCUMENT.partition("## The methods")[2].partition("How much of each")[0]
    for entry in available_explainers():
        name = entry.name.replace("_flat", "") if "alpha2_beta1_flat" in entry.name else entry.name
        assert f"`{name}`" in described, name
