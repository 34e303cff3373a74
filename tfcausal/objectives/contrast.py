"""Objectives of proactive pseudo-interventions (PPI): what the answer should be once its cause has been taken away.

Source: *Proactive Pseudo-Intervention*, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy ``-log p_y`` from logits.

    Args:
        logits: Float tensor (N, classes).
        labels: Class indices, integers (N,).

    Returns:
        Loss per sample in nats, (N,), at least 0.

    Example:
        >>> import tensorflow as tf
        >>> round(float(cross_entropy(tf.constant([[0.0, 0.0]]), tf.constant([1]))[0]), 4)
        0.6931
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def one_vs_rest_contrast(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the flipped label, one class against the rest: ``-log(1 - p_y)``.

    Equation 3 with the paper's first reading of the flipped label ("one vs. others"). Bounded below by 0, and its
    gradient with respect to the label's logit is ``p_y``: largest for the images that need it, those which are still
    recognised although their cause has been taken away. Computed as
    ``logsumexp(logits) - logsumexp(logits of the other classes)``, so that it stays finite where ``1 - p_y``
    underflows.

    Args:
        logits: Logits of the images without their salient pixels, (N, classes) with at least 2 classes.
        labels: The original class indices, integers (N,).

    Returns:
        Loss per sample in nats, (N,), at least 0.

    Example:
        >>> import tensorflow as tf
        >>> round(float(one_vs_rest_contrast(tf.constant([[0.0, 0.0]]), tf.constant([1]))[0]), 4)
        0.6931
    """
    is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(is_label, tf.constant(logits.dtype.min, logits.dtype), logits)
    return tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_logsumexp(others, axis=-1)


def negated_contrast(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The paper's practical choice, minus the cross-entropy: ``log p_y``.

    It is not bounded below: once the image is misclassified its gradient tends to 1 and the loss falls without end.
    Training with it needs a limit (`divergence_limit` of :class:`tfcausal.models.ppi.PPIModel`).

    Args:
        logits: Logits of the images without their salient pixels, (N, classes).
        labels: The original class indices, integers (N,).

    Returns:
        Loss per sample in nats, (N,), at most 0.

    Example:
        >>> import tensorflow as tf
        >>> round(float(negated_contrast(tf.constant([[0.0, 0.0]]), tf.constant([1]))[0]), 4)
        -0.6931
    """
    return -cross_entropy(logits, labels)


def probability_contrast(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The probability that the label keeps: ``p_y``, as GAIN has it.

    Bounded on both sides; its gradient ``p_y (1 - p_y)`` is small for an image that is still recognised with certainty.

    Args:
        logits: Logits of the images without their salient pixels, (N, classes).
        labels: The original class indices, integers (N,).

    Returns:
        Loss per sample, (N,), in [0, 1].

    Example:
        >>> import tensorflow as tf
        >>> probability_contrast(tf.constant([[0.0, 0.0]]), tf.constant([1])).numpy().round(6).tolist()
        [0.5]
    """
    return tf.exp(-cross_entropy(logits, labels))


def saliency_l1(maps: tf.Tensor) -> tf.Tensor:
    """Mean absolute value of every sample's map: the L1 regulariser of PPI.

    Departure from the paper, which takes the sum: the mean keeps the weight of the term independent of the resolution.

    Args:
        maps: Signed saliency maps, (N, height, width, channels) or of volumes, in units of the logit.

    Returns:
        Loss per sample, (N,), at least 0.

    Example:
        >>> import tensorflow as tf
        >>> saliency_l1(tf.constant([[[[1.0], [-3.0]]]])).numpy().tolist()
        [2.0]
    """
    return tf.reduce_mean(tf.abs(maps), axis=tuple(range(1, maps.shape.rank)))


CONTRASTS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "one_vs_rest": one_vs_rest_contrast,
    "negated": negated_contrast,
    "probability": probability_contrast,
}
