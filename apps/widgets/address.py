"""Choices that the page's link carries: a widget for each kind, whose value is kept in the query parameters.

A choice is remembered when the user changes the page and comes back. What a link says is checked like any other input:
a value that is not among the options is said to be unknown, and the default is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from widgets.wording import plain

_REMEMBERED, _WRITTEN, _FRESH, _SHOWN, _BUSY, _PAGE = (
    f"address-{part}" for part in ("remembered", "written", "fresh", "shown", "busy", "page")
)
NONE = "-"
"""What a link says for no option."""
_NOT_HERE = ":material/link_off:"


_runs = {"number": 0}


def note_run() -> None:
    """Note that a script runs; its first statement, before Streamlit can end it: callbacks have been called by then."""
    _runs["number"] += 1


def run_number() -> int:
    """How many scripts have been run, of all sessions: callbacks that find the same number were called together."""
    return _runs["number"]


def begin(page: str) -> None:
    """Read the link; before the first widget of a page.

    Args:
        page: The path of the page.
    """
    state = st.session_state
    if state.get(_PAGE, page) != page:
        for key in [key for key in state if str(key).startswith(_key(""))]:
            del state[key]  # of widgets of the page before, which Streamlit forgets; what was chosen is remembered
    state[_PAGE] = page
    now = {name: st.query_params.get_all(name) for name in st.query_params}
    # A click that was faster than the new link comes with the old one: then the click counts.
    clicked = any(
        _key(name) in state and _texts(state[_key(name)]) != texts for name, texts in state.get(_SHOWN, {}).items()
    )
    state[_FRESH] = set(now) if now != state.get(_WRITTEN) and not clicked else set()
    state.setdefault(_REMEMBERED, {}).update({name: now[name] for name in state[_FRESH]})
    state[_SHOWN] = {}
    state[_BUSY] = True


def write() -> None:
    """Put the choices of the page into the link; after its last widget."""
    state = st.session_state
    state[_FRESH] = set()
    state[_BUSY] = False
    state[_WRITTEN] = dict(state.get(_SHOWN, {}))
    if {name: st.query_params.get_all(name) for name in st.query_params} != state[_WRITTEN]:
        st.query_params.from_dict(state[_WRITTEN])


def update() -> None:
    """Put the choices of a fragment into the link; after its last widget. Does nothing while the whole page runs."""
    if not st.session_state.get(_BUSY, False):
        write()


def link() -> str:
    """The link that opens this view again."""
    shown = st.session_state.get(_SHOWN, {})
    base = str(st.context.url or "").split("?")[0]
    return f"{base}?{urlencode(shown, doseq=True)}" if shown else base


def link_to(page: str, **choices: object) -> str:
    """The link from one page to another one.

    Args:
        page: The path of the page.
        **choices: By name.
    """
    return f"{page}?{urlencode({name: _texts(value) for name, value in choices.items()}, doseq=True)}"


def remember(**choices: object) -> None:
    """Make choices for a page that is shown next.

    Args:
        **choices: By name; None leaves a choice as it is.
    """
    for name, value in choices.items():
        if value is not None:
            st.session_state.setdefault(_REMEMBERED, {})[name] = _texts(value)
            st.session_state.pop(_key(name), None)


def remembered(name: str) -> str | None:
    """What was chosen last, or what the link says; unchecked."""
    texts = st.session_state.get(_REMEMBERED, {}).get(name)
    return texts[0] if texts else None


def select(name: str, label: str, options: Sequence[str], default: str | None = None, **settings: Any) -> str:
    """One of several options, from a list.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        options: At least one.
        default: The option that is chosen at first; the first one if None, or if there is no such option.
        **settings: Of the widget.
    """
    first = _prepare_option(name, label, options, default)
    return _record(name, st.selectbox(label, options, key=_key(name), **settings) or first)


def optional(name: str, label: str, options: Sequence[str], **settings: Any) -> str | None:
    """One of several options, or none, which is the default; see :func:`select`."""
    names = {NONE: settings.pop("nothing", "none")}
    shown = settings.pop("format_func", str)
    chosen = select(
        name, label, [NONE, *options], format_func=lambda key: names.get(key) or str(shown(key)), **settings
    )
    return None if chosen == NONE else chosen


def segments(name: str, label: str, options: Sequence[str], default: str | None = None, **settings: Any) -> str:
    """One of a few options, side by side; see :func:`select`."""
    first = _prepare_option(name, label, options, default)
    shown = settings.pop("format_func", str)
    chosen = st.segmented_control(
        label, options, key=_key(name), required=True, format_func=lambda option: plain(shown(option)), **settings
    )
    return _record(name, chosen or first)


def several(name: str, label: str, options: Sequence[str], default: Sequence[str] = (), **settings: Any) -> list[str]:
    """Any number of options.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        options: The options.
        default: Those that are chosen at first.
        **settings: Of the widget.
    """

    def known(texts: Sequence[str]) -> list[str] | None:
        found = [text for text in texts if text in options]
        return found if found or list(texts) == [NONE] else None

    first = [option for option in default if option in options]
    _prepare(name, label, first, known, lambda values: all(value in options for value in values))
    chosen = list(st.multiselect(label, options, key=_key(name), **settings))
    return _record(name, chosen)


def slider(name: str, label: str, low: float, high: float, default: float, step: float, **settings: Any) -> float:
    """A number in a range.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        low: Smallest value.
        high: Largest value.
        default: The value at first.
        step: Distance of two values.
        **settings: Of the widget.
    """

    def known(value: float) -> float | None:
        return round(round(value / step) * step, 9) if low <= value <= high else None

    _prepare_number(name, label, (low, high), default, known)
    return _record(name, st.slider(label, low, high, step=step, key=_key(name), **settings))


def number(name: str, label: str, low: int, high: int, default: int, **settings: Any) -> int:
    """A whole number, to be typed or stepped.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        low: Smallest value.
        high: Largest value.
        default: The value at first.
        **settings: Of the widget.
    """

    def known(value: float) -> int | None:
        return int(value) if value.is_integer() and low <= value <= high else None

    _prepare_number(name, label, (low, high), default, known)
    return _record(name, st.number_input(label, low, high, step=1, key=_key(name), **settings))


def switch(name: str, label: str, default: bool = False, **settings: Any) -> bool:
    """On or off.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        default: Whether it is on at first.
        **settings: Of the widget.
    """
    _prepare(name, label, default, lambda texts: {"True": True, "False": False}.get(texts[0]))
    return _record(name, st.toggle(label, key=_key(name), **settings))


def text(name: str, label: str, default: str, **settings: Any) -> str:
    """Free text, which the page has to check.

    Args:
        name: Name of the query parameter.
        label: Label of the widget.
        default: The text at first.
        **settings: Of the widget.
    """
    _prepare(name, label, default, lambda texts: texts[0])
    return _record(name, st.text_input(label, key=_key(name), **settings))


def texts(name: str, label: str, valid: Callable[[str], bool]) -> list[str]:
    """Texts that no widget holds: the page shows them in its own way, and callbacks :func:`change` them.

    Args:
        name: Name of the query parameter.
        label: What they are called where a link has others.
        valid: Whether a text can be used.
    """

    def known(found: Sequence[str]) -> list[str] | None:
        kept = [text for text in found if valid(text)]
        return kept if kept or list(found) == [NONE] else None

    _prepare(name, label, [], known, lambda values: all(map(valid, values)))
    return _record(name, list(st.session_state[_key(name)]))


def held(name: str, label: str, default: str, valid: Callable[[str], bool]) -> str:
    """A text that no widget holds: the page shows it in its own way, and sets it by :func:`hold`.

    Args:
        name: Name of the query parameter.
        label: What it is called where a link has another one.
        default: The text at first.
        valid: Whether a text can be used.
    """
    _prepare(name, label, default, lambda texts: texts[0] if valid(texts[0]) else None, valid)
    return _record(name, st.session_state[_key(name)])


def hold(name: str, value: str) -> str:
    """Set a text that no widget holds, for the link, too.

    Args:
        name: Name of the query parameter.
        value: The text.
    """
    st.session_state[_key(name)] = value
    return _record(name, value)


def pages(name: str, count: int, of: object) -> int:
    """Which page of many is shown, from 0; the first one again when something else is shown.

    Args:
        name: Name of the query parameter.
        count: Number of pages, at least 1.
        of: What is shown, to be compared with what was shown before.
    """
    anew(name, of)
    _prepare_number(name, "page", (1, count), 1, lambda value: min(max(int(value), 1), count))
    return _record(name, st.pagination(count, key=_key(name))) - 1


def anew(name: str, of: object, keep: Callable[[str], bool] | None = None) -> None:
    """Forget a choice, unless the link has it, when it is about something else than before; before its widget.

    Args:
        name: Name of the query parameter.
        of: What the choice is about.
        keep: Whether a text can stay; then what was chosen on another page is forgotten, too, if it cannot.
    """
    state, before = st.session_state, f"address-of-{name}"
    other = state.get(before, of) != of or (keep is not None and _key(name) not in state)
    state[before] = of
    if other and name not in state.get(_FRESH, ()) and not (keep is not None and keep(remembered(name) or "")):
        state.get(_REMEMBERED, {}).pop(name, None)
        state.pop(_key(name), None)


def change(name: str, value: object) -> None:
    """Change a choice; only in the callback of a widget.

    Args:
        name: Name of the query parameter.
        value: What the widget of this name is to have.
    """
    st.session_state[_key(name)] = value


def _prepare_option(name: str, label: str, options: Sequence[str], default: str | None) -> str:
    """Prepare the choice of one of several options; gives the one at first."""
    first = default if default in options else options[0]
    _prepare(name, label, first, lambda texts: texts[0] if texts[0] in options else None, list(options).__contains__)
    return first


def _prepare_number(
    name: str, label: str, ends: tuple[float, float], default: float, known: Callable[[float], float | None]
) -> None:
    """Prepare the choice of a number; `known` gives the one that a link's stands for, or None."""

    def read(texts: Sequence[str]) -> float | None:
        value = _number(texts[0])
        return None if value is None else known(value)

    _prepare(name, label, default, read, lambda value: ends[0] <= value <= ends[1])


def _prepare(
    name: str,
    label: str,
    default: Any,
    known: Callable[[Sequence[str]], Any],
    valid: Callable[[Any], bool] = lambda value: True,
) -> None:
    """Give a widget the value of the link, or the one that was chosen last, if it has none that is valid."""
    state, key = st.session_state, _key(name)
    linked = name in state.get(_FRESH, ())
    if key in state and not linked and valid(state[key]):
        return
    texts = state.get(_REMEMBERED, {}).get(name)
    value = known(texts) if texts else None
    if texts and value is None and (linked or key in state):  # what was chosen on another page need not be here
        unknown = " ".join(", ".join(text[:60] for text in texts[:6]).replace("`", "'").split())
        st.warning(f"There is no {label.lower()} `{unknown}` here; this is the view without it.", icon=_NOT_HERE)
    state[key] = default if value is None else value


def _record(name: str, value: Any) -> Any:
    state = st.session_state
    state.setdefault(_SHOWN, {})[name] = state.setdefault(_REMEMBERED, {})[name] = _texts(value)
    return value


def _texts(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(entry) for entry in value] or [NONE]
    return [f"{value:.6g}" if isinstance(value, float) else str(value)]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None


def _key(name: str) -> str:
    return f"choice-{name}"
