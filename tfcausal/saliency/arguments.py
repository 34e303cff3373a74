"""Arguments that several explainers take: counts and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.functional import Shape
from tfcausal.graph import OperationGraph


def check_integer(name: str, value: object, least: int = 1) -> int:
    """An integer of at least `least`.

    Args:
        name: What to call it in an error.
        value: What the user gave.
        least: The smallest that will do.

    Raises:
        InvalidArgument: Another type or a smaller number.

    Example:
        >>> check_integer("steps", 32)
        32
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidArgument(message(name, f"an integer of at least {least}", repr(value)))
    return int(value)


def check_baselines(baseline: object, graph: OperationGraph) -> tuple[np.ndarray, ...]:
    """One baseline for every input of a model.

    Args:
        baseline: A number, one value per channel, or an array in the shape of one image. A model with several inputs
            takes one number for all, or a list or dictionary with one of these for every input.
        graph: The model's operations.

    Returns:
        Arrays of float32 that broadcast to one sample of every input.

    Raises:
        InvalidArgument: Another number of baselines, unknown names, another shape, or values that are not finite.
    """
    names, shapes = graph.input_names, graph.input_shapes
    if len(names) == 1 and not isinstance(baseline, Mapping):
        return (check_baseline(baseline, shapes[0]),)
    values: list[Any] = []
    if isinstance(baseline, Mapping) and set(baseline) == set(names):
        values = [baseline[name] for name in names]
    elif isinstance(baseline, (list, tuple)) and len(baseline) == len(names):
        values = list(baseline)
    elif np.ndim(np.asarray(baseline, dtype=object)) == 0 and not isinstance(baseline, Mapping):
        values = [baseline] * len(names)
    else:
        expected = f"a number, or a list or dictionary with one baseline for every input ({', '.join(names)})"
        raise InvalidArgument(message("baseline", expected, type(baseline).__name__))
    parts = zip(values, shapes, names, strict=True)
    return tuple(check_baseline(value, shape, f"baseline[{name!r}]") for value, shape, name in parts)


def check_baseline(baseline: object, input_shape: Shape, name: str = "baseline", whole: bool = True) -> np.ndarray:
    """What stands for a missing value of one input: a number, one value per channel, or a whole image.

    Args:
        baseline: What the user gave.
        input_shape: Shape of the model's input, the batch axis first.
        name: What to call it in an error.
        whole: Whether a whole image will do.

    Returns:
        An array of float32 that broadcasts to one sample of the input.

    Raises:
        InvalidArgument: Another shape, not numeric, or not finite.

    Example:
        >>> check_baseline([0.5, 0.25], (None, 8, 8, 2)).tolist()
        [0.5, 0.25]
    """
    sample = input_shape[1:]
    expected = f"a finite number, or finite values of shape ({sample[-1]},)"
    if whole:
        expected += f" or ({', '.join('any' if size is None else str(size) for size in sample)})"
    try:
        array = np.asarray(baseline)
    except ValueError:
        raise InvalidArgument(message(name, expected, "rows of different lengths")) from None
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(message(name, expected, repr(baseline)))
    matches = array.shape in ((), sample[-1:]) or (
        whole
        and array.ndim == len(sample)
        and all(wanted in (None, size) for wanted, size in zip(sample, array.shape, strict=True))
    )
    if not matches:
        raise InvalidArgument(message(name, expected, f"shape {array.shape}"))
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidArgument(message(name, expected, "NaN or infinity"))
    return array
