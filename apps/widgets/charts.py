"""Charts of the explorer, with titles, units and a text for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from widgets.wording import chart_text

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999933", "#882255")
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], str]],
    x: str,
    y: str,
    alt: str,
    key: str,
    zero_to_one: bool = False,
) -> None:
    """Lines over a common axis.

    Args:
        lines: By name: the places, the values, and the dash (`solid`, `dot`, `dash`). Lines whose names begin alike up
            to a comma have one colour.
        x: Title of the axis of the places, with its unit.
        y: Title of the axis of the values, with its unit.
        alt: What the chart shows, in words.
        key: Key of the element.
        zero_to_one: Whether the values are shares.
    """
    figure = go.Figure()
    families = list(dict.fromkeys(name.split(",")[0] for name in lines))
    for name, (places, values, dash) in lines.items():
        colour = COLOURS[families.index(name.split(",")[0]) % len(COLOURS)]
        mode = "lines" if len(places) > 1 else "markers"
        figure.add_scatter(
            x=places, y=values, name=chart_text(name), mode=mode, line={"dash": dash, "color": colour, "width": 2}
        )
    figure.update_layout(
        xaxis_title=chart_text(x),
        yaxis_title=chart_text(y),
        height=300 + 12 * len(lines),  # the legend below needs its place
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.25},
        hovermode="x unified",
    )
    if zero_to_one:
        figure.update_yaxes(range=[0, 1.02])
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)


def training(table: pd.DataFrame, value: str, key: str) -> None:
    """One value over the epochs, training solid and validation dotted.

    Args:
        table: As from `tfcausal.browsing.training_curves`.
        value: The value.
        key: Key of the element.
    """
    chosen = table[table["value"] == value]
    lines = {}
    for (model, part), rows in chosen.groupby(["model", "part"], sort=False):
        dash = "solid" if part == "training" else "dot"
        lines[f"{model}, {part}"] = (rows["epoch"].tolist(), rows["number"].tolist(), dash)
    last = [f"{name}: {values[-1]:.3f} after epoch {places[-1]}" for name, (places, values, _) in lines.items()]
    unit = {"loss": "loss (nats)", "accuracy": "accuracy (share)"}.get(value, value.replace("_", " "))
    alt = f"{unit} over the epochs. " + "; ".join(last)
    curves(lines, "epoch", unit, alt, key, zero_to_one=value == "accuracy")


def stacked_logits(names: Sequence[str], pixels: np.ndarray, biases: np.ndarray, logits: np.ndarray, key: str) -> None:
    """The logits of some classes as the sum of what pixels and biases contribute.

    Args:
        names: Names of the classes.
        pixels: Contribution of the pixels, (k,).
        biases: Contribution of the biases, (k,).
        logits: Their sum, (k,).
        key: Key of the element.
    """
    figure, shown = go.Figure(), [chart_text(name) for name in names]
    figure.add_bar(y=shown, x=pixels, name="pixels", orientation="h", marker_color=COLOURS[0])
    figure.add_bar(y=shown, x=biases, name="biases", orientation="h", marker_color=COLOURS[1])
    figure.add_scatter(
        y=shown,
        x=logits,
        name="logit",
        mode="markers",
        marker={"symbol": "diamond", "color": COLOURS[4], "size": 9},
    )
    figure.update_layout(
        barmode="relative",
        xaxis_title="contribution (logits)",
        yaxis={"title": "class", "type": "category", "autorange": "reversed"},
        height=80 + 30 * len(names),
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.15},
    )
    parts = zip(names, logits, pixels, biases, strict=True)
    alt = "Logits taken apart. " + "; ".join(
        f"class {name}: logit {logit:.2f} from pixels {pixel:.2f} and biases {bias:.2f}"
        for name, logit, pixel, bias in parts
    )
    st.plotly_chart(figure, key=key, alt=alt, config=CONFIG)
