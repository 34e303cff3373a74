"""The card of an exported model as text, in Markdown. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfcausal.serving.card import MEASURES, UNKNOWN

_MOST_LABELS = 20


def card_text(card: Mapping[str, Any]) -> str:
    """A card in Markdown.

    Args:
        card: As it is in `card.json`.

    Example:
        >>> print(card_text({"name": "digits", "version": 3}).splitlines()[0])
        # digits, version 3
    """
    lines = [f"# {card['name']}, version {card['version']}", ""]
    for title, part in (
        ("", _source(card)),
        ("Intended use", [card.get("intended_use", UNKNOWN)]),
        ("Input", _input(card)),
        ("Answer", _answer(card)),
        ("Explanation", _explanation(card)),
        ("Data", _data(card.get("data", UNKNOWN))),
        ("How good it is", _metrics(card.get("metrics", UNKNOWN))),
        ("Limits", [f"- {limit}" for limit in card.get("limits", ())]),
        ("Signatures", _signatures(card.get("signatures", {}))),
        ("Compared with the model", _comparison(card.get("compared"))),
        ("Versions", _versions(card)),
    ):
        if part:
            lines += [f"## {title}", ""] if title else []
            lines += [*part, ""]
    return "\n".join(lines)


def _source(card: Mapping[str, Any]) -> list[str]:
    source = card.get("source", {})
    return [f"- {key.replace('_', ' ')}: {value}" for key, value in source.items()]


def _input(card: Mapping[str, Any]) -> list[str]:
    if "input" not in card:
        return []
    given = card["input"]
    return [
        f"- `images`: float32, (N, {', '.join('any' if side is None else str(side) for side in given['shape'])}), "
        f"{given['black']:g} for black to {given['white']:g} for white.",
        f"- `image_bytes`: {' and '.join(given['files'])} files of at most {given['most_pixels']:,} pixels, decoded "
        f"and resized to {given['resized_to'][0]} x {given['resized_to'][1]} as in training.",
    ]


def _answer(card: Mapping[str, Any]) -> list[str]:
    if "output" not in card:
        return []
    output = card["output"]
    labels = output["labels"]
    named = ", ".join(f"{index} {label}" for index, label in enumerate(labels[:_MOST_LABELS]))
    named += f", and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    return [f"- head: {output['head'].replace('_', '-')}", f"- classes: {named}"]


def _explanation(card: Mapping[str, Any]) -> list[str]:
    if "explanation" not in card:
        return []
    how = card["explanation"]
    options = ", ".join(f"{key}={value}" for key, value in how["options"].items())
    lines = [f"- `{how['method']}`{f' ({options})' if options else ''}: {how['description']} {how['source']}."]
    effects = (
        f"- `{level['signature']}`: {level['concepts']} concepts of layer `{level['layer']}`. {level['agreement']}"
        for level in card.get("effects", [])
    )
    return [*lines, *map(str.rstrip, effects)]


def _data(data: Any) -> list[str]:
    if data == UNKNOWN:
        return ["Unknown: the model was exported without its run."]
    shown = [[name, str(split["images"]), str(split["masks"])] for name, split in data["splits"].items()]
    lines = [data["description"], "", *_table(["split", "images", "masks"], shown), ""]
    seen = ", ".join(data["trained_on"]) or UNKNOWN
    lines.append(f"Trained on: {seen}; masks used: {data['masks_in_training']}.")
    return lines


def _metrics(metrics: Any) -> list[str]:
    if metrics == UNKNOWN:
        return ["Unknown: the model was exported without the numbers of a finished run."]
    rows = [
        [split, MEASURES[measure][0], _interval(number), _spelled(number["chance"]), str(number["n"])]
        for split, numbers in metrics["splits"].items()
        for measure, number in numbers.items()
    ]
    lines = _table(["split", "measure", "value (95 %)", "chance", "images"], rows)
    worst = metrics.get("worst_group")
    if worst and worst.get("n"):
        lines += ["", f"Worst group: {worst['name']}, accuracy {_interval(worst)}, {worst['n']} images."]
    return [*lines, "", *(f"- {name}: {meaning}" for name, _, meaning in MEASURES.values())]


def _signatures(signatures: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"`{name}`",
            *(", ".join(f"`{key}` {kind}" for key, kind in one[side].items()) for side in ("inputs", "outputs")),
        ]
        for name, one in signatures.items()
    ]
    return _table(["signature", "inputs", "outputs"], rows) if rows else []


def _comparison(compared: Any) -> list[str]:
    if not compared:
        return []
    sizes = ", ".join(map(str, compared["batch_sizes"]))
    return [
        f"Asked in a process without tfcausal and Keras, in batches of {sizes}: differences from the model in Python "
        f"are at most {compared['largest']:.1e}, with a limit of {compared['tolerance']:.0e}. In maps they are "
        "shares of the largest magnitude in the same image, and in other outputs where that is above 1."
    ]


def _versions(card: Mapping[str, Any]) -> list[str]:
    trained, exported = card.get("trained_with", UNKNOWN), card.get("exported_with", {})
    before = trained.get("versions", {}) if isinstance(trained, Mapping) else {}
    rows = [
        [package, str(before.get(package) or ""), str(exported.get(package) or "")]
        for package in sorted({*before, *exported})
        if before.get(package) or exported.get(package)
    ]
    return _table(["package", "trained with", "exported with"], rows) if rows else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return [_row(head), _row(["---"] * len(head)), *map(_row, cells)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(number: Mapping[str, Any]) -> str:
    return f"{_spelled(number['value'])} ({_spelled(number.get('low'))} to {_spelled(number.get('high'))})"


def _spelled(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
