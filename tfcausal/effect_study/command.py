"""The work behind `tfcausal effects` and behind the section `effects` of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from tfcausal.config import DFRConfig, EffectsConfig, RunConfig
from tfcausal.data.image_set import DataSet
from tfcausal.data.loading import check_unchanged, load_data
from tfcausal.effect_study.plan import plan
from tfcausal.effect_study.request import Request
from tfcausal.effect_study.study import check, measure
from tfcausal.effect_study.subject import Subject, measured_and_training, of_files, of_run, seed_of
from tfcausal.effects.store import EffectStore
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.models.building import build_model
from tfcausal.progress import ConsoleProgress
from tfcausal.report import write_report
from tfcausal.runs import RunDirectory

Say = Callable[[str], None]


def measure_effects(
    request: Request, effects: EffectsConfig, progress: ConsoleProgress, say: Say = lambda text: None
) -> list[EffectStore]:
    """Measure effects as `tfcausal effects` does, or what is left of them to measure.

    Args:
        request: What the user asks for.
        effects: What is measured, from :func:`tfcausal.effect_study.request.settings`.
        progress: Where to show how far it is.
        say: Called with sentences about what was chosen and found.

    Returns:
        Where the effects of every model are.

    Raises:
        InvalidArgument: Something does not go with the model or the images.
        DataError: An image cannot be used.
        RunError: A model is not trained, or there are effects that were measured otherwise.
        UnsupportedOperation: The model or an attack that it does not allow, or ART is not installed.
    """
    if request.of_run:
        return _measure_run(request, effects, progress, say)
    subject = of_files(
        request.source, request.images, effects, request.model, request.pixels, request.size, progress, say
    )
    root = request.output or Path("effects", subject.name)
    return [measure(subject, effects, root, progress, request.overwrite, say)]


def _measure_run(request: Request, effects: EffectsConfig, progress: ConsoleProgress, say: Say) -> list[EffectStore]:
    run, names = RunDirectory.open(request.source), request.models()
    data = load_data(run.config, progress)
    check_unchanged(data, run.path / "data.json")
    root = request.output or run.path
    with run.lock():
        if len(names) > 1:  # the last model is to be found wanting before the first is measured, not after
            for name in names:
                check(_subject(run, data, effects, name), effects, root, request.overwrite)
        stores = measure_models(run, data, effects, names, root, progress, request.overwrite, say)
        if root == run.path and run.status.state == "complete":
            write_report(run)
    return stores


def measure_models(
    run: RunDirectory,
    data: DataSet,
    effects: EffectsConfig,
    names: Sequence[str],
    root: Path,
    progress: ConsoleProgress,
    overwrite: bool = False,
    say: Say = lambda text: None,
) -> list[EffectStore]:
    """Measure the effects of models of a run, one after the other.

    Args:
        run: The run directory, locked.
        data: Its data set.
        effects: What is measured.
        names: The models.
        root: The folder to write to.
        progress: Where to show how far it is.
        overwrite: Whether effects that are there may be replaced.
        say: Called with sentences about what was chosen and found.

    Returns:
        Where the effects of every model are.

    Raises:
        TfCausalError: As for :func:`measure_effects`.
    """
    return [
        measure(_subject(run, data, effects, name), effects, root, progress, overwrite, _about(name, say))
        for name in names
    ]


def check_effects(config: RunConfig, data: DataSet, steps_per_epoch: int = 1) -> None:
    """Check, before anything is trained, that the effects of a configuration can be measured.

    Args:
        config: The configuration.
        data: The data set.
        steps_per_epoch: Of the training; any number will do.

    Raises:
        TfCausalError: As for :func:`tfcausal.effect_study.plan.plan`; the message begins with the model's key.
    """
    effects = config.effects
    if effects is None:
        return
    seed = seed_of(effects, config.seed)
    measured, training = measured_and_training(data, effects, seed)
    for name, model in config.models.items():
        if isinstance(model, DFRConfig):
            continue  # has the layers of another model
        keras.utils.clear_session()
        network = build_model(config, model, data, steps_per_epoch)
        names = measured.class_names
        subject = Subject(name, name, network, data.value_range, names, measured, training, seed, {})
        try:
            plan(subject, effects)
        except (InvalidArgument, RunError) as error:
            raise type(error)(f"models.{name} (method: {model.method}): {error}") from error
    keras.utils.clear_session()


def _subject(run: RunDirectory, data: DataSet, effects: EffectsConfig, name: str) -> Subject:
    keras.utils.clear_session()
    return of_run(run, data, effects, name)


def _about(name: str, say: Say) -> Say:
    return lambda text: say(f"{name}: {text}")
