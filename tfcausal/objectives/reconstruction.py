"""Reconstruction losses of an autoencoder inside a network: of the activation itself, and of the network's answer.

Source: *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural Networks*, section
3.2, equation 3; and M. Harradon, J. Druce and B. Ruttenberg, *Causal Learning and Explanation of Deep Neural Networks
via Autoencoded Activations*, 2018, equation 7.
"""

from __future__ import annotations

import tensorflow as tf

from tfcausal.objectives.heads import Head


def shallow_loss(activation: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Mean absolute difference between an activation and its reconstruction, over places and channels.

    ``L_shallow``, "the L1 norm of the difference between the input and output of the autoencoder". Departure from the
    paper: the mean instead of the sum, as in its authors' code, so that the weight of the term does not depend on the
    size of the activation. Departure from that code: the gradient goes into the reconstruction, which it cuts off, so
    that it trains the layers before the autoencoder instead.

    Args:
        activation: (N, ...).
        reconstruction: The same shape.

    Returns:
        Loss per sample, (N,), at least 0.

    Example:
        >>> import tensorflow as tf
        >>> shallow_loss(tf.constant([[1.0, -2.0], [0.0, 0.0]]), tf.constant([[2.0, 0.0], [0.0, 0.0]])).numpy().tolist()
        [1.5, 0.0]
    """
    return tf.reduce_mean(tf.abs(reconstruction - activation), axis=list(range(1, activation.shape.rank)))


def deep_loss(logits: tf.Tensor, reconstructed_logits: tf.Tensor, head: Head) -> tf.Tensor:
    """Divergence of the network's answer through the autoencoder from its own answer.

    ``L_deep``, the Kullback-Leibler divergence ``KL(original || with autoencoder)`` between the output distributions.
    For sigmoid heads, about whose outputs the paper does not say what their distribution is: the sum over the outputs
    of the divergence between two Bernoulli distributions. Departures from the authors' code: the sum over the classes,
    which is the divergence, instead of their mean; and the term takes part in the loss, where the code computes it and
    leaves it out. Computed from logits, so that no probability is rounded to 0 before its logarithm is taken.

    Args:
        logits: Of the network as it is, (N, outputs).
        reconstructed_logits: Of the network with the autoencoder, (N, outputs).
        head: `multi_class`, `binary` (one output) or `multi_label`.

    Returns:
        Loss per sample in nats, (N,); at least 0 but for rounding, and exactly 0 for equal logits.

    Example:
        >>> import tensorflow as tf
        >>> certain, undecided = tf.constant([[20.0, -20.0]]), tf.zeros((1, 2))
        >>> [round(float(deep_loss(certain, undecided, head)[0]), 4) for head in ("multi_class", "multi_label")]
        [0.6931, 1.3863]
    """
    if head == "multi_class":
        difference = tf.nn.log_softmax(logits) - tf.nn.log_softmax(reconstructed_logits)
        return tf.reduce_sum(tf.math.multiply_no_nan(difference, tf.nn.softmax(logits)), axis=-1)
    yes = tf.math.log_sigmoid(logits) - tf.math.log_sigmoid(reconstructed_logits)
    no = tf.math.log_sigmoid(-logits) - tf.math.log_sigmoid(-reconstructed_logits)
    # Where a probability is 0, the logarithms may have overflowed.
    expected = tf.math.multiply_no_nan(yes, tf.sigmoid(logits)) + tf.math.multiply_no_nan(no, tf.sigmoid(-logits))
    return tf.reduce_sum(expected, axis=-1)
