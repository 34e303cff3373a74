"""Files that the user hands over to the explorer, or a sample in their place."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from tfcausal.browsing.stored_split import split_names
from tfcausal.browsing.uploads import LIMITS, LeftOut
from tfcausal.errors import TfCausalError
from widgets import address, cached, frame
from widgets import cached_own_images as own
from widgets.cached_own_images import Picture
from widgets.wording import plain

ALL = "-"
"""Stands for all images in the choice of one."""
_MOST_NAMED = 8


def choose_images(key: cached.Run | None) -> list[Picture]:
    """Let the user hand over files, or take a sample.

    Args:
        key: The run whose images can be taken; None if there is none.
    """
    most = f"at most {LIMITS.files} images of {LIMITS.file_bytes // 2**20} MB and {LIMITS.pixels / 1e6:g} megapixels"
    places = st.columns(2)
    for place, kind, label, several in zip(
        places, ("files", "folder"), ("Images (PNG, JPEG)", "A folder of them"), (True, "directory"), strict=True
    ):
        with place:
            st.file_uploader(
                label,
                type=None if kind == "files" else ["png", "jpg", "jpeg"],  # what a file is, its content says
                accept_multiple_files=several,
                key=own.uploader_key(kind),
                on_change=own.take,
                args=(kind,),
                help=most,
            )
    shown = own.uploaded()
    split = None if key is None else sampled_split(key)
    with st.container(horizontal=True, vertical_alignment="center"):
        if key is not None and split is not None:
            text = f"{own.SAMPLE} images of the {frame.spoken(split)} split"
            if address.switch("sample", plain(text), help="A sample to try, without files of your own."):
                shown = [*own.sample(key, split), *shown]
        if own.held() or own.left_out():
            st.button("Remove my images", icon=":material/delete:", on_click=drop)
    return shown


def sampled_split(key: cached.Run) -> str | None:
    """The split that a sample is taken of: the test split, or another one; None if the run kept no images."""
    try:
        names = split_names(cached.open_run(key))
        chosen = "test" if "test" in names else names[0]
        return chosen if cached.split(key, chosen).has_images else None
    except (TfCausalError, IndexError):  # a sample is an offer; the page is of use without one
        return None


def drop() -> None:
    """Forget every file that was handed over."""
    own.drop()
    address.change("picture", ALL)


def show_left_out(left: Sequence[LeftOut]) -> None:
    """Say which files are not shown, and why.

    Args:
        left: The files.
    """
    if not left:
        return
    lines = [f"- **{plain(file.name)}**: {plain(file.reason)}" for file in left[:_MOST_NAMED]]
    if len(left) > _MOST_NAMED:
        lines.append(f"- and {len(left) - _MOST_NAMED} more")
    what = "file is" if len(left) == 1 else "files are"
    st.warning("\n".join([f"{len(left)} {what} left out:", "", *lines]), icon=":material/image_not_supported:")
