"""Where the results of many images lie, and which blocks of them are there already.

    <folder>/
      job.json       what is done to which images, with which versions
      <rows>/        a row per image, a parquet file per block: part-000000.parquet, ...
      <arrays>       numbers, float32 (images, ...): a zarr array, or a group of some, with a chunk per block
      <tallies>/     where there are some, numbers of a block as a whole: part-000000.npz, ...

A block's rows are written last, and each file is there whole or not at all: a block whose rows are there is finished,
and any other is done from the beginning. What could not be computed of an image is NaN.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet

from tfcausal.atomic import PARTIAL_PREFIX, atomic_path, cannot_write, folder_lock, remove, to_json, write_atomic
from tfcausal.errors import RunError

if TYPE_CHECKING:
    from tfcausal.scale.blocks import Block

JOB = "job.json"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_AGAIN = "Write to another folder: --output OTHER, or begin anew: --overwrite."
_MOST_LETTERS = 120
_FACTS = ("versions", "model", "source")
"""What of a job may differ when it goes on, or is compared by itself: the model is known by its hash."""


@dataclass(frozen=True)
class Outcome:
    """What became of the images.

    Attributes:
        done: How many there are results of.
        failed: How many there are not.
        first: Names of some of the latter, and why.
    """

    done: int
    failed: int
    first: tuple[tuple[str, str], ...]


class BlockStore:
    """Results of many images on disk; picklable, for the processes that write blocks.

    Args:
        folder: Where they are, or are to be.
        rows: Name of the folder of rows.
        arrays: Name of the zarr store.
        tallies: Name of the folder of tallies; None for none.
        results: Names of the files that are made of all blocks at the end.

    Attributes:
        folder: Its absolute path.
        rows: The folder of rows.
        arrays: The zarr store.
        tallies: The folder of tallies, or None.
    """

    def __init__(
        self, folder: Path, rows: str, arrays: str, tallies: str | None = None, results: Sequence[str] = ()
    ) -> None:
        self.folder = Path(folder).absolute()
        self.rows, self.arrays = self.folder / rows, self.folder / arrays
        self.tallies = None if tallies is None else self.folder / tallies
        self._results = [self.folder / name for name in results]

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
        path = self.folder / JOB
        if overwrite:
            ours = [place.name for place in (self.rows, *self._others) if place.exists()]
            if ours and not path.exists():  # a run, for instance: it has tables of the same names
                raise RunError(
                    f"{self.folder}: expected results of this command, with {JOB}, to overwrite; received {ours[0]} "
                    "without it. Write to another folder: --output OTHER."
                )
            return
        if not self.folder.exists():
            return
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
        if not isinstance(kept, dict) or not isinstance(kept.get("source"), dict):
            raise RunError(f"{path}: expected a job of tfcausal; received other JSON. {_AGAIN}")
        now = json.loads(to_json(job))
        before, after = (values["source"] for values in (kept, now))
        if any(before.get(name) != after[name] for name in after if name != "places"):
            raise RunError(
                f"{self.folder} was begun with other images: {_images(before)}; received {_images(after)}. Files were "
                f"added, removed or changed, or others are named. {_AGAIN}"
            )
        changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name) and name not in _FACTS]
        if changed:
            differences = "; ".join(
                f"{name}: {_short(kept.get(name))}, now {_short(now.get(name))}" for name in changed
            )
            raise RunError(f"{self.folder} was begun with other settings ({differences}). {_AGAIN}")

    @contextmanager
    def begin(
        self, job: Mapping[str, Any], make_arrays: Callable[[Path], object], overwrite: bool
    ) -> Iterator[set[int]]:
        """Hold the folder for a job: begin it, or go on with it. What was left half-written is removed.

        Args:
            job: As for :meth:`check`.
            make_arrays: Makes the zarr store at a path, for all images, with NaN in it.
            overwrite: Whether what is there is thrown away.

        Yields:
            The blocks that are finished.

        Raises:
            RunError: As for :meth:`check`; another process holds the folder; or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        with folder_lock(self.folder):
            self.check(job, overwrite)
            if overwrite:
                for path in (self.rows, *self._others, self.folder / JOB):  # a job without rows has finished nothing
                    remove(path)
            self._remove_leftovers()
            if not (self.folder / JOB).exists():
                write_atomic(self.folder / JOB, to_json(job))
            finished = self.finished()
            if finished and not self.arrays.exists():
                lost = f"{self.folder} has lost its {self.arrays.name}, but not its {self.rows.name}."
                raise RunError(f"{lost} {_AGAIN}")
            if not finished:  # what is there holds nothing, and may have been half removed
                with atomic_path(self.arrays) as partial:
                    make_arrays(partial)
            yield finished

    def remove_results(self) -> None:
        """Remove what is made of all blocks: some are to be done."""
        for path in self._results:
            remove(path)

    def write(
        self,
        block: Block,
        rows: Sequence[Mapping[str, Any]],
        columns: pyarrow.Schema,
        arrays: Mapping[str, np.ndarray],
        tallies: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a block; what an earlier attempt has written of it is replaced.

        Args:
            block: The block.
            rows: One for each of its images.
            columns: Their columns.
            arrays: Its part of the arrays by name, `` for the one that is the whole store; NaN where there is nothing.
            tallies: Numbers of the block as a whole, by name.

        Raises:
            RunError: It cannot be written.
        """
        import zarr

        try:
            stored: Any = zarr.open(self.arrays, mode="r+")
            for name, values in arrays.items():
                (stored[name] if name else stored)[block.start : block.stop] = values
                _to_disk(self.arrays / name, f"c.{block.index}.*")
        except FileNotFoundError:
            raise RunError(f"{self.arrays} is gone, or not to be reached from where a worker runs.") from None
        except OSError as error:
            raise cannot_write(self.arrays, error) from error
        if self.tallies is not None:
            with atomic_path(self.tallies / f"part-{block.index:06d}.npz") as partial:
                try:
                    np.savez(partial, allow_pickle=False, **(tallies or {}))
                except OSError as error:
                    raise cannot_write(self.tallies, error) from error
        table = pyarrow.Table.from_pylist(list(rows), columns)
        with atomic_path(self.rows / f"part-{block.index:06d}.parquet") as partial:
            try:
                pyarrow.parquet.write_table(table, partial)
            except OSError as error:
                raise cannot_write(self.rows, error) from error

    def outcome(self, names: int = 5) -> Outcome:
        """What became of the images, from all rows.

        Args:
            names: How many of the failed images are named at most.
        """
        rows = pyarrow.dataset.dataset(self.rows, format="parquet")
        failed = pyarrow.dataset.field("error").is_valid()
        count = rows.count_rows(filter=failed)
        first = rows.head(names, columns=["image", "error"], filter=failed).to_pylist() if count else []
        return Outcome(rows.count_rows() - count, count, tuple((row["image"], row["error"]) for row in first))

    def stored_tallies(self) -> Iterator[dict[str, np.ndarray]]:
        """What was written as tallies, block by block in their order.

        Raises:
            RunError: Those of a block are damaged, or not there.
        """
        if self.tallies is None:
            return
        for index in sorted(self.finished()):
            path = self.tallies / f"part-{index:06d}.npz"
            try:
                with open(path, "rb") as file, np.load(file) as stored:
                    yield dict(stored)
            except (OSError, ValueError, EOFError, BadZipFile) as error:
                rows = self.rows / f"part-{index:06d}.parquet"
                remedy = f"Remove {rows}: the same command does block {index} again."
                raise RunError(f"{path}: the file is damaged, or gone ({error}). {remedy}") from error

    @property
    def _others(self) -> list[Path]:
        """All that is written beside the job and the rows."""
        return [*([] if self.tallies is None else [self.tallies]), self.arrays, *self._results]

    def finished(self) -> set[int]:
        """The blocks that are finished."""
        found = (_PART.fullmatch(path.name) for path in (self.rows.iterdir() if self.rows.is_dir() else ()))
        return {int(match[1]) for match in found if match}

    def _remove_leftovers(self) -> None:
        """Remove what was half-written; `.partial` is how zarr calls it."""
        partial = f"{PARTIAL_PREFIX}*"
        found = [*self.folder.glob(partial), *self.rows.glob(partial), *self.arrays.rglob("*.partial")]
        for path in found + ([] if self.tallies is None else list(self.tallies.glob(partial))):
            remove(path)


def make_array(
    place: Path, shape: Sequence[int], block: int, attributes: Mapping[str, Any], name: str | None = None
) -> None:
    """Make a zarr array with NaN in it, a file per block.

    Args:
        place: The array; or, with a name, the group that it is in, which is made if it is not there.
        shape: (images, ...).
        block: Images of a block.
        attributes: What the array says of itself, for JSON.
        name: Its name in a group, with `/` for groups within the group.
    """
    import zarr
    import zarr.codecs

    zarr.create_array(
        place,
        name=name,
        shape=tuple(shape),
        chunks=(min(block, shape[0]), *shape[1:]),
        dtype="float32",
        fill_value=np.nan,
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        chunk_key_encoding={"name": "default", "separator": "."},  # one folder, a file per block
        attributes=dict(attributes),
    )


def _to_disk(folder: Path, pattern: str) -> None:
    """Have the system write what it may still hold in memory: the rows, which say that it is there, come later."""
    places = [*folder.glob(pattern), *([folder] if os.name == "posix" else [])]
    for place in places:
        descriptor = os.open(place, os.O_RDONLY if place == folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def _images(source: Mapping[str, Any]) -> str:
    return f"{source.get('images')} of {', '.join(source.get('places', ()))}"
