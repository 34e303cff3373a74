"""The rows of the table of effects that are worth telling: the strongest concepts of every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

CLEAN = "clean"
_NAMES = {
    "zero": "zero_out",
    "mean": "set_mean",
    "range": "set_range",
    "sampled": "set_sampled",
    "values": "set_values",
}


def intervention_name(of_concepts: str, condition: str) -> str:
    """What the table of effects calls an intervention on concepts in images under another intervention.

    Args:
        of_concepts: `intervention` of an :class:`tfcausal.effects.results.EffectResult`.
        condition: The intervention on the images, `clean` for none.

    Example:
        >>> intervention_name("zero", "fgsm")
        'zero_out+fgsm'
    """
    return _NAMES[of_concepts] + ("" if condition == CLEAN else f"+{condition}")


@dataclass(frozen=True)
class Row:
    """A concept, or the image as a whole, and the effects on the class that it moves most.

    Attributes:
        model: Name of the model.
        level: The layer; None for the image.
        node: The concept; -1 for the image.
        of: Name of the class, its number where it has none.
        faithful: Whether the autoencoder leaves the answers as they are.
        dead: Whether the concept is the same in all images.
        effects: By intervention on the images, the row of the table of effects; of a concept `clean` for none.
    """

    model: str
    level: str | None
    node: int
    of: str
    faithful: bool
    dead: bool
    effects: Mapping[str, Mapping[str, Any]]


def strongest(rows: pandas.DataFrame, count: int = 3) -> list[Row]:
    """The strongest concepts of every model and level, and the interventions on the image alone.

    Args:
        rows: Rows of the table of effects.
        count: How many concepts of a level.

    Returns:
        The rows; a concept is intervened on in images under every intervention, and effects are on the class that it
        moves most in images as they are. Interventions on the image have a row each, on the class that they move most.

    Example:
        >>> import pandas
        >>> common = {"model": "plain", "level": "conv2", "class": 0, "class_name": "cat", "faithful": True}
        >>> effects = {(0, "zero_out"): 0.1, (3, "zero_out"): -0.4, (3, "zero_out+fgsm"): -0.2}
        >>> rows = [
        ...     {**common, "node": node, "intervention": intervention, "effect": effect, "dead": False}
        ...     for (node, intervention), effect in effects.items()
        ... ]
        >>> [(row.node, row.of, list(row.effects)) for row in strongest(pandas.DataFrame(rows), count=1)]
        [(3, 'cat', ['clean', 'fgsm'])]
    """
    found = []
    # The first row of a node and class is the expectation over the values; the others tell value by value.
    single = rows[~rows.duplicated(["model", "level", "node", "intervention", "class"])]
    single = single.assign(size=single["effect"].abs())
    single = single.assign(of_image=single["intervention"].where(single["level"].isna(), ""))
    for (model, level, _), part in single.groupby(["model", "level", "of_image"], sort=False, dropna=False):
        concepts = isinstance(level, str)
        names = {name: name.partition("+")[2] or CLEAN if concepts else name for name in part["intervention"].unique()}
        ranked = part[part["intervention"] == next(iter(names))].sort_values("size", ascending=False, kind="stable")
        for best in ranked.drop_duplicates("node").head(count).to_dict("records"):
            own = part[(part["node"] == best["node"]) & (part["class"] == best["class"])]
            effects = {names[str(row["intervention"])]: row for row in own.to_dict("records")}
            found.append(
                Row(
                    model=str(model),
                    level=str(level) if concepts else None,
                    node=int(best["node"]),
                    of=_class_name(best),
                    faithful=all(row["faithful"] for row in effects.values()),
                    dead=bool(best["dead"]),
                    effects={str(name): row for name, row in effects.items()},
                )
            )
    return found


def _class_name(row: Mapping[str, Any]) -> str:
    if row["class"] < 0:
        return "all"
    return row["class_name"] if isinstance(row["class_name"], str) else str(row["class"])
