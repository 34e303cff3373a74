"""What every page has around it: title, one line that explains it, errors in the user's terms, the choice of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import streamlit as st

from tfcausal.browsing.runs import RunSummary
from tfcausal.browsing.stored_split import StoredSplit, split_names
from tfcausal.errors import RunError, TfCausalError
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


def choose_model(places: Sequence[AbstractContextManager]) -> tuple[cached.Run, StoredSplit, str] | None:
    """Let the user choose a run, a split of it and a model that was measured on it; says so if there is none.

    Args:
        places: Where the three widgets go.
    """
    runs = measured_runs()
    if not runs:
        return None
    with places[0]:
        key = choose_run(runs)
    with places[1]:
        names = split_names(cached.open_run(key))
        split = cached.split(key, address.select("split", "Split", names, format_func=spoken))
    if not split.models:
        st.info("No model was measured on this split.", icon=":material/info:")
        return None
    with places[2]:
        return key, split, address.select("model", "Model", split.models)


def choose_image(split: StoredSplit) -> int:
    """Let the user choose an image by its name, or the one before or behind it; gives its position.

    Args:
        split: The split that it is in.
    """
    places = st.columns([1, 4, 1], vertical_alignment="bottom")
    address.anew("image", (split.path, split.name), split.__contains__)  # a name of another split need not be here
    with places[1]:
        name = address.text("image", "Image", split.names[0], help="Its name, as on the page Images.")
    position, last = split.find(name), len(split) - 1
    for place, label, icon, there in (
        (places[0], "Previous", ":material/chevron_left:", max(position - 1, 0)),
        (places[2], "Next", ":material/chevron_right:", min(position + 1, last)),
    ):
        settings = {"width": "stretch", "on_click": address.change, "args": ("image", split.names[there])}
        place.button(label, icon=icon, disabled=there == position, **settings)
    return position


def image_facts(split: StoredSplit, position: int) -> str:
    """The name of an image, its class, and its planted context where it has one, as Markdown.

    Args:
        split: The split that it is in.
        position: Its position.
    """
    text = f"**{plain(split.names[position])}** · class **{plain(split.class_names[int(split.labels[position])])}**"
    contexts, agrees = split.column("contexts"), split.column("context_agrees")
    if contexts is not None:
        text += f" · context: {plain(split.context_names[int(contexts[position])])}"
    if agrees is not None:
        text += ", agrees" if agrees[position] else ", conflicts"
    return text


def check_images(split: StoredSplit) -> None:
    """Raise `RunError` unless the run kept the images, which models need."""
    if not split.has_images:
        raise RunError("This run is of a release that kept no images, which models need: run it again.")


def spoken(name: str) -> str:
    """A name of the code in words."""
    return name.replace("_", " ")
