"""What the page of effects reads, kept between reruns in caches of bounded size; see `cached.py`.

A run is known by its name and by a version that changes when its effects do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.effect_maps import StoredEffectMaps
from tfcausal.browsing.effect_state import effects_version
from tfcausal.browsing.effects import StoredEffects
from tfcausal.browsing.runs import RunSummary
from tfcausal.effects.store import finished_models
from widgets import cached
from widgets.cached import Run

Kind = Literal["code", "concept_weighted", "pixel_wise"]


@dataclass(frozen=True)
class View:
    """What is shown.

    Attributes:
        key: The run.
        effects: What was measured, by model; one model or two.
        level: The layer whose concepts are intervened on; None for the image.
        intervention: What is done.
        class_index: The class; None for the class that each concept moves most.
        most: How many bars.
    """

    key: Run
    effects: dict[str, StoredEffects]
    level: str | None
    intervention: str
    class_index: int | None
    most: int

    @property
    def first(self) -> StoredEffects:
        """What was measured of the first model."""
        return next(iter(self.effects.values()))

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.key[1]}-{'-'.join(self.effects)}"


def key(run: Run) -> Run:
    """What a run is known by here: its version has that of its effects in it."""
    folder, name, version = run
    return folder, name, f"{version} {effects_version(cached.folder().path / name)}"


def runs() -> list[RunSummary]:
    """The runs that can be read; those with effects first."""
    usable, measured = [run for run in cached.summaries() if run.state != "broken"], runs_with_effects()
    return sorted(usable, key=lambda run: run.name not in measured)


def runs_with_effects() -> list[str]:
    """Names of the runs that have the effects of some model."""
    folder = cached.folder()
    return [name for name in folder.names() if finished_models(folder.path / name)]


@st.cache_resource(max_entries=16, show_spinner=False)
def effects(run: Run, model: str) -> StoredEffects:
    """What was measured of a model."""
    return StoredEffects(cached.open_run(run), model)


@st.cache_resource(max_entries=16, show_spinner=False)
def maps(run: Run, model: str) -> StoredEffectMaps:
    """The effect maps of a model."""
    return StoredEffectMaps(effects(run, model))


@st.cache_data(max_entries=128, max_size="64mb", show_spinner=False)
def rows(run: Run, model: str, intervention: str, level: str | None, class_index: int | None) -> pd.DataFrame:
    """Effects of the concepts of a level; of interventions on the image where there is none."""
    measured = effects(run, model)
    if level is None:
        return measured.image_rows(intervention)
    return measured.concept_rows(intervention, level, class_index)


@st.cache_data(max_entries=64, max_size="64mb", show_spinner=False)
def rows_of_levels(run: Run, model: str, intervention: str, class_index: int | None) -> pd.DataFrame:
    """Effects of the concepts of all levels."""
    return effects(run, model).concept_rows(intervention, None, class_index)


@st.cache_data(max_entries=64, max_size="128mb", show_spinner=False)
def pictures(run: Run, model: str, conditions: tuple[str, ...], positions: tuple[int, ...]) -> np.ndarray:
    """Images under interventions, float32 (images, conditions, height, width, channels) in [0, 1]."""
    stored = maps(run, model)
    return np.stack([[stored.picture(condition, position) for condition in conditions] for position in positions])


@st.cache_data(max_entries=64, max_size="128mb", show_spinner=False)
def map_values(
    run: Run,
    model: str,
    kind: Kind,
    level: str | None,
    node: int | None,
    conditions: tuple[str, ...],
    positions: tuple[int, ...],
) -> np.ndarray:
    """Maps of images under interventions, float32 (images, conditions, height, width)."""
    stored = maps(run, model)

    def one(condition: str, position: int) -> np.ndarray:
        if kind == "pixel_wise" or level is None:
            return stored.pixel_map(condition, position)
        if kind == "concept_weighted" or node is None:
            return stored.concept_map(level, condition, position)
        return stored.codes(level, node, condition, position)

    return np.stack([[one(condition, position) for condition in conditions] for position in positions])


@st.cache_data(max_entries=64, show_spinner=False)
def answers(
    run: Run, model: str, conditions: tuple[str, ...], positions: tuple[int, ...]
) -> list[list[tuple[str, float, str, float]]]:
    """By image and intervention: the answer with its output, and the class that maps are for with its own."""
    stored = maps(run, model)
    return [
        [(*stored.answer(condition, position)[1:], *stored.explained(condition, position)) for condition in conditions]
        for position in positions
    ]
