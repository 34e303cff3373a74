"""What effects were found, as a table for the terminal and as a section of the report. Reads files only."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tfcausal.effect_study.rows import CLEAN, strongest

if TYPE_CHECKING:
    from tfcausal.effects.store import EffectStore


def effects_table(root: Path, models: Sequence[str]) -> Table:
    """The strongest effects of every level, for a terminal.

    Args:
        root: Where the effects are.
        models: The models to show.

    Raises:
        RunError: The table of effects is not there, or damaged.
    """
    from tfcausal.effects.table import ParquetTable

    rows = strongest(ParquetTable(root / "effects.parquet").read(model=list(models)))
    conditions = sorted({name: None for row in rows for name in row.effects}, key=lambda name: name != CLEAN)
    caption = (
        "Change of the output for a class with its 95 % interval. Concepts are intervened on in images as they are "
        "(clean), masked or attacked; `image` is masking or attacking alone. !: the autoencoder changes the answers."
    )
    table = Table(title="Causal effects: the strongest concepts of every level", caption=caption)
    for title in ("model", "level", "node", "class", *conditions):
        table.add_column(title, justify="right" if title == "node" else "left")
    for row in rows:
        node = "" if row.level is None else str(row.node)
        table.add_row(
            row.model, row.level or "image", node, row.of, *(_estimate(row.effects.get(name)) for name in conditions)
        )
    return table


def effects_page(root: Path, models: Sequence[str]) -> dict[str, Any] | None:
    """What the section of the report shows; None where no effects are measured.

    Args:
        root: The run directory.
        models: The models in the order of the report; those whose effects are not measured are left out.

    Raises:
        RunError: A file of the effects is damaged.
    """
    from tfcausal.effects.store import EffectStore

    shown = [_model(store) for store in (EffectStore(root, name) for name in models) if store.is_finished]
    return {"models": shown} if shown else None


def _model(store: EffectStore) -> dict[str, Any]:
    """One model in the section of the report."""
    from tfcausal.effect_study.pictures import Pictures
    from tfcausal.effects.table import ParquetTable

    pictures, findings = Pictures(store), store.findings
    rows = strongest(ParquetTable(store.root / "effects.parquet").read(model=store.model))
    changed = [name for name in findings["conditions"] if name != CLEAN]
    shown = [*pictures.bars(), *pictures.nodes(1), *pictures.maps(pictures.changed[:1]), *pictures.detection()]
    return {
        "name": store.model,
        "findings": findings,
        "settings": findings["effects"],
        "conditions": [CLEAN, *changed],
        "rows": [
            {
                "level": row.level or "image",
                "node": "" if row.level is None else row.node,
                "class": row.of,
                # No line ends within an interval.
                "effects": {
                    name: _estimate(row.effects.get(name)).replace(", ", ",\u00a0") for name in (CLEAN, *changed)
                },
            }
            for row in rows
        ],
        "pictures": [(picture, data_uri(picture.png)) for picture in shown],
        "detection": _detection(store.root / "detection.parquet", store.model),
    }


def _detection(path: Path, model: str) -> list[dict[str, Any]]:
    from tfcausal.effects.table import DETECTION, ParquetTable

    if not path.exists():
        return []
    rows = ParquetTable(path, DETECTION).read(model=model).to_dict("records")
    named = [{str(name): value for name, value in row.items()} for row in rows]
    return [row | {"level": row["level"] if isinstance(row["level"], str) else ""} for row in named]


def data_uri(png: bytes) -> str:
    """A picture as the source of an `img`, with everything in it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _estimate(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    mark = "" if row["faithful"] else " !"
    if row["low"] != row["low"]:
        return f"{row['effect']:+.2g}{mark}"
    return f"{row['effect']:+.2g} [{row['low']:.2g}, {row['high']:.2g}]{mark}"
