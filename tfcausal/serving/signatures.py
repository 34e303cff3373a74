"""The functions of an exported model: what it answers, and why, as TensorFlow operations on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.effects.channels import Concepts
from tfcausal.errors import message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.objectives.heads import Head
from tfcausal.saliency.base import Explainer
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.lrp_plan import ZBox
from tfcausal.serving import names
from tfcausal.serving.checks import checked_classes, checked_images, require
from tfcausal.serving.image_bytes import MOST_PIXELS, pictures
from tfcausal.serving.zero_out import zero_out

Outputs = dict[str, tf.Tensor]
_SLACK = 1e-4  # as the z-box rule of LRP has it


@dataclass(frozen=True)
class Served:
    """A classifier as it is exported.

    Attributes:
        model: The classifier.
        graph: Its operations, of the output that is explained.
        explainer: What explains it; used for tracing only, and not to be used otherwise any more.
        head: `multi_class`, `binary` or `multi_label`.
        labels: The name of every class; two of them for a binary head.
        pixels: What black and white are in the model's input.
        shape: (height, width, channels) that files are resized to.
        most_pixels: Pixels that a file may have.
        levels: Concepts by the name of their signature.
    """

    model: keras.Model
    graph: OperationGraph
    explainer: Explainer
    head: Head
    labels: Sequence[str]
    pixels: tuple[float, float]
    shape: tuple[int, int, int]
    most_pixels: int = MOST_PIXELS
    levels: Mapping[str, Concepts] = field(default_factory=dict)


def concrete_functions(served: Served) -> dict[str, Any]:
    """Trace every signature once, for batches of any size.

    Args:
        served: What is exported.

    Returns:
        Concrete functions by the name of the signature; each gives a dictionary.

    Raises:
        Exception: Whatever a layer raises that cannot be traced.
    """
    shape = (None, *served.graph.input_shape[1:])
    images = tf.TensorSpec(shape, tf.float32, name=names.IMAGES)
    files = tf.TensorSpec((None,), tf.string, name=names.IMAGE_BYTES)
    classes = tf.TensorSpec((None,), tf.int64, name=names.CLASS_INDEX)

    def given(values: tf.Tensor) -> tf.Tensor:
        return checked_images(values, shape)

    @tf.function(input_signature=[files], autograph=False)
    def decoded(contents: tf.Tensor) -> tf.Tensor:
        low, high = served.pixels
        shares = pictures(contents, served.shape, served.most_pixels)
        return low + (high - low) * shares

    made = {
        names.PREDICT: _traced(served.model, lambda images: predict(served, given(images)), images),
        names.EXPLAIN: _traced(
            served.model, lambda images, class_index: explain(served, given(images), class_index), images, classes
        ),
        names.PREDICT_BYTES: _traced(served.model, lambda image_bytes: predict(served, decoded(image_bytes)), files),
        names.EXPLAIN_BYTES: _traced(
            served.model,
            lambda image_bytes, class_index: explain(served, decoded(image_bytes), class_index),
            files,
            classes,
        ),
    }
    for name, concepts in served.levels.items():
        made[name] = _traced(concepts.network, lambda images, of=concepts: effects(of, given(images)), images)
    return made


def predict(served: Served, images: tf.Tensor) -> Outputs:
    """What `serving_default` gives for images in the model's input space, (N, height, width, channels)."""
    return _answers(served, served.graph.run(images)[served.graph.logits])


def explain(served: Served, images: tf.Tensor, classes: tf.Tensor) -> Outputs:
    """What `explain` gives.

    The forward pass of the explainer also gives the answers, where it makes one of the whole model.

    Args:
        served: What is exported.
        images: In the model's input space, (N, height, width, channels).
        classes: int64 (N,): the class to explain, -1 for the predicted one.
    """
    count = tf.shape(images)[0]
    binary = served.head == "binary"
    lowest, highest = (1, 1) if binary else (0, served.graph.num_classes - 1)
    classes = checked_classes(classes, count, lowest, highest, names.NEGATIVE if binary else "")
    images = _within_bounds(served, images)
    forward = RememberedForward(served.graph, images)
    # The head of one logit is the one class of an explainer, whose map speaks for a large logit.
    units = tf.zeros_like(classes) if binary else classes
    (saliency,) = _with_graph(served.explainer, forward).maps((images,), units)
    answers = _answers(served, forward.remembered())
    explained = tf.ones_like(classes) if binary else tf.where(classes < 0, answers[names.CLASS_INDEX], classes)
    answers[names.CLASS_INDEX] = explained
    answers[names.LABEL] = tf.gather(tf.constant(list(served.labels)), explained)
    return {**answers, names.MAP: tf.cast(saliency, tf.float32)}


