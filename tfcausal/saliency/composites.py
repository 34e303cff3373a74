"""The rules of layer-wise relevance propagation (LRP) for layers with weights, and which layer follows which.

A rule says what input ``j`` contributes to output ``k`` of a linear map ``z_k = sum_j a_j w_jk + b_k``; the relevance
``R_k`` of an output is divided in proportion to the contributions. All of them have the form

    R_j = sum over parts, sum over k:  contribution_jk / stab(total_k) * share_k * R_k

where ``total_k`` sums the contributions and what the rule takes of the bias, and ``stab(t) = t + epsilon * sign(t)``
with ``sign(0) = 1`` and ``epsilon = 1e-6`` unless the rule says otherwise. What goes to the bias and to epsilon is
absorbed; :func:`redistribute` tells how much. ``x+`` and ``x-`` are the positive and the negative part of ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Protocol

import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.saliency.linear_maps import LinearStage
from tfcausal.saliency.propagation import inner_product

STABILISER = 1e-6


@dataclass(frozen=True)
class LinearStep:
    """One linear map in one forward pass.

    Attributes:
        stage: The map.
        inputs: What went in, (N, ...).
        outputs: What came out, the bias included.
        nonnegative: Whether the inputs are known to hold no negative value: a rule then leaves out what is 0.
        support: 1 where an input takes part and 0 where it is the zero of a padding layer, (1, ...); None is 1
            everywhere.
    """

    stage: LinearStage
    inputs: tf.Tensor
    outputs: tf.Tensor
    nonnegative: bool = False
    support: tf.Tensor | None = None


@dataclass(frozen=True)
class Part:
    """A share of the relevance, and the contributions among which it is divided.

    Attributes:
        terms: Pairs (factor, kernel): the contribution of input j to output k is the sum of `factor_j * kernel_jk`.
        bias: What the rule takes of the bias, or None.
        share: The share of the relevance: a number, or one for every output.
        total: The sum of the contributions and `bias` where it is known already.
        epsilon: The stabiliser.
    """

    terms: tuple[tuple[tf.Tensor, tf.Tensor], ...]
    bias: tf.Tensor | None = None
    share: float | tf.Tensor = 1.0
    total: tf.Tensor | None = None
    epsilon: float = STABILISER


class LinearRule(Protocol):
    """How a linear map divides relevance."""

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """The contributions; the shares of the parts sum to 1."""


def stabilised(total: tf.Tensor, epsilon: float = STABILISER) -> tf.Tensor:
    """Move a denominator away from zero, `total + epsilon * sign(total)` with `sign(0) = 1`."""
    return total + tf.where(total < 0, tf.constant(-epsilon, total.dtype), tf.constant(epsilon, total.dtype))


def redistribute(rule: LinearRule, step: LinearStep, relevance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Divide the relevance of the outputs of a linear map among its inputs.

    Args:
        rule: The rule.
        step: The map and its tensors.
        relevance: Relevance of the outputs, in their shape.

    Returns:
        The relevance of the inputs, in their shape; and what the bias and the stabiliser absorbed of every sample,
        (N,), from their terms in the denominators. The two sum to the relevance of the outputs.
    """
    at_inputs, absorbed = tf.zeros_like(step.inputs), tf.zeros_like(relevance)
    for part in rule.parts(step):
        total = part.total
        if total is None:
            total = _plus(tf.add_n([step.stage.apply(factor, kernel) for factor, kernel in part.terms]), part.bias)
        given = relevance * part.share
        quotient = tf.math.divide_no_nan(given, stabilised(total, part.epsilon))
        for factor, kernel in part.terms:
            at_inputs += factor * _transposed(step, kernel, quotient)
        absorbed += given - quotient * (total if part.bias is None else total - part.bias)
    return at_inputs, inner_product(absorbed, tf.ones((), absorbed.dtype))


