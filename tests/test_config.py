import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tfcausal import config as config_module
from tfcausal.config import RunConfig, config_from_mapping, dump_config, load_config
from tfcausal.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
CONFIGS = [path for path in SHIPPED if "models" in yaml.safe_load(path.read_text(encoding="utf-8"))]
SECTIONS = [
    value
    for value in vars(config_module).values()
    if isinstance(value, type) and issubclass(value, config_module.Section) and value is not config_module.Section
]


def digits(**changes: Any) -> dict[str, Any]:
    """A small valid configuration; `a__b=value` replaces the key a.b, `a__b=...` removes it."""
    mapping: dict[str, Any] = {
        "version": 1,
        "name": "try",
        "data": {"source": "textured_digits"},
        "models": {"plain": {"method": "plain"}, "ppi": {"method": "ppi"}},
    }
    return changed(mapping, changes)


def folder(**changes: Any) -> dict[str, Any]:
    return changed(digits(data={"source": "image_folder", "path": "images"}), changes)


def changed(mapping: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        *above, key = path.split("__")
        section = mapping
        for name in above:
            section = section.setdefault(name, {})
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return mapping


def retraining(**changes: Any) -> dict[str, Any]:
    """A valid configuration with a model whose last layer is trained again."""
    mapping = digits(
        data__train_size=800,
        data__balanced_size=250,
        backbone={"name": "two_convolutions"},
        models__d={"method": "dfr", "of": "plain"},
    )
    return changed(mapping, changes)


def problems(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_everything_but_a_few_keys_has_a_default() -> None:
    config = config_from_mapping(digits())
    assert config.seed == 0
    assert config.data.image_shape == (48, 48, 3)
    assert config.backbone.filters == (32, 32, 64, 64, 64)
    assert config.backbone.strides == (1, 2, 1, 2, 1)
    assert config.training.batch_size == 32
    assert config.evaluation.minimum_group_size == 10
    assert config.report.title is None
    assert config_from_mapping(folder()).data.image_shape == (96, 96, 3)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_described(section: type[BaseModel]) -> None:
    assert section.__doc__
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "run.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert config.name == path.stem


def test_the_shipped_configs_are_found() -> None:
    assert {"quickstart", "wbc", "textured_digits_effects", "effects_fashion_mnist"} <= {path.stem for path in CONFIGS}
    assert {path.stem for path in SHIPPED} - {path.stem for path in CONFIGS} == {
        "effects_chexnet",
        "effects_vgg16",
        "effects_vgg19",
    }


@pytest.mark.parametrize(
    "mapping",
    [
        digits(name="1e-3", report={"title": "on"}),
        digits(name="2024-01-01", report={"title": "010"}),
        digits(training={"learning_rate": 1e-7}, report={"title": "1:30"}),
        digits(report={"title": "null"}, models__ppi={"method": "ppi", "contrast": "negated"}),
        digits(models__ppi={"method": "ppi", "threshold_quantile": 0.9, "second_order": False}),
        digits(models__ppi={"method": "ppi", "masked_value": 0.25}, training__weight_decay=1e-4),
        digits(
            models__g={"method": "gain", "supervision_weight": 10}, backbone={"name": "vgg", "blocks": [[8], [4, 4]]}
        ),
        retraining(models__d__inverse_strengths=[0.1]),
        folder(
            data__exclude_classes=["0o7", "yes", "~", "ünï", "a: b\n#c"], data__path=".nan", data__image_size=[40, 64]
        ),
    ],
    ids=range(9),
)
def test_dump_loads_back_to_an_equal_config(mapping: dict[str, Any], tmp_path: Path) -> None:
    config = config_from_mapping(mapping)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_dump_keeps_the_order_of_declaration_and_short_lists_on_one_line() -> None:
    lines = dump_config(config_from_mapping(dict(reversed(digits().items())))).splitlines()
    top = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    assert top == ["version", "name", "seed", "data", "backbone", "training", "models", "evaluation", "report"]
    assert "  filters: [32, 32, 64, 64, 64]" in lines


def test_a_config_does_not_change() -> None:
    config = config_from_mapping(digits())
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3


# What is filled in.


def test_the_default_threshold_applies_only_without_a_quantile() -> None:
    models = {
        "neither": {"method": "ppi"},
        "nulls": {"method": "ppi", "threshold": None, "threshold_quantile": None},
        "fixed": {"method": "ppi", "threshold": 0.5},
        "quantile": {"method": "ppi", "threshold_quantile": 0.9},
    }
    config = config_from_mapping(digits(models=models))
    found = {name: (model.threshold, model.threshold_quantile) for name, model in config.models.items()}
    assert found == {"neither": (0.25, None), "nulls": (0.25, None), "fixed": (0.5, None), "quantile": (None, 0.9)}


def test_without_second_order_the_map_is_not_regularised() -> None:
    models = {"first": {"method": "ppi", "second_order": False}, "second": {"method": "ppi"}}
    config = config_from_mapping(digits(models=models))
    assert config.models["first"].regularisation_weight == 0.0
    assert config.models["second"].regularisation_weight == 0.1


def test_the_divergence_limit_belongs_to_the_negated_contrast() -> None:
    models = {
        "bounded": {"method": "ppi"},
        "default": {"method": "ppi", "contrast": "negated"},
        "given": {"method": "ppi", "contrast": "negated", "divergence_limit": 5},
    }
    config = config_from_mapping(digits(models=models))
    assert [model.divergence_limit for model in config.models.values()] == [None, 20.0, 5.0]


def test_the_share_of_masks_belongs_to_the_methods_that_take_masks() -> None:
    models = {
        "plain": {"method": "plain"},
        "ppi": {"method": "ppi"},
        "cfcn": {"method": "cfcn", "mask_share": 0.5},
        "rrr": {"method": "rrr"},
        "gain": {"method": "gain"},
        "gain_ext": {"method": "gain", "supervision_weight": 10},
        "gain_some": {"method": "gain", "supervision_weight": 10, "mask_share": 0.25},
        "dfr": {"method": "dfr", "of": "plain"},
    }
    config = config_from_mapping(retraining(models=models, models__cfcn__variant="F"))
    assert [model.masks for model in config.models.values()] == [None, None, 0.5, 1.0, None, 1.0, 0.25, None]


def test_epochs_of_a_model_are_its_own_or_those_of_all() -> None:
    config = config_from_mapping(retraining(models__plain__epochs=60))
    assert [config.epochs_of(name) for name in config.models] == [60, 25, 0]


def test_a_number_stands_for_all_channels_of_a_masked_value() -> None:
    models = {"one": {"method": "ppi", "masked_value": 0.5}, "each": {"method": "gain", "masked_value": [0, -0.5, 0.1]}}
    config = config_from_mapping(digits(models=models))
    assert [model.masked_value for model in config.models.values()] == [(0.5,), (0.0, -0.5, 0.1)]


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [
        ({}, "AllConvolutionalConfig"),
        ({"dropout": 0.1}, "AllConvolutionalConfig"),
        ({"name": "vgg", "blocks": [[8], [16, 16]], "dense_units": [], "batch_norm": True}, "VGGConfig"),
        ({"name": "vgg11", "dense_units": [512]}, "VGG11Config"),
        ({"name": "vgg16", "weights": "imagenet"}, "VGG16Config"),
        ({"name": "vgg19", "batch_norm": True}, "VGG19Config"),
        ({"name": "inception_v3", "weights": "weights_notop.h5"}, "InceptionV3Config"),
        ({"name": "densenet121", "dropout": 0.2}, "DenseNet121Config"),
        ({"name": "two_convolutions", "filters": [8, 16]}, "TwoConvolutionsConfig"),
    ],
)
def test_the_backbone_is_chosen_by_its_name(backbone: dict[str, Any], kind: str, tmp_path: Path) -> None:
    config = config_from_mapping(folder(backbone=backbone))
    assert type(config.backbone).__name__ == kind
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_what_could_be_imported_before_the_sections_had_modules_of_their_own() -> None:
    names = "CONFIG_VERSION DIGIT_IMAGES LARGEST_DIGIT_IMAGE DEFAULT_THRESHOLD DEFAULT_DIVERGENCE_LIMIT PositiveInt "
    names += (
        "PositiveNumber NonNegativeNumber SplitSize OpenShare Pair PositiveInts RunName ModelName Channels Section "
    )
    names += "TexturedDigitsConfig ImageFolderConfig AllConvolutionalConfig TrainingConfig PlainConfig PPIConfig "
    names += "CFCNConfig EvaluationConfig ReportConfig DataConfig ModelConfig RunConfig load_config dump_config "
    names += "config_from_mapping Saliency Expects ConfigError"
    assert not [name for name in names.split() if not hasattr(config_module, name)]


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        ({"filters": [8, 8, 8]}, (1, 2, 1)),
        ({"filters": [8, 8, 8], "strides": None}, (1, 2, 1)),
        ({"filters": [8, 8, 8], "strides": 2}, (2, 2, 2)),
        ({"filters": [8, 8], "strides": [2, 1]}, (2, 1)),
    ],
)
def test_strides_are_resolved_to_one_per_filter(backbone: dict[str, Any], strides: tuple[int, ...]) -> None:
    assert config_from_mapping(digits(backbone=backbone)).backbone.strides == strides


