"""What the page of masks reads, kept between reruns in caches of bounded size; see `cached.py`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image

from tfcausal.browsing.mask_sample import (
    Sampled,
    data_folder,
    lowest_energy,
    mask_energies,
    parts_of,
    random_sample,
)
from tfcausal.browsing.overlays import to_png
from tfcausal.data.mask_folder import MaskFolder, Picture, folder_version
from tfcausal.errors import TfCausalError
from tfcausal.explorer_command import MASKS_VARIABLE, STARTED_VARIABLE
from tfcausal.figures import outlined
from widgets import cached

Folder = tuple[str, tuple[str, ...], str]
"""A folder of images, the classes that are left out, and its version."""
ALL = "all"
_HIGHEST = 0.75  # of the width that a picture may have, so that it fits on the screen
_ENLARGED = 2.0  # from here on, each pixel of a small picture is shown as a square


def given() -> Path | None:
    """The folder that `tfcausal mask` was started on."""
    path = os.environ.get(MASKS_VARIABLE)
    return Path(path) if path else None


def folder_key(root: Path, exclude_classes: tuple[str, ...] = ()) -> Folder:
    """What a folder is known by in the caches."""
    return str(root), exclude_classes, folder_version(root)


@st.cache_resource(max_entries=4, show_spinner="Listing the images")
def folder(key: Folder) -> MaskFolder:
    """The images of a folder; not to be changed."""
    return MaskFolder(key[0], key[1])


def runs_by_folder() -> dict[Path, list[str]]:
    """The runs that were trained on a folder of images, by the folder; those that are complete first."""
    found: dict[Path, list[str]] = {}
    for run in sorted(cached.summaries(), key=lambda run: run.state != "complete"):
        if run.state != "broken" and (path := _data_folder(cached.run_key(run.name), _started_in())) is not None:
            found.setdefault(Path(path), []).append(run.name)
    return found


@st.cache_data(max_entries=1000, show_spinner=False)
def _data_folder(key: cached.Run, start: str) -> str | None:
    try:
        path = data_folder(cached.open_run(key), Path(start))
    except TfCausalError:  # it became broken since it was listed
        return None
    return None if path is None else str(path)


def spelled(path: Path) -> str:
    """A folder as it was given on the command line, where it lies in the folder that the command was given in."""
    start = Path(_started_in())
    return str(path.relative_to(start) if path.is_relative_to(start) else path)


def _started_in() -> str:
    return os.environ.get(STARTED_VARIABLE, str(Path.cwd()))


@st.cache_resource(max_entries=4, show_spinner=False)
def parts(key: Folder, run: cached.Run | None) -> dict[str, str]:
    """`train`, `validation` or `test` by name of the image, as far as it is known; not to be changed."""
    images = list(folder(key).images.values())
    return parts_of(images, None if run is None else cached.open_run(run))


@st.cache_resource(max_entries=8, show_spinner="Choosing images")
def sample(
    key: Folder, run: cached.Run | None, part: str, model: str | None, count: int, seed: int
) -> tuple[Sampled, ...]:
    """The images to draw on: those of lowest mask energy of a model, or at random if it is None."""
    names = parts(key, run)
    images = [image for name, image in folder(key).images.items() if part == ALL or names.get(name) == part]
    if run is not None and model is not None:
        return lowest_energy(images, energies(run, model), count, seed)
    return random_sample(images, count, seed)


@st.cache_resource(max_entries=8, show_spinner="Reading mask energies")
def energies(run: cached.Run, model: str) -> dict[str, float]:
    """Mask energies of a model by name of the image; not to be changed."""
    return mask_energies(cached.open_run(run), model)


def picture(key: Folder, name: str, side: int) -> Picture:
    """An image, not larger than asked for; not to be changed."""
    return _picture(key, name, _changed(folder(key).find(name).path), side)


@st.cache_resource(max_entries=4, show_spinner="Reading the image")
def _picture(key: Folder, name: str, version: int, side: int) -> Picture:
    return folder(key).picture(name, side)


def kept_mask(key: Folder, name: str, side: int) -> tuple[np.ndarray, float] | None:
    """The mask that an image has on disk, in the size of its picture, and its share of the image; None if none."""
    path = folder(key).mask_path(name)
    return _kept_mask(key, name, _changed(path), side) if folder(key).has_mask(name) else None


@st.cache_resource(max_entries=4, show_spinner=False)
def _kept_mask(key: Folder, name: str, version: int, side: int) -> tuple[np.ndarray, float] | None:
    shown = picture(key, name, side)
    whole, small = (folder(key).mask(name, size) for size in (shown.size, shown.pixels.shape[:2]))
    return None if whole is None or small is None else (small, float(whole.mean()))


def background(key: Folder, name: str, side: int, with_mask: bool) -> tuple[bytes, int, int]:
    """What is drawn on: an image as a PNG, with the outline of the mask that it has, and its width and height."""
    found = folder(key)
    versions = (_changed(found.find(name).path), _changed(found.mask_path(name)) if with_mask else 0)
    return _background(key, name, versions, side)


@st.cache_data(max_entries=8, max_size="64mb", show_spinner=False)
def _background(key: Folder, name: str, versions: tuple[int, int], side: int) -> tuple[bytes, int, int]:
    shown = picture(key, name, side)
    kept = kept_mask(key, name, side) if versions[1] else None
    pixels = outlined(shown.pixels, None if kept is None else kept[0])
    factor = min(side / pixels.shape[1], _HIGHEST * side / pixels.shape[0])
    height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
    way = Image.Resampling.NEAREST if factor >= _ENLARGED else Image.Resampling.BICUBIC
    coloured = Image.fromarray(np.round(pixels * 255).astype(np.uint8)).resize((width, height), way)
    return to_png(np.asarray(coloured) / 255, 1), width, height


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
