"""What every explainer shares: checked inputs, class choice, compiled batches, reducers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import Activations, OperationGraph

Images = Any
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

    The map of a call is signed, not normalised, float32, and has the shape of the images; methods that only tell places
    apart (class activation maps, occlusion) give one channel. The batch size never changes a map, and the model is not
    modified.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Attributes:
        name: Name of the method in configurations.
        graph: The model's operations.
        fallbacks: Paths of the operations for which the plain gradient stands in, because the user asked for it.

    Raises:
        InvalidArgument: `model` is not a Keras model, `output` names no output or is None where there are several, or
            `batch_size` is not a positive integer.
        UnsupportedOperation: The model has no graph of operations, or takes integers that are not images.
    """

    name: ClassVar[str]
    fallbacks: tuple[str, ...] = ()

    def __init__(self, model: keras.Model, output: str | int | None = None, batch_size: int | None = None) -> None:
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise InvalidArgument(message("batch_size", "a positive integer or None", repr(batch_size)))
        self.graph = OperationGraph(model, output, keep=self.keeps)
        _refuse_indices(self.graph, model.name)
        self._model = model
        layers = [operation.layer for operation in self.graph.operations]
        self._channels_first = any(getattr(layer, "data_format", None) == "channels_first" for layer in layers)
        fitting = _BATCH_BYTES // (2 * max(1, self.graph.activation_bytes()))
        self.batch_size = batch_size or int(min(_LARGEST_BATCH, max(1, fitting)))
        self._maps: Callable[..., Any] | None = None
        self._outputs: Callable[..., Any] | None = None

    @abstractmethod
    def maps(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Maps of one batch as TensorFlow operations, one for each input; :meth:`resolve` resolves `classes` (N,)."""

    def keeps(self, layer: Any) -> bool:
        """Whether a layer is explained as a whole; others are replaced by what they are made of."""
        return keras_api.is_keras_layer(layer)

    def __call__(self, images: Images, targets: object = None, reducer: Reducer | None = None) -> Any:
        """Explain images.

        Args:
            images: Batch in the model's input space, (N, height, width, channels), finite. For a model with several
                inputs a list in their order, or a dictionary by their names.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class. A head of a single
                logit has the one class 0, whose map speaks for a large logit.
            reducer: How to reduce the channels: `sum`, `mean`, `max`, `abs_max`, or None to keep them.

        Returns:
            Maps, float32, in the shape of `images`; with a reducer (N, height, width, 1). For several inputs a list or
            dictionary of maps, as `images` is.

        Raises:
            InvalidArgument: Images of another shape, not numeric or not finite; targets of another length or outside
                the classes; an unknown reducer.
        """
        check_reducer(reducer)
        if reducer is not None and self._channels_first:
            received = f"{reducer!r} for a model with the channels first"
            raise InvalidArgument(message("reducer", "None", received, "Reduce the maps along their axis 1."))
        if self._maps is None:
            self._maps = self.compiled(self._float_maps)
        maps = self.in_batches(self._maps, images, targets)
        return self.as_given(images, [reduced(array, reducer) for array in maps])

    explain = __call__

    def stream(
        self,
        dataset: tf.data.Dataset,
        targets: Literal["labels"] | int | None = None,
        reducer: Reducer | None = None,
        progress: bool | Callable[[int, int | None], None] = False,
    ) -> Iterator[Any]:
        """Explain the images of a dataset in bounded memory; see :func:`tfcausal.saliency.streaming.stream`."""
        from tfcausal.saliency.streaming import stream

        return stream(self, dataset, targets, reducer, progress)

    def as_given(self, images: Images, maps: Sequence[np.ndarray]) -> Any:
        """Maps in the structure in which the images were given: an array, a list or a dictionary."""
        if isinstance(images, Mapping):
            return dict(zip(self.graph.input_names[: len(maps)], maps, strict=True))
        return maps[0] if len(self.graph.inputs) == 1 or len(maps) == 1 else list(maps)

    def outputs(self, images: Images) -> np.ndarray:
        """What the model itself answers, in the batches in which it is explained.

        Args:
            images: As for calling the explainer.

        Returns:
            The model's output, (N, classes).

        Raises:
            InvalidArgument: Images of another shape, not numeric or not finite.
        """
        if self._outputs is None:
            self._outputs = self.compiled(self._batch_outputs)
        (outputs,) = self.in_batches(self._outputs, images, None)
        return outputs

    def _batch_outputs(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor]:
        return (self.graph.head(self.graph.run(inputs)[self.graph.logits]),)

    def _float_maps(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.cast(maps, tf.float32) for maps in self.maps(inputs, classes))

    def resolve(self, activations: Activations, classes: tf.Tensor) -> tf.Tensor:
        """Put the predicted class where none was asked for."""
        predicted = tf.argmax(activations[self.graph.logits], axis=-1, output_type=classes.dtype)
        return tf.where(classes == _PREDICTED, predicted, classes)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function of (inputs, classes) once for every batch size."""
        signature = [
            tuple(tf.TensorSpec((None, *shape[1:]), tf.float32) for shape in self.graph.input_shapes),
            tf.TensorSpec((None,), tf.int64),
        ]

        def traced(inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> Any:
            with keras_api.losses_kept(self._model):
                return function(inputs, classes)

        return tf.function(traced, input_signature=signature, autograph=False)

    def _run(self, function: Callable[..., Any], inputs: list[np.ndarray], classes: np.ndarray) -> Any:
        try:
            return function(tuple(inputs), classes)
        except tf.errors.InvalidArgumentError as error:
            received = "shape " + ", ".join(str(array.shape) for array in inputs)
            if all(None not in shape[1:] for shape in self.graph.input_shapes):
                reason = error.message.partition("\n")[0]
                remedy = f"Does a constant in it fix the batch size? TensorFlow says: {reason}"
                raise InvalidArgument(message("images", "a batch that the model can run", received, remedy)) from None
            expected = "images of a size that every layer of the model can take"
            raise InvalidArgument(message("images", expected, received, "Give larger images.")) from None

    def in_batches(self, function: Callable[..., Any], images: Images, targets: object) -> tuple[np.ndarray, ...]:
        """Check the arguments, then call a compiled function batch by batch and join the results."""
        inputs = check_inputs(images, self.graph)
        count = len(inputs[0])
        classes = check_targets(targets, count, self.graph.num_classes)
        results: list[np.ndarray] = []
        for start in range(0, count, self.batch_size):
            part = slice(start, start + self.batch_size)
            outputs = [value.numpy() for value in self._run(function, [array[part] for array in inputs], classes[part])]
            if any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in outputs):
                expected = "values that the model can compute with in its precision"
                received = f"values up to {max(np.abs(array[part]).max() for array in inputs):.3g}, which overflow"
                raise InvalidArgument(message("images", expected, received))
            if not results:
                results = [np.empty((count, *value.shape[1:]), value.dtype) for value in outputs]
            for result, value in zip(results, outputs, strict=True):
                result[part] = value
        return tuple(results)


def _refuse_indices(graph: OperationGraph, name: str) -> None:
    """Refuse inputs of integers that are not images: token numbers have no neighbourhood that a map could show."""
    for input_name, shape, dtype in zip(graph.input_names, graph.input_shapes, graph.input_dtypes, strict=True):
        if not tf.as_dtype(dtype).is_floating and len(shape) < 3:
            raise UnsupportedOperation(
                f"Model `{name}` takes integers of shape {shape} as input `{input_name}`, which is no image. "
                "Explain a model of images or of other floating-point values."
            )


def check_reducer(reducer: object) -> None:
    """Raise `InvalidArgument` unless a reducer is known or None."""
    if reducer is not None and (not isinstance(reducer, str) or reducer not in _REDUCERS):
        raise InvalidArgument(message("reducer", f"None or one of {', '.join(_REDUCERS)}", repr(reducer)))


def reduced(maps: np.ndarray, reducer: str | None) -> np.ndarray:
    """Maps (N, ..., channels) with their channels reduced to one, or as they are where `reducer` is None."""
    return maps if reducer is None else _REDUCERS[reducer](maps)


def check_inputs(images: Images, graph: OperationGraph) -> tuple[np.ndarray, ...]:
    """One float32 array for every input of a model.

    Args:
        images: An array; a list or tuple of arrays, or a dictionary of them, for a model with several inputs.
        graph: The model's operations.

    Raises:
        InvalidArgument: Another number of inputs, unknown names, batches of different lengths, or as for
            :func:`check_images`.
    """
    names, shapes = graph.input_names, graph.input_shapes
    if isinstance(images, Mapping):
        if set(images) != set(names):
            expected = f"a dictionary with the keys {', '.join(names)}"
            raise InvalidArgument(message("images", expected, f"the keys {', '.join(map(str, images))}"))
        arrays = [images[name] for name in names]
    elif len(names) == 1:
        return (_whole(check_images(images, shapes[0]), graph.input_dtypes[0], "images"),)
    elif isinstance(images, (list, tuple)) and len(images) == len(names):
        arrays = list(images)
    else:
        expected = f"a list of {len(names)} arrays ({', '.join(names)}) or a dictionary of them"
        received = f"a list of {len(images)}" if isinstance(images, (list, tuple)) else type(images).__name__
        raise InvalidArgument(message("images", expected, received))
    checked = tuple(
        _whole(check_images(array, shape, f"images[{name!r}]"), dtype, f"images[{name!r}]")
        for array, shape, dtype, name in zip(arrays, shapes, graph.input_dtypes, names, strict=True)
    )
    if len({len(array) for array in checked}) > 1:
        lengths = ", ".join(str(len(array)) for array in checked)
        raise InvalidArgument(message("images", "inputs with the same number of samples", f"lengths {lengths}"))
    return checked


def _whole(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Refuse fractions where a model takes integers: Keras would cut them off."""
    if not tf.as_dtype(dtype).is_floating and not (array == np.floor(array)).all():
        raise InvalidArgument(message(name, f"whole numbers, as the model takes {dtype}", "fractions"))
    return array


def check_images(images: object, input_shape: tuple[int | None, ...], name: str = "images") -> np.ndarray:
    """Images as a float32 array, checked against a model's input shape.

    Args:
        images: Array-like of shape (N, ...) with N >= 1.
        input_shape: The model's input shape, None where any size will do.
        name: What to call the images in an error.

    Returns:
        The images as float32.

    Raises:
        InvalidArgument: Not numeric, of another shape, empty, or with NaN or infinity.

    Example:
        >>> check_images([[0.0, 1.0]], (None, 2)).shape
        (1, 2)
    """
    expected = f"an array of shape {_spelled(input_shape)}"
    array = _array(name, images, expected)
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(message(name, f"{expected} of numbers", f"dtype {array.dtype}"))
    matches = array.ndim == len(input_shape) and all(
        wanted in (None, size) for wanted, size in zip(input_shape[1:], array.shape[1:], strict=True)
    )
    if not matches:
        remedy = (
            "Add the batch axis: images[None]." if array.ndim == len(input_shape) - 1 else "Resize the images first."
        )
        raise InvalidArgument(message(name, expected, f"shape {array.shape}", remedy))
    if array.size == 0 and len(array) > 0:
        raise InvalidArgument(message(name, "images with pixels", f"shape {array.shape}"))
    if len(array) == 0:
        raise InvalidArgument(message(name, "at least one image", "an empty batch"))
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = next((index for index, image in enumerate(array) if not np.isfinite(image).all()), None)
    if bad is not None:
        raise InvalidArgument(
            message(name, "finite values of float32", f"NaN or infinity in image {bad}", "Clean the data.")
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
        remedy = (
            "A head of one logit has the one class 0; its map speaks for a large logit." if num_classes == 1 else ""
        )
        received = f"values in [{array.min()}, {array.max()}]"
        raise InvalidArgument(message("targets", f"class indices in [0, {num_classes - 1}]", received, remedy))
    return array.astype(np.int64)


def _array(name: str, values: object, expected: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InvalidArgument(message(name, expected, "rows of different lengths")) from None


def _spelled(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join(["N", *("any" if size is None else str(size) for size in shape[1:])]) + ")"