def test_image_size_may_be_one_integer() -> None:
    assert config_from_mapping(folder(data__image_size=64)).data.image_shape == (64, 64, 3)
    assert config_from_mapping(folder(data__image_size=[40, 64], data__channels=1)).data.image_shape == (40, 64, 1)


def test_an_integer_is_accepted_for_a_float() -> None:
    alpha = config_from_mapping(digits(models__c={"method": "cfcn", "alpha": 2})).models["c"].alpha
    assert alpha == 2.0
    assert type(alpha) is float


# What is wrong.

INTEGER = "an integer of at least 1"
POSITIVE = "a number greater than 0"
SEED = f"an integer of at least 0 and less than {2**32}"
RUN_NAME = "a name of letters, digits, `-`, `_` and `.` that starts with a letter or a digit"
MODEL_NAME = "a name of letters, digits, `_` and `-` that starts with a letter or a digit"
SECTION = "a section with keys below it"
MODELS = "a section with one entry per model, such as `plain: {method: plain}`"
PAIR = "[narrowest, widest], two integers of at least 8"
SIZE = "an integer of at least 1, or [height, width]"
STRIDES = "an integer of at least 1, or one per entry of filters"
SOURCE = "one of `textured_digits`, `image_folder`"
METHOD = "one of `plain`, `ppi`, `cfcn`, `gain`, `rrr`, `dfr`"
BACKBONE = (
    "one of `all_convolutional`, `vgg`, `vgg11`, `vgg16`, `vgg19`, `inception_v3`, `densenet121`, `two_convolutions`"
)
UNITS = "a list of entries, each an integer of at least 1"
BLOCKS = "a list of at least one entry, each a list of at least one entry, each an integer of at least 1"
MASKED_VALUE = "a number of at least -0.5 and at most 0.5, or one per channel"
STRATEGY = "one of `auto`, `one_device`, `mirrored`, `multi_worker`"
PRECISION = "one of `float32`, `mixed_float16`, `mixed_bfloat16`"


