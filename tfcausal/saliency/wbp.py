"""Weight back-propagation (WBP): the weight with which every input value enters a logit, times that value.

Source: *Proactive Pseudo-Intervention*, section 3.2, equations 6 to 10 and table 1. With every nonlinearity frozen at
the gate that it takes on the input, the network is affine in its input; WBP carries the row of one class back through
these frozen maps, ``W_l = B_l^T W_(l+1)``, and multiplies the result with the input, ``s = W_0 * x``.

Departures from the paper. Its convolution rule (transpose, flip) holds for stride 1 and symmetric padding only; the
rule here is the exact adjoint for any stride and padding. Additive constants, which the paper omits, are accounted for:
``logit = sum(s) + sum over layers of <W_(l+1), c_l>`` holds exactly, see :meth:`WBP.decompose`. A ReLU is open where
its output is positive, as in TensorFlow's gradient; the paper's is open at exactly 0 too, where it multiplies a 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.base import Explainer, Images
from tfcausal.saliency.propagation import (
    GRADIENT,
    Fallback,
    Rules,
    WithFallback,
    check,
    check_fallback,
    propagate,
    unsupported,
)
from tfcausal.saliency.wbp_rules import RULES


def weight_back_propagation(
    graph: OperationGraph,
    activations: Activations,
    classes: tf.Tensor,
    training: bool = False,
    with_bias: bool = False,
    rules: Rules = RULES,
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
    """Saliency of one logit per sample, as a differentiable function of one forward pass.

    Args:
        graph: The model's operations.
        activations: The forward pass, from `graph.run(images, training)`.
        classes: The class to explain, integers (N,) in [0, classes).
        training: Whether the forward pass was run in training mode; batch statistics then count as constants.
        with_bias: Whether to sum up what the additive constants contribute.
        rules: The rule of every operation.

    Returns:
        Maps, one in the shape of every input of the model, and the bias (N,) or None. With it, the chosen logit equals
        the sum of the maps plus the bias.
    """
    dtype = activations[graph.logits].dtype
    start = tf.one_hot(classes, graph.num_classes, dtype=dtype if dtype.size > 2 else tf.float32)
    weights, bias = propagate(graph, activations, start, rules, training, with_offsets=with_bias)
    pairs = zip(weights, graph.inputs, strict=True)
    return tuple(weight * tf.cast(activations[position], weight.dtype) for weight, position in pairs), bias


@dataclass(frozen=True)
class Decomposition:
    """A logit taken apart: `logits == maps.sum(over all axes but the first) + bias`, up to rounding.

    Attributes:
        maps: What every input value contributes to the logit, float32 in the shape of the input; for a model of
            several inputs a list or dictionary of maps, as the inputs were given.
        bias: What the additive constants of the layers contribute, float32 (N,).
        logits: The logit of the class that is explained, float32 (N,).
        fallbacks: Paths of the operations for which the plain gradient stood in (`fallback="gradient"`): what is left
            of them beside their gradient counts as bias, so that the sum tells nothing about them.
    """

    maps: Any
    bias: np.ndarray
    logits: np.ndarray
    fallbacks: tuple[str, ...] = ()


class WBP(Explainer):
    """Explain a classifier by weight back-propagation.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size. It never changes a map.
        fallback: What to do with an operation that WBP has no rule for: None raises, `"gradient"` uses its plain
            gradient and records its path in `fallbacks`.

    Raises:
        InvalidArgument: As for :class:`Explainer`, or an unknown fallback.
        UnsupportedOperation: The model contains an operation that WBP has no rule for.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> WBP(model)(np.array([[3.0, -1.0]], "float32"), [0]).tolist()
        [[3.0, -1.0]]
    """

    name = "wbp"

    def __init__(
        self,
        model: keras.Model,
        output: str | int | None = None,
        batch_size: int | None = None,
        fallback: Fallback = None,
    ) -> None:
        check_fallback(fallback)
        super().__init__(model, output, batch_size)
        self._rules: Rules = RULES
        if fallback is None:
            check(self.graph, RULES)
        else:
            self.fallbacks = tuple(unsupported(self.graph, RULES))
            self._rules = WithFallback(RULES, GRADIENT)
        self._decompose: Callable[..., Any] | None = None

    def keeps(self, layer: Any) -> bool:
        """Whether a layer has a rule of its own."""
        return super().keeps(layer) or type(layer) in RULES

    def maps(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Compiled by the base class."""
        activations = self.graph.run(inputs)
        classes = self.resolve(activations, classes)
        saliency, _ = weight_back_propagation(self.graph, activations, classes, rules=self._rules)
        return saliency

    def decompose(self, images: Images, targets: object = None) -> Decomposition:
        """Take the logit of a class apart into what the pixels and what the additive constants contribute.

        Args:
            images: Batch in the model's input space, as for calling the explainer.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class.

        Returns:
            Maps, bias and logits, with `logits == maps.sum() + bias` for every sample.

        Raises:
            InvalidArgument: As for calling the explainer.
        """
        if self._decompose is None:
            self._decompose = self.compiled(self._decompose_batch)
        *maps, bias, logits = self.in_batches(self._decompose, images, targets)
        return Decomposition(self.as_given(images, maps), bias, logits, self.fallbacks)

    def _decompose_batch(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        activations = self.graph.run(inputs)
        classes = self.resolve(activations, classes)
        maps, bias = weight_back_propagation(self.graph, activations, classes, with_bias=True, rules=self._rules)
        logits = tf.gather(activations[self.graph.logits], classes, batch_dims=1)
        return tuple(tf.cast(value, tf.float32) for value in (*maps, bias, logits))
