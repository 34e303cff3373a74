"""The messages of TensorFlow Serving, which come with the extra `serving`: imported where they are used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from tfcausal.errors import UnsupportedOperation


def extra(name: str) -> Any:
    """A module of the extra.

    Args:
        name: Its full name.

    Raises:
        UnsupportedOperation: It is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UnsupportedOperation(
            f"`{name}` cannot be imported ({error}). Install it: `pip install 'tfcausal[serving]'`."
        ) from error


def serving_api(name: str) -> Any:
    """A module of tensorflow-serving-api; importing it imports TensorFlow.

    Args:
        name: Such as `predict_pb2`.

    Raises:
        UnsupportedOperation: It is not installed; the message names the extra.
    """
    return extra(f"tensorflow_serving.apis.{name}")


def predict_request(model: str, signature: str, inputs: Mapping[str, np.ndarray]) -> Any:
    """A request to a model's signature.

    Args:
        model: Name of the model.
        signature: Name of the signature.
        inputs: Arrays by the names of its inputs; contents of files are arrays of objects.

    Returns:
        A `PredictRequest`.

    Raises:
        UnsupportedOperation: The extra is not installed.
    """
    request = serving_api("predict_pb2").PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    make_tensor_proto = extra("tensorflow").make_tensor_proto
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(make_tensor_proto(values))
    return request
