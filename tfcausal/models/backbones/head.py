"""What every backbone shares: the checks of its arguments, and the layers that turn features into an answer."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message

ACTIVATIONS = ("softmax", "sigmoid")


def classified(features: Any, num_classes: int, classifier_activation: str | None) -> Any:
    """Put a classifier on pooled features: a dense layer `logits`, then the activation `predictions`.

    Args:
        features: Symbolic tensor (N, features).
        num_classes: Number of logits.
        classifier_activation: `softmax`, `sigmoid`, or None to end with the logits.

    Returns:
        Symbolic tensor (N, num_classes).

    Example:
        >>> import keras
        >>> inputs = keras.Input((5,))
        >>> [layer.name for layer in keras.Model(inputs, classified(inputs, 3, "softmax")).layers[1:]]
        ['logits', 'predictions']
    """
    return answered(keras.layers.Dense(num_classes, name="logits")(features), classifier_activation)


def answered(logits: Any, classifier_activation: str | None) -> Any:
    """Apply the activation `predictions` to logits; in mixed precision it is computed in float32."""
    if classifier_activation is None:
        return logits
    dtype = "float32" if tf.as_dtype(logits.dtype).size < 4 else None
    return keras.layers.Activation(classifier_activation, dtype=dtype, name="predictions")(logits)


def check_head(num_classes: object, classifier_activation: object, dropout: object = 0.0) -> None:
    """Check the arguments that every backbone has.

    Args:
        num_classes: An integer of at least 1; 1 stands for a binary head of one logit.
        classifier_activation: `softmax`, `sigmoid` or None.
        dropout: A share in [0, 1).

    Raises:
        InvalidArgument: One of them is something else, or the softmax has a single class.
    """
    if not positive_integers([num_classes]):
        raise InvalidArgument(message("num_classes", "an integer of at least 1", repr(num_classes)))
    if classifier_activation is not None and classifier_activation not in ACTIVATIONS:
        raise InvalidArgument(
            message("classifier_activation", "'softmax', 'sigmoid' or None", repr(classifier_activation))
        )
    if num_classes == 1 and classifier_activation == "softmax":
        remedy = "A softmax of one class is always 1: for a binary head of one logit, set it to 'sigmoid'."
        raise InvalidArgument(message("classifier_activation", "'sigmoid' or None for one class", "'softmax'", remedy))
    check_dropout(dropout)


def check_dropout(dropout: object) -> None:
    """Raise `InvalidArgument` unless `dropout` is a share in [0, 1)."""
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real) or not 0 <= float(dropout) < 1:
        raise InvalidArgument(message("dropout", "a share in [0, 1)", repr(dropout)))


def check_image_shape(input_shape: object, smallest: int = 1, why: str = "") -> None:
    """Check the shape of an image.

    Args:
        input_shape: (height, width, channels).
        smallest: Smallest height and width.
        why: What needs this size, as a sentence.

    Raises:
        InvalidArgument: Not three positive integers, or an image that is too small.
    """
    if not positive_integers(input_shape) or len(input_shape) != 3:
        raise InvalidArgument(message("input_shape", "(height, width, channels)", repr(input_shape)))
    if min(input_shape[:2]) < smallest:
        expected = f"an image of at least {smallest} x {smallest} pixels"
        raise InvalidArgument(message("input_shape", expected, repr(input_shape), why))


def positive_integers(values: object) -> TypeGuard[Sequence[int]]:
    """Whether these are integers of at least 1, as a list or tuple; it may be empty."""
    return isinstance(values, Sequence) and all(
        isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1 for value in values
    )
