"""The targets of a training batch: labels for every kind of head, and masks of the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.checks import received_shape, require, require_shape, require_share
from tfcausal.objectives.heads import Head, one_label

Checks = list[tf.Operation | None]


@dataclass(frozen=True)
class Targets:
    """The targets of a batch.

    Attributes:
        label: The label as it was given, for the compiled loss and metrics.
        classes: The class whose evidence is looked at, int64 (N,): the class of the image; with a multi-label head one
            of its labels, drawn anew in every step of training.
        present: 1 where there is such a class, (N,) float32; 0 for an image without any label.
        mask: Masks of the cause, (N, H, W, 1); one for every label, (N, H, W, labels), where a model takes those; of
            volumes (N, slices, H, W, 1). Or None.
        has_mask: 1 where the mask is a real one, (N,), or (N, labels) with a mask for every label. Or None.
        sample_weight: What `fit` was given as such, (N,), or None.
    """

    label: tf.Tensor
    classes: tf.Tensor
    present: tf.Tensor
    mask: tf.Tensor | None
    has_mask: tf.Tensor | None
    sample_weight: tf.Tensor | None = None


def read_targets(
    y: Any,
    head: Head,
    outputs: int,
    mask_shape: tuple[int | None, ...],
    scores: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[Targets, Checks]:
    """Read what `fit` was given as `y`.

    Args:
        y: Labels, or a dict of `label`, `mask` and `has_mask`.
        head: The kind of head.
        outputs: Number of logits.
        mask_shape: Shape of the masks, None where any size will do; a last None stands for 1 or `outputs`.
        scores: Takes labels (N, outputs); gives scores in [0, 1) in their shape, that decide which label is looked at.

    Returns:
        The targets, and the checks inside the step that must come before they are used.

    Raises:
        InvalidArgument: Another form or shape.
    """
    given = y if isinstance(y, dict) else {"label": y}
    label, mask, has_mask = (given.get(name) for name in ("label", "mask", "has_mask"))
    if label is None or (mask is None and has_mask is not None) or given.keys() - {"label", "mask", "has_mask"}:
        received = f"a dict of {', '.join(y)}" if isinstance(y, dict) else type(y).__name__
        raise InvalidArgument(message("y", "labels, or a dict with `label`, `mask` and `has_mask`", received))
    if head == "multi_label":
        rows, checks = _label_rows(label, outputs)
        classes, present = one_label(rows, scores(rows))
    else:
        classes, checks = _classes(label, head, outputs)
        present = tf.ones(tf.shape(classes), tf.float32)
    if mask is not None:
        mask = tf.convert_to_tensor(mask)
        mask = mask if mask.dtype.is_floating else tf.cast(mask, tf.float32)
        checks += [*require_shape(mask, "y['mask']", mask_shape), require_share(mask, "y['mask']")]
        labels = outputs if mask_shape[-1] is None else 1
        checks += _require_channels(mask, labels)
        if has_mask is None:
            has_mask = tf.ones(tf.shape(mask)[:1])
        has_mask, flag_checks = _flags(has_mask, tf.shape(mask)[0], labels)
        checks += flag_checks
    with tf.control_dependencies([check for check in checks if check is not None]):
        classes = tf.identity(classes)
    return Targets(label, classes, present, mask, has_mask), checks


def class_indices(label: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Class indices from integer labels (N,) or (N, 1), or from one-hot rows (N, classes).

    Args:
        label: The labels.
        num_classes: Number of classes.

    Returns:
        int64 (N,).

    Raises:
        InvalidArgument: Another shape.

    Example:
        >>> import tensorflow as tf
        >>> class_indices(tf.constant([[0.0, 1.0], [1.0, 0.0]]), 2).numpy().tolist()
        [1, 0]
    """
    label = tf.convert_to_tensor(label)
    rank, last = label.shape.rank, label.shape[-1] if label.shape.rank else None
    if rank == 2 and last == num_classes and num_classes > 1:
        return tf.argmax(label, axis=-1)
    if rank == 1 or (rank == 2 and last == 1):
        return tf.cast(tf.reshape(label, (-1,)), tf.int64)
    expected = f"class indices of shape (N,) or one-hot rows of shape (N, {num_classes})"
    raise InvalidArgument(message("y", expected, *received_shape(label)))


