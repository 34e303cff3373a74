"""Concepts of a network: an autoencoder behind one of its layers, whose code has a channel for every concept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.effects.agreement import Agreement, agreement_of, check_arguments
from tfcausal.effects.concept_layers import checked_layer, coding_layers, saved_penalty, usable_penalty
from tfcausal.effects.downstream import Downstream
from tfcausal.effects.engine import batches, check_batch_size, checked_images, fitting, run
from tfcausal.effects.image_training import ImageTraining
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations
from tfcausal.models.checks import head_of, require_finite, require_shape, require_weight
from tfcausal.objectives.heads import Head
from tfcausal.objectives.interpretability import Interpretability, relative_to_strength
from tfcausal.objectives.reconstruction import deep_loss, shallow_loss
from tfcausal.saliency.arguments import check_integer

_LARGEST_BATCH = 64
_TERMS = ("shallow", "deep", "interpretability")


@keras.saving.register_keras_serializable(package="tfcausal")
class ConceptAutoencoder(ImageTraining):
    """An autoencoder behind a layer of a frozen classifier, whose code gathers its channels into a few concepts.

    It is trained, evaluated, saved and loaded like any Keras model, on images alone: labels are left aside. Calling it
    gives the classifier's output with the reconstruction in the place of the layer's activation. A file holds the
    classifier, too; import this class before loading it.

    The loss is ``shallow_weight * L_shallow + deep_weight * L_deep + interpretability_weight * L_interpretability``, of
    :func:`~tfcausal.objectives.reconstruction.shallow_loss`, :func:`~tfcausal.objectives.reconstruction.deep_loss` and
    the penalties of :mod:`tfcausal.objectives.interpretability`, each the mean over the batch; a term of weight 0 is
    not computed. The log has `loss`, `shallow_loss`, `deep_loss` and `interpretability_loss`.

    Source: *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural Networks*,
    section 3.2. The autoencoder is that of the authors' code: a convolution from the channels to `hidden` and one from
    there to the code, and two that lead back, linear, without strides. (The paper speaks of five layers; the code has
    these four. In the code the Kullback-Leibler term has no effect, and the classifier is trained with the autoencoder;
    both contradict the paper.) Departures from both:

    - The classifier is frozen and at inference: no dropout, moving statistics in batch normalisation. It is not
      changed in any way, nor are its `trainable` flags read or set; its weights are none of the autoencoder's.
    - Activations are divided by `scale` before the encoder, and multiplied by it behind the decoder: the power of two
      next to their mean absolute value in the first batch of training. `shallow_loss` is that of the divided
      activations, so that weights and learning rates mean the same behind every layer.
    - The penalties `tv`, `l1` and `entropy`, and a user's own, get every concept divided by its strength in the batch,
      :func:`~tfcausal.objectives.interpretability.relative_to_strength`: the decoder could make up for small codes.
    - Training starts at a projection of each pixel's channels onto random directions, with decoder kernels that are the
      encoder's transposed. With `concepts` and `hidden` of at least the number of channels that is the identity.

    Args:
        model: A classifier of images that :class:`~tfcausal.graph.OperationGraph` takes, with one input and one output.
        layer: The layer whose activation is coded: the layer, its name, or its path in nested models. It gives maps
            (N, height, width, channels), volumes of them, or features (N, channels), which dense layers code.
        concepts: Number of channels of the code, at most that of the layer.
        hidden: Number of channels between the activation and the code.
        kernel_size: Side of the convolution kernels.
        activation: Name of the activation behind the two hidden layers; None for none. Code and reconstruction have
            none.
        shallow_weight: Weight of the reconstruction of the activation.
        deep_weight: Weight of the reconstruction of the network's answer.
        interpretability: Penalty on the code: a name, several in a sequence, a dictionary of weights by name (`tv`,
            `l1`, `entropy`, `tv_texture`), or a callable like those. A callable is saved with the model if it is
            registered with `keras.saving.register_keras_serializable`.
        interpretability_weight: Weight of the penalty.
        multi_label: For a head of several units without an activation: whether they are independent labels. None takes
            a sigmoid for that, and anything else for exclusive classes.
        **kwargs: `name`, `dtype` (float32 unless given) and other arguments of keras.Model.

    Attributes:
        network: The classifier, as it was given.
        downstream: What the classifier makes of the activation.
        layer: Path of the layer.
        concepts: Number of concepts, K.
        head: `multi_class`, `binary` or `multi_label`.
        encoder: The two layers from the activation to the code.
        decoder: The two layers back.
        trained: Whether a step of training was made, with these weights or those that were loaded. Set it to True where
            the weights come from elsewhere.

    Raises:
        InvalidArgument: An argument is out of its range, the layer has an unknown number of channels or fewer than
            there are concepts, it gives the logits, or :class:`~tfcausal.effects.downstream.Downstream` refuses it.
        UnsupportedOperation: The model has its channels first, or the layer gives no maps and no features.

    Example:
        >>> inputs = keras.Input((4, 4, 1))
        >>> maps = keras.layers.Conv2D(6, 1, activation="relu", name="maps")(inputs)
        >>> pooled = keras.layers.GlobalAveragePooling2D()(maps)
        >>> model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
        >>> autoencoder = ConceptAutoencoder(model, "maps", concepts=2)
        >>> images = np.random.default_rng(0).random((8, 4, 4, 1), "float32")
        >>> history = autoencoder.fit(images, epochs=2, verbose=0)
        >>> sorted(history.history)
        ['deep_loss', 'interpretability_loss', 'loss', 'shallow_loss']
        >>> autoencoder.codes(images).shape, autoencoder.agreement(images).n
        ((8, 4, 4, 2), 8)
    """

    def __init__(
        self,
        model: keras.Model,
        layer: object,
        concepts: int = 16,
        hidden: int = 32,
        kernel_size: int = 3,
        activation: str | None = None,
        shallow_weight: float = 0.5,
        deep_weight: float = 0.4,
        interpretability: Interpretability = ("tv", "l1"),
        interpretability_weight: float = 0.1,
        multi_label: bool | None = None,
        **kwargs: Any,
    ) -> None:
        downstream = Downstream(model, layer)
        path, channels = checked_layer(downstream, model.name)
        for name, value in (("concepts", concepts), ("hidden", hidden), ("kernel_size", kernel_size)):
            check_integer(name, value)
        if concepts > channels:
            expected = f"at most {channels}, as many as layer `{path}` has channels"
            remedy = "More concepts than channels summarise nothing: choose fewer, or another layer."
            raise InvalidArgument(message("concepts", expected, concepts, remedy))
        weights = (shallow_weight, deep_weight, interpretability_weight)
        for term, weight in zip(_TERMS, weights, strict=True):
            require_weight(f"{term}_weight", weight)
        if shallow_weight == 0 and deep_weight == 0:
            remedy = "Without them nothing makes the code stand for the activation."
            raise InvalidArgument(message("shallow_weight and deep_weight", "one of them above 0", "0 and 0", remedy))
        penalty = usable_penalty(interpretability, len(downstream.shape))
        head: Head = head_of(downstream.graph, multi_label)
        computed = {f"{term}_loss": float(weight) for term, weight in zip(_TERMS, weights, strict=True) if weight}
        super().__init__(computed, **{"dtype": "float32", **kwargs})
        self.downstream, self.head, self.layer = downstream, head, path
        # In a function, so that Keras does not take the classifier's layers for the autoencoder's own.
        self._network = lambda: model
        self.concepts, self.hidden, self.kernel_size, self.activation = concepts, hidden, kernel_size, activation
        self.shallow_weight, self.deep_weight, self.interpretability_weight = weights
        self.interpretability, self.multi_label = interpretability, multi_label
        self._penalty = penalty
        self.encoder, self.decoder = coding_layers(
            downstream.shape, hidden, concepts, kernel_size, activation, self.dtype_policy
        )
        self._scale = self.add_weight(name="scale", shape=(), initializer="zeros", trainable=False)
        self._compiled_functions: dict[str, Callable[..., Any]] = {}

    @property
    def network(self) -> keras.Model:
        """The classifier."""
        return self._network()

    @property
    def scale(self) -> tf.Tensor:
        """What activations are divided by, a scalar; 1 before the first step of training."""
        scale = tf.convert_to_tensor(self._scale)
        return tf.where(scale > 0, scale, tf.ones_like(scale))

    def encode(self, activation: tf.Tensor) -> tf.Tensor:
        """The codes of an activation.

        Args:
            activation: (N, height, width, channels), (N, slices, height, width, channels) or (N, channels), as the
                layer gives it.

        Returns:
            (N, height, width, concepts), (N, slices, height, width, concepts) or (N, concepts).
        """
        return self._encoded(self._divided(activation))[1]

    def decode(self, codes: tf.Tensor) -> tf.Tensor:
        """The activation that the decoder makes of codes, in the shape of the layer's activation."""
        return self._multiplied(self._decoded(tf.cast(codes, self.compute_dtype))[1])

    def logits_from_codes(self, known: Activations, codes: tf.Tensor) -> tf.Tensor:
        """The classifier's logits (N, classes) for codes.

        Args:
            known: What `downstream.known(images)` gave.
            codes: (N, ..., concepts).
        """
        return self.downstream.logits(known, self.decode(codes))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The classifier's output through the autoencoder."""
        require_shape(inputs, "images", self.downstream.graph.input_shape)
        with keras_api.losses_kept(self.network):
            known = self.downstream.known(inputs)
            codes = self.encode(known[self.downstream.position])
            return self.downstream.output(self.logits_from_codes(known, codes))

    def codes(self, images: Any, batch_size: int | None = None) -> np.ndarray:
        """The codes of images, computed in batches.

        Args:
            images: (N, height, width, channels) in the classifier's input space.
            batch_size: Images per pass; None chooses by the classifier's size.

        Returns:
            float32 (N, ..., concepts); the batch size does not change them.

        Raises:
            InvalidArgument: The autoencoder is not trained; images of another shape, not numeric or not finite.
        """
        (codes,) = self._in_batches("codes", self._batch_codes, images, batch_size)
        return codes

    def agreement(
        self,
        images: Any,
        least_same_answer: float = 0.9,
        largest_divergence: float = 0.1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Agreement:
        """How well the classifier answers through the autoencoder; to be measured on images that it has not seen.

        Args:
            images: (N, height, width, channels) in the classifier's input space.
            least_same_answer: Share of same answers from which the autoencoder counts as faithful.
            largest_divergence: Mean divergence in nats up to which it counts as faithful.
            seed: Seed of the bootstrap.
            batch_size: Images per pass; None chooses by the classifier's size.

        Raises:
            InvalidArgument: As for :meth:`codes`, or a threshold or seed outside its range.
        """
        check_arguments(least_same_answer, largest_divergence, seed)
        logits, reconstructed = self._in_batches("answers", self._batch_answers, images, batch_size)
        return agreement_of(logits, reconstructed, self.head, least_same_answer, largest_divergence, seed)

    def prepared(self, images: tf.Tensor, training: bool) -> tuple[Activations, tf.Tensor]:
        """What the classifier makes of a batch: its activations at the layer, and its logits."""
        graph = self.downstream.graph
        images = tf.cast(images, graph.input_dtypes[0])
        checks = require_shape(images, "x", graph.input_shape)
        checks.append(require_finite(tf.cast(images, tf.float32), "x", InvalidArgument))
        with tf.control_dependencies([check for check in checks if check is not None]):
            images = tf.ensure_shape(images, graph.input_shape)
        with keras_api.losses_kept(self.network):
            known = self.downstream.known(images)
            logits = _wide(self.downstream.logits(known))
        check = require_finite(logits, "model", InvalidArgument)
        with tf.control_dependencies([] if check is None else [check]):
            known = {position: tf.identity(value) for position, value in known.items()}
        if training:
            self._measure_scale(known[self.downstream.position])
        return known, logits

    def losses_of(self, prepared: tuple[Activations, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The losses of every sample that have a weight."""
        known, logits = prepared
        activation = self._divided(known[self.downstream.position])
        before, code = self._encoded(activation)
        behind, reconstruction = self._decoded(code)
        losses: dict[str, tf.Tensor] = {}
        if self.shallow_weight:
            losses["shallow_loss"] = shallow_loss(activation, reconstruction)
        if self.deep_weight:
            with keras_api.losses_kept(self.network):
                reconstructed = self.downstream.logits(known, self._multiplied(reconstruction))
            losses["deep_loss"] = deep_loss(logits, tf.cast(reconstructed, logits.dtype), self.head)
        if self.interpretability_weight:
            penalty = self._penalty(relative_to_strength(code), before, behind)
            if penalty.shape.rank != 1:
                expected = "a callable that gives one loss per sample, of shape (N,)"
                raise InvalidArgument(message("interpretability", expected, f"shape {penalty.shape}"))
            losses["interpretability_loss"] = penalty
        return {name: tf.cast(values, tf.float32) for name, values in losses.items()}

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        names = ("layer", "concepts", "hidden", "kernel_size", "activation", "multi_label")
        own = {name: getattr(self, name) for name in (*names, *(f"{term}_weight" for term in _TERMS))}
        own["interpretability"] = saved_penalty(self.interpretability)
        return {**super().get_config(), **own, "model": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ConceptAutoencoder:
        """Build the autoencoder from what :meth:`get_config` gave."""
        made = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("model", "interpretability")
        }
        return cls(**{**config, **made})

    def _divided(self, activation: tf.Tensor) -> tf.Tensor:
        return tf.cast(activation, self.compute_dtype) / tf.cast(self.scale, self.compute_dtype)

    def _multiplied(self, reconstruction: tf.Tensor) -> tf.Tensor:
        return reconstruction * tf.cast(self.scale, self.compute_dtype)

    def _encoded(self, activation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The hidden tensor before the code, and the code, of an activation divided by its scale."""
        hidden, code = self.encoder
        before = hidden(activation)
        return before, code(before)

    def _decoded(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The hidden tensor behind the code, and the reconstruction of the divided activation."""
        hidden, reconstruction = self.decoder
        behind = hidden(codes)
        return behind, reconstruction(behind)

    def _measure_scale(self, activation: tf.Tensor) -> None:
        """Set the scale by the first batch that is not 0 everywhere."""
        strength = tf.reduce_mean(tf.abs(tf.cast(activation, tf.float32)))
        power = tf.pow(2.0, tf.round(tf.math.log(strength) / tf.math.log(2.0)))  # divides without rounding
        power = tf.where(tf.math.is_finite(power), power, 0.0)
        before = tf.cast(tf.convert_to_tensor(self._scale), tf.float32)
        self._scale.assign(tf.where(before > 0, before, power))

    def _in_batches(
        self, name: str, function: Callable[[tf.Tensor], tuple[tf.Tensor, ...]], images: Any, batch_size: int | None
    ) -> tuple[np.ndarray, ...]:
        if not self.trained:
            remedy = "Call `fit` first; where its weights come from elsewhere, set `trained` to True."
            raise InvalidArgument(message("autoencoder", "a trained ConceptAutoencoder", "an untrained one", remedy))
        check_batch_size(batch_size)
        graph = self.downstream.graph
        array = checked_images(images, graph)
        if name not in self._compiled_functions:
            signature = [tf.TensorSpec((None, *graph.input_shape[1:]), tf.float32)]
            self._compiled_functions[name] = tf.function(function, input_signature=signature, autograph=False)
        compiled = self._compiled_functions[name]
        size = batch_size or fitting(graph.activation_bytes(), _LARGEST_BATCH)
        parts = [run(compiled, array[part]) for part in batches(len(array), size)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _batch_codes(self, images: tf.Tensor) -> tuple[tf.Tensor]:
        with keras_api.losses_kept(self.network):
            known = self.downstream.known(images)
        return (tf.cast(self.encode(known[self.downstream.position]), tf.float32),)

    def _batch_answers(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with keras_api.losses_kept(self.network):
            known = self.downstream.known(images)
            codes = self.encode(known[self.downstream.position])
            return _wide(self.downstream.logits(known)), _wide(self.logits_from_codes(known, codes))


def _wide(logits: tf.Tensor) -> tf.Tensor:
    """Logits in float32 at least."""
    return tf.cast(logits, tf.float32) if logits.dtype.size == 2 else logits
