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

from tfcausal.errors import InvalidArgument, TfCausalError, TrainingDiverged, message

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
    except (tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.UnavailableError) as error:
        if "Collective ops" not in error.message:
            raise
        text = "Training was stopped: another worker has failed or ended; its log says why. Start all workers again."
        raise TfCausalError(text) from None


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
