"""What the commands share that work on images with TensorFlow; importing it does not import TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from tfcausal.cli_console import counted, native_messages_held_back

if TYPE_CHECKING:
    from tfcausal.progress import ConsoleProgress
    from tfcausal.scale.block_store import Outcome


@contextmanager
def tensorflow_progress() -> Iterator[ConsoleProgress]:
    """TensorFlow started, and progress for what is done with it."""
    console = Console(stderr=True)
    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.progress import ConsoleProgress

        tf.config.list_logical_devices()  # the start-up messages of the devices come now
    with ConsoleProgress(console) as progress:
        yield progress


@contextmanager
def interruption_told(kept: str) -> Iterator[None]:
    """Ctrl+C becomes the exit code 130, after a sentence about what was done already.

    Args:
        kept: The sentence.
    """
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Interrupted. {kept}", soft_wrap=True)
        raise typer.Exit(130) from None


def tell_outcome(outcome: Outcome, done: str, folder: Path, rows: Path) -> None:
    """Say what became of many images; if nothing, the exit code is 1.

    Args:
        outcome: What became of them.
        done: What was done, with `{}` for the number of images.
        folder: Where the results are.
        rows: The table with the reasons.
    """
    failures = f", failed {outcome.failed}" if outcome.failed else ""
    typer.echo(f"{done.format(counted(outcome.done))}{failures}: {folder}")
    for name, reason in outcome.first:
        typer.echo(f"  {name}: {reason}")
    if outcome.failed > len(outcome.first):
        typer.echo(f"  and {outcome.failed - len(outcome.first)} more: column error of {rows}")
    if outcome.failed and not outcome.done:
        raise typer.Exit(1)
