"""Which images of a folder a person draws masks for: some of each class at random, or where a model looks elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfcausal.browsing.stored_split import StoredSplit, split_names
from tfcausal.config import ImageFolderConfig
from tfcausal.config_errors import closest
from tfcausal.data.folder_layout import ImageFile
from tfcausal.data.splits import stratified_order
from tfcausal.errors import InvalidArgument, message
from tfcausal.runs import RunDirectory


@dataclass(frozen=True)
class Sampled:
    """An image to draw on.

    Attributes:
        name: Its name in the folder.
        class_name: Its class.
        energy: Share of a model's positive saliency inside the mask, 0 to 1, if it was chosen by that.
        measured: Whether the energy is that of this image; else it is the mean of its class.
    """

    name: str
    class_name: str
    energy: float | None = None
    measured: bool = False


def random_sample(images: Sequence[ImageFile], count: int, seed: int) -> tuple[Sampled, ...]:
    """Choose images at random, the classes in their proportions.

    Args:
        images: Those to choose from.
        count: How many, 1 or more; all if there are fewer.
        seed: Seed of the choice, 0 or more. For one seed, a smaller sample is the beginning of a larger one, and
            masks that are drawn meanwhile change nothing.

    Raises:
        InvalidArgument: An argument is out of range.
    """
    _check(count, seed)
    chosen = (images[position] for position in _order(images, seed)[:count])
    return tuple(Sampled(image.name, image.class_name) for image in chosen)


def lowest_energy(
    images: Sequence[ImageFile], energies: Mapping[str, float], count: int, seed: int
) -> tuple[Sampled, ...]:
    """Choose the images whose true cause a model looks at least.

    The energy of an image can be measured only where it has a mask and was not trained on. Any other image counts with
    the mean of its class, so that the images without a mask of the class that fares worst come first; a class without
    any comes last. Equal ones are in random order.

    Args:
        images: Those to choose from.
        energies: By name, as from :func:`mask_energies`.
        count: How many, 1 or more; all if there are fewer.
        seed: Seed of the order of equal ones, 0 or more.

    Returns:
        The images, the lowest energy first.

    Raises:
        InvalidArgument: An argument is out of range.
    """
    _check(count, seed)
    by_class: dict[str, list[float]] = {}
    for image in images:
        if image.name in energies:
            by_class.setdefault(image.class_name, []).append(energies[image.name])
    means = {name: float(np.mean(values)) for name, values in by_class.items()}
    known = [energies.get(image.name, means.get(image.class_name)) for image in images]
    shuffled = _order(images, seed)
    values = np.array([np.inf if energy is None else energy for energy in known])
    ranked = shuffled[np.argsort(values[shuffled], kind="stable")][:count]
    return tuple(
        Sampled(images[k].name, images[k].class_name, known[k], images[k].name in energies) for k in ranked.tolist()
    )


def mask_energies(run: RunDirectory, model: str) -> dict[str, float]:
    """What a run has measured of the images that had a mask and were not trained on.

    Args:
        run: The run.
        model: One of its models.

    Returns:
        Share of the model's positive saliency inside the mask, by name of the image.

    Raises:
        InvalidArgument: There is no such model, or no image that it was measured on has a mask.
        RunError: The run has measured nothing yet, or cannot be read.
    """
    if model not in run.config.models:
        remedy = closest(model, run.config.models, "models")
        raise InvalidArgument(message("model", f"a model of {run.name}", repr(model[:200]), remedy))
    found: dict[str, float] = {}
    for split_name in split_names(run):
        split = StoredSplit(run, split_name)
        energies = split.mask_energy(model) if model in split.models else None
        if energies is not None:
            values = zip(split.names, energies.tolist(), strict=True)
            found |= {name: value for name, value in values if np.isfinite(value)}
    if not found:
        raise InvalidArgument(
            f"{run.name} has measured no mask energy of {model}: no image that it was measured on has a mask. Choose "
            "images at random, or draw some masks and run again."
        )
    return found


def parts_of(images: Sequence[ImageFile], run: RunDirectory | None = None) -> dict[str, str]:
    """Which part of the data every image belongs to, as far as it is known: masks of training images are learnt from.

    Args:
        images: Images of a folder.
        run: A run on this folder, which tells those apart that are split by its seed; an image that it has not
            measured is one that it was trained on.

    Returns:
        `train`, `validation` or `test` by name of the image; empty where it is not known.

    Raises:
        RunError: The run has measured nothing yet, or cannot be read.
    """
    layout = {image.name: image.name.split("/", 1)[0] for image in images}
    if "images" not in layout.values():
        return layout
    if run is None:
        return {}
    measured = {name: part for part in split_names(run) for name in StoredSplit(run, part).names}
    return {image.name: measured.get(image.name, "train") for image in images}


def data_folder(run: RunDirectory, start: Path) -> Path | None:
    """The folder of images that a run was trained on, or None if it has another source.

    Args:
        run: The run.
        start: Where a relative path starts: the folder that tfcausal was started in.
    """
    data = run.config.data
    return (start / Path(data.path).expanduser()).resolve() if isinstance(data, ImageFolderConfig) else None


def next_position(done: Sequence[bool], position: int, step: int, pass_over: bool) -> int | None:
    """The place of the next image, or of the one before.

    Args:
        done: Whether each image of the sample has a mask.
        position: The place of the one that is shown.
        step: 1 for the next, -1 for the one before.
        pass_over: Whether those that have a mask are passed over.

    Returns:
        The place, or None at the end.

    Example:
        >>> done = [True, True, False]
        >>> next_position(done, 0, 1, pass_over=True), next_position(done, 2, -1, pass_over=True)
        (2, None)
    """
    places = range(position + step, len(done) if step > 0 else -1, step)
    return next((place for place in places if not (pass_over and done[place])), None)


def _order(images: Sequence[ImageFile], seed: int) -> np.ndarray:
    _, labels = np.unique([image.class_name for image in images], return_inverse=True)
    return stratified_order(labels, seed)


def _check(count: int, seed: int) -> None:
    if count < 1:
        raise InvalidArgument(message("images", "a number of images of at least 1", count))
    if seed < 0:
        raise InvalidArgument(message("seed", "0 or more", seed))
