"""Intervene: mask a region, attack, or take a concept away, and see what becomes of the answer and the maps."""

from __future__ import annotations

import streamlit as st

from widgets import cached, cached_effects, cached_intervening, frame, intervening

ABOUT = (
    "Change one image or take a concept out of the network, and see at once what becomes of the answer: what changes "
    "it was a cause of it."
)


def show() -> None:
    places = st.columns(3, vertical_alignment="bottom")
    chosen = frame.choose_model(places)
    if chosen is None:
        return
    key, split, model = chosen
    position = frame.choose_image(split)
    st.markdown(frame.image_facts(split, position))
    frame.check_images(split)
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
