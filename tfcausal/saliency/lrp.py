"""Layer-wise relevance propagation (LRP): a logit, divided layer by layer among what it was computed from.

Source: Bach et al. 2015, *On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
propagation*. The relevance of the chosen logit is the logit itself; every layer hands the relevance of its outputs on
to its inputs, and what arrives at the pixels is the map. Which layer follows which rule is a composite
(:mod:`tfcausal.saliency.composites`; Kohlbrenner et al. 2020 for the ones by name); layers without weights follow
:mod:`tfcausal.saliency.lrp_rules`.

Beyond the papers: a batch normalisation directly after a layer with weights is merged into it; another one follows the
epsilon rule as a linear layer of its own. A separable convolution is two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.base import Explainer, Images, check_inputs
from tfcausal.saliency.composites import COMPOSITES, Composite, LinearRule, ZBox
from tfcausal.saliency.lrp_plan import Plan
from tfcausal.saliency.lrp_rules import PROPORTIONAL_TO_GRADIENT, RULES
from tfcausal.saliency.propagation import (
    Fallback,
    Rules,
    WithFallback,
    check,
    check_fallback,
    propagate,
    unsupported,
)


def relevance_propagation(
    graph: OperationGraph,
    activations: Activations,
    classes: tf.Tensor,
    rules: Rules,
    with_absorbed: bool = False,
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
    """Relevance of the inputs for one logit per sample, as a function of one forward pass at inference.

    Args:
        graph: The model's operations.
        activations: The forward pass, from `graph.run(images)`.
        classes: The class to explain, integers (N,) in [0, classes).
        rules: The rule of every operation, from `Plan.on(activations)`.
        with_absorbed: Whether to sum up what biases and stabilisers absorb.

    Returns:
        Maps, one in the shape of every input of the model, and what was absorbed, (N,), or None.
    """
    logits = activations[graph.logits]
    logits = tf.cast(logits, tf.float32) if logits.dtype.size == 2 else logits
    start = logits * tf.one_hot(classes, graph.num_classes, dtype=logits.dtype)
    return propagate(graph, activations, start, rules, with_offsets=with_absorbed)


@dataclass(frozen=True)
class Conservation:
    """Where the relevance of a logit went: `logits == relevance + absorbed`, up to rounding.

    Attributes:
        relevance: Sum of the map, over all inputs of the model; float32 (N,).
        absorbed: What biases, other constants and stabilisers took, summed over the layers from their terms in the
            denominators, float32 (N,).
        logits: The logit of the class that is explained, float32 (N,).
    """

    relevance: np.ndarray
    absorbed: np.ndarray
    logits: np.ndarray


class LRP(Explainer):
    """Explain a classifier by layer-wise relevance propagation.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        composite: Which layer follows which rule: a name in :data:`~tfcausal.saliency.composites.COMPOSITES`, or a
            :class:`~tfcausal.saliency.composites.Composite`.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size. It never changes a map.
        fallback: What to do with an operation that LRP has no rule for: None raises, `"gradient"` divides relevance in
            proportion to input times gradient and records the operation's path in `fallbacks`.
        low: Smallest value of the images, in the model's input space: a number, or one for every channel. Needed by the
            z-box rule of `epsilon_gamma_box`, without effect otherwise.
        high: Largest value.

    Attributes:
        layers: The rule that every layer with weights follows, by path in the order in which they run; its order is
            that of the positions in a composite.

    Raises:
        InvalidArgument: As for :class:`Explainer`; an unknown composite or fallback; a composite that names layers that
            are not there; bounds that are missing or no bounds.
        UnsupportedOperation: The model contains an operation that LRP has no rule for.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> LRP(model)(np.array([[3.0, -1.0]], "float32"), [0]).round(3).tolist()
        [[3.0, -1.0]]
        >>> LRP(model, "z_plus")(np.array([[3.0, -1.0]], "float32"), [0]).round(3).tolist()
        [[2.0, 0.0]]
    """

    name = "lrp"

    def __init__(
        self,
        model: keras.Model,
        composite: str | Composite = "epsilon_plus",
        output: str | int | None = None,
        batch_size: int | None = None,
        fallback: Fallback = None,
        low: Any = None,
        high: Any = None,
    ) -> None:
        check_fallback(fallback)
        chosen = _composite(composite)
        super().__init__(model, output, batch_size)
        self._plan = Plan(self.graph, chosen, low, high)
        self.layers: Mapping[str, LinearRule] = MappingProxyType(
            {path: how.rule for path, how in self._plan.layers.items()}
        )
        self._bounds = [checked_bounds(rule, self.graph) for rule in self.layers.values() if isinstance(rule, ZBox)]
        self._fallback = fallback
        if fallback is None:
            check(self.graph, self._plan)
        else:
            self.fallbacks = tuple(unsupported(self.graph, self._plan))
        self._conservation: Callable[..., Any] | None = None

    def keeps(self, layer: Any) -> bool:
        """Whether a layer has a rule of its own."""
        return super().keeps(layer) or type(layer) in RULES

    def maps(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Compiled by the base class."""
        return self._walk(inputs, classes)[0]

    def conservation(self, images: Images, targets: object = None) -> Conservation:
        """Account for the relevance of a logit: how much arrives at the inputs, and how much is absorbed.

        Args:
            images: Batch in the model's input space, as for calling the explainer.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class.

        Returns:
            The sums of the maps, what was absorbed, and the logits. Alpha-beta rules with beta above 0 give more than
            they get where all contributions to an output have one sign; that counts as absorbed, too.

        Raises:
            InvalidArgument: As for calling the explainer.
        """
        if self._conservation is None:
            self._conservation = self.compiled(self._conservation_batch)
        return Conservation(*self.in_batches(self._conservation, images, targets))

    def in_batches(self, function: Callable[..., Any], images: Images, targets: object) -> tuple[np.ndarray, ...]:
        """As the base class does it, after a look at the bounds of the z-box rule."""
        if self._bounds:
            arrays = check_inputs(images, self.graph)
            for low, high in self._bounds:
                for array in arrays:
                    _check_within(array, low, high)
        return super().in_batches(function, images, targets)

    def _walk(
        self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor, with_absorbed: bool = False
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None, tf.Tensor]:
        activations = self.graph.run(inputs)
        classes = self.resolve(activations, classes)
        rules: Rules = self._plan.on(activations)
        if self._fallback is not None:
            rules = WithFallback(rules, PROPORTIONAL_TO_GRADIENT)
        maps, absorbed = relevance_propagation(self.graph, activations, classes, rules, with_absorbed)
        return maps, absorbed, tf.gather(activations[self.graph.logits], classes, batch_dims=1)

    def _conservation_batch(self, inputs: tuple[tf.Tensor, ...], classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        maps, absorbed, logits = self._walk(inputs, classes, with_absorbed=True)
        sums = [tf.reduce_sum(values, axis=list(range(1, values.shape.rank))) for values in maps]
        return tuple(tf.cast(value, tf.float32) for value in (tf.add_n(sums), absorbed, logits))


def _composite(composite: str | Composite) -> Composite:
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str) or composite not in COMPOSITES:
        expected = f"a Composite or one of {', '.join(COMPOSITES)}"
        raise InvalidArgument(message("composite", expected, repr(composite)))
    return COMPOSITES[composite]


