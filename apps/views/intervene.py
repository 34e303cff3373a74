"""Intervene: mask a region, attack, or take a concept away, and see what becomes of the answer and the maps."""

from __future__ import annotations

import streamlit as st

from tfcausal.browsing.stored_split import StoredSplit, split_names
from tfcausal.errors import RunError
from widgets import address, cached, cached_effects, cached_intervening, frame, intervening
from widgets.wording import plain

ABOUT = (
    "Change one image or take a concept out of the network, and see at once what becomes of the answer: what changes "
    "it was a cause of it."
)


def step(names: tuple[str, ...], position: int) -> None:
    address.change("image", names[position])


def choose_image(split: StoredSplit) -> int:
    places = st.columns([1, 4, 1], vertical_alignment="bottom")
    with places[1]:
        name = address.text("image", "Image", split.names[0], help="Its name, as on the page Images.")
    position, last = split.find(name), len(split) - 1
    for place, label, icon, there in (
        (places[0], "Previous", ":material/chevron_left:", max(position - 1, 0)),
        (places[2], "Next", ":material/chevron_right:", min(position + 1, last)),
    ):
        settings = {"width": "stretch", "on_click": step, "args": (split.names, there)}
        place.button(label, icon=icon, disabled=there == position, **settings)
    return position


def facts(split: StoredSplit, position: int) -> str:
    label = plain(split.class_names[int(split.labels[position])])
    contexts = split.column("contexts")
    context = "" if contexts is None else f" · context: {plain(split.context_names[int(contexts[position])])}"
    return f"**{plain(split.names[position])}** · class **{label}**{context}"


def show() -> None:
    runs = frame.measured_runs()
    if not runs:
        return
    places = st.columns(3, vertical_alignment="bottom")
    with places[0]:
        key = frame.choose_run(runs)
    with places[1]:
        names = split_names(cached.open_run(key))
        split = cached.split(key, address.select("split", "Split", names, format_func=frame.spoken))
    if not split.models:
        st.info("No model was measured on this split.", icon=":material/info:")
        return
    with places[2]:
        model = address.select("model", "Model", split.models)
    position = choose_image(split)
    st.markdown(facts(split, position))
    if not split.has_images:
        raise RunError("This run is of a release that kept no images, which models need: run it again to intervene.")
    with st.spinner("Loading the model", show_time=True):
        classifier = cached.classifier(key, model)
    version = cached_effects.key(key)
    intervening.intervene(
        classifier,
        split.images([position])[0],
        split.masks([position])[0],
        split.class_names,
        (*version, model),
        split.names[position],
        cached_intervening.learned_levels(version, model),
        split.method,
    )


with frame.page("Intervene", ABOUT):
    show()
