"""What the commands share: consoles, refusals, and TensorFlow's start-up messages kept off the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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


def parsed_options(options: list[str]) -> dict[str, Any]:
    """`key=value` as on the command line; the value is YAML, so that numbers are numbers and [8, 8] is a pair."""
    import yaml

    parsed: dict[str, Any] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            fail(f"--option takes KEY=VALUE, such as `--option patch=16`; received `{text}`.")
        try:
            content = yaml.safe_load(value)
        except yaml.YAMLError:
            fail(
                f"The value of --option {key} cannot be read: `{value}`. Put a text with special characters in quotes."
            )
        parsed[key] = tuple(content) if isinstance(content, list) else content
    return parsed


def counted(images: int) -> str:
    """The number of images, in words."""
    return "1 image" if images == 1 else f"{images} images"