@pytest.mark.parametrize(
    ("base", "path", "value", "expected", "received"),
    [
        (digits, "training.epochs", "3", INTEGER, '"3" (text). Remove the quotes.'),
        (digits, "training.epochs", "three", INTEGER, '"three" (text).'),
        (digits, "training.epochs", True, INTEGER, "true."),
        (digits, "training.epochs", 3.0, INTEGER, "3.0."),
        (digits, "training.epochs", 0, INTEGER, "0."),
        (digits, "training.epochs", None, INTEGER, "nothing (null)."),
        (digits, "training.learning_rate", True, POSITIVE, "true."),
        (digits, "training.learning_rate", 0, POSITIVE, "0."),
        (digits, "training.learning_rate", float("nan"), POSITIVE, "nan (not finite)."),
        (digits, "training.optimizer", "adm", "one of `adam`, `sgd`", '"adm" (text). Did you mean `adam`?'),
        (digits, "training.optimizer", "lion", "one of `adam`, `sgd`", '"lion" (text).'),
        (digits, "training", [1], SECTION, "[1]."),
        (digits, "training", None, SECTION, "nothing (null)."),
        (digits, "seed", 2**32, SEED, f"{2**32}."),
        (digits, "seed", -1, SEED, "-1."),
        (digits, "name", 2024, RUN_NAME, "2024. Put it in quotes."),
        (digits, "name", "a/b", RUN_NAME, '"a/b" (text).'),
        (digits, "name", "..", RUN_NAME, '".." (text).'),
        (digits, "version", True, "`1`", "true."),
        (digits, "version", "1", "`1`", '"1" (text). Remove the quotes.'),
        (digits, "data.source", "image_foldr", SOURCE, '"image_foldr" (text). Did you mean `image_folder`?'),
        (digits, "data.digit_width", [10], PAIR, "[10]."),
        (digits, "data.digit_width", 20, PAIR, "20."),
        (digits, "data.channels", 4, "one of `1`, `3`", "4."),
        (digits, "data.channels", True, "one of `1`, `3`", "true."),
        (digits, "data.contrast", 0.6, "a number greater than 0 and at most 0.5", "0.6."),
        (digits, "data.context_strength", 1.5, "a number of at least 0 and at most 1", "1.5."),
        (folder, "data.path", "", "text that is not empty", '"" (text).'),
        (folder, "data.image_size", [96, 96, 3], SIZE, "[96, 96, 3]."),
        (folder, "data.image_size", "96x96", SIZE, '"96x96" (text).'),
        (folder, "data.exclude_classes", "a", "a list of entries, each text", '"a" (text).'),
        (folder, "data.on_error", "skp", "one of `raise`, `skip`", '"skp" (text). Did you mean `skip`?'),
        (digits, "backbone.filters", [], f"a list of at least one entry, each {INTEGER}", "[]."),
        (digits, "backbone.strides", [1, 0, 1, 1, 1], STRIDES, "[1, 0, 1, 1, 1]."),
        (digits, "backbone.name", "conv", BACKBONE, '"conv" (text).'),
        (digits, "backbone.name", None, BACKBONE, "nothing (null)."),
        (digits, "backbone", 3, SECTION, "3."),
        (digits, "backbone.dropout", 1, "a number of at least 0 and less than 1", "1."),
        (digits, "backbone.head", "dense", "one of `class_maps`, `feature_maps`", '"dense" (text).'),
        (digits, "training.precision", "half", PRECISION, '"half" (text).'),
        (digits, "training.strategy", "mirror", STRATEGY, '"mirror" (text). Did you mean `mirrored`?'),
        (digits, "training.weight_decay", -0.1, "a number of at least 0", "-0.1."),
        (digits, "data.balanced_size", -1, "0, or an integer of at least 10", "-1."),
        (digits, "data.balanced_size", 9, "0, or an integer of at least 10", "9."),
        (digits, "models", {}, MODELS, "an empty section."),
        (digits, "models.x", "ppi", SECTION, '"ppi" (text).'),
        (digits, "models.x.method", "ppl", METHOD, '"ppl" (text). Did you mean `ppi`?'),
        (digits, "models.x.method", None, METHOD, "nothing (null)."),
        (digits, "models.ppi.second_order", 1, "true or false", "1."),
        (digits, "models.ppi.threshold", 1, "a number greater than 0 and less than 1, or null", "1."),
        (digits, "models.ppi.sharpness", {"a": 1}, POSITIVE, "a section (keys: a)."),
        (digits, "models.ppi.contrast_weight", -1, "a number of at least 0", "-1."),
        (digits, "models.ppi.mask", "circle", "one of `soft`, `box`", '"circle" (text).'),
        (
            digits,
            "models.ppi.regularised",
            "labels",
            "one of `label`, `all_classes`",
            '"labels" (text). Did you mean `label`?',
        ),
        (digits, "models.ppi.masked_value", 0.6, MASKED_VALUE, "0.6."),
        (digits, "models.ppi.masked_value", [], MASKED_VALUE, "[]."),
        (digits, "models.ppi.masked_value", "grey", MASKED_VALUE, '"grey" (text).'),
        (digits, "models.ppi.epochs", 0, f"{INTEGER}, or null", "0."),
        (digits, "models.ppi.ramp_epochs", -1, "an integer of at least 0", "-1."),
        (digits, "models.ppi.layer", "", "text that is not empty, or null", '"" (text).'),
        (digits, "models.plain.epochs", True, f"{INTEGER}, or null", "true."),
        (digits, "report.title", 3, "text, or null", "3. Put it in quotes."),
    ],
)
def test_a_wrong_value(base: Callable[..., Any], path: str, value: object, expected: str, received: str) -> None:
    mapping = base(**{path.replace(".", "__"): value})
    assert problems(mapping) == [f"{path}: expected {expected}; received {received}"]


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (
            digits(backbone__filters=[8, "8"]),
            'backbone.filters[1]: expected an integer of at least 1; received "8" (text). Remove the quotes.',
        ),
        (
            folder(data__exclude_classes=["a", 1]),
            "data.exclude_classes[1]: expected text; received 1. Put it in quotes.",
        ),
        (digits(models={"a b": {"method": "plain"}}), f'models.a b: expected {MODEL_NAME}; received "a b" (text).'),
        (digits(models={3: {"method": "plain"}}), f"models.3: expected {MODEL_NAME}; received 3. Put it in quotes."),
        (
            digits(models__c={"method": "cfcn", "mask_share": 0}),
            "models.c.mask_share: expected a number greater than 0 and at most 1; received 0.",
        ),
        (
            digits(models__c={"method": "cfcn", "variant": "c"}),
            'models.c.variant: expected one of `C`, `F`; received "c" (text).',
        ),
        (
            digits(models__c={"method": "cfcn", "resize": "mask"}),
            'models.c.resize: expected one of `masks`, `maps`; received "mask" (text). Did you mean `masks`?',
        ),
        (
            digits(models__g={"method": "gain", "threshold": 1}),
            "models.g.threshold: expected a number greater than 0 and less than 1; received 1.",
        ),
        (
            digits(models__r={"method": "rrr", "penalty_weight": -1}),
            "models.r.penalty_weight: expected a number of at least 0; received -1.",
        ),
        (
            digits(models__g={"method": "gain", "supervision_weight": True}),
            "models.g.supervision_weight: expected a number of at least 0; received true.",
        ),
        (
            digits(backbone={"name": "vgg", "blocks": [[8], 3]}),
            "backbone.blocks[1]: expected a list of at least one entry, each an integer of at least 1; received 3.",
        ),
        (digits(backbone={"name": "vgg", "blocks": 3}), f"backbone.blocks: expected {BLOCKS}; received 3."),
        (digits(backbone={"name": "vgg", "blocks": []}), f"backbone.blocks: expected {BLOCKS}; received []."),
        (digits(backbone={"name": "vgg11", "dense_units": 3}), f"backbone.dense_units: expected {UNITS}; received 3."),
        (
            digits(backbone={"name": "vgg16", "weights": ""}),
            'backbone.weights: expected text that is not empty, or null; received "" (text).',
        ),
        (
            digits(backbone={"name": "two_convolutions", "filters": [8]}),
            "backbone.filters: expected two integers of at least 1; received [8].",
        ),
        (
            digits(models__d={"method": "dfr", "of": "plain", "inverse_strengths": []}),
            "models.d.inverse_strengths: expected a list of at least one entry, each a number greater than 0; "
            "received [].",
        ),
    ],
)
def test_a_wrong_entry(mapping: dict[str, Any], line: str) -> None:
    assert problems(mapping) == [line]


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (digits(version=...), "version: missing; expected `1`."),
        (digits(name=...), f"name: missing; expected {RUN_NAME}."),
        (digits(data=...), f"data: missing; expected {SECTION}."),
        (digits(data__source=...), f"data.source: missing; expected {SOURCE}."),
        (folder(data__path=...), "data.path: missing; expected text that is not empty."),
        (digits(models=...), f"models: missing; expected {MODELS}."),
        (digits(models__x={"alpha": 1}), f"models.x.method: missing; expected {METHOD}."),
        (digits(models__x={"method": "dfr"}), f"models.x.of: missing; expected {MODEL_NAME}."),
    ],
)
def test_a_missing_key(mapping: dict[str, Any], line: str) -> None:
    assert problems(mapping) == [line]


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (digits(models__ppi__contrast_weigth=1), "models.ppi.contrast_weigth: Did you mean `contrast_weight`?"),
        (digits(trainig={}), "trainig: Did you mean `training`?"),
        (digits(report__colour=1), "report.colour: Valid keys: images, title, snapshot_epochs."),
        (digits(models__plain__alpha=1), "models.plain.alpha: Valid keys: method, epochs."),
        (digits(models__plain__mask_share=1.0), "models.plain.mask_share: Valid keys: method, epochs."),
        (
            digits(models__x={"method": "cfcn", 1: 2}),
            "models.x.1: Valid keys: method, epochs, mask_share, alpha, variant, layer, resize, warm_up_epochs, "
            "ramp_epochs.",
        ),
        (
            digits(backbone={"name": "vgg", "filters": [8]}),
            "backbone.filters: Valid keys: name, blocks, batch_norm, dense_units, dropout.",
        ),
        (
            digits(backbone__unit=3),
            "backbone.unit: Valid keys: name, filters, strides, dropout, class_map_activation, head, feature_maps.",
        ),
        (folder(data__validation_size=9), "data.validation_size: Did you mean `validation_share`?"),
    ],
)
def test_an_unknown_key(mapping: dict[str, Any], line: str) -> None:
    assert problems(mapping) == [line.replace(": ", ": unknown key. ", 1)]


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        (
            digits(models__ppi__threshold=0.2, models__ppi__threshold_quantile=0.9),
            "models.ppi.threshold: expected either threshold or threshold_quantile; received threshold 0.2 and "
            "threshold_quantile 0.9. Set the one that you do not want to null.",
        ),
        (
            digits(models__ppi__second_order=False, models__ppi__regularisation_weight=0.1),
            "models.ppi.regularisation_weight: expected 0 where second_order is false, because the map then passes no "
            "gradient on; received 0.1. Set regularisation_weight to 0, or second_order to true.",
        ),
        (
            digits(models__ppi__divergence_limit=20),
            "models.ppi.divergence_limit: expected no limit with contrast `one_vs_rest`, whose loss is bounded; "
            "received 20.0. Set divergence_limit to null, or contrast to `negated`.",
        ),
        (
            digits(models__ppi__divergence_limit=20, models__ppi__contrast="probability"),
            "models.ppi.divergence_limit: expected no limit with contrast `probability`, whose loss is bounded; "
            "received 20.0. Set divergence_limit to null, or contrast to `negated`.",
        ),
        (
            digits(models__ppi__layer="block1_conv"),
            "models.ppi.layer: expected no layer with saliency `wbp`, which shows the pixels; "
            'received "block1_conv" (text). Set layer to null, or saliency to `grad_cam`.',
        ),
        (
            digits(models__ppi__largest_component=True),
            "models.ppi.largest_component: expected false with mask `soft`, which has no box; received true. "
            "Set largest_component to false, or mask to `box`.",
        ),
        (
            digits(models__ppi__masked_value=[0.0, 0.1]),
            "models.ppi.masked_value: expected one number, or one per channel (3, see data.channels); "
            "received [0.0, 0.1].",
        ),
        (
            digits(models__ppi__epochs=2),
            "models.ppi.warm_up_epochs: expected fewer than models.ppi.epochs (2); received 2. "
            "Otherwise this is plain training.",
        ),
        (
            digits(models__g={"method": "gain", "warm_up_epochs": 5, "ramp_epochs": 20}),
            "models.g.ramp_epochs: expected fewer than the epochs after the warm-up (25 - 5, see training.epochs); "
            "received 20. Otherwise the weights never reach their values.",
        ),
        (
            digits(models__r={"method": "rrr", "warm_up_epochs": 30}),
            "models.r.warm_up_epochs: expected fewer than training.epochs (25); received 30. "
            "Otherwise this is plain training.",
        ),
        (
            digits(models__g={"method": "gain", "mask_share": 0.5}),
            "models.g.mask_share: expected no share where supervision_weight is 0, because no mask is then used; "
            "received 0.5. Set mask_share to null, or supervision_weight above 0.",
        ),
        (
            digits(models__g={"method": "gain", "attention_weight": 0}),
            "models.g.attention_weight: expected attention_weight or supervision_weight above 0; received 0 and 0. "
            "Otherwise this is plain training.",
        ),
        (
            digits(models__c={"method": "cfcn", "layer": "block1_conv"}),
            "models.c.layer: expected no layer with variant `C`, which has the class maps before the pooling; "
            'received "block1_conv" (text). Set layer to null, or variant to `F`.',
        ),
        (
            digits(models__c={"method": "cfcn"}, backbone={"name": "two_convolutions"}),
            "models.c.variant: expected `F` with a backbone that does not end with class maps; received `C`. "
            "Or set backbone.name to `all_convolutional`.",
        ),
        (
            retraining(models__d__of="d"),
            'models.d.of: expected another model of this run that is trained (plain, ppi); received "d" (text).',
        ),
        (
            retraining(data__balanced_size=0),
            "data.balanced_size: expected images for method dfr (models.d); 220 give every digit on every texture "
            "twice; received 0. Lower the other sizes for them.",
        ),
        (
            retraining(backbone={"filters": [8]}),
            "backbone.name: expected a backbone that ends with a dense layer for method dfr (models.d), such as `vgg`; "
            "received `all_convolutional`.",
        ),
        (
            digits(data__balanced_size=10),
            "data.train_size: expected train_size + validation_size + test_size + balanced_size of at most 1797, the "
            "number of digit images; received 1100 + 200 + 497 + 10 = 1807. Lower one of the four.",
        ),
        (
            digits(data__balanced_size=100, data__train_size=900, data__image_size=69),
            "data.image_size: expected at most 68 with a balanced_size, the largest patch that is left then; "
            "received 69. Lower it, or set balanced_size to 0.",
        ),
        (
            digits(backbone={"name": "vgg16", "weights": "imagenet", "batch_norm": True}),
            "backbone.weights: expected null with batch_norm, for which there are no weights; "
            'received "imagenet" (text). Set weights to null, or batch_norm to false.',
        ),
        (
            digits(backbone={"name": "densenet121", "weights": "imagenet"}, data__channels=1),
            "data.channels: expected 3 with pretrained weights, which are those of colour images; received 1. "
            "Set data.channels to 3, or backbone.weights to null.",
        ),
        (
            digits(backbone={"name": "inception_v3"}),
            "data.image_size: expected at least 75 with backbone `inception_v3`, because its first layers do not pad "
            "it; received 48x48.",
        ),
        (
            digits(backbone={"name": "vgg", "blocks": [[8]] * 6}),
            "data.image_size: expected at least 64 with backbone `vgg`, because each of the 6 blocks halves it; "
            "received 48x48.",
        ),
        (
            digits(models__ppi__warm_up_epochs=25),
            "models.ppi.warm_up_epochs: expected fewer than training.epochs (25); received 25. "
            "Otherwise this is plain training.",
        ),
        (
            digits(training__batch_size=1),
            "training.batch_size: expected at least 2 with method ppi (models.ppi), which masks with another sample's "
            "map; received 1.",
        ),
        (
            digits(backbone={"filters": [8, 8], "strides": [1, 2, 1]}),
            "backbone.strides: expected one stride per entry of filters (2); received 3 ([1, 2, 1]). "
            "Give as many, or a single integer.",
        ),
        (
            digits(data__image_size=8, data__digit_width=[8, 8], backbone__strides=2),
            "backbone.strides: expected strides with a product of at most the image size (8x8, see data.image_size); "
            "received a product of 32.",
        ),
        (
            digits(data__digit_width=[28, 49]),
            "data.digit_width: expected [narrowest, widest] in ascending order, from 8 to image_size (48); "
            "received [28, 49].",
        ),
        (
            digits(data__digit_width=[30, 20]),
            "data.digit_width: expected [narrowest, widest] in ascending order, from 8 to image_size (48); "
            "received [30, 20].",
        ),
        (
            digits(data__train_size=1101),
            "data.train_size: expected train_size + validation_size + test_size of at most 1797, the number of digit "
            "images; received 1101 + 200 + 497 = 1798. Lower one of the three.",
        ),
        (
            folder(data__validation_share=0.5, data__test_share=0.5),
            "data.validation_share: expected validation_share + test_share below 1; received 0.5 + 0.5. "
            "Leave a share for training.",
        ),
    ],
)
def test_keys_that_do_not_go_together(mapping: dict[str, Any], line: str) -> None:
    assert problems(mapping) == [line]


