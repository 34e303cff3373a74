"""Every view can be taken along: its table, its picture, and a link that opens it again."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from widgets import address

Maker = Callable[[], bytes]


def bar(name: str, table: Callable[[], pd.DataFrame] | None = None, picture: Maker | None = None) -> None:
    """Buttons for the table and the picture of a view, which are made when they are asked for, and its link.

    Args:
        name: Name of the files, without suffix.
        table: Makes the table.
        picture: Makes the picture, a PNG.
    """
    with st.container(horizontal=True, key=f"export-{name}"):
        if picture is not None:
            st.download_button(
                "PNG",
                picture,
                f"{name}.png",
                "image/png",
                key=f"png-{name}",
                on_click="ignore",
                icon=":material/image:",
            )
        if table is not None:

            def as_csv() -> bytes:
                return table().to_csv(index=False).encode()

            st.download_button(
                "CSV", as_csv, f"{name}.csv", "text/csv", key=f"csv-{name}", on_click="ignore", icon=":material/table:"
            )
        with st.popover("Link", icon=":material/link:"):
            st.caption("Opens this view again.")
            st.code(address.link(), language=None, wrap_lines=True)
