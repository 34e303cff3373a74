"""One model of a run: checked before anything is trained, then trained, or trained again from its last layer on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.atomic import remove
from tfcausal.callbacks import (
    EpochCheckpoint,
    SaliencySnapshots,
    StopOnDivergence,
    TrainingProgress,
    restore_checkpoint,
)
from tfcausal.config import DFRConfig, ModelConfig, RunConfig
from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.data.masks import with_mask_share
from tfcausal.data.pipeline import evaluation_batches, training_batches
from tfcausal.distributed import divided_among_workers, gathered, replica_batch_size
from tfcausal.errors import DataError, InvalidArgument, UnsupportedOperation, message
from tfcausal.models.balanced_regression import balanced_groups, check_labels
from tfcausal.models.building import build_model
from tfcausal.models.last_layer import retrain_last_layer
from tfcausal.models.loading import RUN_PIXELS
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory, atomic_path


def check_models(run: RunDirectory, data: DataSet, strategy: tf.distribute.Strategy) -> None:
    """Build every model that is still to be trained, so that what does not go together is known before the first epoch.

    For a model whose last layer is trained again, the groups of its images are counted.

    Args:
        run: The run directory.
        data: The data set.
        strategy: Where the models are trained.

    Raises:
        InvalidArgument: A method does not take the backbone, there is no such layer, weights cannot be had, or a group
            has too few images; the message begins with the model's key. Or the batches cannot be divided among the
            devices.
        UnsupportedOperation: A method has no rule for a layer of the backbone.
    """
    config = run.config
    replicas = strategy.num_replicas_in_sync
    of_replica = replica_batch_size(config.training.batch_size, replicas, "training.batch_size")
    rest = len(data.splits["validation"]) % config.evaluation.batch_size
    if 0 < rest < replicas:
        expected = f"a batch size that leaves no rest of fewer than {replicas} validation images, one for every replica"
        raise InvalidArgument(
            message("evaluation.batch_size", expected, f"{config.evaluation.batch_size}, rest {rest}")
        )
    steps = len(data.splits["train"]) // config.training.batch_size
    for name, model in config.models.items():
        if _is_trained(run, name, strategy):
            continue
        keras.utils.clear_session()
        try:
            if isinstance(model, DFRConfig):
                split = training_split(config, model, data)
                labels = check_labels(split.labels, len(split), len(split.class_names), multi_label=False)
                balanced_groups(labels, split.contexts, choice=len(model.inverse_strengths) > 1)
            else:
                network = build_model(config, model, data, steps, strategy)
                least, reason = getattr(network, "least_batch", (1, ""))
                if of_replica < least:
                    received = f"{config.training.batch_size} for {strategy.num_replicas_in_sync} replica(s)"
                    expected = f"at least {least} images for every replica"
                    raise InvalidArgument(message("training.batch_size", expected, received, reason))
        except (InvalidArgument, UnsupportedOperation) as error:
            raise type(error)(f"models.{name} (method: {model.method}): {error}") from error
    keras.utils.clear_session()


def train_models(run: RunDirectory, data: DataSet, progress: ConsoleProgress, strategy: tf.distribute.Strategy) -> None:
    """Train the models of a run that are not trained yet; those whose last layer is trained again come last.

    With several workers, each has a run directory of its own with the whole run in it. They go on from the last epoch
    that all of them have, and train a model again that one of them has not finished.

    Args:
        run: The run directory.
        data: The data set.
        progress: Where to show how far the training is.
        strategy: Where the models are trained.

    Raises:
        DataError: An image can no longer be read.
        TrainingDiverged: A loss is no longer finite, or has run away.
    """
    for last_layers in (False, True):
        for name, model in run.config.models.items():
            if isinstance(model, DFRConfig) != last_layers:
                continue
            if _is_trained(run, name, strategy):
                run.drop_checkpoints(name)
            elif isinstance(model, DFRConfig):
                _retrain(run, name, model, data, progress)
            else:
                _train(run, name, model, data, progress, strategy)


def training_split(config: RunConfig, model: ModelConfig, data: DataSet) -> ImageSet:
    """The images that a model is trained on, with the masks that its method is given: a share of them, or none."""
    return with_mask_share(data.splits[trained_on(model, data)[-1]], model.masks or 0.0, config.seed)


def trained_on(model: ModelConfig, data: DataSet) -> list[str]:
    """The splits whose images a model has seen, the last one being that of its own training.

    A model whose last layer is trained again sees the split `balanced`, or the validation images where there is none.

    Args:
        model: The model's part of the configuration.
        data: The data set.
    """
    if not isinstance(model, DFRConfig):
        return ["train"]
    return ["train", "balanced" if "balanced" in data.splits else "validation"]


def _train(
    run: RunDirectory,
    name: str,
    model: ModelConfig,
    data: DataSet,
    progress: ConsoleProgress,
    strategy: tf.distribute.Strategy,
) -> None:
    keras.utils.clear_session()
    config, training, epochs = run.config, run.config.training, run.config.epochs_of(name)
    masked = model.masks is not None
    train = training_split(config, model, data)
    checkpoints = dict(run.checkpoints(name))
    first = _least_of_workers(strategy, max(checkpoints, default=0))
    if not _least_of_workers(strategy, int(first == 0 or first in checkpoints)):
        first = 0  # one of the workers does not have that epoch any more
    batches, steps = training_batches(train, training.batch_size, epochs, config.seed, first, masked)
    validation = evaluation_batches(data.splits["validation"], config.evaluation.batch_size, masked)
    network = build_model(config, model, data, steps, strategy)
    rows: list[dict[Any, Any]] = []
    for epoch, path in checkpoints.items():
        if epoch > first:  # not all workers have it
            remove(path)
    if first:
        with strategy.scope():
            restore_checkpoint(network, checkpoints[first])
        history = run.history(name)
        rows = history[history["epoch"] <= first].to_dict("records")
    begin = time.monotonic()

    def saved(epoch: int, logs: dict[str, float]) -> None:
        nonlocal begin
        rows.append({"epoch": epoch, **logs, "seconds": round(time.monotonic() - begin, 3)})
        begin = time.monotonic()
        run.write_history(name, rows)
        run.drop_checkpoints(name, keep=1)

    if first < epochs:
        with progress.task(f"training {name}", epochs * steps, first * steps) as advance, _reading_errors():
            network.fit(
                divided_among_workers(batches),
                epochs=epochs,
                initial_epoch=first,
                steps_per_epoch=steps,
                validation_data=divided_among_workers(validation),
                shuffle=False,  # the batches are in the order of their epoch
                verbose=0,
                callbacks=[
                    TrainingProgress(advance, epochs),
                    StopOnDivergence(),
                    EpochCheckpoint(lambda epoch: run.checkpoint_path(name, epoch), config.seed, saved),
                    *_snapshots(run, name, data.splits["validation"]),
                ],
            )
    _save(run, name, getattr(network, "explained_network", network))


def _snapshots(run: RunDirectory, name: str, split: ImageSet) -> list[keras.callbacks.Callback]:
    """The callback that shows what a model looks at while it trains, if it is wanted."""
    report = run.config.report
    if report.snapshot_epochs is None:
        return []
    images, _ = split.read(np.arange(min(report.images, len(split))))
    names = list(split.class_names)
    return [
        SaliencySnapshots(
            images,
            run.path / "snapshots" / name,
            every=report.snapshot_epochs,
            class_names=names,
            pixels=RUN_PIXELS,
            overwrite=True,
        )
    ]


def _retrain(run: RunDirectory, name: str, model: DFRConfig, data: DataSet, progress: ConsoleProgress) -> None:
    """Train the last layer of another model again, on images that are balanced over what is known of their groups."""
    keras.utils.clear_session()
    config, begin = run.config, time.monotonic()
    split = training_split(config, model, data)
    network = keras.models.load_model(run.model_path(model.of), compile=False)
    with progress.task(f"training {name}", 1) as advance:
        images, _ = split.read(np.arange(len(split)))
        options = model.model_dump(include={"inverse_strengths", "selection_share", "subsets"})
        retrained = retrain_last_layer(
            network,
            images,
            split.labels,
            split.contexts,
            **options,
            batch_size=config.evaluation.batch_size,
            seed=config.seed,
        )
        advance(1, "")
    probabilities = retrained.model.predict(images, batch_size=config.evaluation.batch_size, verbose=0)
    of_label = probabilities[np.arange(len(split)), split.labels]
    row = {
        "epoch": 1,
        "loss": float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        "accuracy": float((probabilities.argmax(axis=1) == split.labels).mean()),
        "inverse_strength": retrained.head.inverse_strength[0],
        "selection_accuracy": retrained.head.selection_accuracy[0],
        "seconds": round(time.monotonic() - begin, 3),
    }
    run.write_history(name, [row])
    _save(run, name, retrained.model)


def _is_trained(run: RunDirectory, name: str, strategy: tf.distribute.Strategy) -> bool:
    """Whether a model is finished, for all workers."""
    return bool(_least_of_workers(strategy, int(run.model_path(name).exists())))


def _least_of_workers(strategy: tf.distribute.Strategy, value: int) -> int:
    """The smallest of the values that the workers call this with; the value itself without other workers."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value

    @tf.function
    def values() -> tf.Tensor:
        return strategy.run(lambda: gathered(tf.constant([value], tf.float32)))

    return int(tf.reduce_min(strategy.experimental_local_results(values())[0]))


def _save(run: RunDirectory, name: str, network: keras.Model) -> None:
    with atomic_path(run.model_path(name)) as partial:
        network.save(partial)
    run.drop_checkpoints(name)


@contextmanager
def _reading_errors() -> Iterator[None]:
    """An image that can no longer be read while a model trains is a data error, not one of the input pipeline."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"DataError: (.*)", error.message)
        if found is None:
            raise
        raise DataError(found[1]) from None
