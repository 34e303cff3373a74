"""Pictures of causal effects, as PNG bytes: bars by level and node, a node's codes, effect maps, ROC curves.

Signed values have one scale around 0, red above and blue below it, and a legend with their unit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfcausal.errors import InvalidArgument, message
from tfcausal.figures import outlined

_INK, _GREY = "#22303c", "#8a949e"
_ABOVE, _BELOW = "#b2182b", "#2166ac"
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_SIGNED, _POSITIVE = "RdBu_r", "viridis"
_COLUMNS = 3  # panels beside each other

Numbers = Mapping[str, float]
Curve = Mapping[str, Any]


def effect_bars(levels: Mapping[str, Mapping[str, Numbers]], unit: str, most: int = 16) -> bytes:
    """Effects with their intervals, one panel per level and one bar per node, all on one scale.

    A bar whose interval reaches 0 is grey.

    Args:
        levels: By level and node, an estimate with `value`, `low` and `high`; NaN where there is none.
        unit: What the effects are, for the axis.
        most: How many nodes of a level are shown, those with the largest absolute effects first.

    Returns:
        A PNG.

    Raises:
        InvalidArgument: There is no level, a level has no node, or `most` is not positive.

    Example:
        >>> effect_bars({"conv2": {"3": {"value": -0.2, "low": -0.3, "high": -0.1}}}, "change of P(class)")[1:4]
        b'PNG'
    """
    if not levels or not all(levels.values()):
        raise InvalidArgument(message("levels", "at least one level, each with at least one node", "none"))
    if most < 1:
        raise InvalidArgument(message("most", "a positive integer", most))
    shown = {level: _strongest(nodes, most) for level, nodes in levels.items()}
    rows = max(len(nodes) for nodes in shown.values())
    figure, grid = _panels(len(shown), 3.2, 0.2 * rows + 1.0)
    for axes in grid[1:]:
        axes.sharex(grid[0])
    for axes, (level, nodes) in zip(grid, shown.items(), strict=True):
        axes.axvline(0, color=_INK, lw=0.8)
        for place, estimate in enumerate(nodes.values()):
            value, low, high = (float(estimate[key]) for key in ("value", "low", "high"))
            known = low <= value <= high
            error = [[value - low], [high - value]] if known else None
            colour = _GREY if not known or low <= 0 <= high else _ABOVE if value > 0 else _BELOW
            axes.barh(place, value, color=colour, height=0.7, xerr=error, error_kw={"lw": 1, "ecolor": _INK})
        axes.set_yticks(range(len(nodes)), list(nodes), fontsize=7)
        axes.set_ylim(rows - 0.4, -0.6)
        all_of_them = len(nodes) == len(levels[level])
        axes.set_title(level if all_of_them else f"{level} ({len(nodes)} of {len(levels[level])} nodes)", fontsize=8)
        axes.set_xlabel(unit, fontsize=7.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # small effects have long numbers
        _plain(axes)
    return _png(figure)


def node_codes(images: np.ndarray, codes: np.ndarray, title: str, unit: str = "code") -> bytes:
    """Where a node is active in images: the images, and the codes of the node below them, on one scale.

    Args:
        images: (N, height, width, channels) in [0, 1], 1 or 3 channels.
        codes: The node's codes (N, h, w); those that are never negative are drawn from 0 on.
        title: Title of the picture, such as level and node.
        unit: What the codes are, for the legend.

    Returns:
        A PNG.

    Raises:
        InvalidArgument: No image, or not one map for every image.

    Example:
        >>> node_codes(np.zeros((2, 8, 8, 3)), np.ones((2, 4, 4)), "conv2, node 3")[1:4]
        b'PNG'
    """
    _check_pairs("codes", codes, images)
    figure = Figure(figsize=(1.3 * len(images) + 0.9, 3.0), dpi=120, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=9, color=_INK)
    grid = figure.subplots(2, len(images), squeeze=False)
    limit = _limit(codes)
    drawn = None
    for column, (image, code) in enumerate(zip(images, codes, strict=True)):
        _picture(grid[0][column], outlined(image, None))
        scale = {"cmap": _POSITIVE, "vmin": 0.0} if codes.min() >= 0 else {"cmap": _SIGNED, "vmin": -limit}
        drawn = _picture(grid[1][column], code, vmax=limit, **scale)
    _legend(figure, drawn, list(grid[1]), unit)
    return _png(figure)


def effect_maps(
    clean: np.ndarray,
    attacked: np.ndarray,
    clean_maps: np.ndarray,
    attacked_maps: np.ndarray,
    titles: Sequence[tuple[str, str]],
    unit: str,
) -> bytes:
    """Clean images beside their attacked versions, each with its effect map, all maps on one scale.

    Args:
        clean: (N, height, width, channels) in [0, 1], 1 or 3 channels.
        attacked: The attacked versions, in the same shape.
        clean_maps: Effect maps of the clean images, (N, h, w) or (N, h, w, 1).
        attacked_maps: Those of the attacked ones.
        titles: What stands above each clean image and its attacked version, such as class and probability.
        unit: What the maps show, for the legend.

    Returns:
        A PNG.

    Raises:
        InvalidArgument: No image, or not a version, map and title for every image.

    Example:
        >>> images, maps = np.zeros((1, 8, 8, 3)), np.ones((1, 8, 8))
        >>> titles = [("zebra, p = 0.93", "horse, p = 0.98")]
        >>> effect_maps(images, images, maps, -maps, titles, "change of P(class)")[1:4]
        b'PNG'
    """
    if np.shape(clean) != np.shape(attacked):
        raise InvalidArgument(message("attacked", f"images of shape {np.shape(clean)}", f"shape {np.shape(attacked)}"))
    pairs = {"clean_maps": clean_maps, "attacked_maps": attacked_maps}
    for name, maps in pairs.items():
        _check_pairs(name, maps, clean)
    if len(titles) != len(clean):
        raise InvalidArgument(message("titles", f"a pair of titles for each of {len(clean)} images", len(titles)))
    limit = _limit(clean_maps, attacked_maps)
    size = (6.6, 1.45 * len(clean) + 0.4)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    grid = figure.subplots(len(clean), 4, squeeze=False)
    drawn = None
    for row, title in enumerate(titles):
        for side, (images, maps) in enumerate(((clean, clean_maps), (attacked, attacked_maps))):
            axes = grid[row][2 * side : 2 * side + 2]
            _picture(axes[0], outlined(images[row], None))
            axes[0].set_title(title[side], fontsize=7, color=_INK)
            values = np.reshape(maps[row], np.shape(maps[row])[:2])
            drawn = _picture(axes[1], values, cmap=_SIGNED, vmin=-limit, vmax=limit)
    for column, name in enumerate(("clean", "effect map", "attacked", "effect map")):
        grid[-1][column].set_xlabel(name, fontsize=7.5, color=_INK)
    _legend(figure, drawn, grid.ravel().tolist(), unit)
    return _png(figure)


def roc_curves(attacks: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """ROC curves of detectors, one panel per attack.

    Args:
        attacks: By attack and detector, a curve: `false_positive_rates` and `true_positive_rates` (points,), its area
            `auc` with `low` and `high`, and `chosen`, the false and the true positive rate at the threshold, which is
            marked. Where the area is NaN the legend says that there are too few images.

    Returns:
        A PNG.

    Raises:
        InvalidArgument: There is no attack, or one without a detector.

    Example:
        >>> curve = {"false_positive_rates": [0, 0, 1], "true_positive_rates": [0, 1, 1], "chosen": [0, 1]}
        >>> roc_curves({"fgsm": {"effects": curve | {"auc": 1.0, "low": 0.9, "high": 1.0}}})[1:4]
        b'PNG'
    """
    if not attacks or not all(attacks.values()):
        raise InvalidArgument(message("attacks", "at least one attack, each with at least one detector", "none"))
    longest = max(len(detectors) for detectors in attacks.values())
    figure, grid = _panels(len(attacks), 3.2, 3.1 + 0.16 * longest)
    for axes, (attack, detectors) in zip(grid, attacks.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
        for place, (detector, curve) in enumerate(detectors.items()):
            colour, style = _COLOURS[place % len(_COLOURS)], "-" if place < len(_COLOURS) else "--"
            if np.isnan(curve["auc"]):
                axes.plot([], [], color=colour, ls=style, label=f"{detector}: too few images")
                continue
            interval = "" if np.isnan(curve["low"]) else f" [{curve['low']:.2f}, {curve['high']:.2f}]"
            rates = curve["false_positive_rates"], curve["true_positive_rates"]
            axes.plot(*rates, color=colour, ls=style, lw=1.5, label=f"{detector}: {curve['auc']:.2f}{interval}")
            axes.plot(*curve["chosen"], color=colour, marker="o", ms=4, ls="")
        axes.set_aspect("equal")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"{attack}: area [95 % interval]", fontsize=8, color=_INK)
        axes.set_xlabel("false positive rate", fontsize=7.5)
        axes.set_ylabel("true positive rate", fontsize=7.5)
        axes.legend(fontsize=6.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        _plain(axes)
    return _png(figure)


def _strongest(nodes: Mapping[str, Numbers], most: int) -> dict[str, Numbers]:
    """The nodes with the largest absolute effects, falling; those without one last."""
    strength = {node: -1.0 if np.isnan(one["value"]) else abs(one["value"]) for node, one in nodes.items()}
    names = sorted(nodes, key=lambda node: -strength[node])
    return {node: nodes[node] for node in names[:most]}


def _check_pairs(name: str, maps: np.ndarray, images: np.ndarray) -> None:
    if not len(images):
        raise InvalidArgument(message("images", "at least one image", "none"))
    rank = np.ndim(maps) - (np.ndim(maps) == 4 and np.shape(maps)[-1] == 1)
    if rank != 3 or len(maps) != len(images):
        expected = f"a map for each of {len(images)} images, ({len(images)}, height, width)"
        raise InvalidArgument(message(name, expected, f"shape {np.shape(maps)}"))
    if not np.isfinite(maps).all():
        raise InvalidArgument(message(name, "finite values", "NaN or infinity"))


def _limit(*values: np.ndarray) -> float:
    """Where a scale around 0 ends: the largest absolute value of all, or 1 where all are 0."""
    return max(float(np.abs(each).max()) for each in values) or 1.0


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    columns = min(count, _COLUMNS)
    rows = ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=120, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, list(grid[:count])


def _picture(axes: Any, values: np.ndarray, **scale: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes.imshow(values, interpolation="nearest", **scale)


def _legend(figure: Figure, drawn: Any, beside: list[Any], unit: str) -> None:
    bar = figure.colorbar(drawn, ax=beside, fraction=0.05, pad=0.02, aspect=30)
    bar.set_label(unit, fontsize=7.5, color=_INK)
    bar.ax.tick_params(labelsize=7, colors=_INK, length=2)
    bar.outline.set_visible(False)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7, colors=_INK, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
