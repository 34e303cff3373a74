"""The pictures of the measured effects of a model, from its files alone; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from tfcausal.atomic import write_atomic
from tfcausal.effect_study.figures import effect_bars, effect_maps, node_codes, roc_curves
from tfcausal.effect_study.rows import CLEAN, strongest
from tfcausal.effects.store import EffectStore
from tfcausal.effects.table import ParquetTable
from tfcausal.errors import RunError

_MOST_BARS = 16


@dataclass(frozen=True)
class Picture:
    """A picture with what is told about it.

    Attributes:
        name: Name of its file, without the suffix.
        kind: `bars`, `node`, `concept_map`, `pixel_map` or `detection`.
        caption: What it shows.
        png: Its content.
        level: The level that it is of; empty for the image.
        condition: The intervention on the images that it is of; empty for none.
    """

    name: str
    kind: str
    caption: str
    png: bytes
    level: str = ""
    condition: str = ""


class Pictures:
    """Draws what was measured of a model.

    Args:
        store: Where its effects are, finished.

    Attributes:
        findings: What was found, in words and numbers.
    """

    def __init__(self, store: EffectStore) -> None:
        self.store, self.findings = store, store.findings

    def write(self) -> None:
        """Write every picture beside the autoencoders of the model."""
        for picture in self.every():
            write_atomic(self.store.folder / f"{picture.name}.png", picture.png)

    def every(self) -> Iterator[Picture]:
        """Every picture, one after the other."""
        yield from self.bars()
        yield from self.nodes()
        yield from self.maps()
        yield from self.detection()

    @property
    def unit(self) -> str:
        """What an effect is, for an axis."""
        effects = self.findings["effects"]
        what = "P(class)" if effects["scale"] == "probability" else "logit"
        return f"change of {what}" if effects["sign"] == "do_minus_observed" else f"loss of {what}"

    @property
    def changed(self) -> list[str]:
        """The attacks; where there are none, the other interventions on images."""
        changed = [name for name in self.findings["conditions"] if name != CLEAN]
        attacks = [attack["name"] for attack in self.findings["effects"]["attacks"]]
        return [name for name in changed if name in attacks] or changed

    def bars(self) -> Iterator[Picture]:
        """Effects of the concepts of every level, on the class that each moves most."""
        rows = ParquetTable(self.store.root / "effects.parquet").read(model=self.store.model)
        levels: dict[str, dict[str, dict[str, float]]] = {}
        for row in strongest(rows, count=len(rows)):
            if row.level is not None and CLEAN in row.effects:
                own = row.effects[CLEAN]
                estimate = {"value": own["effect"], "low": own["low"], "high": own["high"]}
                levels.setdefault(row.level, {})[f"{row.node}: {row.of}"] = estimate
        if levels:
            caption = (
                "Effect of every concept on the class that it moves most (node: class), with its 95 % interval; grey "
                "where the interval has 0 in it."
            )
            yield Picture("effects", "bars", caption, effect_bars(levels, self.unit, _MOST_BARS))

    def nodes(self, most: int | None = None) -> Iterator[Picture]:
        """The strongest nodes of every level on real images.

        Args:
            most: How many of a level; None for all that were kept.
        """
        group = self._maps
        if group is None:
            return
        for level in self.findings["levels"]:
            place = f"levels/{level['folder']}"
            if f"{place}/codes/{CLEAN}" not in group:
                continue
            codes, nodes = group[f"{place}/codes/{CLEAN}"][:], group[place].attrs["nodes"]
            for position, node in enumerate(nodes[:most]):
                title = f"{level['layer']}, node {node}"
                png = node_codes(self._pictures(CLEAN), codes[..., position], title)
                name = f"node_{level['folder']}_{node}"
                yield Picture(name, "node", f"Where node {node} of {level['layer']} is active.", png, level["layer"])

    def maps(self, conditions: Sequence[str] | None = None) -> Iterator[Picture]:
        """Effect maps of the same images clean and changed, concept-weighted of every level and pixel-wise.

        Args:
            conditions: The interventions on the images; None for all.
        """
        group = self._maps
        if group is None:
            return
        changed = self.changed
        places = [(f"levels/{level['folder']}/concept_weighted", level) for level in self.findings["levels"]]
        for condition in changed if conditions is None else conditions:
            for place, level in places:
                if f"{place}/{condition}" in group:
                    caption = (
                        f"Concepts of {level['layer']}, weighted by their effects; on the right under {condition}."
                    )
                    png = self._pair(f"{place}/", condition, "codes x effects")
                    name = f"map_{level['folder']}_{condition}"
                    yield Picture(name, "concept_map", caption, png, level["layer"], condition)
            if f"pixel_wise/{condition}" in group:
                caption = f"Effect of masking the patches around a pixel; on the right under {condition}."
                png = self._pair("pixel_wise/", condition, self.unit)
                yield Picture(f"map_pixels_{condition}", "pixel_map", caption, png, condition=condition)

    def detection(self) -> Iterator[Picture]:
        """ROC curves of the detectors of every attack."""
        attacks: dict[str, dict[str, Any]] = {}
        for curve in self.findings["roc"]:
            name = curve["detector"] + (f", {curve['level']}" if curve["level"] else "")
            attacks.setdefault(curve["attack"], {})[name] = {key: _numbers(value) for key, value in curve.items()}
        if attacks:
            caption = "Attacked against clean images; the dot is the threshold that was chosen on other images."
            yield Picture("detection", "detection", caption, roc_curves(attacks))

    @cached_property
    def _maps(self) -> Any:
        """What was kept of a few images; None where no maps were asked for."""
        if not self.store.maps.exists():
            return None
        try:
            return zarr.open_group(self.store.maps, mode="r")
        except Exception as error:  # whatever zarr meets in a damaged folder
            reason = " ".join(str(error).split())
            raise RunError(
                f"{self.store.maps}: expected effect maps; they cannot be read ({reason}). Measure again with "
                "`tfcausal effects --overwrite`."
            ) from error

    def _pictures(self, condition: str) -> np.ndarray:
        """The images under an intervention, in [0, 1]."""
        low, high = self._maps.attrs["value_range"]
        return np.clip((self._maps[f"images/{condition}"][:] - low) / (high - low), 0.0, 1.0)

    def _pair(self, place: str, condition: str, unit: str) -> bytes:
        group = self._maps
        titles = list(zip(self._titles(CLEAN), self._titles(condition), strict=True))
        clean, changed = (group[place + name][:] for name in (CLEAN, condition))
        return effect_maps(self._pictures(CLEAN), self._pictures(condition), clean, changed, titles, unit)

    def _titles(self, condition: str) -> list[str]:
        names = self._maps.attrs["class_names"]
        outputs = self._maps[f"outputs/{condition}"][:]
        answers = outputs.argmax(axis=1)
        labels = [str(answer) if names is None else names[answer] for answer in answers]
        return [f"{label}: {row[answer]:.2f}" for label, row, answer in zip(labels, outputs, answers, strict=True)]


def _numbers(value: Any) -> Any:
    """Numbers of JSON, where what is no number is null."""
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return np.nan if value is None else value
