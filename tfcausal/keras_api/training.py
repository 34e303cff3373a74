"""Steps of training, on one device or several workers."""

from __future__ import annotations

import re
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """Split what `fit` hands to a step into inputs, targets and sample weights."""
    return keras.utils.unpack_x_y_sample_weight(data)


def track_loss(model: Any, loss: tf.Tensor, batch_size: tf.Tensor) -> None:
    """Record the loss of a step under the name `loss`, as `fit` does."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def loss_description(loss: Any) -> tuple[str | None, bool | None]:
    """Name of a cross-entropy that a model was compiled with, and whether it takes logits; None where not known."""
    if isinstance(loss, str):
        return loss, False if loss.endswith("crossentropy") else None
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(loss).__name__).lower()
    return name, config.get("from_logits")


def unscaled_loss(loss: tf.Tensor) -> tf.Tensor:
    """The mean over the samples of this replica, of a loss that Keras has divided by the number of replicas."""
    return loss * tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)


def apply_gradients(model: Any, tape: tf.GradientTape, loss: tf.Tensor) -> None:
    """Differentiate a loss that was computed under `tape` and update the model's weights."""
    with tape:
        scaled = model.optimizer.scale_loss(loss)
    weights = model.trainable_weights
    gradients = tape.gradient(scaled, weights)
    # What is computed again for a gradient reads weights late. TensorFlow orders these reads before the updates; its
    # graph optimisation loses that order unless the updates wait for all gradients.
    with tf.control_dependencies([gradient for gradient in gradients if gradient is not None]):
        complete = [None if gradient is None else tf.identity(gradient) for gradient in gradients]
    model.optimizer.apply_gradients(zip(complete, weights, strict=True))


def rebuild_train_function(model: Any) -> None:
    """Have `fit` trace the training step anew, because a Python value that it depends on has changed."""
    model.make_train_function(force=True)


def reset_random_state(model: Any, seed: int) -> None:
    """Set the random generators of a model's layers (dropout, noise) to a state that depends on `seed` only.

    Keras does not save that state with the weights; a resumed training needs it to be what it would have been.
    """
    generators: dict[int, Any] = {}
    for layer in [model, *model._flatten_layers(include_self=False)]:
        for generator in getattr(layer, "_seed_generators", []):
            generators[id(generator.state)] = generator
    for position, generator in enumerate(generators.values()):
        words = np.random.SeedSequence([seed, position]).generate_state(2, dtype=np.uint32)
        generator.state.assign(np.asarray(words >> 1, dtype="int64"))


def symbolic_build(model: Any, iterator: Any, data_batch: Any) -> None:
    """Build metrics and losses before the first step, as `fit` does under a strategy.

    Keras averages the first batch over the workers before it does so, which fails with several of them; only shapes
    matter, so that the part of one replica will do.
    """
    strategy = model._distribute_strategy
    if strategy is None:
        return
    if iterator is not None:
        for _, _, steps in iterator:
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], next(steps)
            )
            break
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def reducible_logs(model: Any, logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The results of a step in the shape in which `fit` can average them over several workers: along axis 0."""
    strategy = model._distribute_strategy
    if not _has_several_workers(strategy) or not _averages_along_samples():
        return logs
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def results_of_epoch(model: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """What the metrics of a model say after an epoch, of those that its steps report.

    Keras takes the results of the last step where a model has metrics that its steps do not report; under a strategy
    these are the mean over the replicas, however unequal the parts of the samples that they have had.
    """
    results = model.get_metrics_result()
    return {name: results[name] for name in logs} if logs.keys() <= results.keys() else logs


def _has_several_workers(strategy: Any) -> bool:
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several and strategy.extended._in_multi_worker_mode()


@cache
def _averages_along_samples() -> bool:
    """Whether this Keras averages the results of a step over workers along axis 0, which scalars do not have."""
    axes = []

    class Recorder(tf.distribute.MultiWorkerMirroredStrategy):
        extended = SimpleNamespace(_in_multi_worker_mode=lambda: True)

        def __init__(self) -> None:
            """Connects to no one."""

        def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
            axes.append(axis)
            return value

    trainer = sys.modules[keras.Model.make_train_function.__module__]
    trainer.reduce_per_replica(0.0, Recorder(), reduction="auto")
    return axes == [0]
