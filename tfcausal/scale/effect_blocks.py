"""Effects on many images, measured block by block: what `tfcausal effects --engine` does.

<output>/
  job.json            what is measured on which images, with which versions
  answers.parquet/    a row per image: the answers to it as it is, masked and attacked; a file per block
  effects.zarr        the effects image by image: an array (images, nodes, classes) per level and intervention
  tallies/            what the table is made of, a file per block
  effects.parquet     the table of effects, as of `tfcausal effects` without an engine, once all blocks are there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow

from tfcausal.data.decoding import refuse_decompression_bombs
from tfcausal.effect_study.rows import CLEAN
from tfcausal.effects.table import EFFECTS, effect_rows, write_table
from tfcausal.errors import DataError, InvalidArgument
from tfcausal.models.inputs import read_content
from tfcausal.progress import ConsoleProgress
from tfcausal.scale.block_store import BlockStore, Outcome, make_array
from tfcausal.scale.blocks import Block, block_size
from tfcausal.scale.contents import Reader
from tfcausal.scale.effect_measurer import EffectMeasurer, Measured, Study, array_names
from tfcausal.scale.effect_tallies import Tally
from tfcausal.scale.engine import LOCAL, Engine
from tfcausal.scale.job import Job, do_job
from tfcausal.scale.open_images import check_apart, open_images

ROWS, ARRAYS, TALLIES, TABLE = "answers.parquet", "effects.zarr", "tallies", "effects.parquet"
Found = dict[tuple[str | None, str], Measured]


def measure_many(
    study: Study,
    images: Sequence[str],
    output: Path,
    progress: ConsoleProgress,
    engine: Engine = LOCAL,
    block: int | None = None,
    column: str | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Measure effects on many images with concepts that were found before, or go on where a call was interrupted.

    Everything but the images is checked before anything is written. Images that cannot be read are told in the rows.
    The intervals of the table are by the normal approximation, as all images are never in memory.

    Args:
        study: What is measured.
        images: Image files and folders of them, or parquet files; paths, or addresses such as `s3://bucket/images`.
        output: The folder to write to; what is written stands at the head of this module.
        progress: Where to show how far it is.
        engine: Where blocks are done.
        block: Images of a block; None chooses by the size of what is measured in one.
        column: The column of parquet files with the images.
        overwrite: Whether an earlier measurement with other settings may be thrown away.

    Returns:
        What became of the images.

    Raises:
        InvalidArgument: As for :class:`EffectMeasurer`; or an engine, block, address or column that there is not; or an
            output that is an address, or among the images.
        DataError: There are no images.
        RunError: As for :class:`EffectMeasurer`; or the folder holds something else; or the work cannot be done.
        UnsupportedOperation: As for :class:`EffectMeasurer`; or Ray is missing.
    """
    check_apart(output, images)
    found_images = open_images(images, column)
    measure = EffectMeasurer(study)
    grey = np.full((1, *measure.shape), 0.5, np.float32)
    _, trial = measure(measure.changed(grey))  # what fails with all images fails here
    names = array_names(trial)
    shapes = {names[key]: measured.effects.shape[1:] for key, measured in trial.items()}
    of_image = sum(one.effects.nbytes + one.result.nbytes for one in trial.values())
    of_image += grey.nbytes * (2 + 2 * len(measure.plan.conditions))
    size = block_size(block, of_image, largest_array=max(4 * prod(shape) for shape in shapes.values()))
    store = BlockStore(output, ROWS, ARRAYS, TALLIES, (TABLE,))
    make: Callable[[], BlockMeasurer] = partial(BlockMeasurer, measure, found_images.reader(), store, shapes)
    if engine.name == "ray":
        own = replace(study, source=study.source.absolute(), concepts=study.concepts.absolute())
        make = partial(_make, own, found_images.reader(), store, shapes)

    def make_arrays(place: Path) -> None:
        for key, name in names.items():
            attributes = _attributes(measure, *key, trial[key])
            make_array(place, (len(found_images), *shapes[name]), size, attributes, name)

    job = Job("measuring effects", measure.description(), found_images, images, column, size, make_arrays, make)
    return do_job(job, store, progress, engine, overwrite, lambda: _write_table(store, measure, trial))


