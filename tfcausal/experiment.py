"""From a configuration to a report: data, models, training, evaluation, effects. The one place that wires them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import zarr

from tfcausal import __version__
from tfcausal.browsing.maps import MapWriter, write_split
from tfcausal.config import RunConfig
from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.data.loading import check_data, check_unchanged, load_data
from tfcausal.data.pipeline import summarise
from tfcausal.distributed import choose_strategy
from tfcausal.effect_study.command import check_effects, measure_models
from tfcausal.errors import TfCausalError
from tfcausal.evaluation.classifier import SplitResult, evaluate_classifier
from tfcausal.evaluation.faithfulness import Deletion
from tfcausal.evaluation.groups import group_accuracy
from tfcausal.evaluation.statistics import mean, proportion
from tfcausal.models.building import build_model
from tfcausal.progress import ConsoleProgress
from tfcausal.report import write_report
from tfcausal.runs import RunDirectory, atomic_path, environment
from tfcausal.saliency.registry import get_explainer
from tfcausal.training import check_models, train_models, trained_on, training_split

__all__ = ["build_model", "check_data", "headline_split", "load_data", "make_deterministic", "run_experiment"]

Train = Callable[[RunDirectory, DataSet, ConsoleProgress, tf.distribute.Strategy], None]


def run_experiment(run: RunDirectory, progress: ConsoleProgress, train: Train = train_models) -> dict[str, Any]:
    """Do what is left to do of a run: train, evaluate, report.

    What is there already is kept: trained models are loaded, and a training goes on from its last epoch.

    Args:
        run: The run directory, new or unfinished.
        progress: Where to show how far the run is.
        train: Trains the models that are not trained yet; in this process, or as
            :class:`tfcausal.scale.training.RayTraining` does.

    Returns:
        The metrics, as in `metrics.json`.

    Raises:
        TfCausalError: The data, the model or the training is at fault; the run is marked as failed with the message.
        RunError: Another process is writing this run.
    """
    with run.lock():
        run.set_status("running")
        try:
            metrics = _run(run, progress, train)
        except Exception as error:
            # What tfcausal did not raise on purpose keeps its traceback; the run says what it was all the same.
            own = isinstance(error, TfCausalError)
            if run.path.exists():
                run.set_status("failed", error=str(error) if own else f"{type(error).__name__}: {error}")
            raise
        run.set_status("complete")
    return metrics


def _run(run: RunDirectory, progress: ConsoleProgress, train: Train) -> dict[str, Any]:
    config = run.config
    try:
        strategy = choose_strategy(config.training.strategy)
        data = load_data(config, progress)
        check_data(config, data)
        check_models(run, data, strategy)
        check_effects(config, data)
    except TfCausalError:
        # Nothing has been done yet: the corrected command can have the same name.
        if not any(run.model_path(name).exists() or run.checkpoints(name) for name in config.models):
            run.discard()
        raise
    check_unchanged(data, run.path / "data.json")
    run.add_environment(environment(config.seed))
    train(run, data, progress, strategy)
    metrics = _evaluate(run, data, progress)
    run.write_metrics(metrics)
    if config.effects is not None:
        measure_models(run, data, config.effects, list(config.models), run.path, progress, say=progress.say)
    write_report(run)
    return metrics


def _evaluate(run: RunDirectory, data: DataSet, progress: ConsoleProgress) -> dict[str, Any]:
    config = run.config
    results: dict[str, dict[str, SplitResult]] = {}
    splits = {name: data.splits[name] for name in _measured(data)}
    shown = headline_split(data)
    with atomic_path(run.maps_path) as partial:
        maps = zarr.create_group(partial)
        _store_samples(maps, data, shown, config)
        method, batch_size = config.evaluation.saliency, config.evaluation.batch_size
        with progress.task("keeping images", sum(map(len, splits.values()))) as advance:
            for split_name, split in splits.items():
                group = maps.create_group(f"splits/{split_name}")
                write_split(group, split, data.value_range, method, batch_size, advance)
        for name in config.models:
            keras.utils.clear_session()
            model = keras.models.load_model(run.model_path(name), compile=False)
            explainer = get_explainer(config.evaluation.saliency, model)
            deletion = Deletion(model, config.evaluation.deletion_steps, batch_size=config.evaluation.batch_size)
            seen = trained_on(config.models[name], data)
            unseen = {split_name: split for split_name, split in splits.items() if split_name not in seen}
            results[name] = {split_name: _not_measured(split) for split_name, split in splits.items()}
            with progress.task(f"evaluating {name}", sum(map(len, unseen.values()))) as advance:
                for split_name, split in unseen.items():
                    group = maps[f"splits/{split_name}"]
                    writer = MapWriter(group, name, split.image_shape, len(split), batch_size)
                    results[name][split_name] = result = evaluate_classifier(
                        split,
                        explainer,
                        deletion,
                        _some(len(split), config.evaluation.deletion_images, config.seed),
                        batch_size,
                        config.seed,
                        writer,
                        advance,
                    )
                    writer.finish(result.probabilities, result.mask_energy)
    return _metrics(config, data, results)


def _measured(data: DataSet) -> list[str]:
    """The splits that models are measured on: not those that are there to be trained on."""
    return [name for name in data.splits if name not in ("train", "balanced")]


def _not_measured(split: ImageSet) -> SplitResult:
    """The result of a split that a model has been trained on: no image."""
    nothing = np.empty(0)
    probabilities = np.empty((0, len(split.class_names)), np.float32)
    return SplitResult(probabilities, nothing.astype(bool), *[nothing] * 6)


def headline_split(data: DataSet) -> str:
    """The split that the report looks at: the one with shuffled contexts where there is one, else the test split."""
    return "test_shuffled" if "test_shuffled" in data.splits else "test"


def _some(count: int, wanted: int, seed: int) -> np.ndarray:
    """Positions of a seeded choice of images, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def _store_samples(maps: zarr.Group, data: DataSet, shown: str, config: RunConfig) -> None:
    """Keep the images of the report: one of each class in turn, those with a mask first, else in seeded order."""
    split = data.splits[shown]
    order = np.random.default_rng(config.seed).permutation(len(split))
    order = order[np.argsort(~split.has_mask[order], kind="stable")]
    turn = np.zeros(len(split), int)
    for label in np.unique(split.labels):
        members = order[split.labels[order] == label]
        turn[members] = np.arange(len(members))
    indices = order[np.argsort(turn[order], kind="stable")][: config.report.images]
    images, masks = split.read(indices)
    group = maps.create_group("samples")
    group.attrs["value_range"] = list(data.value_range)
    arrays = {"indices": indices, "images": images, "masks": masks, "has_mask": split.has_mask[indices]}
    for name, values in arrays.items():
        group.create_array(name, data=np.ascontiguousarray(values))


