"""The way to a TensorFlow Serving server by its REST interface: JSON over HTTP, with Python alone.

Its form is described in TensorFlow Serving's *RESTful API*: contents of files go as ``{"b64": ...}``, in the format by
columns (`inputs` and `outputs`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.serving.client.connection import (
    OTHER_METADATA,
    Inputs,
    ModelSpec,
    NoAnswer,
    RequestRefused,
    Signature,
    no_answer,
    no_model,
    no_server,
    not_serving,
    plain,
    signatures,
    too_large,
)

DEFAULT_URL = "http://localhost:8501"
_NOT_FOUND, _TOO_LARGE, _UNAVAILABLE, _TIMED_OUT = 404, 413, 503, 504


class RestConnection:
    """A model of a server, by REST.

    Args:
        url: Where the server is, such as `http://localhost:8501`.
        model: Which model.
        timeout: Seconds that an answer may take.

    Raises:
        InvalidArgument: It is not an address of HTTP.

    Example:
        >>> RestConnection("http://localhost:8501/", ModelSpec("digits", 3)).address("metadata")
        'http://localhost:8501/v1/models/digits/versions/3/metadata'
    """

    def __init__(self, url: str, model: ModelSpec, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidArgument(message("url", f"an address such as {DEFAULT_URL}", repr(url)))
        self.place, self.model, self._timeout = url.rstrip("/"), model, timeout

    def address(self, part: str = "", method: str = "") -> str:
        """Address of the model, of a part of it, or of a method."""
        version = "" if self.model.version is None else f"/versions/{self.model.version}"
        label = "" if self.model.label is None else f"/labels/{quote(self.model.label, safe='')}"
        ending = f"/{part}" if part else f":{method}" if method else ""
        return f"{self.place}/v1/models/{quote(self.model.name, safe='')}{version}{label}{ending}"

    def metadata(self) -> tuple[int, dict[str, Signature]]:
        """As :meth:`tfcausal.serving.client.connection.Connection.metadata`."""
        try:
            answer = self._ask(self.address("metadata"))
        except RequestRefused as error:
            raise no_model(self.place, self.model, str(error)) from error
        try:
            return int(answer["model_spec"]["version"]), signatures(answer["metadata"]["signature_def"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise not_serving(self.place, OTHER_METADATA) from error

    def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """As :meth:`tfcausal.serving.client.connection.Connection.predict`."""
        body = {"signature_name": signature, "inputs": {name: _column(values) for name, values in inputs.items()}}
        answer = self._ask(self.address(method="predict"), json.dumps(body).encode())
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            raise not_serving(self.place, "its answer has no `outputs` by name")
        try:
            return {name: _array(values) for name, values in outputs.items()}
        except ValueError as error:
            raise not_serving(self.place, "its outputs are no arrays") from error

    def _ask(self, address: str, body: bytes | None = None) -> dict[str, Any]:
        request = Request(address, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self._timeout) as response:
                content = response.read()
        except HTTPError as error:
            raise self._error(error) from error
        except (URLError, HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, TimeoutError):
                raise no_answer(self.place, self._timeout) from error
            if isinstance(reason, HTTPException):
                raise not_serving(self.place, f"its answer is not HTTP ({reason!r})") from error
            raise no_server(self.place, str(reason)) from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise not_serving(self.place, "its answer is not JSON") from error
        if not isinstance(answer, dict):
            raise not_serving(self.place, "its answer is not an object of JSON")
        return answer

    def _error(self, error: HTTPError) -> NoAnswer | RequestRefused:
        try:
            said = str(json.loads(error.read())["error"])
        except (HTTPException, OSError, ValueError, KeyError, TypeError):
            said = ""
        if error.code == _TOO_LARGE:
            return too_large(said or str(error))
        if error.code == _TIMED_OUT:
            return no_answer(self.place, self._timeout)
        if error.code == _UNAVAILABLE:
            return no_server(self.place, said or str(error))
        if error.code == _NOT_FOUND:
            return no_model(self.place, self.model, said) if said else not_serving(self.place, str(error))
        return RequestRefused(plain(said or str(error)))


def _column(values: Sequence[bytes] | Sequence[int]) -> list[Any]:
    """The values of an input as JSON has them."""
    return [{"b64": base64.b64encode(one).decode()} if isinstance(one, bytes) else one for one in values]


def _array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
