"""Trained classifiers from where they were saved: a run directory or a model file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import keras

from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.models import cfcn, gain, ppi, rrr
from tfcausal.runs import RunDirectory

RUN_PIXELS = (-0.5, 0.5)  # what `data.loading.load_data` gives
_MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
# Importing them registers the classes of this package, so that a saved model of theirs can be loaded.
_REGISTERED = (cfcn.CFCNModel, gain.GAINModel, ppi.PPIModel, rrr.RRRModel)


@dataclass(frozen=True)
class LoadedModel:
    """A trained classifier and what is known of its images.

    Attributes:
        model: The classifier.
        source: The run and the name of the model in it, or the file.
        class_names: Names of the classes by index; None where unknown.
        pixels: What black and white are in the model's input; None where unknown.
        file: The file that it was loaded from; None where there is none.
    """

    model: keras.Model
    source: str
    class_names: tuple[str, ...] | None = None
    pixels: tuple[float, float] | None = None
    file: Path | None = None


def load_trained(source: Path, model_name: str | None = None) -> LoadedModel:
    """Load a model of a run, or a model file.

    Args:
        source: A run directory, or a file (.keras, .h5).
        model_name: Which model of a run; may be None where there is only one.

    Raises:
        InvalidArgument: No such model, several and none chosen, or a file that Keras cannot load.
        RunError: Not a run directory, or the model is not trained yet.
    """
    if source.is_dir():
        return _load_from_run(RunDirectory.open(source), model_name)
    if source.suffix.lower() not in _MODEL_SUFFIXES or not source.is_file():
        received = f"a file `{source.name}`" if source.is_file() else "nothing at that place"
        expected = f"a run directory or a model file ({', '.join(_MODEL_SUFFIXES)})"
        raise InvalidArgument(message(str(source), expected, received))
    if model_name is not None:
        remedy = "Leave out --model, which chooses among the models of a run."
        raise InvalidArgument(message("model", "nothing beside a model file", repr(model_name), remedy))
    return LoadedModel(_load_file(source), str(source), file=source)


def _load_from_run(run: RunDirectory, name: str | None) -> LoadedModel:
    known = list(run.config.models)
    if name is None and len(known) > 1:
        remedy = f"Choose one with --model: {', '.join(known)}."
        raise InvalidArgument(message("model", f"one of the {len(known)} models of {run.path}", "none", remedy))
    name = known[0] if name is None else name
    path = run.model_path(name)
    if not path.exists():
        remedy = f"Finish the run: `tfcausal run --resume {run.path}`."
        raise RunError(f"{path}: the model is not trained yet. {remedy}")
    try:
        names = tuple(json.loads((run.path / "data.json").read_bytes())["classes"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run.path / 'data.json'}: the names of the classes cannot be read ({error}).") from None
    return LoadedModel(_load_file(path), f"{run.path} ({name})", names, RUN_PIXELS, path)


def _load_file(path: Path) -> keras.Model:
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras meets in a file that is damaged or needs classes that are not there
        reason = " ".join(str(error).split())[:300]
        if "safe_mode" in reason:
            expected = "a model that Keras can load without running Python code that the file brings along"
            remedy = "Save it with a layer class of its own, or one of Keras, in place of a Lambda of Python code."
            received = "such code, which is never run: a Lambda layer, or the like"
            raise InvalidArgument(message(str(path), expected, received, remedy)) from error
        expected = "a model that Keras can load"
        remedy = "A model with layers of your own is explained in Python: tfcausal.get_explainer(method, model)."
        raise InvalidArgument(message(str(path), expected, f"{type(error).__name__}: {reason}", remedy)) from error
    if not isinstance(model, keras.Model):
        raise InvalidArgument(message(str(path), "a keras.Model", type(model).__name__))
    return model
