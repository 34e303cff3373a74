"""What the training methods share: a Keras model around a classifier, whose step adds weighted terms to its loss."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.distributed import scaled_for_replicas, takes_empty_parts, uniform_like, unscaled_for_replicas
from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.models.checks import (
    head_of,
    plain_errors,
    require,
    require_epochs,
    require_finite,
    require_images_in,
    require_mask_use,
    require_matching_loss,
    require_one_each,
    require_shape,
)
from tfcausal.models.frozen_statistics import needs_statistics
from tfcausal.models.parameters import WithParameters
from tfcausal.models.targets import Targets, read_targets
from tfcausal.objectives.heads import Head, evidence_weights

MaskUse = Literal["none", "optional", "needed"]


class Term(NamedTuple):
    """One term of an objective: a loss per sample (N,), and its weight in the sum; None where it is in `added`."""

    loss: tf.Tensor
    weight: float | tf.Tensor | None


@dataclass(frozen=True)
class Objective:
    """What one forward pass gives: the model's output, the terms beside the classification loss, values to report.

    Values to report are one per sample (N,), like the losses of the terms. What is `added` to the loss as it is has the
    weights and the shares of the samples in it already, see :meth:`CausalClassifier.shares`.
    """

    outputs: tf.Tensor
    terms: dict[str, Term]
    reported: dict[str, tf.Tensor]
    added: tf.Tensor | None = None


class CausalClassifier(WithParameters):
    """A classifier that is trained with more than its classification loss.

    It is compiled, trained, evaluated and used for prediction like any Keras model; the targets may be labels, or a
    dict of `label`, `mask` (N, H, W, 1) and `has_mask` (N,). Subclasses give the terms in :meth:`objective`.

    The head decides what labels mean. Units with a softmax, or several without an activation, are exclusive classes:
    labels (N,) or one-hot rows. One unit, with a sigmoid or without, tells two classes apart: labels 0 and 1. Several
    units with a sigmoid are independent labels: rows of 0 and 1. Of an image with several labels the terms look at one,
    drawn anew in every step, which has the mean over its labels as its expectation; an image without any label has the
    classification loss alone.

    Under a `tf.distribute` strategy the terms of the replicas add up to what one replica would have with the whole
    batch, however unequal their parts. Logits are float32 in the losses under mixed precision, too. It is not compiled
    with XLA, which drops the checks inside a step. `export` exports the backbone.

    Args:
        backbone: A functional or built Sequential classifier of images (N, height, width, channels) or volumes (N,
            slices, height, width, channels).
        multi_label: For a head of several units without an activation: whether they are independent labels. None
            takes a sigmoid for that, and anything else for exclusive classes.
        warm_up_epochs: Epochs with the classification loss alone; by the number of the epoch in `fit`, so that a
            further call goes on with `initial_epoch`. `train_on_batch` knows no epochs.
        ramp_epochs: Epochs after the warm-up in which the weights of the terms rise to their full value.
        **kwargs: `name`, `dtype` and other arguments of keras.Model.

    Attributes:
        backbone: The classifier, usable on its own.
        graph: Its operations.
        head: `multi_class`, `binary` or `multi_label`.
        parameters: Numbers of the objective that may change between epochs, by name; see :meth:`set_parameter`.
        left_out: Names of the terms whose weight is 0.

    Raises:
        InvalidArgument: The backbone does not take images, its head tells no two classes apart, or it has a layer with
            an activity regulariser, which would count the passes on changed images too; or an argument is out of range.
        UnsupportedOperation: The backbone has no static graph.
    """

    #: Names of the losses per sample and of other values that a step reports besides `loss`.
    reported: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        backbone: keras.Model,
        multi_label: bool | None = None,
        warm_up_epochs: int = 0,
        ramp_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        graph = OperationGraph(backbone, keep=self.keeps, in_training=True)
        require_images_in(graph)
        head = head_of(graph, multi_label)
        require_epochs("warm_up_epochs", warm_up_epochs)
        require_epochs("ramp_epochs", ramp_epochs)
        # Under mixed precision Keras scales the loss if this model, and not only the backbone, has that policy.
        super().__init__(**{"dtype": keras_api.training_policy(backbone), **kwargs})
        self.backbone = backbone
        self.graph = graph
        self.head: Head = head
        self.multi_label = multi_label
        self.warm_up_epochs = warm_up_epochs
        self.ramp_epochs = ramp_epochs
        self.supports_jit = False
        self.built = True
        self.trackers = {name: keras.metrics.Mean(name=name) for name in ("classification_loss", *self.reported)}
        self._first_batch = tf.Variable(True, trainable=False, name="first_batch")
        self._with_terms = warm_up_epochs == 0

    def keeps(self, layer: Any) -> bool:
        """Whether a layer of the backbone stays whole; others are replaced by what they are made of."""
        return keras_api.is_keras_layer(layer)

    @property
    def explained_network(self) -> keras.Model:
        """The network that explainers look at."""
        return self.backbone

    @property
    def mask_use(self) -> MaskUse:
        """Whether training takes masks of the cause."""
        return "optional"

    @property
    def mask_shape(self) -> tuple[int | None, ...]:
        """Shape of the masks, None where any size will do; a last None stands for 1 or the number of labels."""
        return (None, *self.graph.input_shape[1:-3], None, None, 1)

    @property
    def least_batch(self) -> tuple[int, str]:
        """The fewest images that a replica needs of a training batch, and why."""
        reason = "Batch normalisation needs the statistics of several images."
        return (2, reason) if needs_statistics(self.graph) else (1, "")

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The backbone's output."""
        return self.backbone(inputs, training=training)

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The output and the terms for a batch; to be overridden. The base class has no terms.

        Args:
            images: (N, height, width, channels) in the backbone's input space.
            targets: The targets of the batch.
            training: Whether this is a training step.
        """
        return Objective(self.outputs(self.graph.run(images, training)), {}, {})

    def outputs(self, activations: Activations) -> tf.Tensor:
        """The backbone's output for a forward pass of its graph, computed from the logits in float32 at least."""
        return self.graph.head(self.logits(activations))

    def logits(self, activations: Activations) -> tf.Tensor:
        """The logits of a forward pass, float32 or float64."""
        logits = activations[self.graph.logits]
        return tf.cast(logits, tf.float32) if logits.dtype.size == 2 else logits

    def evidence(self, targets: Targets, activations: Activations) -> tf.Tensor:
        """Weights (N, outputs) with which the logits add up to the evidence for every image's class."""
        dtype = self.logits(activations).dtype
        return evidence_weights(targets.classes, self.graph.num_classes, self.head, dtype)

    def shares(self, targets: Targets) -> tf.Tensor:
        """What every sample counts in the mean over the batch of all replicas, its sample weight included, (N,)."""
        weights = targets.present if targets.sample_weight is None else targets.present * targets.sample_weight
        count = tf.shape(weights)[0]
        return scaled_for_replicas(weights / tf.cast(count, weights.dtype), count)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training; `fit` calls it."""
        if not self.trainable_weights:
            remedy = "Set `trainable` of the backbone, or of some of its layers, and compile again."
            raise InvalidArgument(message("backbone", "weights that can be trained", "none", remedy))
        images, targets, sample_weight = self._unpack(data, training=True)
        with tf.GradientTape() as tape:
            terms = self.objective if self._with_terms else partial(CausalClassifier.objective, self)
            objective = terms(images, targets, training=True)
            loss = self._total_loss(images, targets, sample_weight, objective, training=True)
        with tf.control_dependencies([require_finite(loss, "loss", TrainingDiverged)]):
            keras_api.apply_gradients(self, tape, loss)
        results = self._results(images, targets, sample_weight, objective, loss)
        return keras_api.reducible_logs(self, _without(results, self.left_out))

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation; `evaluate` calls it."""
        images, targets, sample_weight = self._unpack(data, training=False)
        objective = self.objective(images, targets, training=False)
        loss = self._total_loss(images, targets, sample_weight, objective, training=False)
        results = self._results(images, targets, sample_weight, objective, loss)
        absent = self.trackers.keys() - {"classification_loss", *objective.terms, *objective.reported}
        return keras_api.reducible_logs(self, _without(results, absent))

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train like `keras.Model.fit`; the number of the epoch ends the warm-up.

        Raises:
            InvalidArgument: Images, labels or masks of another shape, images with NaN or infinity, a label outside the
                classes, a mask outside [0, 1]; masks for a method that takes none, or none for one that needs them; a
                batch that is too small.
            TrainingDiverged: The loss is no longer finite, or a term has run away. The trainable weights are those of
                the last good step.
        """
        self._first_batch.assign(True)
        own = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self._begin_epoch(epoch),
            on_train_batch_end=lambda batch, logs: self._first_batch.assign(False) if batch == 0 else None,
        )
        given = callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else None
        if given is not None:
            given.callbacks.insert(0, own)
        else:
            callbacks = [own, *(keras.tree.flatten(callbacks) if callbacks else [])]
        try:
            with plain_errors():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)
        finally:
            if given is not None:
                given.callbacks.remove(own)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate like `keras.Model.evaluate`; errors as for `fit`."""
        with plain_errors():
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch like `keras.Model.train_on_batch`; errors as for `fit`."""
        self._first_batch.assign(True)
        with plain_errors():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on one batch like `keras.Model.test_on_batch`; errors as for `fit`."""
        with plain_errors():
            return super().test_on_batch(*args, **kwargs)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the backbone like `keras.Model.export`: what answers needs nothing of the training."""
        return self.backbone.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, and the present values of the parameters."""
        own = {name: getattr(self, name) for name in ("multi_label", "warm_up_epochs", "ramp_epochs")}
        own["parameters"] = {name: float(parameter.variable) for name, parameter in self.parameters.items()}
        return {**super().get_config(), **own, "backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> CausalClassifier:
        """Build the model from what :meth:`get_config` gave."""
        backbone = keras.saving.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        arguments = {name: value for name, value in config.items() if name != "parameters"}
        model = cls(**{**arguments, "backbone": backbone})
        for name, value in config.get("parameters", {}).items():
            model.set_parameter(name, value)
        return model

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        return keras_api.results_of_epoch(self, logs)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        keras_api.symbolic_build(self, iterator, data_batch)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if data_batch is not None:
            images, y, sample_weight = keras_api.unpack(data_batch)
            y = y["label"] if isinstance(y, dict) and "label" in y else y
            data_batch = (images, y, _of_label(sample_weight))
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def _begin_epoch(self, epoch: int) -> None:
        begun = epoch - self.warm_up_epochs + 1
        self._ramp.assign(min(1.0, begun / (self.ramp_epochs + 1)) if begun > 0 else 0.0)
        if (begun > 0) != self._with_terms:
            self._with_terms = begun > 0
            keras_api.rebuild_train_function(self)

    def _unpack(self, data: Any, training: bool) -> tuple[tf.Tensor, Targets, tf.Tensor | None]:
        images, y, sample_weight = keras_api.unpack(data)
        images = tf.cast(images, self.backbone.compute_dtype)
        shape_checks = require_shape(images, "x", self.graph.input_shape)
        scores = self._random_scores if training else tf.zeros_like
        targets, checks = read_targets(y, self.head, self.graph.num_classes, self.mask_shape, scores)
        self._check_mask_use(targets, training)
        checks += [*shape_checks, require_finite(images, "x", InvalidArgument)]
        checks += self._check_part(tf.shape(images)[0], training)
        if training:
            checks += self._check_batch(tf.shape(images)[0])
        sample_weight = _of_label(sample_weight)
        if sample_weight is not None:
            sample_weight = tf.cast(sample_weight, tf.float32)
            checks += require_one_each(sample_weight, "sample_weight", tf.shape(images)[0])
        with tf.control_dependencies([check for check in checks if check is not None]):
            images = tf.ensure_shape(images, self.graph.input_shape)
            if sample_weight is not None:
                sample_weight = tf.identity(sample_weight)
                targets = replace(targets, sample_weight=tf.reshape(sample_weight, (-1,)))
        return images, targets, sample_weight

    def _random_scores(self, like: tf.Tensor) -> tf.Tensor:
        """Uniform numbers that depend on the step and on the place in the whole batch of all replicas."""
        return uniform_like(like, tf.cast(self.optimizer.iterations, tf.int32))

    def _check_mask_use(self, targets: Targets, training: bool) -> None:
        require_mask_use(type(self).__name__, self.mask_use, targets.mask is not None, training)

    def _check_batch(self, count: tf.Tensor) -> list[tf.Operation | None]:
        """Refuse batches that are too small as such; a smaller rest at the end of an epoch is another matter."""
        least, reason = self.least_batch
        if least < 2:
            return []
        text = message("batch_size", f"at least {least}", "{}", reason)
        enough = tf.logical_or(count >= least, tf.logical_not(self._first_batch))
        return [require(enough, InvalidArgument, text, count)]

    def _check_part(self, count: tf.Tensor, training: bool) -> list[tf.Operation | None]:
        """Refuse a batch that leaves a replica without images where that cannot be computed."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        without_statistics = training and self.least_batch[0] > 1
        if replicas == 1 or (takes_empty_parts() and not without_statistics):
            return []
        remedy = f"Drop the rest of an epoch, or choose a batch size that leaves none, or {replicas} or more."
        expected = f"an image for each of the {replicas} replicas"
        text = message("batch_size", expected, "a batch without one for some of them", remedy)
        return [require(count > 0, InvalidArgument, text, count)]

    def _total_loss(
        self,
        images: tf.Tensor,
        targets: Targets,
        sample_weight: tf.Tensor | None,
        objective: Objective,
        training: bool,
    ) -> tf.Tensor:
        require_matching_loss(self.loss, self.head, self.graph.output == self.graph.logits)
        loss = self.compute_loss(
            x=images, y=targets.label, y_pred=objective.outputs, sample_weight=sample_weight, training=training
        )
        count = tf.shape(images)[0]
        mean = keras_api.unscaled_loss(loss)
        self.trackers["classification_loss"].update_state(mean, sample_weight=count)
        loss = scaled_for_replicas(mean, count)
        for name, term in objective.terms.items():
            values = term.loss
            if sample_weight is not None:
                values *= tf.cast(tf.reshape(sample_weight, (-1,)), values.dtype)
            if term.weight is not None:
                mean = scaled_for_replicas(tf.cast(tf.reduce_mean(values), loss.dtype), count)
                loss += tf.cast(term.weight, loss.dtype) * mean
            self.trackers[name].update_state(values)
        return loss if objective.added is None else loss + tf.cast(objective.added, loss.dtype)

    def _results(
        self,
        images: tf.Tensor,
        targets: Targets,
        sample_weight: tf.Tensor | None,
        objective: Objective,
        loss: tf.Tensor,
    ) -> dict[str, Any]:
        count = tf.shape(images)[0]
        keras_api.track_loss(self, unscaled_for_replicas(loss, count), count)
        for name, value in objective.reported.items():
            self.trackers[name].update_state(value)
        return self.compute_metrics(images, targets.label, objective.outputs, sample_weight=sample_weight)


def _of_label(sample_weight: Any) -> Any:
    """The sample weights: Keras gives an array of them the structure of the targets."""
    return sample_weight.get("label") if isinstance(sample_weight, dict) else sample_weight


def _without(results: dict[str, Any], absent: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name not in absent}
