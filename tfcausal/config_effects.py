"""The section `effects` of a configuration: which causal effects are measured, in a run or by `tfcausal effects`.

The defaults are those of *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural
Networks* where it says them: 16 concepts, a tenth of the area masked, attacks of size 0.3 in 10 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from tfcausal.config_attacks import LARGEST_JSMA_IMAGE, AttackConfig, FGSMConfig, JSMAConfig, short
from tfcausal.config_errors import Expects, describe, problem, raise_conflicts
from tfcausal.config_section import (
    NonNegativeNumber,
    OpenShare,
    Pair,
    PositiveInt,
    PositiveNumber,
    Section,
    as_integer,
)


class LevelConfig(Section):
    """A level: the layer behind which concepts are looked for, and which of them are intervened on."""

    layer: str = Field(min_length=1, description="The layer, by name or path; its activation is taken apart.")
    nodes: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Strict(False),
        Field(min_length=1),
        Expects("a list of different concepts, counted from 0"),
    ] = Field(default=None, description="The concepts that are intervened on, counted from 0; all if null.")

    @model_validator(mode="after")
    def _check(self) -> LevelConfig:
        if self.nodes is not None and len(set(self.nodes)) < len(self.nodes):
            raise_conflicts([("nodes", problem("different concepts", describe(list(self.nodes))))])
        return self


def _weighted(value: object) -> object:
    """A name or a list of names stands for weights of 1."""
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, 1.0) if isinstance(names, list | tuple) and all(map(_is_text, names)) else value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class AutoencoderConfig(Section):
    """The autoencoder that gathers the channels of a layer into concepts."""

    concepts: PositiveInt = Field(default=16, description="Number of concepts, the channels of its code.")
    hidden: PositiveInt = Field(default=32, description="Channels of the layers before and behind the code.")
    kernel_size: PositiveInt = Field(default=3, description="Side of the kernels of its convolutions.")
    epochs: PositiveInt = Field(default=10, description="Passes over the images that it is trained on.")
    batch_size: PositiveInt = Field(default=32, description="Images per step.")
    learning_rate: PositiveNumber = Field(default=1e-3, description="The learning rate of Adam at the start.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="`cosine` lowers the learning rate to 0 over all steps, `constant` keeps it."
    )
    images: PositiveInt = Field(
        default=2000,
        description="Most images that it is trained on, chosen with the seed: training images of a run, half of the "
        "images that are named on the command line.",
    )
    shallow_weight: NonNegativeNumber = Field(default=0.5, description="Weight of reconstructing the activation (L1).")
    deep_weight: NonNegativeNumber = Field(
        default=0.4, description="Weight of keeping the network's answer (Kullback-Leibler divergence)."
    )
    interpretability_weight: NonNegativeNumber = Field(
        default=0.1, description="Weight of the penalties that make concepts easier to look at."
    )
    interpretability: Annotated[
        dict[Literal["tv", "l1", "tv_texture", "entropy"], NonNegativeNumber],
        BeforeValidator(_weighted),
        Expects("names of `tv`, `l1`, `tv_texture`, `entropy`, or a section of weights by name"),
    ] = Field(
        default={"tv": 1.0, "l1": 1.0},
        min_length=1,
        description="The penalties: `tv` for smooth concepts, `l1` for sparse ones, `entropy` for such as are in one "
        "place, `tv_texture` as in the code of the paper's authors. A list gives each the weight 1.",
    )

    @model_validator(mode="after")
    def _check(self) -> AutoencoderConfig:
        problems = []
        if not (self.shallow_weight or self.deep_weight):
            expected = "a weight above 0 here or at deep_weight: otherwise nothing is reconstructed"
            problems.append(("shallow_weight", problem(expected, describe(self.shallow_weight))))
        if self.interpretability_weight and not any(self.interpretability.values()):
            expected = "a weight above 0 for one of the penalties"
            remedy = "To train without, set interpretability_weight to 0."
            problems.append(("interpretability", problem(expected, "none", remedy)))
        raise_conflicts(problems)
        return self


class MaskingConfig(Section):
    """Pixel-wise masking: a share of the area, in blocks drawn at random."""

    share: OpenShare = Field(default=0.1, description="Share of the area that is masked.")
    blocks: Pair = Field(default=(10, 10), description="[rows, columns] that the image is divided into.")
    value: float = Field(
        default=0.5, ge=0, le=1, description="What a masked pixel becomes: 0 black, 1 white, 0.5 mid-grey."
    )


class PatchConfig(Section):
    """Pixel-wise effect maps: every patch of an image is taken away in turn."""

    patch: PositiveInt | None = Field(
        default=None, description="Side of a patch in pixels; an eighth of the image's shorter side if null."
    )
    stride: PositiveInt | None = Field(default=None, description="From one patch to the next in pixels; patch if null.")


class MapsConfig(Section):
    """Maps of effects on a few images, clean and attacked side by side."""

    images: PositiveInt = Field(default=4, description="Images that maps are made of.")
    pixel_wise: PatchConfig | None = Field(default=PatchConfig(), description="Pixel-wise effect maps; null for none.")
    concept_weighted: bool = Field(
        default=True, description="Whether there are maps of the concepts, weighted by their effects."
    )
    nodes: PositiveInt = Field(default=3, description="Concepts of every level that are shown, the strongest first.")


class DetectionConfig(Section):
    """How well effects tell attacked images from clean ones, on three separate parts of the images."""

    attacks: Annotated[
        tuple[Literal["fgsm", "bim", "pgd", "jsma"], ...] | None,
        Strict(False),
        Field(min_length=1),
        Expects("a list of attacks out of effects.attacks"),
    ] = Field(default=None, description="The attacks that are to be detected; all of effects.attacks if null.")
    detectors: Annotated[
        tuple[Literal["effects", "largest_effect", "concept_map", "pixel_map"], ...], Strict(False), Field(min_length=1)
    ] = Field(
        default=("effects", "concept_map"),
        description="What is compared with confidence: the effects of the concepts of a level on the predicted "
        "class, the largest of them, or statistics of the concept-weighted or of the pixel-wise map (slow).",
    )
    shares: Annotated[
        tuple[OpenShare, ...], Strict(False), Expects("[share to fit on, share to choose the threshold on], below 1")
    ] = Field(
        default=(0.4, 0.2),
        description="Shares of the images that detectors are fitted on and thresholds chosen on; the rest is measured.",
    )
    rule: Literal["youden", "false_positive_rate"] = Field(
        default="youden",
        description="How a threshold is chosen: `youden` for the largest sum of sensitivity and specificity, or by the "
        "false positive rate.",
    )
    false_positive_rate: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="With the rule of this name: the rate that the threshold keeps to."
    )
    fitted_on: Literal["fgsm", "bim", "pgd", "jsma"] | None = Field(
        default=None, description="The attack that all detectors are fitted on; each on its own if null."
    )
    only_successful: bool = Field(
        default=False, description="Whether attacks that do not change the answer are left out."
    )

    @model_validator(mode="after")
    def _check(self) -> DetectionConfig:
        if len(self.shares) != 2 or sum(self.shares) >= 1:
            expected = "[share to fit on, share to choose the threshold on], in all below 1"
            raise_conflicts([("shares", problem(expected, describe(list(self.shares))))])
        return self


Level = Annotated[
    LevelConfig,
    BeforeValidator(short("layer")),
    Expects("a layer by name or path, or a section such as `{layer: conv2, nodes: [3, 7]}`"),
]
Values = Annotated[
    Literal["zero", "mean", "range", "sampled"] | float | tuple[float, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Expects("one of `zero`, `mean`, `range`, `sampled`, a number, or a list of different numbers"),
]


class EffectsConfig(Section):
    """Which causal effects are measured, and how."""

    levels: Annotated[tuple[Level, ...], Strict(False)] = Field(
        default=(),
        description="The layers whose concepts are intervened on, by name or path, or as {layer, nodes}; if empty, the "
        "last convolution of the model and one half-way to it.",
    )
    autoencoder: AutoencoderConfig | None = Field(
        default=AutoencoderConfig(),
        description="The autoencoder that finds concepts at every level; null takes the channels themselves.",
    )
    values: Values = Field(
        default="zero",
        description="What a concept is set to: `zero`, its `mean`, values over its `range`, `sampled` from other "
        "images, a number, or a list of numbers.",
    )
    points: PositiveInt = Field(default=5, description="With values `range` or `sampled`: how many.")
    reference: Literal["autoencoder", "model"] = Field(
        default="autoencoder",
        description="What an effect refers to: the answer through the untouched autoencoder, which leaves its error "
        "out, or the answer of the model as it is.",
    )
    sign: Literal["do_minus_observed", "observed_minus_do"] = Field(
        default="do_minus_observed",
        description="`do_minus_observed` is equation 1: taking away what speaks for a class is negative; the paper's "
        "tables are the other way round.",
    )
    weighting: Literal["class", "posterior"] = Field(
        default="class",
        description="`class`: the effect on every class by itself. `posterior`: classes weighted by their probability "
        "in the image, one number per node, as in the code of the paper's authors.",
    )
    scale: Literal["probability", "logit"] = Field(default="probability", description="What effects are measured in.")
    masking: MaskingConfig | None = Field(
        default=MaskingConfig(), description="Pixel-wise masking of the images; null for none."
    )
    evidence: bool = Field(
        default=False,
        description="Whether the known cause of every image, which its mask shows, is masked as well (condition II of "
        "the paper's figure 1); images without a mask stay as they are.",
    )
    attacks: Annotated[tuple[AttackConfig, ...], Strict(False)] = Field(
        default=(FGSMConfig(name="fgsm"),), description="Adversarial perturbations of the images; [] for none."
    )
    split: Literal["train", "validation", "test", "test_shuffled"] = Field(
        default="test", description="The images of a run that effects are measured on."
    )
    images: PositiveInt = Field(default=256, description="Most images that effects are measured on.")
    classes: Annotated[
        tuple[str | Annotated[int, Field(ge=0)], ...] | None,
        Strict(False),
        Field(min_length=1),
        Expects("a list of names or numbers of classes"),
    ] = Field(default=None, description="The classes whose effects are kept, by name or number; all if null.")
    seed: Annotated[int | None, Field(ge=0, lt=2**32)] = Field(
        default=None, description="Seed of everything that is random; the run's own if null, 0 for a model file."
    )
    resamples: PositiveInt = Field(default=2000, description="Bootstrap samples of every interval.")
    maps: MapsConfig | None = Field(default=MapsConfig(), description="Effect maps on a few images; null for none.")
    detection: DetectionConfig | None = Field(
        default=None, description="Detection of attacked images by their effects; null for none."
    )

    @model_validator(mode="after")
    def _check(self) -> EffectsConfig:
        problems = []
        named: dict[str, list[str]] = {
            "levels": [level.layer for level in self.levels],
            "attacks": [attack.name for attack in self.attacks],
        }
        for key, names in named.items():
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                problems.append((key, problem("every one of them once", f"`{twice[0]}` {names.count(twice[0])} times")))
        problems += self._value_problems()
        if self.weighting == "posterior" and self.classes is not None:
            expected = "null with weighting `posterior`, which puts all classes together"
            problems.append(("classes", problem(expected, describe(list(self.classes)))))
        if self.detection is not None:
            known = [attack.name for attack in self.attacks]
            chosen = self.detection.attacks or tuple(known)
            unknown = [name for name in chosen if name not in known]
            if not known:
                problems.append(("attacks", problem("an attack for detection to detect", "none", "Name one.")))
            elif unknown:
                expected = f"attacks out of effects.attacks ({', '.join(known)})"
                problems.append(("detection.attacks", problem(expected, f"`{unknown[0]}`")))
            elif self.detection.fitted_on not in (None, *chosen):
                expected = f"one of the attacks that are to be detected ({', '.join(chosen)}), or null"
                problems.append(("detection.fitted_on", problem(expected, f"`{self.detection.fitted_on}`")))
        raise_conflicts(problems)
        return self

    def _value_problems(self) -> list[tuple[str, str]]:
        if isinstance(self.values, tuple) and (not self.values or len(set(self.values)) < len(self.values)):
            return [("values", problem("different numbers, at least one", describe(list(self.values))))]
        if self.values == "range" and self.points < 2:
            return [("points", problem("at least 2 with values `range`", describe(self.points)))]
        return []

    def image_problems(self, image_shape: Sequence[int]) -> list[tuple[str, str]]:
        """What does not go with images of this size, as pairs of a key and a sentence.

        Args:
            image_shape: Height, width and channels.
        """
        height, width, channels = image_shape
        problems = []
        if self.masking is not None and (self.masking.blocks[0] > height or self.masking.blocks[1] > width):
            expected = f"at most {height} rows and {width} columns, the pixels of an image"
            problems.append(("masking.blocks", problem(expected, describe(list(self.masking.blocks)))))
        patches = None if self.maps is None else self.maps.pixel_wise
        if patches is not None and (patches.patch or 1) > min(height, width):
            expected = f"at most {min(height, width)}, the shorter side of an image"
            problems.append(("maps.pixel_wise.patch", problem(expected, describe(patches.patch))))
        size = height * width * channels
        for index, attack in enumerate(self.attacks):
            if isinstance(attack, JSMAConfig) and size > LARGEST_JSMA_IMAGE and not attack.any_size:
                expected = f"images of at most {LARGEST_JSMA_IMAGE} pixel values, of which each pass changes two"
                remedy = "Leave jsma out, use smaller images, or set its `any_size: true` and wait."
                problems.append((f"attacks[{index}]", problem(expected, f"{height}x{width}x{channels}", remedy)))
        return problems


class EffectsFile(Section):
    """A file with the section `effects` alone, for `tfcausal effects --config`."""

    version: Annotated[Literal[1], BeforeValidator(as_integer)] = Field(description="Version of this file format.")
    effects: EffectsConfig = Field(description="Which causal effects are measured.")