def _classes(label: Any, head: Head, outputs: int) -> tuple[tf.Tensor, Checks]:
    label = tf.convert_to_tensor(label)
    if head == "binary":
        if label.shape.rank != 1 and (label.shape.rank != 2 or label.shape[-1] != 1):
            received, remedy = received_shape(label)
            remedy = remedy or "One unit tells two classes apart; more classes need as many units."
            raise InvalidArgument(message("y", "0 or 1, of shape (N,) or (N, 1)", received, remedy))
        classes, count = class_indices(label, 1), 2
    else:
        classes, count = class_indices(label, outputs), outputs
    return classes, [_require_one_class(label), _require_labels(classes, count)]


def _label_rows(label: Any, outputs: int) -> tuple[tf.Tensor, Checks]:
    """Rows of 0 and 1, one column per label."""
    label = tf.convert_to_tensor(label)
    if label.shape.rank != 2 or label.shape[-1] not in (outputs, None):
        expected = f"rows of 0 and 1 of shape (N, {outputs}), one column for every sigmoid of the head"
        received, remedy = received_shape(label)
        remedy = remedy or "For one class per image use a softmax head."
        raise InvalidArgument(message("y", expected, received, remedy))
    rows = tf.cast(label, tf.float32)
    count = tf.math.count_nonzero(tf.logical_and(tf.not_equal(rows, 0), tf.not_equal(rows, 1)))
    text = message("y", "rows of 0 and 1, one column for every sigmoid of the head", "{} other values")
    wrong = require(tf.equal(count, 0), InvalidArgument, text, count)
    return rows, [*require_shape(label, "y", (None, outputs)), wrong]


def _require_channels(mask: tf.Tensor, labels: int) -> Checks:
    """Masks have one channel, or one for every label."""
    expected = f"1 channel, or one for each of the {labels} labels"
    if mask.shape[-1] is not None and mask.shape[-1] not in (1, labels):
        raise InvalidArgument(message("y['mask']", expected, mask.shape[-1]))
    channels = tf.shape(mask)[-1]
    fits = tf.logical_or(tf.equal(channels, 1), tf.equal(channels, labels))
    return [require(fits, InvalidArgument, message("y['mask']", expected, "{}"), channels)]


def _flags(has_mask: Any, images: tf.Tensor, labels: int) -> tuple[tf.Tensor, Checks]:
    """Which masks are real ones, (N,); (N, labels) where it is told for every label."""
    flags = tf.convert_to_tensor(has_mask)
    flags = flags if flags.dtype.is_floating else tf.cast(flags, tf.float32)
    expected = "shape (N,)" if labels == 1 else f"shape (N,) or (N, {labels})"
    fits = tf.logical_or(tf.equal(tf.size(flags), images), tf.equal(tf.size(flags), labels * images))
    text = message("y['has_mask']", expected, "shape ({})")
    checks = [require(fits, InvalidArgument, text, tf.shape(flags)), require_share(flags, "y['has_mask']")]
    with tf.control_dependencies([check for check in checks if check is not None]):
        per_image = labels == 1 or flags.shape.rank == 1 or flags.shape[-1:] == (1,)
        return tf.reshape(flags, (-1,) if per_image else tf.stack([images, -1])), checks


def _require_one_class(label: tf.Tensor) -> tf.Operation | None:
    """Rows of several classes, or of none, and class indices with a fraction must not be read as one class."""
    if label.shape.rank == 2 and label.shape[-1] != 1:
        sums = tf.reduce_sum(tf.cast(label, tf.float32), axis=-1)
        text = message("y", "rows that sum to 1, for one class per image", "{} other rows", "Give class indices.")
        wrong = tf.abs(sums - 1.0) > 1e-3
    else:
        wrong = tf.not_equal(label, tf.round(label)) if label.dtype.is_floating else tf.zeros_like(label, tf.bool)
        text = message("y", "class indices", "{} values with a fraction")
    count = tf.math.count_nonzero(wrong)
    return require(tf.equal(count, 0), InvalidArgument, text, count)


def _require_labels(classes: tf.Tensor, num_classes: int) -> tf.Operation | None:
    outside = tf.logical_or(classes < 0, classes >= num_classes)
    first = tf.reduce_max(tf.where(outside, classes, tf.zeros_like(classes) - 1))
    worst = tf.where(tf.reduce_any(classes < 0), tf.reduce_min(classes), first)
    text = message(
        "y", f"labels in [0, {num_classes - 1}]", "the label {}", "Check the labels or the size of the head."
    )
    return require(tf.logical_not(tf.reduce_any(outside)), InvalidArgument, text, worst)
