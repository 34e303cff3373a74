"""Questions to an exported model, with the answers that the model in Python gives to them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tfcausal.data.decoding import decode_image, to_shares
from tfcausal.effects.expected import ConceptEffects
from tfcausal.saliency.base import Explainer
from tfcausal.serving import names
from tfcausal.serving.signatures import Served
from tfcausal.serving.warm_up import Request

_ORIENTATION = 0x0112  # of EXIF
_SIDES = ((1.0, 1.0), (2.2, 0.7), (4.5, 7.3))  # of the files, in sides of the model's input
_MODES = ("RGB", "L", "RGBA")


@dataclass(frozen=True)
class Probe:
    """A question and what is to be answered.

    Attributes:
        request: The question.
        expected: Arrays by the names of outputs; texts are arrays of bytes.
    """

    request: Request
    expected: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(next(iter(self.request.inputs.values())))


def probes(served: Served, explainer: Explainer, batch_sizes: Sequence[int], seed: int = 0) -> list[Probe]:
    """Questions to every signature, with batches of different sizes.

    Images are noise over blocks of pixels. Files are PNG and JPEG in colour, grey and transparent, of different sizes,
    some to be turned. The classes to explain are the predicted one and all others in turn.

    Args:
        served: What was exported.
        explainer: An explainer of the same method, not the one that was traced.
        batch_sizes: How many images each.
        seed: Seed of the images.

    Returns:
        The questions, with the answers of the model, of the explainer and of `tfcausal.effects`.
    """
    generator = np.random.default_rng(seed)
    made: list[Probe] = []
    for count in batch_sizes:
        low, high = served.pixels
        shares = np.stack([_noise(generator, served.shape) for _ in range(count)]) / np.float32(255.0)
        images = (low + (high - low) * shares).astype(np.float32)
        contents = [_file(generator, served.shape, number) for number in range(count)]
        read = np.stack([to_shares(decode_image(content, *served.shape)[0], served.shape) for content in contents])
        decoded = (low + (high - low) * read).astype(np.float32)
        files = np.array(contents)
        lowest = 1 if served.head == "binary" else 0
        classes = np.arange(count) % (len(served.labels) - lowest + 1) - 1
        classes = np.where(classes < 0, -1, classes + lowest)
        for values, given, predict, explain in (
            (images, {names.IMAGES: images}, names.PREDICT, names.EXPLAIN),
            (decoded, {names.IMAGE_BYTES: files}, names.PREDICT_BYTES, names.EXPLAIN_BYTES),
        ):
            answers = _answers(served, values)
            made.append(Probe(Request(predict, given), answers))
            asked = {**given, names.CLASS_INDEX: classes}
            made.append(Probe(Request(explain, asked), _explained(served, explainer, values, classes, answers)))
        for signature, concepts in served.levels.items():
            with warnings.catch_warnings():  # noise tells nothing about how faithful an autoencoder is
                warnings.filterwarnings("ignore", "Through the autoencoder", UserWarning)
                result = ConceptEffects(concepts)(images)
            expected = {
                names.CONCEPT_EFFECTS: result.intervened[:, :, 0] - result.observed[:, None],
                names.OBSERVED: result.observed,
                names.PROBABILITIES: _outputs(served, images),
            }
            made.append(Probe(Request(signature, {names.IMAGES: images}), expected))
    return made


def _answers(served: Served, images: np.ndarray) -> dict[str, np.ndarray]:
    logits = np.asarray(served.graph.run(images)[served.graph.logits]).astype(np.float32)
    if served.graph.output != served.graph.logits:
        probabilities = _outputs(served, images)
    elif served.head == "multi_class":
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
    else:
        probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    predicted = (logits[:, 0] > 0).astype(np.int64) if served.head == "binary" else logits.argmax(axis=1)
    return {
        names.PROBABILITIES: probabilities,
        names.LOGITS: logits,
        names.CLASS_INDEX: predicted,
        names.LABEL: _labels(served, predicted),
    }


def _explained(
    served: Served, explainer: Explainer, images: np.ndarray, classes: np.ndarray, answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    binary = served.head == "binary"
    explained = np.ones_like(classes) if binary else np.where(classes < 0, answers[names.CLASS_INDEX], classes)
    return {
        **answers,
        names.CLASS_INDEX: explained,
        names.LABEL: _labels(served, explained),
        names.MAP: explainer(images, np.zeros_like(classes) if binary else explained),
    }


def _outputs(served: Served, images: np.ndarray) -> np.ndarray:
    """What the model gives when it is called; of several outputs the one that is explained."""
    graph, outputs = served.graph, served.model(images, training=False)
    if not tf.is_tensor(outputs):
        outputs = graph.run(images, until=graph.output)[graph.output]
    return np.asarray(outputs).astype(np.float32)


def _labels(served: Served, classes: np.ndarray) -> np.ndarray:
    return np.array([served.labels[index].encode() for index in classes])


def _noise(generator: np.random.Generator, shape: tuple[int, int, int]) -> Any:
    """Blocks of pixels of one value, uint8; the value of a pixel alone would be gone in a JPEG file."""
    height, width, channels = shape
    blocks = generator.integers(0, 256, (-(-height // 3), -(-width // 3), channels), dtype=np.uint8)
    return blocks.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]


def _file(generator: np.random.Generator, shape: tuple[int, int, int], number: int) -> bytes:
    rows, columns = _SIDES[number % len(_SIDES)]
    mode, jpeg = _MODES[number // 2 % len(_MODES)], number % 2 == 1
    mode = "RGB" if jpeg and mode == "RGBA" else mode
    sides = max(1, round(rows * shape[0])), max(1, round(columns * shape[1]))
    pixels = _noise(generator, (*sides, len(mode)))
    stream, exif = io.BytesIO(), Image.Exif()
    exif[_ORIENTATION] = 1 + number % 8
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    image.save(stream, "JPEG" if jpeg else "PNG", exif=exif)
    return stream.getvalue()
