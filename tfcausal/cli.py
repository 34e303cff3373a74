"""The command line. Importing it does not import TensorFlow."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from tfcausal import __version__
from tfcausal.errors import TfCausalError

if TYPE_CHECKING:
    from tfcausal.runs import RunDirectory

app = typer.Typer(
    name="tfcausal",
    help="Train image classifiers that look at the cause, see what they look at, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_RUN_EPILOG = """
**Examples**

`tfcausal run configs/quickstart.yaml`

`tfcausal run configs/quickstart.yaml --name short --set training.epochs=5`

`tfcausal run configs/image_folder.yaml --set data.path=my/images`

`tfcausal run --resume runs/quickstart`

`tfcausal run configs/quickstart.yaml --dry-run`
"""


_TABLE_WIDTH = 120


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tfcausal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


@app.command(epilog=_RUN_EPILOG)
def run(
    config: Annotated[Path | None, typer.Argument(help="The configuration of the run, a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a setting; may be given several times."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run directory, instead of the configuration's.")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="The folder that holds the run directories.", show_default="runs")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run directory that was not finished.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and do nothing else.")
    ] = False,
) -> None:
    """Train models, evaluate them where the context misleads, and write a report.

    Leaves a run directory with the models, their histories, saliency maps, metrics.json and report.html.
    """
    from tfcausal.config import dump_config, load_config
    from tfcausal.runs import RunDirectory

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    if resume is not None:
        if config is not None or overrides or name or runs:
            _fail("--resume takes the configuration of the run itself: leave out CONFIG, --set, --name and --runs.")
        directory = RunDirectory.open(resume)
        if dry_run:
            typer.echo(dump_config(directory.config), nl=False)
            return
    else:
        if config is None:
            _fail("Give a configuration, for instance `tfcausal run configs/quickstart.yaml`, or --resume RUN.")
        # As a YAML text: a name such as 2024 is not a number.
        resolved = load_config(config, [*(overrides or []), *([f"name={json.dumps(name)}"] if name else [])])
        if dry_run:
            typer.echo(dump_config(resolved), nl=False)
            return
        directory = RunDirectory.create(runs or Path("runs"), resolved)
    if directory.status.state != "complete":
        _run(directory)
    elif resume is not None:
        console.print(f"{directory.path} is complete.")
    _show(directory, console)


def _run(directory: RunDirectory) -> None:
    console = Console(stderr=True)
    with _native_messages_held_back():
        from tfcausal.experiment import make_deterministic, run_experiment
        from tfcausal.progress import ConsoleProgress

        make_deterministic()
    try:
        with ConsoleProgress(console) as progress:
            run_experiment(directory, progress)
    except KeyboardInterrupt:
        console.print(f"Interrupted. Go on with `tfcausal run --resume {directory.path}`.", soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def _native_messages_held_back() -> Iterator[None]:
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


def _show(directory: RunDirectory, console: Console) -> None:
    from tfcausal.report import headline_table

    console.print(headline_table(directory.metrics))
    console.print(f"Report: {directory.report_path}", soft_wrap=True, highlight=False)


def _fail(text: str) -> NoReturn:
    raise typer.BadParameter(text)


def main() -> None:
    """Run the command line; errors that tfcausal raises on purpose are printed without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except TfCausalError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
