"""Interventions on the input: which pixels to take away, and taking them away.

Source: *Proactive Pseudo-Intervention*, equations 1, 2 and 4. The paper applies its mask to the raw map with a fixed
threshold whose value it does not give; a raw map has no fixed scale, so here the mask works on the normalised map.
"""

from __future__ import annotations

import tensorflow as tf


def normalised_saliency(maps: tf.Tensor) -> tf.Tensor:
    """The positive part of the channel sum of every map, divided by its maximum.

    Args:
        maps: Signed maps, (N, height, width, channels).

    Returns:
        (N, height, width, 1) in [0, 1]; 0 everywhere for a map without a positive value.

    Example:
        >>> import tensorflow as tf
        >>> normalised_saliency(tf.constant([[[[2.0, -1.0], [3.0, 1.0]]]]))[0, 0, :, 0].numpy().tolist()
        [0.25, 1.0]
    """
    positive = tf.nn.relu(tf.reduce_sum(maps, axis=-1, keepdims=True))
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=(1, 2, 3), keepdims=True))


def quantile_threshold(saliency: tf.Tensor, quantile: float) -> tf.Tensor:
    """The value of each map that the given share of its pixels does not exceed.

    Args:
        saliency: (N, height, width, 1).
        quantile: Share of pixels in (0, 1), for instance 0.9 for the tenth of the pixels with the highest values.

    Returns:
        (N, 1, 1, 1): the k-th largest value, k being the number of pixels times (1 - quantile), rounded, at least 1.

    Example:
        >>> import tensorflow as tf
        >>> saliency = tf.reshape(tf.range(10.0), (1, 2, 5, 1))
        >>> float(quantile_threshold(saliency, 0.8)[0, 0, 0, 0])
        8.0
    """
    flat = tf.reshape(saliency, (tf.shape(saliency)[0], -1))
    pixels = tf.cast(tf.shape(flat)[1], tf.float32)
    kept = tf.maximum(1, tf.cast(tf.round(pixels * (1.0 - quantile)), tf.int32))
    return tf.math.top_k(flat, kept).values[:, -1][:, None, None, None]


def soft_mask(saliency: tf.Tensor, threshold: tf.Tensor | float, sharpness: float) -> tf.Tensor:
    """The differentiable mask ``T(s) = 1 / (1 + exp(-sharpness * (s - threshold)))`` of equation 2.

    Args:
        saliency: Normalised maps in [0, 1], (N, height, width, 1).
        threshold: Where the mask is one half; a number, or one per map (N, 1, 1, 1).
        sharpness: Steepness, greater than 0 (the paper's omega).

    Returns:
        Share of each pixel to take away, in (0, 1), in the shape of `saliency`.

    Example:
        >>> import tensorflow as tf
        >>> soft_mask(tf.constant([[[[0.25]]]]), 0.25, 50.0).numpy().item()
        0.5
    """
    return tf.sigmoid(sharpness * (saliency - threshold))


def remove(images: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Take pixels away, ``x - T * x`` (equations 1 and 4): what is masked becomes 0 in the model's input space.

    Zero is also the point from which WBP measures contributions. For inputs in [0, 1] it is black; for inputs with
    their mean subtracted it is the mean colour.

    Args:
        images: (N, height, width, channels).
        mask: Share to take away, in [0, 1], (N, height, width, 1).

    Returns:
        Images of the same shape.

    Example:
        >>> import tensorflow as tf
        >>> remove(tf.constant([[[[4.0, 2.0]]]]), tf.constant([[[[0.25]]]])).numpy().tolist()
        [[[[3.0, 1.5]]]]
    """
    return images - mask * images
