"""Blocks of work, done one after the other in this process or by several actors of Ray: scheduling, and nothing else.

What a block is and what is done with it is the caller's: a worker is made once in each process and called with block
after block. The two engines differ in speed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from tfcausal.errors import InvalidArgument, RunError, TfCausalError, message

EngineName = Literal["local", "ray"]
BlockT = TypeVar("BlockT")
Result = TypeVar("Result")
MakeWorker = Callable[[], Callable[[BlockT], Result]]
ATTEMPTS = 3
"""How often a block is begun whose process dies in the middle of it."""


def check_engine(engine: str, workers: int | None = None, address: str | None = None) -> None:
    """Check what a user asks of an engine, before anything is started.

    Args:
        engine: `local` or `ray`.
        workers: Number of processes; None for the engine's own choice.
        address: A Ray cluster.

    Raises:
        InvalidArgument: No such engine, or workers or an address that it does not take.

    Example:
        >>> check_engine("ray", workers=2)
    """
    if engine not in get_args(EngineName):
        raise InvalidArgument(message("engine", f"one of {', '.join(get_args(EngineName))}", repr(engine)))
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InvalidArgument(message("workers", "an integer of at least 1", repr(workers)))
    if engine == "local" and workers not in (None, 1):
        remedy = "TensorFlow uses all cores in it; several processes need --engine ray."
        raise InvalidArgument(message("workers", "1 with the engine local", workers, remedy))
    if engine == "local" and address is not None:
        raise InvalidArgument(message("address", "none with the engine local", repr(address), "Use --engine ray."))


@dataclass(frozen=True)
class Engine:
    """Where blocks are done.

    Attributes:
        name: `local` works in this process, with all of its cores; `ray` with actors.
        workers: Number of actors, each with one CPU of Ray and its share of the cores; None is 1.
        address: The Ray cluster. None takes RAY_ADDRESS; where that is not set, either, a Ray of this machine is
            started, and stopped at the end.

    Raises:
        InvalidArgument: No such engine, or workers or an address that it does not take.
    """

    name: EngineName = "local"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_engine(self.name, self.workers, self.address)


LOCAL = Engine()


def run_blocks(
    make_worker: MakeWorker[BlockT, Result],
    blocks: Iterable[BlockT],
    on_finished: Callable[[BlockT, Result], None],
    engine: Engine = LOCAL,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Do every block once.

    A process of Ray that dies (killed, out of memory) is replaced and its block begun again, up to three times: what a
    worker writes must replace what an earlier attempt wrote. Blocks are taken from the iterable as they are needed.

    Args:
        make_worker: Makes a worker in the process in which it is used, once: there it loads what all blocks need. For
            Ray it must be picklable.
        blocks: The blocks, picklable for Ray. `str(block)` is what messages call one.
        on_finished: Called in this process with a finished block and what the worker gave for it, which is to be small
            and picklable. With Ray the order of the blocks is any.
        engine: Where it is done.
        say: Called with a sentence about what happened on the way.

    Raises:
        UnsupportedOperation: Ray is not installed.
        RunError: A worker failed, or its process died three times in one block, or no process can be started.
        TfCausalError: What a worker raised of these errors.

    Example:
        >>> done = {}
        >>> run_blocks(lambda: lambda block: sum(block), [(1, 2), (3, 4)], done.__setitem__)
        >>> done
        {(1, 2): 3, (3, 4): 7}
    """
    if engine.name == "ray":
        from tfcausal.scale.ray_engine import run_on_ray

        run_on_ray(make_worker, blocks, on_finished, engine.workers or 1, engine.address, say)
        return
    worker: Callable[[BlockT], Result] | None = None
    for block in blocks:
        worker = worker or make_worker()
        try:
            result = worker(block)
        except TfCausalError:
            raise
        except Exception as error:
            raise failed(block, error) from error
        on_finished(block, result)


def failed(block: object, error: Exception) -> RunError:
    """The error to raise where a worker met one that tfcausal does not raise on purpose."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return RunError(
        f"{block} could not be done ({reason}). What is finished is kept: the same command goes on with it."
    )