def _metrics(config: RunConfig, data: DataSet, results: dict[str, dict[str, SplitResult]]) -> dict[str, Any]:
    headline = headline_split(data)
    models = {}
    for name, splits in results.items():
        groups = group_accuracy(*_groups(data, splits), config.evaluation.minimum_group_size)
        models[name] = {
            "method": config.models[name].method,
            "trained_on": trained_on(config.models[name], data),
            "training_masks": int(training_split(config, config.models[name], data).has_mask.sum()),
            "splits": {split: _split_metrics(result, config.seed) for split, result in splits.items()},
            "groups": {group: accuracy.as_dict() for group, accuracy in groups.groups.items()},
            "worst_group": {"name": groups.worst_name, **groups.worst.as_dict()},
        }
    contexts = data.splits[headline].context_agrees is not None
    return {
        "tfcausal": __version__,
        "data": {**summarise(data), "value_range": list(data.value_range)},
        "headline_split": headline,
        "group_attributes": ["class", "context"] if contexts else ["class"],
        "group_splits": _test_splits(data),
        "minimum_group_size": config.evaluation.minimum_group_size,
        "model_names": list(config.models),
        "split_names": _measured(data),
        "models": models,
    }


def _split_metrics(result: SplitResult, seed: int) -> dict[str, Any]:
    return {
        "accuracy": proportion(result.correct).as_dict(),
        "mask_energy": mean(result.mask_energy, seed).as_dict(),
        "mask_energy_chance": mean(result.mask_area, seed).as_dict(),
        "deletion": mean(result.deletion, seed).as_dict(),
        "deletion_random": mean(result.deletion_random, seed).as_dict(),
        "deletion_curve": result.deletion_curve.tolist(),
        "deletion_random_curve": result.deletion_random_curve.tolist(),
    }


def _test_splits(data: DataSet) -> list[str]:
    return [name for name in data.splits if name.startswith("test")]


def _groups(data: DataSet, results: dict[str, SplitResult]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Correctness and attributes of all test images: the class, and whether the context agrees with it if known."""
    names = _test_splits(data)
    correct = np.concatenate([results[name].correct for name in names])
    splits = [data.splits[name] for name in names]
    attributes = {"class": np.concatenate([np.asarray(split.class_names)[split.labels] for split in splits])}
    agrees = [split.context_agrees for split in splits]
    if all(values is not None for values in agrees):
        joined = np.concatenate([values for values in agrees if values is not None])
        attributes["context"] = np.where(joined, "agrees", "conflicts")
    return correct, attributes


def make_deterministic() -> None:
    """Have TensorFlow repeat itself exactly in this process, so that a resumed run equals an unbroken one."""
    tf.config.experimental.enable_op_determinism()
    if "TF_CONFIG" not in os.environ:  # workers must find each other before TensorFlow looks at its devices
        tf.config.list_logical_devices()  # the start-up messages of the devices come now
