"""Objectives of GAIN: attention has to cover all that speaks for a label, and where masks are given, the cause alone.

Source: K. Li, Z. Wu, K.-C. Peng, J. Ernst and Y. Fu, *Tell Me Where to Look: Guided Attention Inference Network*, 2018,
section 3.
"""

from __future__ import annotations

import tensorflow as tf

from tfcausal.objectives.causal_focus import resize_masks

_ROUNDING = 1e-6  # relative difference that interpolating equal float32 values leaves


def min_max_scaled(maps: tf.Tensor) -> tf.Tensor:
    """Every map scaled from its smallest value (0) to its largest (1).

    The paper does not say how its maps come to the scale at which the mask cuts them; the known implementations scale
    them like this, after enlarging them to the image. Each map is scaled by its own extremes, so that the other images
    of a batch do not change it.

    Args:
        maps: (N, height, width, 1), or of volumes (N, slices, height, width, 1).

    Returns:
        The same shape, in [0, 1]; 0 everywhere, with a gradient of 0, for a map that is the same everywhere.

    Example:
        >>> import tensorflow as tf
        >>> maps = tf.reshape(tf.constant([2.0, 6.0, 4.0]), (1, 1, 3, 1))
        >>> min_max_scaled(maps)[0, 0, :, 0].numpy().tolist()
        [0.0, 1.0, 0.5]
    """
    axes = _all_but_first(maps)
    least = tf.reduce_min(maps, axis=axes, keepdims=True)
    most = tf.reduce_max(maps, axis=axes, keepdims=True)
    rounding = _ROUNDING * tf.maximum(tf.abs(least), tf.abs(most))
    spread = tf.where(most - least > rounding, most - least, 0.0)
    return tf.math.divide_no_nan(maps - least, spread)


def attention_mining_loss(probabilities: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """What the model still says for the labels once their attended regions have been taken away.

    ``(1/n) * sum over the image's n labels of s_c(I*_c)``, equation 5. Departure from the paper: ``s_c`` is a
    probability and not a logit, whose decrease would have no end.

    Args:
        probabilities: Of each label on the image without that label's region, (N, labels).
        labels: 1 for the labels that the image has, else 0, (N, labels).

    Returns:
        Loss per sample, (N,), in [0, 1]; 0 for an image without any label.

    Example:
        >>> import tensorflow as tf
        >>> attention_mining_loss(tf.constant([[0.75, 0.5, 0.25]]), tf.constant([[1, 0, 1]])).numpy().tolist()
        [0.5]
    """
    has = tf.cast(labels, probabilities.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(has * probabilities, axis=-1), tf.reduce_sum(has, axis=-1))


def external_supervision_loss(attention: tf.Tensor, masks: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
    """Mean squared distance, over the pixels, between an attention map and the mask of the cause.

    ``(1/n) * sum over the image's n labels of (A_c - H_c)^2``, equation 7, for one label; the square is averaged over
    the pixels, so that the weight of the term does not depend on the resolution.

    Args:
        attention: Maps in [0, 1], (N, height, width, 1), or of volumes, as :func:`min_max_scaled` gives them.
        masks: Masks of the cause in [0, 1], (N, H, W, 1), or of volumes, of any height and width: every pixel of the
            maps has the share of it that the mask covers.
        has_mask: 1 where the mask is a real one, 0 where the image has none, (N,).

    Returns:
        Loss per sample, (N,), in [0, 1]; 0 without gradient for an image without a mask, whatever stands in its place.

    Example:
        >>> import tensorflow as tf
        >>> attention = tf.reshape(tf.constant([0.5, 0.0]), (1, 1, 2, 1))
        >>> masks = tf.reshape(tf.constant([1.0, 0.0]), (1, 1, 2, 1))
        >>> external_supervision_loss(attention, masks, tf.constant([1.0])).numpy().tolist()
        [0.125]
    """
    masks = tf.cast(resize_masks(masks, tf.shape(attention)[-3:-1]), attention.dtype)
    return tf.reduce_mean(tf.square(attention - masks), axis=_all_but_first(attention)) * tf.cast(
        has_mask, attention.dtype
    )


def _all_but_first(tensor: tf.Tensor) -> list[int]:
    return list(range(1, tensor.shape.rank))
