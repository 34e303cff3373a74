"""What the two ways to a TensorFlow Serving server have in common: what is asked for, and what a server says of it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tfcausal.errors import InvalidArgument, RunError, TfCausalError, message

Inputs = Mapping[str, Sequence[bytes] | Sequence[int]]
_ASSERTION = re.compile(r"assertion failed: \[(.*?)\]\s*(?:\[\[|$)", re.DOTALL)
_NODES = re.compile(r"\s*\[\[\{\{(?:function_)?node .*", re.DOTALL)
_MOST_LETTERS = 500
_LONGEST_TIMEOUT = 86_400
_LARGEST_VERSION = 2**63 - 1


class NoAnswer(RunError):
    """There is no server, or it has no such model, or it is something else, or too slow."""


class RequestRefused(TfCausalError):
    """A server does not answer a request, and may answer others."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model of a server is asked.

    Attributes:
        name: Its name.
        version: Its number; None takes the version of the label, or the latest.
        label: A label that the server's configuration gives to a version.

    Raises:
        InvalidArgument: A version and a label; a version that is not a positive integer of 64 bits; or a name or label
            that is empty or no text.

    Example:
        >>> str(ModelSpec("digits", label="stable"))
        '`digits`, label stable'
    """

    name: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            received = f"version {self.version} and label {self.label}"
            raise InvalidArgument(message("version", "a version or a label", received, "Leave one of them out."))
        if self.version is not None and not 1 <= self.version <= _LARGEST_VERSION:
            raise InvalidArgument(message("version", f"an integer in [1, {_LARGEST_VERSION}]", self.version))
        for name, text in (("model", self.name), ("label", self.label)):
            if text is not None and (not text or not text.isprintable()):  # a lone surrogate is not printable
                raise InvalidArgument(message(name, "a name", ascii(text)))

    def __str__(self) -> str:
        version = "" if self.version is None else f", version {self.version}"
        return f"`{self.name}`{version}" if self.label is None else f"`{self.name}`, label {self.label}"


@dataclass(frozen=True)
class Signature:
    """What a server says of a signature.

    Attributes:
        name: Its name.
        inputs: The shape of every input, None where a size is open; None instead of a shape of open rank.
        outputs: The same of every output.
    """

    name: str
    inputs: Mapping[str, tuple[int | None, ...] | None]
    outputs: Mapping[str, tuple[int | None, ...] | None]


class Connection(ABC):
    """A way to a model of a server; a context manager.

    Args:
        place: The server, for messages.
        model: Which model.
        timeout: Seconds that an answer may take.

    Raises:
        InvalidArgument: The time is not a finite, positive number.
    """

    def __init__(self, place: str, model: ModelSpec, timeout: float) -> None:
        if not 0 < timeout <= _LONGEST_TIMEOUT:
            raise InvalidArgument(message("timeout", f"seconds, at most {_LONGEST_TIMEOUT}", timeout))
        self.place, self.model, self._timeout = place, model, timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held open."""

    def metadata(self) -> tuple[int, dict[str, Signature]]:
        """The version that answers, and its signatures by name.

        Raises:
            NoAnswer: There is no server, or no such model.
        """
        try:
            described = self._described()
        except RequestRefused as error:
            raise self._no_model(str(error)) from error
        try:
            version, defined = self._read(described)
            return version, signatures(defined)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._not_serving("its metadata have another form") from error

    @abstractmethod
    def predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """Ask one batch.

        Args:
            signature: Name of the signature.
            inputs: By the names of its inputs: contents of files, or integers; one for every image.

        Returns:
            Outputs by name, the images first; texts as arrays of strings.

        Raises:
            RequestRefused: The server has answered with an error that may be that of this batch alone.
            NoAnswer: It does not answer any more, or has no such model any more.
        """

    @abstractmethod
    def _described(self) -> Any:
        """What the server says of the model, in its own form."""

    @abstractmethod
    def _read(self, described: Any) -> tuple[int, Mapping[str, Any]]:
        """The version and the `SignatureDefMap`, in JSON, that are in it; any error if it has another form."""

    def _no_server(self, said: str) -> NoAnswer:
        """The error to raise where nothing answers, or a server takes no requests."""
        remedy = "Start one, or name its place with --address HOST:PORT (gRPC) or --url URL (REST)."
        return NoAnswer(f"No TensorFlow Serving server takes requests at {self.place}: {plain(said)}. {remedy}")

    def _no_model(self, said: str) -> NoAnswer:
        """The error to raise where a server does not have the model."""
        return NoAnswer(
            f"The server at {self.place} has no model {self.model}; it says: {plain(said)}. "
            "Check the name, --version and --label, and that it has finished loading."
        )

    def _no_answer(self) -> NoAnswer:
        """The error to raise where an answer takes too long."""
        remedy = "Give it longer with --timeout SECONDS, or less at once with --batch."
        return NoAnswer(f"The server at {self.place} has not answered within {self._timeout:g} s. {remedy}")

    def _not_serving(self, received: str) -> NoAnswer:
        """The error to raise where something else answers."""
        remedy = "Its gRPC port goes with --address, its REST port with --url."
        return NoAnswer(f"What answers at {self.place} is not TensorFlow Serving: {plain(received)}. {remedy}")


def signatures(described: Mapping[str, Any]) -> dict[str, Signature]:
    """The signatures in the metadata of a model, a `SignatureDefMap` in JSON.

    Args:
        described: As REST gives it; as :func:`google.protobuf.json_format.MessageToDict` does of gRPC's.

    Example:
        >>> size = {"dim": [{"size": "-1"}, {"size": "3"}]}
        >>> found = signatures({"signature_def": {"f": {"inputs": {}, "outputs": {"y": {"tensor_shape": size}}}}})
        >>> found["f"].outputs
        {'y': (None, 3)}
    """
    return {
        name: Signature(name, _shapes(one.get("inputs", {})), _shapes(one.get("outputs", {})))
        for name, one in described["signature_def"].items()
        if not name.startswith("__")  # one of TensorFlow's own, for when a model is loaded
    }


def too_large(said: str) -> RequestRefused:
    """The error to raise where a message is larger than what is let through."""
    remedy = (
        "Send fewer at once with --batch, or raise the limit of the server or of what stands before it (for gRPC: "
        "--grpc_channel_arguments=grpc.max_receive_message_length=BYTES of tensorflow_model_server)."
    )
    return RequestRefused(f"The message is too large: {plain(said)}. {remedy}")


def plain(said: str) -> str:
    """What a server says, without what TensorFlow puts around it, in one line.

    Example:
        >>> plain("assertion failed: [the file is empty.] [[{{node explain/Assert}}]]")
        'the file is empty'
    """
    found = _ASSERTION.search(said)
    text = " ".join((found[1] if found else _NODES.sub("", said)).split()).removesuffix(".")
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int | None, ...] | None]:
    return {name: _shape(one.get("tensor_shape", {})) for name, one in tensors.items()}


def _shape(described: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    if described.get("unknown_rank"):
        return None
    sizes = (int(side.get("size", 0)) for side in described.get("dim", ()))
    return tuple(None if size < 0 else size for size in sizes)
