"""The section `effects`: what it takes, what it refuses and in which words, and the shipped files that have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import yaml

from tfcausal.config import (
    EffectsConfig,
    config_from_mapping,
    dump_config,
    effects_from_mapping,
    load_config,
    load_effects,
)
from tfcausal.effects.downstream import Downstream
from tfcausal.errors import ConfigError
from tfcausal.models.backbones.applications import chexnet
from tfcausal.models.backbones.two_convolutions import two_convolutions

CONFIGS = Path(__file__).parents[1] / "configs"
RUN: dict[str, Any] = {
    "version": 1,
    "name": "try",
    "data": {"source": "textured_digits"},
    "models": {"plain": {"method": "plain"}},
}


def problems(effects: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        effects_from_mapping(effects)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_the_defaults_are_those_of_the_paper():
    effects = EffectsConfig()
    assert effects.autoencoder is not None
    assert effects.masking is not None
    assert effects.autoencoder.concepts == 16
    assert (effects.masking.share, effects.masking.blocks) == (0.1, (10, 10))
    assert [(attack.name, attack.settings["eps"]) for attack in effects.attacks] == [("fgsm", 0.3)]
    iterative = effects_from_mapping({"attacks": ["bim", "pgd"]}).attacks
    assert [attack.settings["steps"] for attack in iterative] == [10, 10]
    assert (effects.sign, effects.reference, effects.weighting) == ("do_minus_observed", "autoencoder", "class")


def test_a_run_without_the_section_measures_nothing_and_is_written_as_before():
    config = config_from_mapping(RUN)
    assert config.effects is None
    assert "effects" not in dump_config(config)


def test_a_run_with_the_section_survives_a_round_trip(tmp_path):
    section = {
        "levels": ["conv1", {"layer": "backbone/conv2", "nodes": [3, 7]}],
        "values": [0, 0.5],
        "attacks": ["fgsm", {"name": "jsma", "any_size": True}],
        "autoencoder": {"interpretability": "entropy"},
        "classes": ["3", 4],
        "masking": None,
        "detection": {"attacks": ["fgsm"], "fitted_on": "fgsm"},
    }
    config = config_from_mapping({**RUN, "effects": section})
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    effects = load_effects(path)
    assert effects == config.effects
    assert [(level.layer, level.nodes) for level in effects.levels] == [("conv1", None), ("backbone/conv2", (3, 7))]
    assert effects.autoencoder.interpretability == {"entropy": 1.0}


def test_settings_reach_the_section_with_and_without_its_name(tmp_path):
    path = tmp_path / "effects.yaml"
    path.write_text("version: 1\neffects: {images: 3}\n")
    effects = load_effects(path, ["images=8", "effects.autoencoder.concepts=4", "levels=[a]"])
    assert (effects.images, effects.autoencoder.concepts, effects.levels[0].layer) == (8, 4, "a")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"attacks": ["fgms"]}, "effects.attacks[0]: expected `fgsm`, `bim`, `pgd` or `jsma`, or a section such as "),
        ({"attacks": [{"name": "fgms"}]}, "effects.attacks[0].name: expected one of `fgsm`, `bim`, `pgd`, `jsma`; "),
        ({"attacks": [{"name": "fgsm", "epss": 1}]}, "effects.attacks[0].epss: unknown key. Did you mean `eps`?"),
        ({"attacks": [{"name": "fgsm", "eps": 1.5}]}, "effects.attacks[0].eps: expected a number greater than 0 and "),
        ({"attacks": [{"name": "pgd", "eps": 0.1, "eps_step": 0.2}]}, "effects.attacks[0].eps_step: expected at most "),
        ({"attacks": ["pgd", {"name": "pgd"}]}, "effects.attacks: expected every one of them once; received `pgd` 2 "),
        ({"levels": ["a", "a"]}, "effects.levels: expected every one of them once; received `a` 2 times."),
        ({"levels": "conv"}, "effects.levels: expected a list of entries, each a layer by name or path, or a section "),
        ({"levels": [3]}, "effects.levels[0]: expected a layer by name or path, or a section such as "),
        ({"levels": [{"layer": "a", "nodes": [1, 1]}]}, "effects.levels[0].nodes: expected different concepts; "),
        (
            {"levels": [{"layer": "a", "nodes": "all"}]},
            "effects.levels[0].nodes: expected a list of different concepts",
        ),
        ({"levels": [{"layer": "a", "nodes": [-1]}]}, "effects.levels[0].nodes: expected a list of different concepts"),
        (
            {"values": "zeros"},
            "effects.values: expected one of `zero`, `mean`, `range`, `sampled`, a number, or a list",
        ),
        ({"values": [1, 1]}, "effects.values: expected different numbers, at least one; received [1.0, 1.0]."),
        ({"values": "range", "points": 1}, "effects.points: expected at least 2 with values `range`; received 1."),
        ({"masking": {"share": 1}}, "effects.masking.share: expected a number greater than 0 and less than 1; "),
        ({"masking": {"blocks": [0, 3]}}, "effects.masking.blocks[0]: expected an integer of at least 1; received 0."),
        (
            {"autoencoder": {"concepts": 0}},
            "effects.autoencoder.concepts: expected an integer of at least 1; received 0.",
        ),
        (
            {"autoencoder": {"interpretability": ["tw"]}},
            "effects.autoencoder.interpretability.tw: expected one of `tv`,",
        ),
        ({"autoencoder": {"interpretability": []}}, "effects.autoencoder.interpretability: expected names of `tv`, "),
        ({"autoencoder": {"shallow_weight": 0, "deep_weight": 0}}, "effects.autoencoder.shallow_weight: expected a "),
        (
            {"classes": [1.5]},
            "effects.classes: expected a list of names or numbers of classes, or null; received [1.5].",
        ),
        ({"weighting": "posterior", "classes": [1]}, "effects.classes: expected null with weighting `posterior`, "),
        (
            {"detection": {}, "attacks": []},
            "effects.attacks: expected an attack for detection to detect; received none.",
        ),
        ({"detection": {"attacks": ["pgd"]}}, "effects.detection.attacks: expected attacks out of effects.attacks "),
        (
            {"detection": {"fitted_on": "bim"}},
            "effects.detection.fitted_on: expected one of the attacks that are to be ",
        ),
        (
            {"detection": {"shares": [0.5, 0.5]}},
            "effects.detection.shares: expected [share to fit on, share to choose ",
        ),
        ({"nodes": 3}, "effects.nodes: unknown key. Valid keys: levels, autoencoder, values, "),
    ],
)
def test_a_wrong_value_is_named(section, line):
    (found,) = problems(section)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("data", "section", "line"),
    [
        ({}, {"masking": {"blocks": [49, 10]}}, "effects.masking.blocks: expected at most 48 rows and 48 columns, "),
        (
            {},
            {"maps": {"pixel_wise": {"patch": 50}}},
            "effects.maps.pixel_wise.patch: expected at most 48, the shorter ",
        ),
        ({}, {"attacks": ["jsma"]}, "effects.attacks[0]: expected images of at most 4096 pixel values, of which each "),
        ({"source": "image_folder", "path": "x"}, {"split": "test_shuffled"}, "effects.split: expected `train`, "),
    ],
)
def test_what_does_not_go_with_the_images_of_a_run(data, section, line):
    with pytest.raises(ConfigError) as caught:
        config_from_mapping({**RUN, "data": data or RUN["data"], "effects": section})
    assert str(caught.value).splitlines()[1].strip().startswith(line)


def test_jsma_may_be_asked_for_and_small_images_need_not_ask():
    small = {"source": "textured_digits", "image_size": 16, "digit_width": [8, 16]}
    config_from_mapping({**RUN, "data": small, "effects": {"attacks": ["jsma"]}})
    config_from_mapping({**RUN, "effects": {"attacks": [{"name": "jsma", "any_size": True}]}})


def test_files_without_the_section(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(RUN))
    with pytest.raises(ConfigError, match=r"effects: missing; expected a section"):
        load_effects(path)
    path.write_text("version: 1\n")
    with pytest.raises(ConfigError, match=r"effects: missing; expected a section"):
        load_effects(path)
    path.write_text("version: 2\neffects: {}\n")
    with pytest.raises(ConfigError, match="version that this tfcausal reads"):
        load_effects(path)
    with pytest.raises(ConfigError, match="there is none"):
        load_effects(tmp_path / "b.yaml")


BACKBONES = {
    "effects_fashion_mnist": lambda: two_convolutions(),
    "effects_vgg16": lambda: keras.applications.VGG16(classes=5, weights=None, input_shape=(32, 32, 3)),
    "effects_vgg19": lambda: keras.applications.VGG19(classes=5, weights=None, input_shape=(32, 32, 3)),
    "effects_chexnet": lambda: chexnet((32, 32, 3)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_papers_levels_are_layers_of_the_networks_that_the_files_name(name):
    effects = load_effects(CONFIGS / f"{name}.yaml")
    model = BACKBONES[name]()
    for level in effects.levels:
        channels = Downstream(model, level.layer).shape[-1]
        assert max(level.nodes or [0]) < effects.autoencoder.concepts <= channels
    assert (effects.sign, effects.weighting, effects.reference) == ("observed_minus_do", "posterior", "model")


def test_the_papers_levels_have_the_channels_of_its_code():
    """As the authors cut their lists of layers: 64, 128, 256 channels in VGG16, 64, 128, 256, 512 in DenseNet121."""
    for name, expected in (("effects_vgg16", [64, 128, 256]), ("effects_chexnet", [64, 128, 256, 512])):
        model = BACKBONES[name]()
        levels = load_effects(CONFIGS / f"{name}.yaml").levels
        assert [Downstream(model, level.layer).shape[-1] for level in levels] == expected


def test_reading_the_section_imports_no_tensorflow():
    code = (
        "import sys; from tfcausal.effect_study.request import Request, settings; from pathlib import Path; "
        f"here = Path({__file__!r}); "
        f"settings(Request(here, [here], Path({str(CONFIGS / 'effects_vgg16.yaml')!r}))); "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
