"""What is to be measured of one model, checked against the model and its images before any of it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import keras
import numpy as np

from tfcausal.config import AutoencoderConfig, EffectsConfig, LevelConfig, MaskingConfig
from tfcausal.config_errors import closest
from tfcausal.effect_study.rows import CLEAN
from tfcausal.effect_study.subject import Subject
from tfcausal.effects.channels import ChannelConcepts, Concepts
from tfcausal.effects.concept_maps import ConceptEffectMaps
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects, checked_classes, head_kind
from tfcausal.effects.maps import PixelEffects
from tfcausal.effects.results import EffectResult
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.interventions.adversarial import Attack, get_attack
from tfcausal.interventions.masking import random_blocks

LEAST_DETECTION_PART = 10  # images, of `effects.detection.detect`


@dataclass(frozen=True)
class Level:
    """A level whose concepts are intervened on.

    Attributes:
        layer: The layer, its name or path.
        concepts: What gives its codes; not trained yet.
        nodes: The concepts that are intervened on.
        has_maps: Whether its codes have places, so that there can be maps.
    """

    layer: str
    concepts: Concepts
    nodes: tuple[int, ...]
    has_maps: bool


@dataclass(frozen=True)
class Plan:
    """Everything that is measured of one model.

    Attributes:
        subject: The model and its images.
        effects: The settings.
        graph: The operations of the model.
        levels: Its levels.
        attacks: The attacks by name.
        classes: The classes whose effects are kept.
        pixel_effects: What makes pixel-wise maps; None for none.
    """

    subject: Subject
    effects: EffectsConfig
    graph: OperationGraph
    levels: tuple[Level, ...]
    attacks: dict[str, Attack]
    classes: np.ndarray
    pixel_effects: PixelEffects | None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The interventions on the images, by name, after `clean` for none."""
        masking = () if self.effects.masking is None else ("masking",)
        evidence = ("evidence",) if self.effects.evidence else ()
        return (CLEAN, *masking, *evidence, *self.attacks)

    @property
    def masking(self) -> MaskingConfig:
        """How pixels are masked; where images are not, patches of pixel-wise maps still are."""
        return self.effects.masking or MaskingConfig()

    @property
    def masked_value(self) -> float:
        """What a masked pixel becomes in the model's input."""
        low, high = self.subject.pixels
        return low + self.masking.value * (high - low)

    @property
    def shown_nodes(self) -> int:
        """How many concepts of every level are shown."""
        return self.effects.maps.nodes if self.effects.maps else 1

    @property
    def detected(self) -> tuple[str, ...]:
        """The attacks that are to be detected."""
        detection = self.effects.detection
        if detection is None:
            return ()
        return tuple(detection.attacks or self.attacks)

    def changed(
        self, condition: str, images: np.ndarray, first: int = 0, masks: np.ndarray | None = None
    ) -> np.ndarray:
        """Images under an intervention.

        Args:
            condition: One of `conditions`.
            images: As they are, (N, height, width, channels).
            first: Position of the first one among all images: the blocks that are masked in an image depend on its own.
            masks: For `evidence`: where the cause is, (N, height, width, 1); nothing is masked in an image without.
        """
        if condition == CLEAN:
            return images
        if condition in self.attacks:
            return self.attacks[condition](images)
        if condition != "evidence":
            size = (images.shape[1], images.shape[2])
            masks = random_blocks(len(images), size, self.masking.share, self.masking.blocks, self.subject.seed, first)
        return images if masks is None else np.where(masks > 0, np.float32(self.masked_value), images)

    def concept_effects(
        self, effects: ConceptEffects, images: np.ndarray, nodes: Sequence[int], distribution_images: np.ndarray | None
    ) -> EffectResult:
        """Effects of concepts in images, as the settings say.

        Args:
            effects: Measures them.
            images: (N, height, width, channels).
            nodes: The concepts.
            distribution_images: Images that values of concepts are taken from; None for values that need none.
        """
        values = self.effects.values
        return effects(
            images,
            nodes,
            list(values) if isinstance(values, tuple) else values,
            self.effects.points,
            scale=self.effects.scale,
            seed=self.subject.seed,
            distribution_images=distribution_images,
        )

    def kept(self, result: EffectResult) -> EffectResult:
        """What was measured for the classes of the settings; posterior weights need all of them."""
        if self.effects.weighting == "posterior":
            return result
        return replace(
            result,
            observed=result.observed[:, self.classes],
            intervened=result.intervened[..., self.classes],
            untouched=result.untouched[:, self.classes],
            classes=result.classes[self.classes],
        )

    def concept_maps(self, level: Level) -> ConceptEffectMaps | None:
        """What makes concept-weighted maps of a level; None where its codes have no places."""
        if not level.has_maps:
            return None
        return ConceptEffectMaps(level.concepts, reference=self.effects.reference, scale=self.effects.scale)

    def class_name(self, index: int) -> str:
        """The name of a class, its number where it has none."""
        names = self.subject.class_names
        return str(index) if names is None else names[index]

    def changed_answers(self, outputs: Mapping[str, np.ndarray], condition: str) -> np.ndarray:
        """Whether an intervention changes the answer to an image, or one of several labels, (N,)."""
        clean, changed = outputs[CLEAN], outputs[condition]
        if self.multi_label or clean.shape[1] == 1:
            threshold = 0.5 if self.multi_label else 0.0  # of one unit without an activation, a logit
            return ((clean > threshold) != (changed > threshold)).any(axis=1)
        return clean.argmax(axis=1) != changed.argmax(axis=1)

    def never_predicted(self, outputs: np.ndarray) -> np.ndarray:
        """The classes that are no image's answer."""
        if self.multi_label or outputs.shape[1] == 1:
            return np.flatnonzero(~(outputs > (0.5 if self.multi_label else 0.0)).any(axis=0))
        return np.flatnonzero(np.bincount(outputs.argmax(axis=1), minlength=outputs.shape[1]) == 0)

    @property
    def multi_label(self) -> bool:
        """Whether the outputs are sigmoids."""
        return head_kind(self.graph) == "sigmoid"


