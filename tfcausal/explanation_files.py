"""What is written about explained images: an overlay, the raw map and a record. Needs no TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.atomic import write_atomic
from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.figures import explanation

RECORD = "explanations.json"


def check_output(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Check that nothing is overwritten unasked, before any work starts.

    Args:
        folder: The folder to write to; need not exist.
        names: What is written about, from :func:`tfcausal.data.image_files.output_names`.
        overwrite: Whether files that are there may be replaced.

    Raises:
        RunError: The folder is a file, or one of the files exists.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: expected a folder to write to; received a file. Choose another with --output.")
    if overwrite:
        return
    for path in _written(folder, names):
        if path.exists():
            raise RunError(
                f"{path} exists. Choose another folder with --output, or replace its files with --overwrite."
            )


def write_explanation(
    folder: Path,
    record: Mapping[str, Any],
    picture: np.ndarray,
    saliency: np.ndarray,
    method: str,
    kept: np.ndarray | None = None,
) -> None:
    """Write the overlay and the raw map of an image.

    Args:
        folder: Where to.
        record: What is known of the image: `overlay` and `map` are the names of the files; `predicted_class`,
            `predicted_name` (or None) and `predicted_probability` or `predicted_logit`, the same with `explained`, and
            `map_is_zero`.
        picture: (height, width, 1 or 3) in [0, 1].
        saliency: The map, (height, width, channels).
        method: What made the map, for the title.
        kept: What is kept of the map; None keeps all of it.

    Raises:
        RunError: A file cannot be written.
    """
    lines = _title(record, method)
    write_atomic(folder / record["overlay"], explanation(picture, saliency.sum(axis=-1), lines))
    raw = io.BytesIO()
    np.save(raw, saliency if kept is None else kept)
    write_atomic(folder / record["map"], raw.getvalue())


def chosen_class(target: str | None, class_names: Sequence[str] | None, classes: int) -> int | None:
    """The index of the class that a user names.

    Args:
        target: Its name or index; None for none.
        class_names: Names by index, if known.
        classes: Number of classes.

    Raises:
        InvalidArgument: There is no such class; the message gives the closest names.

    Example:
        >>> chosen_class("dog", ["cat", "dog"], 2), chosen_class("0", None, 2)
        (1, 0)
    """
    if target is None:
        return None
    if class_names is not None and target in class_names:
        return class_names.index(target)
    if target.isdecimal() and int(target) < classes:
        return int(target)
    expected = f"a class index in [0, {classes - 1}]"
    if class_names is None:
        raise InvalidArgument(message("target", expected, repr(target)))
    remedy = closest(target, class_names, "classes")
    raise InvalidArgument(message("target", f"the name of a class, or {expected}", repr(target), remedy))


def _title(record: Mapping[str, Any], method: str) -> list[str]:
    lines = []
    for role, text in (("predicted", "predicted"), ("explained", f"{method} for")):
        name = record[f"{role}_name"]
        label = f"class {record[f'{role}_class']}" if name is None else name
        probability, logit = record.get(f"{role}_probability"), record.get(f"{role}_logit")
        lines.append(f"{text} {label}, " + (f"logit {logit:.3g}" if probability is None else f"p = {probability:.3f}"))
    return [*lines, "the map is 0 everywhere"] if record["map_is_zero"] else lines


def _written(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    yield folder / RECORD
    for name in names:
        yield folder / f"{name}.png"
        yield folder / f"{name}.npy"
