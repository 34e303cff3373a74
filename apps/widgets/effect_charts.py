"""Charts of causal effects: bars with intervals, a heat map of concepts, effects value by value, ROC curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from tfcausal.browsing.effects import DetectorCurve
from tfcausal.browsing.overlays import colour_stops
from widgets.charts import COLOURS, CONFIG
from widgets.wording import chart_text

ABOVE, BELOW, NEITHER = "#e69f00", "#0072b2", "#8a949e"
DEAD, UNFAITHFUL = "✕", "!"
_MARGIN = {"l": 10, "r": 10, "t": 10, "b": 10}


def labels(rows: pd.DataFrame, with_class: bool) -> list[str]:
    """What the bars are called: the node with its marks, and the class where it is another for every node."""
    return [
        (f"{row.node}: {row.of}" if with_class else f"{row.node}" if row.node >= 0 else row.of) + _marks(row)
        for row in rows.itertuples()
    ]


def reach(tables: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """The ends of an axis that has all effects of some tables and their intervals, and 0, in it."""
    every = pd.concat([table[["effect", "low", "high"]] for table in tables])
    low, high = min(0.0, float(every.min().min())), max(0.0, float(every.max().max()))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def bars(rows: pd.DataFrame, names: Sequence[str], unit: str, ends: tuple[float, float], alt: str, key: str) -> None:
    """Effects as horizontal bars with the whiskers of their intervals, from above as in the table.

    Args:
        rows: Rows of the table of effects.
        names: What each is called, each once.
        unit: What the effects are.
        ends: Ends of the axis.
        alt: What the chart shows, in words.
        key: Key of the element.
    """
    around = (rows["low"] <= 0) & (rows["high"] >= 0)
    colours = np.where(around | rows["low"].isna(), NEITHER, np.where(rows["effect"] > 0, ABOVE, BELOW))
    shapes = np.where(rows["dead"], "x", np.where(rows["faithful"], "", "/"))
    figure = go.Figure()
    figure.add_bar(
        y=[chart_text(name) for name in names],
        x=rows["effect"],
        orientation="h",
        marker={"color": colours, "pattern": {"shape": shapes, "solidity": 0.25}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (rows["high"] - rows["effect"]).fillna(0),
            "arrayminus": (rows["effect"] - rows["low"]).fillna(0),
            "thickness": 1.5,
            "width": 4,
            "color": "#7a8591",
        },
        customdata=rows[["low", "high", "n", "of"]].assign(of=rows["of"].map(chart_text)),
        hovertemplate="%{y}, class %{customdata[3]}: %{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}], "
        "n = %{customdata[2]}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": f"effect ({unit})", "range": list(ends), "zeroline": True},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
        height=90 + 24 * len(rows),
        margin=_MARGIN,
    )
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)


def heat_map(rows: pd.DataFrame, unit: str, limit: float, alt: str, key: str) -> None:
    """Effects by level and node, in colours on one scale around 0, with marks of those that are dead or unfaithful.

    Args:
        rows: Rows of the table of effects, one for every level and node.
        unit: What the effects are.
        limit: Where the colours end.
        alt: What the chart shows, in words.
        key: Key of the element.
    """
    levels, nodes = list(dict.fromkeys(rows["level"])), sorted(rows["node"].unique())
    shape = len(levels), len(nodes)
    values, marks, texts = np.full(shape, np.nan), np.full(shape, "", object), np.full(shape, "", object)
    for row in rows.itertuples():
        place = levels.index(row.level), nodes.index(row.node)
        values[place], marks[place] = row.effect, _marks(row).strip()
        texts[place] = f"class {chart_text(row.of)}: {row.effect:.4g} [{row.low:.4g}, {row.high:.4g}]"
    stops = colour_stops("signed")
    figure = go.Figure()
    figure.add_heatmap(
        z=values,
        x=[str(node) for node in nodes],
        y=[chart_text(level) for level in levels],
        zmin=-limit,
        zmax=limit,
        colorscale=[[place / (len(stops) - 1), stop] for place, stop in enumerate(stops)],
        colorbar={"title": {"text": unit, "side": "right"}},
        text=marks,
        texttemplate="%{text}",
        customdata=texts,
        hovertemplate="%{y}, node %{x}, %{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    figure.update_layout(
        xaxis={"title": "node", "type": "category"},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
        height=170 + 36 * len(levels),
        margin=_MARGIN,
    )
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)


def by_value(rows: pd.DataFrame, unit: str, alt: str, key: str) -> None:
    """Effects of a concept over the values that it was set to, with intervals.

    Args:
        rows: Rows of the table of effects, one for every value, rising.
        unit: What the effects are.
        alt: What the chart shows, in words.
        key: Key of the element.
    """
    figure = go.Figure()
    spread = {
        "array": (rows["high"] - rows["effect"]).fillna(0),
        "arrayminus": (rows["effect"] - rows["low"]).fillna(0),
    }
    figure.add_scatter(
        x=rows["value"],
        y=rows["effect"],
        mode="lines+markers",
        line={"color": COLOURS[0]},
        error_y={"type": "data", "symmetric": False, **spread},
    )
    figure.update_layout(xaxis_title="value of the code", yaxis_title=f"effect ({unit})", height=280, margin=_MARGIN)
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)


def area(curve: DetectorCurve) -> str:
    """The area under a curve with its interval, in a few characters."""
    if np.isnan(curve.auc):
        return "too few images"
    interval = "" if np.isnan(curve.low) else f" [{curve.low:.2f}, {curve.high:.2f}]"
    return f"{curve.auc:.2f}{interval}"


def roc(curves: Sequence[DetectorCurve], alt: str, key: str) -> None:
    """ROC curves of the detectors of an attack; a dot is the operating point that was chosen on other images.

    Args:
        curves: The curves.
        alt: What the chart shows, in words.
        key: Key of the element.
    """
    figure = go.Figure()
    chance = {"dash": "dot", "color": NEITHER, "width": 1}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=chance, name="chance: 0.50", hoverinfo="skip")
    for place, curve in enumerate(curves):
        colour, dash = COLOURS[place % len(COLOURS)], "solid" if place < len(COLOURS) else "dash"
        figure.add_scatter(
            x=curve.false_positive_rates,
            y=curve.true_positive_rates,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2},
            name=f"{curve.name}: {area(curve)}",
            legendgroup=curve.name,
        )
        if not np.isnan(curve.auc):
            figure.add_scatter(
                x=[curve.chosen[0]],
                y=[curve.chosen[1]],
                mode="markers",
                marker={"color": colour, "size": 10},
                name=f"{curve.name}, chosen",
                legendgroup=curve.name,
                showlegend=False,
            )
    figure.update_layout(
        xaxis={"title": "false positive rate", "range": [-0.02, 1.02]},
        yaxis={"title": "true positive rate", "range": [-0.02, 1.02]},
        height=380 + 22 * len(curves),
        margin=_MARGIN,
        legend={"orientation": "v", "y": -0.2, "yanchor": "top", "x": 0},
    )
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)


def told(rows: pd.DataFrame, most: int = 5) -> str:
    """The largest effects of a table in words."""
    ranked = rows.sort_values("effect", key=abs, ascending=False, kind="stable")
    parts = []
    for row in ranked.head(most).itertuples():
        node = (
            ""
            if row.node < 0
            else f"node {row.node}{'' if len(rows['level'].unique()) == 1 else f' of {row.level}'} on "
        )
        interval = "" if row.low != row.low else f" [{row.low:.2g}, {row.high:.2g}]"
        parts.append(f"{node}class {row.of} {row.effect:+.2g}{interval}")
    dead = int(rows["dead"].sum())
    ends = (f"; {dead} dead" if dead else "") + ("" if rows["faithful"].all() else "; the autoencoder is not faithful")
    return f"{len(rows)} effects, the largest: {', '.join(parts)}{ends}"


def _marks(row: object) -> str:
    return (f" {DEAD}" if row.dead else "") + ("" if row.faithful else f" {UNFAITHFUL}")
