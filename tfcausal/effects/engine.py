"""Many interventions on concepts at once: what lies before them is run once, what lies behind in full batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.effects.channels import Concepts
from tfcausal.effects.downstream import Downstream
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.saliency.base import check_images, check_inputs

_BYTES = 1 << 30
_LARGEST_BATCH = 64
_MOST_ROWS = 256
_UNKNOWN_SIDE = 224


@dataclass(frozen=True)
class Answers:
    """What the network says: to images as they are, through the untouched autoencoder, and under interventions.

    Attributes:
        model: Logits and outputs of the network, each (N, classes).
        untouched: Logits and outputs through the untouched autoencoder, each (N, classes).
        intervened: Logits or outputs for the classes asked for, (N, groups, values, classes asked for).
        lowest: Smallest code of every concept, over the images and all places, (K,).
        highest: The largest.
        counts: How many codes are nearest to each value, (K, values).
    """

    model: tuple[np.ndarray, np.ndarray]
    untouched: tuple[np.ndarray, np.ndarray]
    intervened: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Distribution:
    """Which values the concepts have, over the images and all places.

    Attributes:
        lowest: (K,).
        highest: (K,).
        mean: (K,).
        drawn: Codes at places drawn at random, (N, draws, K): a place has one code of every concept.
    """

    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray
    drawn: np.ndarray


class InterventionEngine:
    """Runs a classifier under interventions on its concepts.

    For every batch of images the network up to the layer and the encoder run once. The rows of all interventions, one
    for every image, group of concepts and value, then go through the decoder and the rest of the network in passes of
    at most `rows` of them, all in one compiled function that is traced once, for batches of any size. An intervention
    that leaves an image's codes bit for bit as they are is none: it gives exactly what the untouched autoencoder gives,
    also where a processor adds up in another order in another row of a batch.

    Args:
        concepts: What gives the codes.
        batch_size: Images per pass up to the layer, and rows per pass behind it; None chooses both by the memory that
            the activations take.

    Attributes:
        batch_size: Images per pass up to the layer.
        rows: Most rows per pass behind the layer.

    Raises:
        InvalidArgument: `batch_size` is not a positive integer.
    """

    def __init__(self, concepts: Concepts, batch_size: int | None = None) -> None:
        check_batch_size(batch_size)
        self.concepts = concepts
        self.downstream = concepts.downstream
        graph = self.downstream.graph
        self.batch_size = batch_size or fitting(graph.activation_bytes(), _LARGEST_BATCH)
        self.rows = batch_size or fitting(_bytes_behind(self.downstream, concepts.concepts), _MOST_ROWS)
        self._functions: dict[tuple[bool, bool], Callable[..., Any]] = {}
        draws = tf.TensorSpec((None, None), tf.float32)
        self._distribution = self._traced(self._batch_distribution, [self._images(), draws])
        self._untouched = self._traced(self._batch_untouched, [self._images()])
        edges = tf.TensorSpec((None, None), tf.float32)
        self._counts = self._traced(self._batch_counts, [self._images(), edges])

    def _images(self) -> tf.TensorSpec:
        return tf.TensorSpec((None, *self.downstream.graph.input_shape[1:]), tf.float32)

    def untouched(self, images: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Logits and outputs of the network, and those through the untouched autoencoder, each (N, classes)."""
        parts = [run(self._untouched, images[part]) for part in batches(len(images), self.batch_size)]
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        return (joined[0], joined[1]), (joined[2], joined[3])

    def distribution(self, images: np.ndarray, draws: np.ndarray) -> Distribution:
        """Which values the concepts have in images.

        Args:
            images: (N, height, width, channels).
            draws: Numbers in [0, 1), (N, draws), which choose the places that codes are drawn from.
        """
        parts = [run(self._distribution, images[part], draws[part]) for part in batches(len(images), self.batch_size)]
        lowest, highest, total, count, drawn = zip(*parts, strict=True)
        low, high = np.min(lowest, axis=0), np.max(highest, axis=0)
        # The mean of equal values can miss them by rounding.
        mean = np.clip((np.sum(total, axis=0) / np.sum(count)).astype(np.float32), low, high)
        return Distribution(low, high, mean, np.concatenate(drawn))

    def counts(self, images: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """How many codes of images, over all places, are nearest to each value, (K, values); `edges` as for answers."""
        parts = [run(self._counts, images[part], edges)[0] for part in batches(len(images), self.batch_size)]
        return np.sum(parts, axis=0)

    def answers(
        self,
        images: np.ndarray,
        groups: np.ndarray,
        values: np.ndarray,
        edges: np.ndarray,
        classes: np.ndarray,
        logits: bool = False,
    ) -> Answers:
        """Answers of the network to images under interventions.

        Args:
            images: (N, height, width, channels).
            groups: Which concepts each intervention sets, booleans (groups, K).
            values: What they are set to, (N, values, K), or (1, values, K) for all images the same.
            edges: Between which of the values a code is nearest to one and the next, ascending (K, values - 1).
            classes: Whose answers under interventions are kept, (classes asked for,).
            logits: Whether the answers under interventions are logits instead of outputs.

        Raises:
            InvalidArgument: The network gives values that are not finite, or cannot compute with these images.
        """
        counted = edges.shape[1] > 0
        if (logits, counted) not in self._functions:
            self._functions[logits, counted] = self._compiled(logits, counted)
        function = self._functions[logits, counted]
        parts = []
        for part in batches(len(images), self.batch_size):
            own = np.broadcast_to(values, (len(images), *values.shape[1:]))[part]
            parts.append(run(function, images[part], groups, own, edges, classes.astype(np.int32)))
        arrays = list(zip(*parts, strict=True))
        joined = [np.concatenate(values) for values in arrays[:5]]
        return Answers(
            model=(joined[0], joined[1]),
            untouched=(joined[2], joined[3]),
            intervened=joined[4],
            lowest=np.min(arrays[5], axis=0),
            highest=np.max(arrays[6], axis=0),
            counts=np.sum(arrays[7], axis=0),
        )

    def _compiled(self, logits: bool, counted: bool) -> Callable[..., Any]:
        concepts = self.concepts.concepts
        signature = [
            self._images(),
            tf.TensorSpec((None, concepts), tf.bool),
            tf.TensorSpec((None, None, concepts), tf.float32),
            tf.TensorSpec((concepts, None), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]

        return self._traced(partial(self._batch_answers, logits, counted), signature)

    def _traced(self, function: Callable[..., Any], signature: list[Any]) -> Callable[..., Any]:
        """Compile a function once, for batches of any size."""

        def losses_kept(*arguments: tf.Tensor) -> Any:
            with keras_api.losses_kept(self.concepts.network):
                return function(*arguments)

        return tf.function(losses_kept, input_signature=signature, autograph=False)

    def _batch_untouched(self, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        known = self.downstream.known(images)
        return self._model_and_untouched(known, self.concepts.encode(known[self.downstream.position]))

    def _model_and_untouched(self, known: dict[int, tf.Tensor], codes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        model = self._both(known)
        decoded = self.concepts.decode(codes)
        return *model, *(model if decoded is known[self.downstream.position] else self._both(known, decoded))

    def _both(self, known: dict[int, tf.Tensor], activation: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits and output."""
        logits = self.downstream.logits(known, activation)
        return tf.cast(logits, tf.float32), tf.cast(self.downstream.output(logits), tf.float32)

    def _batch_distribution(self, images: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, ...]:
        codes = tf.cast(self._codes(images), tf.float32)
        flat = tf.reshape(codes, (tf.shape(codes)[0], -1, self.concepts.concepts))
        places = tf.cast(tf.shape(flat)[1], tf.float32)
        chosen = tf.minimum(tf.cast(draws * places, tf.int32), tf.shape(flat)[1] - 1)
        total = tf.reduce_sum(tf.cast(flat, tf.float64), (0, 1))
        count = tf.size(flat, tf.int64) // self.concepts.concepts
        drawn = tf.gather(flat, chosen, axis=1, batch_dims=1)
        return tf.reduce_min(flat, (0, 1)), tf.reduce_max(flat, (0, 1)), total, count, drawn

    def _batch_counts(self, images: tf.Tensor, edges: tf.Tensor) -> tuple[tf.Tensor]:
        codes = tf.cast(self._codes(images), tf.float32)
        return (_counts(tf.reshape(codes, (-1, self.concepts.concepts)), edges),)

    def _codes(self, images: tf.Tensor) -> tf.Tensor:
        return self.concepts.encode(self.downstream.known(images)[self.downstream.position])

    def _batch_answers(
        self,
        logits: bool,
        counted: bool,
        images: tf.Tensor,
        groups: tf.Tensor,
        values: tf.Tensor,
        edges: tf.Tensor,
        classes: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        known = self.downstream.known(images)
        codes = self.concepts.encode(known[self.downstream.position])
        answers = self._model_and_untouched(known, codes)
        untouched = tf.gather(answers[2 if logits else 3], classes, axis=-1)
        values = tf.cast(values, codes.dtype)
        each = tf.shape(groups)[0] * tf.shape(values)[1]
        total = tf.shape(images)[0] * each
        # Passes of equal size, so that none has a few rows left over.
        passes = -(-total // self.rows)
        rows = -(-total // passes)
        between = [1] * (codes.shape.rank - 2)

        def update(start: tf.Tensor, gathered: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            row = tf.range(start, tf.minimum(start + rows, total))
            image, number = row // each, row % each
            group, value = number // tf.shape(values)[1], number % tf.shape(values)[1]
            own = tf.gather(codes, image)
            shape = [-1, *between, self.concepts.concepts]
            replaced = tf.reshape(tf.gather(groups, group), shape)
            changed = tf.where(replaced, tf.reshape(tf.gather_nd(values, tf.stack([image, value], 1)), shape), own)
            changed = tf.ensure_shape(changed, codes.shape)
            several = {position: tf.gather(tensor, image) for position, tensor in known.items()}
            answer = self._both(several, self.concepts.decode(changed))[0 if logits else 1]
            same = tf.reduce_all(tf.equal(changed, own), axis=range(1, codes.shape.rank), keepdims=True)
            same = tf.reshape(same, (-1, 1))
            answer = tf.where(same, tf.gather(untouched, image), tf.gather(answer, classes, axis=-1))
            return start + rows, gathered.write(start // rows, answer)

        array = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False, element_shape=(None, None))
        _, array = tf.while_loop(lambda start, _: start < total, update, (tf.constant(0), array), parallel_iterations=1)
        shape = tf.stack([tf.shape(images)[0], tf.shape(groups)[0], tf.shape(values)[1], tf.size(classes)])
        intervened = tf.reshape(array.concat(), shape)
        flat = tf.reshape(tf.cast(codes, tf.float32), (-1, self.concepts.concepts))
        counts = _counts(flat, edges) if counted else tf.reduce_sum(tf.ones_like(flat[:1]), 0)[:, None]
        return *answers, intervened, tf.reduce_min(flat, 0), tf.reduce_max(flat, 0), counts


def _counts(codes: tf.Tensor, edges: tf.Tensor) -> tf.Tensor:
    """How many codes (codes, K) lie below, between and above edges (K, edges): (K, edges + 1)."""
    intervals = tf.shape(edges)[1] + 1
    concepts = tf.shape(edges)[0]
    interval = tf.searchsorted(edges, tf.transpose(codes))
    bins = tf.reshape(interval + intervals * tf.range(concepts)[:, None], (-1,))
    counts = tf.math.bincount(bins, minlength=concepts * intervals)
    return tf.cast(tf.reshape(counts, (concepts, intervals)), tf.float64)


def _bytes_behind(downstream: Downstream, concepts: int) -> int:
    """Memory that one row takes behind a layer, in bytes of float32: the decoder and all that depends on the layer."""
    places = prod(_UNKNOWN_SIDE if size is None else size for size in downstream.shape[1:-1])
    size = 4 * places * (2 * (downstream.shape[-1] or 1) + 4 * concepts)
    behind = {downstream.position}
    for operation in downstream.graph.operations:
        if behind.isdisjoint(operation.inputs):
            continue
        behind.update(operation.outputs)
        for shape in operation.shapes:
            sides = (_UNKNOWN_SIDE if side is None else side for side in shape[1:])
            size += 4 * max(1, operation.rows) * prod(sides)
    return size


def fitting(size: int, most: int) -> int:
    """How many rows of this size in bytes to compute at once, at most `most`."""
    return int(min(most, max(1, _BYTES // (2 * max(1, size)))))


def check_batch_size(batch_size: object) -> None:
    """Raise `InvalidArgument` unless it is None or a positive integer."""
    wrong = isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    if batch_size is not None and wrong:
        raise InvalidArgument(message("batch_size", "a positive integer or None", repr(batch_size)))


def batches(count: int, size: int) -> Iterator[slice]:
    """The slices of `size` rows that `count` rows are made of."""
    return (slice(start, start + size) for start in range(0, count, size))


def run(function: Callable[..., Any], images: np.ndarray, *arguments: np.ndarray) -> list[np.ndarray]:
    """Call a compiled function with a batch of images; gives its tensors as finite arrays.

    Raises:
        InvalidArgument: The network cannot compute with these images, as it may be with a size that does not fit, or
            gives values that are not finite.
    """
    try:
        arrays = [tensor.numpy() for tensor in function(images, *arguments)]
    except tf.errors.InvalidArgumentError as error:
        expected = "images that every layer of the model can compute with"
        remedy = f"TensorFlow says: {_reason(error.message)}"
        raise InvalidArgument(message("images", expected, f"shape {images.shape}", remedy)) from None
    if not all(np.isfinite(array).all() for array in arrays):
        expected = "values that the model can compute with in its precision"
        received = f"values up to {np.abs(images).max():.3g}, with which it gives NaN or infinity"
        raise InvalidArgument(message("images", expected, received))
    return arrays


def _reason(text: str) -> str:
    """The line of an error of TensorFlow that says what is wrong: the last but for the names of operations."""
    text = re.sub(r"\[\[\{\{.*?\}\}\]\]|\{\{function_node.*?\}\}|\[Op:[^\]]*\]", "", text)
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "nothing more").rstrip(".")


def checked_images(images: object, graph: OperationGraph, name: str = "images") -> np.ndarray:
    """Images as a float32 array that a classifier of one input takes.

    Raises:
        InvalidArgument: As for :func:`tfcausal.saliency.base.check_inputs`.
    """
    if name == "images":
        return check_inputs(images, graph)[0]
    return check_inputs(check_images(images, graph.input_shape, name), graph)[0]