def test_a_long_value_is_shortened_to_one_line() -> None:
    (line,) = problems(digits(training__epochs="two\n" * 100))
    assert len(line) < 150
    assert line.endswith("... (text).")


def test_a_batch_of_one_is_enough_without_the_map_of_another() -> None:
    config_from_mapping(digits(training__batch_size=1, models__ppi__adversarial_weight=0))


def test_the_limits_themselves_are_allowed() -> None:
    config_from_mapping(digits(data__image_size=68, data__balanced_size=10, data__train_size=1090))
    config_from_mapping(digits(models__ppi={"method": "ppi", "warm_up_epochs": 5, "ramp_epochs": 19}))
    config_from_mapping(digits(models__plain__epochs=100, models__ppi__epochs=3))
    config_from_mapping(digits(backbone={"name": "vgg", "blocks": [[8]] * 5}))
    config_from_mapping(folder(data__image_size=[75, 90], backbone={"name": "inception_v3"}))
    config_from_mapping(folder(models__d={"method": "dfr", "of": "plain"}, backbone={"name": "vgg11"}))
    config_from_mapping(digits(data__train_size=1100, data__digit_width=[48, 48], backbone__strides=[2, 2, 2, 2, 3]))
    config_from_mapping(digits(training={"epochs": 3, "batch_size": 2}))
    config_from_mapping(digits(models={"plain": {"method": "plain"}}, training={"batch_size": 1, "epochs": 1}))


