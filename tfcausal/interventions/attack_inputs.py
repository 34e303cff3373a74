"""Checks of what an attack is given: images within their range, labels as rows, target classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.functional import Shape
from tfcausal.objectives.heads import Head

# What normalising by a mean and a standard deviation can round away.
_ROUNDING = 1e-5


def check_clip_values(clip_values: object, shape: Shape = ()) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of an input as float32: scalars, or arrays of one shape.

    Args:
        clip_values: The two, numbers or arrays.
        shape: Shape of an input, None where any size will do, that arrays are to fit; () where that is not known.

    Raises:
        InvalidArgument: No pair of finite numbers or arrays of them, arrays that do not fit the shape, or a low value
            that is not below the high one.

    Example:
        >>> [bound.tolist() for bound in check_clip_values((0, [1, 2]))]
        [[0.0, 0.0], [1.0, 2.0]]
    """
    expected = "(low, high): two finite numbers, or two arrays with a number for every channel"
    try:
        low, high = np.asarray(clip_values, dtype=object)
        low, high = np.broadcast_arrays(np.asarray(low, np.float32), np.asarray(high, np.float32))
        sizes = tuple(1 if size is None else size for size in shape)
        fits = not shape or np.broadcast_shapes(low.shape, sizes) == sizes
    except (TypeError, ValueError):
        raise InvalidArgument(message("clip_values", expected, repr(clip_values))) from None
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidArgument(message("clip_values", expected, repr(clip_values)))
    if not fits:
        raise InvalidArgument(message("clip_values", f"{expected}, for inputs {shape}", f"arrays of shape {low.shape}"))
    if (low >= high).any():
        raise InvalidArgument(message("clip_values", "low values below the high ones", repr(clip_values)))
    return low, high


def check_attacked_images(images: object, input_shape: Shape, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Images as float32, within their range.

    Args:
        images: (N, ...), N >= 1.
        input_shape: The model's input shape, None where any size will do.
        low: Lowest value; broadcasts to an image.
        high: Highest value.

    Returns:
        The images; values outside the range by no more than rounding are as they are.

    Raises:
        InvalidArgument: Not numeric, of another shape, empty, not finite, or outside the range; the message says which
            image.
    """
    sizes = ", ".join(["N", *("any" if size is None else str(size) for size in input_shape[1:])])
    expected = f"an array of numbers of shape ({sizes})"
    array = _numbers("images", images, expected)
    fits = array.ndim == len(input_shape) and all(
        wanted in (None, size) for wanted, size in zip(input_shape[1:], array.shape[1:], strict=True)
    )
    if not fits or array.size == 0:
        remedy = "Add the batch axis: images[None]." if array.ndim == len(input_shape) - 1 else ""
        raise InvalidArgument(message("images", expected, f"shape {array.shape}", remedy))
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = _first(~np.isfinite(array))
        raise InvalidArgument(message("images", "finite values of float32", f"NaN or infinity in image {bad}"))
    margin = _ROUNDING * (high - low)
    outside = (array < low - margin) | (array > high + margin)
    if outside.any():
        bad = _first(outside)
        received = f"values from {array[bad].min():g} to {array[bad].max():g} in image {bad}"
        bounds = f"{low.tolist()} to {high.tolist()}"
        remedy = "Give the range of the classifier's inputs as clip_values."
        raise InvalidArgument(message("images", f"values within clip_values, {bounds}", received, remedy))
    return array


def label_rows(labels: object, count: int, classes: int, head: Head) -> np.ndarray:
    """Labels as rows of 0 and 1, float32 (N, classes).

    Args:
        labels: Class indices (N,) or one-hot rows (N, classes); for a binary head indices (N, 1) too; for a multi-label
            head rows of 0 and 1, of any sum.
        count: N.
        classes: Number of classes.
        head: What the units of the head stand for.

    Raises:
        InvalidArgument: Another shape, or values outside the classes.

    Example:
        >>> label_rows([2, 0], 2, 3, "multi_class").tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    rows_of = f"rows of 0 and 1 of shape ({count}, {classes})"
    expected = rows_of if head == "multi_label" else f"class indices of shape ({count},), or one-hot {rows_of}"
    array = _numbers("labels", labels, expected)
    if array.shape == (count, classes):
        if not np.isin(array, (0, 1)).all():
            raise InvalidArgument(message("labels", expected, "rows with other values"))
        if head != "multi_label" and not (array.sum(axis=1) == 1).all():
            raise InvalidArgument(message("labels", "one-hot rows with a single 1", "rows with another sum"))
        return array.astype(np.float32)
    if head == "binary" and array.shape == (count, 1):
        array = array[:, 0]
    if head == "multi_label" or array.shape != (count,):
        raise InvalidArgument(message("labels", expected, f"shape {array.shape}"))
    return np.eye(classes, dtype=np.float32)[class_indices("labels", array, count, classes)]


def class_indices(name: str, values: object, count: int, classes: int) -> np.ndarray:
    """Class indices, int64 (N,).

    Args:
        name: What to call them in an error.
        values: Whole numbers.
        count: N.
        classes: Number of classes.

    Raises:
        InvalidArgument: Another shape, fractions, or outside the classes.
    """
    expected = f"class indices of shape ({count},) in [0, {classes - 1}]"
    array = _numbers(name, values, expected)
    if array.shape != (count,):
        raise InvalidArgument(message(name, expected, f"shape {array.shape}"))
    # Labels that come from a data set of floats are whole numbers nevertheless; NaN is not.
    if not (array == np.floor(array)).all() or array.min() < 0 or array.max() >= classes:
        raise InvalidArgument(message(name, expected, f"values from {array.min():g} to {array.max():g}"))
    return array.astype(np.int64)


def _numbers(name: str, values: Any, expected: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidArgument(message(name, expected, "rows of different lengths")) from None
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(message(name, expected, f"dtype {array.dtype}"))
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _first(places: np.ndarray) -> int:
    """The first image of which any place is marked."""
    return int(np.flatnonzero(places.reshape(len(places), -1).any(axis=1))[0])