class BlockMeasurer:
    """Measures effects in blocks of images and writes what comes of it; the worker of an engine.

    Args:
        measure: The model, its concepts and the settings.
        reader: Reads the images.
        store: Where to write.
        shapes: Of the effects in an image, (nodes, classes), by the name of their array.
    """

    def __init__(
        self, measure: EffectMeasurer, reader: Reader, store: BlockStore, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._measure, self._reader, self._store, self._shapes = measure, reader, store, shapes
        self._schema = schema(measure.plan.conditions, measure.answer_name)

    def __call__(self, block: Block) -> None:
        """Measure the effects in a block."""
        rows: list[dict[str, Any]] = []
        # What could not be read is grey: masks and random starts of the others do not depend on it.
        pictures = np.full((len(block), *self._measure.shape), 0.5, np.float32)
        with refuse_decompression_bombs():
            for index, content in enumerate(self._reader(block)):
                rows.append({"image": content.name, "position": block.start + index})
                try:
                    if content.error:
                        raise DataError(content.error)
                    pictures[index] = read_content(content.data, self._measure.shape)
                except DataError as error:
                    rows[index]["error"] = str(error)
        readable = [index for index, row in enumerate(rows) if "error" not in row]
        changed = self._measure.changed(pictures, block.start) if readable else {}
        parts = list(self._measured(readable, changed, rows))
        self._store.write(block, rows, self._schema, *self._joined(parts, len(block)))

    def _measured(
        self, positions: list[int], changed: Mapping[str, np.ndarray], rows: list[dict[str, Any]]
    ) -> Iterator[tuple[list[int], Found]]:
        """Effects in images, all together; in ever smaller parts, where the model overflows with one of them."""
        if not positions:
            return
        try:
            answers, found = self._measure({name: images[positions] for name, images in changed.items()})
        except InvalidArgument as error:
            if len(positions) == 1:
                rows[positions[0]]["error"] = str(error)
                return
            middle = len(positions) // 2
            for part in (positions[:middle], positions[middle:]):
                yield from self._measured(part, changed, rows)
            return
        differs = {name: self._measure.plan.changed_answers(answers, name) for name in answers if name != CLEAN}
        for index, position in enumerate(positions):
            rows[position] |= self._told({name: scores[index] for name, scores in answers.items()})
            rows[position] |= {f"{name}_changed": bool(values[index]) for name, values in differs.items()}
        yield positions, found

    def _joined(
        self, parts: Sequence[tuple[list[int], Found]], count: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The effects in a block by the names of their arrays, NaN where there are none; and their tallies."""
        effects = {name: np.full((count, *shape), np.nan, np.float32) for name, shape in self._shapes.items()}
        tallies: dict[str, np.ndarray] = {}
        positions = [position for measured, _ in parts for position in measured]
        for key, name in array_names(parts[0][1] if parts else {}).items():
            every = [found[key] for _, found in parts]
            own = np.concatenate([one.effects for one in every])
            effects[name][positions] = own
            tallies |= Tally.of(own, [one.result for one in every]).arrays(name)
        return effects, tallies

    def _told(self, answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What is told of one image: its answers."""
        names = self._measure.class_names
        told: dict[str, Any] = {}
        for condition, scores in answers.items():
            role, index = "predicted" if condition == CLEAN else condition, int(scores.argmax())
            told[f"{role}_class"] = index
            told[f"{role}_name"] = None if names is None else names[index]
            told[f"{role}_{self._measure.answer_name}"] = float(scores[index])
        return told


def schema(conditions: Sequence[str], answer: str) -> pyarrow.Schema:
    """The columns of the rows.

    Args:
        conditions: The interventions on the images, `clean` for none.
        answer: What the model answers with, `probability` or `logit`.
    """
    fields: list[Any] = [
        pyarrow.field("image", pyarrow.string(), nullable=False),
        pyarrow.field("position", pyarrow.int64(), nullable=False),
    ]
    for condition in conditions:
        role = "predicted" if condition == CLEAN else condition
        fields += [
            (f"{role}_class", pyarrow.int32()),
            (f"{role}_name", pyarrow.string()),
            (f"{role}_{answer}", pyarrow.float32()),
            *([] if condition == CLEAN else [(f"{role}_changed", pyarrow.bool_())]),
        ]
    return pyarrow.schema([*fields, ("error", pyarrow.string())])


def _attributes(measure: EffectMeasurer, level: str | None, intervention: str, one: Measured) -> dict[str, Any]:
    """What an array of effects says of itself."""
    effects, names = measure.plan.effects, measure.class_names
    return {
        "description": "Effects (image, node, class); the rows of answers.parquet by their column position. NaN: not "
        "measured (column error), or not yet.",
        "level": level,
        "intervention": intervention,
        "nodes": list(one.result.nodes),
        "classes": one.classes.tolist(),
        "class_names": None if names is None else list(names),
        **{name: getattr(effects, name) for name in ("reference", "sign", "weighting", "scale")},
    }


def _make(study: Study, reader: Reader, store: BlockStore, shapes: Mapping[str, tuple[int, ...]]) -> BlockMeasurer:
    return BlockMeasurer(EffectMeasurer(study), reader, store, shapes)


def _write_table(store: BlockStore, measure: EffectMeasurer, trial: Found) -> None:
    """The table of effects, from the tallies of all blocks; no table where no image could be measured."""
    totals: dict[str, Tally] = {}
    names = array_names(trial)
    for stored in store.stored_tallies():
        for name in names.values():
            own = Tally.from_arrays(name, stored)
            if own is not None:
                totals[name] = totals[name] + own if name in totals else own
    frames = []
    for key, name in names.items():
        if name in totals:
            one = trial[key]
            summary = totals[name].summary(one.result, one.values, one.classes)
            frames.append(effect_rows(summary, measure.measurement(*key, one.result), measure.class_names))
    if frames:
        write_table(store.folder / TABLE, EFFECTS, pandas.concat(frames, ignore_index=True))
