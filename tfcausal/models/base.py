"""What the training methods share: a Keras model around a classifier, whose step adds weighted terms to its loss."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.distributed import place_among_replicas, scaled_for_replicas, takes_empty_parts, unscaled_for_replicas
from tfcausal.errors import InvalidArgument, TrainingDiverged, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.models.checks import (
    plain_errors,
    require,
    require_epochs,
    require_finite,
    require_number,
    require_one_each,
    require_shape,
    require_weight,
)
from tfcausal.models.targets import Targets, read_targets
from tfcausal.objectives.heads import Head, evidence_weights
from tfcausal.saliency.linear_maps import along_channels, batch_norm_affine, batch_norm_statistics

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


class Parameter(NamedTuple):
    """A number of an objective that may change between epochs."""

    variable: tf.Variable
    expected: str
    valid: Callable[[float], bool]


class CausalClassifier(keras.Model):
    """A classifier that is trained with more than its classification loss.

    It is compiled, trained, evaluated and used for prediction like any Keras model; the targets may be labels, or a
    dict of `label`, `mask` (N, H, W, 1) and `has_mask` (N,). Subclasses give the terms in :meth:`objective`.

    The head decides what labels mean. Units with a softmax, or several without an activation, are exclusive classes:
    labels (N,) or one-hot rows. One unit, with a sigmoid or without, tells two classes apart: labels 0 and 1. Several
    units with a sigmoid are independent labels: rows of 0 and 1. Of an image with several labels the terms look at one,
    drawn anew in every step, which has the mean over its labels as its expectation; an image without any label has the
    classification loss alone.

    Under a `tf.distribute` strategy the terms of replicas with equal parts of the batch add up to what one replica
    would have with the whole batch. Logits are float32 in the losses under mixed precision, too. It is not compiled
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
        _check_backbone(graph)
        head = _head(graph, multi_label)
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
        self.parameters: dict[str, Parameter] = {}
        self.left_out: set[str] = set()
        self._ramp = tf.Variable(1.0, trainable=False, name="ramp")
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
        trained = any(
            isinstance(operation.layer, keras.layers.BatchNormalization)
            and operation.layer.trainable
            and operation.trains(True)
            for operation in self.graph.operations
        )
        return (2, "Batch normalisation needs the statistics of several images.") if trained else (1, "")

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

    def frozen_batch_norms(self, activations: Activations) -> dict[int, Callable[[tf.Tensor], tf.Tensor]]:
        """Stand-ins for the batch normalisations that use the statistics of a training pass as constants.

        Passes on changed images run with them, by `graph.run(images, training, replace)`: they neither have statistics
        of their own nor move the averages.
        """
        frozen: dict[int, Callable[[tf.Tensor], tf.Tensor]] = {}
        for operation in self.graph.operations:
            if isinstance(operation.layer, keras.layers.BatchNormalization):
                inputs, trains = activations[operation.inputs[0]], operation.trains(True)
                statistics = batch_norm_statistics(operation.layer, inputs, trains)
                constants = [tf.stop_gradient(value) for value in statistics]
                frozen[operation.output] = partial(_with_statistics, operation.layer, *constants)
        return frozen

    def add_parameter(self, name: str, value: float, expected: str, valid: Callable[[float], bool]) -> None:
        """Make a number of the objective one that may change between epochs without the step being traced anew.

        Args:
            name: Its name.
            value: Its first value.
            expected: Which values are valid, in words.
            valid: Whether a value is valid.
        """
        require_number(name, value, expected, valid)
        self.parameters[name] = Parameter(tf.Variable(float(value), trainable=False, name=name), expected, valid)

    def add_weight_of_term(self, name: str, value: float, term: str) -> None:
        """Make the weight of a term a parameter; a term of weight 0 is left out of steps and logs for good."""
        require_weight(name, value)
        if value == 0:
            self.left_out.add(term)
        else:
            self.add_parameter(name, value, "a finite number of at least 0", lambda number: 0 <= number < float("inf"))

    def set_parameter(self, name: str, value: float) -> None:
        """Change a number of the objective for the steps to come; schedules do it between epochs.

        Args:
            name: One of `parameters`.
            value: The new value.

        Raises:
            InvalidArgument: There is no such parameter, or the value is out of its range.
        """
        if name not in self.parameters:
            known = ", ".join(self.parameters) or "nothing: this model has no parameters"
            remedy = "A term whose weight is 0 in the constructor is left out; give it a weight there."
            raise InvalidArgument(message("name", f"one of {known}", repr(name), remedy))
        parameter = self.parameters[name]
        require_number(name, value, parameter.expected, parameter.valid)
        parameter.variable.assign(float(value))

    def has_term(self, weight: str) -> bool:
        """Whether the term with this weight takes part."""
        return weight in self.parameters

    def parameter(self, name: str, dtype: tf.DType = tf.float32) -> tf.Tensor:
        """The present value of a parameter, inside a step."""
        return tf.cast(self.parameters[name].variable, dtype)

    def weight(self, name: str) -> tf.Tensor:
        """The present weight of a term, with its share of the ramp."""
        return self.parameter(name) * self._ramp

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
        offset, total = place_among_replicas(tf.shape(like)[0])
        step = tf.cast(self.optimizer.iterations, tf.int32)
        drawn = tf.random.stateless_uniform(tf.stack([total, tf.shape(like)[1]]), tf.stack([step, 0]))
        return tf.ensure_shape(drawn[offset : offset + tf.shape(like)[0]], like.shape)

    def _check_mask_use(self, targets: Targets, training: bool) -> None:
        name = type(self).__name__
        if targets.mask is not None and self.mask_use == "none":
            remedy = "Pass the labels alone."
            raise InvalidArgument(message("y", f"labels alone: {name} uses no masks", "a dict with `mask`", remedy))
        if targets.mask is None and self.mask_use == "needed" and training:
            expected = (
                f"a dict of `label`, `mask` and `has_mask` (0 for an image without a mask): {name} learns from masks"
            )
            raise InvalidArgument(message("y", expected, "labels alone", "Without masks, train a plain Keras model."))

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
        remedy = (
            f"Drop the rest of an epoch, or choose a batch size that leaves 0 images for it, or {replicas} or more."
        )
        expected = f"an image for each of the {replicas} replicas"
        text = message("batch_size", expected, "a batch without one for some of them", remedy)
        return [require(count > 0, InvalidArgument, text, count)]

    def _check_loss(self) -> None:
        """The compiled loss must read the outputs as what they are."""
        name, from_logits = keras_api.loss_description(self.loss)
        has_logits = self.graph.output == self.graph.logits
        if name in ("sparse_categorical_crossentropy", "categorical_crossentropy") and self.head != "multi_class":
            expected = f"binary_crossentropy for a {self.head.replace('_', '-')} head"
            raise InvalidArgument(message("loss", expected, name))
        if from_logits is not None and from_logits != has_logits:
            outputs = "logits: its head has no activation" if has_logits else "probabilities"
            expected = f"from_logits={has_logits}, as the backbone gives {outputs}"
            raise InvalidArgument(message("loss", expected, f"{name} with from_logits={from_logits}"))

    def _total_loss(
        self,
        images: tf.Tensor,
        targets: Targets,
        sample_weight: tf.Tensor | None,
        objective: Objective,
        training: bool,
    ) -> tf.Tensor:
        self._check_loss()
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


