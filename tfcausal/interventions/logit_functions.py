"""What attacks by gradients ask of a classifier, as compiled functions of its logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.objectives.heads import Head

HEADS: tuple[Head, ...] = ("multi_class", "binary", "multi_label")
_SURE = 1e-3  # in nats: a cross-entropy below it has lost four of the seven digits of its gradient


class LogitFunctions:
    """What an attack asks of a classifier, as compiled functions of its logits.

    Args:
        model: A Keras classifier of one floating-point input.
        output: Which output is attacked; may be None where there is only one.
        head: What its units stand for; None sees it from the model.
        to_input: Turns what is attacked into the model's input.

    Attributes:
        graph: The operations of the model.
        head: `multi_class`, `binary` or `multi_label`.
        classes: Number of classes; 2 for a binary head.

    Raises:
        InvalidArgument: `head` does not fit the model, or as :class:`~tfcausal.graph.OperationGraph` raises.
        UnsupportedOperation: The model has several inputs, or takes integers.
    """

    def __init__(
        self,
        model: keras.Model,
        output: str | int | None = None,
        head: Head | None = None,
        to_input: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ) -> None:
        self.graph = OperationGraph(model, output)
        if len(self.graph.inputs) != 1 or not tf.as_dtype(self.graph.input_dtypes[0]).is_floating:
            inputs = ", ".join(self.graph.input_dtypes)
            raise UnsupportedOperation(
                f"Attacks change the one floating-point input of a classifier; model `{model.name}` takes {inputs}."
            )
        self.head = head_of(model, self.graph, head)
        self.classes = 2 if self.head == "binary" else self.graph.num_classes
        self._model, self._to_input = model, to_input
        images = tf.TensorSpec(self.graph.input_shape, tf.float32)
        rows, indices = tf.TensorSpec((None, self.classes), tf.float32), tf.TensorSpec((None,), tf.int64)
        self.logits = self._compiled(self._logits, images)
        self.losses = self._compiled(self._losses, images, rows)
        self.loss_gradient = self._compiled(self._loss_gradient, images, rows)
        self.class_gradient = self._compiled(self._class_gradient, images, indices)
        self.class_gradients = self._compiled(self._class_gradients, images)

    def _compiled(self, function: Callable[..., tf.Tensor], *signature: tf.TensorSpec) -> Callable[..., tf.Tensor]:
        def traced(*arguments: tf.Tensor) -> tf.Tensor:
            with keras_api.losses_kept(self._model):
                return function(*arguments)

        compiled = tf.function(traced, input_signature=signature, autograph=False)
        # TensorFlow warns of retracing where several classifiers have their functions traced, unless asked for it.
        traced_once = cache(compiled.get_concrete_function)
        return lambda *arguments: traced_once()(*map(tf.convert_to_tensor, arguments))

    def model(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The logits (N, classes), for those of ART's attacks that call the model themselves; always at inference."""
        return self.logits(tf.cast(inputs, tf.float32))

    def _logits(self, inputs: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(self.graph.run(self._to_input(inputs))[self.graph.logits], tf.float32)
        return tf.concat([-logits / 2, logits / 2], axis=-1) if self.head == "binary" else logits

    def _losses(self, inputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        logits = self._logits(inputs)
        if self.head == "multi_label":
            # A comparison heals what a division by the sum of a row leaves of it: NaN for a row of zeros.
            signs = tf.where(rows > 0, -1.0, 1.0)
            return tf.reduce_mean(tf.math.softplus(signs * logits), axis=-1)
        losses = tf.nn.softmax_cross_entropy_with_logits(rows, logits)
        return tf.where(losses < _SURE, _losses_of_sure(rows, logits, losses), losses)

    def _loss_gradient(self, inputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(self._losses(inputs, rows))
        return self._present(tape.gradient(loss, inputs))

    def _class_gradient(self, inputs: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            chosen = tf.reduce_sum(tf.gather(self._logits(inputs), classes, batch_dims=1))
        return self._present(tape.gradient(chosen, inputs))[:, None]

    def _class_gradients(self, inputs: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            sums = tf.reduce_sum(self._logits(inputs), axis=0)
        # One forward pass, then a loop over the classes: all classes at once would take their number times the memory.
        gradients = self._present(tape.jacobian(sums, inputs, parallel_iterations=1, experimental_use_pfor=False))
        return tf.transpose(gradients, [1, 0, *range(2, gradients.shape.rank)])

    def _present(self, gradient: tf.Tensor | None) -> tf.Tensor:
        if gradient is None:
            raise UnsupportedOperation(
                f"No gradient of the logits of model `{self._model.name}` reaches its input: an operation between "
                "them, such as rounding, has none. Attacks by gradients need a model without it."
            )
        return gradient


def _losses_of_sure(rows: tf.Tensor, logits: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """The cross-entropy of classes of which the model is sure, (N,); `losses` where the rows are not one-hot.

    The gradient of TensorFlow's own is the probability minus 1, which rounds to 0 for the class itself, while the other
    classes keep theirs: it points elsewhere. A difference of logits does not round.
    """
    labelled = rows == 1.0
    own = tf.reduce_sum(tf.where(labelled, logits, 0.0), axis=-1)
    others = tf.reduce_logsumexp(tf.where(labelled, logits.dtype.min, logits), axis=-1)
    one_hot = tf.logical_and(tf.reduce_max(rows, axis=-1) == 1.0, tf.reduce_sum(tf.abs(rows), axis=-1) == 1.0)
    return tf.where(one_hot, tf.math.softplus(others - own), losses)


def head_of(model: keras.Model, graph: OperationGraph, head: Head | None) -> Head:
    """What the units of a model's head stand for, as far as the model says so, and as far as not, as the user says.

    Args:
        model: The model; a `head` of its own is believed.
        graph: Its operations.
        head: What the user says, or None.

    Raises:
        InvalidArgument: The two do not agree, or the head is a softmax over one unit.
    """
    if head is not None and head not in HEADS:
        raise InvalidArgument(message("head", f"None or one of {', '.join(HEADS)}", repr(head)))
    last = graph.producer(graph.output)
    split = graph.output != graph.logits and last is not None
    softmax = split and last is not None and keras_api.is_softmax(last.layer)
    if graph.num_classes == 1 and softmax:
        raise InvalidArgument(message("model", "one unit with a sigmoid, or several", "a softmax over one unit"))
    own = getattr(model, "head", None)
    known: Head | None = next((name for name in HEADS if name == own), None) if isinstance(own, str) else None
    if graph.num_classes == 1:
        known = "binary"
    elif split:
        known = "multi_class" if softmax else "multi_label"
    if head == "binary" and known != "binary":
        raise InvalidArgument(message("head", "`binary` for a model of one unit", f"{graph.num_classes} units"))
    if None not in (head, known) and head != known:
        raise InvalidArgument(message("head", f"`{known}`, as the model's head says", repr(head)))
    return head or known or "multi_class"
