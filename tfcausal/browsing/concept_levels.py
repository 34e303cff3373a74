"""The levels of a classifier whose concepts can be taken away: learned ones of a run, and channels of convolutions."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.browsing.classifier import LoadedClassifier
from tfcausal.browsing.concept_network import ConceptNetwork
from tfcausal.config_errors import closest
from tfcausal.effect_study.plan import default_levels
from tfcausal.effects.channels import ChannelConcepts, Concepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.engine import checked_images
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.results import EffectResult
from tfcausal.effects.store import AUTOENCODER, EffectStore, read_json
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.graph import OperationGraph
from tfcausal.models.loading import LoadedModel
from tfcausal.runs import RunDirectory


@dataclass(frozen=True)
class Level:
    """A layer whose concepts can be taken away.

    Attributes:
        name: What it is called.
        layer: The layer, or the folder of its autoencoder, which has its name.
        autoencoder: File of the autoencoder that its concepts were learned with; None where its channels are the
            concepts.
        agreement: How well the network answers through the autoencoder, as it was measured; empty where unknown.
    """

    name: str
    layer: str
    autoencoder: Path | None = None
    agreement: str = ""


def channel_levels(graph: OperationGraph) -> tuple[Level, ...]:
    """The last convolution of a classifier and one half-way to it; none where there is no convolution.

    Args:
        graph: The operations of the classifier.
    """
    try:
        chosen = default_levels(graph, None)
    except InvalidArgument:
        return ()
    return tuple(Level(f"channels {level.layer}", level.layer) for level in reversed(chosen))


def learned_levels(run: RunDirectory, model: str) -> tuple[Level, ...]:
    """The levels of a run whose concepts were learned when the effects of a model were measured.

    Args:
        run: The run.
        model: Name of the model.

    Returns:
        The levels; none where not everything is measured yet, where files are damaged, or where the model has changed
        since.

    Raises:
        InvalidArgument: The run has no such model.
    """
    if model not in run.config.models:
        remedy = closest(model, run.config.models, "models")
        raise InvalidArgument(message("model", "a model of the run", repr(model[:200]), remedy))
    store = EffectStore(run.path, model)
    if not store.is_finished:
        return ()
    try:
        settings = read_json(store.folder / "settings.json")
        with open(run.model_path(model), "rb") as file:
            if settings.get("model") != hashlib.file_digest(file, "sha256").hexdigest():
                return ()
    except (RunError, OSError):
        return ()
    files = sorted(store.folder.glob(f"levels/*/{AUTOENCODER}"))
    return tuple(Level(f"learned {file.parent.name}", file.parent.name, file, _agreement(file)) for file in files)


class OpenLevel:
    """A level with its compiled functions.

    Args:
        level: The level.
        base: The classifier.

    Attributes:
        concepts: What gives the codes.
        network: The classifier with a switch for each concept.
        classifier: The same, with its explainers.

    Raises:
        InvalidArgument: The autoencoder cannot be loaded.
        UnsupportedOperation: The layer gives no feature maps.

    Example:
        >>> x = inputs = keras.Input((4, 4, 1))
        >>> pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 1, name="maps")(inputs))
        >>> model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
        >>> base = LoadedClassifier(LoadedModel(model, "a model", pixels=(0.0, 1.0)))
        >>> OpenLevel(Level("channels maps", "maps"), base).effects(np.ones((1, 4, 4, 1))).intervened.shape
        (1, 2, 1, 3)
    """

    def __init__(self, level: Level, base: LoadedClassifier) -> None:
        if level.autoencoder is None:
            self.concepts: Concepts = ChannelConcepts(base.model, level.layer)
        else:
            self.concepts = load_autoencoder(level.autoencoder)
        self.network = ConceptNetwork(self.concepts)
        self.classifier = LoadedClassifier(LoadedModel(self.network.model, level.name, base.class_names, base.pixels))
        self._effects = ConceptEffects(self.concepts)
        graph = self.concepts.downstream.graph
        signature = [tf.TensorSpec((None, *graph.input_shape[1:]), tf.float32)]
        self._codes = tf.function(self._batch_codes, input_signature=signature, autograph=False)

    def nodes(self, nodes: Sequence[int]) -> tuple[int, ...]:
        """Concepts that a user names, checked.

        Raises:
            InvalidArgument: One is no concept of the level, or is named twice.
        """
        chosen, last = tuple(nodes), self.concepts.concepts - 1
        known = all(isinstance(node, int | np.integer) and 0 <= node <= last for node in chosen)
        if not known or len(set(chosen)) < len(chosen):
            raise InvalidArgument(message("nodes", f"different concepts in [0, {last}]", repr(nodes)))
        return tuple(map(int, chosen))

    def effects(
        self, images: np.ndarray, nodes: Sequence[int] = (), observed_images: np.ndarray | None = None
    ) -> EffectResult:
        """Zero-out, as of :class:`tfcausal.effects.expected.ConceptEffects`.

        Args:
            images: (N, height, width, channels).
            nodes: The concepts that are set to zero together; none for every concept alone.
            observed_images: What the images were made from; None: the images.
        """
        chosen = [self.nodes(nodes)] if len(nodes) else None
        with warnings.catch_warnings():  # of one image, it says nothing; what was measured on many is in the level
            warnings.filterwarnings("ignore", "Through the autoencoder", UserWarning)
            return self._effects(images, chosen, observed_images=observed_images)

    def codes(self, images: np.ndarray) -> np.ndarray:
        """The codes of images, float32 (N, rows, columns, concepts)."""
        array = checked_images(images, self.concepts.downstream.graph)
        return np.asarray(self._codes(tf.constant(array)))

    def _batch_codes(self, images: tf.Tensor) -> tf.Tensor:
        downstream = self.concepts.downstream
        with keras_api.losses_kept(self.concepts.network):
            activations = downstream.graph.run(images, until=downstream.position)
            return tf.cast(self.concepts.encode(activations[downstream.position]), tf.float32)


def load_autoencoder(path: Path) -> ConceptAutoencoder:
    """Load a trained autoencoder in Keras's safe mode: code inside the file is not run.

    Args:
        path: The file.

    Raises:
        InvalidArgument: Keras cannot load it, or it is none.
    """
    try:
        loaded = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever Keras meets in a file that is damaged
        reason = " ".join(str(error).split())[:300]
        remedy = "Measure again with `tfcausal effects --overwrite`."
        expected = "an autoencoder that Keras can load"
        raise InvalidArgument(message(str(path), expected, f"{type(error).__name__}: {reason}", remedy)) from error
    if not isinstance(loaded, ConceptAutoencoder):
        raise InvalidArgument(message(str(path), "a ConceptAutoencoder", type(loaded).__name__))
    return loaded


def _agreement(file: Path) -> str:
    try:
        return str(read_json(file.parent / "agreement.json").get("text", ""))
    except RunError:
        return ""
