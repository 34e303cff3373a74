"""Effects: what happens to a model's answer when a concept is switched off, a region masked, or an attack made."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from tfcausal.browsing.effect_state import measure_command, measured_models, unfinished_models, what_to_do
from tfcausal.browsing.effect_words import condition_of, stated
from tfcausal.browsing.effects import StoredEffects
from tfcausal.effect_study.figures import effect_bars
from widgets import address, cached, cached_effects, effect_charts, effect_detection, effect_images, export, frame
from widgets.cached_effects import View
from widgets.wording import plain

ABOUT = (
    "What happens to a model's answer when a concept inside it is switched off, a region is masked, or an attack moves "
    "every pixel: the mean change over images with its interval, where the concepts are, and whether attacks show."
)
IMAGE, LARGEST = "(image)", "largest"
MOST = {"16": 16, "32": 32, "64": 64, "all": 1 << 20}


def choose_models() -> tuple[cached.Run, dict[str, StoredEffects]] | None:
    runs = cached_effects.runs()
    if not runs:
        st.info("There is no run to look at yet. The page **Runs** offers the quickstart.", icon=":material/info:")
        return None
    places = st.columns(3, vertical_alignment="bottom")
    with places[0]:
        key = cached_effects.key(frame.choose_run(runs))
    run = cached.open_run(key)
    measured, unfinished = measured_models(run), unfinished_models(run)
    if not measured or unfinished:
        text, command = what_to_do(run)
        st.info(text, icon=":material/science:")
        st.code(command, language="bash")
    if not measured:
        others = cached_effects.runs_with_effects()
        if others:
            st.caption(f"Runs with effects: {', '.join(others)}.")
        return None
    missing = [name for name in run.config.models if name not in measured and name not in unfinished]
    if missing:
        st.caption(f"Not measured: {', '.join(missing)}. `{measure_command(run, missing[0])}`")
    with places[1]:
        model = address.select("model", "Model", measured)
    with places[2]:
        others = [name for name in measured if name != model]
        beside = address.optional("beside", "Beside it", others, nothing="no other model")
    found = {}
    for name in (model, beside):
        if name is not None:
            with frame.shown_errors():
                found[name] = cached_effects.effects(key, name)
    return (key, found) if found else None


def choose_view(key: cached.Run, effects: dict[str, StoredEffects]) -> View:
    first = next(iter(effects.values()))
    known = first.interventions
    classes = {str(index): name for index, name in first.classes.items()}
    places = st.columns(4, vertical_alignment="bottom")
    with places[0]:
        levels = [*(level for level in known if level is not None), *([IMAGE] if None in known else [])]
        names = {IMAGE: "image (no concept)"}
        chosen = address.select("level", "Level", levels, format_func=lambda name: names.get(name, name))
    level = None if chosen == IMAGE else chosen
    with places[1]:
        if level is None:
            intervention = address.select("change", "Intervention", known[None])
        else:
            help_ = "zero_out sets the map of a concept to 0; `+` in images that are masked or attacked as well."
            intervention = address.select("intervention", "Intervention", known[level], help=help_)
    class_index = None
    with places[2]:
        if level is not None and len(classes) > 1:
            words = {LARGEST: "largest over classes", **classes}
            of = address.select("of", "Class", list(words), format_func=lambda name: words.get(name, name))
            class_index = None if of == LARGEST else int(of)
    with places[3]:
        most = MOST[address.segments("bars", "Bars", list(MOST))]
    return View(key, effects, level, intervention, class_index, most)


def show_trust(view: View) -> None:
    """How far the numbers can be trusted, model by model."""
    for (model, effects), place in zip(view.effects.items(), st.columns(len(view.effects)), strict=True):
        with place, frame.shown_errors():
            st.markdown(f"**{model}** · {effects.n} images{_split(effects)}")
            for level in effects.levels:
                if view.level in (None, level.layer):
                    text = f"{level.layer}: {level.agreement}"
                    if level.faithful:
                        st.caption(plain(text))
                    else:
                        st.warning(plain(text), icon=":material/warning:")
            changed = [
                f"{name} {share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
                for name, share in effects.changed_answers.items()
            ]
            if changed:
                st.caption(plain(f"Images with another answer: {', '.join(changed)}."))
            if effects.never_predicted:
                few, more = effects.never_predicted[:10], " and others" if len(effects.never_predicted) > 10 else ""
                text = f"No image's answer, so that effects are of small probabilities: {', '.join(few)}{more}."
                st.caption(plain(text))


def show_bars(view: View) -> None:
    what = "the image as a whole" if view.level is None else f"the concepts of {view.level}"
    st.subheader(plain(f"Effects of {view.intervention} on {what}"), anchor=False)
    tables: dict[str, pd.DataFrame] = {}
    for model in view.effects:
        with frame.shown_errors():
            rows = cached_effects.rows(view.key, model, view.intervention, view.level, view.class_index)
            if rows.empty:
                st.info(f"{model} was not measured here: choose another level.", icon=":material/info:")
            else:
                tables[model] = rows.head(view.most)
                if len(rows) > view.most:
                    st.caption(f"{model}: the {view.most} largest of {len(rows)}.")
    if not tables:
        return
    ends, with_class = effect_charts.reach(list(tables.values())), view.level is not None and view.class_index is None
    for (model, rows), place in zip(tables.items(), st.columns(len(tables)), strict=True):
        with place:
            st.markdown(f"**{model}**")
            names = effect_charts.labels(rows, with_class)
            alt = f"{model}: {effect_charts.told(rows)}"
            effect_charts.bars(rows, names, view.effects[model].unit, ends, alt, key=f"bars-{model}")
            show_marks(view, rows)
    st.caption(
        "Orange above 0, blue below it, grey where the interval has 0 in it"
        + (" · node: class that it moves most" if with_class else "")
        + ". Whiskers are 95 % intervals of the mean over images; there is no correction for their number, and the "
        "largest of many is too large by a little."
    )
    st.caption(stated(pd.concat(list(tables.values()))))
    shown = pd.concat([rows.drop(columns="of") for rows in tables.values()])
    levels = {
        f"{model}, {view.level or 'image'}": {
            name: {"value": row.effect, "low": row.low, "high": row.high}
            for name, row in zip(effect_charts.labels(rows, with_class), rows.itertuples(), strict=True)
        }
        for model, rows in tables.items()
    }
    export.bar(f"effects-{view.name}", lambda: shown, partial(effect_bars, levels, view.first.unit, view.most))


def show_marks(view: View, rows: pd.DataFrame) -> None:
    """What is to be said of bars that are marked."""
    dead = rows.loc[rows["dead"], "node"].drop_duplicates()
    if len(dead):
        st.caption(
            f"{effect_charts.DEAD} dead: node {', '.join(map(str, dead))} has one value at all places of all images; "
            "where that is 0, zeroing it does nothing."
        )
    if not rows["faithful"].all():
        st.warning(
            f"{effect_charts.UNFAITHFUL} not faithful (hatched): in {condition_of(view.intervention)} images the "
            "autoencoder changes the answers, so that these are not effects in the network.",
            icon=":material/warning:",
        )


def show_heat_maps(view: View) -> None:
    st.subheader("By level and node", anchor=False)
    tables: dict[str, pd.DataFrame] = {}
    for model in view.effects:
        with frame.shown_errors():
            rows = cached_effects.rows_of_levels(view.key, model, view.intervention, view.class_index)
            if not rows.empty:
                tables[model] = rows
    if not tables:
        return
    limit = max(float(rows["effect"].abs().max()) for rows in tables.values()) or 1.0
    for (model, rows), place in zip(tables.items(), st.columns(len(tables)), strict=True):
        with place:
            st.markdown(f"**{model}**")
            alt = f"{model}, effects by level and node: {effect_charts.told(rows)}"
            effect_charts.heat_map(rows, view.effects[model].unit, limit, alt, key=f"heat-{model}")
    st.caption(
        f"{effect_charts.DEAD} dead · {effect_charts.UNFAITHFUL} the autoencoder changes the answers. The number of a "
        "node is its name in one autoencoder: node 3 of two models, or of two levels, is not the same concept."
    )


def show_values(view: View, level: str) -> None:
    """The effects of the strongest concept value by value, where it was set to several."""
    found = {}
    for model in view.effects:
        with frame.shown_errors():
            rows = cached_effects.rows(view.key, model, view.intervention, level, view.class_index)
            if not rows.empty:
                best = rows.iloc[0]
                values = view.effects[model].value_rows(view.intervention, level, int(best["node"]), int(best["class"]))
                if len(values):
                    found[model] = (best, values)
    if not found:
        return
    st.subheader("The strongest concept, value by value", anchor=False)
    for (model, (best, values)), place in zip(found.items(), st.columns(len(found)), strict=True):
        with place:
            text = f"{model}: node {best['node']} of {level} on class {best['of']}"
            alt = f"{text}: " + "; ".join(f"set to {row.value:.3g} {row.effect:+.3g}" for row in values.itertuples())
            st.markdown(plain(text))
            effect_charts.by_value(values, view.effects[model].unit, alt, key=f"values-{model}")


def _split(effects: StoredEffects) -> str:
    split = effects.settings.get("split")
    return f" of {plain(frame.spoken(str(split)))}" if split else ""


def show() -> None:
    chosen = choose_models()
    if chosen is None:
        return
    key, effects = chosen
    view = None
    with frame.shown_errors():
        view = choose_view(key, effects)
    if view is None:  # the table is damaged; the rest can still be read
        first = next(iter(effects.values()))
        level = first.levels[0].layer if first.levels else None
        view = View(key, effects, level, "", None, 0)
        show_trust(view)
    else:
        show_trust(view)
        show_bars(view)
        if view.level is not None:
            show_heat_maps(view)
            show_values(view, view.level)
    effect_images.show(view)
    effect_detection.show(view)


with frame.page("Effects", ABOUT):
    show()
