"""Checks of arguments, and checks inside a compiled step that `fit` turns into plain errors."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, TfCausalError, TrainingDiverged, WorkerLost, message
from tfcausal.graph import OperationGraph
from tfcausal.objectives.heads import Head

_ERRORS = {kind.__name__: kind for kind in (InvalidArgument, TrainingDiverged)}


def require_number(name: str, value: object, expected: str, valid: Callable[[float], bool]) -> None:
    """Check an argument that is a number.

    Args:
        name: The argument.
        value: What was given.
        expected: What is valid, in words.
        valid: Whether a number is valid.

    Raises:
        InvalidArgument: Not a real number, or not a valid one.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not valid(float(value)):
        raise InvalidArgument(message(name, expected, repr(value)))


def require_weight(name: str, value: object) -> None:
    """Raise `InvalidArgument` unless an argument can be the weight of a term."""
    require_number(name, value, "a finite number of at least 0", lambda number: 0 <= number < inf)


def require_epochs(name: str, value: object) -> None:
    """Raise `InvalidArgument` unless an argument is a number of epochs."""
    require_number(name, value, "an integer of at least 0", lambda number: number >= 0 and number % 1 == 0)


def require_layer_name(value: object) -> None:
    """Raise `InvalidArgument` unless an argument can name a layer; a layer itself could not be saved with the model."""
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(message("layer", "the name or path of a layer, or None", repr(value)))


