"""The work behind `tfcausal explain`: image files and a trained model become overlays, raw maps and their record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.atomic import atomic_path, to_json, write_atomic
from tfcausal.config_errors import closest
from tfcausal.data.decoding import refuse_decompression_bombs
from tfcausal.data.image_files import find_images, output_names
from tfcausal.environment import environment
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.figures import explanation
from tfcausal.graph import OperationGraph
from tfcausal.models.inputs import image_shape, pixel_range, read_image
from tfcausal.models.loading import LoadedModel, load_trained
from tfcausal.progress import ConsoleProgress
from tfcausal.saliency.base import Explainer, Reducer, check_reducer, reduced
from tfcausal.saliency.registry import find_explainer, get_explainer

RECORD = "explanations.json"
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
    entry = find_explainer(settings.method)
    check_reducer(settings.reducer)
    files = find_images(images)
    names = output_names(files)
    _check_output(output, names, settings.overwrite)
    loaded = load_trained(source, model_name)
    options = dict(settings.options or {})
    graph = OperationGraph(loaded.model, options.get("output"))
    shape = image_shape(graph, settings.size, "explain", _IN_PYTHON)
    target = _target(settings.target, loaded.class_names, graph.num_classes)
    low, high = pixel_range(settings.pixels, loaded, graph, say)
    if {"low", "high"}.issubset(entry.options()):  # the bounds of the pixels, which the z-box rule of LRP needs
        options = {"low": min(low, high), "high": max(low, high), **options}
    explainer = get_explainer(settings.method, loaded.model, **options)
    with progress.task("reading images", len(files)) as advance, refuse_decompression_bombs():
        for file in files:
            read_image(file, shape)
            advance()
    records: list[dict[str, Any]] = []
    with progress.task(f"explaining ({settings.method})", len(files)) as advance, refuse_decompression_bombs():
        for first in range(0, len(files), explainer.batch_size):
            part = slice(first, first + explainer.batch_size)
            pictures = np.stack([read_image(file, shape) for file in files[part]])
            inputs = (low + (high - low) * pictures).astype(np.float32)
            outputs = explainer.outputs(inputs)
            classes = outputs.argmax(axis=1) if target is None else np.full(len(outputs), target)
            maps = explainer(inputs, classes)
            for file, name, picture, scores, explained, saliency in zip(
                files[part], names[part], pictures, outputs, classes, maps, strict=True
            ):
                record = _record(str(file), name, scores, int(explained), explainer, loaded.class_names)
                record["map_is_zero"] = not saliency.any()
                lines = _title(record, settings.method)
                write_atomic(output / f"{name}.png", explanation(picture, saliency.sum(axis=-1), lines))
                _write_map(output / f"{name}.npy", reduced(saliency, settings.reducer))
                records.append(record)
                advance()
    write_atomic(output / RECORD, to_json(_whole(settings, options, loaded, explainer, shape, (low, high), records)))
    return records


def _target(target: str | None, class_names: Sequence[str] | None, num_classes: int) -> int | None:
    if target is None:
        return None
    if class_names is not None and target in class_names:
        return class_names.index(target)
    if target.isdecimal() and int(target) < num_classes:
        return int(target)
    expected = f"a class index in [0, {num_classes - 1}]"
    if class_names is None:
        raise InvalidArgument(message("target", expected, repr(target)))
    remedy = closest(target, class_names, "classes")
    raise InvalidArgument(message("target", f"the name of a class, or {expected}", repr(target), remedy))


def _record(
    file: str, name: str, scores: np.ndarray, explained: int, explainer: Explainer, class_names: Sequence[str] | None
) -> dict[str, Any]:
    predicted = int(scores.argmax())
    has_head = explainer.graph.output != explainer.graph.logits
    record: dict[str, Any] = {"file": file, "overlay": f"{name}.png", "map": f"{name}.npy"}
    for role, index in (("predicted", predicted), ("explained", explained)):
        record[f"{role}_class"] = index
        record[f"{role}_name"] = None if class_names is None else class_names[index]
        record[f"{role}_{'probability' if has_head else 'logit'}"] = float(scores[index])
    return record


def _title(record: Mapping[str, Any], method: str) -> list[str]:
    lines = []
    for role, text in (("predicted", "predicted"), ("explained", f"{method} for")):
        name = record[f"{role}_name"]
        label = f"class {record[f'{role}_class']}" if name is None else name
        probability, logit = record.get(f"{role}_probability"), record.get(f"{role}_logit")
        lines.append(f"{text} {label}, " + (f"logit {logit:.3g}" if probability is None else f"p = {probability:.3f}"))
    return [*lines, "the map is 0 everywhere"] if record["map_is_zero"] else lines


def _write_map(path: Path, saliency: np.ndarray) -> None:
    with atomic_path(path) as partial:
        np.save(partial, saliency)


def _check_output(output: Path, names: Sequence[str], overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise RunError(f"{output}: expected a folder to write to; received a file. Choose another with --output.")
    if overwrite:
        return
    for path in _written(output, names):
        if path.exists():
            raise RunError(
                f"{path} exists. Choose another folder with --output, or replace its files with --overwrite."
            )


def _written(output: Path, names: Sequence[str]) -> Iterator[Path]:
    yield output / RECORD
    for name in names:
        yield output / f"{name}.png"
        yield output / f"{name}.npy"


def _whole(
    settings: Settings,
    options: Mapping[str, Any],
    loaded: LoadedModel,
    explainer: Explainer,
    shape: tuple[int, int, int],
    pixels: tuple[float, float],
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "method": settings.method,
        "options": dict(options),
        "reducer": settings.reducer,
        "fallbacks": list(explainer.fallbacks),
        "model": loaded.source,
        "image_shape": list(shape),
        "pixels": list(pixels),
        "versions": environment(seed=0)["versions"],
        "images": records,
    }
