"""Losses that are differentiated together with the pass that they are computed from, so that nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class MaskedPass(NamedTuple):
    """A pass on changed images.

    Attributes:
        mask: What is taken away, (N, ...); the loss is differentiated through it.
        loss: Takes the mask, gives a loss per sample (N,).
        share: What a sample's loss counts in the total, (N,); not differentiated.
    """

    mask: tf.Tensor
    loss: Callable[[tf.Tensor], tf.Tensor]
    share: tf.Tensor


def total_at_once(passes: Sequence[MaskedPass], scale: float | tf.Tensor = 1.0) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The sum of all shares times losses, whose gradients are computed pass by pass, one after the other.

    Of a pass only the gradients of the masks and of the parameters remain, not its activations: the memory is that of
    one pass, however many there are. The mathematics is that of a plain sum.

    Args:
        passes: The passes.
        scale: What gradients are multiplied by on their way, and divided by at its end, for the sake of half precision:
            that of the optimizer, which lowers it where they overflow.

    Returns:
        The total, a scalar that can be differentiated once; and the losses of every pass, (N,), which cannot.
    """

    def unscaled(gradient: tf.Tensor) -> tf.Tensor:
        return gradient / tf.cast(scale, gradient.dtype)

    @tf.custom_gradient
    def compute(*masks: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., Any]]:
        total = tf.zeros((), passes[0].share.dtype)
        losses: list[tf.Tensor] = []
        of_masks: list[tf.Tensor] = []
        of_variables: dict[Any, tf.Tensor] = {}
        for one, mask in zip(passes, masks, strict=True):
            with tf.control_dependencies([*of_masks, *of_variables.values()]):
                mask = tf.identity(mask)
            with tf.GradientTape() as tape:
                tape.watch(mask)
                loss = one.loss(mask)
                counted = tf.reduce_sum(tf.stop_gradient(one.share) * tf.cast(loss, one.share.dtype))
                scaled = counted * tf.cast(scale, counted.dtype)
            variables = tape.watched_variables()
            of_mask, *found = tape.gradient(scaled, [mask, *variables])
            of_masks.append(tf.zeros_like(mask) if of_mask is None else unscaled(of_mask))
            for variable, gradient in zip(variables, found, strict=True):
                if gradient is not None:
                    known, key = of_variables.get(variable.ref()), variable.ref()
                    of_variables[key] = unscaled(gradient) if known is None else known + unscaled(gradient)
            total += counted
            losses.append(tf.stop_gradient(loss))

        def differentiated(upstream: tf.Tensor, *_: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            known = [of_variables.get(variable.ref()) for variable in variables]
            return (
                [tf.cast(upstream, gradient.dtype) * gradient for gradient in of_masks],
                [None if gradient is None else tf.cast(upstream, gradient.dtype) * gradient for gradient in known],
            )

        return (total, *losses), differentiated

    total, *losses = compute(*(one.mask for one in passes))
    return total, losses
