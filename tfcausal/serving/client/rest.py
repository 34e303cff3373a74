"""The way to a TensorFlow Serving server by its REST interface: JSON over HTTP, with Python alone.

Its form is described in TensorFlow Serving's *RESTful API*: contents of files go as ``{"b64": ...}``, in the format by
columns (`inputs` and `outputs`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.serving.client.connection import (
    Connection,
    Inputs,
    ModelSpec,
    NoAnswer,
    RequestRefused,
    plain,
    too_large,
)

DEFAULT_URL = "http://localhost:8501"
_NOT_FOUND, _TOO_LARGE, _UNAVAILABLE, _TIMED_OUT = 404, 413, 503, 504


class RestConnection(Connection):
    """A model of a server, by REST.

    Args:
        url: Where the server is, such as `http://localhost:8501`.
        model: Which model.
        timeout: Seconds that an answer may take.

    Raises:
        InvalidArgument: It is not an address of HTTP, or the time is not a finite, positive number.

    Example:
        >>> RestConnection("http://localhost:8501/", ModelSpec("digits", 3)).address("/metadata")
        'http://localhost:8501/v1/models/digits/versions/3/metadata'
    """

    def __init__(self, url: str, model: ModelSpec, timeout: float = 60.0) -> None:
        if not _is_usable(url):
            raise InvalidArgument(message("url", f"an address such as {DEFAULT_URL}", ascii(url)))
        super().__init__(url.rstrip("/"), model, timeout)

    def close(self) -> None:
        """Nothing is held open: every request has a connection of its own."""

    def address(self, ending: str = "") -> str:
        """Address of the model, with `/part` or `:method` behind it."""
        version = "" if self.model.version is None else f"/versions/{self.model.version}"
        label = "" if self.model.label is None else f"/labels/{quote(self.model.label, safe='')}"
        return f"{self.place}/v1/models/{quote(self.model.name, safe='')}{version}{label}{ending}"

    def _described(self) -> Any:
        return self._ask(self.address("/metadata"))

    def _read(self, described: Any) -> tuple[int, Mapping[str, Any]]:
        return int(described["model_spec"]["version"]), described["metadata"]["signature_def"]

    def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """As :meth:`Connection.predict`."""
        body = {"signature_name": signature, "inputs": {name: _column(values) for name, values in inputs.items()}}
        answer = self._ask(self.address(":predict"), json.dumps(body).encode())
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            raise self._not_serving("its answer has no `outputs` by name")
        try:
            return {name: _array(values) for name, values in outputs.items()}
        except ValueError as error:
            raise self._not_serving("its outputs are no arrays") from error

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
                raise self._no_answer() from error
            if isinstance(reason, HTTPException):
                raise self._not_serving(f"its answer is not HTTP ({reason!r})") from error
            raise self._no_server(str(reason)) from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise self._not_serving("its answer is not JSON") from error
        if not isinstance(answer, dict):
            raise self._not_serving("its answer is not an object of JSON")
        return answer

    def _error(self, error: HTTPError) -> NoAnswer | RequestRefused:
        try:
            said = str(json.loads(error.read())["error"])
        except (HTTPException, OSError, ValueError, KeyError, TypeError):
            said = ""
        if error.code == _TOO_LARGE:
            return too_large(said or str(error))
        if error.code == _TIMED_OUT:
            remedy = "Send less at once with --batch, or raise --rest_api_timeout_in_ms of tensorflow_model_server."
            return NoAnswer(f"The server at {self.place} has given up: {plain(said or str(error))}. {remedy}")
        if error.code == _UNAVAILABLE:
            return self._no_server(said or str(error))
        if error.code == _NOT_FOUND:
            return self._no_model(said) if said else self._not_serving(str(error))
        return RequestRefused(plain(said or str(error)))


def _is_usable(url: str) -> bool:
    """Whether it is an address of HTTP that Python can open."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        return named and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # a port that is none, or a host that is none
        return False


def _column(values: Sequence[bytes] | Sequence[int]) -> list[Any]:
    """The values of an input as JSON has them."""
    return [{"b64": base64.b64encode(one).decode()} if isinstance(one, bytes) else one for one in values]


def _array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
