"""The configuration of a run: what a YAML file may say, checked completely before any work starts.

:func:`load_config` reads a file and applies `--set` overrides; :func:`dump_config` writes the resolved configuration.
Every section is a frozen pydantic model, and every key has a description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tfcausal.config_choices import Saliency
from tfcausal.config_errors import Expects, describe, explain, problem, raise_conflicts
from tfcausal.config_yaml import override_key, read_yaml_file, write_yaml
from tfcausal.errors import ConfigError

CONFIG_VERSION = 1
DIGIT_IMAGES = 1797  # of scikit-learn's handwritten digits
LARGEST_DIGIT_IMAGE = 120  # the largest patch that every texture has for every split
DEFAULT_THRESHOLD = 0.25
DEFAULT_DIVERGENCE_LIMIT = 20.0


def _integer(value: object) -> object:
    if type(value) is not int:
        raise ValueError("Literal takes true for 1")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
PositiveNumber = Annotated[float, Field(gt=0)]
NonNegativeNumber = Annotated[float, Field(ge=0)]
SplitSize = Annotated[int, Field(ge=10)]  # one digit of each class
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Pair = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]
PositiveInts = Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)]
RunName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    Expects("a name of letters, digits, `-`, `_` and `.` that starts with a letter or a digit"),
]
ModelName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"),
    Expects("a name of letters, digits, `_` and `-` that starts with a letter or a digit"),
]
Channels = Annotated[Literal[1, 3], BeforeValidator(_integer)]


class Section(BaseModel):
    """What all sections have in common: unknown keys are errors, values are not converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TexturedDigitsConfig(Section):
    """Handwritten digits on photographs of textures: needs no download, and the true mask of every digit is known."""

    source: Literal["textured_digits"] = Field(description="The data source.")
    image_size: int = Field(default=48, ge=8, le=LARGEST_DIGIT_IMAGE, description="Height and width in pixels.")
    channels: Channels = Field(default=3, description="1 for grey images, 3 for colour.")
    digit_width: Annotated[Pair, Expects("[narrowest, widest], two integers of at least 8")] = Field(
        default=(28, 44), description="Narrowest and widest digit, in pixels; drawn uniformly per image."
    )
    context_strength: float = Field(
        default=0.9, ge=0, le=1, description="Probability in training that an image has its label's texture."
    )
    contrast: float = Field(
        default=0.5, gt=0, le=0.5, description="Distance of a digit's tone from mid-grey; below 0.3 some vanish."
    )
    train_size: SplitSize = Field(default=1100, description="Number of training images.")
    validation_size: SplitSize = Field(default=200, description="Number of validation images.")
    test_size: SplitSize = Field(default=497, description="Number of test images in each of the two test splits.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.image_size, self.image_size, self.channels

    @model_validator(mode="after")
    def _check(self) -> TexturedDigitsConfig:
        problems = []
        narrowest, widest = self.digit_width
        if not 8 <= narrowest <= widest <= self.image_size:
            expected = f"[narrowest, widest] in ascending order, from 8 to image_size ({self.image_size})"
            problems.append(("digit_width", problem(expected, describe([narrowest, widest]))))
        sizes = (self.train_size, self.validation_size, self.test_size)
        if sum(sizes) > DIGIT_IMAGES:
            expected = f"train_size + validation_size + test_size of at most {DIGIT_IMAGES}, the number of digit images"
            received = f"{' + '.join(map(str, sizes))} = {sum(sizes)}"
            problems.append(("train_size", problem(expected, received, "Lower one of the three.")))
        raise_conflicts(problems)
        return self


class ImageFolderConfig(Section):
    """A folder of images: `images/<class>/*.png|jpg`, with optional masks in `masks/<class>/<same name>.png`."""

    source: Literal["image_folder"] = Field(description="The data source.")
    path: str = Field(min_length=1, description="The folder; a relative path starts at the current folder.")
    image_size: Annotated[
        Pair,
        BeforeValidator(lambda size: size if isinstance(size, list | tuple) else (size, size)),
        Expects("an integer of at least 1, or [height, width]"),
    ] = Field(
        default=(96, 96), description="[height, width] that images are resized to, in pixels; an integer gives squares."
    )
    channels: Channels = Field(default=3, description="1 to read images as grey, 3 for colour.")
    exclude_classes: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="Class folders that are left out, for example because they hold too few images."
    )
    validation_share: OpenShare = Field(default=0.15, description="Share of the images held out for validation.")
    test_share: OpenShare = Field(default=0.25, description="Share held out for testing without a `test` folder.")
    on_error: Literal["raise", "skip"] = Field(
        default="raise", description="An unreadable image stops the run (`raise`), or is left out and listed (`skip`)."
    )
    cache_megabytes: int = Field(default=1024, ge=0, description="Memory for decoded images, in MiB; 0 for none.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return (*self.image_size, self.channels)

    @model_validator(mode="after")
    def _check(self) -> ImageFolderConfig:
        if self.validation_share + self.test_share >= 1:
            received = f"{self.validation_share} + {self.test_share}"
            text = problem("validation_share + test_share below 1", received, "Leave a share for training.")
            raise_conflicts([("validation_share", text)])
        return self


class AllConvolutionalConfig(Section):
    """3x3 convolutions, then a 1x1 convolution with one map per class and global average pooling."""

    name: Literal["all_convolutional"] = Field(default="all_convolutional", description="The backbone.")
    filters: PositiveInts = Field(default=(32, 32, 64, 64, 64), description="Number of filters of every convolution.")
    strides: Annotated[PositiveInts, Expects("an integer of at least 1, or one per entry of filters")] = Field(
        default=None,
        validate_default=True,
        description="Stride of every convolution, or one for all; left out, every second one has stride 2.",
    )
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Share of activations dropped after every convolution.")
    class_map_activation: Literal["linear", "relu"] = Field(
        default="linear", description="Activation of the class maps; with `relu`, as published, no logit is negative."
    )

    @field_validator("strides", mode="before")
    @classmethod
    def _resolve_strides(cls, strides: object, info: ValidationInfo) -> object:
        count = len(info.data.get("filters", (1,)))
        if strides is None:
            return tuple(1 + index % 2 for index in range(count))
        return (strides,) * count if isinstance(strides, int) else strides

    @model_validator(mode="after")
    def _check(self) -> AllConvolutionalConfig:
        if len(self.strides) != len(self.filters):
            expected = f"one stride per entry of filters ({len(self.filters)})"
            received = f"{len(self.strides)} ({describe(list(self.strides))})"
            raise_conflicts([("strides", problem(expected, received, "Give as many, or a single integer."))])
        return self


class TrainingConfig(Section):
    """How every model of the run is trained."""

    epochs: PositiveInt = Field(default=25, description="Passes over the training images.")
    batch_size: PositiveInt = Field(default=32, description="Images per step.")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="The optimizer; `sgd` has a momentum of 0.9.")
    learning_rate: PositiveNumber = Field(default=0.001, description="The learning rate at the start.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="`cosine` lowers the learning rate to 0 over all steps, `constant` keeps it."
    )


