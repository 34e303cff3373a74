"""The command `tfcausal explore`. Importing it imports neither TensorFlow nor Streamlit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

EPILOG = """
**Examples**

`tfcausal explore`

`tfcausal explore experiments/runs --port 8600 --no-browser`

`tfcausal explore runs/quickstart`
"""


def explore(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS_FOLDER", help="The folder of run directories, or one of them.")
    ] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(help="Where it listens.", show_default="8501, or the next that is free")
    ] = None,
    address: Annotated[
        str, typer.Option(help="The address it listens on; others than localhost let the network look at the runs.")
    ] = "localhost",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open a browser.")] = True,
) -> None:
    """Look at runs and models in a browser: images under maps, interventions, comparisons.

    Listens on this machine only, and ends with Ctrl+C. Without runs it offers the quickstart.
    """
    from tfcausal import explorer_command
    from tfcausal.browsing.runs import RunsFolder

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    explorer_command.check_installed()
    if (not runs.exists() or runs.is_dir()) and not RunsFolder(runs).names():
        say(f"There are no runs in {runs} yet: `tfcausal run {explorer_command.quickstart_config()} --runs {runs}`")
        if sys.stdin.isatty() and typer.confirm("Start the quickstart now, a few minutes beside the explorer?"):
            explorer_command.start_quickstart(runs.resolve())
    raise typer.Exit(explorer_command.explore(runs, port, address, browser, say=say))