def test_all_problems_are_told_at_once() -> None:
    mapping = digits(
        seed="3",
        nme=1,
        data={"source": "image_folder", "validation_share": 2},
        training__epochs=True,
        models__ppi={"method": "ppi", "treshold": 0.3, "sharpness": -1},
        models__both={"method": "ppi", "threshold": 0.3, "threshold_quantile": 0.3, "divergence_limit": 1},
        models__odd={"method": "magic"},
    )
    assert [line.split(": ")[0] for line in problems(mapping)] == [
        "seed",
        "data.path",
        "data.validation_share",
        "training.epochs",
        "models.ppi.sharpness",
        "models.ppi.treshold",
        "models.both.threshold",
        "models.both.divergence_limit",
        "models.odd.method",
        "nme",
    ]


def test_the_first_line_names_the_file_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(digits(seed=-1)))
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["training.epochs=0"])
    assert str(caught.value).splitlines()[0] == f"{path} --set training.epochs=0: 2 problems"


@pytest.mark.parametrize("version", [0, 2, 1.5])
def test_another_version_is_one_error_that_says_what_to_do(version: float) -> None:
    with pytest.raises(ConfigError, match="version that this tfcausal reads") as caught:
        config_from_mapping({"version": version, "of": "another time"})
    assert str(caught.value) == (
        f"configuration: version: expected 1, the version that this tfcausal reads; received {version}. Install the "
        "release of tfcausal that the file was written for, or bring the file up to date and set `version: 1`."
    )


