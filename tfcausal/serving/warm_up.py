"""Requests that a server plays before it serves, so that the first real one does not wait for what is done once.

TensorFlow Serving reads them from `assets.extra/tf_serving_warmup_requests`: records of `PredictionLog`. Writing them
needs the extra `serving`: `pip install 'tfcausal[serving]'`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tfcausal.errors import UnsupportedOperation
from tfcausal.serving import names
from tfcausal.serving.messages import predict_request, serving_api

_SIDE = 96  # of the files: other than most models take, so that resizing is played, too


@dataclass(frozen=True)
class Request:
    """What a signature is asked.

    Attributes:
        signature: Its name.
        inputs: Arrays by the names of its inputs; strings are arrays of objects.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]


def examples(signatures: Sequence[str], shape: tuple[int, int, int], pixels: tuple[float, float]) -> list[Request]:
    """A small request for every signature, and one with a PNG and one with a JPEG file for those that take files.

    Args:
        signatures: Their names.
        shape: (height, width, channels) of an image.
        pixels: What black and white are.

    Example:
        >>> [request.signature for request in examples(["explain", "predict_image_bytes"], (4, 4, 1), (0.0, 1.0))]
        ['explain', 'predict_image_bytes', 'predict_image_bytes']
    """
    low, high = pixels
    height, width, channels = shape
    share = np.add.outer(np.arange(height), np.arange(width)) / max(1, height + width - 2)
    images = np.repeat((low + (high - low) * share).astype(np.float32)[None, ..., None], channels, axis=3)
    requests = []
    for signature in signatures:
        inputs = names.inputs_of(signature)
        contents = [_file("PNG"), _file("JPEG")] if names.IMAGE_BYTES in inputs else [None]
        for content in contents:
            values = {inputs[0]: images if content is None else np.array([content], object)}
            if names.CLASS_INDEX in inputs:
                values[names.CLASS_INDEX] = np.array([names.PREDICTED], np.int64)
            requests.append(Request(signature, values))
    return requests


def can_write() -> bool:
    """Whether the extra that writing needs is installed."""
    try:
        serving_api("prediction_log_pb2")
    except UnsupportedOperation:
        return False
    return True


def write_requests(path: Path, model: str, requests: Sequence[Request]) -> None:
    """Write requests as TensorFlow Serving reads them.

    Args:
        path: The file; its folder is made.
        model: Name of the model on the server.
        requests: The requests.

    Raises:
        UnsupportedOperation: The extra `serving` is not installed.
    """
    logs = serving_api("prediction_log_pb2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            played = logs.PredictLog(request=predict_request(model, request.signature, request.inputs))
            writer.write(logs.PredictionLog(predict_log=played).SerializeToString())


def _file(kind: str) -> bytes:
    values = np.add.outer(np.arange(_SIDE), np.arange(_SIDE)) * 255 // (2 * _SIDE)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(values[..., None], 3, axis=2).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()
