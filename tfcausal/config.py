"""The configuration of a run: what a YAML file may say, checked completely before any work starts.

:func:`load_config` reads a file and applies `--set` overrides; :func:`dump_config` writes the resolved configuration.
Every section is a frozen pydantic model, and every key has a description. The sections stand in the modules
`config_*.py`; what they say to each other is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tfcausal.config_attacks import AttackConfig, BIMConfig, FGSMConfig, JSMAConfig, PGDConfig
from tfcausal.config_backbones import (
    AllConvolutionalConfig,
    BackboneConfig,
    BackboneSection,
    DenseNet121Config,
    InceptionV3Config,
    TwoConvolutionsConfig,
    VGG11Config,
    VGG16Config,
    VGG19Config,
    VGGConfig,
)
from tfcausal.config_choices import Saliency, TrainingSaliency
from tfcausal.config_data import (
    DIGIT_IMAGES,
    LARGEST_DIGIT_IMAGE,
    DataConfig,
    ImageFolderConfig,
    SplitSize,
    TexturedDigitsConfig,
)
from tfcausal.config_effects import (
    AutoencoderConfig,
    DetectionConfig,
    EffectsConfig,
    EffectsFile,
    LevelConfig,
    MapsConfig,
    MaskingConfig,
    PatchConfig,
)
from tfcausal.config_errors import Expects, describe, explain, problem, raise_conflicts
from tfcausal.config_evaluation import EvaluationConfig, ReportConfig
from tfcausal.config_models import (
    DEFAULT_DIVERGENCE_LIMIT,
    DEFAULT_THRESHOLD,
    CFCNConfig,
    DFRConfig,
    GAINConfig,
    MethodConfig,
    ModelConfig,
    PlainConfig,
    PPIConfig,
    RRRConfig,
)
from tfcausal.config_section import (
    Channels,
    ModelName,
    NonNegativeNumber,
    OpenShare,
    Pair,
    PositiveInt,
    PositiveInts,
    PositiveNumber,
    RunName,
    Section,
    as_integer,
)
from tfcausal.config_training import TrainingConfig
from tfcausal.config_yaml import override_key, read_yaml_file, write_yaml
from tfcausal.errors import ConfigError

CONFIG_VERSION = 1

__all__ = [
    "CONFIG_VERSION",
    "DEFAULT_DIVERGENCE_LIMIT",
    "DEFAULT_THRESHOLD",
    "DIGIT_IMAGES",
    "LARGEST_DIGIT_IMAGE",
    "AllConvolutionalConfig",
    "AttackConfig",
    "AutoencoderConfig",
    "BIMConfig",
    "BackboneConfig",
    "BackboneSection",
    "CFCNConfig",
    "Channels",
    "ConfigError",
    "DFRConfig",
    "DataConfig",
    "DenseNet121Config",
    "DetectionConfig",
    "EffectsConfig",
    "EffectsFile",
    "EvaluationConfig",
    "Expects",
    "FGSMConfig",
    "GAINConfig",
    "ImageFolderConfig",
    "InceptionV3Config",
    "JSMAConfig",
    "LevelConfig",
    "MapsConfig",
    "MaskingConfig",
    "MethodConfig",
    "ModelConfig",
    "ModelName",
    "NonNegativeNumber",
    "OpenShare",
    "PGDConfig",
    "PPIConfig",
    "Pair",
    "PatchConfig",
    "PlainConfig",
    "PositiveInt",
    "PositiveInts",
    "PositiveNumber",
    "RRRConfig",
    "ReportConfig",
    "RunConfig",
    "RunName",
    "Saliency",
    "Section",
    "SplitSize",
    "TexturedDigitsConfig",
    "TrainingConfig",
    "TrainingSaliency",
    "TwoConvolutionsConfig",
    "VGG11Config",
    "VGG16Config",
    "VGG19Config",
    "VGGConfig",
    "config_from_mapping",
    "dump_config",
    "effects_from_mapping",
    "load_config",
    "load_effects",
]


class RunConfig(Section):
    """A run: data, models trained on it, and what is measured."""

    version: Annotated[Literal[1], BeforeValidator(as_integer)] = Field(description="Version of this file format.")
    name: RunName = Field(description="Name of the run; its directory is `runs/<name>`.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything that is random.")
    data: DataConfig = Field(description="The images.")
    backbone: BackboneConfig = Field(default=AllConvolutionalConfig(), description="The classifier trained.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the models are trained.")
    models: Annotated[
        dict[ModelName, ModelConfig],
        Expects("a section with one entry per model, such as `plain: {method: plain}`"),
    ] = Field(min_length=1, description="The models, by name.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="What is measured.")
    effects: EffectsConfig | None = Field(default=None, description="Which causal effects are measured; null for none.")
    report: ReportConfig = Field(default=ReportConfig(), description="What the report shows.")

    def epochs_of(self, name: str) -> int:
        """Epochs that a model is trained for: its own, else those of `training`; 0 for one that has no epochs.

        Args:
            name: Name of the model.
        """
        model = self.models[name]
        if isinstance(model, DFRConfig):
            return 0
        return self.training.epochs if model.epochs is None else model.epochs

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        problems = [*self._image_problems(), *self._schedule_problems(), *self._method_problems()]
        raise_conflicts([*problems, *self._effect_problems()])
        return self

    def _image_problems(self) -> list[tuple[str, str]]:
        """Images that the backbone does not take."""
        problems = []
        height, width, channels = self.data.image_shape
        smallest, reason = self.backbone.smallest_image
        if isinstance(self.backbone, AllConvolutionalConfig) and self.backbone.reduction > min(height, width):
            expected = f"strides with a product of at most the image size ({height}x{width}, see data.image_size)"
            problems.append(("backbone.strides", problem(expected, f"a product of {self.backbone.reduction}")))
        if min(height, width) < smallest:
            expected = f"at least {smallest} with backbone `{self.backbone.name}`, {reason}"
            problems.append(("data.image_size", problem(expected, f"{height}x{width}")))
        if self.backbone.pretrained and channels != 3:
            remedy = "Set data.channels to 3, or backbone.weights to null."
            text = problem("3 with pretrained weights, which are those of colour images", describe(channels), remedy)
            problems.append(("data.channels", text))
        return problems

    def _schedule_problems(self) -> list[tuple[str, str]]:
        """Terms that start after the training has ended."""
        problems = []
        for name, model in self.models.items():
            if isinstance(model, PlainConfig | DFRConfig):
                continue
            epochs, key = self.epochs_of(name), "training.epochs" if model.epochs is None else f"models.{name}.epochs"
            if model.warm_up_epochs >= epochs:
                text = problem(
                    f"fewer than {key} ({epochs})", describe(model.warm_up_epochs), "Otherwise this is plain training."
                )
                problems.append((f"models.{name}.warm_up_epochs", text))
            elif model.warm_up_epochs + model.ramp_epochs >= epochs:
                expected = f"fewer than the epochs after the warm-up ({epochs} - {model.warm_up_epochs}, see {key})"
                remedy = "Otherwise the weights never reach their values."
                problems.append((f"models.{name}.ramp_epochs", problem(expected, describe(model.ramp_epochs), remedy)))
        return problems

    def _method_problems(self) -> list[tuple[str, str]]:
        """Methods that need something else of the run."""
        problems = []
        channels = self.data.image_shape[2]
        for name, model in self.models.items():
            if isinstance(model, PPIConfig | GAINConfig) and len(model.masked_value) not in (1, channels):
                expected = f"one number, or one per channel ({channels}, see data.channels)"
                problems.append((f"models.{name}.masked_value", problem(expected, describe(list(model.masked_value)))))
            if isinstance(model, CFCNConfig) and model.variant == "C" and not self.backbone.ends_with_class_maps:
                expected = "`F` with a backbone that does not end with class maps"
                remedy = "Or set backbone.name to `all_convolutional`."
                problems.append((f"models.{name}.variant", problem(expected, "`C`", remedy)))
            if isinstance(model, DFRConfig):
                problems += self._retraining_problems(name, model)
        others = [
            name for name, model in self.models.items() if isinstance(model, PPIConfig) and model.adversarial_weight
        ]
        if others and self.training.batch_size < 2:
            expected = f"at least 2 with method ppi (models.{others[0]}), which masks with another sample's map"
            problems.append(("training.batch_size", problem(expected, describe(self.training.batch_size))))
        return problems

    def _effect_problems(self) -> list[tuple[str, str]]:
        """Effects that cannot be measured on these images."""
        if self.effects is None:
            return []
        problems = self.effects.image_problems(self.data.image_shape)
        if self.effects.split == "test_shuffled" and not isinstance(self.data, TexturedDigitsConfig):
            expected = "`train`, `validation` or `test` with images that have no planted contexts"
            problems.append(("split", problem(expected, "`test_shuffled`")))
        return [(f"effects.{key}", text) for key, text in problems]

    def _retraining_problems(self, name: str, model: DFRConfig) -> list[tuple[str, str]]:
        problems = []
        trained = [other for other, entry in self.models.items() if not isinstance(entry, DFRConfig)]
        if model.of not in trained:
            expected = f"another model of this run that is trained ({', '.join(trained) or 'there is none'})"
            problems.append((f"models.{name}.of", problem(expected, describe(model.of))))
        if isinstance(self.data, TexturedDigitsConfig) and not self.data.balanced_size:
            expected = f"images for method dfr (models.{name}); 220 give every digit on every texture twice"
            remedy = "Lower the other sizes for them."
            problems.append(("data.balanced_size", problem(expected, describe(self.data.balanced_size), remedy)))
        if not self.backbone.ends_with_dense:
            expected = f"a backbone that ends with a dense layer for method dfr (models.{name}), such as `vgg`"
            problems.append(("backbone.name", problem(expected, f"`{self.backbone.name}`")))
        return problems


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file.

    Args:
        path: The YAML file.
        overrides: Settings `key.path=value` that replace what the file says; the value is read as YAML.

    Returns:
        The checked and resolved configuration.

    Raises:
        ConfigError: If the file cannot be read, or says something that is not valid; all problems at once.
    """
    mapping = _read(path, overrides)
    return config_from_mapping(mapping, source=_source(path, overrides))


