"""A prepared model becomes a SavedModel: traced, tried, and written with its labels and its warm-up requests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfcausal.atomic import to_json
from tfcausal.errors import RunError, UnsupportedOperation
from tfcausal.serving import names
from tfcausal.serving.signatures import Served, concrete_functions
from tfcausal.serving.warm_up import Request

_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


class ExportedModel(tf.Module):
    """What is saved beside the signatures: the weights that they read, and the files of `assets`.

    Args:
        functions: Concrete functions by the name of their signature.
        assets: The files.
    """

    def __init__(self, functions: Mapping[str, Any], assets: Sequence[Path]) -> None:
        super().__init__(name="exported_model")
        read = {id(variable): variable for function in functions.values() for variable in function.graph.variables}
        self.weights = sorted(read.values(), key=lambda variable: variable.name)
        self.files = [tf.saved_model.Asset(str(path)) for path in assets]


def traced(served: Served, requests: Sequence[Request]) -> dict[str, Any]:
    """Trace the signatures and play a request with each, so that what cannot be exported is found now.

    Args:
        served: What is exported.
        requests: At least one for every signature.

    Returns:
        Concrete functions by the name of their signature.

    Raises:
        UnsupportedOperation: A layer cannot be traced, calls Python, or cannot compute what it is asked.
    """
    try:
        functions = concrete_functions(served)
    except UnsupportedOperation:
        raise
    except Exception as error:  # whatever a layer of a user's own raises, or TensorFlow about an operation
        raise _cannot(served, f"{type(error).__name__}: {error}") from error
    for name, function in functions.items():
        found = _python_calls(function.graph)
        if found:
            raise _cannot(served, f"`{found[0]}` in `{name}` calls Python, which a server does not have")
    for request in requests:
        inputs = {name: tf.constant(values) for name, values in request.inputs.items()}
        try:
            functions[request.signature](**inputs)
        except tf.errors.OpError as error:
            raise _cannot(served, f"`{request.signature}` fails: {error.message}") from error
    return functions


def save(served: Served, functions: Mapping[str, Any], folder: Path, preprocessing: Mapping[str, Any]) -> None:
    """Write a SavedModel.

    Args:
        served: What is exported.
        functions: From :func:`traced`.
        folder: Where to.
        preprocessing: What `preprocessing.json` says.

    Raises:
        UnsupportedOperation: A layer reads something that TensorFlow cannot save, such as a table.
    """
    with tempfile.TemporaryDirectory() as scratch:
        labels, described = Path(scratch, names.LABELS_FILE), Path(scratch, names.PREPROCESSING_FILE)
        labels.write_text("".join(f"{label}\n" for label in served.labels), encoding="utf-8")
        described.write_text(to_json(preprocessing), encoding="utf-8")
        module = ExportedModel(functions, [labels, described])
        # Gradients are a part of the functions; nobody differentiates an exported model.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        try:
            tf.saved_model.save(module, str(folder), signatures=dict(functions), options=options)
        except AssertionError as error:
            raise _cannot(served, str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in words what keeps TensorFlow from writing.

    Args:
        path: What is to be there in the end.

    Raises:
        RunError: The disk is full, or a folder cannot be written to.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else error.strerror
        remedy = "Check the path, its permissions and the disk's space."
        raise RunError(f"{path}: cannot be written: {reason}. {remedy}") from error


def _python_calls(graph: Any) -> list[str]:
    definition = graph.as_graph_def()
    bodies = [definition.node, *(function.node_def for function in definition.library.function)]
    return [node.name for nodes in bodies for node in nodes if node.op in _PYTHON]


def _cannot(served: Served, reason: str) -> UnsupportedOperation:
    plain = " ".join(reason.split())[:500]
    return UnsupportedOperation(
        f"Model `{served.model.name}` cannot be exported with its maps by `{served.explainer.name}`: {plain}"
    )
