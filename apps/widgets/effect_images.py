"""Concepts and causal effect maps on real images, clean and changed side by side, on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import streamlit as st

from tfcausal.browsing.effect_maps import StoredEffectMaps
from tfcausal.browsing.overlays import Colours, map_scales, overlaid, sheet
from widgets import address, cached_effects, export, frame, pictures
from widgets.cached_effects import View
from widgets.wording import plain

PER_PAGE = 4
KINDS = {"concept_weighted": "concept-weighted", "pixel_wise": "pixel-wise"}
_SIDE = 128  # pixels, at least, of a picture


@dataclass(frozen=True)
class _Images:
    """What is shown: which images of every model, under which interventions, how strongly overlaid."""

    view: View
    stored: dict[str, StoredEffectMaps]
    positions: dict[str, tuple[int, ...]]
    conditions: tuple[str, ...]
    opacity: float

    def maps(self, model: str, kind: cached_effects.Kind, node: int | None = None) -> np.ndarray:
        """Maps of a model's images, (images, conditions, height, width)."""
        view = self.view
        return cached_effects.map_values(
            view.key, model, kind, view.level, node, self.conditions, self.positions[model]
        )


def show(view: View) -> None:
    """The concepts of the level of a view on real images, and the effect maps of its models."""
    st.subheader("On real images", anchor=False)
    stored = {}
    for model in view.effects:
        with frame.shown_errors():
            stored[model] = cached_effects.maps(view.key, model)
    if not stored:
        return
    places = st.columns([3, 2], vertical_alignment="bottom")
    with places[0]:
        every = [name for name in next(iter(stored.values())).conditions if _all_have(stored, name)]
        chosen = address.several("under", "Images under", every, every)
    with places[1]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    pages, number = -(-max(map(len, stored.values())) // PER_PAGE), 0
    if pages > 1:
        number = address.pages("images", pages, (view.key, *stored))
    positions = {
        model: tuple(range(number * PER_PAGE, min((number + 1) * PER_PAGE, len(maps))))
        for model, maps in stored.items()
        if number * PER_PAGE < len(maps)
    }
    conditions = tuple(name for name in every if name in chosen) or tuple(every)
    images = _Images(view, {model: stored[model] for model in positions}, positions, conditions, opacity)
    if view.level is not None:
        with frame.shown_errors():
            _show_concepts(images, view.level)
    with frame.shown_errors():
        _show_effect_maps(images)


def _show_concepts(images: _Images, level: str) -> None:
    view, nodes = images.view, {}
    for model, maps in images.stored.items():
        with frame.shown_errors():
            nodes[model] = maps.nodes(level)
    if not any(nodes.values()):
        text = f"No codes of {level} were kept: its concepts have no places in the image."
        st.info(plain(text), icon=":material/info:")
        return
    ranks = [str(rank) for rank in range(1, max(map(len, nodes.values())) + 1)]

    def named(rank: str) -> str:
        return ", ".join(
            f"node {own[int(rank) - 1]} of {model}" for model, own in nodes.items() if int(rank) <= len(own)
        )

    rank = int(address.select("concept", "Concept, that with the largest effect first", ranks, format_func=named))
    shown = {model: own[rank - 1] for model, own in nodes.items() if rank <= len(own)}
    drawn: list[tuple[np.ndarray, str]] = []
    for (model, node), place in zip(shown.items(), st.columns(len(shown)), strict=True):
        with place, frame.shown_errors():
            values = images.maps(model, "code", node)
            colours: Colours = "positive" if values.min() >= 0 else "signed"
            end = _scale(values)
            st.markdown(f"**{model}**: where node {node} of {plain(level)} is active")
            left = "0, not active" if colours == "positive" else f"−{end:.3g}"
            note = "value of the code, which has no unit; one scale for these pictures"
            pictures.colour_bar(colours, left, f"{end:.3g}", note)
            drawn += _show_rows(images, model, values, end, colours, f"codes of node {node} of {level} of {model}")
    if drawn:
        heading = f"{view.key[1]}, {level}: {', '.join(f'node {node} of {model}' for model, node in shown.items())}"
        export.bar(f"concepts-{view.name}", picture=partial(_sheet, drawn, heading, len(images.conditions)))


def _show_effect_maps(images: _Images) -> None:
    view = images.view
    kinds = {kind: [model for model in images.stored if _has(images, model, kind)] for kind in KINDS}
    usable = [kind for kind, models in kinds.items() if models]
    if not usable:
        return
    st.markdown("**Causal effect maps**, clean and changed")
    kind: cached_effects.Kind = address.segments("kind", "Kind", usable, format_func=KINDS.__getitem__)
    maps = {model: images.maps(model, kind) for model in kinds[kind]}
    ends = {model: _scale(values) for model, values in maps.items()}
    if kind == "pixel_wise":  # maps of all models have one unit
        ends = dict.fromkeys(ends, max(ends.values()))
    drawn: list[tuple[np.ndarray, str]] = []
    for model, place in zip(maps, st.columns(len(maps)), strict=True):
        with place:
            effects, end, values = view.effects[model], ends[model], maps[model]
            signs = "−", "+"
            if kind == "pixel_wise" and effects.settings["sign"] == "do_minus_observed":
                # A patch that lowers the answer when it is masked speaks for the class: orange, as in every other map.
                values, signs = -values, ("+", "−")
            of = f" of {plain(view.level)}" if kind == "concept_weighted" else ""
            unit = "codes × effects" if kind == "concept_weighted" else effects.unit
            st.markdown(f"**{model}**: {KINDS[kind]} maps{of}, of the class that is the answer to the clean image")
            left, right = f"{signs[0]}{end:.3g}, against the class", f"{signs[1]}{end:.3g}, for the class"
            pictures.colour_bar("signed", left, right, f"{unit}; one scale for clean and changed images")
            drawn += _show_rows(images, model, values, end, "signed", f"{KINDS[kind]} effect map of {model}")
    heading = f"{view.key[1]}: {KINDS[kind]} effect maps of {', '.join(maps)}"
    export.bar(f"maps-{view.name}", picture=partial(_sheet, drawn, heading, len(images.conditions)))


def _show_rows(
    images: _Images, model: str, maps: np.ndarray, end: float, colours: Colours, what: str
) -> list[tuple[np.ndarray, str]]:
    """A row for every image, with its versions under every intervention side by side; gives what was drawn."""
    stored, positions, drawn = images.stored[model], images.positions[model], []
    own = images.view.key, model, images.conditions, positions
    seen, answers = cached_effects.pictures(*own), cached_effects.answers(*own)
    for row, position in enumerate(positions):
        name = stored.names[position]
        places = st.columns(len(images.conditions))
        for column, (condition, place) in enumerate(zip(images.conditions, places, strict=True)):
            values = maps[row, column]
            shown = overlaid(seen[row, column], values, end, images.opacity, colours)
            answer, output, explained, share = answers[row][column]
            also = "" if explained == answer else f" ({explained}: {share:.2f})"
            nothing = "" if values.any() else "; 0 everywhere"
            with place:
                pictures.show(
                    shown, f"{what} on {name}, {condition}; answer {answer}, {output:.2f}{nothing}", side=_SIDE
                )
                st.caption(f"**{plain(condition)}** → {plain(answer)}: {output:.2f}{plain(also)}")
            drawn.append((shown, f"{model}, {condition}\n{name.rsplit('/', 1)[-1]} → {answer}: {output:.2f}"))
    return drawn


def _scale(maps: np.ndarray) -> float:
    """The value at which the colours of all maps end."""
    return float(map_scales(maps.reshape(-1, *maps.shape[2:]), shared=True)[0])


def _all_have(stored: dict[str, StoredEffectMaps], condition: str) -> bool:
    return all(condition in maps.conditions for maps in stored.values())


def _has(images: _Images, model: str, kind: str) -> bool:
    """Whether maps of a kind were kept of a model."""
    maps, level = images.stored[model], images.view.level
    if kind == "pixel_wise":
        return maps.has_pixel_maps
    levels = [known.layer for known in images.view.effects[model].levels]
    return level is not None and level in levels and maps.has_concept_maps(level)


def _sheet(drawn: list[tuple[np.ndarray, str]], heading: str, columns: int) -> bytes:
    shown, captions = zip(*drawn, strict=True)
    return sheet(list(shown), list(captions), heading, columns)
