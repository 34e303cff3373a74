"""What Keras and TensorFlow have made ready stays between the runs of a page.

Streamlit calls `keras.backend.clear_session` after every run of a script, for models that are made anew in each. Here
they are kept: every compiled function would be made ready again in the next run (a quarter of a second for a network of
five convolutions), and the names and scopes of Keras would go while another session or the background builds a model.
"""

from __future__ import annotations

import sys


def keep() -> None:
    """Have the end of a run leave Keras as it is; to be called in every run, as Keras is imported when it is needed."""
    keras = sys.modules.get("keras")
    if hasattr(keras, "backend"):
        keras.backend.clear_session = _leave


def _leave(free_memory: bool = True) -> None:
    """Do nothing."""
