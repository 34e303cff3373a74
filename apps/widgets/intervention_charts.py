"""The chart of what an intervention does to every class."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from widgets.charts import COLOURS, CONFIG
from widgets.wording import chart_text

MOST = 12


def effects(table: pd.DataFrame, unit: str, key: str) -> None:
    """Effects by class as bars, from the class that gained most to the one that lost most.

    Args:
        table: One row per class, the largest effects first: `class`, `before`, `after`, `effect`.
        unit: What the answers are: `probability` or `logit`.
        key: Key of the element.
    """
    rows = table.head(MOST).sort_values("effect", ascending=False, kind="stable")
    names = [chart_text(name) for name in rows["class"]]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=rows["effect"],
        orientation="h",
        marker_color=[COLOURS[1] if value > 0 else COLOURS[0] for value in rows["effect"]],
        customdata=rows[["before", "after"]].to_numpy(),
        hovertemplate=f"class %{{y}}<br>{unit} %{{customdata[0]:.3f}} → %{{customdata[1]:.3f}}"
        "<br>effect %{x:+.3f}<extra></extra>",
    )
    low, high = min(0.0, float(rows["effect"].min())), max(0.0, float(rows["effect"].max()))
    room = 0.05 * (high - low) or 0.1
    figure.update_layout(
        xaxis={"title": f"effect ({unit}, after minus before)", "range": [low - room, high + room]},
        yaxis={"title": "class", "type": "category", "autorange": "reversed"},
        height=90 + 24 * len(names),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        showlegend=False,
    )
    told = "; ".join(
        f"class {row['class']} {row['effect']:+.3f}, from {row['before']:.3f} to {row['after']:.3f}"
        for row in rows.to_dict("records")
    )
    st.plotly_chart(figure, key=key, alt=f"Effect of the intervention on the {unit}. {told}", config=CONFIG)
    if len(table) > len(rows):
        st.caption(f"The {len(rows)} classes with the largest effects of {len(table)}; the table has all.")