def checked_bounds(rule: ZBox, graph: OperationGraph) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a z-box rule as arrays.

    Raises:
        InvalidArgument: They do not fit the model's inputs, are not finite, or the low one is not less than the high.
    """
    checked = []
    for name, bound in (("low", rule.low), ("high", rule.high)):
        try:
            array = np.asarray(bound, np.float32)
        except (TypeError, ValueError):
            raise InvalidArgument(message(name, "a number, or one for every channel", repr(bound))) from None
        for shape in graph.input_shapes:
            sizes = tuple(1 if size is None else size for size in shape[1:])
            fits = array.ndim <= len(sizes) and all(
                own in (1, size) for own, size in zip(array.shape[::-1], sizes[::-1], strict=False)
            )
            if not fits or not np.isfinite(array).all():
                expected = f"finite numbers that broadcast to images of shape {shape[1:]}"
                raise InvalidArgument(message(name, expected, f"{array.tolist()} of shape {array.shape}"))
        checked.append(array)
    low, high = checked
    if not (low < high).all():
        raise InvalidArgument(message("low", f"less than high ({high.tolist()})", f"{low.tolist()}"))
    return low, high


def _check_within(images: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    slack = 1e-4 * (high - low)
    if not ((images >= low - slack) & (images <= high + slack)).all():
        expected = f"values from low={low.tolist()} to high={high.tolist()}, the bounds of the z-box rule"
        remedy = "Pass the bounds of the images that the model is given, as low and high of the explainer."
        raise InvalidArgument(message("images", expected, f"values in [{images.min()}, {images.max()}]", remedy))
