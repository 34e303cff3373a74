"""Losses that only images with a mask have: their mean over those images."""

from __future__ import annotations

import tensorflow as tf

from tfcausal.distributed import place_among_replicas


def over_images_with_mask(loss: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
    """Scale a loss per sample so that its mean over the batch becomes its mean over the images with a mask.

    The weight of a term then means the same whether all images have a mask or one in twenty. Under a strategy the
    images of all replicas count.

    Args:
        loss: (N,), 0 for images without a mask.
        has_mask: Greater than 0 for images with a mask, (N,).

    Returns:
        (N,); 0 in a batch without masks.

    Example:
        >>> import tensorflow as tf
        >>> over_images_with_mask(tf.constant([3.0, 0.0, 0.0]), tf.constant([1.0, 0.0, 0.0])).numpy().tolist()
        [9.0, 0.0, 0.0]
    """
    _, images = place_among_replicas(tf.shape(loss)[0])
    _, masked = place_among_replicas(tf.math.count_nonzero(has_mask, dtype=tf.int32))
    return loss * tf.math.divide_no_nan(tf.cast(images, loss.dtype), tf.cast(masked, loss.dtype))