def test_whatever_is_wrong_only_config_errors_come_out() -> None:
    junk: list[Any] = [None, True, -1, 10**30, 2.5, float("inf"), "", "3", [], {}, [[1]], {1: 2}, {None: {}}, "a\nb"]
    junk += [{"method": ["ppi"]}, {"source": {}}, {"method": "ppi", "threshold": {}}, {"method": "cfcn", "method ": 1}]
    generator = random.Random(0)
    messages = []
    for _ in range(400):
        mapping = generator.choice([digits, folder])()
        mapping["training"] = {"epochs": 9}
        mapping["backbone"] = {"filters": [8, 8]}
        for _ in range(generator.randint(1, 3)):
            section = mapping
            while True:
                key = generator.choice([*section, "zz", "[key]", 1])
                if not isinstance(section.get(key), dict) or not section[key] or generator.random() < 0.3:
                    break
                section = section[key]
            section[key] = generator.choice(junk)
        try:
            config_from_mapping(mapping)
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert not [text for text in messages if re.search("Input|pydantic|https?:|tag|Extra", text)]


# Files.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "{path}: expected keys and values, starting with `version: 1`; received an empty file."),
        ("# only a comment\n", "{path}: expected keys and values, starting with `version: 1`; received an empty file."),
        ("- 1\n- 2\n", "{path}: expected keys and values, starting with `version: 1`; received [1, 2]."),
        ("version: 1\nname: [a\n", "{path}, line 3, column 1: expected valid YAML; expected ',' or ']'"),
        ("version: 1\nname: a: b\n", "{path}, line 2, column 8: expected valid YAML; mapping values are"),
        ("version: 1\nname: a\nname: b\n", "{path}, line 3, column 1: expected valid YAML; the key `name` is"),
        ("models:\n  a: {b: 1, b: 2}\n", "{path}, line 2, column 13: expected valid YAML; the key `b` is there twice"),
        ("a: 1\n---\nb: 2\n", "{path}, line 2, column 1: expected valid YAML; but found another document."),
        ("a: !!python/name:os.system\n", "{path}, line 1, column 4: expected valid YAML; could not determine"),
        ("a: !!int x\n", "{path}: expected valid YAML; a value does not fit its tag. Remove the tag."),
        ("a: !!bool x\n", "{path}: expected valid YAML; a value does not fit its tag. Remove the tag."),
        ("a: \x00\n", "{path}: expected valid YAML; unacceptable character #x0000"),
        ("[" * 500, "{path}: expected a configuration; received lists or keys nested without end."),
    ],
)
def test_a_file_that_is_no_configuration(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(expected.format(path=path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: expected a configuration file; there is none\. Check the path\."):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match=r"expected a configuration file; received a folder\. Name a file in it\."):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: expected text in UTF-8; byte 9 is not\. Save it as UTF-8\."):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Not a directory\."):
        load_config(tmp_path / "latin.yaml" / "a.yaml")


def load(tmp_path: Path, *overrides: str, **changes: Any) -> RunConfig:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(digits(**changes)))
    return load_config(path, overrides)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("2.e-1", 0.2), ("3", 3.0)])
