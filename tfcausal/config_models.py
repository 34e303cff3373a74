"""The entries of `models` in a configuration: one section for every training method.

The keys are called as the arguments of the classes in `tfcausal.models`, which say what they do. `multi_label` is not
among them: the images of a run have one label each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from tfcausal.config_choices import TrainingSaliency
from tfcausal.config_errors import Expects, describe, problem, raise_conflicts
from tfcausal.config_section import ModelName, NonNegativeNumber, OpenShare, PositiveInt, PositiveNumber, Section

DEFAULT_THRESHOLD = 0.25
DEFAULT_DIVERGENCE_LIMIT = 20.0

Epochs = Annotated[
    PositiveInt | None,
    Field(description="Epochs of this model alone, for instance to compare at equal cost; training.epochs if null."),
]
Layer = Annotated[
    str | None,
    Field(min_length=1, description="The layer whose feature maps are looked at, by name or path; the last if null."),
]
MaskedValue = Annotated[
    tuple[Annotated[float, Field(ge=-0.5, le=0.5)], ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Strict(False),
    Field(
        min_length=1,
        description="What a removed pixel becomes, a number or one per channel; in a run, pixels lie in [-0.5, 0.5] "
        "and 0 is mid-grey.",
    ),
    Expects("a number of at least -0.5 and at most 0.5, or one per channel"),
]
MaskShare = Annotated[
    float, Field(gt=0, le=1, description="Share of the masks of the training images that this model is given.")
]
WarmUpEpochs = Annotated[
    int, Field(ge=0, description="Epochs with the classification loss alone, before the other terms start.")
]
RampEpochs = Annotated[
    int, Field(ge=0, description="Epochs in which the weights of the terms then rise to their values; 0: at once.")
]


class MethodConfig(Section):
    """What the sections of the training methods have in common."""

    @property
    def masks(self) -> float | None:
        """The share of the training images' masks that the method is given; None where it takes none."""
        return None


class PlainConfig(MethodConfig):
    """Cross-entropy only: what the other methods are compared with."""

    method: Literal["plain"] = Field(description="The training method.")
    epochs: Epochs = None


class PPIConfig(MethodConfig):
    """Training with contrastive pseudo-interventions: an image without what explains its label must lose the label."""

    method: Literal["ppi"] = Field(description="The training method.")
    epochs: Epochs = None
    saliency: TrainingSaliency = Field(default="wbp", description="The map that says what explains the label.")
    layer: Layer = Field(
        default=None, description="With saliency `grad_cam`: the layer whose maps are shown; the last if null."
    )
    contrast: Literal["one_vs_rest", "negated", "probability"] = Field(
        default="one_vs_rest",
        description="Loss of the masked image: `one_vs_rest` is -log(1 - p), bounded below; `probability` is p; "
        "`negated` is the published minus cross-entropy, unbounded below.",
    )
    contrast_weight: NonNegativeNumber = Field(default=1.0, description="Weight of the contrast of the masked image.")
    regularisation_weight: NonNegativeNumber = Field(
        default=0.1, description="Weight of the map's mean absolute value; 0 if left out and second_order is false."
    )
    regularised: Literal["label", "all_classes"] = Field(
        default="label", description="Which maps are regularised: the label's, or those of all classes (slower)."
    )
    adversarial_weight: NonNegativeNumber = Field(
        default=1.0, description="Weight of classifying images masked with another sample's map."
    )
    mask: Literal["soft", "box"] = Field(
        default="soft",
        description="What is removed: `soft` by the map itself, `box` the smallest box around the pixels above the "
        "threshold, through which no gradient flows: only the regularisation then differentiates the map.",
    )
    threshold: Annotated[float | None, Field(gt=0, lt=1)] = Field(
        default=None,
        description="Saliency, as a share of the image's highest, above which a pixel is removed; default 0.25.",
    )
    threshold_quantile: Annotated[float | None, Field(gt=0, lt=1)] = Field(
        default=None, description="Instead of threshold: the threshold is this quantile of each image's own map."
    )
    largest_component: bool = Field(
        default=False, description="With mask `box`: the box is drawn around the largest connected region alone."
    )
    sharpness: PositiveNumber = Field(default=50.0, description="Steepness of the soft mask at the threshold.")
    masked_value: MaskedValue = (0.0,)
    second_order: bool = Field(default=True, description="Whether gradients flow through the saliency map.")
    warm_up_epochs: WarmUpEpochs = Field(
        default=2, description="Epochs of plain training before the other losses start."
    )
    ramp_epochs: RampEpochs = 0
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
        if self.layer is not None and self.saliency != "grad_cam":
            expected = f"no layer with saliency `{self.saliency}`, which shows the pixels"
            remedy = "Set layer to null, or saliency to `grad_cam`."
            problems.append(("layer", problem(expected, describe(self.layer), remedy)))
        if self.threshold is not None and self.threshold_quantile is not None:
            received = f"threshold {self.threshold} and threshold_quantile {self.threshold_quantile}"
            remedy = "Set the one that you do not want to null."
            problems.append(("threshold", problem("either threshold or threshold_quantile", received, remedy)))
        if self.largest_component and self.mask != "box":
            expected = f"false with mask `{self.mask}`, which has no box"
            remedy = "Set largest_component to false, or mask to `box`."
            problems.append(("largest_component", problem(expected, describe(self.largest_component), remedy)))
        if not self.second_order and self.regularisation_weight > 0:
            expected = "0 where second_order is false, because the map then passes no gradient on"
            remedy = "Set regularisation_weight to 0, or second_order to true."
            problems.append(("regularisation_weight", problem(expected, describe(self.regularisation_weight), remedy)))
        if self.contrast != "negated" and self.divergence_limit is not None:
            expected = f"no limit with contrast `{self.contrast}`, whose loss is bounded"
            remedy = "Set divergence_limit to null, or contrast to `negated`."
            problems.append(("divergence_limit", problem(expected, describe(self.divergence_limit), remedy)))
        raise_conflicts(problems)
        return self


