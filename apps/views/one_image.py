"""One image: what models see in it by every method, where its logits come from, and what deleting pixels does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.overlays import Colours, sheet
from tfcausal.browsing.stored_split import StoredSplit
from tfcausal.errors import TfCausalError
from tfcausal.figures import outlined
from tfcausal.saliency.registry import available_explainers
from widgets import address, cached, charts, export, frame, pictures
from widgets.wording import plain

ABOUT = "One image under several methods and models: what speaks for a class, and how much of the answer that explains."
PREDICTED = "predicted"


def show_facts(split: StoredSplit, tables: dict[str, pd.DataFrame], position: int) -> None:
    picture, mask = split.pictures([position])[0], split.masks([position])[0]
    first = next(iter(tables.values())).iloc[position]
    left, right = st.columns([1, 3])
    with left:
        known = "its true mask outlined" if mask is not None else "its true mask is not known"
        pictures.show(outlined(picture, mask), f"{first['name']}, class {first['label']}; {known}", known, side=384)
    with right:
        st.markdown(frame.image_facts(split, position))
        rows = [
            {
                "model": model,
                "answer": row["predicted"],
                "right": "✓" if row["right"] else "✗",
                "probability": row["confidence"],
                "loss (nats)": row["loss"],
                "saliency in mask": row["mask_energy"],
                "chance": row["mask_area"],
            }
            for model, table in tables.items()
            for row in [table.iloc[position]]
        ]
        alt = "; ".join(f"{row['model']} answers {row['answer']} with p = {row['probability']:.2f}" for row in rows)
        settings = {name: st.column_config.NumberColumn(format="%.3f") for name in list(rows[0])[3:]}
        st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=settings, alt=f"Answers. {alt}")
        st.caption(
            "saliency in mask: share of the positive part of the stored map inside the true mask; chance: the mask's "
            "share of the image, which a uniform map has."
        )


def show_maps(
    key: cached.Run, split: StoredSplit, classes: dict[str, int], position: int, methods: list[str]
) -> tuple[list[np.ndarray], list[str]]:
    places = st.columns([2, 2, 2], vertical_alignment="bottom")
    with places[0]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[1]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    with places[2]:
        outline = address.switch("outline", "True mask", help="The outline of the true cause, where it is known.")
    pictures.legend(colours)
    picture, mask = split.pictures([position]), split.masks([position])
    every: list[np.ndarray] = []
    captions: list[str] = []
    for model, class_index in classes.items():
        st.markdown(f"**{model}** for class **{plain(split.class_names[class_index])}**")
        with st.grid(min_column_width=180):
            for method in methods:
                with st.container(gap="xxsmall"), frame.shown_errors():
                    with st.spinner(method, show_time=True):
                        maps = cached.maps(key, split.name, model, method, (position,), (class_index,))
                    overlays, scales = pictures.laid_over(picture, maps, opacity, colours, shared=False)
                    shown = pictures.outlined_all(overlays, mask if outline else [None])[0]
                    alt = f"{method} map of {model} for class {split.class_names[class_index]}"
                    pictures.show(shown, alt if maps.any() else f"{alt}: 0 everywhere")
                    end = pictures.ends(method, colours, scales[0]) if maps.any() else "0 everywhere"
                    st.caption(f"**{method}** {end}")
                    every.append(shown)
                    captions.append(f"{model}\n{method}")
    return every, captions


def show_logits(key: cached.Run, split: StoredSplit, models: list[str], position: int) -> pd.DataFrame:
    tables = []
    for model, place in zip(models, st.columns(len(models)), strict=True):
        with place, frame.shown_errors():
            parts = cached.logit_parts(key, split.name, model, position)
            names = [split.class_names[index] for index in parts.classes]
            st.markdown(f"**{model}**")
            charts.stacked_logits(names, parts.pixels, parts.biases, parts.logits, key=f"logits-{model}")
            table = pd.DataFrame(
                {
                    "class": names,
                    "probability": parts.probabilities,
                    "logit": parts.logits,
                    "from pixels": parts.pixels,
                    "from biases": parts.biases,
                    "share of pixels": parts.pixel_shares,
                }
            )
            formats = {name: st.column_config.NumberColumn(format="%.3f") for name in list(table)[1:5]}
            formats["share of pixels"] = st.column_config.NumberColumn(format="percent")
            alt = f"The largest logits of {model}, taken apart; the largest is class {names[0]}"
            st.dataframe(table, hide_index=True, column_config=formats, alt=alt)
            tables.append(table.assign(model=model))
    return pd.concat(tables) if tables else pd.DataFrame()


def show_deletion(
    key: cached.Run, split: StoredSplit, classes: dict[str, int], position: int, methods: list[str]
) -> None:
    for (model, class_index), place in zip(classes.items(), st.columns(len(classes)), strict=True):
        with place, frame.shown_errors():
            usable = [method for method in methods if _works(key, split, model, method, position, class_index)]
            curves = cached.deletion_curves(key, split.name, model, tuple(usable), position, class_index)
            share = np.linspace(0, 1, curves.shape[1]).tolist()
            lines = {
                name: (share, values.tolist(), "dot" if name == "random order" else "solid")
                for name, values in zip([*usable, "random order"], curves, strict=True)
            }
            areas = {name: float(np.trapezoid(values, share)) for name, (_, values, _) in lines.items()}
            alt = "Area under the curve: " + ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
            st.markdown(f"**{model}**")
            charts.curves(lines, "share of pixels deleted", "probability", alt, f"deletion-{model}", zero_to_one=True)
            st.caption(alt)


def _works(key: cached.Run, split: StoredSplit, model: str, method: str, position: int, class_index: int) -> bool:
    try:
        cached.maps(key, split.name, model, method, (position,), (class_index,))
    except TfCausalError:  # shown where its map should be
        return False
    return True


def show() -> None:
    places = st.columns(4, vertical_alignment="bottom")
    chosen = frame.choose_model(places)
    if chosen is None:
        return
    key, split, model = chosen
    with places[3]:
        others = [name for name in split.models if name != model]
        beside = address.optional("beside", "Beside it", others, nothing="no other model")
    models = [model] if beside is None else [model, beside]
    position = frame.choose_image(split)
    tables = {name: cached.table(key, split.name, name) for name in models}
    show_facts(split, tables, position)
    frame.check_images(split)
    predicted = {name: int(table["predicted"].cat.codes.iloc[position]) for name, table in tables.items()}
    places = st.columns([1, 3], vertical_alignment="bottom")
    with places[0]:
        wanted = address.select("explained", "Class to explain", [PREDICTED, *split.class_names])
    with places[1]:
        known = [entry.name for entry in available_explainers()]
        first = list(dict.fromkeys([split.method, *cached.FIRST_METHODS]))
        methods = address.several("methods", "Methods", known, first)
    classes = {name: predicted[name] if wanted == PREDICTED else split.class_names.index(wanted) for name in models}
    st.subheader("Maps", anchor=False)
    every, captions = show_maps(key, split, classes, position, methods)
    st.subheader("Logits", anchor=False)
    st.caption(
        "A logit is the sum of what its pixels contribute (the WBP map) and what the biases of the layers add; the "
        "share of the pixels is above 100 % where the biases pull the other way."
    )
    logits = show_logits(key, split, models, position)
    st.subheader("Deletion", anchor=False)
    st.caption(
        "Probability of the predicted class while pixels become mid-grey, the most salient first: a curve below the "
        "dotted one shows what the model uses."
    )
    show_deletion(key, split, classes, position, methods)
    heading = f"{key[1]}, {split.names[position]}"
    make = (lambda: sheet(every, captions, heading)) if every else None
    export.bar(f"image-{key[1]}-{position}", lambda: logits, make)


with frame.page("One image", ABOUT):
    show()