def _check_backbone(graph: OperationGraph) -> None:
    expected = received = ""
    if len(graph.inputs) != 1:
        expected, received = "a classifier with one input", f"{len(graph.inputs)} inputs"
    elif len(graph.input_shape) not in (4, 5):
        expected = "a classifier of images (N, height, width, channels) or volumes"
        received = f"inputs {graph.input_shape}"
    for operation in graph.operations:
        if getattr(operation.layer, "data_format", None) == "channels_first":
            expected, received = "layers with the channels last", f"channels first in `{operation.path}`"
        if getattr(operation.layer, "activity_regularizer", None) is not None:
            expected, received = "layers without an activity regulariser", f"one in `{operation.path}`"
    if expected:
        raise InvalidArgument(message("backbone", expected, received))


def _head(graph: OperationGraph, multi_label: bool | None) -> Head:
    """What the units of the head stand for."""
    if multi_label not in (None, True, False):
        raise InvalidArgument(message("multi_label", "True, False or None", repr(multi_label)))
    last = graph.producer(graph.output)
    split = graph.output != graph.logits and last is not None
    softmax = split and last is not None and keras_api.is_softmax(last.layer)
    units = graph.num_classes
    if units == 1 and softmax:
        raise InvalidArgument(message("backbone", "one unit with a sigmoid, or several", "a softmax over one unit"))
    if units == 1:
        if multi_label:
            raise InvalidArgument(message("multi_label", "None with one unit, a binary head", "True"))
        return "binary"
    found: bool | None = None if not split else not softmax
    if None not in (multi_label, found) and multi_label != found:
        name = "sigmoid" if found else "softmax"
        remedy = f"Leave it out, or give the backbone a {'softmax' if found else 'sigmoid'}."
        raise InvalidArgument(message("multi_label", f"{found} for a head with a {name}", repr(multi_label), remedy))
    return "multi_label" if (found if multi_label is None else multi_label) else "multi_class"


def _with_statistics(layer: Any, mean: tf.Tensor, variance: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A batch normalisation with statistics that are given."""
    if x.shape.rank == 4 and layer.axis % 4 == 3 and x.dtype != tf.float64:
        # One operation that keeps nothing but its input, where the formula below keeps a product.
        scale = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones_like(mean)
        offset = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros_like(mean)
        parameters = {"scale": scale, "offset": offset, "mean": mean, "variance": variance}
        parameters = {name: tf.cast(value, tf.float32) for name, value in parameters.items()}
        return tf.raw_ops.FusedBatchNormV3(x=x, **parameters, epsilon=layer.epsilon, is_training=False).y
    affine = batch_norm_affine(layer, mean, variance)
    gain, shift = (tf.cast(along_channels(layer, value, x.shape.rank), x.dtype) for value in affine)
    return x * gain + shift
