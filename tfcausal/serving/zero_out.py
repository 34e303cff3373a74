"""What every concept of a level does to the answer for an image, in TensorFlow operations on one batch."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfcausal.effects.channels import Concepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.equations import effect

_MOST_ROWS = 64


def zero_out(concepts: Concepts, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Equation 1 for setting each concept to 0, image by image: ``P(y | do(concept = 0)) - P(y)``.

    As :class:`tfcausal.effects.expected.ConceptEffects` has it with its defaults: the answers that the effects refer to
    are those through the untouched autoencoder, and a concept that is 0 in an image everywhere has an effect of exactly
    0. What lies before the concepts is run once; what lies behind them in passes of at most 64 rows, or of the batch.

    Args:
        concepts: What gives the codes.
        images: In the classifier's input space, (N, height, width, channels).

    Returns:
        Effects, float32 (N, concepts, classes); the answers that they refer to, and those of the classifier itself,
        both float32 (N, classes).

    Example:
        >>> from tfcausal.effects.channels import ChannelConcepts
        >>> inputs = keras.Input((1, 1, 2))
        >>> maps = keras.layers.Activation("relu", name="maps")(inputs)
        >>> head = keras.layers.Dense(1, activation="sigmoid")
        >>> model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(maps)))
        >>> head.set_weights([tf.constant([[2.0], [0.0]]), tf.zeros(1)])
        >>> effects, _, _ = zero_out(ChannelConcepts(model, "maps"), tf.ones((1, 1, 1, 2)))
        >>> [round(float(value), 3) for value in effects[0, :, 0]]
        [-0.381, 0.0]
    """
    downstream, nodes = concepts.downstream, concepts.concepts
    known = downstream.known(images)
    codes = concepts.encode(known[downstream.position])

    def answers(known: dict[int, tf.Tensor], activation: tf.Tensor | None = None) -> tf.Tensor:
        return tf.cast(downstream.output(downstream.logits(known, activation)), tf.float32)

    probabilities, observed = answers(known), answers(known, concepts.decode(codes))
    count = tf.shape(images)[0]
    at_once = tf.clip_by_value(_MOST_ROWS // count, 1, nodes)
    places = tuple(range(1, codes.shape.rank - 1))
    silent = tf.reduce_all(tf.equal(codes, 0), places) if places else tf.equal(codes, 0)

    def step(first: tf.Tensor, gathered: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        taken = tf.range(first, tf.minimum(first + at_once, nodes))
        several = tf.size(taken)
        # Row by row: every image with the first concept away, with the second, and so on.
        away = tf.repeat(tf.one_hot(taken, nodes, on_value=False, off_value=True, dtype=tf.bool)[None], count, 0)
        shape = [-1, *[1] * len(places), nodes]
        own = tf.repeat(codes, several, axis=0)
        changed = tf.where(tf.reshape(away, shape), own, tf.zeros_like(own))
        intervened = answers(
            downstream.repeated(known, several), concepts.decode(tf.ensure_shape(changed, (None, *codes.shape[1:])))
        )
        intervened = tf.reshape(intervened, tf.stack([count, several, tf.shape(observed)[1]]))
        return first + at_once, gathered.write(first // at_once, tf.transpose(intervened, (1, 0, 2)))

    array = tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=(None, None, None))
    start = (tf.constant(0), array)
    _, array = tf.while_loop(lambda first, _: first < nodes, step, start, parallel_iterations=1)
    intervened = tf.transpose(array.concat(), (1, 0, 2))
    effects = tf.where(silent[..., None], 0.0, effect(intervened, observed[:, None]))
    return tf.ensure_shape(effects, (None, nodes, downstream.graph.num_classes)), observed, probabilities


def behind(autoencoder: ConceptAutoencoder, network: keras.Model) -> ConceptAutoencoder:
    """The same autoencoder behind a model that is in memory already, instead of the copy that its file holds.

    Args:
        autoencoder: A trained autoencoder.
        network: The classifier that it was trained behind.

    Returns:
        An autoencoder with the same weights, whose network is `network`.
    """
    taken = ("layer", "concepts", "hidden", "kernel_size", "activation", "multi_label")
    options = {name: getattr(autoencoder, name) for name in taken}
    other = ConceptAutoencoder(network, **options, dtype=autoencoder.dtype_policy)
    other.set_weights(autoencoder.get_weights())
    other.trained = True
    return other
