"""What is exported: a classifier, what explains it, its labels and its concepts, checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from tfcausal.browsing.concept_levels import Level, learned_levels, load_autoencoder
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.store import AUTOENCODER, EffectStore
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.models.base import CausalClassifier
from tfcausal.models.checks import head_of
from tfcausal.models.inputs import image_shape, pixel_range
from tfcausal.models.loading import LoadedModel, load_trained
from tfcausal.objectives.heads import Head
from tfcausal.runs import RunDirectory
from tfcausal.saliency.base import Explainer
from tfcausal.saliency.registry import available_explainers, find_explainer, get_explainer, with_bounds
from tfcausal.serving import names
from tfcausal.serving.image_bytes import MOST_PIXELS
from tfcausal.serving.signatures import Served
from tfcausal.serving.zero_out import behind

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        loaded: The model, and what is known of its images.
        run: Its run; None where it comes without one.
        model: Its name in the run, or the file's name without its ending, or the name of the Keras model.
        file: The file that it was loaded from; None for a model in memory.
    """

    loaded: LoadedModel
    run: RunDirectory | None
    model: str
    file: Path | None


@dataclass(frozen=True)
class Choices:
    """How a model is exported.

    Attributes:
        method: Name of the saliency method.
        options: Its options.
        labels: Names of the classes by index, two for a head of one logit; None takes those of the run, else numbers.
        pixels: What black and white are in the model's input; None takes what the model says.
        size: Height and width that files are resized to; needed for a model that takes images of any size.
        multi_label: For a head of several units without an activation: whether they are independent labels.
        most_pixels: Pixels that a file may have.
    """

    method: str = "wbp"
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    pixels: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    multi_label: bool | None = None
    most_pixels: int = MOST_PIXELS


@dataclass(frozen=True)
class ServedLevel:
    """The concepts of a layer, as they are exported.

    Attributes:
        signature: Name of the signature.
        level: What is known of the level.
        autoencoder: Its concepts, behind the exported model.
    """

    signature: str
    level: Level
    autoencoder: ConceptAutoencoder


def exportable_methods() -> list[str]:
    """The saliency methods that can be a part of a model: those that are TensorFlow operations all through.

    Example:
        >>> "wbp" in exportable_methods(), "score_cam" in exportable_methods()
        (True, False)
    """
    return [entry.name for entry in available_explainers() if entry.traceable]


def check_method(method: str) -> None:
    """Raise `InvalidArgument` for an unknown saliency method, `UnsupportedOperation` for one that needs Python."""
    find_explainer(method)
    known = exportable_methods()
    if method not in known:
        raise UnsupportedOperation(
            f"The maps of `{method}` are computed by a library in Python, which a server does not have. Export one of "
            f"{', '.join(known)}."
        )


def load_source(source: keras.Model | str | Path, model: str | None) -> Source:
    """Find the model to export.

    Args:
        source: A Keras model, a run directory, or a model file (.keras, .h5).
        model: Which model of a run; may be None where there is only one.

    Raises:
        InvalidArgument: No such model, several and none chosen, or a file that Keras cannot load.
        RunError: Not a run directory, or the model is not trained yet.
    """
    if isinstance(source, keras.Model):
        return Source(LoadedModel(source, source.name), None, source.name, None)
    path = Path(source)
    loaded = load_trained(path, model)
    if not path.is_dir():
        return Source(loaded, None, path.stem, path)
    run = RunDirectory.open(path)
    name = model or next(iter(run.config.models))
    return Source(loaded, run, name, run.model_path(name))


def prepare(source: Source, choices: Choices, say: Say) -> tuple[Served, list[ServedLevel]]:
    """Check everything that can be wrong with a model and with the choices.

    Args:
        source: The model.
        choices: How it is exported.
        say: Called with sentences about what was chosen.

    Returns:
        What the signatures are made of, and the levels with concepts, the first layer first.

    Raises:
        InvalidArgument: Labels, pixels, a size or an option that the model or the method does not take.
        UnsupportedOperation: The model takes something else than one image, or has a layer that the method does not
            explain.
    """
    check_method(choices.method)
    most = choices.most_pixels
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InvalidArgument(message("most_pixels", "a positive integer", repr(most)))
    model, options = source.loaded.model, dict(choices.options)
    graph = OperationGraph(model, options.get("output"))
    shape = image_shape(graph, choices.size, "export")
    pixels = pixel_range(choices.pixels, source.loaded, graph, say)
    head = head_of(graph, _multi_label(model, choices.multi_label))
    labels = _labels(choices.labels or source.loaded.class_names, graph.num_classes, head)
    levels = _levels(source, options, say)
    explainer = make_explainer(model, choices, pixels)
    concepts = {level.signature: level.autoencoder for level in levels}
    return Served(model, graph, explainer, head, labels, pixels, shape, most, concepts), levels


def make_explainer(model: keras.Model, choices: Choices, pixels: tuple[float, float]) -> Explainer:
    """An explainer of the chosen method, told the bounds of the pixels where it asks for them."""
    return get_explainer(choices.method, model, **with_bounds(choices.method, pixels, choices.options))


def _multi_label(model: keras.Model, chosen: bool | None) -> bool | None:
    """What the user says of the labels, else what the model was trained with."""
    return model.multi_label if chosen is None and isinstance(model, CausalClassifier) else chosen


def _labels(given: Sequence[str] | None, classes: int, head: Head) -> tuple[str, ...]:
    wanted = 2 if head == "binary" else classes
    if given is None:
        return tuple(map(str, range(wanted)))
    if isinstance(given, str) or len(given) != wanted or not all(isinstance(label, str) for label in given):
        expected = f"the names of the {wanted} classes, by index"
        if head == "binary":
            expected += ": that of class 0 first, and that of class 1, for which a large logit speaks"
        received = repr(given) if isinstance(given, str) else f"{len(given)}: {', '.join(map(str, given[:5]))}"
        raise InvalidArgument(message("labels", expected, received))
    # Names of folders can hold what is no text, and a line of a file can hold no line break.
    return tuple(" ".join(label.encode("utf-8", "backslashreplace").decode().split()) for label in given)


def _levels(source: Source, options: Mapping[str, Any], say: Say) -> list[ServedLevel]:
    """The learned concepts of a run, the level next to the answer last."""
    if source.run is None or options.get("output") is not None:
        return []
    found = [
        (level, behind(load_autoencoder(level.autoencoder), source.loaded.model))
        for level in learned_levels(source.run, source.model)
        if level.autoencoder is not None
    ]
    learned = sorted(EffectStore(source.run.path, source.model).folder.glob(f"levels/*/{AUTOENCODER}"))
    if not found and learned:
        reason = "damaged, not measured to the end, or learned before the model changed"
        say(f"The concepts in {learned[0].parents[1]} are {reason}: they are left out.")
    found.sort(key=lambda pair: -pair[1].downstream.operations)
    several = len(found) > 1
    return [
        ServedLevel(
            names.level_signature(level.layer) if several and place < len(found) else names.EFFECTS, level, autoencoder
        )
        for place, (level, autoencoder) in enumerate(found, 1)
    ]
