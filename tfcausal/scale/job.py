"""Work on many images from its beginning to its end, or from where it was interrupted: what its parts agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfcausal.progress import ConsoleProgress
from tfcausal.scale.block_store import BlockStore, Outcome
from tfcausal.scale.blocks import Block, blocks_to_do
from tfcausal.scale.contents import Images
from tfcausal.scale.engine import Engine, MakeWorker, run_blocks
from tfcausal.scale.ray_session import ray_session


@dataclass(frozen=True)
class Job:
    """What is done to which images.

    Attributes:
        title: What progress calls it.
        settings: What tells it from other jobs, for JSON.
        images: The images.
        places: The paths and addresses that the user gave for them.
        column: The column of parquet files that the user named.
        block: Images of a block.
        make_arrays: Makes the zarr store at a path, for all images, with NaN in it.
        make_worker: Makes what does a block and writes it; for Ray it must be picklable.
    """

    title: str
    settings: Mapping[str, Any]
    images: Images
    places: Sequence[str]
    column: str | None
    block: int
    make_arrays: Callable[[Path], object]
    make_worker: MakeWorker[Block, None]

    def description(self) -> dict[str, Any]:
        """All of it, for JSON."""
        source = {
            "places": list(self.places),
            "kind": self.images.kind,
            "column": self.column,
            "images": len(self.images),
            "sha256": self.images.fingerprint(),
        }
        return {**self.settings, "source": source, "block": self.block}


def do_job(
    job: Job,
    store: BlockStore,
    progress: ConsoleProgress,
    engine: Engine,
    overwrite: bool = False,
    finish: Callable[[], object] = lambda: None,
) -> Outcome:
    """Do the blocks of a job that are not finished.

    Args:
        job: The job.
        store: Where its results are, or are to be.
        progress: Where to show how far it is, and what happened on the way.
        engine: Where blocks are done.
        overwrite: Whether another job's results may be thrown away.
        finish: Called when all blocks are finished, while the folder is still held.

    Returns:
        What became of the images, those of earlier calls too.

    Raises:
        RunError: The folder holds something else, or is written by another process; or the work cannot be done.
        UnsupportedOperation: Ray is missing.
        TfCausalError: What a worker raises.
    """
    description, count = job.description(), len(job.images)
    store.check(description, overwrite)
    some_left = any(True for _ in blocks_to_do(count, job.block, () if overwrite else store.finished()))
    with ExitStack() as stack:
        if engine.name == "ray" and some_left:  # before the folder is written to: Ray may not be reached
            stack.enter_context(ray_session(engine.address, engine.workers or 1))
        finished = stack.enter_context(store.begin(description, job.make_arrays, overwrite))
        done = count - sum(len(left) for left in blocks_to_do(count, job.block, finished))
        advance = stack.enter_context(progress.task(job.title, count, done))
        if done < count:
            store.remove_results()
            left_over = (job.images.block(left) for left in blocks_to_do(count, job.block, finished))
            connected = replace(engine, address=None)
            run_blocks(job.make_worker, left_over, lambda block, _: advance(len(block)), connected, progress.say)
        finish()
        return store.outcome()
