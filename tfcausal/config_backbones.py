"""The section `backbone` of a configuration: the classifier that the models of a run are.

The keys are called as the arguments of the builders in `tfcausal.models.backbones`, which name the papers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationInfo, field_validator, model_validator

from tfcausal.config_errors import Expects, describe, problem, raise_conflicts
from tfcausal.config_section import Pair, PositiveInt, PositiveInts, Section

Units = Annotated[
    tuple[PositiveInt, ...],
    Strict(False),
    Field(description="Units of the hidden dense layers; [] for global average pooling without any."),
]
Dropout = Annotated[float, Field(ge=0, lt=1)]
BatchNorm = Annotated[bool, Field(description="Whether there is batch normalisation after every convolution.")]
Weights = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Weights to start from: `imagenet`, which Keras downloads, or a file with the weights of the "
        "network without its top; null for initial ones. Pixels are then brought to what Keras's weights expect.",
    ),
]


class BackboneSection(Section):
    """What the sections of the backbones have in common."""

    @property
    def smallest_image(self) -> tuple[int, str]:
        """The smallest height and width that the network takes, in pixels, and why."""
        return 1, ""

    @property
    def ends_with_dense(self) -> bool:
        """Whether the logits come from a dense layer, as last-layer retraining needs it."""
        return True

    @property
    def ends_with_class_maps(self) -> bool:
        """Whether the logits are the averages of one map per class, as variant C of CFCN needs them."""
        return False

    @property
    def pretrained(self) -> bool:
        """Whether it starts from weights that were trained on colour images."""
        return False


class AllConvolutionalConfig(BackboneSection):
    """3x3 convolutions, then a 1x1 convolution: one map per class and global average pooling, or maps and dense."""

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
    head: Literal["class_maps", "feature_maps"] = Field(
        default="class_maps",
        description="What the 1x1 convolution gives: `class_maps`, one per class and averaged (CFCN-C), or "
        "`feature_maps`, which a dense layer looks at (CFCN-F).",
    )
    feature_maps: PositiveInt = Field(default=16, description="With head `feature_maps`: their number.")

    @property
    def ends_with_dense(self) -> bool:
        """Whether the logits come from a dense layer."""
        return self.head == "feature_maps"

    @property
    def ends_with_class_maps(self) -> bool:
        """Whether the logits are the averages of one map per class."""
        return self.head == "class_maps"

    @property
    def reduction(self) -> int:
        """By how much the strides reduce the image."""
        return math.prod(self.strides)

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


class VGGConfig(BackboneSection):
    """Blocks of 3x3 convolutions with max pooling behind each, and dense layers: a VGG network of any size."""

    name: Literal["vgg"] = Field(description="The backbone.")
    blocks: Annotated[tuple[PositiveInts, ...], Strict(False), Field(min_length=1)] = Field(
        default=((64,), (128,), (256, 256), (512, 512), (512, 512)),
        description="Number of filters of every convolution, block by block; every block halves the image.",
    )
    batch_norm: BatchNorm = False
    dense_units: Units = (4096, 4096)
    dropout: Dropout = Field(
        default=0.5, description="Share of activations dropped after every hidden dense layer, or after the pooling."
    )

    @property
    def smallest_image(self) -> tuple[int, str]:
        """Every block halves the image."""
        count = len(self.blocks)
        return 2**count, f"because each of the {count} blocks halves it"


class _PublishedVGGConfig(BackboneSection):
    """A VGG network of five blocks."""

    name: str = Field(description="The backbone.")
    batch_norm: BatchNorm = False
    dense_units: Units = (4096, 4096)
    dropout: Dropout = Field(
        default=0.5, description="Share of activations dropped after every hidden dense layer, or after the pooling."
    )

    @property
    def smallest_image(self) -> tuple[int, str]:
        """Every block halves the image."""
        return 32, "because each of the 5 blocks halves it"


class VGG11Config(_PublishedVGGConfig):
    """VGG11, of configuration A; Keras has no weights for it."""

    name: Literal["vgg11"] = Field(description="The backbone.")


class _PretrainedVGGConfig(_PublishedVGGConfig):
    """A VGG network that Keras has weights for."""

    weights: Weights = None

    @property
    def pretrained(self) -> bool:
        """Whether weights are given."""
        return self.weights is not None

    @model_validator(mode="after")
    def _check(self) -> _PretrainedVGGConfig:
        if self.batch_norm and self.weights is not None:
            expected = "null with batch_norm, for which there are no weights"
            remedy = "Set weights to null, or batch_norm to false."
            raise_conflicts([("weights", problem(expected, describe(self.weights), remedy))])
        return self


class VGG16Config(_PretrainedVGGConfig):
    """VGG16, of configuration D."""

    name: Literal["vgg16"] = Field(description="The backbone.")


class VGG19Config(_PretrainedVGGConfig):
    """VGG19, of configuration E."""

    name: Literal["vgg19"] = Field(description="The backbone.")


class InceptionV3Config(BackboneSection):
    """Inception_v3 with global average pooling and one dense layer."""

    name: Literal["inception_v3"] = Field(description="The backbone.")
    dropout: Dropout = Field(default=0.0, description="Share of the pooled features that are dropped.")
    weights: Weights = None

    @property
    def smallest_image(self) -> tuple[int, str]:
        """It has no padding at its first layers."""
        return 75, "because its first layers do not pad it"

    @property
    def pretrained(self) -> bool:
        """Whether weights are given."""
        return self.weights is not None


class DenseNet121Config(BackboneSection):
    """DenseNet121, the network of CheXNet, with one answer among the classes in place of CheXNet's 14 findings."""

    name: Literal["densenet121"] = Field(description="The backbone.")
    dropout: Dropout = Field(default=0.0, description="Share of the pooled features that are dropped.")
    weights: Weights = None

    @property
    def smallest_image(self) -> tuple[int, str]:
        """It halves the image five times."""
        return 32, "because it halves it 5 times"

    @property
    def pretrained(self) -> bool:
        """Whether weights are given."""
        return self.weights is not None


class TwoConvolutionsConfig(BackboneSection):
    """Twice a convolution with max pooling, then one dense layer: the network for Fashion-MNIST."""

    name: Literal["two_convolutions"] = Field(description="The backbone.")
    filters: Annotated[Pair, Expects("two integers of at least 1")] = Field(
        default=(32, 64), description="Number of filters of the two convolutions."
    )
    dropout: Dropout = Field(default=0.0, description="Share of the features dropped before the dense layer.")

    @property
    def smallest_image(self) -> tuple[int, str]:
        """Each pooling halves the image."""
        return 4, "because each of the 2 poolings halves it"


def _with_name(value: Any) -> Any:
    """The section with the name of the backbone that it is where it gives none."""
    return {"name": "all_convolutional", **value} if isinstance(value, dict) else value


BackboneConfig = Annotated[
    Annotated[
        AllConvolutionalConfig
        | VGGConfig
        | VGG11Config
        | VGG16Config
        | VGG19Config
        | InceptionV3Config
        | DenseNet121Config
        | TwoConvolutionsConfig,
        Field(discriminator="name"),
    ],
    BeforeValidator(_with_name),
]
