"""What the pages read, kept between reruns and sessions in caches of bounded size.

A run is known by its name and its version, which changes when its files do: what is kept is never out of date.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from importlib import import_module
from threading import Thread, main_thread
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.image_table import attention_change, disagreement, image_table
from tfcausal.browsing.runs import RunsFolder, RunSummary
from tfcausal.browsing.stored_split import StoredSplit
from tfcausal.errors import TfCausalError
from tfcausal.explorer_command import RUNS_VARIABLE
from tfcausal.runs import RunDirectory

if TYPE_CHECKING:
    from tfcausal.browsing.classifier import LogitParts, RunClassifier

FIRST_METHODS = ("wbp", "lrp.epsilon_plus", "integrated_gradients", "grad_cam")
"""The methods that the page of one image shows at first."""
_SECONDS_OF_REST = 2.0
_clicks = {"last": 0.0}
Run = tuple[str, str, str]
"""Folder, name and version of a run."""


def folder() -> RunsFolder:
    """The folder of runs that the explorer was started on."""
    return RunsFolder(os.environ.get(RUNS_VARIABLE, "runs"))


def run_key(name: str) -> Run:
    """What a run is known by in the caches."""
    runs = folder()
    return str(runs.path), name, runs.version(name)


@st.cache_resource(max_entries=64, show_spinner=False)
def open_run(key: Run) -> RunDirectory:
    """Open a run; its configuration is read once."""
    return RunsFolder(key[0]).open(key[1])


def summaries() -> list[RunSummary]:
    """All runs of the folder; those that changed are read again."""
    runs = folder()
    listed = []
    for name in runs.names():
        version = runs.version(name)
        summary = _summary((str(runs.path), name, version))
        listed.append(runs.refreshed(summary))  # whether a process still works on it does not show in its files
    return listed


@st.cache_data(max_entries=1000, show_spinner=False)
def _summary(key: Run) -> RunSummary:
    return RunsFolder(key[0]).summary(key[1])


@st.cache_resource(max_entries=16, show_spinner=False)
def split(key: Run, name: str) -> StoredSplit:
    """A split of a run."""
    return StoredSplit(open_run(key), name)


@st.cache_resource(max_entries=12, show_spinner="Reading what is known of the images")
def table(key: Run, split_name: str, model: str) -> pd.DataFrame:
    """What is known of every image, for a model; not to be changed."""
    return image_table(split(key, split_name), model)


@st.cache_resource(max_entries=12, show_spinner="Comparing answers")
def answer_distances(key: Run, model: str, other_key: Run, other: str, split_name: str) -> np.ndarray:
    """How far the answers of two models differ; not to be changed."""
    return disagreement(split(key, split_name), model, split(other_key, split_name), other)


@st.cache_resource(max_entries=12, show_spinner="Comparing maps")
def attention_distances(key: Run, model: str, other_key: Run, other: str, split_name: str) -> np.ndarray:
    """How far apart two models look; not to be changed."""
    return attention_change(split(key, split_name), model, split(other_key, split_name), other)


@st.cache_resource(max_entries=4, show_spinner=False)
def classifier(key: Run, model: str) -> RunClassifier:
    """A trained model of a run."""
    from tfcausal.browsing.classifier import RunClassifier

    return RunClassifier(open_run(key), model)


@st.cache_data(max_entries=256, max_size="128mb", show_spinner=False)
def maps(
    key: Run, split_name: str, model: str, method: str, positions: tuple[int, ...], classes: tuple[int, ...]
) -> np.ndarray:
    """Maps of some images for given classes: the stored ones where the run has them, else computed.

    Returns:
        Signed maps, float32 (n, height, width).
    """
    stored = split(key, split_name)
    if method == stored.method and classes == tuple(stored.probabilities(model, positions).argmax(axis=1).tolist()):
        return stored.maps(model, positions)
    return classifier(key, model).maps(method, stored.images(positions), classes)


@st.cache_data(max_entries=256, show_spinner="Taking the logits apart")
def logit_parts(key: Run, split_name: str, model: str, position: int) -> LogitParts:
    """The largest logits for an image, taken apart into pixels and biases."""
    return classifier(key, model).logit_parts(split(key, split_name).images([position])[0])


@st.cache_data(max_entries=256, show_spinner="Deleting pixels")
def deletion_curves(
    key: Run, split_name: str, model: str, methods: tuple[str, ...], position: int, class_index: int
) -> np.ndarray:
    """Deletion curves of an image by the maps of some methods, and at last in random order, (n + 1, steps + 1)."""
    every = [maps(key, split_name, model, method, (position,), (class_index,)) for method in methods]
    image = split(key, split_name).images([position])[0]
    nothing = np.zeros((0, *image.shape[:2]), np.float32)
    return classifier(key, model).deletion_curves(image, np.concatenate([nothing, *every]))


def touch() -> None:
    """Note that a page is drawn; what works in the background waits until nobody clicks."""
    _clicks["last"] = time.monotonic()


@st.cache_resource(max_entries=8, show_spinner=False)
def warm_up(key: Run, split_name: str, model: str) -> None:
    """Load a model and compile its first methods in the background, once, so that the first image opens soon."""
    Thread(target=_prepare, args=(key, split_name, model)).start()


def _prepare(key: Run, split_name: str, model: str) -> None:
    for step in (_import_tensorflow, lambda: _prepare_model(key, split_name, model)):
        while time.monotonic() - _clicks["last"] < _SECONDS_OF_REST:
            if not main_thread().is_alive():
                return
            time.sleep(0.2)
        step()


def _import_tensorflow() -> None:
    import_module("tfcausal.browsing.classifier")


def _prepare_model(key: Run, split_name: str, model: str) -> None:
    with suppress(TfCausalError):  # the page that needs it says what is wrong
        stored = split(key, split_name)
        classifier(key, model).prepare([*dict.fromkeys([stored.method, *FIRST_METHODS])], stored.images([0])[0])