def _transposed(step: LinearStep, kernel: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The transposed map: from values at the outputs to the shape of the inputs."""
    inputs = tf.identity(step.inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = step.stage.apply(inputs, kernel)
    return tape.gradient(outputs, inputs, values)


def _plus(value: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    return value if bias is None else value + bias


def _positive(value: tf.Tensor) -> tf.Tensor:
    return None if value is None else tf.nn.relu(value)


def _negative(value: tf.Tensor) -> tf.Tensor:
    return None if value is None else tf.minimum(value, tf.zeros((), value.dtype))


def _by_sign(step: LinearStep, with_positive: tf.Tensor, with_negative: tf.Tensor) -> Any:
    """Positive inputs with one kernel, negative ones with another."""
    if step.nonnegative:
        return ((step.inputs, with_positive),)
    return ((_positive(step.inputs), with_positive), (_negative(step.inputs), with_negative))


def _check_number(name: str, value: object, least: float) -> None:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not isfinite(float(str(value))) or float(str(value)) < least:
        raise InvalidArgument(message(name, f"a number of at least {least:g}", repr(value)))


@dataclass(frozen=True)
class Epsilon:
    """LRP-epsilon: `R_j = sum_k a_j w_jk / stab(z_k) R_k`, the bias being part of `z_k`, where it absorbs its share.

    With epsilon 0 it is LRP-0, which equals gradient times input on networks of ReLU; an output of exactly 0 then
    passes nothing. Source: Bach et al. 2015, equation 58.

    Args:
        epsilon: The stabiliser.

    Raises:
        InvalidArgument: It is negative or not a number.
    """

    epsilon: float = STABILISER

    def __post_init__(self) -> None:
        _check_number("epsilon", self.epsilon, 0)

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """The products of input and weight."""
        stage = step.stage
        return (Part(((step.inputs, stage.kernel),), stage.bias, total=step.outputs, epsilon=self.epsilon),)


@dataclass(frozen=True)
class Gamma:
    """LRP-gamma: contributions of the output's own sign count `1 + gamma` times.

    For an output `z_k >= 0` the contribution is `a_j+ (w + gamma w+) + a_j- (w + gamma w-)`; for one below 0 it is
    `a_j+ (w + gamma w-) + a_j- (w + gamma w+)`. The bias counts `b + gamma b+` or `b + gamma b-` and absorbs its share.
    On non-negative inputs and outputs this is Montavon et al. 2019; the other signs are those of Andeol et al. 2021.
    With gamma 0 it is epsilon; a large gamma approaches z-plus where outputs are positive.

    Args:
        gamma: The weight of what agrees with the output.

    Raises:
        InvalidArgument: It is negative or not a number.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        _check_number("gamma", self.gamma, 0)

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """One part for the outputs of either sign."""
        stage, outputs = step.stage, step.outputs
        positive, negative = _positive(stage.kernel), _negative(stage.kernel)
        agreeing = [stage.apply(factor, kernel) for factor, kernel in _by_sign(step, positive, negative)]
        raised = _plus(tf.add_n(agreeing), _positive(stage.bias))
        upwards, downwards = (stage.kernel + self.gamma * kernel for kernel in (positive, negative))
        above = tf.cast(outputs >= 0, outputs.dtype)
        above_bias, below_bias = (
            None if stage.bias is None else stage.bias + self.gamma * part(stage.bias)
            for part in (_positive, _negative)
        )
        return (
            Part(_by_sign(step, upwards, downwards), above_bias, above, outputs + self.gamma * raised),
            Part(_by_sign(step, downwards, upwards), below_bias, 1 - above, outputs + self.gamma * (outputs - raised)),
        )


@dataclass(frozen=True)
class AlphaBeta:
    """LRP-alpha-beta: positive contributions share `alpha R_k`, negative ones `-beta R_k`.

    Positive contributions are `a_j+ w+ + a_j- w-`, negative ones `a_j+ w- + a_j- w+`; `b+` belongs to the former and
    `b-` to the latter, and each absorbs its share. An output all of whose contributions have one sign gets nothing for
    the other. Source: Bach et al. 2015, equation 60.

    Args:
        alpha: Weight of the positive contributions, at least 1.
        beta: Weight of the negative contributions, `alpha - 1`.

    Raises:
        InvalidArgument: `alpha - beta` is not 1, or one of them is too small.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha, 1)
        _check_number("beta", self.beta, 0)
        if abs(self.alpha - self.beta - 1) > 1e-6:
            expected, received = "alpha - beta = 1", f"alpha={self.alpha} and beta={self.beta}"
            raise InvalidArgument(message("beta", expected, received, "Pass beta=alpha - 1."))

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """One part for the contributions of either sign."""
        bias = step.stage.bias
        positive, negative = _positive(step.stage.kernel), _negative(step.stage.kernel)
        activating = Part(_by_sign(step, positive, negative), _positive(bias), self.alpha)
        if self.beta == 0:
            return (activating,)
        return (activating, Part(_by_sign(step, negative, positive), _negative(bias), -self.beta))


@dataclass(frozen=True)
class ZPlus:
    """z-plus: positive contributions `a_j+ w+ + a_j- w-` share the relevance; `b+` absorbs its share.

    It is alpha-beta with 1 and 0. Source: Montavon et al. 2017, equation 13, which has non-negative inputs and no bias.
    """

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """The positive contributions."""
        return AlphaBeta(1.0, 0.0).parts(step)


@dataclass(frozen=True)
class ZBox:
    """z-box, for pixels within bounds: contributions are `a_j w - low_j w+ - high_j w-`; the bias takes no part.

    Source: Montavon et al. 2017, equation 14 (where it is called z-B).

    Args:
        low: Smallest value of the model's input: a number, one for every channel, or what broadcasts to an image; None
            is what the explainer was given. In :func:`redistribute` the bounds are those of the inputs of the map.
        high: Largest value.
    """

    low: Any = None
    high: Any = None

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """Three terms, which are of one sign for inputs within the bounds."""
        stage, zeros = step.stage, tf.zeros_like(step.inputs[:1])
        low, high = (
            zeros + (tf.cast(bound, zeros.dtype) if tf.is_tensor(bound) else bound) for bound in (self.low, self.high)
        )
        positive, negative = _positive(stage.kernel), _negative(stage.kernel)
        total = step.outputs - stage.apply(low, positive) - stage.apply(high, negative)
        total = total if stage.bias is None else total - stage.bias
        return (Part(((step.inputs, stage.kernel), (-low, positive), (-high, negative)), total=total),)

    def after(self, stage: LinearStage) -> ZBox:
        """The bounds of what a map gives for inputs within these bounds."""
        positive, negative = _positive(stage.kernel), _negative(stage.kernel)
        low = stage.apply(self.low, positive) + stage.apply(self.high, negative)
        high = stage.apply(self.high, positive) + stage.apply(self.low, negative)
        return ZBox(_plus(low, stage.bias), _plus(high, stage.bias))


@dataclass(frozen=True)
class WSquare:
    """w-square: `R_j = sum_k w_jk^2 / sum_j' w_j'k^2 R_k`, whatever the input; the bias takes no part.

    Zeros of padding have no share. Source: Montavon et al. 2017, equation 12.
    """

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """The squared weights."""
        return (Part(((_support(step), step.stage.kernel**2),)),)


@dataclass(frozen=True)
class Flat:
    """flat: every input that an output sees gets the same of its relevance; the bias takes no part.

    Zeros of padding have no share. Source: Lapuschkin et al. 2019.
    """

    def parts(self, step: LinearStep) -> tuple[Part, ...]:
        """Ones."""
        return (Part(((_support(step), tf.ones_like(step.stage.kernel)),)),)


def _support(step: LinearStep) -> tf.Tensor:
    return tf.ones_like(step.inputs[:1]) if step.support is None else tf.cast(step.support, step.inputs.dtype)


@dataclass(frozen=True)
class Composite:
    """Which layer with weights follows which rule.

    What is more particular wins: a name, then a position, then being a first layer, then the type, then the family.

    Args:
        dense: The rule of dense layers.
        convolution: The rule of convolutions of every kind.
        first: The rule of first layers, in front of which there is no other layer with weights; there are several
            where a model has several inputs or branches at once. None where they are like any other.
        types: Rules by class of layer; that of the nearest class counts.
        positions: Rules by position among the layers with weights, in the order in which they run, from 0, or from the
            last, -1.
        names: Rules by name, which stands for every layer of that name, or by path through nested models, e.g.
            `backbone/conv1`.

    Raises:
        InvalidArgument: Something is not a rule.

    Example:
        >>> composite = Composite(convolution=Gamma(0.5), first=Flat(), names={"logits": ZPlus()})
        >>> composite.dense
        Epsilon(epsilon=1e-06)
    """

    dense: LinearRule = field(default_factory=Epsilon)
    convolution: LinearRule = field(default_factory=Epsilon)
    first: LinearRule | None = None
    types: Mapping[type, LinearRule] = field(default_factory=dict)
    positions: Mapping[int, LinearRule] = field(default_factory=dict)
    names: Mapping[str, LinearRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules: dict[str, Any] = {"dense": self.dense, "convolution": self.convolution}
        rules |= {} if self.first is None else {"first": self.first}
        for name in ("types", "positions", "names"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise InvalidArgument(message(name, "a dictionary of rules", repr(given)))
            rules |= {f"{name}[{getattr(key, '__name__', repr(key))}]": rule for key, rule in given.items()}
        for name, rule in rules.items():
            if isinstance(rule, type) or not callable(getattr(rule, "parts", None)):
                raise InvalidArgument(message(name, "a rule such as Epsilon() or ZPlus()", repr(rule)))


_EPSILON_PLUS = Composite(convolution=ZPlus())
_ALPHA2_BETA1 = Composite(convolution=AlphaBeta(2.0, 1.0))

COMPOSITES: dict[str, Composite] = {
    "epsilon_plus": _EPSILON_PLUS,
    "epsilon_plus_flat": replace(_EPSILON_PLUS, first=Flat()),
    "epsilon_gamma_box": Composite(convolution=Gamma(0.25), first=ZBox()),
    "epsilon_alpha2_beta1": _ALPHA2_BETA1,
    "epsilon_alpha2_beta1_flat": replace(_ALPHA2_BETA1, first=Flat()),
    "epsilon": Composite(),
    "gamma": Composite(Gamma(), Gamma()),
    "z_plus": Composite(ZPlus(), ZPlus()),
    "alpha2_beta1": Composite(AlphaBeta(2.0, 1.0), AlphaBeta(2.0, 1.0)),
    "w_square": Composite(WSquare(), WSquare()),
    "flat": Composite(Flat(), Flat()),
}