class CFCNConfig(MethodConfig):
    """Training with masks: the true class's map is pulled into the mask (causal-focus loss)."""

    method: Literal["cfcn"] = Field(description="The training method.")
    epochs: Epochs = None
    mask_share: MaskShare = Field(default=1.0, description="Share of the training images whose mask is used.")
    alpha: NonNegativeNumber = Field(default=1.0, description="Weight of the causal-focus loss.")
    variant: Literal["C", "F"] = Field(
        default="C",
        description="`C`: the true class's map of a backbone that ends with class maps; `F`: all maps of a layer.",
    )
    layer: Layer = Field(
        default=None, description="With variant `F`: the layer whose maps are looked at; the last if null."
    )
    resize: Literal["masks", "maps"] = Field(
        default="masks", description="Whether masks are brought to the size of the maps, or maps to that of the masks."
    )
    warm_up_epochs: WarmUpEpochs = 0
    ramp_epochs: RampEpochs = 0

    @property
    def masks(self) -> float | None:
        """The share of the training images' masks that the method is given."""
        return self.mask_share

    @model_validator(mode="after")
    def _check(self) -> CFCNConfig:
        if self.layer is not None and self.variant == "C":
            expected = "no layer with variant `C`, which has the class maps before the pooling"
            text = problem(expected, describe(self.layer), "Set layer to null, or variant to `F`.")
            raise_conflicts([("layer", text)])
        return self


class GAINConfig(MethodConfig):
    """Guided attention: without what Grad-CAM shows for its label, an image must lose the label; masks may help."""

    method: Literal["gain"] = Field(description="The training method.")
    epochs: Epochs = None
    attention_weight: NonNegativeNumber = Field(
        default=1.0, description="Weight of the attention mining: the label's probability in the masked image."
    )
    supervision_weight: NonNegativeNumber = Field(
        default=0.0,
        description="Weight of the distance between attention and mask (GAIN_ext; published: 10); 0 needs no masks.",
    )
    mask_share: Annotated[float | None, Field(gt=0, le=1)] = Field(
        default=None,
        description="With a supervision_weight: share of the training images whose mask is used; default 1.",
    )
    layer: Layer = None
    threshold: OpenShare = Field(
        default=0.5, description="Attention, as a share of its range in the image, above which a pixel is removed."
    )
    sharpness: PositiveNumber = Field(default=10.0, description="Steepness of the mask at the threshold.")
    masked_value: MaskedValue = (0.0,)
    warm_up_epochs: WarmUpEpochs = 2
    ramp_epochs: RampEpochs = 0

    @property
    def masks(self) -> float | None:
        """The share of the training images' masks that the method is given; None without supervision."""
        return self.mask_share

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: Any) -> Any:
        weight = values.get("supervision_weight") if isinstance(values, dict) else None
        if isinstance(weight, int | float) and weight > 0 and values.get("mask_share") is None:
            return {**values, "mask_share": 1.0}
        return values

    @model_validator(mode="after")
    def _check(self) -> GAINConfig:
        problems = []
        if self.mask_share is not None and self.supervision_weight == 0:
            expected = "no share where supervision_weight is 0, because no mask is then used"
            remedy = "Set mask_share to null, or supervision_weight above 0."
            problems.append(("mask_share", problem(expected, describe(self.mask_share), remedy)))
        if self.attention_weight == 0 and self.supervision_weight == 0:
            remedy = "Otherwise this is plain training."
            text = problem("attention_weight or supervision_weight above 0", "0 and 0", remedy)
            problems.append(("attention_weight", text))
        raise_conflicts(problems)
        return self


class RRRConfig(MethodConfig):
    """Right for the right reasons: outside the mask, no pixel may change what the model answers."""

    method: Literal["rrr"] = Field(description="The training method.")
    epochs: Epochs = None
    mask_share: MaskShare = Field(default=1.0, description="Share of the training images whose mask is used.")
    penalty_weight: NonNegativeNumber = Field(
        default=0.001, description="Weight of the sum of the squared input gradients outside the mask."
    )
    warm_up_epochs: WarmUpEpochs = 0
    ramp_epochs: RampEpochs = 0

    @property
    def masks(self) -> float | None:
        """The share of the training images' masks that the method is given."""
        return self.mask_share


class DFRConfig(MethodConfig):
    """Another model of the run, whose last layer alone is trained again, on balanced images held out from training.

    With `textured_digits` these are the images of the split `balanced`, balanced over digit and texture: the method
    knows the contexts, which the others do not. Image folders have no contexts: there the validation images are taken,
    balanced over the classes alone, and the model is not measured on them.
    """

    method: Literal["dfr"] = Field(description="The training method.")
    of: ModelName = Field(description="The model whose last layer is trained again; its own weights stay as they are.")
    inverse_strengths: Annotated[tuple[PositiveNumber, ...], Strict(False), Field(min_length=1)] = Field(
        default=(1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01),
        description="Inverse strengths of the L1 penalty to choose from, by the worst group.",
    )
    selection_share: OpenShare = Field(default=0.5, description="Share of every group's images that chooses.")
    subsets: PositiveInt = Field(default=10, description="Number of balanced subsets whose weights are averaged.")


ModelConfig = Annotated[
    PlainConfig | PPIConfig | CFCNConfig | GAINConfig | RRRConfig | DFRConfig, Field(discriminator="method")
]
