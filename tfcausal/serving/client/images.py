"""Image files are sent to a server, and what it answers is written as overlays, raw maps and a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.atomic import to_json, write_atomic
from tfcausal.data.decoding import decode_image, refuse_decompression_bombs, to_shares
from tfcausal.data.image_files import find_images, output_names
from tfcausal.errors import DataError, InvalidArgument, message
from tfcausal.explanation_files import RECORD, check_output, chosen_class, write_explanation
from tfcausal.progress import ConsoleProgress
from tfcausal.serving import names
from tfcausal.serving.client.connection import Connection, NoAnswer, RequestRefused, Signature

Given = Mapping[str, np.ndarray] | DataError | RequestRefused
"""What came of an image: its outputs, or why there are none."""
_RANKS = {names.MAP: 4, names.PROBABILITIES: 2, names.LOGITS: 2, names.CLASS_INDEX: 1, names.LABEL: 1}
_EXPORT = "`tfcausal export` makes models with these signatures."


@dataclass(frozen=True)
class Settings:
    """How a server is asked.

    Attributes:
        signature: The signature; None takes `explain_image_bytes`, or else `predict_image_bytes`.
        target: The class to explain, by name or index; None is the predicted one.
        labels: Names of the classes by index, for `target` and the record; None knows what the server says.
        batch: Images of a request.
        overwrite: Whether files that are there may be replaced.
    """

    signature: str | None = None
    target: str | None = None
    labels: Sequence[str] | None = None
    batch: int = 8
    overwrite: bool = False


@dataclass
class Answers:
    """What came of the images.

    Attributes:
        records: What is known of every image that was answered, as in `explanations.json`.
        failed: For every other image its `file` and the `reason`.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def ask_about_files(
    connection: Connection,
    images: Sequence[Path],
    output: Path,
    settings: Settings,
    progress: ConsoleProgress,
) -> Answers:
    """Send image files to a server and write what it answers.

    Files are sent as they are: what becomes of them is in the model. Of a batch that the server refuses, every image is
    sent alone, so that one that is damaged does not keep the others from being answered. Where the server is gone in
    the middle, what was answered until then is kept and the rest counts as failed.

    Args:
        connection: The server and the model.
        images: PNG and JPEG files, and folders of them.
        output: The folder to write to: for every image an overlay (.png) and the raw map (.npy), and at last
            `explanations.json`.
        settings: How the server is asked.
        progress: Where to show how far it is.

    Returns:
        What was answered, and what was not.

    Raises:
        InvalidArgument: A signature, class, batch or labels that do not go with the model.
        DataError: There are no images.
        NoAnswer: There is no such server or model.
        RunError: Files are there already.
    """
    if isinstance(settings.batch, bool) or settings.batch < 1:
        raise InvalidArgument(message("batch", "a positive integer", settings.batch))
    files = find_images(images)
    about = output_names(files)
    check_output(output, about, settings.overwrite)
    version, known = connection.metadata()
    client = _Client(connection, known, settings, output)
    if not client.gives_maps:
        progress.say(f"`{client.signature.name}` gives answers without maps: there will be no overlays.")
    answers = Answers()
    with progress.task(f"asking {connection.model.name}", len(files)) as advance, refuse_decompression_bombs():
        try:
            for first in range(0, len(files), settings.batch):
                part = slice(first, first + settings.batch)
                contents = [_content(file) for file in files[part]]
                asked = zip(files[part], about[part], contents, client.ask(contents), strict=True)
                for file, name, content, given in asked:
                    try:
                        answers.records.append(client.write(file, name, content, given))
                    except (DataError, RequestRefused) as error:
                        answers.failed.append({"file": str(file), "reason": str(error)})
                        progress.say(f"{file}: {error}")
                    advance()
        except NoAnswer as error:
            left = files[len(answers.records) + len(answers.failed) :]
            if len(left) == len(files):
                raise
            answers.failed += [{"file": str(file), "reason": f"Not asked any more. {error}"} for file in left]
            progress.say(f"Stopped with {len(left)} of {len(files)} images left. {error}")
    told = {
        "server": connection.place,
        "model": {"name": connection.model.name, "version": version, "label": connection.model.label},
        "signature": client.signature.name,
        "target": client.target,
        "images": answers.records,
        "failed": answers.failed,
    }
    write_atomic(output / RECORD, to_json(told))
    return answers