def effects(concepts: Concepts, images: tf.Tensor) -> Outputs:
    """What `effects` gives for images in the model's input space, (N, height, width, channels)."""
    effect, observed, probabilities = zero_out(concepts, images)
    return {names.CONCEPT_EFFECTS: effect, names.OBSERVED: observed, names.PROBABILITIES: probabilities}


class RememberedForward:
    """The operations of a model; what they make of one batch is kept when it is first computed.

    An explainer runs the model on its way to a map. Running it once more for the answers would make a request a third
    more expensive, and TensorFlow does not see that the two are the same, because the weights are read twice.

    Args:
        graph: The operations.
        inputs: The batch.
    """

    def __init__(self, graph: OperationGraph, inputs: tf.Tensor) -> None:
        self._graph, self._inputs = graph, inputs
        self._logits: tf.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def run(self, inputs: Any, training: bool = False, **options: Any) -> Activations:
        """As :meth:`tfcausal.graph.OperationGraph.run`."""
        activations = self._graph.run(inputs, training, **options)
        tensors = [inputs] if tf.is_tensor(inputs) else list(inputs)
        same = len(tensors) == 1 and tensors[0] is self._inputs and not training and not options.get("replace")
        logits = activations.get(self._graph.logits)
        # A tensor from within a loop cannot be used outside of it.
        if same and logits is not None and logits.graph is self._inputs.graph:
            self._logits = logits
        return activations

    def remembered(self) -> tf.Tensor:
        """The logits (N, classes) of the batch."""
        if self._logits is None:
            self._logits = self._graph.run(self._inputs)[self._graph.logits]
        return self._logits


def _with_graph(explainer: Explainer, graph: Any) -> Explainer:
    explainer.graph = graph
    return explainer


def _traced(model: keras.Model, function: Callable[..., Outputs], *signature: tf.TensorSpec) -> Any:
    def losses_kept(*arguments: tf.Tensor) -> Outputs:
        with keras_api.losses_kept(model):
            return function(*arguments)

    return tf.function(losses_kept, autograph=False).get_concrete_function(*signature)


def _answers(served: Served, logits: tf.Tensor) -> Outputs:
    graph, wide = served.graph, tf.cast(logits, tf.float32)
    if graph.output != graph.logits:
        probabilities = tf.cast(graph.head(logits), tf.float32)
    else:
        probabilities = tf.nn.softmax(wide) if served.head == "multi_class" else tf.sigmoid(wide)
    if served.head == "binary":
        predicted = tf.cast(wide[:, 0] > 0, tf.int64)
    else:
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {
        names.PROBABILITIES: probabilities,
        names.LOGITS: wide,
        names.CLASS_INDEX: predicted,
        names.LABEL: tf.gather(tf.constant(list(served.labels)), predicted),
    }


def _within_bounds(served: Served, images: tf.Tensor) -> tf.Tensor:
    """The z-box rule of LRP holds for images within its bounds only."""
    explainer = served.explainer
    if not isinstance(explainer, LRP) or not any(isinstance(rule, ZBox) for rule in explainer.layers.values()):
        return images
    low, high = sorted(served.pixels)
    slack = _SLACK * (high - low)
    lowest, highest = tf.reduce_min(images), tf.reduce_max(images)
    inside = tf.logical_and(lowest >= low - slack, highest <= high + slack)
    expected = f"values in [{low:g}, {high:g}], the bounds of the z-box rule"
    with tf.control_dependencies([require(inside, message("images", expected, "values in [{}, {}]"), lowest, highest)]):
        return tf.identity(images)