def test_numbers_are_read_as_yaml_1_2_does(text: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(digits()) + f"training: {{learning_rate: {text}}}\n")
    assert load_config(path).training.learning_rate == value
    assert load(tmp_path, f"training.learning_rate={text}").training.learning_rate == value


@pytest.mark.parametrize("text", ["2024-01-01", "on", "no", "1_000", "0x10"])
def test_what_only_yaml_1_1_takes_for_something_else_is_text(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"name={text}").name == text


def test_a_leading_zero_is_no_octal_number(tmp_path: Path) -> None:
    assert load(tmp_path, "training.epochs=010").training.epochs == 10


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(digits()).encode())
    assert load_config(path).name == "try"


# Overrides.


def test_overrides_replace_and_add(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "training.epochs=3",
        "models.ppi.sharpness=20",
        "backbone.filters=[16, 16]",
        "report.title=a = b",
        "models.extra={method: cfcn, mask_share: 0.5}",
        "training.epochs=4",
    )
    assert config.training.epochs == 4
    assert config.models["ppi"].sharpness == 20.0
    assert config.backbone.filters == (16, 16)
    assert config.report.title == "a = b"
    assert config.models["extra"].mask_share == 0.5
    assert list(config.models) == ["plain", "ppi", "extra"]


def test_an_override_can_null_a_key(tmp_path: Path) -> None:
    overrides = ("models.ppi.threshold=null", "models.ppi.threshold_quantile=0.9")
    model = load(tmp_path, *overrides, models__ppi__threshold=0.3).models["ppi"]
    assert (model.threshold, model.threshold_quantile) == (None, 0.9)


