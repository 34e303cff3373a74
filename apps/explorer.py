"""The explorer: `streamlit run apps/explorer.py`, or `tfcausal explore RUNS_FOLDER`.

The folder of runs is that of the environment variable TFCAUSAL_RUNS, or `runs` in the current folder. A page is a file
in `views/` and a line in `PAGES`.
"""

import os

import numpy as np
import streamlit as st
from PIL import Image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from widgets import address, cached, keras_state

address.note_run()
PAGES = [
    st.Page("views/runs.py", title="Runs", icon=":material/list:", url_path="runs", default=True),
    st.Page("views/images.py", title="Images", icon=":material/grid_view:", url_path="images"),
    st.Page("views/one_image.py", title="One image", icon=":material/image_search:", url_path="one_image"),
    st.Page("views/intervene.py", title="Intervene", icon=":material/science:", url_path="intervene"),
    st.Page("views/effects.py", title="Effects", icon=":material/account_tree:", url_path="effects"),
    st.Page("views/masks.py", title="Masks", icon=":material/draw:", url_path="masks"),
    st.Page("views/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
    st.Page("views/own_images.py", title="Own images", icon=":material/upload:", url_path="own_images"),
]

# A picture of its own in the browser's tab: those of Material would be fetched from another site.
ICON = np.kron(np.array([[1, 1, 1, 1], [1, 0, 2, 1], [1, 0, 2, 1], [1, 1, 1, 1]]), np.ones((8, 8), int))
COLOURS = np.array([[230, 159, 0], [0, 98, 143], [255, 255, 255]], np.uint8)
st.set_page_config(page_title="tfcausal", page_icon=Image.fromarray(COLOURS[ICON]), layout="wide")
page = st.navigation(PAGES)
address.begin(page.url_path)
cached.touch()
try:
    page.run()
finally:  # also where a page is left for another one
    keras_state.keep()
address.write()
cached.touch()
