"""The causal-focus objective of CFCN: the share of a class's evidence that lies outside the cause.

Source: *Causally Focused Convolutional Networks Through Minimal Human Guidance*, equation 2.
"""

from __future__ import annotations

import tensorflow as tf


def causal_focus_loss(
    class_maps: tf.Tensor, labels: tf.Tensor, masks: tf.Tensor, has_mask: tf.Tensor, epsilon: float = 1e-7
) -> tf.Tensor:
    """One minus the share of the true class's activation that lies inside the mask.

    ``1 - sum(A * A_c) / (sum(A_c) + epsilon)`` with ``A`` the mask and ``A_c`` the ReLU of the true class's map.

    Departures from the paper. An image without a mask has loss 0 exactly, where the paper's dummy mask of ones leaves
    ``epsilon / (sum + epsilon)``; its gradient was 0 there too, up to epsilon. The ReLU is taken here, so that a
    network may use the signed maps for its logits. A map without any positive activation has loss 1 and no gradient
    from this term (as in the paper): only the classification loss can bring it back.

    Args:
        class_maps: One map per class, (N, height, width, classes); negative values count as 0.
        labels: Class indices, integers (N,).
        masks: Masks of the cause in [0, 1], (N, H, W, 1), of any size: every cell of the maps has the share of it that
            the mask covers.
        has_mask: 1 where the mask is a real one, 0 where the image has none, (N,).
        epsilon: Added to the denominator.

    Returns:
        Loss per sample, (N,), in [0, 1].

    Example:
        >>> import tensorflow as tf
        >>> maps = tf.reshape(tf.constant([3.0, 1.0]), (1, 1, 2, 1))
        >>> masks = tf.reshape(tf.constant([1.0, 0.0]), (1, 1, 2, 1))
        >>> round(float(causal_focus_loss(maps, tf.constant([0]), masks, tf.constant([1.0]))[0]), 4)
        0.25
    """
    is_label = tf.one_hot(labels, tf.shape(class_maps)[3], dtype=class_maps.dtype)[:, None, None, :]
    activation = tf.nn.relu(tf.reduce_sum(class_maps * is_label, axis=3))
    masks = tf.cast(resize_masks(masks, tf.shape(class_maps)[1:3])[..., 0], activation.dtype)
    inside = tf.reduce_sum(masks * activation, axis=(1, 2))
    total = tf.reduce_sum(activation, axis=(1, 2))
    return (1.0 - inside / (total + epsilon)) * tf.cast(has_mask, activation.dtype)


def resize_masks(masks: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resize masks to the size of feature maps.

    Args:
        masks: (N, H, W, 1) in [0, 1].
        size: Height and width to have, integers (2,).

    Returns:
        Masks, float32 (N, *size, 1) in [0, 1]: every value is the share of the cell that the mask covers.

    Example:
        >>> import tensorflow as tf
        >>> float(resize_masks(tf.constant([[[[1.0], [0.0]]]]), [1, 1])[0, 0, 0, 0])
        0.5
    """
    return tf.image.resize(tf.cast(masks, tf.float32), size, method="area")
