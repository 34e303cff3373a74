"""Interventions on one picture of any classifier: the body of a page, from the choice of what is done to its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.overlays import Colours, amplified_change, map_scales, overlaid, sheet, unit_of
from tfcausal.figures import outlined
from tfcausal.saliency.registry import available_explainers
from widgets import address, export, frame, intervention_charts, pictures
from widgets import cached_intervening as cached
from widgets.choosing_interventions import Change, Subject, Zeroed, change_image, zero_concepts
from widgets.wording import plain

if TYPE_CHECKING:
    from tfcausal.browsing.classifier import LoadedClassifier
    from tfcausal.browsing.concept_levels import Level
    from tfcausal.browsing.interventions import Comparison

BEFORE, AFTER = "answer before", "answer after"
_MOST_CONCEPT_MAPS = 4
_AGREES = 5e-4  # difference of answers that is not seen in three digits


@dataclass(frozen=True)
class Shown:
    """A picture of the result.

    Attributes:
        pixels: (height, width, 3) in [0, 1].
        title: One or two words.
        note: What its colours mean, or numbers.
        alt: What it shows, in words.
    """

    pixels: np.ndarray
    title: str
    note: str
    alt: str


@dataclass(frozen=True)
class View:
    """Which maps are shown, and how.

    Attributes:
        method: The saliency method.
        legend: What it is called, with the unit of its maps.
        class_index: The class that is explained.
        opacity: Opacity of the strongest colour.
        colours: `signed` or `positive`.
        outline: Whether the known cause is outlined.
    """

    method: str
    legend: str
    class_index: int
    opacity: float
    colours: Colours
    outline: bool


def intervene(
    classifier: LoadedClassifier,
    image: np.ndarray,
    mask: np.ndarray | None,
    class_names: Sequence[str],
    identity: cached.Identity,
    title: str,
    levels: Sequence[Level] = (),
    method: str = "wbp",
) -> None:
    """Let the user intervene on a picture, and show what becomes of the answer and the maps.

    Args:
        classifier: The classifier.
        image: The picture as the classifier takes it, (height, width, channels).
        mask: The known cause, bool (height, width); None where it is not known.
        class_names: Names of the classes, by index.
        identity: What tells this classifier, its pixels and its levels from all others, for the caches.
        title: What the picture is called, for files and texts.
        levels: Levels of the classifier whose concepts were learned.
        method: The saliency method that is shown at first.
    """
    with st.spinner("Preparing the model", show_time=True):
        of = cached.interventions(identity, classifier, levels)
    subject = Subject(identity, of, image, mask, class_names)
    left, right = st.columns([5, 6], gap="medium")
    with left:
        change = change_image(subject)
        zeroed = zero_concepts(subject)
    with right, st.spinner("Intervening", show_time=True):
        found = cached.compare(identity, of, image, change.image, zeroed.level, zeroed.nodes)
        done = " and ".join(filter(None, (change.words, zeroed.words))) or "nothing is done yet"
        show_answer(found, class_names, done, zeroed)
    with left:
        view = choose_view(subject, found, method)
    with right:
        shown = show_pictures(subject, change, zeroed, view)
        table = show_effects(found, class_names)
        captions = [f"{entry.title}\n{entry.note}" for entry in shown]
        make = partial(sheet, [entry.pixels for entry in shown], captions, f"{title}: {done}")
        export.bar(f"intervention-{title.rsplit('/', 1)[-1]}", lambda: table, make)


def show_answer(found: Comparison, class_names: Sequence[str], done: str, zeroed: Zeroed) -> None:
    """What happened to the answer, in words."""
    from tfcausal.browsing.interventions import answers, in_words

    names = [plain(name) for name in class_names]
    text = f"{done[0].upper()}{done[1:]}. {in_words(found, names)}"
    if answers(found.before, found.kind) != answers(found.after, found.kind):
        st.warning(text, icon=":material/swap_horiz:")
    else:
        st.info(text, icon=":material/drag_handle:")
    if zeroed.nodes and not np.allclose(found.before, found.network, atol=_AGREES):
        index = int(found.network.argmax())
        st.caption(
            f"Before means the network through its untouched autoencoder, which says {found.before[index]:.3f} for "
            f"class {names[index]}; the network itself says {found.network[index]:.3f}. {plain(zeroed.note)}"
        )


def show_effects(found: Comparison, class_names: Sequence[str]) -> pd.DataFrame:
    """The effect on every class, as bars and as a table.

    Returns:
        The table.
    """
    unit = "logit" if found.kind == "linear" else "probability"
    numbers = {"before": found.before, "after": found.after, "effect": found.effects}
    table = pd.DataFrame({"class": list(class_names), **{name: v.astype(float) for name, v in numbers.items()}})
    table = table.sort_values("effect", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    intervention_charts.effects(table, unit, "intervention-effects")
    formats = {name: st.column_config.NumberColumn(format="%.3f") for name in ("before", "after")}
    formats["effect"] = st.column_config.NumberColumn(format="%+.3f")
    with st.expander("Table"):
        largest = table.iloc[0]
        alt = f"Effects by class; the largest is {largest['effect']:+.3f}, on class {largest['class']}"
        st.dataframe(table, hide_index=True, column_config=formats, alt=alt)
        st.caption(f"before, after: {unit}; effect: after minus before, equation 1 for this picture.")
    return table


def choose_view(subject: Subject, found: Comparison, method: str) -> View:
    """Let the user choose the maps."""
    from tfcausal.browsing.interventions import PIXEL_EFFECTS, answers

    st.markdown("**Maps**, before and after on one scale")
    places = st.columns(2, vertical_alignment="bottom")
    with places[0]:
        methods = [*(entry.name for entry in available_explainers()), PIXEL_EFFECTS]
        spoken = {PIXEL_EFFECTS: "pixel-wise causal effects"}
        chosen = address.select("method", "Method", methods, method, format_func=lambda name: spoken.get(name, name))
    with places[1]:
        wanted = address.select("explained", "Class to explain", [BEFORE, AFTER, *subject.class_names])
    places = st.columns(2, vertical_alignment="bottom")
    with places[0]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[1]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    known = subject.mask is not None
    outline = known and address.switch("outline", "True mask", help="The outline of the known cause in the pictures.")
    if wanted in (BEFORE, AFTER):
        outputs = found.before if wanted == BEFORE else found.after
        index = next(iter(answers(outputs, found.kind)), int(outputs.argmax()))
    else:
        index = list(subject.class_names).index(wanted)
    unit = ("logits" if found.kind == "linear" else "probability") if chosen == PIXEL_EFFECTS else unit_of(chosen)
    return View(chosen, f"{spoken.get(chosen, chosen)}, {unit}", index, opacity, colours, outline)


def show_pictures(subject: Subject, change: Change, zeroed: Zeroed, view: View) -> list[Shown]:
    """The pictures before and after, and their maps.

    Returns:
        What is shown.
    """
    shown = changed_pictures(subject, change)
    with frame.shown_errors(), st.spinner(view.method, show_time=True):
        shown += maps(subject, change, zeroed, view)
    with frame.shown_errors():
        shown += concept_pictures(subject, zeroed)
    if view.outline:
        shown = [replace(entry, pixels=outlined(entry.pixels, subject.mask)) for entry in shown]
    with st.grid(min_column_width=120):
        for entry in shown:
            with st.container(gap="xxsmall"):
                pictures.show(entry.pixels, entry.alt)
                st.caption(f"**{entry.title}** {entry.note}")
    return shown


def changed_pictures(subject: Subject, change: Change) -> list[Shown]:
    """The picture before and after, and what an attack added to it."""
    before, after = subject.picture, subject.seen(change.image)
    shown = [
        Shown(outlined(before, None), "before", "", "The picture as it was"),
        Shown(outlined(after, None), "after", "", f"The picture after: {change.words or 'nothing is done to it'}"),
    ]
    if change.is_attack:
        pixels, factor = amplified_change(before, after)
        largest = float(np.abs(after - before).max(initial=0.0))
        note = f"× {factor:.3g} about grey; at most ±{largest:.3g} of black to white"
        shown.append(Shown(pixels, "perturbation", note, f"What the attack added, {note}"))
    return shown


def maps(subject: Subject, change: Change, zeroed: Zeroed, view: View) -> list[Shown]:
    """The maps before and after, on one scale."""
    settings = (subject.identity, subject.of, view.method)
    first = cached.saliency(*settings, subject.image, view.class_index, zeroed.level, ())
    second = cached.saliency(*settings, change.image, view.class_index, zeroed.level, zeroed.nodes)
    both = np.stack([first, second])
    scale = float(map_scales(np.maximum(both, 0.0) if view.colours == "positive" else both, shared=True)[0])
    name = subject.class_names[view.class_index]
    st.caption(f"Maps for class **{plain(name)}**, before and after on one scale.")
    low = f"−{scale:.3g}, against the class" if view.colours == "signed" else "0"
    pictures.colour_bar(view.colours, low, f"+{scale:.3g}, for the class", view.legend)
    shown = []
    for when, image, saliency in (("before", subject.image, first), ("after", change.image, second)):
        overlay = overlaid(subject.seen(image), saliency, scale, view.opacity, view.colours)
        total = float(np.maximum(saliency, 0.0).sum())
        alt = f"{view.method} map for class {name} {when} the intervention"
        shown.append(Shown(overlay, f"map {when}", f"positive part sums to {total:.3g}", alt))
    return shown


def concept_pictures(subject: Subject, zeroed: Zeroed) -> list[Shown]:
    """Where the concepts that are taken away are in the picture as it was."""
    if zeroed.level is None:
        return []
    nodes, picture = zeroed.nodes[:_MOST_CONCEPT_MAPS], subject.picture
    codes = cached.concept_maps(subject.identity, subject.of, subject.image, zeroed.level, nodes)
    shown = []
    for node, code in zip(nodes, codes, strict=True):
        scale = float(map_scales(code[None])[0])
        note = f"where it is; its code, ±{scale:.3g}" if code.any() else "0 everywhere"
        alt = f"Where concept {node} is in the picture as it was"
        shown.append(Shown(overlaid(picture, code, scale), f"concept {node}", note, alt))
    return shown
