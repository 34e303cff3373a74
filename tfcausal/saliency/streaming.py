"""Maps of a `tf.data.Dataset`, batch after batch, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph
from tfcausal.progress import ConsoleProgress
from tfcausal.saliency.base import Explainer, Reducer, check_inputs, check_reducer, check_targets

Targets = Literal["labels"] | int | None
Progress = bool | Callable[[int, int | None], None]


def stream(
    explainer: Explainer,
    dataset: tf.data.Dataset,
    targets: Targets = None,
    reducer: Reducer | None = None,
    progress: Progress = False,
) -> Iterator[Any]:
    """Explain the images of a dataset, one batch at a time; what was yielded is not kept.

    Args:
        explainer: The saliency method, bound to a model.
        dataset: As for training: elements are images, (images, labels) or (images, labels, weights); labels may be a
            dict with the key `label`. Batched or not: images without a batch axis are gathered to batches of the
            explainer's batch size, and batches that are larger are split.
        targets: The class that is explained: None is the predicted one, `labels` the one that the dataset gives (class
            indices or one-hot rows), a class index the same for all images.
        reducer: How to reduce the channels, as for calling the explainer.
        progress: True shows a bar with the time left; a function is called with the number of elements of the dataset
            that are explained, and the number of all, or None where it is unknown.

    Yields:
        The maps of a batch in the order of the dataset, as calling the explainer gives them: float32, in the shape of
        the images, or (n, height, width, 1) with a reducer. There is one batch for every batch of the dataset.

    Raises:
        InvalidArgument: Not a dataset, or one of other elements than the model takes; targets that are not known; at
            once. While it runs: an image of another shape or with NaN, or a label outside the classes; the message
            gives the number of the image in the dataset, from 0.

    Example:
        >>> from tfcausal.saliency.wbp import WBP
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> dataset = tf.data.Dataset.from_tensor_slices([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> [maps.tolist() for maps in stream(WBP(model, batch_size=2), dataset)]
        [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    """
    if not isinstance(dataset, tf.data.Dataset):
        remedy = "For images in memory, call the explainer itself."
        raise InvalidArgument(message("dataset", "a tf.data.Dataset", type(dataset).__name__, remedy))
    if not isinstance(progress, bool) and not callable(progress):
        raise InvalidArgument(message("progress", "True, False or a function", repr(progress)))
    check_reducer(reducer)
    batched = _is_batched(explainer.graph, dataset.element_spec)
    targets = _checked_targets(targets, dataset.element_spec, explainer.graph.num_classes)
    return _stream(explainer, dataset, batched, targets, reducer, progress)


def _stream(
    explainer: Explainer,
    dataset: tf.data.Dataset,
    batched: bool,
    targets: Targets,
    reducer: Reducer | None,
    progress: Progress,
) -> Iterator[Any]:
    first = done = 0
    size = int(dataset.cardinality())
    total = size if size >= 0 else None
    with ExitStack() as stack:
        advance = _reporter(stack, f"explaining ({explainer.name})", total, progress)
        for images, labels, elements in _batches(dataset, batched, explainer, targets):
            count = len(keras.tree.flatten(images)[0])
            classes = np.full(count, targets) if isinstance(targets, int) else labels
            try:
                maps = explainer(images, classes, reducer)
            except InvalidArgument as error:
                raise _located(error, explainer.graph, images, classes, first, count) from None
            first, done = first + count, done + elements
            advance(done, total)
            yield maps


def _reporter(stack: ExitStack, task: str, total: int | None, progress: Progress) -> Callable[[int, int | None], None]:
    if callable(progress):
        return progress
    if not progress:
        return lambda done, total: None
    track = stack.enter_context(stack.enter_context(ConsoleProgress()).task(task, total))
    shown = [0]

    def advance(done: int, total: int | None) -> None:
        track(done - shown[0])
        shown[0] = done

    return advance


def _batches(
    dataset: tf.data.Dataset, batched: bool, explainer: Explainer, targets: Targets
) -> Iterator[tuple[Any, np.ndarray | None, int]]:
    """Batches of images, their labels where these are the targets, and from how many elements they come."""
    with_labels = targets == "labels"
    gathered: list[tuple[Any, Any]] = []
    for index, element in enumerate(_read(dataset)):
        images, labels = _parts(element, with_labels)
        if batched:
            if len(keras.tree.flatten(images)[0]):
                yield images, _as_targets(labels, explainer.graph.num_classes), 1
            continue
        _check_single(images, explainer.graph, index)
        if gathered and _shapes(images) != _shapes(gathered[0][0]):  # the model takes any size
            yield _joined(gathered, with_labels, explainer.graph.num_classes)
            gathered = []
        gathered.append((images, labels))
        if len(gathered) == explainer.batch_size:
            yield _joined(gathered, with_labels, explainer.graph.num_classes)
            gathered = []
    if gathered:
        yield _joined(gathered, with_labels, explainer.graph.num_classes)


def _read(dataset: tf.data.Dataset) -> Iterator[Any]:
    elements, index = dataset.as_numpy_iterator(), 0
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            reason = error.message.partition(" [Op:")[0].strip()
            remedy = "Correct the dataset: reading it fails without tfcausal too."
            raise InvalidArgument(message("dataset", f"a readable element {index}", reason, remedy)) from error
        yield element
        index += 1


def _joined(gathered: list[tuple[Any, Any]], with_labels: bool, num_classes: int) -> tuple[Any, np.ndarray | None, int]:
    images = keras.tree.map_structure(lambda *values: np.stack(values), *(images for images, _ in gathered))
    labels = np.stack([label for _, label in gathered]) if with_labels else None
    return images, _as_targets(labels, num_classes), len(gathered)


def _parts(element: Any, with_labels: bool) -> tuple[Any, Any]:
    """Images and, where they are wanted, labels of an element (x), (x, y) or (x, y, weights)."""
    if not isinstance(element, tuple):
        return element, None
    labels = element[1] if with_labels else None
    return element[0], labels["label"] if isinstance(labels, Mapping) else labels


def _shapes(images: Any) -> list[tuple[int, ...]]:
    return [value.shape for value in keras.tree.flatten(images)]


def _ordered(images: Any, graph: OperationGraph) -> list[Any]:
    """What stands for every input of the model, in their order."""
    if isinstance(images, Mapping) and set(images) == set(graph.input_names):
        return [images[name] for name in graph.input_names]
    return keras.tree.flatten(images)


def _as_targets(labels: np.ndarray | None, num_classes: int) -> np.ndarray | None:
    """Labels in a column (N, 1), as Keras also takes them, are class indices (N,)."""
    column = labels is not None and labels.ndim == 2 and labels.shape[1] == 1 and num_classes > 1
    return labels[:, 0] if labels is not None and column else labels


def _is_batched(graph: OperationGraph, spec: Any) -> bool:
    images, _ = _parts(spec, False)
    leaves = _ordered(images, graph)
    ranks = [spec.shape.rank if isinstance(spec, tf.TensorSpec) else None for spec in leaves]
    wanted = [len(shape) for shape in graph.input_shapes]
    for batched, difference in ((True, 0), (False, 1)):
        if ranks == [rank - difference for rank in wanted]:
            return batched
    shapes = ", ".join(str(shape) for shape in graph.input_shapes)
    expected = f"elements that hold images of shape {shapes}, with or without the batch axis"
    received = ", ".join(str(getattr(spec, "shape", spec)) for spec in leaves)
    remedy = "Images come first: (images, labels)." if None not in ranks else "Set their shape with `set_shape`."
    raise InvalidArgument(message("dataset", expected, received, remedy))


def _checked_targets(targets: Any, spec: Any, num_classes: int) -> Targets:
    if targets is None:
        return None
    expected = "None, 'labels' or a class index"
    if isinstance(targets, str):
        if targets != "labels":
            raise InvalidArgument(message("targets", expected, repr(targets)))
        labels = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
        if labels is None or (isinstance(labels, Mapping) and "label" not in labels):
            received = "elements without labels" if labels is None else f"labels with the keys {', '.join(labels)}"
            expected = "a dataset of (images, labels), where labels may be a dict with the key `label`"
            raise InvalidArgument(message("dataset", expected, received, "It is needed for targets='labels'."))
        return "labels"
    if isinstance(targets, bool) or not isinstance(targets, (int, np.integer)):
        remedy = "Targets of each image belong into the dataset: (images, labels)."
        raise InvalidArgument(message("targets", expected, type(targets).__name__, remedy))
    return int(check_targets([targets], 1, num_classes)[0])


def _check_single(images: Any, graph: OperationGraph, index: int) -> None:
    """Images without a batch axis are joined, for which they need one shape."""
    for value, shape, name in zip(_ordered(images, graph), graph.input_shapes, graph.input_names, strict=True):
        if any(size not in (None, received) for size, received in zip(shape[1:], value.shape, strict=True)):
            expected = f"`{name}` of shape {shape[1:]}"
            raise InvalidArgument(message(f"image {index} of the dataset", expected, f"shape {value.shape}"))


def _located(
    error: InvalidArgument, graph: OperationGraph, images: Any, classes: Any, first: int, count: int
) -> InvalidArgument:
    """The same error with the place of the image in the dataset."""
    for position in range(count):
        part = slice(position, position + 1)
        name = f"image {first + position} of the dataset"
        try:
            check_inputs(keras.tree.map_structure(lambda value, part=part: value[part], images), graph)
        except InvalidArgument as single:
            return InvalidArgument(f"In {name}: {single}".replace(" in image 0.", "."))
        try:
            check_targets(None if classes is None else classes[part], 1, graph.num_classes)
        except InvalidArgument as single:
            return InvalidArgument(f"In {name}: {single}")
    return InvalidArgument(f"In images {first} to {first + count - 1} of the dataset: {error}")
