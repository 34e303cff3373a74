"""Trains small models on one replica and on several, for `test_distributed.py`, which starts it.

`python distributed_worker.py OUTPUT SECONDS SCENARIO...` writes what came out as `{scenario: {"one": ..., "several":
...}}`. Without TF_CONFIG every scenario runs on one replica and on two of this machine, with it as one of the workers.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal import distributed, keras_api
from tfcausal.data.pipeline import evaluation_batches, training_batches
from tfcausal.data.sources.textured_digits import textured_digits
from tfcausal.errors import TfCausalError
from tfcausal.models.base import CausalClassifier
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.models.rrr import RRRModel

L = keras.layers
BATCH = 8
METHODS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "plain": lambda backbone: CausalClassifier(backbone) if "TF_CONFIG" in os.environ else backbone,
    "ppi": lambda backbone: PPIModel(backbone, sharpness=10.0),
    "cfcn": CFCNModel,
    "gain": lambda backbone: GAINModel(backbone, supervision_weight=10.0),
    "rrr": lambda backbone: RRRModel(backbone, penalty_weight=0.01),
}


def classifier(image_shape: tuple[int, int, int], classes: int, batch_norm: dict[str, Any] | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(image_shape)
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", kernel_regularizer=keras.regularizers.L2(0.01))(x)
    if batch_norm is not None:
        x = L.BatchNormalization(momentum=0.9, **batch_norm)(x)
    x = L.GlobalAveragePooling2D()(L.Conv2D(classes, 1)(x))
    model = keras.Model(inputs, L.Activation("softmax")(x))
    # The logits of a fresh network hardly differ; these do.
    model.set_weights([3 * value if value.ndim == 4 else value for value in model.get_weights()])
    return model


def arrays(masked: bool, count: int) -> tuple[np.ndarray, Any]:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    labels = rng.integers(0, 3, count)
    masks = (rng.random((count, 8, 8, 1)) < 0.3).astype("float32")
    # More images of the first half of every batch have a mask than of the second.
    has_mask = (np.arange(count) % BATCH < 5).astype("float32")
    return images, {"label": labels, "mask": masks, "has_mask": has_mask} if masked else labels


def built(method: str, batch_norm: dict[str, Any] | None, digits: bool = False) -> keras.Model:
    model = METHODS[method](classifier((24, 24, 3) if digits else (8, 8, 3), 10 if digits else 3, batch_norm))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def train(scenario: str, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Fit, evaluate and predict; a scenario is a method and, after a colon, what is special about it.

    Methods that have no terms in evaluation are only fitted, but for the special scenarios: tracing takes the time.
    """
    method, _, special = scenario.partition(":")
    masked, digits = method in ("cfcn", "gain", "rrr"), special == "digits"
    with strategy.scope():
        model = built(method, {"synchronized": {"synchronized": True}}.get(special), digits)
    if digits:
        splits = textured_digits(image_size=24, digit_width=(16, 20), train_size=20, validation_size=11).splits
        training, steps = training_batches(splits["train"], BATCH, epochs=2, seed=0, with_masks=masked)
        validation = evaluation_batches(splits["validation"], BATCH, with_masks=masked)
        training, images = map(distributed.divided_among_workers, (training, validation))
        tested = {"x": images}
        data = {"x": training, "steps_per_epoch": steps, "validation_data": images}
    else:
        images, y = arrays(masked, {"rest": 11, "single_rest": 9}.get(special, 16))
        tested = {"x": images, "y": y, "batch_size": BATCH}
        data = {**tested, "validation_data": (images, y)}
    if not (special or method in ("plain", "cfcn")):
        return {
            "history": model.fit(**tested, epochs=2, shuffle=False, verbose=0).history,
            "weights": model.get_weights(),
        }
    history = model.fit(**data, epochs=2, shuffle=False, verbose=0).history
    evaluation = model.evaluate(**tested, verbose=0, return_dict=True)
    return {
        "weights": model.get_weights(),
        "history": history,
        "evaluation": evaluation,
        "predictions": model.predict(images, batch_size=None if digits else BATCH, verbose=0),
    }


