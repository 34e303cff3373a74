"""The command line. Importing it does not import TensorFlow."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tfcausal import __version__
from tfcausal.cli_console import fail, native_messages_held_back, wide_console
from tfcausal.cli_effects import EPILOG as EFFECTS_EPILOG
from tfcausal.cli_effects import effects
from tfcausal.cli_explain import EPILOG as EXPLAIN_EPILOG
from tfcausal.cli_explain import explain
from tfcausal.cli_explorer import EPILOG as EXPLORE_EPILOG
from tfcausal.cli_explorer import MASK_EPILOG, explore, mask
from tfcausal.cli_export import EPILOG as EXPORT_EPILOG
from tfcausal.cli_export import export
from tfcausal.cli_options import Address, Workers
from tfcausal.cli_serve_client import EPILOG as SERVE_CLIENT_EPILOG
from tfcausal.cli_serve_client import serve_client
from tfcausal.cli_work import interruption_told
from tfcausal.errors import TfCausalError

if TYPE_CHECKING:
    from tfcausal.runs import RunDirectory
    from tfcausal.scale.training import RayTraining

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

`tfcausal run configs/quickstart.yaml --engine ray --workers 2`

`tfcausal run configs/quickstart.yaml --dry-run`
"""

_DOCTOR_EPILOG = """
**Examples**

`tfcausal doctor`

`tfcausal doctor --json > machine.json`
"""


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
    engine: Annotated[
        str, typer.Option(help="Where the models are trained: local, or ray (extra `ray`), by --workers processes.")
    ] = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Train models, evaluate them where the context misleads, and write a report.

    Leaves a run directory with the models, their histories, saliency maps, metrics.json and report.html.
    """
    from tfcausal.config import dump_config, load_config
    from tfcausal.runs import RunDirectory
    from tfcausal.scale.engine import check_engine

    console = wide_console()
    check_engine(engine, workers, address)
    if resume is not None:
        if config is not None or overrides or name or runs:
            fail("--resume takes the configuration of the run itself: leave out CONFIG, --set, --name and --runs.")
        directory = RunDirectory.open(resume)
        resolved = directory.config
    else:
        if config is None:
            fail("Give a configuration, for instance `tfcausal run configs/quickstart.yaml`, or --resume RUN.")
        # As a YAML text: a name such as 2024 is not a number.
        resolved = load_config(config, [*(overrides or []), *([f"name={json.dumps(name)}"] if name else [])])
    if dry_run:
        typer.echo(dump_config(resolved), nl=False)
        return
    training = _ray_training(workers or 1, address) if engine == "ray" else None
    if training is not None:
        training.check(resolved)
    if resume is None:
        directory = RunDirectory.create(runs or Path("runs"), resolved)
    if directory.status.state != "complete":
        _run(directory, training)
    else:
        console.print(f"{directory.path} is complete.")
    _show(directory, console)


def _ray_training(workers: int, address: str | None) -> RayTraining:
    from tfcausal.scale.ray_session import ray_module

    ray_module(address)  # that it is there is known before anything is made
    with native_messages_held_back():
        from tfcausal.scale.training import RayTraining
    return RayTraining(workers, address)


def _run(directory: RunDirectory, training: RayTraining | None) -> None:
    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.experiment import make_deterministic, run_experiment
        from tfcausal.progress import ConsoleProgress

        make_deterministic()
        tf.get_logger().setLevel("ERROR")  # as for effects
    with interruption_told(f"Go on with `tfcausal run --resume {directory.path}`."), ConsoleProgress() as progress:
        run_experiment(directory, progress, *([] if training is None else [training]))


def _show(directory: RunDirectory, console: Console) -> None:
    from tfcausal.report import headline_table

    console.print(headline_table(directory.metrics))
    console.print(f"Report: {directory.report_path}", soft_wrap=True, highlight=False)


app.command(epilog=EXPLAIN_EPILOG)(explain)
app.command(epilog=EFFECTS_EPILOG)(effects)
app.command(epilog=EXPLORE_EPILOG)(explore)
app.command(epilog=MASK_EPILOG)(mask)
app.command(epilog=EXPORT_EPILOG)(export)
app.command("serve-client", epilog=SERVE_CLIENT_EPILOG)(serve_client)


@app.command(epilog=_DOCTOR_EPILOG)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")] = False,
) -> None:
    """Say what this machine has, whether tfcausal can use it, and what to set.

    Ends with exit code 1 if tfcausal cannot be used like this.
    """
    from tfcausal.doctor import diagnose, is_usable, to_json, to_table

    findings = diagnose()
    if as_json:
        typer.echo(to_json(findings))
    else:
        wide_console().print(to_table(findings))
    if not is_usable(findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; errors that tfcausal raises on purpose are printed without a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except TfCausalError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
