"""Pictures with a text for those who cannot see them, and the legends of their colours."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import numpy as np
import streamlit as st

from tfcausal.browsing.overlays import Colours, colour_stops, map_scales, overlaid, to_png, unit_of
from tfcausal.figures import outlined


def show(pixels: np.ndarray, alt: str, caption: str | None = None, side: int = 192, link: str | None = None) -> None:
    """A picture, as wide as its place.

    Args:
        pixels: (height, width, 3) in [0, 1].
        alt: What it shows, in words.
        caption: Text below it.
        side: Smallest length of its longer side, in pixels.
        link: What a click opens, in a new tab.
    """
    show_png(to_png(pixels, side), alt, caption, link)


def show_png(content: bytes, alt: str, caption: str | None = None, link: str | None = None) -> None:
    """A picture that is a PNG already, as wide as its place; see :func:`show`.

    It is sent with the page, and not as a file of its own: Streamlit drops the files of a run that is cut short by the
    next one, and a browser that asks for them meanwhile shows a broken picture from then on.
    """
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    st.image(source, caption=caption, width="stretch", alt=alt, link=link)


def laid_over(
    pictures: np.ndarray, maps: np.ndarray, opacity: float, colours: Colours, shared: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps over their images.

    Args:
        pictures: (n, height, width, channels) in [0, 1].
        maps: Signed maps (n, height, width).
        opacity: Opacity of the strongest colour.
        colours: `signed` or `positive`.
        shared: Whether all maps have one scale.

    Returns:
        The pictures, each (height, width, 3), and the value at which the colours of each end, (n,).
    """
    scales = map_scales(np.maximum(maps, 0.0) if colours == "positive" else maps, shared)
    parts = zip(pictures, maps, scales, strict=True)
    return [overlaid(picture, saliency, scale, opacity, colours) for picture, saliency, scale in parts], scales


def outlined_all(overlays: list[np.ndarray], masks: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Pictures with the outlines of their true masks, where they are known."""
    return [outlined(pixels, mask) for pixels, mask in zip(overlays, masks, strict=True)]


def ends(method: str, colours: Colours, scale: float) -> str:
    """Where the colours of one picture end, with the unit.

    Args:
        method: The saliency method.
        colours: `signed` or `positive`.
        scale: The value at which they end.
    """
    return f"{'±' if colours == 'signed' else '0 to '}{scale:.3g} {unit_of(method)}"


def legend(colours: Colours, method: str | None = None, scales: Sequence[float] | np.ndarray = ()) -> None:
    """What the colours say, with their unit.

    Args:
        colours: `signed` or `positive`.
        method: The saliency method; None where every picture says its own.
        scales: The values at which the colours of the pictures end.
    """
    low, high = (float(np.min(scales)), float(np.max(scales))) if len(scales) else (0.0, 1.0)
    one = bool(np.isclose(low, high, rtol=1e-3))
    end = f"{high:.3g}" if one else "max"
    left, right = (f"−{end}, against the class" if colours == "signed" else "0"), f"+{end}, for the class"
    if method is None:
        note = "max is below every picture"
    else:
        note = f"{method}, {unit_of(method)}" + ("" if one else f"; max is {low:.3g} to {high:.3g}, by picture")
    colour_bar(colours, left, right, note)


def colour_bar(colours: Colours, left: str, right: str, note: str) -> None:
    """What colours say: a bar of them between what its ends are.

    Args:
        colours: `signed` or `positive`.
        left: What the lowest colour is, with its value.
        right: What the highest colour is.
        note: What is shown, with its unit.
    """
    stops = colour_stops(colours)
    left, right, note = (html.escape(text) for text in (left, right, note))
    bar = f"width:12rem;height:0.8rem;border-radius:0.2rem;background:linear-gradient(90deg,{','.join(stops)})"
    st.html(
        f'<div role="img" aria-label="Colours of the maps: from {left} to {right} ({note})" style="display:flex;'
        f'gap:0.75rem;align-items:center;flex-wrap:wrap;font-size:0.875rem"><span>{left}</span>'
        f'<span style="{bar}"></span><span>{right}</span><span>({note})</span></div>'
    )
