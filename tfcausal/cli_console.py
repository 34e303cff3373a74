"""What the commands share: consoles, refusals, and TensorFlow's start-up messages kept off the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

_TABLE_WIDTH = 120


def wide_console() -> Console:
    """Standard output; where it is no terminal, wide enough for tables."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    return console


@contextmanager
def native_messages_held_back() -> Iterator[None]:
    """Keep TensorFlow's start-up messages (no GPU found, CPU features) off the terminal, unless starting fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def fail(text: str) -> NoReturn:
    """Refuse what was typed, with the usage of the command."""
    raise typer.BadParameter(text)
