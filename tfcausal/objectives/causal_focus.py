"""The causal-focus objective of CFCN: the share of the evidence that lies outside the cause.

Source: *Causally Focused Convolutional Networks Through Minimal Human Guidance*, equations 1 to 3.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

Resize = Literal["masks", "maps"]


def causal_focus_loss(
    maps: tf.Tensor,
    map_weights: tf.Tensor,
    masks: tf.Tensor,
    resize: Resize = "masks",
    epsilon: float = 1e-7,
) -> tf.Tensor:
    """One minus the share of a map's activation that lies inside the mask, averaged over the maps that count.

    ``1 - sum(A * A_f) / (sum(A_f) + epsilon)`` with ``A`` the mask and ``A_f`` the ReLU of a map. Which maps count is
    said by their weights: all of them with equal weights (CFCN-F, equation 1), that of the true class alone (CFCN-C,
    equation 2), those of the labels that an image has (equation 3).

    Departures from the paper. An image without a mask has weights 0 and loss 0 exactly, where the paper's dummy mask of
    ones leaves ``epsilon / (sum + epsilon)``; its gradient was 0 there too, up to epsilon. Labels that an image does
    not have are left out, where equation 3 averages over all classes: with a mask of zeros their term is 1.
    The ReLU is taken here, so that a network may use the signed maps for its logits. A map without any positive
    activation has loss 1 and no gradient from this term (as in the paper): only the classification loss can bring it
    back, see :func:`dead_maps`.

    Args:
        maps: Feature maps or class maps, (N, height, width, K), of volumes (N, slices, height, width, K); negative
            values count as 0.
        map_weights: How much every map counts, (N, K), at least 0.
        masks: Masks of the cause in [0, 1], (N, H, W, 1), or one for every map, (N, H, W, K); of any size.
        resize: Whether the `masks` are brought to the size of the maps, where every cell has the share of it that the
            mask covers, or the `maps` to the size of the masks, by bilinear interpolation.
        epsilon: Added to the denominator.

    Returns:
        Loss per sample, (N,), in [0, 1].

    Example:
        >>> import tensorflow as tf
        >>> maps = tf.reshape(tf.constant([3.0, 1.0]), (1, 1, 2, 1))
        >>> masks = tf.reshape(tf.constant([1.0, 0.0]), (1, 1, 2, 1))
        >>> round(float(causal_focus_loss(maps, tf.ones((1, 1)), masks)[0]), 4)
        0.25
    """
    activation = tf.nn.relu(maps)
    if resize == "masks":
        masks = tf.cast(resize_masks(masks, tf.shape(maps)[-3:-1]), activation.dtype)
    else:
        masks = tf.cast(masks, activation.dtype)
        activation = tf.cast(_over_slices(activation, tf.shape(masks)[-3:-1], "bilinear"), activation.dtype)
    places = list(range(1, maps.shape.rank - 1))
    inside, total = tf.reduce_sum(masks * activation, places), tf.reduce_sum(activation, places)
    outside = 1.0 - inside / (total + epsilon)
    weights = tf.cast(map_weights, outside.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * outside, 1), tf.reduce_sum(weights, 1))


def dead_maps(maps: tf.Tensor, map_weights: tf.Tensor) -> tf.Tensor:
    """Share of the maps that count which have no positive activation, and which the causal focus cannot move.

    Args:
        maps: As for :func:`causal_focus_loss`.
        map_weights: How much every map counts, (N, K).

    Returns:
        (N,), in [0, 1]; 0 where no map counts.

    Example:
        >>> import tensorflow as tf
        >>> maps = tf.reshape(tf.constant([3.0, -1.0]), (1, 1, 1, 2))
        >>> dead_maps(maps, tf.ones((1, 2))).numpy().tolist()
        [0.5]
    """
    weights = tf.cast(map_weights, maps.dtype)
    places = list(range(1, maps.shape.rank - 1))
    dead = tf.cast(tf.reduce_max(maps, places) <= 0, maps.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * dead, 1), tf.reduce_sum(weights, 1))


def resize_masks(masks: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resize masks to the size of feature maps.

    Args:
        masks: (N, H, W, channels) in [0, 1], of volumes (N, slices, H, W, channels).
        size: Height and width to have, integers (2,).

    Returns:
        Masks, float32 (N, *size, channels) in [0, 1]: every value is the share of the cell that the mask covers.

    Example:
        >>> import tensorflow as tf
        >>> float(resize_masks(tf.constant([[[[1.0], [0.0]]]]), [1, 1])[0, 0, 0, 0])
        0.5
    """
    return _over_slices(tf.cast(masks, tf.float32), size, "area")


def _over_slices(maps: tf.Tensor, size: tf.Tensor, method: str) -> tf.Tensor:
    """Resize images, or every slice of volumes."""
    if maps.shape.rank == 4:
        return tf.image.resize(maps, size, method=method)
    shape = tf.shape(maps)
    slices = tf.image.resize(tf.reshape(maps, tf.concat([[-1], shape[2:]], 0)), size, method=method)
    resized = tf.reshape(slices, tf.concat([shape[:2], tf.convert_to_tensor(size), shape[-1:]], 0))
    return tf.ensure_shape(resized, (*maps.shape[:2], None, None, maps.shape[-1]))
