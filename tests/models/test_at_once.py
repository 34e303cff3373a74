from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.models.at_once import MaskedPass, total_at_once

RNG = np.random.default_rng(0)
MASKS = [tf.constant(RNG.uniform(size=(4, 3))) for _ in range(2)]
SHARES = [tf.constant(RNG.uniform(size=4)) for _ in range(2)]


def loss_and_gradients(at_once: bool, scale: float = 1.0) -> list[tf.Tensor]:
    """Of two passes that share a variable, one of which has another of its own; a source of both masks; a constant."""
    shared, own, unused = (tf.Variable(np.full(3, value)) for value in (0.5, -1.5, 2.0))
    source = tf.Variable(0.7, dtype=tf.float64)

    def first(mask: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.sin(mask * shared) + 0.0 * unused, 1)

    def second(mask: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(mask**2 * shared * own, 1)

    with tf.GradientTape() as tape:
        masks = [source * mask for mask in MASKS]
        if at_once:
            passes = [MaskedPass(*arguments) for arguments in zip(masks, (first, second), SHARES, strict=True)]
            total, losses = total_at_once(passes, scale)
        else:
            losses = [first(masks[0]), second(masks[1])]
            total = tf.add_n([tf.reduce_sum(share * loss) for share, loss in zip(SHARES, losses, strict=True)])
        total = 3.0 * total
    gradients = tape.gradient(total, [source, shared, own], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [total, *losses, *gradients]


@pytest.mark.parametrize("scale", [1.0, 128.0])
def test_gradients_are_those_of_the_sum(scale):
    for found, expected in zip(loss_and_gradients(True, scale), loss_and_gradients(False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_loss_that_does_not_depend_on_the_mask_leaves_the_mask_alone():
    variable, source = tf.Variable([2.0]), tf.Variable(1.0)
    with tf.GradientTape() as tape:
        one = MaskedPass(source * tf.ones((4, 3)), lambda mask: tf.tile(variable**2, [4]), tf.ones(4) / 4)
        total, (losses,) = total_at_once([one])
    np.testing.assert_allclose(losses, [4.0] * 4)
    by_source, by_variable = tape.gradient(total, [source, variable])
    assert by_source == 0
    np.testing.assert_allclose(by_variable, [4.0])


def test_losses_and_shares_are_not_differentiated():
    mask, share = tf.constant(RNG.uniform(size=(4, 3))), tf.constant(RNG.uniform(size=4))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([mask, share])
        total, (losses,) = total_at_once([MaskedPass(mask, lambda mask: tf.reduce_sum(mask**2, 1), share)])
        squares = tf.reduce_sum(losses**2)
    assert tape.gradient(squares, mask) is None or not np.any(tape.gradient(squares, mask))
    assert tape.gradient(total, share) is None
    np.testing.assert_allclose(tape.gradient(total, mask), 2 * mask * share[:, None], rtol=1e-12)


def test_the_compiled_passes_run_one_after_the_other():
    """The second pass waits for the gradients of the first, so that their activations are not there at once."""
    variable = tf.Variable([1.0, 2.0, 3.0], dtype=tf.float64)

    @tf.function(autograph=False)
    def step(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def of(name: str):
            def loss(mask: tf.Tensor) -> tf.Tensor:
                return tf.reduce_sum(tf.exp(mask * variable, name=name), 1)

            return loss

        with tf.GradientTape() as tape:
            total, _ = total_at_once(
                [MaskedPass(first, of("early"), SHARES[0]), MaskedPass(second, of("late"), SHARES[1])]
            )
        return total, tape.gradient(total, variable)

    graph = step.get_concrete_function(*MASKS).graph
    late = graph.get_operation_by_name("late")
    waiting, before = [late], set()
    while waiting:
        operation = waiting.pop()
        if operation.name not in before:
            before.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    assert "early" in before
    expected = [share[:, None] * mask * np.exp(mask * [1, 2, 3]) for share, mask in zip(SHARES, MASKS, strict=True)]
    np.testing.assert_allclose(step(*MASKS)[1], np.sum(expected, axis=(0, 1)), rtol=1e-12)
