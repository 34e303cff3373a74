"""Images: the test images of a run under the maps of a model, to filter, sort and open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.image_table import SORTABLE, choose, order
from tfcausal.browsing.overlays import Colours, sheet
from tfcausal.browsing.stored_split import StoredSplit
from tfcausal.saliency.registry import available_explainers
from widgets import address, cached, export, frame, pictures
from widgets.wording import plain

ABOUT = (
    "What a model looks at in the images that it was measured on: choose some, sort them, and open one. "
    "The maps are those of the class that the model predicts."
)
PER_PAGE = {"12": 12, "24": 24, "48": 48}
NO_ORDER = "position"


@dataclass(frozen=True)
class View:
    """Whose maps are shown."""

    key: cached.Run
    split: StoredSplit
    model: str
    method: str
    other: str | None


def choose_view() -> View | None:
    places = st.columns(5, vertical_alignment="bottom")
    chosen = frame.choose_model(places)
    if chosen is None:
        return None
    key, split, model = chosen
    with places[3]:
        methods = [entry.name for entry in available_explainers()]
        method = address.select(
            "method",
            "Method",
            methods,
            split.method,
            format_func=lambda name: f"{name} (stored)" if name == split.method else name,
            help="The stored maps are there at once; those of other methods are computed for the images shown.",
        )
    with places[4]:
        others = [name for name in split.models if name != model]
        other = address.optional("beside", "Disagreement with", others, nothing="no other model")
    return View(key, split, model, method, other)


def chosen_rows(view: View) -> pd.DataFrame:
    table = cached.table(view.key, view.split.name, view.model)
    if view.other is not None:
        pair = (view.key, view.model, view.key, view.other, view.split.name)
        table = table.assign(
            disagreement=cached.answer_distances(*pair), attention_change=cached.attention_distances(*pair)
        )
    places = st.columns([3, 3, 4, 3], vertical_alignment="bottom")
    with places[0]:
        labels = address.several("class", "Classes", view.split.class_names, placeholder="all")
    with places[1]:
        answer = address.segments("answer", "Answer", ["all", "right", "wrong"])
    with places[2]:
        known = "agrees" in table
        words = ["all", "agrees", "conflicts"]
        agreement = address.segments("agreement", "Context and class", words) if known else "all"
    with places[3]:
        contexts = address.several("context", "Contexts", view.split.context_names, placeholder="all") if known else []
    places = st.columns(4, vertical_alignment="bottom")
    with places[0]:
        group = address.optional("group", "Group", list(table["group"].cat.categories), nothing="all groups")
    with places[1]:
        columns = [name for name in SORTABLE if name in table and table[name].notna().any()]
        by = address.select("sort", "Sort by", columns, format_func=frame.spoken, help=_meanings(columns))
    with places[2]:
        direction = address.segments("direction", "First", ["smallest", "largest"])
    with places[3]:
        address.segments("per_page", "Images on a page", list(PER_PAGE))
    rows = choose(table, labels, answer, agreement, contexts, group)
    return order(rows, by, descending=direction == "largest")


def show_grid(view: View, rows: pd.DataFrame) -> None:
    places = st.columns([3, 3, 2, 2], vertical_alignment="bottom")
    with places[0]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[1]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    with places[2]:
        shared = address.switch(
            "shared", "Shared scale", help="One scale for all pictures, so that they can be compared."
        )
    with places[3]:
        outline = address.switch("outline", "True mask", help="The outline of the true cause, where it is known.")
    per_page = PER_PAGE[address.remembered("per_page") or "12"]
    summary = f"**{len(rows):,}** of {len(view.split):,} images"
    right = f", {rows['right'].mean():.1%} right" if len(rows) else ""
    st.markdown(summary + right)
    if rows.empty:
        st.info("No image fulfils all of these conditions.", icon=":material/filter_alt_off:")
        return
    first, last = rows["position"].iloc[0], rows["position"].iloc[-1]
    number = address.pages("page", -(-len(rows) // per_page), (view.key, view.split.name, len(rows), first, last))
    shown = rows.iloc[number * per_page : (number + 1) * per_page]
    with frame.shown_errors():
        overlays, scales = drawn(view, shown, opacity, colours, shared, outline)
        pictures.legend(colours, view.method, scales)
        with st.grid(min_column_width=150):
            for pixels, row in zip(overlays, shown.itertuples(), strict=True):
                show_cell(view, pixels, row)
        make = partial(sheet, overlays, [caption(row) for row in shown.itertuples()], heading(view))
        export.bar(f"images-{view.key[1]}-{view.split.name}-{view.model}", lambda: rows, make)


def drawn(
    view: View, rows: pd.DataFrame, opacity: float, colours: Colours, shared: bool, outline: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    positions = tuple(rows["position"].tolist())
    classes = tuple(rows["predicted"].cat.codes.tolist())
    with st.spinner(f"Computing {view.method}", show_time=True):
        maps = cached.maps(view.key, view.split.name, view.model, view.method, positions, classes)
    overlays, scales = pictures.laid_over(view.split.pictures(positions), maps, opacity, colours, shared)
    if outline:
        overlays = pictures.outlined_all(overlays, view.split.masks(positions))
    return overlays, scales


def show_cell(view: View, pixels: np.ndarray, row: object) -> None:
    with st.container(gap="xxsmall"):
        alt = f"{row.name}, class {row.label}: {view.method} map of {view.model} for {row.predicted}"
        chosen = {"run": view.key[1], "split": view.split.name, "model": view.model, "image": row.name}
        pictures.show(pixels, alt, link=address.link_to("one_image", **chosen))
        mark = "✓" if row.right else "✗"
        if st.button(plain(row.name.rsplit("/", 1)[-1]), key=f"open-{row.position}", type="tertiary"):
            address.remember(image=row.name)
            st.switch_page("views/one_image.py")
        st.caption(plain(f"{mark} {row.label} → {row.predicted}, p = {row.confidence:.2f}{_value(row)}"))


def caption(row: object) -> str:
    return f"{row.name.rsplit('/', 1)[-1]}\n{row.label} → {row.predicted}, p = {row.confidence:.2f}"


def heading(view: View) -> str:
    return f"{view.key[1]}, {frame.spoken(view.split.name)}: {view.method} of {view.model}"


def _value(row: object) -> str:
    by = address.remembered("sort") or NO_ORDER
    value = getattr(row, by, None)
    return "" if by in (NO_ORDER, "confidence") or value is None else f" · {frame.spoken(by)} {value:.2f}"


def _meanings(columns: Sequence[str]) -> str:
    return "\n".join(f"- **{frame.spoken(name)}**: {SORTABLE[name]}" for name in columns)


with frame.page("Images", ABOUT):
    view = choose_view()
    if view is not None:
        if not view.split.has_images:
            text = "This run is of a release that kept no images: the maps are shown on grey. Run it again to see them."
            st.warning(text, icon=":material/hide_image:")
        show_grid(view, chosen_rows(view))
        if view.split.has_images:
            cached.warm_up(view.key, view.split.name, view.model)