class _Client:
    """A signature of a server for files, and what its answers are for."""

    def __init__(
        self, connection: Connection, known: Mapping[str, Signature], settings: Settings, output: Path
    ) -> None:
        self._connection, self._labels, self._output = connection, settings.labels, output
        self.signature = _chosen_signature(known, settings.signature, str(connection.model))
        self.gives_maps = names.MAP in self.signature.outputs
        self.target = _target(self.signature, settings)
        shapes = [shape for one in known.values() if (shape := one.inputs.get(names.IMAGES)) is not None]
        self._channels = shapes[0][-1] if shapes and shapes[0] else None

    def ask(self, contents: Sequence[bytes | DataError]) -> Iterator[Given]:
        """Ask about several files at once; about each alone where that is refused."""
        given: dict[int, Given] = {place: one for place, one in enumerate(contents) if isinstance(one, DataError)}
        sent = [place for place in range(len(contents)) if place not in given]
        if len(sent) > 1:
            with suppress(RequestRefused):
                given |= dict(zip(sent, self._predict([contents[place] for place in sent]), strict=True))
        for place, content in enumerate(contents):
            if place not in given:
                try:
                    (given[place],) = self._predict([content])
                except RequestRefused as error:
                    given[place] = error
            yield given[place]

    def _predict(self, contents: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """The outputs for every image of a batch."""
        inputs: dict[str, Sequence[Any]] = {names.IMAGE_BYTES: contents}
        if names.CLASS_INDEX in self.signature.inputs:
            inputs[names.CLASS_INDEX] = [names.PREDICTED if self.target is None else self.target] * len(contents)
        outputs = self._connection.predict(self.signature.name, inputs)
        expected = names.outputs_of(self.signature.name)
        for name in expected:
            if name not in outputs or outputs[name].ndim != _RANKS[name] or len(outputs[name]) != len(contents):
                received = f"`{name}` of shape {outputs[name].shape}" if name in outputs else f"no `{name}`"
                raise NoAnswer(f"The server at {self._connection.place} gives {received} for {len(contents)} images.")
        classes = max(2, outputs[names.PROBABILITIES].shape[1])
        for index in outputs[names.CLASS_INDEX]:
            if not 0 <= index < classes:
                place = self._connection.place
                raise NoAnswer(f"The server at {place} gives `{names.CLASS_INDEX}` {index} of {classes} classes.")
        return [{name: outputs[name][place] for name in expected} for place in range(len(contents))]

    def write(self, file: Path, name: str, content: bytes | DataError, given: Given) -> dict[str, Any]:
        """Write the overlay and the map of an image; gives its record, or raises why there is none."""
        if isinstance(content, Exception):
            raise content
        if isinstance(given, Exception):
            raise given
        record = {"file": str(file), **self._answer(given)}
        if not self.gives_maps:
            return record
        saliency = given[names.MAP]
        shape = (*saliency.shape[:2], self._channels or 3)
        try:
            pixels, _ = decode_image(content, *shape)
        except DataError as error:
            raise DataError(f"The server has answered, but the image cannot be shown here: {error}.") from error
        record |= {"overlay": f"{name}.png", "map": f"{name}.npy", "map_is_zero": not saliency.any()}
        write_explanation(self._output, record, to_shares(pixels, shape), saliency, "map")
        return record

    def _answer(self, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The predicted and the explained class of an image, as `tfcausal explain` tells them."""
        logits, probabilities, label = given[names.LOGITS], given[names.PROBABILITIES], str(given[names.LABEL])
        binary = len(logits) == 1
        predicted = int(logits[0] > 0) if binary else int(logits.argmax())
        explained = int(given[names.CLASS_INDEX])
        told: dict[str, Any] = {}
        for role, index in (("predicted", predicted), ("explained", explained)):
            known = None if self._labels is None else self._labels[index]
            share = probabilities[0] if index else 1 - probabilities[0]
            told[f"{role}_class"] = index
            told[f"{role}_name"] = label if index == explained else known
            told[f"{role}_probability"] = float(share if binary else probabilities[index])
        return told


def _content(file: Path) -> bytes | DataError:
    try:
        return file.read_bytes()
    except OSError as error:
        return DataError(f"The file cannot be read: {error.strerror}.")


def _chosen_signature(known: Mapping[str, Signature], wanted: str | None, model: str) -> Signature:
    """The wanted signature, or the first one for files that the model has."""
    for_files = [name for name in (names.EXPLAIN_BYTES, names.PREDICT_BYTES) if name in known]
    chosen = for_files[0] if wanted is None and for_files else wanted
    there = f"Model {model} has {', '.join(sorted(known)) or 'none'}."
    if chosen is None:
        expected = f"`{names.EXPLAIN_BYTES}` or `{names.PREDICT_BYTES}`, which take files"
        raise InvalidArgument(message("signature", expected, "a model that has neither", f"{there} {_EXPORT}"))
    if chosen not in for_files:
        received = f"`{chosen}`"
        raise InvalidArgument(message("signature", "one of the model that takes files", received, f"{there} {_EXPORT}"))
    signature, inputs, outputs = known[chosen], names.inputs_of(chosen), names.outputs_of(chosen)
    if set(signature.inputs) != set(inputs) or not set(outputs).issubset(signature.outputs):
        expected = f"inputs {', '.join(inputs)} and outputs {', '.join(outputs)}"
        received = f"inputs {', '.join(signature.inputs)} and outputs {', '.join(signature.outputs)}"
        raise InvalidArgument(message(chosen, expected, received, _EXPORT))
    return signature


def _target(signature: Signature, settings: Settings) -> int | None:
    """The class to explain, checked before anything is sent."""
    units = (signature.outputs[names.PROBABILITIES] or (None,))[-1]
    labels = settings.labels
    if units is None:
        units = len(labels) if labels is not None else None
    classes = 2 if units == 1 else units
    if labels is not None and len(labels) != classes:
        raise InvalidArgument(message("labels", f"the names of the {classes} classes, by index", f"{len(labels)}"))
    if settings.target is None:
        return None
    if names.CLASS_INDEX not in signature.inputs:
        remedy = "Leave --target out."
        raise InvalidArgument(message("target", f"none with `{signature.name}`", repr(settings.target), remedy))
    if labels is None and not settings.target.isdecimal():
        remedy = "Give the names with --labels: they are in assets/labels.txt of the exported model."
        raise InvalidArgument(message("target", "the index of a class", repr(settings.target), remedy))
    target = chosen_class(settings.target, labels, classes or int(settings.target) + 1)
    if units == 1 and target == 0:
        raise InvalidArgument(message("target", "class 1", "class 0", names.NEGATIVE))
    return target
