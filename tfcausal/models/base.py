"""What the training methods share: a Keras model around a classifier, whose step adds weighted terms to its loss."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, TfCausalError, TrainingDiverged, message
from tfcausal.graph import OperationGraph

_ERRORS = {kind.__name__: kind for kind in (InvalidArgument, TrainingDiverged)}


class Term(NamedTuple):
    """One term of an objective: a loss per sample (N,), and its weight in the sum."""

    loss: tf.Tensor
    weight: float


@dataclass(frozen=True)
class Objective:
    """What one forward pass gives: the model's output, the terms beside the classification loss, values to report.

    Values to report are one per sample (N,), like the losses of the terms.
    """

    outputs: tf.Tensor
    terms: dict[str, Term]
    reported: dict[str, tf.Tensor]


@dataclass(frozen=True)
class Targets:
    """The targets of a batch.

    Attributes:
        label: The label as it was given, for the compiled loss and metrics.
        classes: Class indices, int64 (N,).
        mask: Mask of the cause (N, H, W, 1), or None.
        has_mask: 1 where the mask is a real one, (N,), or None.
    """

    label: tf.Tensor
    classes: tf.Tensor
    mask: tf.Tensor | None
    has_mask: tf.Tensor | None


class CausalClassifier(keras.Model):
    """A classifier that is trained with more than its classification loss.

    It is compiled, trained, evaluated and used for prediction like any Keras model; the targets may be labels, or a
    dict of `label`, `mask` (N, H, W, 1) and `has_mask` (N,). Subclasses give the terms in :meth:`objective`.

    It is not compiled with XLA, which drops the checks inside a step.

    Args:
        backbone: A functional or built Sequential classifier with one input, images, and one output of at least two
            classes.
        **kwargs: `name`, `dtype` and other arguments of keras.Model.

    Attributes:
        backbone: The classifier, usable on its own.
        graph: Its operations.

    Raises:
        InvalidArgument: The backbone does not take images, has fewer than two classes, or a layer with an activity
            regulariser, which would count the passes on changed images too.
        UnsupportedOperation: The backbone has no static graph.
    """

    #: Names of the losses per sample and of other values that a step reports besides `loss`.
    reported: tuple[str, ...] = ()

    def __init__(self, backbone: keras.Model, **kwargs: Any) -> None:
        graph = OperationGraph(backbone, keep=self.keeps, in_training=True)
        _check_backbone(graph)
        super().__init__(**kwargs)
        self.backbone = backbone
        self.graph = graph
        self.supports_jit = False
        self.built = True
        self.trackers = {name: keras.metrics.Mean(name=name) for name in ("classification_loss", *self.reported)}

    def keeps(self, layer: Any) -> bool:
        """Whether a layer of the backbone stays whole; others are replaced by what they are made of."""
        return keras_api.is_keras_layer(layer)

    @property
    def explained_network(self) -> keras.Model:
        """The network that explainers look at."""
        return self.backbone

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The backbone's output."""
        return self.backbone(inputs, training=training)

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        """The output and the terms for a batch; to be overridden.

        Args:
            images: (N, height, width, channels) in the backbone's input space.
            targets: The targets of the batch.
            training: Whether this is a training step.
        """
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training; `fit` calls it."""
        images, targets, sample_weight = self._unpack(data)
        with tf.GradientTape() as tape:
            objective = self.objective(images, targets, training=True)
            loss = self._total_loss(images, targets, sample_weight, objective, training=True)
        with tf.control_dependencies([_require_finite(loss, "loss", TrainingDiverged)]):
            keras_api.apply_gradients(self, tape, loss)
        return self._results(images, targets, sample_weight, objective, loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation; `evaluate` calls it."""
        images, targets, sample_weight = self._unpack(data)
        objective = self.objective(images, targets, training=False)
        loss = self._total_loss(images, targets, sample_weight, objective, training=False)
        results = self._results(images, targets, sample_weight, objective, loss)
        absent = self.trackers.keys() - {"classification_loss", *objective.terms, *objective.reported}
        return {name: value for name, value in results.items() if name not in absent}

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train like `keras.Model.fit`.

        Raises:
            InvalidArgument: Images, labels or masks of another shape, images with NaN or infinity, a label outside the
                classes, a mask outside [0, 1].
            TrainingDiverged: The loss is no longer finite, or a term has run away. The trainable weights are those of
                the last good step.
        """
        with _plain_errors():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate like `keras.Model.evaluate`; errors as for `fit`."""
        with _plain_errors():
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch like `keras.Model.train_on_batch`; errors as for `fit`."""
        with _plain_errors():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on one batch like `keras.Model.test_on_batch`; errors as for `fit`."""
        with _plain_errors():
            return super().test_on_batch(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> CausalClassifier:
        """Build the model from what :meth:`get_config` gave."""
        backbone = keras.saving.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        return cls(**{**config, "backbone": backbone})

    def _unpack(self, data: Any) -> tuple[tf.Tensor, Targets, tf.Tensor | None]:
        images, y, sample_weight = keras_api.unpack(data)
        images = tf.cast(images, self.backbone.compute_dtype)
        given = y if isinstance(y, dict) else {"label": y}
        label, mask, has_mask = (given.get(name) for name in ("label", "mask", "has_mask"))
        if label is None or (mask is None and has_mask is not None) or given.keys() - {"label", "mask", "has_mask"}:
            received = f"a dict of {', '.join(y)}" if isinstance(y, dict) else type(y).__name__
            raise InvalidArgument(message("y", "labels, or a dict with `label`, `mask` and `has_mask`", received))
        classes = class_indices(label, self.graph.num_classes)
        checks = [
            _require_one_class(label),
            *_require_shape(images, "x", self.graph.input_shape),
            _require_finite(images, "x", InvalidArgument),
            _require_labels(classes, self.graph.num_classes),
        ]
        if mask is not None:
            mask = tf.convert_to_tensor(mask)
            checks += [*_require_shape(mask, "y['mask']", (None, None, None, 1)), _require_share(mask, "y['mask']")]
            has_mask = tf.ones(tf.shape(mask)[:1]) if has_mask is None else tf.reshape(has_mask, (-1,))
        with tf.control_dependencies(checks):
            images, classes = tf.ensure_shape(images, self.graph.input_shape), tf.identity(classes)
        return images, Targets(label, classes, mask, has_mask), sample_weight

    def _total_loss(
        self,
        images: tf.Tensor,
        targets: Targets,
        sample_weight: tf.Tensor | None,
        objective: Objective,
        training: bool,
    ) -> tf.Tensor:
        loss = self.compute_loss(
            x=images, y=targets.label, y_pred=objective.outputs, sample_weight=sample_weight, training=training
        )
        self.trackers["classification_loss"].update_state(loss, sample_weight=tf.shape(images)[0])
        for name, term in objective.terms.items():
            values = term.loss
            if sample_weight is not None:
                values *= tf.cast(tf.reshape(sample_weight, (-1,)), values.dtype)
            loss += term.weight * tf.cast(tf.reduce_mean(values), loss.dtype)
            self.trackers[name].update_state(values)
        return loss

    def _results(
        self,
        images: tf.Tensor,
        targets: Targets,
        sample_weight: tf.Tensor | None,
        objective: Objective,
        loss: tf.Tensor,
    ) -> dict[str, Any]:
        keras_api.track_loss(self, loss, tf.shape(images)[0])
        for name, value in objective.reported.items():
            self.trackers[name].update_state(value)
        return self.compute_metrics(images, targets.label, objective.outputs, sample_weight=sample_weight)


def class_indices(label: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Class indices from integer labels (N,) or (N, 1), or from one-hot rows (N, classes).

    Args:
        label: The labels.
        num_classes: Number of classes.

    Returns:
        int64 (N,).

    Raises:
        InvalidArgument: Another shape.

    Example:
        >>> import tensorflow as tf
        >>> class_indices(tf.constant([[0.0, 1.0], [1.0, 0.0]]), 2).numpy().tolist()
        [1, 0]
    """
    label = tf.convert_to_tensor(label)
    rank, last = label.shape.rank, label.shape[-1] if label.shape.rank else None
    if rank == 2 and last == num_classes and num_classes > 1:
        return tf.argmax(label, axis=-1)
    if rank == 1 or (rank == 2 and last == 1):
        return tf.cast(tf.reshape(label, (-1,)), tf.int64)
    expected = f"class indices of shape (N,) or one-hot rows of shape (N, {num_classes})"
    raise InvalidArgument(message("y", expected, *_received_shape(label)))


def require_number(name: str, value: object, expected: str, valid: Callable[[float], bool]) -> None:
    """Check an argument that is a number.

    Args:
        name: The argument.
        value: What was given.
        expected: What is valid, in words.
        valid: Whether a number is valid.

    Raises:
        InvalidArgument: Not a real number, or not a valid one.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not valid(float(value)):
        raise InvalidArgument(message(name, expected, repr(value)))


def require(condition: tf.Tensor, kind: type[TfCausalError], text: str, value: tf.Tensor) -> tf.Operation | None:
    """Check inside a compiled step; `fit` and `evaluate` turn a failure into an error of class `kind` with this text.

    Args:
        condition: Scalar boolean.
        kind: `InvalidArgument` or `TrainingDiverged`.
        text: What to say; `{}` stands for the value.
        value: Scalar or vector that the message shows.

    Raises:
        TfCausalError: Of class `kind`, where the step is run eagerly.
    """
    if tf.executing_eagerly():
        if not bool(condition):
            raise kind(text.replace("{}", str(value.numpy()).strip("[]")))
        return None
    return tf.debugging.Assert(condition, [f"tfcausal|{kind.__name__}|{text}|", value], summarize=8)


def _check_backbone(graph: OperationGraph) -> None:
    expected = received = ""
    if len(graph.inputs) != 1:
        expected, received = "a classifier with one input", f"{len(graph.inputs)} inputs"
    elif len(graph.input_shape) != 4:
        expected, received = "a classifier of images (N, height, width, channels)", f"inputs {graph.input_shape}"
    elif graph.num_classes < 2:
        expected, received = "a classifier of at least 2 classes", f"{graph.num_classes}"
    for operation in graph.operations:
        if getattr(operation.layer, "data_format", None) == "channels_first":
            expected, received = "layers with the channels last", f"channels first in `{operation.path}`"
        if getattr(operation.layer, "activity_regularizer", None) is not None:
            expected, received = "layers without an activity regulariser", f"one in `{operation.path}`"
    if expected:
        raise InvalidArgument(message("backbone", expected, received))


def _received_shape(value: tf.Tensor) -> tuple[str, str]:
    """What to say of a tensor of a wrong shape, and what to do about it."""
    if value.shape.rank is not None:
        return f"shape ({', '.join('N' if size is None else str(size) for size in value.shape)})", ""
    return "a tensor of unknown rank", "Keep the rank from call to call; in a tf.data pipeline, use `set_shape`."


def _require_shape(value: tf.Tensor, name: str, shape: tuple[int | None, ...]) -> list[tf.Operation | None]:
    """Check a shape: at once as far as it is known, and the rest inside the step."""
    expected = f"shape ({', '.join(['N', *('any' if size is None else str(size) for size in shape[1:])])})"
    if value.shape.rank is None or not value.shape.is_compatible_with(shape):
        raise InvalidArgument(message(name, expected, *_received_shape(value)))
    open_axes = [axis for axis, size in enumerate(shape) if size is not None and value.shape[axis] is None]
    if not open_axes:
        return []
    sizes = tf.shape(value)
    fits = tf.reduce_all([sizes[axis] == shape[axis] for axis in open_axes])
    return [require(fits, InvalidArgument, message(name, expected, "shape ({})"), sizes)]


def _require_share(value: tf.Tensor, name: str) -> tf.Operation | None:
    value = tf.cast(value, tf.float32)
    outside = tf.logical_not(tf.logical_and(value >= 0, value <= 1))
    count = tf.math.count_nonzero(outside)
    text = message(name, "values in [0, 1]", "{} values outside", "Divide masks of 0 and 255 by 255.")
    return require(tf.equal(count, 0), InvalidArgument, text, count)


def _require_finite(value: tf.Tensor, name: str, kind: type[TfCausalError]) -> tf.Operation | None:
    bad = tf.size(value) - tf.math.count_nonzero(tf.math.is_finite(value), dtype=tf.int32)
    if kind is TrainingDiverged:
        text = "Training was stopped: the loss is NaN or infinite. Lower the learning rate or the weights of the terms."
    else:
        text = message(name, "finite values", "{} values that are NaN or infinite", "Clean the data.")
    return require(tf.equal(bad, 0), kind, text, bad)


def _require_one_class(label: tf.Tensor) -> tf.Operation | None:
    """Rows of several classes, or of none, and class indices with a fraction must not be read as one class."""
    label = tf.convert_to_tensor(label)
    if label.shape.rank == 2 and label.shape[-1] != 1:
        sums = tf.reduce_sum(tf.cast(label, tf.float32), axis=-1)
        text = message("y", "rows that sum to 1, for one class per image", "{} other rows", "Give class indices.")
        wrong = tf.abs(sums - 1.0) > 1e-3
    else:
        wrong = tf.not_equal(label, tf.round(label)) if label.dtype.is_floating else tf.zeros_like(label, tf.bool)
        text = message("y", "class indices", "{} values with a fraction")
    count = tf.math.count_nonzero(wrong)
    return require(tf.equal(count, 0), InvalidArgument, text, count)


def _require_labels(classes: tf.Tensor, num_classes: int) -> tf.Operation | None:
    outside = tf.logical_or(classes < 0, classes >= num_classes)
    first = tf.reduce_max(tf.where(outside, classes, tf.zeros_like(classes) - 1))
    worst = tf.where(tf.reduce_any(classes < 0), tf.reduce_min(classes), first)
    text = message(
        "y", f"labels in [0, {num_classes - 1}]", "the label {}", "Check the labels or the size of the head."
    )
    return require(tf.logical_not(tf.reduce_any(outside)), InvalidArgument, text, worst)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"tfcausal\|(\w+)\|(.*?)\|\] \[([^\]]*)\]", error.message, re.DOTALL)
        if found is None:
            raise
        kind, text, value = found.groups()
        raise _ERRORS[kind](text.replace("\\'", "'").replace("{}", value)) from None
