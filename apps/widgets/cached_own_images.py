"""What the page of one's own images reads and computes. Pictures are kept in the session alone, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from tfcausal.browsing.uploads import LeftOut, Upload, admit
from tfcausal.errors import DataError, TfCausalError
from tfcausal.explorer_command import MODEL_VARIABLE
from tfcausal.runs import RunDirectory
from widgets import cached, cached_effects, cached_intervening

if TYPE_CHECKING:
    from tfcausal.browsing.classifier import LoadedClassifier, LogitParts
    from tfcausal.browsing.concept_levels import Level
    from tfcausal.browsing.image_model import ImageModel

SAMPLE = 8
_HELD, _LEFT, _ANSWERS, _ROUND = (f"own-images-{part}" for part in ("held", "left", "answers", "round"))
_BATCH = 32
_MOST_ANSWERS = 5000


@dataclass(frozen=True)
class Subject:
    """The model that is shown one's own images.

    Attributes:
        key: What it is known by in the caches.
        name: Its name.
        classifier: What answers and explains.
        model: What it takes and gives.
        shape: (height, width, channels) of its images.
        levels: Its levels whose concepts were learned.
    """

    key: tuple[str, ...]
    name: str
    classifier: LoadedClassifier
    model: ImageModel
    shape: tuple[int, int, int]
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image to show: an upload, or one of a run's split.

    Attributes:
        place: What the link calls it: its name is not to be in there.
        name: Its name.
        digest: What tells it from any other.
        read: Reads it in a size, float32 (height, width, channels) in [0, 1]; raises DataError if it cannot be used.
        mask: Reads its true mask, bool (height, width); None where it is not known.
    """

    place: str
    name: str
    digest: str
    read: Callable[[tuple[int, int, int]], np.ndarray]
    mask: Callable[[], np.ndarray | None] = lambda: None


@dataclass(frozen=True)
class Answered:
    """An image and what the model answers to it.

    Attributes:
        picture: The image.
        output: The model's output, (classes,).
    """

    picture: Picture
    output: np.ndarray

    @property
    def best(self) -> int:
        """The class with the largest output."""
        return int(self.output.argmax())


def model_file() -> Path | None:
    """The model file that the explorer was started on; it comes from the environment alone."""
    named = os.environ.get(MODEL_VARIABLE)
    return Path(named) if named else None


def trained_models() -> dict[str, list[str]]:
    """The models that can be loaded, by run, those of complete runs first."""
    folder = cached.folder().path
    found = {
        run.name: [model for model in run.models if RunDirectory(folder / run.name).model_path(model).is_file()]
        for run in sorted(cached.summaries(), key=lambda run: run.state != "complete")
    }
    return {run: models for run, models in found.items() if models}


def run_subject(key: cached.Run, name: str) -> Subject:
    """A model of a run."""
    version = cached_effects.key(key)
    try:
        levels = cached_intervening.learned_levels(version, name)
    except TfCausalError:  # the page of effects says what is wrong with them
        levels = ()
    model = _run_model(key, name)
    classifier = cached.classifier(key, name)
    return Subject((*version, name), f"{name} of {key[1]}", classifier, model, model.image_shape(), levels)


def image_model(path: Path) -> ImageModel:
    """The model of a file."""
    return _file_model(str(path), _version(path))


def file_subject(path: Path, pixels: tuple[float, float], size: tuple[int, int] | None) -> Subject:
    """A model file, with what black and white are to it, and the size of its images if it takes any."""
    model, version = image_model(path), _version(path)
    shape, classifier = model.image_shape(size), _file_classifier(str(path), version, pixels)
    return Subject((str(path), version, str(pixels), str(shape)), path.name, classifier, model, shape)


def held() -> list[Upload]:
    """The files that were handed over in this session."""
    return st.session_state.setdefault(_HELD, [])


def left_out() -> list[LeftOut]:
    """Those that were not taken the last time."""
    return st.session_state.get(_LEFT, [])


def uploader_key(kind: str) -> str:
    """The key of a file uploader; another one each time, so that the server drops what was read from it."""
    return f"own-images-{kind}-{st.session_state.get(_ROUND, 0)}"


def take(kind: str) -> None:
    """Take what was handed over; in the callback of a file uploader."""
    files = st.session_state[uploader_key(kind)]
    taken, left = admit(((file.name, file.getvalue()) for file in files), held())
    st.session_state[_HELD] = [*held(), *taken]
    st.session_state[_LEFT] = left
    st.session_state[_ROUND] = st.session_state.get(_ROUND, 0) + 1


def drop() -> None:
    """Forget every file that was handed over."""
    for name in (_HELD, _LEFT, _ANSWERS):
        st.session_state.pop(name, None)


