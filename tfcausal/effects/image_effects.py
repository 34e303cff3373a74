"""Causal effects of interventions on the image itself: masking, an attack, anything that gives other images."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.effects.engine import batches, check_batch_size, checked_images, fitting, run
from tfcausal.effects.equations import SIGNS, Sign
from tfcausal.effects.expected import checked_classes, checked_pairs, head_kind
from tfcausal.effects.results import IMAGE, EffectResult, Scale
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph

_LARGEST_BATCH = 64


class ImageEffects:
    """Causal effects of changed images on the answers of a classifier, ``P(y | do(image')) - P(y | image)``.

    Source: equation 1 of *When causal intervention meets adversarial examples and image masking for deep neural
    networks*, with the intervention variable F of its equation 3 on the image.

    Args:
        model: A Keras classifier of one input.
        sign: `do_minus_observed`, equation 1, or `observed_minus_do`.
        batch_size: Images per pass; None chooses by the model's size.

    Raises:
        InvalidArgument: Unknown `sign`, or `batch_size` is not a positive integer.
        UnsupportedOperation: The model has several inputs or no graph of operations.

    Example:
        >>> inputs = keras.Input((2, 2, 1))
        >>> head = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones")
        >>> model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
        >>> result = ImageEffects(model)(np.zeros((3, 2, 2, 1)), np.ones((3, 2, 2, 1)))
        >>> round(result.summary().estimate(-1).value, 3)
        -0.482
    """

    def __init__(self, model: keras.Model, sign: Sign = "do_minus_observed", batch_size: int | None = None) -> None:
        if sign not in SIGNS:
            raise InvalidArgument(message("sign", " or ".join(SIGNS), repr(sign)))
        check_batch_size(batch_size)
        self.graph = OperationGraph(model)
        if len(self.graph.inputs) != 1:
            raise UnsupportedOperation(
                f"Effects are measured in classifiers of one input; model `{model.name}` has {len(self.graph.inputs)}."
            )
        self.sign = sign
        self.batch_size = batch_size or fitting(self.graph.activation_bytes(), _LARGEST_BATCH)
        self._model = model
        self._answers = tf.function(
            self._batch_answers,
            input_signature=[tf.TensorSpec((None, *self.graph.input_shape[1:]), tf.float32)],
            autograph=False,
        )

    def __call__(
        self,
        images: object,
        observed_images: object,
        scale: Scale = "probability",
        classes: Sequence[int] | None = None,
    ) -> EffectResult:
        """Compare the answers to changed images with those to the images that they were made from.

        Args:
            images: The changed images, (N, height, width, channels).
            observed_images: The images as they were, in the same order.
            scale: `probability`, the output of the model, or `logit`.
            classes: The classes whose effects are kept; None for all.

        Returns:
            The answers with one node, -1, and one value. An image that was not changed has an effect of exactly 0.

        Raises:
            InvalidArgument: Images that the model does not take, another number of `observed_images`, an unknown scale
                or class.
        """
        if scale not in ("probability", "logit"):
            raise InvalidArgument(message("scale", "probability or logit", repr(scale)))
        changed = checked_images(images, self.graph)
        before = checked_pairs(observed_images, changed, self.graph)
        kept = checked_classes(classes, self.graph.num_classes)
        same = np.array([np.array_equal(image, other) for image, other in zip(changed, before, strict=True)])
        return self.compared(self.answers(changed), self.answers(before), same, scale, kept)

    def compared(
        self,
        answers: tuple[np.ndarray, np.ndarray],
        observed_answers: tuple[np.ndarray, np.ndarray],
        same: np.ndarray,
        scale: Scale,
        kept: np.ndarray,
    ) -> EffectResult:
        """Compare answers that are there already.

        Args:
            answers: From :meth:`answers`, for changed images.
            observed_answers: From :meth:`answers`, for the images that they were made from, in the same order.
            same: Which of them were not changed, (N,): their effect is exactly 0.
            scale: `probability`, the output of the model, or `logit`.
            kept: Indices of the classes whose effects are kept.

        Returns:
            As a call does.
        """
        of_changed, observed = (both[0 if scale == "logit" else 1] for both in (answers, observed_answers))
        outputs = observed_answers[1]
        intervened = np.where(same[:, None], observed, of_changed)[:, kept]
        return EffectResult(
            observed=observed[:, kept],
            intervened=intervened[:, None, None],
            untouched=of_changed[:, kept],
            posterior=outputs,
            head=head_kind(self.graph),
            nodes=(IMAGE,),
            values=np.full((1, 1), np.nan),
            frequencies=np.ones((1, 1)),
            dead=np.array([False]),
            classes=kept,
            intervention="image",
            sign=self.sign,
            reference="model",
            scale=scale,
        )

    def answers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and outputs of the classifier, each (N, classes), float32."""
        parts = [run(self._answers, images[part]) for part in batches(len(images), self.batch_size)]
        logits, outputs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return logits, outputs

    def _batch_answers(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with keras_api.losses_kept(self._model):
            logits = self.graph.run(images)[self.graph.logits]
            return tf.cast(logits, tf.float32), tf.cast(self.graph.head(logits), tf.float32)
