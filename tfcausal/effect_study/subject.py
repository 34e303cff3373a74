"""What effects are measured on: a model of a run or a model file, and images for its concepts and its effects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcausal.config import EffectsConfig
from tfcausal.data.decoding import refuse_decompression_bombs
from tfcausal.data.image_files import find_images, output_names
from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.environment import hash_of
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.models.inputs import image_shape, pixel_range, read_image
from tfcausal.models.loading import LoadedModel, load_trained
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory


@dataclass(frozen=True)
class Subject:
    """A model whose effects are measured, and the images.

    Attributes:
        name: Its name in the tables.
        source: Where it comes from, for people.
        model: The classifier.
        pixels: What black and white are in its input.
        class_names: Names of the classes by index; None where they are unknown.
        measured: The images that effects are measured on.
        training: The images that concept autoencoders are trained on.
        seed: Seed of everything that is random.
        identity: What tells this measurement from another one, beside the settings; for JSON.
    """

    name: str
    source: str
    model: keras.Model
    pixels: tuple[float, float]
    class_names: tuple[str, ...] | None
    measured: ImageSet
    training: ImageSet
    seed: int
    identity: dict[str, Any]

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of a pixel."""
        return min(self.pixels), max(self.pixels)


def of_run(run: RunDirectory, data: DataSet, effects: EffectsConfig, name: str) -> Subject:
    """A model of a run with images of the run: the effects on its test split, concepts from its training images.

    Args:
        run: The run directory.
        data: Its data set.
        effects: What is measured.
        name: Name of the model.

    Raises:
        InvalidArgument: The data set has no such split, or the model cannot be loaded.
        RunError: The model is not trained yet.
    """
    seed = seed_of(effects, run.config.seed)
    measured, training = measured_and_training(data, effects, seed)
    loaded = load_trained(run.path, name)
    return _subject(name, loaded, run.model_path(name), data.value_range, measured, training, seed)


