"""The engine `ray`: actors that hold a worker each, replaced when they die."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from tfcausal.errors import RunError, TfCausalError
from tfcausal.scale.engine import ATTEMPTS, BlockT, MakeWorker, Result, failed
from tfcausal.scale.ray_session import ray_session, usable_cores

_QUEUE = 2  # blocks that an actor has: one that it does, one that it goes on with


class _Actor:
    """What lives in a process of Ray. What a worker raises comes back as a value: only deaths are errors of Ray."""

    def __init__(self, threads: int) -> None:
        # Read by TensorFlow when it starts, which is not before the worker is made.
        threads = min(threads, usable_cores())
        os.environ |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1"}
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several processes on one GPU
        self._worker: Callable[[Any], Any] | None = None

    def start(self, make_worker: Callable[[], Callable[[Any], Any]]) -> TfCausalError | None:
        try:
            self._worker = make_worker()
        except TfCausalError as error:
            return _plain(error)
        except Exception as error:
            return failed("The worker's start", error)
        return None

    def do(self, block: Any) -> tuple[Any, TfCausalError | None]:
        if self._worker is None:
            return None, RunError(f"{block} was given to a worker that has not started.")
        try:
            return self._worker(block), None
        except TfCausalError as error:
            return None, _plain(error)
        except Exception as error:
            return None, failed(block, error)


def _plain(error: TfCausalError) -> TfCausalError:
    """The error without its causes, which need not be picklable."""
    return type(error)(str(error))


def gpu_share(gpus: int, workers: int) -> float:
    """The part of a GPU that every worker takes: all that work on one have the same, and none has parts of two.

    Args:
        gpus: Number of GPUs, 0 or more.
        workers: Number of workers, 1 or more.

    Example:
        >>> gpu_share(0, 3), gpu_share(2, 3), gpu_share(4, 3)
        (0.0, 0.5, 1.0)
    """
    return 1 / -(-workers // gpus) if gpus else 0.0


@dataclass
class _Process(Generic[BlockT]):
    """An actor as the driver sees it.

    Attributes:
        handle: Ray's handle.
        starting: What the actor's start gives; None once it has started.
        tickets: Its blocks, by number, in the order in which it does them, and what each gives.
    """

    handle: Any
    starting: Any
    tickets: deque[tuple[int, BlockT, Any]] = field(default_factory=deque)


def run_on_ray(
    make_worker: MakeWorker[BlockT, Result],
    blocks: Iterable[BlockT],
    on_finished: Callable[[BlockT, Result], None],
    workers: int,
    address: str | None,
    say: Callable[[str], None],
) -> None:
    """What :func:`tfcausal.scale.engine.run_blocks` does with the engine `ray`."""
    with ray_session(address, workers) as ray:
        scheduler = _Scheduler(ray, make_worker, enumerate(blocks), on_finished, workers, say)
        try:
            scheduler.run()
        finally:
            scheduler.stop()


class _Scheduler(Generic[BlockT, Result]):
    def __init__(
        self,
        ray: Any,
        make_worker: MakeWorker[BlockT, Result],
        tickets: Iterator[tuple[int, BlockT]],
        on_finished: Callable[[BlockT, Result], None],
        workers: int,
        say: Callable[[str], None],
    ) -> None:
        self._ray, self._tickets, self._on_finished, self._say = ray, tickets, on_finished, say
        self._workers = workers
        self._make_worker = ray.put(make_worker)
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if cpus < workers:
            say(f"Ray has {cpus} CPUs for {workers} workers: the others begin when there are more.")
        self._class = ray.remote(_Actor).options(
            num_cpus=1,
            num_gpus=gpu_share(gpus, workers),
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._threads = max(1, cpus // workers)
        self._processes: list[_Process[BlockT]] = []
        self._again: deque[tuple[int, BlockT]] = deque()  # to be begun again
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._next: tuple[int, BlockT] | None = None

    def run(self) -> None:
        while self._has_work():
            for _ in range(self._workers - len(self._processes)):
                handle = self._class.remote(self._threads)
                self._processes.append(_Process(handle, handle.start.remote(self._make_worker)))
            self._hand_out()
            self._wait()

    def stop(self) -> None:
        for process in self._processes:
            self._ray.kill(process.handle)
        self._processes = []

    def _has_work(self) -> bool:
        if self._next is None:
            self._next = next(self._tickets, None)
        return self._next is not None or bool(self._again) or any(process.tickets for process in self._processes)

    def _hand_out(self) -> None:
        # One for everyone before the second for anyone, so that the last blocks are shared, too.
        for length in range(_QUEUE):
            for process in self._processes:
                if process.starting is None and len(process.tickets) == length:
                    ticket = self._ticket(process)
                    if ticket is not None:
                        number, block = ticket
                        process.tickets.append((number, block, process.handle.do.remote(block)))

    def _ticket(self, process: _Process[BlockT]) -> tuple[int, BlockT] | None:
        if self._again and not process.tickets:
            return self._again.popleft()
        ticket, self._next = self._next, None
        return ticket if ticket is not None else next(self._tickets, None)

    def _wait(self) -> None:
        waited = {
            process.starting if process.starting is not None else process.tickets[0][2]: process
            for process in self._processes
            if process.starting is not None or process.tickets
        }
        ready, _ = self._ray.wait(list(waited), num_returns=1)
        process = waited[ready[0]]
        try:
            value = self._ray.get(ready[0])
        except self._ray.exceptions.RayError as death:
            self._bury(process, death)
            return
        if process.starting is not None:
            if value is not None:
                raise value
            process.starting = None
            self._failed_starts = 0
            return
        _, block, _ = process.tickets.popleft()
        result, error = value
        if error is not None:
            raise error
        self._on_finished(block, result)

    def _bury(self, process: _Process[BlockT], death: Exception) -> None:
        """Take back the blocks of a process that has died.

        Which of them it was at is not known: what it had finished last may not have arrived. All of them count as
        begun. Each is begun again as the first block of a process, so that the one that kills its process is found.
        """
        self._processes.remove(process)
        reason = " ".join(str(death).split())[:200]
        if process.starting is not None:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS * self._workers:
                raise RunError(f"No worker can be started: the last of {self._failed_starts} died ({reason}).")
            return
        for number, block, _ in process.tickets:
            self._deaths[number] += 1
            if self._deaths[number] >= ATTEMPTS:
                raise RunError(
                    f"{block}: the process that did it died {ATTEMPTS} times (killed, or out of memory; {reason}). "
                    "What is finished is kept: the same command goes on. Fewer --workers need less memory."
                )
        self._again.extend((number, block) for number, block, _ in process.tickets)
        names = " and ".join(str(block) for _, block, _ in process.tickets)
        self._say(f"A process of Ray died (killed, or out of memory): {names} will be done again.")
