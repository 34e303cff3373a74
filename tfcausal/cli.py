"""The command line. Importing it does not import TensorFlow."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape

from tfcausal import __version__
from tfcausal.cli_console import fail, native_messages_held_back, parsed_options, wide_console
from tfcausal.cli_effects import EPILOG as EFFECTS_EPILOG
from tfcausal.cli_effects import effects
from tfcausal.cli_explorer import EPILOG as EXPLORE_EPILOG
from tfcausal.cli_explorer import MASK_EPILOG, explore, mask
from tfcausal.cli_export import EPILOG as EXPORT_EPILOG
from tfcausal.cli_export import export
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

_EXPLAIN_EPILOG = """
**Examples**

`tfcausal explain runs/quickstart photo.png --model ppi`

`tfcausal explain model.keras images/ --method lrp.epsilon_plus --pixels -1 1`

`tfcausal explain model.keras photo.jpg --method grad_cam --layer backbone/conv5 --target zebra`

`tfcausal explain model.keras photo.jpg --method occlusion --option patch=16 --option stride=8`

`tfcausal explain --list-methods`
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
) -> None:
    """Train models, evaluate them where the context misleads, and write a report.

    Leaves a run directory with the models, their histories, saliency maps, metrics.json and report.html.
    """
    from tfcausal.config import dump_config, load_config
    from tfcausal.runs import RunDirectory

    console = wide_console()
    if resume is not None:
        if config is not None or overrides or name or runs:
            fail("--resume takes the configuration of the run itself: leave out CONFIG, --set, --name and --runs.")
        directory = RunDirectory.open(resume)
        if dry_run:
            typer.echo(dump_config(directory.config), nl=False)
            return
    else:
        if config is None:
            fail("Give a configuration, for instance `tfcausal run configs/quickstart.yaml`, or --resume RUN.")
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


@app.command(epilog=_EXPLAIN_EPILOG)
def explain(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run directory, or a model saved by Keras (.keras, .h5)."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGES...", help="PNG and JPEG files, and folders of them.")
    ] = None,
    method: Annotated[str, typer.Option(help="The saliency method; see --list-methods.")] = "wbp",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the method; may be given several times."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer that a class activation map shows: its name, or its path.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model of a run that has several.")] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The class to explain, by name or number.", show_default="predicted"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write to.", show_default="explanations/METHOD")
    ] = None,
    pixels: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="What black and white are in the model's input. Known for a run; for a model file 0 255 if it begins "
            "with a layer that scales pixels, else 0 1.",
        ),
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="For a model that takes images of any size.")
    ] = None,
    reducer: Annotated[
        str | None,
        typer.Option(help="Reduce the channels of the raw maps: sum, mean, max or abs_max.", show_default="keep them"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier explanation.")
    ] = False,
    list_methods: Annotated[bool, typer.Option("--list-methods", help="Show the saliency methods and exit.")] = False,
) -> None:
    """Show what a trained model looks at in images.

    Writes for every image an overlay (PNG: red speaks for the class, blue against it) and the raw map (.npy), and at
    last explanations.json with the model's answers.
    """
    from tfcausal.data.image_files import find_images
    from tfcausal.saliency.registry import find_explainer

    if list_methods:
        _list_methods()
        return
    if source is None or not images:
        fail("Give a run or a model and images, for instance `tfcausal explain runs/quickstart photo.png`.")
    find_explainer(method)
    files = find_images(images)
    chosen = {**parsed_options(options or []), **({} if layer is None else {"layer": layer})}
    folder = output or Path("explanations", method)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.explain import Settings, explain_files
        from tfcausal.progress import ConsoleProgress

        tf.config.list_logical_devices()  # the start-up messages of the devices come now
    settings = Settings(method, chosen, target, pixels, size, cast(Any, reducer), overwrite)
    with ConsoleProgress(console) as progress:
        records = explain_files(source, files, folder, settings, progress, model, say)
    counted = "1 image" if len(records) == 1 else f"{len(records)} images"
    typer.echo(f"Explained {counted} with {method}: {folder}")


def _list_methods() -> None:
    from rich.table import Table

    from tfcausal.saliency.registry import available_explainers

    table = Table("method", "what its map tells", "source")
    for entry in available_explainers():
        needs = f" (needs tfcausal[{entry.needs}])" if entry.needs else ""
        table.add_row(entry.name, escape(entry.description + needs), escape(entry.source))
    wide_console().print(table)


def _run(directory: RunDirectory) -> None:
    console = Console(stderr=True)
    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.experiment import make_deterministic, run_experiment
        from tfcausal.progress import ConsoleProgress

        make_deterministic()
        tf.get_logger().setLevel("ERROR")  # as for effects
    try:
        with ConsoleProgress(console) as progress:
            run_experiment(directory, progress)
    except KeyboardInterrupt:
        console.print(f"Interrupted. Go on with `tfcausal run --resume {directory.path}`.", soft_wrap=True)
        raise typer.Exit(130) from None


def _show(directory: RunDirectory, console: Console) -> None:
    from tfcausal.report import headline_table

    console.print(headline_table(directory.metrics))
    console.print(f"Report: {directory.report_path}", soft_wrap=True, highlight=False)


app.command(epilog=EFFECTS_EPILOG)(effects)
app.command(epilog=EXPLORE_EPILOG)(explore)
app.command(epilog=MASK_EPILOG)(mask)
app.command(epilog=EXPORT_EPILOG)(export)


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
