"""How well attacks are detected: ROC curves of every detector, and the table of detectors."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from tfcausal.browsing.effect_state import measure_command
from tfcausal.browsing.effects import DetectorCurve
from tfcausal.effect_study.figures import roc_curves
from widgets import cached, effect_charts, export, frame
from widgets.cached_effects import View
from widgets.wording import plain

ABOUT = (
    "Detectors tell attacked images from clean ones: fitted on one part of the images, thresholds (the dots) chosen "
    "on a second, all that is shown measured on a third. low_confidence: less confidence is more suspicious; an attack "
    "that makes the model surer than before has an area below one half there. confidence: its direction is learned, as "
    "the others learn theirs; over_confidence: the area of a detector minus that of confidence."
)
CELLS = st.column_config.NumberColumn(format="%.3f")


def show(view: View) -> None:
    """The ROC curves and the detectors of the models of a view."""
    st.subheader("Detection of attacks", anchor=False)
    curves: dict[str, list[DetectorCurve]] = {}
    tables = []
    for model, effects in view.effects.items():
        with frame.shown_errors():
            curves[model] = effects.curves()
            tables.append(effects.detection_rows())
    attacks = list(dict.fromkeys(curve.attack for own in curves.values() for curve in own))
    if not attacks:
        st.info("Detection was not asked for. It needs at least 50 images and an attack:", icon=":material/info:")
        st.code(f"{measure_command(cached.open_run(view.key))} --set detection={{}} --overwrite", language="bash")
        return
    st.caption(ABOUT)
    panels = [(attack, model) for attack in attacks for model in curves]
    width = max(2, len(curves))
    for start in range(0, len(panels), width):
        for (attack, model), place in zip(panels[start : start + width], st.columns(width), strict=False):
            own = [curve for curve in curves[model] if curve.attack == attack]
            with place:
                st.markdown(f"**{plain(attack)}**, {model}: area [95 % interval]")
                alt = f"ROC curves of {model} for {attack}, area under each: " + "; ".join(
                    f"{curve.name} {effect_charts.area(curve)}" for curve in own
                )
                effect_charts.roc(own, alt, key=f"roc-{attack}-{model}")
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if not table.empty:
        numbers = {name: CELLS for name in table.columns if table[name].dtype.kind == "f" and name != "n_successful"}
        best = table.loc[table["auc"].idxmax()] if table["auc"].notna().any() else None
        told_best = "" if best is None else f"; the largest area is {best['auc']:.2f}, of {best['detector']}"
        alt = f"{len(table)} detectors of attacks{told_best}"
        st.dataframe(table, hide_index=True, column_config=numbers, alt=alt)
    export.bar(f"detection-{view.name}", lambda: table, partial(_roc_picture, curves))


def _roc_picture(curves: dict[str, list[DetectorCurve]]) -> bytes:
    panels: dict[str, dict[str, dict[str, object]]] = {}
    for model, own in curves.items():
        for curve in own:
            panels.setdefault(f"{curve.attack}, {model}", {})[curve.name] = vars(curve)
    return roc_curves(panels)
