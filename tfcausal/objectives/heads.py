"""What a classifier's head says about one class: from logits of any head to logits of a single choice.

The objectives of the papers are written for one label among several classes. Two more heads are brought to that form
here. A *binary* head has one logit ``z``, with ``p = sigmoid(z)``: its two classes have the logits 0 and ``z``. A
*multi-label* head has one independent logit per label: of every image one label ``c`` is looked at, and "has it or has
it not" is a choice between the logits 0 and ``z_c``, the other labels left alone.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

Head = Literal["multi_class", "binary", "multi_label"]


def choice(logits: tf.Tensor, classes: tf.Tensor, head: Head) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits of a choice among exclusive classes, and which of them is the true one.

    Args:
        logits: What the head gives before its softmax or sigmoid, (N, outputs).
        classes: Integers (N,): the class; for a multi-label head the label that is looked at, which the image has.
        head: `multi_class`, `binary` or `multi_label`.

    Returns:
        Logits (N, K) whose softmax are the probabilities, and integers (N,) in [0, K). K is the number of classes of a
        multi-class head, else 2.

    Example:
        >>> import tensorflow as tf
        >>> logits, true = choice(tf.constant([[3.0, -1.0]]), tf.constant([1]), "multi_label")
        >>> logits.numpy().tolist(), true.numpy().tolist()
        ([[0.0, -1.0]], [1])
    """
    if head == "multi_class":
        return logits, classes
    if head == "binary":
        return tf.concat([tf.zeros_like(logits), logits], axis=-1), classes
    of_label = tf.gather(logits, classes, batch_dims=1)[:, None]
    return tf.concat([tf.zeros_like(of_label), of_label], axis=-1), tf.ones_like(classes)


def evidence_weights(classes: tf.Tensor, outputs: int, head: Head, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Weights with which the logits add up to the evidence for a class: what a saliency map of that class explains.

    Args:
        classes: Integers (N,).
        outputs: Number of logits.
        head: `multi_class`, `binary` or `multi_label`.
        dtype: Dtype of the weights.

    Returns:
        (N, outputs): 1 at the class's logit and 0 elsewhere. For a binary head, 1 for class 1 and -1 for class 0,
        whose evidence is the negative logit.

    Example:
        >>> import tensorflow as tf
        >>> evidence_weights(tf.constant([0, 1]), 1, "binary").numpy().tolist()
        [[-1.0], [1.0]]
    """
    if head == "binary":
        return tf.cast(2 * classes - 1, dtype)[:, None]
    return tf.one_hot(classes, outputs, dtype=dtype)


def one_label(labels: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of every image, one of the labels that it has: the one with the highest score.

    With scores drawn uniformly and anew in every step, each of an image's labels is as likely as the others, so that a
    loss on the label drawn has the mean over the labels as its expectation, at the cost of a single one.

    Args:
        labels: 1 where an image has a label, else 0; (N, labels).
        scores: In [0, 1), (N, labels).

    Returns:
        The label of every image, int64 (N,), and 1.0 where it has any, else 0.0, (N,) in the dtype of the scores.

    Example:
        >>> import tensorflow as tf
        >>> chosen, present = one_label(tf.constant([[1, 0, 1], [0, 0, 0]]), tf.constant([[0.2, 0.9, 0.4]] * 2))
        >>> chosen.numpy().tolist(), present.numpy().tolist()
        ([2, 0], [1.0, 0.0])
    """
    has = tf.cast(labels, scores.dtype)
    return tf.argmax(has * (1.0 + scores), axis=-1), tf.reduce_max(has, axis=-1)