def load_effects(path: str | Path, overrides: Sequence[str] = ()) -> EffectsConfig:
    """Read the section `effects` of a file: of a configuration of a run, or of a file with this section alone.

    Args:
        path: The YAML file.
        overrides: Settings `key.path=value` that replace what the section says; the value is read as YAML.

    Returns:
        The checked section.

    Raises:
        ConfigError: If the file cannot be read, has no such section, or says something that is not valid.
    """
    overrides = [setting if setting.startswith("effects.") else f"effects.{setting}" for setting in overrides]
    mapping, source = _read(path, overrides), _source(path, overrides)
    if not {"name", "data", "models"}.isdisjoint(mapping):
        effects = config_from_mapping(mapping, source).effects
        if effects is None:
            expected = "expected a section with keys below it, in a file for `tfcausal effects`"
            raise ConfigError(f"{source}: effects: missing; {expected}.")
        return effects
    return _checked(EffectsFile, mapping, source).effects


def effects_from_mapping(mapping: Mapping[str, Any], overrides: Sequence[str] = ()) -> EffectsConfig:
    """Check a section `effects` that is already in memory.

    Args:
        mapping: The keys of the section.
        overrides: As for :func:`load_effects`.

    Raises:
        ConfigError: If something in it is not valid; all problems at once.

    Example:
        >>> effects_from_mapping({"levels": ["conv2"]}, ["images=64"]).images
        64
    """
    whole: dict[str, Any] = {"version": CONFIG_VERSION, "effects": dict(mapping)}
    overrides = [setting if setting.startswith("effects.") else f"effects.{setting}" for setting in overrides]
    for override in overrides:
        whole = override_key(whole, override)
    return _checked(EffectsFile, whole, _source("effects", overrides)).effects


