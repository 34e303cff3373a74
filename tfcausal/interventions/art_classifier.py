"""A Keras classifier behind the interface of the Adversarial Robustness Toolbox (ART), compiled.

ART's `TensorFlowV2Classifier` runs a model operation by operation whenever it needs a gradient or a loss, and predicts
everything in one batch whatever the batch size. The classifier here answers the same questions by compiled functions of
the logits, so that ART's attacks work on it as they are.

Needs the extra `adversarial`: `pip install "tfcausal[adversarial]"`. ART is imported where it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.interventions.attack_inputs import check_clip_values
from tfcausal.interventions.logit_functions import LogitFunctions
from tfcausal.objectives.heads import Head


def art_module(name: str) -> Any:
    """A module of ART.

    Args:
        name: Its full name, such as `art.attacks.evasion`.

    Raises:
        ImportError: ART is not installed; the message names the extra.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PyTorch not found")
            return import_module(name)
    except ImportError as error:
        remedy = 'pip install "tfcausal[adversarial]"'
        raise ImportError(f"adversarial-robustness-toolbox cannot be imported ({error}): {remedy}") from error


def art_classifier(
    model: keras.Model,
    clip_values: tuple[Any, Any] = (0.0, 1.0),
    output: str | int | None = None,
    head: Head | None = None,
) -> Any:
    """A Keras classifier as ART's attacks take it.

    It is a subclass of ART's `TensorFlowV2Classifier` whose `predict`, `loss_gradient`, `class_gradient` and
    `compute_loss` are compiled, once for every batch size. It differs from ART's in four points:

    - Everything is about the logits: where the model ends in a softmax or sigmoid, that is left out, as attacks on
      rounded probabilities stop at images of which the model is sure.
    - The model is always run at inference, whatever `training_mode` says, and it is not changed. There is no `fit`.
    - The loss is the cross-entropy of every image, not divided by the size of the batch, so that the gradient of an
      image does not depend on the batch it is in. Below 0.001 it is computed from differences of logits: the gradient
      of TensorFlow's own turns away where a probability rounds to 1. Several sigmoids have the mean of their binary
      cross-entropies, and in the rows of their labels all that is greater than 0 counts as 1, the rest, NaN included,
      as 0. So ART's `FastGradientMethod`, which divides these rows by their sum, attacks the labels that were given.
    - A head of one unit with the logit z has two classes with the logits -z/2 and z/2: their softmax is
      (1 - sigmoid(z), sigmoid(z)), and both have a gradient.

    Args:
        model: A Keras classifier of one floating-point input.
        clip_values: The lowest and highest value of an input; numbers, or arrays as far as the attack takes them.
        output: Which output is attacked, by name or position; may be None where there is only one.
        head: `multi_class`, `binary` or `multi_label`; None sees it from the model. Several units without a softmax or
            sigmoid count as `multi_class`.

    Returns:
        The classifier, an instance of `art.estimators.classification.TensorFlowV2Classifier`.

    Raises:
        ImportError: ART is not installed.
        InvalidArgument: `head` does not fit the model; `clip_values` is no pair, not finite, or has a low value that
            is not below the high one; or as :class:`~tfcausal.graph.OperationGraph` raises.
        UnsupportedOperation: The model has several inputs or takes integers; when a gradient is asked for: no gradient
            reaches the input.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")])
        >>> classifier = art_classifier(model)
        >>> classifier.predict(np.array([[0.5, 0.25]])).tolist()
        [[-0.375, 0.375]]
        >>> classifier.class_gradient(np.array([[0.5, 0.25]]), label=1).tolist()
        [[[0.5, 0.5]]]
    """
    return compiled_classifier(LogitFunctions(model, output, head), check_clip_values(clip_values))


def compiled_classifier(functions: LogitFunctions, clip_values: tuple[np.ndarray, np.ndarray]) -> Any:
    """ART's classifier over compiled functions; see :func:`art_classifier`."""
    return _classifier_class()(functions, clip_values)


@cache
def _classifier_class() -> Any:
    base: Any = art_module("art.estimators.classification.tensorflow").TensorFlowV2Classifier
    one_hot = art_module("art.utils").check_and_transform_label_format

    class CompiledClassifier(base):
        """ART's classifier of TensorFlow models, answering by compiled functions of the logits."""

        def __init__(self, functions: LogitFunctions, clip_values: tuple[np.ndarray, np.ndarray]) -> None:
            multi_label = functions.head == "multi_label"
            loss = keras.losses.BinaryCrossentropy if multi_label else keras.losses.CategoricalCrossentropy
            super().__init__(
                model=functions.model,
                nb_classes=functions.classes,
                input_shape=functions.graph.input_shape[1:],
                loss_object=loss(from_logits=True, reduction="sum"),
                clip_values=clip_values,
                preprocessing=None,
            )
            self.functions = functions

        def _check_params(self) -> None:
            super()._check_params()
            if self.preprocessing_operations or self.postprocessing_defences:
                raise UnsupportedOperation("A compiled classifier has no defences. Make them layers of the model.")

        def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **_: Any) -> np.ndarray:
            """The logits (N, classes) of inputs (N, ...), computed in batches."""
            result = np.empty((len(x), self.nb_classes), np.float32)
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                result[part] = self.functions.logits(np.asarray(x[part], np.float32))
            return result

        def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **_: Any) -> Any:
            """Gradient of every image's own loss: an array for an array, a tensor for a tensor."""
            gradient = self.functions.loss_gradient(tf.cast(x, tf.float32), tf.cast(y, tf.float32))
            return gradient if tf.is_tensor(x) else gradient.numpy()

        def class_gradient(
            self, x: Any, label: int | list[int] | np.ndarray | None = None, training_mode: bool = False, **_: Any
        ) -> np.ndarray:
            """Gradients of the logits of all classes (N, classes, ...), or of one class for every image (N, 1, ...)."""
            inputs = tf.cast(x, tf.float32)
            if label is None:
                return self.functions.class_gradients(inputs).numpy()
            labels = np.asarray(label)
            expected = f"an integer or {len(inputs)} of them, in [0, {self.nb_classes - 1}]"
            if labels.dtype.kind not in "iu" or labels.shape not in ((), (len(inputs),)):
                raise InvalidArgument(message("label", expected, repr(label)))
            if labels.size and not 0 <= labels.min() <= labels.max() < self.nb_classes:
                raise InvalidArgument(message("label", expected, repr(label)))
            classes = np.broadcast_to(labels, (len(inputs),)).astype(np.int64)
            return self.functions.class_gradient(inputs, classes).numpy()

        def compute_loss(
            self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False, **_: Any
        ) -> np.ndarray:
            """The loss of every image (N,), or with `reduction` `mean` or `sum` of them all."""
            reductions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
                "none": np.asarray,
                "mean": np.mean,
                "sum": np.sum,
            }
            if reduction not in reductions:
                raise InvalidArgument(message("reduction", f"one of {', '.join(reductions)}", repr(reduction)))
            rows = tf.cast(one_hot(np.asarray(y), self.nb_classes), tf.float32)
            return reductions[reduction](self.functions.losses(tf.cast(x, tf.float32), rows).numpy())

    return CompiledClassifier
