"""Causal effects in blocks of images, with concepts that were found before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.config import EffectsConfig, effects_from_mapping
from tfcausal.data.image_set import ImageSet
from tfcausal.effect_study.plan import Plan, plan
from tfcausal.effect_study.rows import CLEAN, intervention_name
from tfcausal.effect_study.study import load_concepts
from tfcausal.effect_study.subject import Subject
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.effects.results import EffectResult
from tfcausal.effects.store import AUTOENCODER, EffectStore, read_json
from tfcausal.effects.table import Measurement
from tfcausal.environment import environment, hash_of
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.models.loading import load_trained

_REMEDY = "Measure again with `tfcausal effects --overwrite`."
_NEEDED = ("model", "effects", "image_shape", "pixels", "seed")
_LEFT_OUT = {"evidence": False, "maps": None, "detection": None}
"""What needs masks, or all images at once."""


@dataclass(frozen=True)
class Study:
    """Which model is measured, and by which concepts and settings.

    Attributes:
        source: A run directory, or a model file.
        concepts: Where its effects on some images are: their concepts and settings are taken.
        model_name: Which model of a run; None where there is one, and for a file.
    """

    source: Path
    concepts: Path
    model_name: str | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured in some images for one level and intervention.

    Attributes:
        effects: (N, nodes, classes), float32.
        values: What the concepts are set to, (nodes, 1).
        classes: As in :class:`tfcausal.effects.results.EffectSummary`.
        result: All of it.
    """

    effects: np.ndarray
    values: np.ndarray
    classes: np.ndarray
    result: EffectResult


