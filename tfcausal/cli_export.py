"""The command `tfcausal export`. Importing it does not import TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tfcausal.cli_console import fail, native_messages_held_back, parsed_options, wide_console

if TYPE_CHECKING:
    from tfcausal.serving.checking import Comparison

EPILOG = """
**Examples**

`tfcausal export runs/quickstart --model ppi --check`

`tfcausal export runs/quickstart --model cfcn --method grad_cam --layer block2_conv --name digits`

`tfcausal export model.keras --labels cat,dog --pixels 0 255`

`tfcausal export model.keras --labels labels.txt --pixels -1 1 --size 224 224 --method lrp.epsilon_plus`

Then serve it: `docker run -p 8501:8501 -v $PWD/saved_models/ppi:/models/ppi -e MODEL_NAME=ppi tensorflow/serving`
"""


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run directory, or a model saved by Keras (.keras, .h5).")
    ],
    model: Annotated[str | None, typer.Option(help="Which model of a run that has several.")] = None,
    method: Annotated[
        str, typer.Option(help="The saliency method of the signature `explain`; see `tfcausal explain --list-methods`.")
    ] = "wbp",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the method; may be given several times."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer that a class activation map shows: its name, or its path.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder of all exported models.")] = Path("saved_models"),
    name: Annotated[
        str | None, typer.Option(help="Name of the exported model.", show_default="that of the model, or of its file")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Its version.", show_default="the next one")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES_OR_FILE",
            help="Names of the classes by index, with commas between them, or a text file with one in every line.",
            show_default="those of the run, else numbers",
        ),
    ] = None,
    pixels: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="What black and white are in the input of a model file; see `explain`."),
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="For a model that takes images of any size.")
    ] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option(
            "--multi-label/--one-label",
            help="For a model that gives logits: whether its labels are independent of each other.",
            show_default="as it was trained, else one label",
        ),
    ] = None,
    most_pixels: Annotated[
        int | None, typer.Option(help="Pixels that a file may have that a server is sent.", show_default="25000000")
    ] = None,
    intended_use: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is for, as its card says.", show_default="not stated"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Ask it in a process without tfcausal and Keras, and compare; publish it only if it agrees."
        ),
    ] = False,
) -> None:
    """Export a trained model for TensorFlow Serving: it answers and explains, for arrays and for image files.

    Writes OUTPUT/NAME/VERSION with the signatures serving_default, explain, predict_image_bytes, explain_image_bytes
    and, where concepts were trained, effects; its labels, requests to warm up with, and a card. A version is never
    replaced. Ends with exit code 1 if --check finds a difference.
    """
    chosen: dict[str, Any] = {**parsed_options(options or []), **({} if layer is None else {"layer": layer})}
    names = None if labels is None else _labels(labels)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.export import MOST_PIXELS, Choices, export_model

        tf.config.list_logical_devices()  # the start-up messages of the devices come now
        tf.get_logger().setLevel("ERROR")
    most = MOST_PIXELS if most_pixels is None else most_pixels
    choices = Choices(method, chosen, names, pixels, size, multi_label, most)
    stated = {} if intended_use is None else {"intended_use": intended_use}
    export = export_model(
        source, choices, model=model, output=output, name=name, version=version, check=check, say=say, **stated
    )
    if export.comparisons:
        wide_console().print(_table(export.comparisons))
    if export.path is None:
        say("It does not answer as the model does, and was not published.")
        raise typer.Exit(1)
    typer.echo(f"Exported {', '.join(export.signatures)}: {export.path}")


def _labels(given: str) -> list[str]:
    """Names with commas between them, or those of a file."""
    path = Path(given)
    if path.suffix.lower() != ".txt":
        return [label.strip() for label in given.split(",")]
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        fail(f"--labels {given}: the file cannot be read ({error}).")


def _table(comparisons: Sequence[Comparison]) -> Table:
    sizes = list(dict.fromkeys(size for comparison in comparisons for size in comparison.differences))
    table = Table("signature", "output", title="Largest difference from the model, in a process without it")
    for size in sizes:
        table.add_column(f"batch of {size}", justify="right")
    table.add_column("")
    for comparison in comparisons:
        cells = (_cell(comparison.differences.get(size)) for size in sizes)
        table.add_row(comparison.signature, comparison.output, *cells, "same" if comparison.same else "[red]differs[/]")
    return table


def _cell(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.1e}" if difference else "0"