def halves(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """One step with batch norm: on two replicas, or on one replica with each half of the batch by itself."""
    images, y = arrays(masked=True, count=BATCH)
    parts = [slice(None)] if strategy.num_replicas_in_sync > 1 else [slice(0, 4), slice(4, 8)]
    weights = []
    for part in parts:
        with strategy.scope():
            model = built("cfcn", {})
        model.fit(images[part], {name: y[name][part] for name in y}, batch_size=BATCH, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    return {"weights": weights}


def bad_image(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """An image with a NaN, in the part of the second replica."""
    images, y = arrays(masked=True, count=BATCH)
    images[-1] = np.nan
    return refused(strategy, images, y)


def empty_part(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """A batch of one image, none of which is left for the second replica."""
    return refused(strategy, *arrays(masked=True, count=1))


def refused(strategy: tf.distribute.Strategy, images: np.ndarray, y: Any) -> dict[str, Any]:
    with strategy.scope():
        model = built("cfcn", None)
    try:
        model.fit(images, y, batch_size=BATCH, shuffle=False, verbose=0)
    except TfCausalError as error:
        return {"error": str(error)}
    return {}


def replica_context(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """What the functions for use in a step give on every replica: two samples on the first, three on the second."""
    layer = L.BatchNormalization(synchronized=True)

    def step(rows: tf.Tensor) -> dict[str, Any]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        offset, total = distributed.place_among_replicas(tf.shape(rows)[0])
        with tf.GradientTape() as tape:
            tape.watch(rows)
            everything = distributed.gathered(rows)
            numbers = tf.cast(tf.range(total), tf.float32)[:, None]
            loss = tf.cast(replica + 1, tf.float32) * tf.reduce_sum(numbers * everything**2)
        mean, count = tf.reduce_mean(rows), tf.shape(rows)[0]
        share = distributed.scaled_for_replicas(mean, count)
        return {
            "offset": offset,
            "total": total,
            "gathered": everything,
            "gradient": tape.gradient(loss, rows),
            "share": share,
            "mean": distributed.unscaled_for_replicas(share, count),
            "of_none": distributed.scaled_for_replicas(mean / 0.0 * 0.0, tf.zeros_like(offset)),
            "equal": distributed.scaled_for_replicas(mean),
            "moments": keras_api.batch_moments(layer, rows),
        }

    with strategy.scope():
        layer.build((None, 2))
    parts = np.split(rows_of_all(), [2])
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    results = {}
    for name, run in {"graph": tf.function(strategy.run), "eager": strategy.run}.items():
        replicas = keras.tree.map_structure(strategy.experimental_local_results, run(step, args=(values,)))
        results[name] = keras.tree.map_structure(np.asarray, replicas)
    return results


def rows_of_all() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


SPECIAL = {"halves": halves, "bad_image": bad_image, "empty_part": empty_part, "replica_context": replica_context}


def main() -> None:
    output, seconds, *scenarios = sys.argv[1:]
    faulthandler.dump_traceback_later(float(seconds), exit=True)  # a worker whose peer is gone would wait without end
    if "TF_CONFIG" in os.environ:
        places = {"several": distributed.choose_strategy("multi_worker")}
    else:
        several = distributed.choose_strategy("mirrored", 2)
        places = {"one": distributed.choose_strategy("one_device"), "several": several}
    results: dict[str, dict[str, Any]] = {}
    for scenario in scenarios:
        results[scenario] = {}
        for place, strategy in places.items():
            if scenario not in ("replica_context", "bad_image", "empty_part") or place == "several":
                run = SPECIAL.get(scenario)
                results[scenario][place] = run(strategy) if run else train(scenario, strategy)
    Path(output).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main()