def measured_and_training(data: DataSet, effects: EffectsConfig, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images of a run that effects are measured on, and others that autoencoders are trained on.

    Args:
        data: The data set.
        effects: What is measured.
        seed: Seed of the choice.

    Raises:
        InvalidArgument: The data set has no such split, or effects are measured on all of the training images.
    """
    if effects.split not in data.splits:
        raise InvalidArgument(message("effects.split", f"one of {', '.join(data.splits)}", repr(effects.split)))
    measured, training = data.splits[effects.split], data.splits["train"]
    wanted = effects.autoencoder.images if effects.autoencoder else 1
    chosen = drawn(len(measured), effects.images, seed)
    free = np.arange(len(training))
    if effects.split == "train":
        free = np.setdiff1d(free, chosen)
        if not len(free):
            expected = f"fewer than all {len(training)} images of the training split, as concepts need some, too"
            raise InvalidArgument(message("effects.images", expected, effects.images))
    return subset(measured, chosen), subset(training, free[drawn(len(free), wanted, seed + 1)])


def of_files(
    source: Path,
    images: Sequence[Path],
    effects: EffectsConfig,
    model_name: str | None,
    pixels: tuple[float, float] | None,
    size: tuple[int, int] | None,
    progress: ConsoleProgress,
    say: Callable[[str], None],
) -> Subject:
    """A model file, or a model of a run, with images that the user names.

    Half of the images, drawn with the seed, are for the concepts, and the effects are measured on the others.

    Args:
        source: A run directory, or a model file.
        images: PNG and JPEG files, and folders of them.
        effects: What is measured.
        model_name: Which model of a run; may be None where there is only one.
        pixels: What black and white are in the model's input; None takes what the model says.
        size: Height and width to resize the images to; needed for a model that takes any size.
        progress: Where to show how far the reading is.
        say: Called with a sentence about what was chosen.

    Raises:
        InvalidArgument: The model cannot be loaded, or takes no such size.
        DataError: There are no images, or one cannot be used.
        RunError: The model of a run is not trained yet.
        UnsupportedOperation: The model takes something else than one image.
    """
    files = find_images(images)
    loaded = load_trained(source, model_name)
    graph = OperationGraph(loaded.model)
    shape = image_shape(graph, size, "effects", "Measure in Python: tfcausal.effects.")
    low, high = pixel_range(pixels, loaded, graph, say)
    seed = seed_of(effects, 0)
    every = _image_files(files, shape, (low, high))
    with progress.task("reading images", len(files)) as advance, refuse_decompression_bombs():
        for file in files:
            read_image(file, shape)
            advance()
    order = np.random.default_rng(seed).permutation(len(files))
    first = order[: max(1, len(files) // 2)]
    rest = order[len(first) :]
    wanted = effects.autoencoder.images if effects.autoencoder else 1
    if not effects.autoencoder:
        first = order
    elif not len(rest):
        say("There is one image: the autoencoder is trained on it, too, so that its faithfulness says little.")
        rest = order
    measured = subset(every, np.sort(first[: effects.images]))
    training = subset(every, np.sort(rest[:wanted] if len(rest) else order[:1]))
    is_run = source.is_dir()
    run = RunDirectory.open(source) if is_run else None
    name = (model_name or next(iter(run.config.models))) if run else source.stem
    path = run.model_path(name) if run else source
    return _subject(name, loaded, path, (low, high), measured, training, seed, hash_of(files))


def subset(split: ImageSet, indices: np.ndarray) -> ImageSet:
    """Some images of a split as a split of its own.

    Args:
        split: The split.
        indices: Positions in it, each once.

    Example:
        >>> read = lambda indices: (indices[:, None, None, None].astype("float32"), np.ones((len(indices), 1, 1, 1)))
        >>> split = ImageSet(("a", "b", "c"), np.zeros(3, int), ("x",), (1, 1, 1), np.zeros(3, bool), read)
        >>> part = subset(split, np.array([2, 0]))
        >>> part.names, part.read(np.array([0]))[0].item()
        (('c', 'a'), 2.0)
    """

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return split.reader(indices[positions])

    return replace(
        split,
        names=tuple(split.names[index] for index in indices),
        labels=split.labels[indices],
        has_mask=split.has_mask[indices],
        contexts=None if split.contexts is None else split.contexts[indices],
        context_agrees=None if split.context_agrees is None else split.context_agrees[indices],
        reader=read,
    )


def drawn(count: int, wanted: int, seed: int) -> np.ndarray:
    """Positions of a seeded choice of images, in order; all of them where no more are there.

    Example:
        >>> drawn(3, 10, seed=0).tolist(), len(drawn(10, 3, seed=0))
        ([0, 1, 2], 3)
    """
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def seed_of(effects: EffectsConfig, default: int) -> int:
    """The seed of a measurement."""
    return default if effects.seed is None else effects.seed


def _subject(
    name: str,
    loaded: LoadedModel,
    path: Path,
    pixels: tuple[float, float],
    measured: ImageSet,
    training: ImageSet,
    seed: int,
    content: str = "",
) -> Subject:
    identity = {
        "model": hash_of([path]),
        "measured images": _names(measured) + content,
        "training images": _names(training),
        "image_shape": list(measured.image_shape),
        "pixels": list(pixels),
        "seed": seed,
    }
    return Subject(name, loaded.source, loaded.model, pixels, loaded.class_names, measured, training, seed, identity)


def _image_files(files: Sequence[Path], shape: tuple[int, int, int], pixels: tuple[float, float]) -> ImageSet:
    """Image files as a split without labels and masks."""
    low, high = pixels

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.stack([read_image(files[index], shape) for index in indices])
        return (low + (high - low) * pictures).astype(np.float32), np.ones((*pictures.shape[:3], 1), np.float32)

    count = len(files)
    return ImageSet(
        tuple(output_names(files)), np.zeros(count, np.int64), ("unknown",), shape, np.zeros(count, bool), read
    )


def _names(split: ImageSet) -> str:
    return hashlib.sha256("\n".join(split.names).encode("utf-8", "surrogateescape")).hexdigest()
