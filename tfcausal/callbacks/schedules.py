"""Weights and mask parameters that change from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.checks import require_epochs, require_number

Schedule = Callable[[int], float]
"""Takes the number of an epoch, counted from 0 as `fit` does, and gives the value in that epoch."""


def linear_ramp(first: float, last: float, start: int, end: int) -> Schedule:
    """A straight line between two epochs, constant before and after.

    Args:
        first: Value up to and including epoch `start`.
        last: Value from epoch `end` on.
        start: Epoch, 0 or more.
        end: Epoch, greater than `start`.

    Returns:
        The schedule.

    Raises:
        InvalidArgument: A value is not finite, or the epochs are not in order.

    Example:
        >>> [linear_ramp(0.0, 1.0, start=1, end=5)(epoch) for epoch in range(7)]
        [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    first, last = _finite("first", first), _finite("last", last)
    start, end = _epoch("start", start), _epoch("end", end)
    if end <= start:
        raise InvalidArgument(message("end", f"an epoch after start={start}", end, "For a sudden change use `steps`."))

    def value(epoch: int) -> float:
        if epoch >= end:
            return last
        return first + (last - first) * max(0, epoch - start) / (end - start)

    return value


def warm_up(value: float, epochs: int) -> Schedule:
    """Zero for a number of epochs, the value from then on.

    Args:
        value: The value after the warm-up.
        epochs: Number of epochs with 0.

    Returns:
        The schedule.

    Raises:
        InvalidArgument: The value is not finite, or the number of epochs is not an integer of at least 0.

    Example:
        >>> [warm_up(0.5, epochs=2)(epoch) for epoch in range(4)]
        [0.0, 0.0, 0.5, 0.5]
    """
    value, epochs = _finite("value", value), _epoch("epochs", epochs)
    return lambda epoch: value if epoch >= epochs else 0.0


def steps(values: Mapping[int, float]) -> Schedule:
    """Constant pieces.

    Args:
        values: The value from an epoch on, by the number of that epoch; one of them for epoch 0.

    Returns:
        The schedule.

    Raises:
        InvalidArgument: No value for epoch 0, a value that is not finite, or a key that is no epoch.

    Example:
        >>> [steps({0: 10, 2: 50})(epoch) for epoch in range(4)]
        [10.0, 10.0, 50.0, 50.0]
    """
    known = sorted((_epoch("values", epoch), _finite("values", value)) for epoch, value in values.items())
    if not known or known[0][0] != 0:
        received = f"epochs from {known[0][0]} on" if known else "an empty dictionary"
        raise InvalidArgument(message("values", "a value for epoch 0 and for later epochs", received))
    return lambda epoch: next(value for begin, value in reversed(known) if epoch >= begin)


class ParameterSchedule(keras.callbacks.Callback):
    """Sets parameters of a model at the beginning of every epoch, without tracing its step anew.

    What can be scheduled stands in `model.parameters`: the weights of the terms and the parameters of the mask. The
    values depend on the number of the epoch alone, so a training that goes on with `initial_epoch` has the same ones.
    They stand in the logs under their names, for the history, CSVLogger and TensorBoard; a callback that reads them
    comes later in the list.

    Args:
        **schedules: A schedule by the name of the parameter: :func:`linear_ramp`, :func:`warm_up`, :func:`steps` or a
            function of your own, from the number of an epoch (counted from 0) to a number.

    Raises:
        InvalidArgument: No schedule, or something that cannot be called; when training begins: the model has no such
            parameter, or a schedule has a value that the parameter cannot take.

    Example:
        >>> import numpy as np
        >>> from tfcausal import PPIModel, all_convolutional
        >>> model = PPIModel(all_convolutional((8, 8, 3), num_classes=2, filters=(4,)))
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> images, labels = np.ones((4, 8, 8, 3), "float32"), np.array([0, 1, 0, 1])
        >>> schedule = ParameterSchedule(contrast_weight=linear_ramp(0.0, 1.0, start=0, end=2))
        >>> history = model.fit(images, labels, epochs=3, callbacks=[schedule], verbose=0)
        >>> history.history["contrast_weight"]
        [0.0, 0.5, 1.0]
    """

    def __init__(self, **schedules: Schedule) -> None:
        super().__init__()
        given: dict[str, Any] = dict(schedules)
        if not given:
            remedy = "For instance contrast_weight=linear_ramp(0.0, 1.0, start=2, end=6)."
            raise InvalidArgument(message("schedules", "at least one schedule by its parameter", "none", remedy))
        for name, schedule in given.items():
            if not callable(schedule):
                remedy = f"Use linear_ramp, warm_up, steps, or steps({{0: {schedule!r}}}) for a constant."
                raise InvalidArgument(message(name, "a function from epoch to number", repr(schedule), remedy))
        self._schedules = schedules

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Check every value of the training that is to come."""
        if not callable(getattr(self.model, "set_parameter", None)):
            expected = "a model with parameters: PPIModel, CFCNModel, GAINModel or RRRModel"
            received = f"{type(self.model).__name__} `{self.model.name}`"
            remedy = "A plain Keras model has none; its learning rate follows keras.callbacks.LearningRateScheduler."
            raise InvalidArgument(message("model", expected, received, remedy))
        parameters = self.model.parameters
        before = {name: float(parameters[name].variable.numpy()) for name in self._schedules if name in parameters}
        try:
            for name in self._schedules:
                values = {self._value(name, epoch) for epoch in range(int(self.params["epochs"]))}
                for value in sorted(values):
                    self.model.set_parameter(name, value)
        finally:
            for name, value in before.items():
                self.model.set_parameter(name, value)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the values of the epoch."""
        for name in self._schedules:
            self.model.set_parameter(name, self._value(name, epoch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the values of the epoch into the logs."""
        if logs is not None:
            logs.update({name: self._value(name, epoch) for name in self._schedules})

    def _value(self, name: str, epoch: int) -> float:
        value = self._schedules[name](epoch)
        require_number(f"{name} in epoch {epoch}", value, "a finite number from its schedule", math.isfinite)
        return float(value)


def _finite(name: str, value: float) -> float:
    require_number(name, value, "finite numbers", math.isfinite)
    return float(value)


def _epoch(name: str, value: int) -> int:
    require_epochs(name, value)
    return int(value)
