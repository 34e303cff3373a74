"""Interventions on one image, for a person who looks on: what changes in the answer and the maps of a classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal.browsing.classifier import LoadedClassifier
from tfcausal.browsing.concept_levels import Level, OpenLevel, channel_levels
from tfcausal.config_errors import closest
from tfcausal.effects.engine import checked_images
from tfcausal.effects.equations import Head, effect
from tfcausal.effects.expected import head_kind
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.effects.maps import PixelEffects
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.interventions.adversarial import ATTACKS, Attack, default_step, get_attack
from tfcausal.saliency.arguments import check_integer

PIXEL_EFFECTS = "pixel_effects"
"""The map of :meth:`Interventions.map` that is of no saliency method: patches are masked one by one."""
_LEVELS = 3  # levels whose compiled functions are kept; the one that was used longest ago goes first


@dataclass(frozen=True)
class Comparison:
    """What a classifier answers before and after an intervention on one image.

    Attributes:
        before: The answers that the effects refer to, (classes,): those of the network, or with learned concepts those
            of the network through the untouched autoencoder.
        after: The answers after the intervention, (classes,).
        network: What the network itself answers to the image, (classes,).
        kind: `softmax`, `sigmoid`, or `linear` where the answers are logits.
    """

    before: np.ndarray
    after: np.ndarray
    network: np.ndarray
    kind: Head

    @property
    def effects(self) -> np.ndarray:
        """Equation 1 for every class, ``P(y | do) - P(y)``, (classes,)."""
        return np.asarray(effect(self.after, self.before, "do_minus_observed"))


class Interventions:
    """Changes an image or takes concepts away, and tells how the answer and the maps of a classifier change.

    What is compiled is kept: of attacks one set of functions whatever their strength, of levels those used last.

    Source: C.-H. H. Yang et al., *When causal intervention meets adversarial examples and image masking for deep neural
    networks*, ICIP 2019: equation 1, for one image, with pixel-wise masking, attacks and zero-out of concepts.

    Args:
        classifier: The classifier.
        levels: Levels whose concepts were learned for this very classifier; channels of its convolutions come beside
            them.

    Attributes:
        classifier: As given.
        levels: All levels whose concepts can be taken away, those given first.
        kind: What stands behind the logits: `softmax`, `sigmoid` or `linear`.

    Raises:
        UnsupportedOperation: The model has several inputs or no graph of operations.

    Example:
        >>> import keras
        >>> from tfcausal.models.loading import LoadedModel
        >>> inputs = keras.Input((2, 2, 1))
        >>> head = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones")
        >>> model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
        >>> interventions = Interventions(LoadedClassifier(LoadedModel(model, "a model", pixels=(0.0, 1.0))))
        >>> image = np.ones((2, 2, 1), np.float32)
        >>> changed = interventions.masked(image, np.array([[True, True], [False, False]]), value=0.0)
        >>> interventions.compare(image, changed).effects.round(3)
        array([-0.101], dtype=float32)
    """

    def __init__(self, classifier: LoadedClassifier, levels: Sequence[Level] = ()) -> None:
        self.classifier = classifier
        self._image_effects = ImageEffects(classifier.model)
        self._graph = self._image_effects.graph
        self.kind: Head = head_kind(self._graph)
        self.levels = (*levels, *channel_levels(self._graph))
        self._open: OrderedDict[str, OpenLevel] = OrderedDict()
        self._pixel_effects: OrderedDict[str, PixelEffects] = OrderedDict()
        self._attack: Attack | None = None
        self._lock = RLock()  # one compilation at a time, and the switches of a network for one map at a time

    def concepts(self, level: str) -> int:
        """Number of concepts of a level.

        Raises:
            InvalidArgument: There is no such level, or its autoencoder cannot be loaded.
        """
        with self._lock:
            return self._opened(level).concepts.concepts

    def masked(self, image: np.ndarray, mask: np.ndarray, value: float = 0.5) -> np.ndarray:
        """Mask pixels of an image.

        Args:
            image: In the range of the classifier's pixels, (height, width, channels).
            mask: The pixels to mask, bool (height, width).
            value: What they become: 0 for black, 1 for white.

        Returns:
            The changed image; a pixel that is not masked is as it was.

        Raises:
            InvalidArgument: An image or a mask of another shape, or a value outside its range.
        """
        images, inside = self._checked(image), np.asarray(mask)
        if inside.shape != images.shape[1:3] or inside.dtype != bool:
            expected = f"booleans of shape {images.shape[1:3]}"
            raise InvalidArgument(message("mask", expected, f"{inside.dtype} of shape {inside.shape}"))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InvalidArgument(message("value", "a number from 0, black, to 1, white", repr(value)))
        return np.where(inside[..., None], np.float32(self._pixel(value)), images[0])

    def attacked(self, image: np.ndarray, name: str, eps: float, steps: int = 10, seed: int = 0) -> np.ndarray:
        """Attack an image: lead the classifier away from its answer.

        Args:
            image: Between black and white, (height, width, channels).
            name: `fgsm`, `bim`, `pgd` or `jsma`, as for :func:`tfcausal.interventions.adversarial.get_attack`.
            eps: Largest change of a pixel value as a share of the distance from black to white, in (0, 1]; for `jsma`
                the change of a value at a time.
            steps: Iterations of `bim` and `pgd`.
            seed: Seed of the random start of `pgd`.

        Raises:
            InvalidArgument: Another image, or a setting outside its range.
            UnsupportedOperation: ART is not installed, or the model cannot be attacked.
        """
        if name not in ATTACKS:
            raise InvalidArgument(message("name", f"one of {', '.join(ATTACKS)}", repr(name)))
        if name == "jsma" and self.kind == "sigmoid" and self._graph.num_classes > 1:
            received = "'jsma', which leads from one class to another"
            expected = "an attack for labels that do not exclude each other"
            raise InvalidArgument(message("name", expected, received, "Take fgsm, bim or pgd."))
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= 1:
            raise InvalidArgument(message("eps", "a share of the range of the pixels, in (0, 1]", repr(eps)))
        check_integer("steps", steps)
        check_integer("seed", seed, 0)
        images = self._checked(image)
        low, high = sorted(self.classifier.pixels)
        with self._lock:
            try:
                if self._attack is None:
                    self._attack = get_attack("fgsm", self.classifier.model, (low, high))
                step = default_step(name, eps, steps)
                return replace(self._attack, name=name, eps=eps, steps=steps, eps_step=step, seed=seed)(images)[0]
            except ImportError as error:
                raise UnsupportedOperation(str(error)) from error

    def compare(
        self, image: np.ndarray, changed: np.ndarray | None = None, level: str | None = None, nodes: Sequence[int] = ()
    ) -> Comparison:
        """What the classifier answers before and after an intervention on the image, on concepts, or on both.

        Args:
            image: The image as it was, (height, width, channels).
            changed: The image after an intervention; None for the image as it was.
            level: Name of the level whose concepts are taken away; None for none.
            nodes: The concepts that are set to zero, together. None of them leaves the network as it is.

        Raises:
            InvalidArgument: Images that the model does not take, no such level or concept, or an autoencoder that
                cannot be loaded.
        """
        before = self._checked(image)
        after = before if changed is None else self._checked(changed, "changed")
        with self._lock:
            if level is None or not len(nodes):
                result = self._image_effects(after, before)
                return Comparison(result.observed[0], result.intervened[0, 0, 0], result.observed[0], self.kind)
            result = self._opened(level).effects(after, nodes, before)
            network = self._image_effects.answers(before)[1][0]
        return Comparison(result.observed[0], result.intervened[0, 0, 0], network, self.kind)

    def concept_effects(self, image: np.ndarray, level: str) -> np.ndarray:
        """The effects of setting each concept alone to zero, on every class.

        Args:
            image: (height, width, channels).
            level: Name of the level.

        Returns:
            Equation 1, (concepts, classes).

        Raises:
            InvalidArgument: As for :meth:`compare`.
        """
        images = self._checked(image)
        with self._lock:
            return self._opened(level).effects(images).effects[0, :, 0]

    def concept_maps(self, image: np.ndarray, level: str, nodes: Sequence[int]) -> np.ndarray:
        """Where some concepts are in an image: their codes, enlarged to its size by bilinear interpolation.

        Args:
            image: (height, width, channels).
            level: Name of the level.
            nodes: The concepts.

        Returns:
            Signed, float32 (n, height, width).

        Raises:
            InvalidArgument: As for :meth:`compare`.
        """
        images = self._checked(image)
        with self._lock:
            opened = self._opened(level)
            codes = opened.codes(images)[..., list(opened.nodes(nodes))]
        return np.moveaxis(tf.image.resize(codes, images.shape[1:3]).numpy()[0], -1, 0)

    def map(
        self, method: str, image: np.ndarray, class_index: int, level: str | None = None, nodes: Sequence[int] = ()
    ) -> np.ndarray:
        """A map of an image, in the network or in what is left of it without some concepts.

        With a level and no nodes it is that of the network through the untouched autoencoder: what a map without some
        of the concepts is to be compared with.

        Args:
            method: A saliency method, one of `available_explainers`, or :data:`PIXEL_EFFECTS`: what masking each patch
                by the middle of the range takes from the answer, positive where the patch speaks for the class
                (:class:`tfcausal.effects.maps.PixelEffects`).
            image: (height, width, channels).
            class_index: The class to explain.
            level: Name of the level whose concepts are taken away; None for none.
            nodes: The concepts that are set to zero.

        Returns:
            Signed, float32 (height, width).

        Raises:
            InvalidArgument: No such method, or one that is not installed; or as for :meth:`compare`.
            UnsupportedOperation: The method does not take this model.
        """
        images = self._checked(image)
        with self._lock:
            classifier = self.classifier
            if level is not None:
                opened = self._opened(level)
                opened.network.zero(opened.nodes(nodes))
                classifier = opened.classifier
            if method != PIXEL_EFFECTS:
                return classifier.maps(method, images, [class_index])[0]
            key = level or ""
            if key not in self._pixel_effects:
                middle = self._pixel(0.5)
                effects = PixelEffects(classifier.model, masked_value=middle, sign="observed_minus_do")
                self._pixel_effects[key] = effects
            return self._pixel_effects[key](images, [class_index])[0, ..., 0]

    def _checked(self, image: np.ndarray, name: str = "image") -> np.ndarray:
        return checked_images(np.asarray(image)[None], self._graph, name)

    def _pixel(self, share: float) -> float:
        black, white = self.classifier.pixels
        return black + share * (white - black)

    def _opened(self, name: str) -> OpenLevel:
        names = [level.name for level in self.levels]
        if name not in names:
            received = repr(name[:200])
            raise InvalidArgument(message("level", "a level of this model", received, closest(name, names, "levels")))
        if name not in self._open:
            self._open[name] = OpenLevel(self.levels[names.index(name)], self.classifier)
            while len(self._open) > _LEVELS:
                dropped, _ = self._open.popitem(last=False)
                self._pixel_effects.pop(dropped, None)
        self._open.move_to_end(name)
        return self._open[name]


def answers(outputs: Any, kind: Head) -> tuple[int, ...]:
    """The classes that are a classifier's answer: the most probable one, or with sigmoids all above one half.

    Args:
        outputs: What the classifier says, (classes,).
        kind: What stands behind its logits. A single unit without a sigmoid answers where it is above 0.

    Example:
        >>> answers([0.2, 0.7, 0.1], "softmax"), answers([0.6, 0.7, 0.1], "sigmoid"), answers([0.4], "sigmoid")
        ((1,), (0, 1), ())
    """
    values = np.asarray(outputs)
    if kind == "sigmoid" or len(values) == 1:
        return tuple(np.flatnonzero(values > (0.5 if kind == "sigmoid" else 0.0)).tolist())
    return (int(values.argmax()),)


def in_words(comparison: Comparison, class_names: Sequence[str]) -> str:
    """What an intervention did to the answer, in a sentence.

    Args:
        comparison: The answers.
        class_names: Names of the classes, by index.

    Example:
        >>> found = Comparison(np.array([0.93, 0.07]), np.array([0.21, 0.79]), np.array([0.93, 0.07]), "softmax")
        >>> in_words(found, ["3", "8"])
        'The answer changed from 3 to 8. 3: p 0.93 → 0.21; 8: p 0.07 → 0.79.'
    """
    first, second = (answers(values, comparison.kind) for values in (comparison.before, comparison.after))
    unit = "logit" if comparison.kind == "linear" else "p"

    def named(classes: tuple[int, ...]) -> str:
        return " and ".join(class_names[index] for index in classes) or "none"

    shown = list(dict.fromkeys([*first, *second])) or list(range(len(class_names)))[:1]
    moves = "; ".join(
        f"{class_names[index]}: {unit} {comparison.before[index]:.2f} → {comparison.after[index]:.2f}"
        for index in shown
    )
    if first == second:
        return f"The answer stays {named(first)}. {moves}."
    return f"The answer changed from {named(first)} to {named(second)}. {moves}."
