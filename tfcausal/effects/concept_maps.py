"""Concept-weighted causal effect maps: the codes of a layer, each as strong as its concept's effect on the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.effects.channels import Concepts
from tfcausal.effects.engine import batches, checked_images, run
from tfcausal.effects.expected import ConceptEffects, Reference
from tfcausal.effects.results import Scale
from tfcausal.errors import InvalidArgument, message
from tfcausal.saliency.base import check_targets


@dataclass(frozen=True)
class ConceptMaps:
    """What concept-weighted maps are made of.

    Attributes:
        maps: Float32 (N, height, width, 1); positive speaks for the class.
        weights: Weight of every concept, float32 (N, K).
        classes: The classes that the weights are for, (N,); -1 where the weights were given.
    """

    maps: np.ndarray
    weights: np.ndarray
    classes: np.ndarray


class ConceptEffectMaps:
    """Concept-weighted causal effect maps: ``enlarged(sum_k w_k * code_k(x))``, one channel.

    The weight of a concept is the effect of zeroing it on the class, for this image, with the sign that makes it
    positive where the concept speaks for the class, ``w_k = P(y | x) - P(y | do(code_k := 0))``. The map is enlarged to
    the size of the image by bilinear interpolation, as Grad-CAM is. A map is no probability: its unit is that of the
    codes times that of the effects, and where codes have both signs a positive place can be a negative code of a
    concept that speaks against the class.

    Sources: the causal effect maps of C.-H. H. Yang et al., *When causal intervention meets adversarial examples and
    image masking for deep neural networks*, ICIP 2019, which gives no formula for them; this is the weighting of
    S. Desai and H. Ramaswamy, *Ablation-CAM*, WACV 2020, with concepts for channels and without its division by the
    answer.

    Args:
        concepts: A trained `ConceptAutoencoder`, or :class:`tfcausal.effects.channels.ChannelConcepts`.
        weights: Weights to use for all images instead, (K,), such as expected effects with the sign
            `observed_minus_do`; None measures those of each image.
        rectify: Whether negative values become 0 before the map is enlarged.
        reference: What the effects refer to, as for :class:`ConceptEffects`.
        scale: `probability` or `logit`.
        batch_size: As for :class:`ConceptEffects`.

    Raises:
        InvalidArgument: The layer gives no feature maps, `weights` is not one finite number per concept, or as for
            :class:`ConceptEffects`.

    Example:
        >>> import keras
        >>> from tfcausal.effects.channels import ChannelConcepts
        >>> inputs = keras.Input((2, 2, 2))
        >>> maps = keras.layers.Activation("relu", name="maps")(inputs)
        >>> head = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant([[2], [0]]))
        >>> model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(maps)))
        >>> images = np.array([[[[4.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
        >>> ConceptEffectMaps(ChannelConcepts(model, "maps"))(images)[..., 0].tolist()
        [[[8.0, 0.0], [0.0, 0.0]]]
    """

    def __init__(
        self,
        concepts: Concepts,
        weights: Any = None,
        rectify: bool = False,
        reference: Reference = "autoencoder",
        scale: Scale = "probability",
        batch_size: int | None = None,
    ) -> None:
        if scale not in ("probability", "logit"):
            raise InvalidArgument(message("scale", "probability or logit", repr(scale)))
        if not isinstance(rectify, bool):
            raise InvalidArgument(message("rectify", "True or False", repr(rectify)))
        shape = concepts.downstream.shape
        if len(shape) != 4:
            expected = "concepts of a layer whose output is (batch, height, width, channels)"
            raise InvalidArgument(message("concepts", expected, f"{concepts.downstream.layer!r} of shape {shape}"))
        self.concepts, self.rectify, self.scale = concepts, rectify, scale
        self.weights = None if weights is None else _checked_weights(weights, concepts.concepts)
        self._effects = ConceptEffects(concepts, reference, "observed_minus_do", batch_size)
        images = tf.TensorSpec((None, *concepts.downstream.graph.input_shape[1:]), tf.float32)
        signature = [images, tf.TensorSpec((None, concepts.concepts), tf.float32)]
        self._maps = tf.function(self._batch_maps, input_signature=signature, autograph=False)

    def __call__(self, images: object, targets: object = None) -> np.ndarray:
        """The maps alone; see :meth:`measure`."""
        return self.measure(images, targets).maps

    def measure(self, images: object, targets: object = None) -> ConceptMaps:
        """Measure the effects of the concepts and make the maps.

        Args:
            images: (N, height, width, channels) in the model's input space, finite.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the class that the network predicts.

        Raises:
            InvalidArgument: The autoencoder is not trained, images that the model does not take, targets of another
                length or outside the classes, or targets for weights that were given.

        Warns:
            UserWarning: As for :class:`ConceptEffects`, where the network answers otherwise through the autoencoder.
        """
        graph, engine = self.concepts.downstream.graph, self._effects.engine
        array = checked_images(images, graph)
        if not self.concepts.trained:
            remedy = "Call its `fit` first."
            raise InvalidArgument(message("concepts", "a trained autoencoder", "an untrained one", remedy))
        classes = check_targets(targets, len(array), graph.num_classes)
        if self.weights is None:
            if targets is None:
                classes = engine.untouched(array)[0][0].argmax(axis=1)
            measured, column = np.unique(classes, return_inverse=True)
            result = self._effects(array, scale=self.scale, classes=measured.tolist())
            weights = result.effects[np.arange(len(array)), :, 0, column]
        elif targets is None:
            weights = np.broadcast_to(self.weights, (len(array), self.concepts.concepts))
        else:
            remedy = "The weights that were given stand for a class already."
            raise InvalidArgument(message("targets", "None for weights that were given", "targets", remedy))
        parts = [run(self._maps, array[part], weights[part])[0] for part in batches(len(array), engine.batch_size)]
        return ConceptMaps(np.concatenate(parts), np.array(weights), classes)

    def _batch_maps(self, images: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor]:
        downstream = self.concepts.downstream
        with keras_api.losses_kept(self.concepts.network):
            activations = downstream.graph.run(images, until=downstream.position)
            codes = tf.cast(self.concepts.encode(activations[downstream.position]), tf.float32)
        maps = tf.einsum("nhwk,nk->nhw", codes, weights)[..., tf.newaxis]
        return (tf.image.resize(tf.nn.relu(maps) if self.rectify else maps, tf.shape(images)[1:3]),)


def _checked_weights(weights: Any, concepts: int) -> np.ndarray:
    expected = f"one finite number for each of the {concepts} concepts"
    array = np.asarray(weights)
    if array.shape != (concepts,) or array.dtype.kind not in "fiub":
        raise InvalidArgument(message("weights", expected, f"shape {array.shape} and dtype {array.dtype}"))
    if not np.isfinite(array).all():
        raise InvalidArgument(message("weights", expected, "NaN or infinity"))
    return array.astype(np.float32)
