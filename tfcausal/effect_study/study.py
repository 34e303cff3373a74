"""One model measured: its concepts, their causal effects, effect maps and detection, step by step, on disk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
import pandas

from tfcausal.atomic import atomic_path, remove, to_json, write_atomic
from tfcausal.callbacks import TrainingProgress
from tfcausal.config import EffectsConfig
from tfcausal.data.pipeline import training_batches
from tfcausal.effect_study.evidence import detected
from tfcausal.effect_study.maps import ShownImages, level_arrays, pixel_arrays
from tfcausal.effect_study.pictures import Pictures
from tfcausal.effect_study.plan import Level, Plan, plan
from tfcausal.effect_study.rows import CLEAN, intervention_name
from tfcausal.effect_study.subject import Subject
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.effects.results import EffectResult
from tfcausal.effects.store import AUTOENCODER, EffectStore, read_json
from tfcausal.effects.table import EFFECTS, Measurement, ParquetTable, as_frame, effect_rows, write_table
from tfcausal.environment import environment
from tfcausal.errors import RunError
from tfcausal.evaluation.statistics import proportion
from tfcausal.progress import ConsoleProgress

Arrays = dict[str, np.ndarray]
_DISTRIBUTION_IMAGES = 512
_BLOCK_BYTES = 1 << 27
_MADE_AGAIN = "Remove it, and it is made again."


def check(subject: Subject, effects: EffectsConfig, root: Path, overwrite: bool = False) -> None:
    """Check that the effects of a model can be measured; writes nothing.

    Args:
        subject: The model and its images.
        effects: What is measured.
        root: A run directory, or a folder of its own.
        overwrite: Whether effects of this model that are there may be thrown away.

    Raises:
        InvalidArgument: Something does not go with the model or the images.
        UnsupportedOperation: The model or an attack that it does not allow, or ART is not installed.
        RunError: There are effects that were measured otherwise.
    """
    store = EffectStore(root, subject.name)
    store.check(_settings(subject, effects), overwrite)
    if overwrite or not store.is_finished:
        plan(subject, effects)


def measure(
    subject: Subject,
    effects: EffectsConfig,
    root: Path,
    progress: ConsoleProgress,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> EffectStore:
    """Measure the effects of a model, or what is left of them to measure.

    Args:
        subject: The model and its images.
        effects: What is measured.
        root: A run directory, or a folder of its own.
        progress: Where to show how far it is.
        overwrite: Whether effects of this model that are there are thrown away.
        say: Called with sentences about what was chosen and found.

    Returns:
        Where the effects are.

    Raises:
        InvalidArgument: Something does not go with the model or the images; before any work starts.
        UnsupportedOperation: The model or an attack that it does not allow, or ART is not installed; likewise.
        RunError: There are effects that were measured otherwise; likewise. Or the folder cannot be written to.
        DataError: An image can no longer be read.
        TrainingDiverged: The loss of an autoencoder is no longer finite.
    """
    store, settings = EffectStore(root, subject.name), _settings(subject, effects)
    store.check(settings, overwrite)
    if store.is_finished and not overwrite:
        say(f"The effects of {subject.name} are measured already: {store.folder}.")
    else:
        study = _Study(plan(subject, effects, say), store, progress, say)
        store.begin(settings, overwrite)
        study.run()
    if store.unfinished.exists():
        Pictures(store).write()
        remove(store.unfinished)
    return store


def _settings(subject: Subject, effects: EffectsConfig) -> dict[str, Any]:
    """What tells one measurement from another."""
    return {**subject.identity, "effects": effects.model_dump()}


def load_concepts(level: Level, folder: Path, remedy: str = _MADE_AGAIN) -> None:
    """Give the concepts of a level what was learnt of them; channels have nothing to learn.

    Args:
        level: The level.
        folder: Where its autoencoder is.
        remedy: What to do about a damaged file.

    Raises:
        RunError: The file is damaged, or not there.
    """
    if isinstance(level.concepts, ConceptAutoencoder):
        path = folder / AUTOENCODER
        with _damage(path, remedy):
            level.concepts.load_weights(path)


class _Study:
    """One measurement, step by step; a step that has left its files is not done again."""

    def __init__(self, chosen: Plan, store: EffectStore, progress: ConsoleProgress, say: Callable[[str], None]) -> None:
        self.plan, self.store, self.progress, self.say = chosen, store, progress, say
        self.subject, self.effects = chosen.subject, chosen.effects
        self.answers = ImageEffects(self.subject.model, self.effects.sign)
        self.shown = ShownImages.of(chosen)

    def run(self) -> None:
        """Do what is left, and put it into the tables of all models."""
        begin = time.perf_counter()
        conditions = self.plan.conditions
        with self.progress.task("intervening on images", len(conditions)) as advance:
            for condition in conditions:
                self.outputs(condition)
                advance(note=condition)
        outputs = {condition: self.outputs(condition) for condition in conditions}
        classes = outputs[CLEAN][self.shown.positions].argmax(axis=1)
        tables = [self._image_rows()]
        arrays: dict[str, Arrays] = {}
        for level in self.plan.levels:
            rows, arrays[level.layer] = self._level(level, classes)
            tables.append(rows)
        if self.plan.pixel_effects is not None:
            arrays[""] = self._kept("pixel_maps", lambda: self._pixel_arrays(classes))
        detection, curves = detected(self.plan, outputs, arrays)
        shown = {name: self.images(name)[self.shown.positions] for name in conditions}
        self.shown.write(self.store, self.plan, shown, outputs, arrays)
        findings = {**self._findings(outputs), "roc": curves, "seconds": time.perf_counter() - begin}
        self.store.finish({"effects.parquet": tables, "detection.parquet": [detection]}, findings)

    def images(self, condition: str) -> np.ndarray:
        """The images under an intervention, made once and kept until all is measured: a file, read where it is used."""
        path = self.store.unfinished / "images" / f"{condition}.npy"
        if not path.exists():
            count, shape = len(self.subject.measured), self.subject.measured.image_shape
            size = max(1, _BLOCK_BYTES // (4 * prod(shape)))
            with atomic_path(path) as partial:
                written = np.lib.format.open_memmap(partial, "w+", np.float32, (count, *shape))
                for start in range(0, count, size):
                    positions = np.arange(start, min(start + size, count))
                    written[positions] = self._changed(condition, positions)
                written.flush()
                del written
        with _damage(path):
            return np.load(path, mmap_mode="r")

    def outputs(self, condition: str) -> np.ndarray:
        """The answers to the images under an intervention, (N, classes)."""

        def answers() -> Arrays:
            return {"outputs": self.answers.answers(self.images(condition))[1]}

        return self._kept(f"outputs/{condition}", answers)["outputs"]

    def _changed(self, condition: str, positions: np.ndarray) -> np.ndarray:
        """Some of the images under an intervention."""
        if condition == CLEAN:
            return self.subject.measured.read(positions)[0]
        split, masks = self.subject.measured, None
        if condition == "evidence":
            masks = split.read(positions)[1] * split.has_mask[positions][:, None, None, None]
        return self.plan.changed(condition, self.images(CLEAN)[positions], int(positions[0]), masks)

    def _image_rows(self) -> pandas.DataFrame:
        """Effects of the interventions on the images themselves."""
        path = self.store.unfinished / "images.parquet"
        if not path.exists():
            frames = []
            for condition in self.plan.conditions[1:]:
                result = self.answers(self.images(condition), self.images(CLEAN), self.effects.scale)
                frames += self._rows(result, None, condition)
            write_table(path, EFFECTS, _joined(frames))
        return ParquetTable(path).read()

    def _level(self, level: Level, classes: np.ndarray) -> tuple[pandas.DataFrame, Arrays]:
        """Effects of the concepts of a level, and all else that needs its autoencoder."""
        folder = self.store.level(level.layer)
        path = folder / "effects.parquet"

        def measured() -> Arrays:
            self._train(level, folder)
            effects = ConceptEffects(level.concepts, self.effects.reference, self.effects.sign)
            weighted = self.plan.concept_maps(level)
            frames: list[pandas.DataFrame] = []
            arrays: Arrays = {}
            with self.progress.task(f"effects, {level.layer}", len(self.plan.conditions)) as advance:
                for condition in self.plan.conditions:
                    images = self.images(condition)
                    with _unfaithful_said_once():
                        result = self.plan.concept_effects(effects, images, level.nodes, self._distribution_images)
                        frames += self._rows(result, level.layer, intervention_name(result.intervention, condition))
                        nodes = _strongest(frames[0], self.plan.shown_nodes)
                        arrays |= level_arrays(
                            self.plan, level, condition, images, result, self.shown, classes, nodes, weighted
                        )
                    advance(note=condition)
            write_table(path, EFFECTS, _joined(frames))
            return arrays

        name = f"levels/{folder.name}"
        if not path.exists():
            remove(self._place(name))
        arrays = self._kept(name, measured)
        return ParquetTable(path).read(), arrays

    @cached_property
    def _distribution_images(self) -> np.ndarray | None:
        """Training images that values of concepts are taken from: the same intervention whatever the images are."""
        if self.effects.values == "zero" or isinstance(self.effects.values, float):
            return None
        training = self.subject.training
        return training.read(np.arange(min(len(training), _DISTRIBUTION_IMAGES)))[0]

    def _train(self, level: Level, folder: Path) -> None:
        """Train the autoencoder of a level, or load the one that is there, and say how faithful it is."""
        settings, autoencoder = self.effects.autoencoder, level.concepts
        if settings is None or not isinstance(autoencoder, ConceptAutoencoder):
            return
        path = folder / AUTOENCODER
        if path.exists():
            load_concepts(level, folder)
        else:
            split = self.subject.training
            size = min(settings.batch_size, len(split))
            batches, steps = training_batches(split, size, settings.epochs, self.subject.seed)
            rate: Any = settings.learning_rate
            if settings.learning_rate_schedule == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(rate, steps * settings.epochs)
            autoencoder.compile(keras.optimizers.Adam(rate))
            with self.progress.task(f"autoencoder, {level.layer}", steps * settings.epochs) as advance:
                autoencoder.fit(
                    batches,
                    epochs=settings.epochs,
                    steps_per_epoch=steps,
                    shuffle=False,
                    verbose=0,
                    callbacks=[TrainingProgress(advance, settings.epochs)],
                )
            with atomic_path(path) as partial:
                autoencoder.save(partial)
        agreement = autoencoder.agreement(self.images(CLEAN), seed=self.subject.seed)
        content = {**agreement.as_dict(), "text": agreement.text, "trained_with": len(self.subject.training)}
        write_atomic(folder / "agreement.json", to_json(content))
        self.say(f"{level.layer}: {agreement.text}")

    def _rows(self, result: EffectResult, level: str | None, intervention: str) -> list[pandas.DataFrame]:
        """The rows of one result: of the expectation over the values, and of each value where there are several."""
        weighting, seed, resamples = self.effects.weighting, self.subject.seed, self.effects.resamples
        measurement = Measurement(
            self.subject.name, level, intervention, result.reference, result.sign, weighting, result.scale
        )
        kept = self.plan.kept(result)
        several = kept.intervened.shape[2] > 1 and kept.intervention != "sampled"
        return [
            effect_rows(kept.summary(weighting, expected, seed, resamples), measurement, self.subject.class_names)
            for expected in ((True, False) if several else (True,))
        ]

    def _pixel_arrays(self, classes: np.ndarray) -> Arrays:
        arrays: Arrays = {}
        with self.progress.task("pixel-wise maps", len(self.plan.conditions)) as advance:
            for condition in self.plan.conditions:
                arrays |= pixel_arrays(self.plan, condition, self.images(condition), self.shown, classes)
                advance(note=condition)
        return arrays

    def _findings(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """What the report says in words: how faithful the autoencoders are, which attacks succeed."""
        levels = []
        for level in self.plan.levels:
            folder = self.store.level(level.layer)
            path = folder / "agreement.json"
            levels.append(
                {
                    "layer": level.layer,
                    "folder": folder.name,
                    "concepts": level.concepts.concepts,
                    "nodes": list(level.nodes),
                    "agreement": read_json(path) if path.exists() else None,
                }
            )
        return {
            "model": self.subject.name,
            "source": self.subject.source,
            "n": len(outputs[CLEAN]),
            "conditions": list(self.plan.conditions),
            "changed_answers": {
                condition: proportion(self.plan.changed_answers(outputs, condition)).as_dict()
                for condition in self.plan.conditions[1:]
            },
            "never_predicted": [self.plan.class_name(index) for index in self.plan.never_predicted(outputs[CLEAN])],
            "levels": levels,
            "effects": self.effects.model_dump(),
            "seed": self.subject.seed,
            "versions": environment(self.subject.seed)["versions"],
        }

    def _place(self, name: str) -> Path:
        return self.store.unfinished / f"{name}.npz"

    def _kept(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Arrays that are made once and kept in a file until everything is measured."""
        path = self._place(name)
        if not path.exists():
            made = make()
            with atomic_path(path) as partial:
                np.savez(partial, allow_pickle=False, **made)
        with _damage(path), np.load(path) as stored:
            return {key: stored[key] for key in stored.files}


@contextmanager
def _damage(path: Path, remedy: str = _MADE_AGAIN) -> Iterator[None]:
    """Name a file of ours that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: the file is damaged ({reason}). {remedy}") from error


def _strongest(rows: pandas.DataFrame, count: int) -> list[int]:
    """The nodes with the largest effects on any class, the largest first."""
    return (
        rows["effect"]
        .abs()
        .groupby(rows["node"])
        .max()
        .sort_values(ascending=False, kind="stable")
        .index[:count]
        .tolist()
    )


def _joined(frames: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    if not frames:
        return as_frame(EFFECTS, {name: [] for name in EFFECTS.names})
    return pandas.concat(frames, ignore_index=True)


@contextmanager
def _unfaithful_said_once() -> Iterator[None]:
    """Without the warning of every measurement that the autoencoder changes the answers, which was said in training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
