"""Many images explained block by block: what `tfcausal explain --engine` does.

<output>/
  job.json                  what is done to which images, with which versions
  explanations.parquet/     a row per image, a file per block
  maps.zarr                 the maps, float32 (images, height, width, channels), a chunk per block
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from tfcausal.data.decoding import refuse_decompression_bombs
from tfcausal.environment import hash_of
from tfcausal.errors import DataError, InvalidArgument
from tfcausal.explain import ImageExplainer, Settings
from tfcausal.models.inputs import read_content
from tfcausal.progress import ConsoleProgress
from tfcausal.saliency.base import reduced
from tfcausal.saliency.registry import find_explainer
from tfcausal.scale.block_store import BlockStore, Outcome, make_array
from tfcausal.scale.blocks import Block, block_size
from tfcausal.scale.contents import Content, Reader
from tfcausal.scale.engine import LOCAL, Engine
from tfcausal.scale.job import Job, do_job
from tfcausal.scale.open_images import check_apart, open_images

ROWS, MAPS = "explanations.parquet", "maps.zarr"
_DESCRIPTION = (
    f"Saliency maps (image, height, width, channel), signed, not normalised; the rows of {ROWS} by their column "
    "position. NaN: not explained (column error), or not yet."
)


def explain_many(
    source: Path,
    images: Sequence[str],
    output: Path,
    settings: Settings,
    progress: ConsoleProgress,
    engine: Engine = LOCAL,
    block: int | None = None,
    column: str | None = None,
    model_name: str | None = None,
) -> Outcome:
    """Explain many images, or go on where an earlier call was interrupted.

    Everything but the images is checked before anything is written. Images that cannot be read are told in the rows.

    Args:
        source: A run directory, or a model file (.keras, .h5).
        images: Image files and folders of them, or parquet files; paths, or addresses such as `s3://bucket/images`.
        output: The folder to write to; what is written stands at the head of this module.
        settings: How images are explained.
        progress: Where to show how far it is, and to say what was chosen and what happened.
        engine: Where it is done. The results do not depend on it.
        block: Images that are finished together, or not at all; None chooses by the size of the maps.
        column: The column of parquet files with the images.
        model_name: Which model of a run; may be None where there is only one.

    Returns:
        What became of the images, those of earlier calls too.

    Raises:
        InvalidArgument: A method, option, class or size that does not go with the model, or no number for a block; or
            an output that is an address, or among the images.
        DataError: There are no images.
        RunError: The run has no such model yet; the folder holds something else; or the work cannot be done.
        UnsupportedOperation: The method does not take this model, the model does not take images, or Ray is missing.
    """
    find_explainer(settings.method)
    check_apart(output, images)
    found = open_images(images, column)
    explain = ImageExplainer(source, settings, model_name, progress.say)
    _, _, (example,) = explain(np.full((1, *explain.shape), 0.5, np.float32))  # what fails with all images fails here
    shape = reduced(example, settings.reducer).shape
    size = block_size(block, 4 * math.prod(shape), explain.explainer.batch_size)
    described = {
        **explain.description(),
        "target": settings.target,
        "class_names": explain.loaded.class_names,
        "model_sha256": None if explain.loaded.file is None else hash_of([explain.loaded.file]),
    }
    store = BlockStore(output, ROWS, MAPS)
    make: Callable[[], BlockExplainer] = partial(BlockExplainer, explain, found.reader(), store, shape)
    if engine.name == "ray":
        given = (Path(source).absolute(), replace(settings, overwrite=False), model_name)
        make = partial(_make, *given, found.reader(), store, shape)

    def make_maps(place: Path) -> None:
        names = ("method", "options", "model", "class_names", "reducer", "pixels")
        attributes = {"description": _DESCRIPTION, **{name: described[name] for name in names}}
        make_array(place, (len(found), *shape), size, attributes)

    job = Job(f"explaining ({settings.method})", described, found, images, column, size, make_maps, make)
    return do_job(job, store, progress, engine, settings.overwrite)


class BlockExplainer:
    """Explains blocks of images and writes what comes of it; the worker of an engine.

    The batches depend on the block alone, so that the results do not depend on who explains it.

    Args:
        explain: The model and the method.
        reader: Reads the images.
        store: Where to write.
        shape: (height, width, channels) of a map.
    """

    def __init__(self, explain: ImageExplainer, reader: Reader, store: BlockStore, shape: tuple[int, ...]) -> None:
        self._explain, self._reader, self._store, self._shape = explain, reader, store, shape
        self._schema = schema(explain.answer_name)

    def __call__(self, block: Block) -> None:
        """Explain a block."""
        contents = self._reader(block)
        rows: list[dict[str, Any]] = []
        maps = np.full((len(block), *self._shape), np.nan, np.float32)
        with refuse_decompression_bombs():
            while batch := list(islice(contents, self._explain.explainer.batch_size)):
                position = block.start + len(rows)
                batch_rows = [{"image": content.name, "position": position + n} for n, content in enumerate(batch)]
                self._explain_batch(batch, batch_rows, maps[len(rows) : len(rows) + len(batch)])
                rows += batch_rows
        self._store.write(block, rows, self._schema, {"": maps})

    def _explain_batch(self, batch: Sequence[Content], rows: Sequence[dict[str, Any]], maps: np.ndarray) -> None:
        """Put what comes of images into their rows and maps."""
        pictures: dict[int, np.ndarray] = {}
        for index, content in enumerate(batch):
            try:
                if content.error:
                    raise DataError(content.error)
                pictures[index] = read_content(content.data, self._explain.shape)
            except DataError as error:
                rows[index]["error"] = str(error)
        groups = [list(pictures)]
        while groups:
            group = groups.pop(0)
            if not group:
                continue
            try:
                explained = self._explain(np.stack([pictures[index] for index in group]))
            except InvalidArgument as error:  # the model overflows with one of them
                if len(group) == 1:
                    rows[group[0]]["error"] = str(error)
                else:
                    groups += [[index] for index in group]
                continue
            for index, scores, target, saliency in zip(group, *explained, strict=True):
                rows[index] |= self._explain.answer(scores, int(target), saliency)
                maps[index] = reduced(saliency, self._explain.settings.reducer)


def schema(answer: str) -> pyarrow.Schema:
    """The columns of the rows.

    Args:
        answer: What the model answers with, `probability` or `logit`.
    """
    return pyarrow.schema(
        [
            pyarrow.field("image", pyarrow.string(), nullable=False),
            pyarrow.field("position", pyarrow.int64(), nullable=False),
            ("predicted_class", pyarrow.int32()),
            ("predicted_name", pyarrow.string()),
            (f"predicted_{answer}", pyarrow.float32()),
            ("explained_class", pyarrow.int32()),
            ("explained_name", pyarrow.string()),
            (f"explained_{answer}", pyarrow.float32()),
            ("map_is_zero", pyarrow.bool_()),
            ("error", pyarrow.string()),
        ]
    )


def _make(
    source: Path,
    settings: Settings,
    model_name: str | None,
    reader: Reader,
    store: BlockStore,
    shape: tuple[int, ...],
) -> BlockExplainer:
    return BlockExplainer(ImageExplainer(source, settings, model_name), reader, store, shape)