def test_an_override_leaves_other_uses_of_an_anchor_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "version: 1\nname: try\ndata: {source: textured_digits}\n"
        "models:\n  a: &a {method: ppi, sharpness: 10}\n  b: *a\n  c: {<<: *a, threshold: 0.5}\n"
    )
    models = load_config(path, ["models.b.sharpness=20"]).models
    assert [model.sharpness for model in models.values()] == [10.0, 20.0, 10.0]
    assert models["c"].threshold == 0.5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "training.epochs",
            'expected `key.path=value`, such as `training.epochs=3`; received "training.epochs" (text)',
        ),
        ("=3", 'expected `key.path=value`, such as `training.epochs=3`; received "=3" (text)'),
        ("training..epochs=3", "expected `key.path=value`, such as `training.epochs=3`"),
        (
            "name.first=x",
            'expected `name` to be a section, because `name.first` is below it; received "try" (text). '
            "Set all of it: `--set name=...`.",
        ),
        (
            "data.digit_width.0.x=3",
            "expected `data.digit_width` to be a section, because `data.digit_width.0.x` is below it; "
            "received [20, 30]. Set all of it: `--set data.digit_width=...`.",
        ),
        ("training.epochs=[3", "--set training.epochs=[3, line 1, column 3: expected valid YAML;"),
        ("training.epocs=3", "training.epocs: unknown key. Did you mean `epochs`?"),
        ("models.ppl.sharpness=3", "models.ppl.method: missing; expected one of `plain`, `ppi`, `cfcn`, `gain`, `rrr`"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        load(tmp_path, override, data__digit_width=[20, 30])
    assert "--set" in str(caught.value)


def test_reading_a_configuration_imports_no_tensorflow() -> None:
    code = (
        "import sys, tfcausal.config, tfcausal.runs; print({'tensorflow', 'keras', 'pandas', 'numpy'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
