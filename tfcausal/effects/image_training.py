"""A Keras model that is trained on images alone, by losses of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.distributed import scaled_for_replicas
from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.models.checks import plain_errors, require_finite


class ImageTraining(keras.Model):
    """A model whose loss is a weighted sum of losses per sample that need no labels.

    Subclasses implement :meth:`prepared` and :meth:`losses_of`. The log has `loss` and the mean of every loss. Labels
    that come with the images are left aside. It is not compiled with XLA, which drops the checks inside a step.

    Args:
        weights_of_losses: Weights of the losses by name.
        **kwargs: Arguments of keras.Model.

    Attributes:
        trained: Whether a step of training was made, with these weights or those that were loaded. Set it to True where
            the weights come from elsewhere.
    """

    def __init__(self, weights_of_losses: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights_of_losses = dict(weights_of_losses)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in weights_of_losses}
        self._trained = self.add_weight(name="trained", shape=(), initializer="zeros", trainable=False)
        self.supports_jit = False
        self.built = True

    @property
    def trained(self) -> bool:
        """Whether a step of training was made."""
        return bool(tf.convert_to_tensor(self._trained) > 0)

    @trained.setter
    def trained(self, value: bool) -> None:
        self._trained.assign(1.0 if value else 0.0)

    def prepared(self, images: tf.Tensor, training: bool) -> Any:
        """Check a batch, and compute what the losses need and what no gradient goes through; to be overridden."""
        return images

    def losses_of(self, prepared: Any) -> dict[str, tf.Tensor]:
        """Losses per sample, each (N,) in float32, by their names; to be overridden."""
        return {}

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training; `fit` calls it."""
        prepared = self.prepared(_images(data), training=True)
        with tf.GradientTape() as tape:
            losses = self.losses_of(prepared)
            mean, count = self._total(losses)
            loss = scaled_for_replicas(mean, count)
        with tf.control_dependencies([require_finite(mean, "loss", TrainingDiverged)]):
            keras_api.apply_gradients(self, tape, loss)
            self._trained.assign(1.0)
        return self._results(mean, losses, count)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation; `evaluate` calls it."""
        losses = self.losses_of(self.prepared(_images(data), training=False))
        mean, count = self._total(losses)
        return self._results(mean, losses, count)

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:
        """Choose the optimizer; without a call, `fit` takes the default.

        Args:
            optimizer: Name of a Keras optimizer or the optimizer itself; None is Adam with a learning rate of 0.001.
            **kwargs: `run_eagerly`, `steps_per_execution` and other arguments of keras.Model.compile.

        Raises:
            InvalidArgument: A loss or metrics: the model has its own losses, and takes no labels.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                remedy = "Its losses are its own; their weights are set in its constructor."
                raise InvalidArgument(message(name, f"None for a {type(self).__name__}", repr(kwargs[name]), remedy))
        super().compile(keras.optimizers.Adam(1e-3) if optimizer is None else optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with what a saved model was compiled with."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train like `keras.Model.fit`, on arrays of images, or on data sets of them with or without labels.

        Raises:
            InvalidArgument: No images, or such as the model cannot be trained on; sample weights.
            TrainingDiverged: The loss is no longer finite. The weights are those of the last good step.
        """
        _refuse_weights(kwargs.get("sample_weight"))  # without labels Keras would drop them
        _refuse_nothing(args, kwargs)
        self._ready()
        with plain_errors():
            history = super().fit(*args, **kwargs)
        if history.epoch and not history.history:  # a data set that does not say how long it is
            raise _nothing("no batch")
        return history

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate like `keras.Model.evaluate`; errors as for `fit`."""
        _refuse_nothing(args, kwargs)
        self._ready()
        with plain_errors():
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch like `keras.Model.train_on_batch`; errors as for `fit`."""
        _refuse_nothing(args, kwargs)
        self._ready()
        with plain_errors():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on one batch like `keras.Model.test_on_batch`; errors as for `fit`."""
        _refuse_nothing(args, kwargs)
        self._ready()
        with plain_errors():
            return super().test_on_batch(*args, **kwargs)

    def _ready(self) -> None:
        if getattr(self, "optimizer", None) is None:
            self.compile()
        if not self.optimizer.built:  # else its variables come up inside the first step, which is traced again then
            self.optimizer.build(self.trainable_variables)

    def _total(self, losses: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, a scalar, and the number of samples."""
        weights = self.weights_of_losses
        terms = [weights[name] * tf.reduce_mean(values) for name, values in losses.items()]
        return tf.add_n(terms), tf.shape(next(iter(losses.values())))[0]

    def _results(self, loss: tf.Tensor, losses: dict[str, tf.Tensor], count: tf.Tensor) -> dict[str, Any]:
        for name, values in losses.items():
            self.trackers[name].update_state(values)
        keras_api.track_loss(self, loss, count)
        return self.get_metrics_result()


def _images(data: Any) -> tf.Tensor:
    """The images of what `fit` hands to a step."""
    images, _, sample_weight = keras_api.unpack(data)
    _refuse_weights(sample_weight)
    return images


def _refuse_weights(sample_weight: Any) -> None:
    if sample_weight is not None:
        remedy = "Leave them out, or map the data set to its images."
        raise InvalidArgument(message("sample_weight", "None for a model that is trained on images", "weights", remedy))


def _refuse_nothing(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Without a batch, Keras would give an empty history and no loss."""
    images = args[0] if args else kwargs.get("x")
    count: int | None
    if isinstance(images, tf.data.Dataset):
        count = int(images.cardinality())
    else:
        shape = getattr(images, "shape", (None,) if not isinstance(images, (list, tuple)) else (len(images),))
        count = shape[0] if len(shape) else None
    if count == 0:
        raise _nothing("none")


def _nothing(received: str) -> InvalidArgument:
    return InvalidArgument(message("x", "at least one image", received))
