"""What every explainer shares: checked inputs, class choice, compiled batches, reducers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations, OperationGraph

Reducer = Literal["sum", "mean", "max", "abs_max"]
_REDUCERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda maps: maps.sum(axis=-1, keepdims=True),
    "mean": lambda maps: maps.mean(axis=-1, keepdims=True),
    "max": lambda maps: maps.max(axis=-1, keepdims=True),
    "abs_max": lambda maps: np.abs(maps).max(axis=-1, keepdims=True),
}
_BATCH_BYTES = 1 << 30
_LARGEST_BATCH = 64
_PREDICTED = -1


class Explainer(ABC):
    """A saliency method bound to a model; call it with images.

    The map of a call is signed, not normalised, float32, and has the shape of the images. The batch size never
    changes a map, and the model is not modified.

    Args:
        model: A functional or built Sequential Keras classifier with one input and one output.
        batch_size: Images per forward pass; None chooses by the model's size.

    Attributes:
        name: Name of the method in configurations.
        graph: The model's operations.
    """

    name: ClassVar[str]

    def __init__(self, model: keras.Model, batch_size: int | None = None) -> None:
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise InvalidArgument(message("batch_size", "a positive integer or None", repr(batch_size)))
        self.graph = OperationGraph(model)
        self._model = model
        fitting = _BATCH_BYTES // (2 * max(1, self.graph.activation_bytes()))
        self.batch_size = batch_size or int(min(_LARGEST_BATCH, max(1, fitting)))
        self._maps: Callable[..., Any] | None = None
        self._outputs: Callable[..., Any] | None = None

    @abstractmethod
    def maps(self, images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Maps of one batch, as TensorFlow operations; `classes` (N,) is resolved by :meth:`resolve`."""

    def __call__(self, images: np.ndarray, targets: object = None, reducer: Reducer | None = None) -> np.ndarray:
        """Explain images.

        Args:
            images: Batch in the model's input space, (N, height, width, channels), finite.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class.
            reducer: How to reduce the channels: `sum`, `mean`, `max`, `abs_max`, or None to keep them.

        Returns:
            Maps, float32, in the shape of `images`; with a reducer (N, height, width, 1).

        Raises:
            InvalidArgument: Images of another shape, not numeric or not finite; targets of another length or outside
                the classes; an unknown reducer.
        """
        if reducer is not None and (not isinstance(reducer, str) or reducer not in _REDUCERS):
            raise InvalidArgument(message("reducer", f"None or one of {', '.join(_REDUCERS)}", repr(reducer)))
        if self._maps is None:
            self._maps = self.compiled(self._float_maps)
        (maps,) = self.in_batches(self._maps, images, targets)
        return maps if reducer is None else _REDUCERS[reducer](maps)

    explain = __call__

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """What the model itself answers, in the batches in which it is explained.

        Args:
            images: Batch in the model's input space, (N, height, width, channels), finite.

        Returns:
            The model's output, (N, classes).

        Raises:
            InvalidArgument: Images of another shape, not numeric or not finite.
        """
        if self._outputs is None:
            self._outputs = self.compiled(self._batch_outputs)
        (outputs,) = self.in_batches(self._outputs, images, None)
        return outputs

    def _batch_outputs(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor]:
        return (self.graph.head(self.graph.run(images)[self.graph.logits]),)

    def _float_maps(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.cast(self.maps(images, classes), tf.float32),)

    def resolve(self, activations: Activations, classes: tf.Tensor) -> tf.Tensor:
        """Put the predicted class where none was asked for."""
        predicted = tf.argmax(activations[self.graph.logits], axis=-1, output_type=classes.dtype)
        return tf.where(classes == _PREDICTED, predicted, classes)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function of (images, classes) once for every batch size."""
        signature = [
            tf.TensorSpec((None, *self.graph.input_shape[1:]), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ]

        def traced(images: tf.Tensor, classes: tf.Tensor) -> Any:
            with keras_api.losses_kept(self._model):
                return function(images, classes)

        return tf.function(traced, input_signature=signature, autograph=False)

    def in_batches(self, function: Callable[..., Any], images: np.ndarray, targets: object) -> tuple[np.ndarray, ...]:
        """Check the arguments, then call a compiled function batch by batch and join the results."""
        images = check_images(images, self.graph.input_shape)
        classes = check_targets(targets, len(images), self.graph.num_classes)
        results: list[np.ndarray] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            outputs = [value.numpy() for value in function(images[part], classes[part])]
            if not results:
                results = [np.empty((len(images), *value.shape[1:]), value.dtype) for value in outputs]
            for result, value in zip(results, outputs, strict=True):
                result[part] = value
        return tuple(results)


def check_images(images: object, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Images as a float32 array, checked against a model's input shape.

    Args:
        images: Array-like of shape (N, ...) with N >= 1.
        input_shape: The model's input shape, None where any size will do.

    Returns:
        The images as float32.

    Raises:
        InvalidArgument: Not numeric, of another shape, empty, or with NaN or infinity.

    Example:
        >>> check_images([[0.0, 1.0]], (None, 2)).shape
        (1, 2)
    """
    expected = f"an array of shape {_spelled(input_shape)}"
    array = _array("images", images, expected)
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(message("images", f"{expected} of numbers", f"dtype {array.dtype}"))
    matches = array.ndim == len(input_shape) and all(
        wanted in (None, size) for wanted, size in zip(input_shape[1:], array.shape[1:], strict=True)
    )
    if not matches:
        remedy = (
            "Add the batch axis: images[None]." if array.ndim == len(input_shape) - 1 else "Resize the images first."
        )
        raise InvalidArgument(message("images", expected, f"shape {array.shape}", remedy))
    if len(array) == 0:
        raise InvalidArgument(message("images", "at least one image", "an empty batch"))
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise InvalidArgument(
            message("images", "finite values of float32", f"NaN or infinity in image {bad[0]}", "Clean the data.")
        )
    return array


def check_targets(targets: object, count: int, num_classes: int) -> np.ndarray:
    """Targets as class indices, int64 (N,); -1 stands for the predicted class.

    Args:
        targets: None, class indices (N,), or one-hot rows (N, classes).
        count: N.
        num_classes: Number of classes.

    Raises:
        InvalidArgument: Another shape, not integers, or outside the classes.

    Example:
        >>> check_targets([[0, 1], [1, 0]], 2, 2).tolist()
        [1, 0]
    """
    if targets is None:
        return np.full(count, _PREDICTED, np.int64)
    expected = f"integer class indices of shape ({count},) or one-hot rows of shape ({count}, {num_classes})"
    array = _array("targets", targets, expected)
    if array.shape == (count, num_classes) and num_classes > 1:
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise InvalidArgument(message("targets", "one-hot rows with a single 1", "rows of other values"))
        return array.argmax(axis=1).astype(np.int64)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InvalidArgument(message("targets", expected, f"shape {array.shape} and dtype {array.dtype}"))
    if array.min() < 0 or array.max() >= num_classes:
        raise InvalidArgument(
            message("targets", f"class indices in [0, {num_classes - 1}]", f"values in [{array.min()}, {array.max()}]")
        )
    return array.astype(np.int64)


def _array(name: str, values: object, expected: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InvalidArgument(message(name, expected, "rows of different lengths")) from None


def _spelled(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join(["N", *("any" if size is None else str(size) for size in shape[1:])]) + ")"
