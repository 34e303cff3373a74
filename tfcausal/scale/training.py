"""The training of a run by several workers: Ray Train starts them, and begins again when one of them is lost.

The first worker writes to the run directory, which all of them must reach (with several machines, on a file system that
they share). The others begin with a copy of what is in it, so that all go on from the same epoch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tfcausal.atomic import PARTIAL_PREFIX, partial_path, remove
from tfcausal.config import RunConfig
from tfcausal.distributed import replica_batch_size
from tfcausal.errors import InvalidArgument, RunError, TfCausalError, WorkerLost, message
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory
from tfcausal.scale.engine import ATTEMPTS, check_engine
from tfcausal.scale.ray_session import ray_session, usable_cores

if TYPE_CHECKING:
    import tensorflow as tf

    from tfcausal.data.image_set import DataSet

_SECONDS_BETWEEN_LOOKS = 1.0
_LARGE = ("maps.zarr", "effects.zarr", "effects", "snapshots")


@dataclass(frozen=True)
class RayTraining:
    """Trains the models of a run with Ray Train; in the place of :func:`tfcausal.training.train_models`.

    Every worker computes its part of each batch, as under `TF_CONFIG`: with N workers the weights are those of one
    process, to rounding, batch normalisation aside. Where the cluster has a GPU for every worker, each takes one.

    A worker that is lost (killed, out of memory, its machine gone) ends the others, too; all are started again and go
    on from the last epoch that the first worker has written, up to three times without an epoch in between.

    Attributes:
        workers: Number of workers, 1 or more.
        address: The Ray cluster; None takes RAY_ADDRESS, or starts a Ray of this machine.

    Raises:
        InvalidArgument: `workers` is no such number.

    Example:
        >>> RayTraining(workers=2).workers
        2
    """

    workers: int
    address: str | None = None

    def __post_init__(self) -> None:
        check_engine("ray", self.workers, self.address)

    def check(self, config: RunConfig) -> None:
        """Check that a run can be trained by these workers; starts nothing.

        Args:
            config: The configuration of the run.

        Raises:
            InvalidArgument: The batches cannot be divided, or the configuration has a strategy of its own.
        """
        replica_batch_size(config.training.batch_size, self.workers, "training.batch_size")
        if config.training.strategy not in ("auto", "multi_worker"):
            expected = "auto, or multi_worker, with the engine ray"
            raise InvalidArgument(message("training.strategy", expected, config.training.strategy))
        if "TF_CONFIG" in os.environ:
            remedy = "Ray Train sets it for its workers: unset it here."
            raise InvalidArgument(message("TF_CONFIG", "none with the engine ray", os.environ["TF_CONFIG"], remedy))

    def __call__(
        self, run: RunDirectory, data: DataSet, progress: ConsoleProgress, strategy: tf.distribute.Strategy
    ) -> None:
        """Train the models of a run that are not trained yet.

        Args:
            run: The run directory, locked by this process.
            data: Its data set, which the workers load themselves.
            progress: Where to show how far the training is, by epochs.
            strategy: That of this process, which trains nothing.

        Raises:
            UnsupportedOperation: Ray is not installed.
            RunError: There is no cluster at the address; or workers were lost three times without a new epoch.
            TfCausalError: What a worker raised of these errors.
        """
        if all(run.model_path(name).exists() for name in run.config.models):
            return
        with ray_session(self.address, self.workers) as ray, _epochs_shown(run, progress):
            gpus = ray.cluster_resources().get("GPU", 0) >= self.workers
            lost, before = 0, _epochs_done(run)
            while (error := self._fit(run, gpus)) is not None:
                now = _epochs_done(run)
                lost, before = (1 if now > before else lost + 1), now
                if lost >= ATTEMPTS:
                    raise RunError(
                        f"Workers were lost {ATTEMPTS} times without a new epoch ({error}). What is finished is kept: "
                        f"`tfcausal run --resume {run.path} --engine ray` goes on."
                    )
                progress.say(f"A worker was lost ({error}). All are started again and go on from the last epoch.")

    def _fit(self, run: RunDirectory, gpus: bool) -> str | None:
        """One attempt; what happened to a worker that was lost, or None if everything is trained."""
        from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
        from ray.train import RunConfig as RayRunConfig
        from ray.train.tensorflow import TensorflowTrainer

        own_files = partial_path(run.path / "ray_train")
        trainer = TensorflowTrainer(
            _work,
            train_loop_config={"run": str(run.path.resolve())},
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=gpus,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if gpus else {})},
                placement_strategy="SPREAD",
            ),
            run_config=RayRunConfig(
                name="training",
                storage_path=str(own_files.resolve()),
                # Ours to decide: Ray would begin again after an error in the data, too.
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values()) or [error]
            for failure in failures:
                if isinstance(failure, TfCausalError) and not isinstance(failure, WorkerLost):
                    raise failure from None
            return f"{type(failures[0]).__name__}: {' '.join(str(failures[0]).split())[:200]}"
        finally:
            remove(own_files)
        return None


def _work(settings: dict[str, Any]) -> None:
    """What a worker does: it trains the models, and ends."""
    from ray.train import get_context

    context = get_context()
    threads = max(1, usable_cores() // context.get_local_world_size())
    os.environ |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"}
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray Train sets it, for a Keras that is not ours

    from tfcausal.data.loading import check_unchanged, load_data
    from tfcausal.distributed import choose_strategy
    from tfcausal.experiment import make_deterministic
    from tfcausal.training import check_models, train_models

    make_deterministic()
    with _own_directory(Path(settings["run"]), context.get_world_rank()) as run:
        # Workers wait for each other here, and so until all have their copies.
        strategy = choose_strategy("auto")
        progress = ConsoleProgress(Console(quiet=True))
        data = load_data(run.config, progress)
        check_unchanged(data, run.path / "data.json")
        check_models(run, data, strategy)
        train_models(run, data, progress, strategy)


@contextmanager
def _own_directory(path: Path, rank: int) -> Iterator[RunDirectory]:
    """The run itself for the first worker, and a copy of it for the time of the training for the others."""
    if rank == 0:
        yield RunDirectory.open(path)
        return
    with tempfile.TemporaryDirectory() as folder:

        def leave(place: str, names: list[str]) -> set[str]:
            large = _LARGE if Path(place) == path else ()  # a model may have such a name
            return {name for name in names if name.startswith(PARTIAL_PREFIX) or name in large}

        yield RunDirectory.open(shutil.copytree(path, Path(folder) / path.name, ignore=leave))


def _epochs_done(run: RunDirectory) -> int:
    """Epochs of all models that are in the run directory."""
    config = run.config
    return sum(
        config.epochs_of(name)
        if run.model_path(name).exists()
        else max((epoch for epoch, _ in run.checkpoints(name)), default=0)
        for name in config.models
    )


@contextmanager
def _epochs_shown(run: RunDirectory, progress: ConsoleProgress) -> Iterator[None]:
    """Show how many epochs are in the run directory while the workers train."""
    total = sum(map(run.config.epochs_of, run.config.models))
    end, shown = Event(), _epochs_done(run)
    with progress.task("training with Ray", total, shown) as advance:

        def look() -> None:
            nonlocal shown
            while True:
                ended = end.wait(_SECONDS_BETWEEN_LOOKS)
                done = max(shown, _epochs_done(run))
                advance(done - shown)
                shown = done
                if ended:
                    return

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
