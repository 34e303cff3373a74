"""Regions of an image, drawn with the mouse or set by their edges with the keyboard, and kept in the link."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import streamlit as st
from streamlit_drawable_canvas import st_canvas

from tfcausal.browsing.canvas import ADDS, OUTLINE, from_canvas, to_canvas
from tfcausal.browsing.overlays import to_png
from tfcausal.browsing.regions import from_text, tidied, to_text
from tfcausal.data.mask_drawing import Box, Shape
from tfcausal.errors import InvalidArgument
from tfcausal.figures import outlined
from widgets import address

NAME = "region"
TOOLS = {"rectangle": "rect", "brush": "freedraw"}
MOST_REGIONS = 20
SIDE = 352
"""Pixels of the longer side of the picture on the screen."""
_CANVAS, _SHOWN, _DRAWING, _WRONG, _CHOSEN = (
    f"regions-{part}" for part in ("canvas", "shown", "drawing", "wrong", "chosen")
)
_NUMBER = "regions-number"
"""Counts the canvases: what an earlier one still sends, a moment after the mouse was let go, is not heard."""
_EDGES = ("left", "top", "right", "bottom")
Size = tuple[int, int]


def draw(picture: np.ndarray) -> list[Shape]:
    """Let the user draw regions on a picture.

    Args:
        picture: (height, width, channels) in [0, 1].

    Returns:
        The regions, in pixels of the picture.
    """
    size = picture.shape[0], picture.shape[1]
    texts = address.texts(NAME, "Region", _is_region)[:MOST_REGIONS]
    known = [(text, shape) for text in texts if (shape := tidied(from_text(text), size)) is not None]
    places = st.columns(2, vertical_alignment="bottom")
    with places[0]:
        tool = address.segments("draw_with", "Draw with", list(TOOLS))
    with places[1]:
        widest = float(max(2, max(size) // 4))
        width = address.slider("brush_pixels", "Brush (pixels)", 1.0, widest, max(1.0, widest // 4), 1.0, format="%d")
    _canvas(picture, [shape for _, shape in known], TOOLS[tool], width)
    _edit([shape for _, shape in known], size)
    return [shape for _, shape in known]


def _canvas(picture: np.ndarray, shapes: list[Shape], mode: str, brush: float) -> None:
    """The picture to draw on. What was drawn elsewhere, by a link or with the keyboard, is put onto it once."""
    state, (height, width) = st.session_state, picture.shape[:2]
    longer = max(height, width)
    scale = SIDE // longer if longer <= SIDE else SIDE / longer
    across, down = width / round(width * scale), height / round(height * scale)
    now = ([to_text(shape) for shape in shapes], across, down)
    if state.get(_SHOWN) != now:
        _begin_anew()
        state[_SHOWN] = now
    number = state[_NUMBER]
    key = f"{_CANVAS}-{number}"
    # A canvas that the session does not know any more was left with its page, and begins with what is in the link.
    if state.get(_DRAWING, (None,))[0] != number or key not in state:
        state[_DRAWING] = (number, to_canvas(shapes, across, down))
    st_canvas(
        background_image=to_png(outlined(picture, None), SIDE),
        width=round(width * scale),
        height=round(height * scale),
        drawing_mode=mode,
        stroke_width=round(brush / across) if mode == "freedraw" else OUTLINE,
        stroke_color=ADDS,
        fill_color=ADDS,
        initial_drawing={"objects": state[_DRAWING][1]},
        on_change=partial(_drawn, number, (height, width), across, down),
        key=key,
    )
    if state.get(_WRONG):
        st.warning(state[_WRONG], icon=":material/gesture:")


def _begin_anew() -> None:
    """Have the next page show another canvas."""
    st.session_state[_NUMBER] = st.session_state.get(_NUMBER, 0) + 1


def _drawn(number: int, size: Size, across: float, down: float) -> None:
    """A canvas has sent what is on it now."""
    state = st.session_state
    if number != state[_NUMBER]:
        return
    state[_WRONG] = None
    try:
        shapes = from_canvas(state[f"{_CANVAS}-{number}"]["drawing"]["raw"]["objects"], across, down)
    except (InvalidArgument, KeyError, TypeError) as error:
        state[_WRONG] = f"What was drawn cannot be used: {error}"
        return
    kept = [tidy for shape in shapes if (tidy := tidied(shape, size)) is not None]
    if len(kept) > MOST_REGIONS:
        state[_WRONG] = f"At most {MOST_REGIONS} regions are kept: the first ones."
    texts = [to_text(shape) for shape in kept[:MOST_REGIONS]]
    state[_SHOWN] = (texts, across, down)
    state.pop(_CHOSEN, None)
    address.change(NAME, texts)


def _edit(shapes: list[Shape], size: Size) -> None:
    """The regions by keyboard: which, its edges, and buttons to add and remove."""
    state, chosen = st.session_state, len(shapes) - 1
    if len(shapes) > 1:
        numbers = list(range(1, len(shapes) + 1))
        if state.get(_CHOSEN) not in numbers:
            state[_CHOSEN] = numbers[-1]
        chosen = st.segmented_control("Region", numbers, key=_CHOSEN, required=True) - 1
    if shapes and isinstance(shapes[chosen], Box):
        for place, edge in zip(st.columns(4), _EDGES, strict=True):
            last = size[1] if edge in ("left", "right") else size[0]
            low, high = (1, last) if edge in ("right", "bottom") else (0, last - 1)
            state[_key(edge)] = int(getattr(shapes[chosen], edge))
            changed = {"on_change": _moved, "args": (edge, shapes, chosen)}
            place.number_input(edge.capitalize(), low, high, step=1, required=True, key=_key(edge), **changed)
    with st.container(horizontal=True):
        full = len(shapes) >= MOST_REGIONS
        st.button("Add a rectangle", icon=":material/add_box:", on_click=_add, args=(shapes, size), disabled=full)
        settings = {"disabled": not shapes, "on_click": _keep}
        rest = [shape for number, shape in enumerate(shapes) if number != chosen]
        st.button("Remove it", icon=":material/remove:", args=(rest,), **settings)
        st.button("Remove all", icon=":material/delete:", args=([],), **settings)


def _moved(edge: str, shapes: list[Shape], chosen: int) -> None:
    """An edge was set, unless the regions have become others since the inputs were drawn."""
    state = st.session_state
    value, box = state.get(_key(edge)), shapes[chosen]
    if value is None or not isinstance(box, Box) or state.get(_SHOWN, ([],))[0] != list(map(to_text, shapes)):
        return
    try:
        _keep([*shapes[:chosen], replace(box, **{edge: value}), *shapes[chosen + 1 :]])
        state[_WRONG] = None
    except InvalidArgument as error:
        state[_WRONG] = str(error)


def _add(shapes: list[Shape], size: Size) -> None:
    height, width = size
    middle = Box(width // 4, height // 4, max(width - width // 4, 1), max(height - height // 4, 1))
    st.session_state.pop(_CHOSEN, None)
    _keep([*shapes, middle])


def _keep(shapes: list[Shape]) -> None:
    _begin_anew()
    address.change(NAME, [to_text(shape) for shape in shapes])


def _is_region(text: str) -> bool:
    try:
        from_text(text)
    except InvalidArgument:
        return False
    return True


def _key(edge: str) -> str:
    return f"regions-{edge}"
