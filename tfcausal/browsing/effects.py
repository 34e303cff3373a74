"""The causal effects that a run keeps, read piece by piece: findings, rows of the tables, ROC curves. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcausal.browsing.effect_state import measure_command, measured_models, unfinished_models, what_to_do
from tfcausal.browsing.effect_words import effect_unit
from tfcausal.browsing.reading import reading
from tfcausal.config_errors import closest
from tfcausal.effects.store import EffectStore
from tfcausal.effects.table import DETECTION, ParquetTable, as_frame
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.runs import RunDirectory

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class StoredLevel:
    """A layer whose concepts were intervened on.

    Attributes:
        layer: The layer, its name or path.
        folder: What its folders are called.
        concepts: Number of concepts.
        faithful: Whether the model answers through the autoencoder as it does without it, on clean images.
        agreement: The same in words and numbers.
    """

    layer: str
    folder: str
    concepts: int
    faithful: bool
    agreement: str


@dataclass(frozen=True)
class DetectorCurve:
    """The ROC curve of a detector of an attack; NaN, and no points, where there were too few images.

    Attributes:
        attack: The attack.
        detector: The detector.
        level: The layer whose concepts it looks at; None for one that needs none.
        auc: Area under the curve.
        low: Lower end of its 95 % interval.
        high: Upper end.
        false_positive_rates: Of the points of the curve.
        true_positive_rates: Of the points of the curve.
        chosen: False and true positive rate at the threshold, which was chosen on other images.
    """

    attack: str
    detector: str
    level: str | None
    auc: float
    low: float
    high: float
    false_positive_rates: tuple[float, ...]
    true_positive_rates: tuple[float, ...]
    chosen: tuple[float, float]

    @property
    def name(self) -> str:
        """The detector, with its level where it has one."""
        return self.detector if self.level is None else f"{self.detector}, {self.level}"


class StoredEffects:
    """What was measured of the causal effects of a model of a run. Opening it reads the findings and no table.

    Args:
        run: The run.
        model: One of :func:`measured_models`.

    Attributes:
        model: The model.
        store: Where its effects are.
        n: Number of images that they were measured on.
        settings: What was measured: the section `effects` of the configuration.
        conditions: The interventions on the images; the first is `clean`, for none.
        attacks: Those of them that are attacks.
        levels: The layers whose concepts were intervened on.
        changed_answers: By condition the share of images with another answer: `value`, `low`, `high` and `n`.
        never_predicted: Names of the classes that are no image's answer.

    Raises:
        InvalidArgument: There is no such model.
        RunError: Its effects are not measured, or only half, or cannot be read.
    """

    def __init__(self, run: RunDirectory, model: str) -> None:
        finished, begun = measured_models(run), unfinished_models(run)
        if model not in finished:
            if model in begun or model in run.config.models:
                raise RunError(" ".join(what_to_do(run, model)))
            raise InvalidArgument(
                message(
                    "model", "a model whose effects are measured", repr(model[:200]), closest(model, finished, "models")
                )
            )
        self.model, self.store = model, EffectStore(run.path, model)
        self.remedy = f"Measure again: {measure_command(run, model)} --overwrite"
        path = self.store.folder / "finished.json"
        with self.reading(path):
            findings = self.store.findings
            self.n = int(findings["n"])
            self.settings: dict[str, Any] = dict(findings["effects"])
            self.conditions = tuple(map(str, findings["conditions"]))
            self.attacks = tuple(str(attack["name"]) for attack in self.settings["attacks"])
            self.levels = tuple(map(_level, findings["levels"]))
            self.changed_answers: dict[str, Mapping[str, float]] = dict(findings["changed_answers"])
            self.never_predicted = tuple(map(str, findings["never_predicted"]))
            self._curves = list(findings["roc"])
            self._words = self.settings["sign"], self.settings["scale"]

    @property
    def unit(self) -> str:
        """What an effect is, for an axis."""
        return effect_unit(*self._words)

    @property
    def has_detection(self) -> bool:
        """Whether detection of attacks was asked for."""
        return self.settings.get("detection") is not None

    def level(self, layer: str) -> StoredLevel:
        """A level by its layer.

        Raises:
            InvalidArgument: The effects of no such layer were measured.
        """
        found = next((level for level in self.levels if level.layer == layer), None)
        if found is None:
            names = [level.layer for level in self.levels]
            expected = f"a level of {self.model} ({', '.join(names)})"
            raise InvalidArgument(message("level", expected, repr(layer[:200]), closest(layer, names, "levels")))
        return found

    @cached_property
    def interventions(self) -> dict[str | None, tuple[str, ...]]:
        """What was done at every level, by its layer, and to the image as a whole, by None.

        Raises:
            RunError: The table of effects is not there, damaged, or has nothing of this model.
        """
        with self.reading(self._table_path):
            pairs = ParquetTable(self._table_path).read(["level", "intervention"], model=self.model)
            if pairs.empty:
                raise ValueError(f"it has no row of {self.model}")
            found: dict[str | None, list[str]] = {}
            for level, intervention in pairs.drop_duplicates().itertuples(index=False):
                found.setdefault(level if isinstance(level, str) else None, []).append(str(intervention))
        return {level: tuple(names) for level, names in found.items()}

    @cached_property
    def classes(self) -> dict[int, str]:
        """The classes whose effects were kept, by index, with their names; -1 is all of them, weighted.

        Raises:
            RunError: As for :attr:`interventions`.
        """
        level, interventions = next(reversed(self.interventions.items()))
        rows = self._read(["class", "class_name"], intervention=interventions[0], **_where(level))
        return {
            int(index): name for index, name in rows.drop_duplicates("class")[["class", "of"]].itertuples(index=False)
        }

    def concept_rows(
        self, intervention: str, level: str | None = None, class_index: int | None = None
    ) -> pandas.DataFrame:
        """Effects of concepts, one row for each, the largest first.

        Args:
            intervention: What is done, one of :attr:`interventions`.
            level: A layer; None for all, one after the other.
            class_index: The class that effects are on; None for the class that each concept moves most.

        Returns:
            The columns of the table of effects and `of`, the name of the class. Of several values of a concept the row
            is the expectation over them (equation 2 of the paper).

        Raises:
            RunError: The table cannot be read.
        """
        equal = {} if class_index is None else {"class": class_index}
        rows = self._read(None, intervention=intervention, **_where(level), **equal)
        rows = _expected(rows[rows["level"].notna()])
        rows = rows.assign(size=rows["effect"].abs()).sort_values("size", ascending=False, kind="stable")
        rows = rows.drop_duplicates(["level", "node"]).drop(columns="size")
        order = {each.layer: place for place, each in enumerate(self.levels)}
        return rows.sort_values("level", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)

    def image_rows(self, intervention: str) -> pandas.DataFrame:
        """Effects of an intervention on the image as a whole, one row for each class, the largest first.

        Args:
            intervention: One of the conditions but `clean`.

        Returns:
            As from :meth:`concept_rows`.
        """
        rows = self._read(None, intervention=intervention)
        rows = _expected(rows[rows["level"].isna()])
        return rows.sort_values("effect", key=abs, ascending=False, kind="stable").reset_index(drop=True)

    def value_rows(self, intervention: str, level: str, node: int, class_index: int) -> pandas.DataFrame:
        """Effects of a concept value by value, the smallest value first; none where it was set to one value only.

        Args:
            intervention: What is done.
            level: The layer.
            node: The concept.
            class_index: The class.
        """
        equal: dict[str, Any] = {"intervention": intervention, "level": level, "node": node, "class": class_index}
        rows = self._read(None, **equal)
        return rows[rows.index > 0].sort_values("value", kind="stable").reset_index(drop=True)

    def curves(self) -> list[DetectorCurve]:
        """The ROC curves of all detectors, attack by attack; none where detection was not asked for."""
        with self.reading(self.store.folder / "finished.json"):
            return [_curve(curve) for curve in self._curves]

    def detection_rows(self) -> pandas.DataFrame:
        """The rows of the table of detectors; none where detection was not asked for.

        Raises:
            RunError: The table is not there, or damaged.
        """
        if not self.has_detection:
            return as_frame(DETECTION, {name: [] for name in DETECTION.names})
        path = self.store.root / "detection.parquet"
        with self.reading(path):
            return ParquetTable(path, DETECTION).read(model=self.model)

    def reading(self, path: Path) -> AbstractContextManager[None]:
        """Name a file that cannot be read, with what to do; for what reads other files of these effects."""
        return reading(path, self.remedy, root=self.store.root)

    @property
    def _table_path(self) -> Path:
        return self.store.root / "effects.parquet"

    def _read(self, columns: Sequence[str] | None, **equal: Any) -> pandas.DataFrame:
        with self.reading(self._table_path):
            rows = ParquetTable(self._table_path).read(columns, model=self.model, **equal)
            names = rows["class_name"].where(rows["class_name"].notna(), rows["class"].astype(str))
            return rows.assign(of=names.mask(rows["class"] < 0, "all classes"))


def _level(found: Mapping[str, Any]) -> StoredLevel:
    agreement, concepts = found["agreement"], int(found["concepts"])
    if agreement is None:
        text, faithful = f"Its {concepts} channels are the concepts; nothing is lost.", True
    else:
        text, faithful = str(agreement["text"]), bool(agreement["faithful"])
    return StoredLevel(str(found["layer"]), str(found["folder"]), concepts, faithful, text)


def _curve(found: Mapping[str, Any]) -> DetectorCurve:
    auc, low, high = (_number(found[key]) for key in ("auc", "low", "high"))
    false, true = (tuple(map(_number, found[f"{kind}_positive_rates"])) for kind in ("false", "true"))
    first, second = map(_number, found["chosen"])
    level = None if found["level"] is None else str(found["level"])
    return DetectorCurve(
        str(found["attack"]), str(found["detector"]), level, auc, low, high, false, true, (first, second)
    )


def _number(value: Any) -> float:
    """A number of JSON, where what is no number is null."""
    return float("nan") if value is None else float(value)


def _expected(rows: pandas.DataFrame) -> pandas.DataFrame:
    """The first row of every concept and class: the expectation over the values, which the others tell one by one."""
    return rows[~rows.duplicated(["level", "node", "class"])]


def _where(level: str | None) -> dict[str, Any]:
    return {} if level is None else {"level": level}