class PlainConfig(Section):
    """Cross-entropy only: what the other methods are compared with."""

    method: Literal["plain"] = Field(description="The training method.")


class PPIConfig(Section):
    """Training with contrastive pseudo-interventions: an image without what explains its label must lose the label."""

    method: Literal["ppi"] = Field(description="The training method.")
    contrast: Literal["one_vs_rest", "negated"] = Field(
        default="one_vs_rest",
        description="Loss of the masked image: `one_vs_rest` is -log(1 - p), bounded below; `negated` is the published "
        "minus cross-entropy, unbounded below.",
    )
    contrast_weight: NonNegativeNumber = Field(default=1.0, description="Weight of the contrast of the masked image.")
    regularisation_weight: NonNegativeNumber = Field(
        default=0.1, description="Weight of the map's mean absolute value; 0 if left out and second_order is false."
    )
    adversarial_weight: NonNegativeNumber = Field(
        default=1.0, description="Weight of classifying images masked with another sample's map."
    )
    threshold: Annotated[float | None, Field(gt=0, lt=1)] = Field(
        default=None,
        description="Saliency, as a share of the image's highest, above which a pixel is removed; default 0.25.",
    )
    threshold_quantile: Annotated[float | None, Field(gt=0, lt=1)] = Field(
        default=None, description="Instead of threshold: the threshold is this quantile of each image's own map."
    )
    sharpness: PositiveNumber = Field(default=50.0, description="Steepness of the soft mask at the threshold.")
    second_order: bool = Field(default=True, description="Whether gradients flow through the saliency map.")
    warm_up_epochs: int = Field(default=2, ge=0, description="Epochs of plain training before the other losses start.")
    divergence_limit: Annotated[float | None, Field(gt=0)] = Field(
        default=None, description="With contrast `negated`: loss, in nats, at which training is stopped; default 20."
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        resolved = dict(values)
        if values.get("threshold") is None and values.get("threshold_quantile") is None:
            resolved["threshold"] = DEFAULT_THRESHOLD
        if values.get("second_order") is False:
            resolved.setdefault("regularisation_weight", 0.0)
        if values.get("contrast") == "negated" and values.get("divergence_limit") is None:
            resolved["divergence_limit"] = DEFAULT_DIVERGENCE_LIMIT
        return resolved

    @model_validator(mode="after")
    def _check(self) -> PPIConfig:
        problems = []
        if self.threshold is not None and self.threshold_quantile is not None:
            received = f"threshold {self.threshold} and threshold_quantile {self.threshold_quantile}"
            remedy = "Set the one that you do not want to null."
            problems.append(("threshold", problem("either threshold or threshold_quantile", received, remedy)))
        if not self.second_order and self.regularisation_weight > 0:
            expected = "0 where second_order is false, because the map then passes no gradient on"
            remedy = "Set regularisation_weight to 0, or second_order to true."
            problems.append(("regularisation_weight", problem(expected, describe(self.regularisation_weight), remedy)))
        if self.contrast == "one_vs_rest" and self.divergence_limit is not None:
            expected = "no limit with contrast `one_vs_rest`, whose loss is bounded"
            remedy = "Set divergence_limit to null, or contrast to `negated`."
            problems.append(("divergence_limit", problem(expected, describe(self.divergence_limit), remedy)))
        raise_conflicts(problems)
        return self


class CFCNConfig(Section):
    """Training with masks: the true class's map is pulled into the mask (causal-focus loss)."""

    method: Literal["cfcn"] = Field(description="The training method.")
    mask_share: float = Field(default=1.0, gt=0, le=1, description="Share of the training images whose mask is used.")
    alpha: NonNegativeNumber = Field(default=1.0, description="Weight of the causal-focus loss.")


class EvaluationConfig(Section):
    """What is measured on the test splits."""

    saliency: Saliency = Field(default="wbp", description="The saliency map that is measured.")
    batch_size: PositiveInt = Field(default=64, description="Images that are explained at once.")
    deletion_steps: PositiveInt = Field(default=20, description="Steps of the deletion curve.")
    deletion_images: PositiveInt = Field(
        default=200, description="Images of each deletion curve, chosen with the seed."
    )
    minimum_group_size: PositiveInt = Field(
        default=10, description="Smallest group of images that counts for the worst-group accuracy."
    )


class ReportConfig(Section):
    """What the report shows."""

    images: PositiveInt = Field(default=8, description="Images that are shown under every model.")
    title: str | None = Field(default=None, description="Title of the report; the run's name if null.")


DataConfig = Annotated[TexturedDigitsConfig | ImageFolderConfig, Field(discriminator="source")]
ModelConfig = Annotated[PlainConfig | PPIConfig | CFCNConfig, Field(discriminator="method")]


class RunConfig(Section):
    """A run: data, models trained on it, and what is measured."""

    version: Annotated[Literal[1], BeforeValidator(_integer)] = Field(description="Version of this file format.")
    name: RunName = Field(description="Name of the run; its directory is `runs/<name>`.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything that is random.")
    data: DataConfig = Field(description="The images.")
    backbone: AllConvolutionalConfig = Field(default=AllConvolutionalConfig(), description="The classifier trained.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the models are trained.")
    models: Annotated[
        dict[ModelName, ModelConfig],
        Expects("a section with one entry per model, such as `plain: {method: plain}`"),
    ] = Field(min_length=1, description="The models, by name.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="What is measured.")
    report: ReportConfig = Field(default=ReportConfig(), description="What the report shows.")

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        problems = []
        height, width, _ = self.data.image_shape
        reduction = math.prod(self.backbone.strides)
        if reduction > min(height, width):
            expected = f"strides with a product of at most the image size ({height}x{width}, see data.image_size)"
            problems.append(("backbone.strides", problem(expected, f"a product of {reduction}")))
        ppi = {name: model for name, model in self.models.items() if isinstance(model, PPIConfig)}
        for name, model in ppi.items():
            if model.warm_up_epochs >= self.training.epochs:
                expected = f"fewer than training.epochs ({self.training.epochs})"
                text = problem(expected, describe(model.warm_up_epochs), "Otherwise this is plain training.")
                problems.append((f"models.{name}.warm_up_epochs", text))
        if ppi and self.training.batch_size < 2:
            expected = f"at least 2 with method ppi (models.{next(iter(ppi))}), which masks with another sample's map"
            problems.append(("training.batch_size", problem(expected, describe(self.training.batch_size))))
        raise_conflicts(problems)
        return self


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
    mapping = read_yaml_file(path)
    if not isinstance(mapping, dict):
        received = "an empty file" if mapping is None else describe(mapping)
        raise ConfigError(f"{path}: {problem('keys and values, starting with `version: 1`', received)}")
    for override in overrides:
        mapping = override_key(mapping, override)
    settings = "".join(f" --set {override}" for override in overrides)
    return config_from_mapping(mapping, source=f"{path}{settings}")


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
        return RunConfig.model_validate(mapping)
    except ValidationError as error:
        lines = explain(error, RunConfig, mapping)
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise ConfigError("\n  ".join([f"{source}: {count}", *lines]))


def dump_config(config: RunConfig) -> str:
    """Write a resolved configuration as YAML that loads back to an equal one.

    Args:
        config: The configuration.

    Returns:
        The text, with keys in the order of declaration.
    """
    return write_yaml(config.model_dump())
