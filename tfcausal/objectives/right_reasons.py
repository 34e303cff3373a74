"""Right for the right reasons (RRR): the answer must not change where a person has said that the cause is not.

Source: A. S. Ross, M. C. Hughes and F. Doshi-Velez, *Right for the Right Reasons: Training Differentiable Models by
Constraining their Explanations*, 2017, equation 1.
"""

from __future__ import annotations

import tensorflow as tf

from tfcausal.objectives.causal_focus import resize_masks
from tfcausal.objectives.heads import Head


def log_probability_slopes(logits: tf.Tensor, head: Head) -> tf.Tensor:
    """The slopes, along the logits, of the sum of the log-probabilities of everything that a head can answer.

    That sum is what the penalty looks at: with all answers in it, none can come to rest on the wrong pixels.

    - Multi-class, as in the paper: ``sum_k log p_k``, whose slopes are ``1 - K * p_k``.
    - Binary: the same for the logits 0 and ``z``, that is ``log p + log(1 - p)``, whose slope is ``1 - 2 * p``.
    - Multi-label, every label a binary choice: ``sum_k (log p_k + log(1 - p_k))``, whose slopes are ``1 - 2 * p_k``.

    Args:
        logits: What the head gives before its softmax or sigmoid, (N, outputs).
        head: `multi_class`, `binary` or `multi_label`.

    Returns:
        (N, outputs), from 1 - K to 1 or from -1 to 1.

    Example:
        >>> import tensorflow as tf
        >>> log_probability_slopes(tf.constant([[0.0, -100.0]]), "multi_class").numpy().tolist()
        [[-1.0, 1.0]]
    """
    if head == "multi_class":
        return 1.0 - logits.shape[-1] * tf.nn.softmax(logits)
    return 1.0 - 2.0 * tf.sigmoid(logits)


def right_reasons_loss(input_gradients: tf.Tensor, masks: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
    """Sum of the squared input gradients outside the mask of the cause.

    ``sum over pixels and channels of (A * d/dx sum_k log p_k)^2`` with ``A`` one minus the mask: the paper marks the
    pixels that must not matter, here the masks mark those that may.

    Args:
        input_gradients: (N, height, width, channels), or of volumes: gradients of the sum whose slopes
            :func:`log_probability_slopes` gives.
        masks: Masks of the cause in [0, 1], (N, H, W, 1), or of volumes, of any height and width: every pixel counts by
            the share of it that the mask leaves uncovered.
        has_mask: 1 where the mask is a real one, 0 where the image has none, (N,).

    Returns:
        Loss per sample, (N,), at least 0; 0 without gradient for an image without a mask, whatever stands in its place.

    Example:
        >>> import tensorflow as tf
        >>> gradients = tf.reshape(tf.constant([5.0, 2.0]), (1, 1, 2, 1))
        >>> masks = tf.reshape(tf.constant([1.0, 0.0]), (1, 1, 2, 1))
        >>> right_reasons_loss(gradients, masks, tf.constant([1.0])).numpy().tolist()
        [4.0]
    """
    outside = 1.0 - tf.cast(resize_masks(masks, tf.shape(input_gradients)[-3:-1]), input_gradients.dtype)
    penalty = tf.reduce_sum(tf.square(outside * input_gradients), axis=list(range(1, input_gradients.shape.rank)))
    return penalty * tf.cast(has_mask, input_gradients.dtype)
