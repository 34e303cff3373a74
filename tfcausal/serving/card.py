"""The card of an exported model: what it is, what it was trained on, how good it is and what it is for. No TensorFlow.

After M. Mitchell et al., *Model cards for model reporting*, 2019. What is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfcausal.errors import RunError
from tfcausal.runs import RunDirectory

UNKNOWN = "unknown"
MEASURES = {
    "accuracy": ("accuracy", "accuracy_chance", "Share of right answers; chance: always the commonest class."),
    "mask_energy": (
        "saliency in mask",
        "mask_energy_chance",
        "Share of positive saliency inside the true mask of the cause; chance: a uniform map.",
    ),
    "deletion": (
        "deletion",
        "deletion_random",
        "Mean probability while pixels are deleted, most salient first, lower is better; chance: random order.",
    ),
}
"""By its name in `metrics.json`: how a measure is called, what holds its chance level, what it says."""
_LIMITS = (
    "Nothing is known of how good it is on images of another origin than those that it was measured on.",
    "A saliency map tells what the answer rests on, not whether the answer is right.",
    "Values outside of the range of pixels are taken as they come.",
    "Where a server puts several requests into one batch, all of them fail with one that is wrong.",
)


def run_facts(run: RunDirectory, model: str) -> dict[str, Any]:
    """What a run directory tells about one of its models: data, numbers with their chance levels, versions.

    Args:
        run: The run.
        model: Name of the model.

    Returns:
        `data`, `metrics` and `trained_with`, for JSON; `unknown` where the run is not finished.
    """
    try:
        metrics = run.metrics
        own = metrics["models"][model]
    except (RunError, KeyError):
        return {**unknown_facts(), "trained_with": _environment(run)}
    splits = metrics["data"]["splits"]
    seen = own.get("trained_on", [])
    data = {
        "description": metrics["data"]["description"],
        "splits": {
            name: {key: split[key] for key in ("images", "masks", "classes") if key in split}
            for name, split in splits.items()
        },
        "trained_on": seen,
        "masks_in_training": own.get("training_masks"),
        "files_left_out": len(metrics["data"].get("skipped", [])),
    }
    measured = {name: _numbers(values, splits[name]) for name, values in own["splits"].items() if name not in seen}
    return {
        "data": data,
        "metrics": {"splits": measured, "worst_group": own.get("worst_group")},
        "trained_with": _environment(run),
    }


def unknown_facts() -> dict[str, Any]:
    """What is known of a model that comes without a run: nothing."""
    return {"data": UNKNOWN, "metrics": UNKNOWN, "trained_with": UNKNOWN}


def limits(head: str, heads_assumed: bool, fallbacks: Sequence[str]) -> list[str]:
    """What users of a model are to know.

    Args:
        head: `multi_class`, `binary` or `multi_label`.
        heads_assumed: Whether the model gives logits, and probabilities are made of them on the way out.
        fallbacks: Paths of operations for which the plain gradient stands in.
    """
    found = list(_LIMITS)
    if head == "binary":
        found.append("It has a single logit: a map always speaks for class 1, and its negative part for class 0.")
    if head == "multi_label":
        found.append("Labels are independent: `class_index` and `label` are those of the most probable one.")
    if heads_assumed:
        found.append("The model gives logits; that their softmax or sigmoid are probabilities is an assumption.")
    if fallbacks:
        found.append(f"Maps go through these operations by the plain gradient: {', '.join(fallbacks)}.")
    return found


def _environment(run: RunDirectory) -> Any:
    try:
        values = run.environment
    except RunError:
        return UNKNOWN
    return {key: values[key] for key in ("versions", "platform", "seed", "git") if key in values}


def _numbers(values: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of a split, each with its interval, number of images and chance level."""
    counts = list(split.get("classes", {}).values())
    levels = {**values, "accuracy_chance": {"value": max(counts) / sum(counts) if sum(counts) else None}}
    return {
        measure: {**values[measure], "chance": levels[reference]["value"]}
        for measure, (_, reference, _) in MEASURES.items()
        if measure in values and values[measure].get("n")
    }
