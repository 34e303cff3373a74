"""What is known of every image of a split, as a table to choose and sort from; needs no TensorFlow and no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from tfcausal.browsing.stored_split import StoredSplit
from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, message

if TYPE_CHECKING:
    import pandas

Answer = Literal["all", "right", "wrong"]
Agreement = Literal["all", "agrees", "conflicts"]
SORTABLE = {
    "position": "position in the split",
    "confidence": "probability of the predicted class, 0 to 1",
    "loss": "cross-entropy of the label, in nats",
    "mask_energy": "share of positive saliency inside the true mask, 0 to 1",
    "disagreement": "total variation distance between the answers of two models, 0 to 1",
    "attention_change": "total variation distance between what two models look at, 0 to 1",
}
"""Columns to sort by, and what they say."""


def image_table(split: StoredSplit, model: str) -> pandas.DataFrame:
    """What is known of every image, and what a model says of it.

    Args:
        split: The split.
        model: Name of a model of the run.

    Returns:
        One row per image with the columns `position`, `name`, `label`, `predicted`, `right`, `confidence` (probability
        of the predicted class), `loss` (minus the logarithm of the label's probability, nats), `mask_energy`,
        `mask_area` (the chance level of the energy), `context`, `agrees` and `group`. What is not known is missing or
        NaN; `group` is the class, and whether the context agrees with it where that is known.

    Raises:
        InvalidArgument: The model was not measured on this split.
        RunError: The run cannot be read.
    """
    import pandas

    count, labels = len(split), split.labels
    predicted, confidence, of_label = np.empty(count, np.int64), np.empty(count), np.empty(count)
    for block in split.blocks():
        part = slice(int(block[0]), int(block[-1]) + 1)
        answers = split.probabilities(model, part)
        predicted[part] = answers.argmax(axis=1)
        confidence[part] = answers.max(axis=1)
        of_label[part] = answers[np.arange(len(block)), labels[part]]
    agrees, contexts = split.column("context_agrees"), split.column("contexts")
    classes = pandas.Index(split.class_names)
    unknown = np.full(count, np.nan)
    energy, area = split.mask_energy(model), split.column("mask_area")
    table = pandas.DataFrame(
        {
            "position": np.arange(count),
            "name": list(split.names),
            "label": pandas.Categorical.from_codes(labels, classes),
            "predicted": pandas.Categorical.from_codes(predicted, classes),
            "right": predicted == labels,
            "confidence": confidence,
            "loss": -np.log(np.maximum(of_label, np.finfo(np.float32).tiny)),
            "mask_energy": unknown if energy is None else energy.astype(float),
            "mask_area": unknown if area is None else area.astype(float),
        }
    )
    if contexts is not None:
        table["context"] = pandas.Categorical.from_codes(contexts, pandas.Index(split.context_names))
    if agrees is not None:
        table["agrees"] = agrees
    codes, groups = _groups(labels, split.class_names, agrees)
    table["group"] = pandas.Categorical.from_codes(codes, pandas.Index(groups))
    return table


def disagreement(split: StoredSplit, model: str, other_split: StoredSplit, other: str) -> np.ndarray:
    """How far the answers of two models differ: half the sum of the absolute differences of their probabilities.

    Args:
        split: A split of a run.
        model: A model of that run.
        other_split: The same split of the same or of another run, with the same images in the same order.
        other: A model of that run.

    Returns:
        Total variation distance, (N,) in [0, 1].

    Raises:
        InvalidArgument: The images or the classes are not the same.
    """
    check_same_images(split, other_split)
    distances = np.empty(len(split))
    for block in split.blocks():
        part = slice(int(block[0]), int(block[-1]) + 1)
        ours, theirs = split.probabilities(model, part), other_split.probabilities(other, part)
        distances[part] = 0.5 * np.abs(ours - theirs).sum(axis=1)
    return distances


def attention_change(split: StoredSplit, model: str, other_split: StoredSplit, other: str) -> np.ndarray:
    """How far apart two models look: half the sum of the absolute differences of their shares of positive saliency.

    Each model's map is the one of its own predicted class, and is compared in coarse cells.

    Args:
        split: A split of a run.
        model: A model of that run.
        other_split: The same split of the same or of another run, with the same images in the same order.
        other: A model of that run.

    Returns:
        Total variation distance, (N,) in [0, 1]; NaN where a map has no positive saliency.

    Raises:
        InvalidArgument: The images are not the same, or have another size.
    """
    check_same_images(split, other_split)
    ours, theirs = split.attention(model), other_split.attention(other)
    if ours.shape != theirs.shape:
        raise InvalidArgument(message("other_split", f"maps of {ours.shape[1:]} cells", theirs.shape[1:]))
    known = ours.any(axis=(1, 2)) & theirs.any(axis=(1, 2))
    return np.where(known, 0.5 * np.abs(ours - theirs).sum(axis=(1, 2)), np.nan)


def check_same_images(split: StoredSplit, other: StoredSplit) -> None:
    """Raise `InvalidArgument` unless two splits have the same images, by name, and the same classes."""
    if split.names != other.names or split.class_names != other.class_names:
        what = "images" if split.names != other.names else "classes"
        remedy = "Compare runs on the same data with the same seed."
        raise InvalidArgument(message("other_split", f"the {what} of {split.path.parent}", "others", remedy))


def choose(
    table: pandas.DataFrame,
    labels: Sequence[str] = (),
    answer: Answer = "all",
    agreement: Agreement = "all",
    contexts: Sequence[str] = (),
    group: str | None = None,
) -> pandas.DataFrame:
    """The rows of a table that fulfil every condition; what is left empty is no condition.

    Args:
        table: As from :func:`image_table`.
        labels: Classes that the images are of.
        answer: `right`, `wrong` or `all`.
        agreement: Whether the context `agrees` with the class, `conflicts` with it, or `all`.
        contexts: Planted contexts.
        group: A group of the table.

    Returns:
        The rows, in their order.
    """
    keep = np.ones(len(table), bool)
    if labels:
        keep &= table["label"].isin(list(labels)).to_numpy()
    if answer != "all":
        keep &= table["right"].to_numpy() == (answer == "right")
    if agreement != "all" and "agrees" in table:
        keep &= table["agrees"].to_numpy() == (agreement == "agrees")
    if contexts and "context" in table:
        keep &= table["context"].isin(list(contexts)).to_numpy()
    if group is not None:
        keep &= (table["group"] == group).to_numpy()
    return table[keep]


def order(table: pandas.DataFrame, by: str, descending: bool = False) -> pandas.DataFrame:
    """The rows of a table in the order of a column, equal ones as they are; unknown values come last.

    Args:
        table: As from :func:`image_table`, with further columns of :data:`SORTABLE` or without.
        by: The column.
        descending: Whether the largest comes first.

    Raises:
        InvalidArgument: The table has no such column.
    """
    if by not in SORTABLE or by not in table:
        known = [column for column in SORTABLE if column in table]
        raise InvalidArgument(message("by", "a column to sort by", repr(by), closest(by, known, "columns")))
    return table.sort_values(by, ascending=not descending, kind="stable", na_position="last")


def _groups(labels: np.ndarray, classes: Sequence[str], agrees: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    """Groups by code and name, as the report calls them."""
    if agrees is None:
        return labels, [f"class {name}" for name in classes]
    names = [f"class {name}, context {word}" for name in classes for word in ("agrees", "conflicts")]
    return 2 * labels + ~agrees.astype(bool), names
