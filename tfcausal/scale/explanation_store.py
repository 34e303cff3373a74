"""Where explanations of many images lie, and which blocks of them are there already.

    <folder>/
      job.json                  what is done to which images, with which versions
      explanations.parquet/     a row per image, a file per block: part-000000.parquet, ...
      maps.zarr                 the maps, float32 (images, height, width, channels), a chunk per block

A block's maps are written before its rows, and each file is there whole or not at all: a block whose rows are there is
finished, and any other is done from the beginning. The map of an image that could not be explained is NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet

from tfcausal.atomic import PARTIAL_PREFIX, atomic_path, cannot_write, folder_lock, remove, to_json, write_atomic
from tfcausal.errors import RunError

if TYPE_CHECKING:
    from tfcausal.scale.blocks import Block

JOB, ROWS, MAPS = "job.json", "explanations.parquet", "maps.zarr"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_AGAIN = "Write to another folder: --output OTHER, or begin anew: --overwrite."
_FACTS = ("versions", "model", "source")
"""What of a job may differ when it goes on, or is compared by itself: the model is known by its hash."""


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


@dataclass(frozen=True)
class Outcome:
    """What became of the images.

    Attributes:
        explained: How many were explained.
        failed: How many could not be.
        first: Names of some of the latter, and why.
    """

    explained: int
    failed: int
    first: tuple[tuple[str, str], ...]


class ExplanationStore:
    """Explanations of many images on disk; picklable, for the processes that write blocks.

    Args:
        folder: Where they are, or are to be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()

    def check(self, job: Mapping[str, Any], overwrite: bool) -> None:
        """Whether a job can be begun here, or gone on with; writes nothing.

        Args:
            job: What is done, for JSON; `block` is the number of images of a block, `source` tells the images.
            overwrite: Whether what is there may be thrown away.

        Raises:
            RunError: There is another job, or something else, and it may not be thrown away.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: expected a folder to write to; received a file. Choose another: --output.")
        if overwrite or not self.folder.exists():
            return
        path = self.folder / JOB
        if not path.exists():
            others = sorted(item.name for item in self.folder.iterdir() if not item.name.startswith("."))
            if others:
                received = ", ".join(others[:3])
                raise RunError(
                    f"{self.folder}: expected an empty folder, or {JOB} in it; received {received}. {_AGAIN}"
                )
            return
        try:
            kept = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: expected JSON; it cannot be read ({error}). {_AGAIN}") from None
        now = json.loads(to_json(job))
        before, after = ({**values.get("source", {})} for values in (kept, now))
        if any(before.get(name) != after[name] for name in after if name != "places"):
            raise RunError(
                f"{self.folder} was begun with other images: {_images(before)}; received {_images(after)}. Files were "
                f"added, removed or changed, or others are named. {_AGAIN}"
            )
        changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name) and name not in _FACTS]
        if changed:
            differences = "; ".join(f"{name}: {kept.get(name)!r}, now {now.get(name)!r}" for name in changed)
            raise RunError(f"{self.folder} was begun with other settings ({differences}). {_AGAIN}")

    @contextmanager
    def begin(self, job: Mapping[str, Any], shape: Sequence[int], overwrite: bool) -> Iterator[set[int]]:
        """Hold the folder for a job: begin it, or go on with it. What was left half-written is removed.

        Args:
            job: As for :meth:`check`.
            shape: Of the maps: (images, height, width, channels).
            overwrite: Whether what is there is thrown away.

        Yields:
            The blocks that are finished.

        Raises:
            RunError: As for :meth:`check`; another process holds the folder; or it cannot be written.
        """
        self.check(job, overwrite)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        with folder_lock(self.folder):
            self.check(job, overwrite)
            if overwrite:
                for name in (ROWS, MAPS, JOB):  # a job without rows has finished nothing
                    remove(self.folder / name)
            self._remove_leftovers()
            if not (self.folder / JOB).exists():
                write_atomic(self.folder / JOB, to_json(job))
            finished = self._finished()
            if not (self.folder / MAPS).exists():
                if finished:
                    raise RunError(f"{self.folder} has lost its {MAPS}, but not its {ROWS}. {_AGAIN}")
                self._make_maps(job, shape)
            yield finished

    def write(self, block: Block, rows: Sequence[Mapping[str, Any]], maps: np.ndarray, columns: pyarrow.Schema) -> None:
        """Write a block; what an earlier attempt has written of it is replaced.

        Args:
            block: The block.
            rows: One for each of its images.
            maps: Their maps, NaN where there is none.
            columns: From :func:`schema`.

        Raises:
            RunError: It cannot be written.
        """
        import zarr

        try:
            zarr.open_array(self.folder / MAPS, mode="r+")[block.start : block.stop] = maps
        except FileNotFoundError:
            raise RunError(f"{self.folder / MAPS} is gone, or not to be reached from where a worker runs.") from None
        except OSError as error:
            raise cannot_write(self.folder / MAPS, error) from error
        table = pyarrow.Table.from_pylist(list(rows), columns)
        with atomic_path(self.folder / ROWS / f"part-{block.index:06d}.parquet") as partial:
            try:
                pyarrow.parquet.write_table(table, partial)
            except OSError as error:
                raise cannot_write(self.folder / ROWS, error) from error

    def outcome(self, names: int = 5) -> Outcome:
        """What became of the images, from all rows.

        Args:
            names: How many of the failed images are named at most.
        """
        rows = pyarrow.dataset.dataset(self.folder / ROWS, format="parquet")
        failed = pyarrow.dataset.field("error").is_valid()
        count = rows.count_rows(filter=failed)
        first = rows.head(names, columns=["image", "error"], filter=failed).to_pylist() if count else []
        return Outcome(rows.count_rows() - count, count, tuple((row["image"], row["error"]) for row in first))

    def _finished(self) -> set[int]:
        folder = self.folder / ROWS
        found = (_PART.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
        return {int(match[1]) for match in found if match}

    def _remove_leftovers(self) -> None:
        """Remove what was half-written; `.partial` is how zarr calls it."""
        for folder, pattern in (
            (self.folder, f"{PARTIAL_PREFIX}*"),
            (self.folder / ROWS, f"{PARTIAL_PREFIX}*"),
            (self.folder / MAPS, "*.partial"),
        ):
            for path in folder.glob(pattern):
                remove(path)

    def _make_maps(self, job: Mapping[str, Any], shape: Sequence[int]) -> None:
        import zarr
        import zarr.codecs

        with atomic_path(self.folder / MAPS) as partial:
            zarr.create_array(
                partial,
                shape=tuple(shape),
                chunks=(min(job["block"], shape[0]), *shape[1:]),
                dtype="float32",
                fill_value=np.nan,
                compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
                chunk_key_encoding={"name": "default", "separator": "."},  # one folder, a file per block
                attributes={
                    "description": "Saliency maps (image, height, width, channel), signed, not normalised; the rows of "
                    f"{ROWS} by their column position. NaN: not explained (column error), or not yet.",
                    **{name: job[name] for name in ("method", "options", "model", "class_names", "reducer", "pixels")},
                },
            )


def _images(source: Mapping[str, Any]) -> str:
    return f"{source.get('images')} of {', '.join(source.get('places', ()))}"
