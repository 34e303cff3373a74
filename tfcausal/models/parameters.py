"""Numbers of an objective that may change between epochs without the training step being traced anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.checks import require_number, require_weight


class Parameter(NamedTuple):
    """A number of an objective that may change between epochs."""

    variable: tf.Variable
    expected: str
    valid: Callable[[float], bool]


class WithParameters(keras.Model):
    """A model whose objective has parameters, and a ramp that the weights of its terms share.

    Attributes:
        parameters: Numbers of the objective that may change between epochs, by name; see :meth:`set_parameter`.
        left_out: Names of the terms whose weight is 0.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parameters: dict[str, Parameter] = {}
        self.left_out: set[str] = set()
        self._ramp = tf.Variable(1.0, trainable=False, name="ramp")

    def add_parameter(self, name: str, value: float, expected: str, valid: Callable[[float], bool]) -> None:
        """Make a number of the objective one that may change between epochs without the step being traced anew.

        Args:
            name: Its name.
            value: Its first value.
            expected: Which values are valid, in words.
            valid: Whether a value is valid.
        """
        require_number(name, value, expected, valid)
        self.parameters[name] = Parameter(tf.Variable(float(value), trainable=False, name=name), expected, valid)

    def add_weight_of_term(self, name: str, value: float, term: str) -> None:
        """Make the weight of a term a parameter; a term of weight 0 is left out of steps and logs for good."""
        require_weight(name, value)
        if value == 0:
            self.left_out.add(term)
        else:
            self.add_parameter(name, value, "a finite number of at least 0", lambda number: 0 <= number < float("inf"))

    def set_parameter(self, name: str, value: float) -> None:
        """Change a number of the objective for the steps to come; schedules do it between epochs.

        Args:
            name: One of `parameters`.
            value: The new value.

        Raises:
            InvalidArgument: There is no such parameter, or the value is out of its range.
        """
        if name not in self.parameters:
            known = ", ".join(self.parameters) or "nothing: this model has no parameters"
            remedy = "A term whose weight is 0 in the constructor is left out; give it a weight there."
            raise InvalidArgument(message("name", f"one of {known}", repr(name), remedy))
        parameter = self.parameters[name]
        require_number(name, value, parameter.expected, parameter.valid)
        parameter.variable.assign(float(value))

    def has_term(self, weight: str) -> bool:
        """Whether the term with this weight takes part."""
        return weight in self.parameters

    def parameter(self, name: str, dtype: tf.DType = tf.float32) -> tf.Tensor:
        """The present value of a parameter, inside a step."""
        return tf.cast(self.parameters[name].variable, dtype)

    def weight(self, name: str) -> tf.Tensor:
        """The present weight of a term, with its share of the ramp."""
        return self.parameter(name) * self._ramp
