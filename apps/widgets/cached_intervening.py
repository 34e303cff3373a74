"""Interventions of the explorer, kept between reruns in caches of bounded size.

A classifier is known by its identity; everything else that a result depends on is an argument. What comes of an image
stays in the session, as the image may be the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from widgets import cached

if TYPE_CHECKING:
    from tfcausal.browsing.classifier import LoadedClassifier
    from tfcausal.browsing.concept_levels import Level
    from tfcausal.browsing.interventions import Comparison, Interventions

Identity = tuple[str, ...]
"""What tells a classifier from all others: names and versions."""


@st.cache_resource(max_entries=4, show_spinner=False)
def interventions(identity: Identity, _classifier: LoadedClassifier, _levels: Sequence[Level] = ()) -> Interventions:
    """What intervenes on a classifier, with all that it has compiled."""
    from tfcausal.browsing.interventions import Interventions

    return Interventions(_classifier, _levels)


@st.cache_data(max_entries=32, show_spinner=False)
def learned_levels(key: cached.Run, model: str) -> tuple[Level, ...]:
    """The levels of a run whose concepts were learned."""
    from tfcausal.browsing.concept_levels import learned_levels

    return learned_levels(cached.open_run(key), model)


@st.cache_data(max_entries=64, max_size="64mb", show_spinner=False, scope="session")
def attacked(
    identity: Identity, _of: Interventions, image: np.ndarray, name: str, eps: float, steps: int, seed: int
) -> np.ndarray:
    """An image after an attack."""
    return _of.attacked(image, name, eps, steps, seed)


@st.cache_data(max_entries=256, show_spinner=False, scope="session")
def compare(
    identity: Identity,
    _of: Interventions,
    image: np.ndarray,
    changed: np.ndarray | None,
    level: str | None,
    nodes: tuple[int, ...],
) -> Comparison:
    """The answers before and after an intervention."""
    return _of.compare(image, changed, level, nodes)


@st.cache_data(max_entries=32, max_size="64mb", show_spinner=False, scope="session")
def concept_effects(identity: Identity, _of: Interventions, image: np.ndarray, level: str) -> np.ndarray:
    """The effect of taking away each concept of a level alone."""
    return _of.concept_effects(image, level)


@st.cache_data(max_entries=64, max_size="64mb", show_spinner=False, scope="session")
def concept_maps(
    identity: Identity, _of: Interventions, image: np.ndarray, level: str, nodes: tuple[int, ...]
) -> np.ndarray:
    """Where some concepts are in an image."""
    return _of.concept_maps(image, level, nodes)


@st.cache_data(max_entries=128, max_size="64mb", show_spinner=False, scope="session")
def saliency(
    identity: Identity,
    _of: Interventions,
    method: str,
    image: np.ndarray,
    class_index: int,
    level: str | None,
    nodes: tuple[int, ...],
) -> np.ndarray:
    """A map of an image, in the network or in what is left of it."""
    return _of.map(method, image, class_index, level, nodes)
