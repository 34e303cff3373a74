"""From the `data` section of a configuration to splits, and the checks that they are fit for a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tfcausal.atomic import to_json, write_atomic
from tfcausal.config import ImageFolderConfig, RunConfig
from tfcausal.data.image_set import DataSet, centred
from tfcausal.data.sources.image_folder import image_folder
from tfcausal.data.sources.textured_digits import textured_digits
from tfcausal.errors import DataError, RunError
from tfcausal.progress import ConsoleProgress


def load_data(config: RunConfig, progress: ConsoleProgress) -> DataSet:
    """Load the data set of a configuration.

    Args:
        config: The configuration.
        progress: Where to show how far the reading is.

    Returns:
        The splits, with pixels in [-0.5, 0.5]: 0, which masked and deleted pixels become, is mid-grey.

    Raises:
        DataError: The data cannot be used.
    """
    settings = config.data.model_dump(exclude={"source"})
    if not isinstance(config.data, ImageFolderConfig):
        return centred(textured_digits(**settings, seed=config.seed))
    shown: dict[str, Any] = {}

    def on_progress(done: int, total: int) -> None:
        if not shown:
            shown["task"] = progress.task("reading images", total)
            shown["advance"] = shown["task"].__enter__()
            shown["done"] = 0
        shown["advance"](done - shown["done"])
        shown["done"] = done

    try:
        return centred(image_folder(**settings, seed=config.seed, on_progress=on_progress))
    finally:
        if shown:
            shown["task"].__exit__(None, None, None)


def check_data(config: RunConfig, data: DataSet) -> None:
    """Check, before anything is trained, that the data is enough for the models.

    Args:
        config: The configuration.
        data: The data set.

    Raises:
        DataError: A model needs masks that the training images do not have, or a batch needs more images.
    """
    train = data.splits["train"]
    for name, model in config.models.items():
        if model.masks is not None and not train.has_mask.any():
            raise DataError(
                f"Model `models.{name}` (method: {model.method}) needs masks of training images; expected "
                "masks/<class>/<same name>.png beside images/<class>/, found none. Add masks, or leave this model out."
            )
    if len(train) < config.training.batch_size:
        raise DataError(
            f"There are {len(train)} training images; training.batch_size={config.training.batch_size} needs at least "
            f"as many. Set training.batch_size to {len(train)} or less."
        )


def fingerprint(data: DataSet) -> dict[str, Any]:
    """What tells one data set and its splits from another: a resumed run must have the same images in each.

    Args:
        data: The data set.

    Returns:
        A mapping that JSON can hold.
    """
    train = data.splits["train"]
    result: dict[str, Any] = {"classes": list(train.class_names), "image_shape": list(train.image_shape)}
    for name, split in data.splits.items():
        content = json.dumps([list(split.names), split.labels.tolist(), split.has_mask.tolist()])
        result[name] = hashlib.sha256(content.encode()).hexdigest()
    return result


def check_unchanged(data: DataSet, path: Path) -> None:
    """Keep what identifies the data of a run in a file, or compare the data with what was kept.

    Args:
        data: The data set.
        path: The file.

    Raises:
        RunError: The data is not what it was when the run began.
    """
    now = fingerprint(data)
    if not path.exists():
        write_atomic(path, to_json(now))
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    changed = [part for part in now if now[part] != kept.get(part)]
    if changed:
        raise RunError(
            f"{path.parent} cannot go on: the data has changed since the run began ({', '.join(changed)}), so that "
            "images of the training could now be in the test. Restore the data, or run again under another name."
        )
