"""The work behind `tfcausal explain`: image files and a trained model become overlays, raw maps and their record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.atomic import to_json, write_atomic
from tfcausal.data.decoding import refuse_decompression_bombs
from tfcausal.data.image_files import find_images, output_names
from tfcausal.environment import environment
from tfcausal.explanation_files import RECORD, check_output, chosen_class, write_explanation
from tfcausal.graph import OperationGraph
from tfcausal.models.inputs import image_shape, pixel_range, read_image
from tfcausal.models.loading import load_trained
from tfcausal.progress import ConsoleProgress
from tfcausal.saliency.base import Reducer, check_reducer, reduced
from tfcausal.saliency.registry import find_explainer, get_explainer, with_bounds

_IN_PYTHON = "Call the explainer in Python: tfcausal.get_explainer(method, model)(inputs)."


@dataclass(frozen=True)
class Settings:
    """How images are explained.

    Attributes:
        method: Name of the saliency method.
        options: Its options.
        target: The class to explain, by name or index; None is the predicted one.
        pixels: What black and white are in the model's input; None takes what the model says.
        size: Height and width to resize the images to; needed for a model that takes any size.
        reducer: How the channels of the raw maps are reduced; None keeps them.
        overwrite: Whether files that are there may be replaced.
    """

    method: str = "wbp"
    options: Mapping[str, Any] | None = None
    target: str | None = None
    pixels: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    reducer: Reducer | None = None
    overwrite: bool = False


class ImageExplainer:
    """A trained model and a saliency method for image files; what the settings leave open is chosen by the model.

    Args:
        source: A run directory, or a model file (.keras, .h5).
        settings: How images are explained.
        model_name: Which model of a run; may be None where there is only one.
        say: Called with a sentence about what was chosen.

    Attributes:
        settings: As given.
        options: The options of the method.
        loaded: The model.
        explainer: The method, bound to it.
        shape: (height, width, channels) that images are resized to.
        target: The class that is explained; None is the predicted one.
        pixels: What black and white are in the model's input.

    Raises:
        InvalidArgument: A method, option, class or size that the model does not take.
        RunError: The run has no such model yet.
        UnsupportedOperation: The method does not take this model, or the model does not take images.
    """

    def __init__(
        self,
        source: Path,
        settings: Settings,
        model_name: str | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        find_explainer(settings.method)
        check_reducer(settings.reducer)
        self.settings = settings
        self.loaded = load_trained(source, model_name)
        options = dict(settings.options or {})
        graph = OperationGraph(self.loaded.model, options.get("output"))
        self.shape = image_shape(graph, settings.size, "explain", _IN_PYTHON)
        self.target = chosen_class(settings.target, self.loaded.class_names, graph.num_classes)
        self.pixels = pixel_range(settings.pixels, self.loaded, graph, say)
        self.options = with_bounds(settings.method, self.pixels, options)
        self.explainer = get_explainer(settings.method, self.loaded.model, **self.options)

    @property
    def answer_name(self) -> str:
        """What the model answers with: `probability`, or `logit` if it has no softmax or sigmoid at its end."""
        graph = self.explainer.graph
        return "logit" if graph.output == graph.logits else "probability"

    def __call__(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Explain images.

        Args:
            pictures: In [0, 1], float32 (N, height, width, channels), as :func:`tfcausal.models.inputs.read_image`
                gives them.

        Returns:
            The model's answers (N, classes), the explained classes (N,), and the maps, float32, with all channels.
        """
        low, high = self.pixels
        inputs = (low + (high - low) * pictures).astype(np.float32)
        outputs = self.explainer.outputs(inputs)
        classes = outputs.argmax(axis=1) if self.target is None else np.full(len(outputs), self.target)
        return outputs, classes, self.explainer(inputs, classes)

    def answer(self, scores: np.ndarray, explained: int, saliency: np.ndarray) -> dict[str, Any]:
        """What is told of one image: the predicted and the explained class, and whether the map is 0 everywhere.

        Args:
            scores: The model's answer, (classes,).
            explained: The explained class.
            saliency: The map.
        """
        names = self.loaded.class_names
        told: dict[str, Any] = {}
        for role, index in (("predicted", int(scores.argmax())), ("explained", explained)):
            told[f"{role}_class"] = index
            told[f"{role}_name"] = None if names is None else names[index]
            told[f"{role}_{self.answer_name}"] = float(scores[index])
        return {**told, "map_is_zero": not saliency.any()}

    def description(self) -> dict[str, Any]:
        """What was chosen, and the versions of what it is computed with, for JSON."""
        return {
            "method": self.settings.method,
            "options": self.options,
            "reducer": self.settings.reducer,
            "fallbacks": list(self.explainer.fallbacks),
            "model": self.loaded.source,
            "image_shape": list(self.shape),
            "pixels": list(self.pixels),
            "versions": environment(seed=0)["versions"],
        }


def explain_files(
    source: Path,
    images: Sequence[Path],
    output: Path,
    settings: Settings,
    progress: ConsoleProgress,
    model_name: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Explain image files with a trained model.

    Everything is checked, and every image decoded once, before the first file is written.

    Args:
        source: A run directory, or a model file (.keras, .h5).
        images: PNG and JPEG files, and folders of them, which are searched to the bottom.
        output: The folder to write to: for every image an overlay (.png) and the raw map (.npy, float32, in the size of
            the model's input), and at last `explanations.json`.
        settings: How images are explained.
        progress: Where to show how far it is.
        model_name: Which model of a run; may be None where there is only one.
        say: Called with a sentence about what was chosen.

    Returns:
        The record of every image, as in `explanations.json`.

    Raises:
        InvalidArgument: A method, option, class or size that the model does not take.
        DataError: There are no images, or one cannot be used.
        RunError: The run has no such model yet, or files are there already.
        UnsupportedOperation: The method does not take this model, or the model does not take images.
    """
    find_explainer(settings.method)
    files = find_images(images)
    names = output_names(files)
    check_output(output, names, settings.overwrite)
    explain = ImageExplainer(source, settings, model_name, say)
    with progress.task("reading images", len(files)) as advance, refuse_decompression_bombs():
        for file in files:
            read_image(file, explain.shape)
            advance()
    records: list[dict[str, Any]] = []
    size = explain.explainer.batch_size
    with progress.task(f"explaining ({settings.method})", len(files)) as advance, refuse_decompression_bombs():
        for first in range(0, len(files), size):
            part = slice(first, first + size)
            pictures = np.stack([read_image(file, explain.shape) for file in files[part]])
            for file, name, picture, scores, explained, saliency in zip(
                files[part], names[part], pictures, *explain(pictures), strict=True
            ):
                record = {"file": str(file), "overlay": f"{name}.png", "map": f"{name}.npy"}
                record |= explain.answer(scores, int(explained), saliency)
                kept = reduced(saliency, settings.reducer)
                write_explanation(output, record, picture, saliency, settings.method, kept)
                records.append(record)
                advance()
    write_atomic(output / RECORD, to_json({**explain.description(), "images": records}))
    return records
