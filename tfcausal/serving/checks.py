"""Checks inside an exported model: a request that it cannot answer ends in an error that says why, in words.

A server hands the message on as that of `INVALID_ARGUMENT` (gRPC) or of status 400 (REST), behind TensorFlow's own
``assertion failed: [``. Where a server puts several requests into one batch, all of them fail with the one that is
wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfcausal.errors import message


def require(condition: tf.Tensor, text: str, *values: tf.Tensor) -> tf.Operation:
    """Check within a compiled function.

    Args:
        condition: Scalar boolean.
        text: What to say; each `{}` stands for a value.
        values: What the message shows.

    Example:
        >>> @tf.function
        ... def root(value):
        ...     with tf.control_dependencies([require(value >= 0.0, "received {}", value)]):
        ...         return tf.sqrt(value)
        >>> root(tf.constant(-1.0))
        Traceback (most recent call last):
        ...
        tensorflow.python.framework.errors_impl.InvalidArgumentError:...assertion failed: [received -1]...
    """

    def fail() -> tf.Operation:
        said = tf.strings.format(text, values, summarize=8) if values else tf.constant(text)
        return tf.debugging.Assert(condition, [said])

    return tf.cond(condition, tf.no_op, fail)


def checked_images(images: tf.Tensor, shape: Sequence[int | None]) -> tf.Tensor:
    """Images as they came with a request, checked; what is known of their shape is not trusted.

    Args:
        images: float32 of any shape.
        shape: What the model takes, (None, height, width, channels); None where any size will do.

    Returns:
        The images, of that static shape.
    """
    spelled = ", ".join(["N", *("any" if side is None else str(side) for side in shape[1:])])
    expected = f"shape ({spelled})"
    images = of_rank(images, len(shape), "images", expected)
    # With zeros behind, so that a size can be read where an axis is missing.
    received = tf.shape(images)
    size = tf.pad(received, [[0, len(shape)]])[: len(shape)]
    fits = tf.reduce_all([tf.equal(size[axis], side) for axis, side in enumerate(shape) if side is not None])
    checks = [require(fits, message("images", expected, "shape {}"), received), require_some(size[0], "images")]
    with tf.control_dependencies(checks):
        images = tf.identity(images)
    finite = tf.reduce_all(tf.math.is_finite(images))
    with tf.control_dependencies([require(finite, message("images", "finite values", "NaN or infinity"))]):
        return tf.ensure_shape(images, shape)


def checked_classes(classes: tf.Tensor, count: tf.Tensor, lowest: int, highest: int, remedy: str = "") -> tf.Tensor:
    """Class indices as they came with a request, checked.

    Args:
        classes: int64 (N,); -1 stands for the predicted class.
        count: N.
        lowest: Lowest class that there is.
        highest: Highest class that there is.
        remedy: What to do, for the message.

    Returns:
        The classes.
    """
    classes = of_rank(classes, 1, "class_index", "shape (N,)")
    known = tf.logical_or(tf.equal(classes, -1), tf.logical_and(classes >= lowest, classes <= highest))
    span = f"in [{lowest}, {highest}]" if lowest < highest else f"{highest}"
    expected = f"a class {span}, or -1 for the predicted one"
    text = message("class_index", expected, "{}", remedy)
    one_each = message("class_index", "one for every image, of shape ({},)", "shape ({},)")
    length = tf.size(classes)
    checks = [
        require(tf.reduce_all(known), text, classes),
        require(tf.equal(length, count), one_each, count, length),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(classes)


def of_rank(values: tf.Tensor, rank: int, name: str, expected: str) -> tf.Tensor:
    """An input of a request, checked for its number of axes; what is known of its shape is not trusted.

    A server in C++ does not compare a request with the signature, and TensorFlow leaves a check out that the static
    shape answers.

    Args:
        values: The input.
        rank: Number of axes.
        name: Its name.
        expected: The shape, in words.

    Returns:
        The input, of unknown sizes.
    """
    values = tf.compat.v1.placeholder_with_default(values, shape=None)
    text = message(name, expected, "shape {}")
    with tf.control_dependencies([require(tf.equal(tf.rank(values), rank), text, tf.shape(values))]):
        checked = tf.identity(values)
    checked.set_shape([None] * rank)
    return checked


def require_some(count: tf.Tensor, name: str) -> tf.Operation:
    """Check that a batch is not empty."""
    return require(count > 0, message(name, "at least one image", "an empty batch"))
