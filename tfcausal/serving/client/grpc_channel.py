"""The way to a TensorFlow Serving server by gRPC. Needs the extra `serving`: `pip install 'tfcausal[serving]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from tfcausal.serving.messages import extra, predict_request, serving_api

DEFAULT_ADDRESS = "localhost:8500"
_FIELD = "signature_def"
_NO_LIMIT = -1  # TensorFlow Serving takes messages of 2 GiB; the limit of gRPC itself is 4 MiB
_TOO_LARGE = "larger than max"


class GrpcConnection(Connection):
    """A model of a server, by gRPC; a context manager, which closes the channel.

    The channel is not encrypted, as TensorFlow Serving's is by default.

    Args:
        address: Where the server is, such as `localhost:8500`.
        model: Which model.
        timeout: Seconds that an answer may take.

    Raises:
        InvalidArgument: It is not `HOST:PORT`, or the time is not a finite, positive number.
        UnsupportedOperation: The extra is not installed.
    """

    def __init__(self, address: str, model: ModelSpec, timeout: float = 60.0) -> None:
        host, colon, port = address.rpartition(":")
        if not host or not colon or not port.isdecimal() or "/" in address:
            remedy = "The address of REST goes with --url."
            raise InvalidArgument(message("address", f"HOST:PORT, such as {DEFAULT_ADDRESS}", repr(address), remedy))
        super().__init__(address, model, timeout)
        self._grpc = extra("grpc")
        options = [(f"grpc.max_{way}_message_length", _NO_LIMIT) for way in ("send", "receive")]
        self._channel = self._grpc.insecure_channel(address, options)
        self._stub = serving_api("prediction_service_pb2_grpc").PredictionServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """As :meth:`Connection.predict`."""
        columns = {name: _column(values) for name, values in inputs.items()}
        request = predict_request(self.model.name, signature, columns)
        self._name(request.model_spec)
        answer = self._ask(self._stub.Predict, request)
        make_ndarray = extra("tensorflow").make_ndarray
        return {name: _decoded(make_ndarray(values)) for name, values in answer.outputs.items()}

    def _described(self) -> Any:
        request = serving_api("get_model_metadata_pb2").GetModelMetadataRequest(metadata_field=[_FIELD])
        self._name(request.model_spec)
        return self._ask(self._stub.GetModelMetadata, request)

    def _read(self, described: Any) -> tuple[int, Mapping[str, Any]]:
        to_dict = extra("google.protobuf.json_format").MessageToDict
        defined = to_dict(described.metadata[_FIELD], preserving_proto_field_name=True)
        return described.model_spec.version.value, defined

    def _name(self, spec: Any) -> None:
        spec.name = self.model.name
        if self.model.version is not None:
            spec.version.value = self.model.version
        if self.model.label is not None:
            spec.version_label = self.model.label

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            raise self._error(error.code(), error.details() or str(error.code())) from error

    def _error(self, code: Any, said: str) -> NoAnswer | RequestRefused:
        codes = self._grpc.StatusCode
        if code == codes.UNAVAILABLE:
            return self._no_server(said)
        if code == codes.DEADLINE_EXCEEDED:
            return self._no_answer()
        if code == codes.UNIMPLEMENTED:
            return self._not_serving(said)
        if code == codes.NOT_FOUND:
            return self._no_model(said)
        if code == codes.RESOURCE_EXHAUSTED and _TOO_LARGE in said:  # memory can be exhausted, too
            return too_large(said)
        return RequestRefused(plain(said))


def _column(values: Sequence[bytes] | Sequence[int]) -> np.ndarray:
    return np.array(values, object if isinstance(values[0], bytes) else np.int64)


def _decoded(array: np.ndarray) -> np.ndarray:
    """Texts are bytes in the messages."""
    return np.char.decode(array.astype(bytes), "utf-8", "replace") if array.dtype.kind == "O" else array