def plan(subject: Subject, effects: EffectsConfig, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Check that effects can be measured, and prepare it.

    Args:
        subject: The model and its images.
        effects: What is measured.
        say: Called with a sentence about what was chosen.

    Raises:
        InvalidArgument: A layer, node, class, patch or number of images that does not go with the model.
        UnsupportedOperation: The model or an attack that it does not allow, or ART is not installed.
    """
    graph = OperationGraph(subject.model)
    _raise_first(effects.image_problems(subject.measured.image_shape))
    if effects.values == "sampled" and len(subject.measured) < 2:
        remedy = "Values are sampled from the other images."
        raise InvalidArgument(message("effects.images", "at least two with values `sampled`", 1, remedy))
    if effects.weighting == "posterior" and head_kind(graph) == "linear":
        remedy = "Give the model the softmax or sigmoid that belongs to its logits, or take `class`."
        raise InvalidArgument(
            message("effects.weighting", "`class` for a model that ends with logits", "posterior", remedy)
        )
    if effects.evidence and not subject.measured.has_mask.any():
        expected = "false for images without a mask of the cause"
        raise InvalidArgument(message("effects.evidence", expected, "true", "Masks belong into masks/<class>/."))
    classes = _classes(effects, subject, graph)
    attacks = _attacks(subject, effects)
    chosen = effects.levels or default_levels(graph, effects.autoencoder, say)
    levels = tuple(_level(subject, effects, level) for level in chosen)
    pixel_effects = _pixel_effects(subject, effects)
    _check_detection(effects, len(subject.measured), graph)
    _check_maps(effects, levels, say)
    return Plan(subject, effects, graph, levels, attacks, classes, pixel_effects)


def default_levels(
    graph: OperationGraph, autoencoder: AutoencoderConfig | None, say: Callable[[str], None] = lambda text: None
) -> tuple[LevelConfig, ...]:
    """The last convolution of a model and one half-way to it; not one whose maps are the logits of the classes.

    Args:
        graph: The operations of the model.
        autoencoder: Its number of concepts is the fewest channels of a level.
        say: Called with a sentence about the choice.

    Raises:
        InvalidArgument: There is no such convolution.

    Example:
        >>> x = inputs = keras.Input((8, 8, 1))
        >>> for name in ("conv1", "conv2", "conv3"):
        ...     x = keras.layers.Conv2D(16, 1, name=name)(x)
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
        >>> [level.layer for level in default_levels(OperationGraph(model), AutoencoderConfig())]
        ['conv2', 'conv3']
    """
    fewest = autoencoder.concepts if autoencoder else 1
    weighted = [index for index, operation in enumerate(graph.operations) if getattr(operation.layer, "weights", None)]
    found: dict[str, None] = {}
    for index, operation in enumerate(graph.operations):
        if not isinstance(operation.layer, keras.layers.Conv2D | keras.layers.SeparableConv2D):
            continue
        shape = operation.shapes[0]
        if len(shape) == 4 and (shape[3] or 0) >= fewest and operation.rows == 1 and index < weighted[-1]:
            found[operation.path] = None
    if not found:
        expected = (
            f"a model with a convolution of at least {fewest} channels (effects.autoencoder.concepts) before its end"
        )
        raise InvalidArgument(message("effects.levels", expected, "none", "Name a layer, or ask for fewer concepts."))
    names = list(found)
    chosen = list(dict.fromkeys([names[(len(names) - 1) // 2], names[-1]]))
    say(f"Levels: {', '.join(chosen)}, chosen among {len(names)} convolutions. Others: --set levels=[LAYER, ...].")
    return tuple(LevelConfig(layer=name) for name in chosen)


def _level(subject: Subject, effects: EffectsConfig, level: LevelConfig) -> Level:
    settings = effects.autoencoder
    try:
        if settings is None:
            concepts: Any = ChannelConcepts(subject.model, level.layer)
        else:
            # By the name, so that a level starts the same whatever other levels there are.
            keras.utils.set_random_seed((subject.seed + crc32(level.layer.encode())) % 2**32)
            concepts = ConceptAutoencoder(
                subject.model,
                level.layer,
                concepts=settings.concepts,
                hidden=settings.hidden,
                kernel_size=settings.kernel_size,
                shallow_weight=settings.shallow_weight,
                deep_weight=settings.deep_weight,
                interpretability={str(name): weight for name, weight in settings.interpretability.items()},
                interpretability_weight=settings.interpretability_weight,
            )
    except (InvalidArgument, UnsupportedOperation) as error:
        raise type(error)(f"effects.levels ({level.layer}): {error}") from error
    nodes = level.nodes if level.nodes is not None else tuple(range(concepts.concepts))
    if max(nodes) >= concepts.concepts:
        expected = f"concepts in [0, {concepts.concepts - 1}]"
        raise InvalidArgument(message(f"effects.levels ({level.layer}).nodes", expected, max(nodes)))
    has_maps = len(concepts.downstream.shape) == 4
    return Level(level.layer, concepts, nodes, has_maps)


def _attacks(subject: Subject, effects: EffectsConfig) -> dict[str, Attack]:
    attacks: dict[str, Attack] = {}
    for index, attack in enumerate(effects.attacks):
        try:
            attacks[attack.name] = get_attack(
                model=subject.model, clip_values=subject.bounds, seed=subject.seed, **attack.settings
            )
        except ImportError as error:
            raise UnsupportedOperation(f"effects.attacks[{index}] ({attack.name}): {error}") from error
        except (InvalidArgument, UnsupportedOperation) as error:
            raise type(error)(f"effects.attacks[{index}] ({attack.name}): {error}") from error
    return attacks


def _classes(effects: EffectsConfig, subject: Subject, graph: OperationGraph) -> np.ndarray:
    if effects.classes is None:
        return np.arange(graph.num_classes)
    names, chosen = subject.class_names or (), []
    for name in effects.classes:
        if isinstance(name, int):
            chosen.append(name)
        elif name in names:
            chosen.append(names.index(name))
        else:
            remedy = closest(name, names, "classes") if names else "The names are not known here: give numbers."
            raise InvalidArgument(message("effects.classes", "names or numbers of classes", repr(name), remedy))
    return checked_classes(chosen, graph.num_classes)


def _pixel_effects(subject: Subject, effects: EffectsConfig) -> PixelEffects | None:
    of_maps = effects.maps is not None and effects.maps.pixel_wise is not None
    of_detection = effects.detection is not None and "pixel_map" in effects.detection.detectors
    if not (of_maps or of_detection):
        return None
    patches = effects.maps.pixel_wise if effects.maps else None
    low, high = subject.pixels
    value = 0.5 if effects.masking is None else effects.masking.value
    try:
        return PixelEffects(
            subject.model,
            patch=patches.patch if patches else None,
            stride=patches.stride if patches else None,
            masked_value=low + value * (high - low),
            sign=effects.sign,
            scale=effects.scale,
        )
    except InvalidArgument as error:
        raise InvalidArgument(f"effects.maps.pixel_wise: {error}") from error


def _check_detection(effects: EffectsConfig, count: int, graph: OperationGraph) -> None:
    if effects.detection is None:
        return
    first, second = effects.detection.shares
    smallest = min(round(first * count), round(second * count), count - round(first * count) - round(second * count))
    if smallest < LEAST_DETECTION_PART:
        least = int(np.ceil(LEAST_DETECTION_PART / min(first, second, 1 - first - second)))
        expected = f"at least {least} images, so that each of the three parts of effects.detection has ten"
        remedy = "Images that the concepts are trained on are not among them."
        raise InvalidArgument(message("effects.images", expected, count, remedy))
    if head_kind(graph) == "linear":
        expected = "null for a model that ends with logits, which has no confidence to compare with"
        remedy = "Give the model the softmax or sigmoid that belongs to its logits."
        raise InvalidArgument(message("effects.detection", expected, "a section", remedy))


def _check_maps(effects: EffectsConfig, levels: tuple[Level, ...], say: Callable[[str], None]) -> None:
    """Levels without places, such as dense layers, have no maps: what was asked of them is refused or left out."""
    without = [level.layer for level in levels if not level.has_maps]
    if not without:
        return
    detectors = effects.detection.detectors if effects.detection else ()
    if set(detectors) == {"concept_map"} and len(without) == len(levels):
        expected = "a detector beside concept_map, as no level has maps"
        raise InvalidArgument(message("effects.detection.detectors", expected, f"levels {', '.join(without)}"))
    if "concept_map" in detectors or effects.maps is not None:
        say(f"Without concept-weighted maps, as their concepts have no places: {', '.join(without)}.")


def _raise_first(problems: list[tuple[str, str]]) -> None:
    if problems:
        raise InvalidArgument("; ".join(f"effects.{key}: {text}" for key, text in problems))