class EffectMeasurer:
    """Measures the effects on the answers to images that concepts, masks and attacks have.

    Args:
        study: What is measured.

    Attributes:
        name: Name of the model in the tables.
        store: Its effects on some images, from which concepts and settings come.
        settings: What was measured there, and of which model.
        plan: What is measured.
        shape: (height, width, channels) that images are resized to.
        class_names: Names of the classes by index; None where they are unknown.

    Raises:
        InvalidArgument: The settings have values of concepts that depend on the images, or the model is another one.
        RunError: There are no finished effects of the model, or a file of theirs is damaged.
        UnsupportedOperation: The model or an attack that it does not allow, or ART is not installed.
    """

    def __init__(self, study: Study) -> None:
        loaded = load_trained(study.source, study.model_name)
        file = loaded.file or study.source
        self.name = file.parent.name if study.source.is_dir() else file.stem
        self.store = EffectStore(study.concepts, self.name)
        if not self.store.is_finished:
            raise RunError(
                f"{self.store.folder}: expected the effects of {self.name} on some images, whose concepts are used; "
                f"there are none, or they are not finished. Measure them first, without --engine: `tfcausal effects "
                f"{study.source}`, or name their folder with --concepts."
            )
        path = self.store.folder / "settings.json"
        self.settings = read_json(path)
        missing = [name for name in _NEEDED if name not in self.settings]
        if missing:
            raise RunError(f"{path}: expected the settings of effects; there is no `{missing[0]}`. {_REMEDY}")
        if hash_of([file]) != self.settings["model"]:
            expected = f"the model whose concepts are in {self.store.folder}"
            raise InvalidArgument(message(str(file), expected, "another one", "Measure its effects first."))
        effects = effects_from_mapping({**self.settings["effects"], **_LEFT_OUT}, [])
        _check_values(effects)
        height, width, channels = self.settings["image_shape"]
        low, high = self.settings["pixels"]
        self.shape = (height, width, channels)
        none = ImageSet((), np.empty(0, int), ("unknown",), self.shape, np.empty(0, bool), _no_images)
        subject = Subject(
            name=self.name,
            source=loaded.source,
            model=loaded.model,
            pixels=(low, high),
            class_names=loaded.class_names,
            measured=none,
            training=none,
            seed=self.settings["seed"],
            identity={},
        )
        self.class_names = loaded.class_names
        self.plan: Plan = plan(subject, effects)
        self._answers = ImageEffects(loaded.model, effects.sign)
        self._levels = []
        for level in self.plan.levels:
            load_concepts(level, self.store.level(level.layer), _REMEDY)
            self._levels.append((level, ConceptEffects(level.concepts, effects.reference, effects.sign)))

    @property
    def answer_name(self) -> str:
        """What the model answers with: `probability`, or `logit` if it has no softmax or sigmoid at its end."""
        return "logit" if self.plan.graph.output == self.plan.graph.logits else "probability"

    def description(self) -> dict[str, Any]:
        """What is measured, and with which versions, for JSON."""
        subject = self.plan.subject
        levels = self.plan.levels if self.plan.effects.autoencoder else ()
        autoencoders = {level.layer: self.store.level(level.layer) / AUTOENCODER for level in levels}
        return {
            "model": subject.source,
            "model_sha256": self.settings["model"],
            "concepts_sha256": {layer: hash_of([path]) for layer, path in autoencoders.items()},
            "effects": self.plan.effects.model_dump(),
            "seed": subject.seed,
            "image_shape": list(self.shape),
            "pixels": list(subject.pixels),
            "versions": environment(subject.seed)["versions"],
        }

    def measurement(self, level: str | None, intervention: str, result: EffectResult) -> Measurement:
        """What the table of effects says of all rows of a result.

        Args:
            level: The layer; None for an intervention on the image.
            intervention: Its name.
            result: Any result of it.
        """
        weighting = self.plan.effects.weighting
        return Measurement(self.name, level, intervention, result.reference, result.sign, weighting, result.scale)

    def changed(self, pictures: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
        """Images as they are, masked and attacked, in the model's input space, by intervention.

        Args:
            pictures: In [0, 1], float32 (N, height, width, channels).
            first: Position of the first of them among all images.
        """
        low, high = self.plan.subject.pixels
        clean = (low + (high - low) * pictures).astype(np.float32)
        return {condition: self.plan.changed(condition, clean, first) for condition in self.plan.conditions}

    def __call__(
        self, changed: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[tuple[str | None, str], Measured]]:
        """Measure effects in images.

        Args:
            changed: The same images under every intervention, as :meth:`changed` gives them.

        Returns:
            The answers (N, classes) by intervention on the images; and what was measured, by level (None for the image
            itself) and by the name of the intervention in the table of effects.

        Raises:
            InvalidArgument: The model gives values that are not finite.
        """
        both = {condition: self._answers.answers(images) for condition, images in changed.items()}
        every, scale = np.arange(self._answers.graph.num_classes), self.plan.effects.scale
        found: dict[tuple[str | None, str], Measured] = {}
        for condition in self.plan.conditions[1:]:
            same = (changed[condition] == changed[CLEAN]).all(axis=(1, 2, 3))
            found[None, condition] = self._measured(
                self._answers.compared(both[condition], both[CLEAN], same, scale, every)
            )
        for level, effects in self._levels:
            for condition, images in changed.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # an unfaithful autoencoder shows in the table
                    result = self.plan.concept_effects(effects, images, level.nodes, None)
                name = intervention_name(result.intervention, condition)
                found[level.layer, name] = self._measured(result)
        return {condition: outputs for condition, (_, outputs) in both.items()}, found

    def _measured(self, result: EffectResult) -> Measured:
        kept = self.plan.kept(result)
        effects, values, classes = kept.per_image(self.plan.effects.weighting)
        return Measured(effects[:, :, 0], values, classes, kept)


def _check_values(effects: EffectsConfig) -> None:
    if effects.values == "zero" or isinstance(effects.values, float):
        return
    expected = "`zero` or one number: other values depend on images beside the one that is measured"
    remedy = "Measure effects on some images with `--set values=zero` first."
    raise InvalidArgument(message("effects.values", expected, repr(effects.values), remedy))


def _no_images(positions: Any) -> tuple[np.ndarray, np.ndarray]:
    raise RunError("There are no images beside those of the blocks.")


def array_names(found: Mapping[tuple[str | None, str], Measured]) -> dict[tuple[str | None, str], str]:
    """What the arrays of effects are called: `image/masking`, `conv2/zero_out+fgsm`; no two are the same.

    Args:
        found: What was measured.
    """
    names: dict[tuple[str | None, str], str] = {}
    for level, intervention in found:
        place = "image" if level is None else level.replace("/", "_")
        name = f"{place}/{intervention}"
        while name in names.values():
            name = f"{name}_"
        names[level, intervention] = name
    return names
