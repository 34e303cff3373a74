"""What every page has around it: title, one line that explains it, errors in the user's terms, the choice of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from tfcausal.browsing.runs import RunSummary
from tfcausal.errors import TfCausalError
from widgets import address, cached
from widgets.wording import plain

STATES = {"complete": "●", "running": "◐", "stopped": "◌", "failed": "✕", "broken": "✕"}


@contextmanager
def page(title: str, about: str) -> Iterator[None]:
    """A page: what goes wrong in it for a known reason is shown as a message, and the navigation stays.

    Args:
        title: Its title.
        about: One line that explains it.
    """
    st.title(title, anchor=False)
    st.caption(about)
    with shown_errors():
        yield


@contextmanager
def shown_errors() -> Iterator[None]:
    """A part of a page: an error that tfcausal raises on purpose is shown in its place."""
    try:
        yield
    except TfCausalError as error:
        problem(error)


def problem(text: object) -> None:
    """Say what went wrong.

    Args:
        text: An error, or a sentence; what it quotes from files and links is shown as it is.
    """
    st.error(plain(str(text).replace("`", "'")), icon=":material/error:")


def measured_runs() -> list[RunSummary]:
    """The runs that have images to show, those that are complete first; says so if there are none."""
    folder = cached.folder().path
    runs = [run for run in cached.summaries() if (folder / run.name / "maps.zarr").is_dir()]
    if not runs:
        st.info("No run has measured images yet. The page **Runs** shows how far they are.", icon=":material/info:")
    return sorted(runs, key=lambda run: run.state != "complete")


def choose_run(runs: list[RunSummary], name: str = "run", label: str = "Run") -> cached.Run:
    """Let the user choose a run.

    Args:
        runs: At least one.
        name: Name of the query parameter.
        label: Label of the widget.
    """
    states = {run.name: run.state for run in runs}
    chosen = address.select(
        name,
        label,
        list(states),
        cached.folder().chosen,
        format_func=lambda run: run if states[run] == "complete" else f"{run} ({states[run]})",
    )
    return cached.run_key(chosen)


def spoken(name: str) -> str:
    """A name of the code in words."""
    return name.replace("_", " ")