def config_from_mapping(mapping: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Check a configuration that is already in memory.

    Args:
        mapping: The keys and values, nested as in a file.
        source: What error messages call it.

    Returns:
        The checked and resolved configuration.

    Raises:
        ConfigError: If something in it is not valid; all problems at once.

    Example:
        >>> config = config_from_mapping({
        ...     "version": 1, "name": "try",
        ...     "data": {"source": "textured_digits"}, "models": {"ppi": {"method": "ppi"}},
        ... })
        >>> config.models["ppi"].threshold, config.training.epochs
        (0.25, 25)
    """
    return _checked(RunConfig, mapping, source)


_File = TypeVar("_File", bound=Section)


def _read(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    mapping = read_yaml_file(path)
    if not isinstance(mapping, dict):
        received = "an empty file" if mapping is None else describe(mapping)
        raise ConfigError(f"{path}: {problem('keys and values, starting with `version: 1`', received)}")
    for override in overrides:
        mapping = override_key(mapping, override)
    return mapping


def _source(path: str | Path, overrides: Sequence[str]) -> str:
    return str(path) + "".join(f" --set {override}" for override in overrides)


def _checked(model: type[_File], mapping: Mapping[str, Any], source: str) -> _File:
    mapping = dict(mapping)
    version = mapping.get("version")
    if isinstance(version, int | float) and not isinstance(version, bool) and version != CONFIG_VERSION:
        remedy = (
            "Install the release of tfcausal that the file was written for, "
            f"or bring the file up to date and set `version: {CONFIG_VERSION}`."
        )
        expected = f"{CONFIG_VERSION}, the version that this tfcausal reads"
        raise ConfigError(f"{source}: version: {problem(expected, describe(version), remedy)}")
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        lines = explain(error, model, mapping)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigError("\n  ".join([f"{source}: {count}", *lines])) from None


def dump_config(config: RunConfig) -> str:
    """Write a resolved configuration as YAML that loads back to an equal one.

    Args:
        config: The configuration.

    Returns:
        The text, with keys in the order of declaration; without `effects` where none are measured.
    """
    return write_yaml(config.model_dump(exclude={"effects"} if config.effects is None else None))
