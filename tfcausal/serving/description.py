"""What an exported model says about itself, put together from its run and from what was traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

from tfcausal.environment import environment, hash_of
from tfcausal.saliency.registry import find_explainer
from tfcausal.serving.card import limits, run_facts, unknown_facts
from tfcausal.serving.signatures import Served
from tfcausal.serving.subject import Choices, ServedLevel, Source


def preprocessing(served: Served) -> dict[str, Any]:
    """What `preprocessing.json` says: what a client needs that sends images, and what is done with files.

    Args:
        served: What is exported.
    """
    low, high = served.pixels
    return {
        "shape": list(served.graph.input_shape[1:]),
        "black": low,
        "white": high,
        "files": ["PNG", "JPEG"],
        "resized_to": list(served.shape[:2]),
        "resizing": f"bilinear, antialiased, as Pillow {package_version('pillow')} with reducing_gap=3",
        "orientation": "as EXIF says",
        "transparency": "on black",
        "grey": "ITU-R 601",
        "most_pixels": served.most_pixels,
    }


def description(
    source: Source,
    choices: Choices,
    served: Served,
    levels: Sequence[ServedLevel],
    functions: Mapping[str, Any],
    intended_use: str,
    fallbacks: Sequence[str],
) -> dict[str, Any]:
    """What the card of an exported model says, but for its name and version.

    Args:
        source: Where the model comes from.
        choices: How it is exported.
        served: What the signatures are made of.
        levels: The levels with concepts.
        functions: Concrete functions by the name of their signature.
        intended_use: What it is for.
        fallbacks: Paths of operations for which the plain gradient stands in.
    """
    entry = find_explainer(choices.method)
    facts = unknown_facts() if source.run is None else run_facts(source.run, source.model)
    assumed = served.graph.output == served.graph.logits
    return {
        "source": _origin(source),
        "intended_use": intended_use,
        "input": preprocessing(served),
        "output": {"head": served.head, "labels": list(served.labels)},
        "explanation": {
            "method": choices.method,
            "options": {key: str(value) for key, value in choices.options.items()},
            "description": entry.description,
            "source": entry.source,
            "fallbacks": list(fallbacks),
        },
        "effects": [
            {
                "signature": served_level.signature,
                "layer": served_level.autoencoder.layer,
                "concepts": served_level.autoencoder.concepts,
                "agreement": served_level.level.agreement,
            }
            for served_level in levels
        ],
        "signatures": {name: _described(function) for name, function in functions.items()},
        "limits": limits(served.head, assumed, fallbacks),
        "exported_with": environment(seed=0)["versions"],
        **facts,
    }


def _origin(source: Source) -> dict[str, Any]:
    """Where a model comes from, without the folder that it lies in."""
    origin: dict[str, Any] = {"exported": datetime.now(UTC).isoformat(timespec="seconds")}
    if source.run is not None:
        origin |= {"run": source.run.name, "model": source.model}
        origin["trained_by"] = source.run.config.models[source.model].method
    elif source.file is not None:
        origin["file"] = source.file.name
    if source.file is not None:
        origin["sha256"] = hash_of([source.file])
    return origin


def _described(function: Any) -> dict[str, dict[str, str]]:
    """The inputs and outputs of a signature: dtype and shape, N for the batch."""
    given, named = function.structured_input_signature
    inputs = {spec.name: spec for spec in (*given, *named.values())}
    return {"inputs": _specs(inputs), "outputs": _specs(function.structured_outputs)}


def _specs(specs: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{spec.dtype.name} {_shape(spec.shape)}" for name, spec in specs.items()}


def _shape(shape: Sequence[int | None]) -> str:
    sides = ("any" if side is None else str(side) for side in shape[1:])
    return f"({', '.join(['N', *sides])})" if len(shape) > 1 else "(N,)"