def masked_value_of(value: Any, channels: int | None) -> float | list[float]:
    """The value of masked pixels, checked: a number, or a list of one for every channel.

    Raises:
        InvalidArgument: Neither, or not finite.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all() or array.shape not in ((), (channels,)):
        raise InvalidArgument(message("masked_value", f"a finite number, or {channels} of them", repr(value)))
    return array.tolist()


def require(condition: tf.Tensor, kind: type[TfCausalError], text: str, value: tf.Tensor) -> tf.Operation | None:
    """Check inside a compiled step; `fit` and `evaluate` turn a failure into an error of class `kind` with this text.

    Args:
        condition: Scalar boolean.
        kind: `InvalidArgument` or `TrainingDiverged`.
        text: What to say; `{}` stands for the value.
        value: Scalar or vector that the message shows.

    Raises:
        TfCausalError: Of class `kind`, where the step is run eagerly.
    """
    if tf.executing_eagerly():
        if not bool(condition):
            raise kind(text.replace("{}", str(value.numpy()).strip("[]")))
        return None
    return tf.debugging.Assert(condition, [f"tfcausal|{kind.__name__}|{text}|", value], summarize=8)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what :func:`require` found inside a compiled step into the error that it stands for."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"tfcausal\|(\w+)\|(.*?)\|\] \[([^\]]*)\]", error.message, re.DOTALL)
        if found is None:
            raise
        kind, text, value = found.groups()
        raise _ERRORS[kind](text.replace("\\'", "'").replace("{}", value)) from None
    except ValueError as error:
        if not str(error).startswith("`class_weight` is only supported"):
            raise
        remedy = "Pass the class's weight of every image as `sample_weight`."
        expected = "None where the targets are a dict of label and mask"
        raise InvalidArgument(message("class_weight", expected, "weights", remedy)) from None
    except (tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.UnavailableError) as error:
        if "Collective ops" not in error.message:
            raise
        text = "Training was stopped: another worker has failed or ended; its log says why. Start all workers again."
        raise WorkerLost(text) from None


def received_shape(value: tf.Tensor) -> tuple[str, str]:
    """What to say of a tensor of a wrong shape, and what to do about it."""
    if value.shape.rank is not None:
        return f"shape ({', '.join('N' if size is None else str(size) for size in value.shape)})", ""
    return "a tensor of unknown rank", "Keep the rank from call to call; in a tf.data pipeline, use `set_shape`."


def require_shape(value: tf.Tensor, name: str, shape: tuple[int | None, ...]) -> list[tf.Operation | None]:
    """Check a shape: at once as far as it is known, and the rest inside the step."""
    expected = f"shape ({', '.join(['N', *('any' if size is None else str(size) for size in shape[1:])])})"
    if value.shape.rank is None or not value.shape.is_compatible_with(shape):
        raise InvalidArgument(message(name, expected, *received_shape(value)))
    open_axes = [axis for axis, size in enumerate(shape) if size is not None and value.shape[axis] is None]
    if not open_axes:
        return []
    sizes = tf.shape(value)
    fits = tf.reduce_all([sizes[axis] == shape[axis] for axis in open_axes])
    return [require(fits, InvalidArgument, message(name, expected, "shape ({})"), sizes)]


def require_share(value: tf.Tensor, name: str) -> tf.Operation | None:
    """Check that all values of a tensor lie in [0, 1]."""
    value = tf.cast(value, tf.float32)
    outside = tf.logical_not(tf.logical_and(value >= 0, value <= 1))
    count = tf.math.count_nonzero(outside)
    text = message(name, "values in [0, 1]", "{} values outside", "Divide masks of 0 and 255 by 255.")
    return require(tf.equal(count, 0), InvalidArgument, text, count)


def require_one_each(value: tf.Tensor, name: str, images: tf.Tensor) -> list[tf.Operation | None]:
    """Check that there is one finite number of at least 0 for every image."""
    text = message(name, "one number for every image", "shape ({})")
    fits = require(tf.equal(tf.size(value), images), InvalidArgument, text, tf.shape(value))
    finite, least = require_finite(value, name, InvalidArgument), tf.reduce_min(value)
    return [fits, finite, require(least >= 0, InvalidArgument, message(name, "numbers of at least 0", "{}"), least)]


def require_finite(value: tf.Tensor, name: str, kind: type[TfCausalError]) -> tf.Operation | None:
    """Check that a tensor has no NaN or infinity."""
    bad = tf.size(value) - tf.math.count_nonzero(tf.math.is_finite(value), dtype=tf.int32)
    if kind is TrainingDiverged:
        text = "Training was stopped: the loss is NaN or infinite. Lower the learning rate or the weights of the terms."
    else:
        text = message(name, "finite values", "{} values that are NaN or infinite", "Clean the data.")
    return require(tf.equal(bad, 0), kind, text, bad)


def require_images_in(graph: OperationGraph) -> None:
    """A backbone takes one input, images or volumes with the channels last, and adds nothing to the loss itself."""
    expected = received = ""
    if len(graph.inputs) != 1:
        expected, received = "a classifier with one input", f"{len(graph.inputs)} inputs"
    elif len(graph.input_shape) not in (4, 5):
        expected = "a classifier of images (N, height, width, channels) or volumes"
        received = f"inputs {graph.input_shape}"
    for operation in graph.operations:
        if getattr(operation.layer, "data_format", None) == "channels_first":
            expected, received = "layers with the channels last", f"channels first in `{operation.path}`"
        if getattr(operation.layer, "activity_regularizer", None) is not None:
            expected, received = "layers without an activity regulariser", f"one in `{operation.path}`"
    if expected:
        raise InvalidArgument(message("backbone", expected, received))


def head_of(graph: OperationGraph, multi_label: bool | None) -> Head:
    """What the units of the head stand for."""
    if multi_label not in (None, True, False):
        raise InvalidArgument(message("multi_label", "True, False or None", repr(multi_label)))
    last = graph.producer(graph.output)
    split = graph.output != graph.logits and last is not None
    softmax = split and last is not None and keras_api.is_softmax(last.layer)
    units = graph.num_classes
    if units == 1 and softmax:
        raise InvalidArgument(message("backbone", "one unit with a sigmoid, or several", "a softmax over one unit"))
    if units == 1:
        if multi_label:
            raise InvalidArgument(message("multi_label", "None with one unit, a binary head", "True"))
        return "binary"
    found: bool | None = None if not split else not softmax
    if None not in (multi_label, found) and multi_label != found:
        name = "sigmoid" if found else "softmax"
        remedy = f"Leave it out, or give the backbone a {'softmax' if found else 'sigmoid'}."
        raise InvalidArgument(message("multi_label", f"{found} for a head with a {name}", repr(multi_label), remedy))
    return "multi_label" if (found if multi_label is None else multi_label) else "multi_class"


def require_matching_loss(loss: Any, head: Head, has_logits: bool) -> None:
    """The compiled loss must read the outputs as what they are."""
    name, from_logits = keras_api.loss_description(loss)
    if name in ("sparse_categorical_crossentropy", "categorical_crossentropy") and head != "multi_class":
        expected = f"binary_crossentropy for a {head.replace('_', '-')} head"
        raise InvalidArgument(message("loss", expected, name))
    if from_logits is not None and from_logits != has_logits:
        outputs = "logits: its head has no activation" if has_logits else "probabilities"
        expected = f"from_logits={has_logits}, as the backbone gives {outputs}"
        raise InvalidArgument(message("loss", expected, f"{name} with from_logits={from_logits}"))


def require_mask_use(name: str, mask_use: str, given: bool, training: bool) -> None:
    """Masks go to methods that learn from them, and to no others."""
    if given and mask_use == "none":
        remedy = "Pass the labels alone."
        raise InvalidArgument(message("y", f"labels alone: {name} uses no masks", "a dict with `mask`", remedy))
    if not given and mask_use == "needed" and training:
        expected = f"a dict of `label`, `mask` and `has_mask` (0 for an image without a mask): {name} learns from masks"
        raise InvalidArgument(message("y", expected, "labels alone", "Without masks, train a plain Keras model."))
