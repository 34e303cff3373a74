"""Compare: runs side by side, and the images whose answer or attention differs most between two models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.overlays import Colours, sheet
from tfcausal.browsing.runs import MEASURES, deletion_curves, measures, training_curves
from tfcausal.browsing.stored_split import StoredSplit, split_names
from widgets import address, cached, charts, export, frame, pictures
from widgets.wording import plain

ABOUT = (
    "Runs side by side: what they measured, how they trained, and the images on which two of their models differ most."
)
CHANGES = ["answer", "attention"]
PER_PAGE = 8
MOST_RUNS = 6


def show_measures(keys: dict[str, cached.Run]) -> pd.DataFrame:
    tables = []
    for name, key in keys.items():
        with frame.shown_errors():
            tables.append(measures(cached.open_run(key)).assign(run=name))
    if not tables:
        return pd.DataFrame()
    every = pd.concat(tables, ignore_index=True)
    if every.empty:
        return every
    splits = [name for name in dict.fromkeys(every["split"]) if "+" not in name]
    default = "test_shuffled" if "test_shuffled" in splits else "test"
    split = address.segments("table", "Split of the table", splits, default, format_func=frame.spoken)
    rows = every[(every["split"] == split) & every["measure"].isin(list(MEASURES))]
    shown = rows.pivot_table(index=["run", "model"], columns="measure", values="value", sort=False)
    shown = shown[[name for name in MEASURES if name in shown]].rename(columns=frame.spoken)
    worst = every[every["measure"].str.startswith("worst_group")].set_index(["run", "model"])["value"]
    shown = shown.join(worst.rename("worst group"))
    best = shown["accuracy"].idxmax() if "accuracy" in shown else None
    alt = f"Measures of {len(shown)} models of {len(tables)} runs" + (
        "" if best is None else f"; the best accuracy is that of {best[1]} of {best[0]}"
    )
    formats = {name: st.column_config.NumberColumn(format="%.3f") for name in shown}
    st.dataframe(shown.reset_index(), hide_index=True, column_config=formats, alt=alt)
    st.caption(" · ".join(f"**{frame.spoken(name)}**: {meaning}" for name, meaning in MEASURES.items()))
    return every


def show_curves(keys: dict[str, cached.Run]) -> None:
    curves, deletions = [], {}
    for name, key in keys.items():
        with frame.shown_errors():
            run = cached.open_run(key)
            table = training_curves(run)
            curves.append(table.assign(model=name + ": " + table["model"]))
            split = address.remembered("table") or "test"
            deletions.update({f"{name}: {model}": both for model, both in deletion_curves(run, split).items()})
    left, right = st.columns(2)
    with left:
        st.markdown("**Training**")
        every = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame({"value": []})
        if every.empty:
            st.info("No epoch is finished yet.", icon=":material/hourglass_empty:")
        else:
            values = list(dict.fromkeys(["accuracy", "loss", *every["value"]]))
            charts.training(
                every, address.select("value", "Value over the epochs", values, format_func=frame.spoken), "compared"
            )
    with right:
        st.markdown("**Deletion** of the predicted class (dotted: pixels in random order)")
        lines = {}
        for name, both in deletions.items():
            for kind, dash, values in zip(("by the map", "at random"), ("solid", "dot"), both, strict=True):
                lines[f"{name}, {kind}"] = (np.linspace(0, 1, len(values)).tolist(), values, dash)
        if lines:
            areas = {name: float(np.trapezoid(values, share)) for name, (share, values, _) in lines.items()}
            alt = "Area under the curve: " + ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
            charts.curves(lines, "share of pixels deleted", "mean probability", alt, "deletions", zero_to_one=True)


def choose_models(splits: dict[str, StoredSplit]) -> list[tuple[str, str]]:
    options = [f"{name}: {model}" for name, split in splits.items() for model in split.models]
    if not options:
        return []
    places, chosen = st.columns(2), []
    for place, name, label, default in zip(
        places, ("first", "second"), ("First model", "Second model"), (options[0], options[-1]), strict=True
    ):
        with place:
            run, _, model = address.select(name, label, options, default).partition(": ")
            chosen.append((run, model))
    return chosen


def show_changes(keys: dict[str, cached.Run]) -> tuple[pd.DataFrame, list[np.ndarray], list[str]]:
    nothing: tuple[pd.DataFrame, list[np.ndarray], list[str]] = (pd.DataFrame(), [], [])
    usable = {}
    for name, key in keys.items():
        with frame.shown_errors():
            usable[name] = (key, split_names(cached.open_run(key)))
    common = [
        split for split in next(iter(usable.values()), (None, ()))[1] if all(split in own for _, own in usable.values())
    ]
    if not common:
        st.info("These runs have measured no split in common.", icon=":material/info:")
        return nothing
    split_name = address.segments("split", "Split of the images", common, format_func=frame.spoken)
    splits = {name: cached.split(key, split_name) for name, (key, _) in usable.items()}
    chosen = choose_models(splits)
    if len(set(chosen)) < 2:
        st.info("Choose two different models to see on which images they differ.", icon=":material/info:")
        return nothing
    (run, model), (other_run, other) = chosen
    places = st.columns([2, 2, 3], vertical_alignment="bottom")
    with places[0]:
        kind = address.segments("change", "Changed most", CHANGES)
    with places[1]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    with places[2]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    table = changed(keys, splits, split_name, (run, model), (other_run, other), kind)
    st.markdown(f"The two models answer differently on **{int(table['differs'].sum()):,}** of {len(table):,} images.")
    number = address.pages("page", -(-len(table) // PER_PAGE), (run, model, other_run, other, split_name, kind))
    shown = table.iloc[number * PER_PAGE : (number + 1) * PER_PAGE]
    drawn, captions, scales = [], [], []
    positions = shown["position"].tolist()
    for name, own in ((run, model), (other_run, other)):
        maps = splits[name].maps(own, positions)
        overlays, ends = pictures.laid_over(splits[name].pictures(positions), maps, opacity, colours, shared=False)
        drawn.append(overlays)
        scales.append(ends)
    pictures.legend(colours, splits[run].method, np.concatenate(scales))
    with st.grid(min_column_width=260):
        for at, row in enumerate(shown.itertuples()):
            text = f"{row.first} ({row.first_confidence:.2f}) | {row.second} ({row.second_confidence:.2f})"
            both = np.concatenate([drawn[0][at], np.ones((drawn[0][at].shape[0], 2, 3)), drawn[1][at]], axis=1)
            with st.container(gap="xxsmall"):
                alt = f"{row.name}, class {row.label}: maps of {model} for {row.first} and of {other} for {row.second}"
                beside = other if run == other_run else address.NONE
                one = {"run": run, "split": split_name, "model": model, "beside": beside, "image": row.name}
                pictures.show(both, alt, side=320, link=address.link_to("one_image", **one))
                if st.button(plain(row.name.rsplit("/", 1)[-1]), key=f"open-{row.position}", type="tertiary"):
                    address.remember(**one)
                    st.switch_page("views/one_image.py")
                st.caption(plain(f"class {row.label} · {text} · {kind} changed by {getattr(row, kind):.2f}"))
            captions.append(f"{row.name.rsplit('/', 1)[-1]}, class {row.label}\n{text}")
    sheets = [
        np.concatenate([one, np.ones((one.shape[0], 2, 3)), two], axis=1) for one, two in zip(*drawn, strict=True)
    ]
    return table, sheets, captions


def changed(
    keys: dict[str, cached.Run],
    splits: dict[str, StoredSplit],
    split_name: str,
    first: tuple[str, str],
    second: tuple[str, str],
    kind: str,
) -> pd.DataFrame:
    """The images in the order of how far two models differ on them."""
    (run, model), (other_run, other) = first, second
    one = cached.table(keys[run], split_name, model)
    pair = (keys[run], model, keys[other_run], other, split_name)
    answer, attention = cached.answer_distances(*pair), cached.attention_distances(*pair)
    two = cached.table(keys[other_run], split_name, other)
    table = pd.DataFrame(
        {
            "position": one["position"],
            "name": one["name"],
            "label": one["label"],
            "first": one["predicted"],
            "first_confidence": one["confidence"],
            "second": two["predicted"],
            "second_confidence": two["confidence"],
            "differs": one["predicted"].cat.codes != two["predicted"].cat.codes,
            "answer": answer,
            "attention": attention,
        }
    )
    return table.sort_values(kind, ascending=False, kind="stable", na_position="last")


def show() -> None:
    runs = frame.measured_runs()
    if not runs:
        return
    names = [run.name for run in runs]
    complete = [run.name for run in runs if run.state == "complete"]
    chosen = address.several("runs", "Runs", names, complete[:2], max_selections=MOST_RUNS)
    if not chosen:
        st.info("Choose one run or more.", icon=":material/info:")
        return
    keys = {name: cached.run_key(name) for name in chosen}
    every = show_measures(keys)
    show_curves(keys)
    st.subheader("Images that changed most", anchor=False)
    st.caption(
        "answer: total variation distance between the probabilities of the two models, 0 to 1; attention: the same "
        "between their shares of positive saliency, in cells of an eighth of the image. Left is the first model."
    )
    table, sheets, captions = pd.DataFrame(), [], []
    with frame.shown_errors():
        table, sheets, captions = show_changes(keys)
    heading = f"{address.remembered('first')} and {address.remembered('second')}"
    make = (lambda: sheet(sheets, captions, heading, columns=4)) if sheets else None
    export.bar("compare", lambda: every if table.empty else table, make)


with frame.page("Compare", ABOUT):
    show()
