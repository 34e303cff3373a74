"""A trained model of a run that answers and explains one picture after another, for a person who looks on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

import numpy as np

from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.evaluation.faithfulness import Deletion
from tfcausal.models.loading import LoadedModel, load_trained
from tfcausal.runs import RunDirectory
from tfcausal.saliency.base import Explainer
from tfcausal.saliency.registry import get_explainer, with_bounds
from tfcausal.saliency.wbp import WBP

_BATCH = 64
_EXPLAINERS = 8  # compiled methods that are kept; the one that was used longest ago goes first


@dataclass(frozen=True)
class LogitParts:
    """The logits of some classes for one image, taken apart: `logits == pixels + biases`, up to rounding.

    Attributes:
        classes: Indices of the classes, largest logit first, (k,).
        logits: Their logits, (k,).
        probabilities: The model's answers for them, (k,).
        pixels: What the pixels contribute, (k,): the sum of the WBP map of the class.
        biases: What the additive constants of the layers contribute, (k,).
    """

    classes: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    pixels: np.ndarray
    biases: np.ndarray

    @property
    def pixel_shares(self) -> np.ndarray:
        """Share of each logit that the pixels explain, (k,); above 1 where the biases pull the other way."""
        known = np.abs(self.logits) > 1e-6
        return np.divide(self.pixels, self.logits, out=np.full(len(self.logits), np.nan), where=known)


class LoadedClassifier:
    """A trained model and its explainers, which are compiled when they are first used and then kept.

    Args:
        loaded: The model, and what is known of its images.

    Attributes:
        model: The classifier.
        class_names: Names of the classes, by index; empty where they are unknown.
        pixels: What black and white are in the model's input.

    Raises:
        InvalidArgument: It is not known what black and white are.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        if loaded.pixels is None:
            remedy = "See tfcausal.models.inputs.pixel_range."
            raise InvalidArgument(message("loaded.pixels", "what black and white are in the input", None, remedy))
        self.model = loaded.model
        self.class_names = loaded.class_names or ()
        self.pixels = loaded.pixels
        self._explainers: OrderedDict[str, Explainer] = OrderedDict()
        self._deletions: dict[int, Deletion] = {}
        self._lock = Lock()

    def prepare(self, methods: Sequence[str], image: np.ndarray) -> None:
        """Compile what an image is explained with, so that the first one does not wait; what cannot be is left out.

        Args:
            methods: Names of methods.
            image: Any image, in the range of `pixels`, (height, width, channels).
        """
        for method in methods:
            with suppress(InvalidArgument, UnsupportedOperation):
                self.maps(method, image[None], [0])
        with suppress(InvalidArgument, UnsupportedOperation):
            self.logit_parts(image)
        self.deletion_curves(image, np.zeros((1, *image.shape[:2]), np.float32))

    def answers(self, images: np.ndarray) -> np.ndarray:
        """What the model answers.

        Args:
            images: In the range of `pixels`, (N, height, width, channels).

        Returns:
            The model's output, (N, classes).
        """
        parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return np.concatenate([np.asarray(self.model(part, training=False), np.float32) for part in parts])

    def maps(self, method: str, images: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Maps of a method, summed over the channels.

        Args:
            method: Name of the method, one of `available_explainers`.
            images: In the range of `pixels`, (N, height, width, channels).
            classes: The class to explain for each, (N,).

        Returns:
            Signed maps, float32 (N, height, width).

        Raises:
            InvalidArgument: No such method, or one that is not installed.
            UnsupportedOperation: The method does not take this model.
        """
        with self._lock:  # one compilation at a time, and none twice
            return self._explainer(method)(images, np.asarray(classes), reducer="sum")[..., 0]

    def logit_parts(self, image: np.ndarray, most: int = 10) -> LogitParts:
        """Take the largest logits for an image apart into what the pixels and what the biases contribute.

        Args:
            image: In the range of `pixels`, (height, width, channels).
            most: How many classes.

        Raises:
            UnsupportedOperation: The model has an operation that WBP has no rule for.
        """
        answers = self.answers(image[None])[0]
        classes = np.argsort(-answers, kind="stable")[:most]
        with self._lock:
            explainer = self._explainer("wbp")
        if not isinstance(explainer, WBP):
            raise InvalidArgument(message("wbp", "weight back-propagation", type(explainer).__name__))
        parts = explainer.decompose(np.repeat(image[None], len(classes), axis=0), classes)
        pixels = parts.maps.sum(axis=(1, 2, 3), dtype=np.float64)
        return LogitParts(classes, parts.logits, answers[classes], pixels, parts.bias)

    def deletion_curves(self, image: np.ndarray, maps: np.ndarray, steps: int = 20, seed: int = 0) -> np.ndarray:
        """Probability of the predicted class while pixels become mid-grey, most salient first; at last in random order.

        Mid-grey is the middle between black and white.

        Args:
            image: In the range of `pixels`, (height, width, channels).
            maps: Maps to delete by, (n, height, width).
            steps: Steps from the whole image to none of it.
            seed: Seed of the random order.

        Returns:
            Curves, (n + 1, steps + 1).
        """
        with self._lock:
            if steps not in self._deletions:
                self._deletions[steps] = Deletion(self.model, steps, baseline=sum(self.pixels) / 2)
            deletion = self._deletions[steps]
        control = deletion.random_maps(image[None], seed)
        every = np.concatenate([maps[..., None], control])
        return deletion.curves(np.repeat(image[None], len(every), axis=0), every)

    def _explainer(self, method: str) -> Explainer:
        if method in self._explainers:
            self._explainers.move_to_end(method)
            return self._explainers[method]
        explainer = get_explainer(method, self.model, **with_bounds(method, self.pixels))
        self._explainers[method] = explainer
        if len(self._explainers) > _EXPLAINERS:
            self._explainers.popitem(last=False)
        return explainer


class RunClassifier(LoadedClassifier):
    """A trained model of a run and its explainers.

    Model files are loaded in Keras's safe mode: code inside them is not run.

    Args:
        run: The run.
        model: Name of the model.

    Raises:
        InvalidArgument: The run has no such model, or Keras cannot load it.
        RunError: The model is not trained yet.
    """

    def __init__(self, run: RunDirectory, model: str) -> None:
        if model not in run.config.models:
            remedy = closest(model, run.config.models, "models")
            raise InvalidArgument(message("model", "a model of the run", repr(model[:200]), remedy))
        super().__init__(load_trained(run.path, model))