def sample(key: cached.Run, split_name: str) -> list[Picture]:
    """Some images of a split, spread over it."""
    split = cached.split(key, split_name)
    places = np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).round().astype(int)
    return [
        Picture(
            f"sample {number}",
            split.names[position],
            f"{key} {split_name} {position}",
            lambda shape, position=position: split.pictures([position])[0],
            lambda position=position: split.masks([position])[0],
        )
        for number, position in enumerate(places.tolist(), 1)
    ]


def uploaded() -> list[Picture]:
    """The files that were handed over, as images to show."""
    return [
        Picture(f"upload {number}", upload.name, upload.digest, upload.picture)
        for number, upload in enumerate(held(), 1)
    ]


def answers(subject: Subject, pictures: Sequence[Picture]) -> tuple[list[Answered], list[LeftOut]]:
    """What a model answers to images, and those that it cannot be shown."""
    known: dict[tuple[object, str], np.ndarray | str] = st.session_state.setdefault(_ANSWERS, {})
    missing = {shown.digest: shown for shown in pictures if (subject.key, shown.digest) not in known}
    if len(known) + len(missing) > _MOST_ANSWERS:
        known.clear()
        missing = {shown.digest: shown for shown in pictures}
    every = list(missing.values())
    for start in range(0, len(every), _BATCH):
        read = {}
        for shown in every[start : start + _BATCH]:
            try:
                read[shown.digest] = pixels(subject.shape, shown)
            except DataError as error:
                known[subject.key, shown.digest] = str(error)
        if read:
            outputs = subject.classifier.answers(inputs(subject, list(read.values())))
            known.update(((subject.key, digest), output) for digest, output in zip(read, outputs, strict=True))
    found = [(shown, known[subject.key, shown.digest]) for shown in pictures]
    answered = [Answered(shown, output) for shown, output in found if not isinstance(output, str)]
    return answered, [LeftOut(shown.name, reason) for shown, reason in found if isinstance(reason, str)]


@st.cache_data(max_entries=512, max_size="64mb", show_spinner=False, scope="session")
def _pixels(digest: str, shape: tuple[int, int, int], _shown: Picture) -> np.ndarray | str:
    try:
        return _shown.read(shape)
    except DataError as error:
        return str(error)


def pixels(shape: tuple[int, int, int], shown: Picture) -> np.ndarray:
    """A picture in the size of a model, float32 `shape` in [0, 1].

    Raises:
        DataError: The file cannot be used.
    """
    found = _pixels(shown.digest, shape, shown)
    if isinstance(found, str):
        raise DataError(found)
    return found


def inputs(subject: Subject, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures as the model takes them."""
    from tfcausal.browsing.image_model import as_inputs

    return as_inputs(np.stack(pictures), subject.classifier.pixels)


def maps(subject: Subject, pictures: Sequence[Picture], method: str, classes: Sequence[int]) -> np.ndarray:
    """Maps of some images for given classes, signed, float32 (n, height, width)."""
    return _maps(subject.key, method, tuple(shown.digest for shown in pictures), tuple(classes), subject, pictures)


@st.cache_data(max_entries=256, max_size="64mb", show_spinner=False, scope="session")
def _maps(
    key: tuple[str, ...],
    method: str,
    digests: tuple[str, ...],
    classes: tuple[int, ...],
    _subject: Subject,
    _pictures: Sequence[Picture],
) -> np.ndarray:
    images = inputs(_subject, [pixels(_subject.shape, shown) for shown in _pictures])
    return _subject.classifier.maps(method, images, classes)


def logit_parts(subject: Subject, shown: Picture) -> LogitParts:
    """The largest logits for an image, taken apart into pixels and biases."""
    return _logit_parts(subject.key, shown.digest, subject, shown)


@st.cache_data(max_entries=256, show_spinner="Taking the logits apart", scope="session")
def _logit_parts(key: tuple[str, ...], digest: str, _subject: Subject, _shown: Picture) -> LogitParts:
    return _subject.classifier.logit_parts(inputs(_subject, [pixels(_subject.shape, _shown)])[0])


@st.cache_resource(max_entries=4, show_spinner="Loading the model")
def _run_model(key: cached.Run, name: str) -> ImageModel:
    from tfcausal.browsing.image_model import ImageModel
    from tfcausal.models.loading import LoadedModel

    classifier = cached.classifier(key, name)
    return ImageModel(LoadedModel(classifier.model, name, classifier.class_names, classifier.pixels))


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def _file_model(path: str, version: str) -> ImageModel:
    from tfcausal.browsing.image_model import ImageModel
    from tfcausal.models.loading import load_trained

    return ImageModel(load_trained(Path(path)))


@st.cache_resource(max_entries=2, show_spinner=False)
def _file_classifier(path: str, version: str, pixels: tuple[float, float]) -> LoadedClassifier:
    return _file_model(path, version).classifier(pixels)


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""  # what loads it says that it is gone
    return f"{status.st_mtime_ns} {status.st_size}"
