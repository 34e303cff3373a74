"""The command `tfcausal export`. Importing it does not import TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tfcausal.cli_console import wide_console
from tfcausal.cli_options import (
    RUN_OR_MODEL,
    LabelNames,
    Layer,
    MethodOptions,
    ModelOfRun,
    Pixels,
    Size,
    label_names,
    method_options,
)
from tfcausal.cli_work import tensorflow_progress

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
    source: Annotated[Path, RUN_OR_MODEL],
    model: ModelOfRun = None,
    method: Annotated[
        str, typer.Option(help="The saliency method of the signature `explain`; see `tfcausal explain --list-methods`.")
    ] = "wbp",
    options: MethodOptions = None,
    layer: Layer = None,
    output: Annotated[Path, typer.Option(help="The folder of all exported models.")] = Path("saved_models"),
    name: Annotated[
        str | None, typer.Option(help="Name of the exported model.", show_default="that of the model, or of its file")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Its version.", show_default="the next one")] = None,
    labels: LabelNames = None,
    pixels: Pixels = None,
    size: Size = None,
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
    chosen = method_options(options, layer)
    names = None if labels is None else label_names(labels)
    with tensorflow_progress() as progress:
        import tensorflow as tf

        from tfcausal.export import MOST_PIXELS, Choices, export_model

        tf.get_logger().setLevel("ERROR")
        most = MOST_PIXELS if most_pixels is None else most_pixels
        choices = Choices(method, chosen, names, pixels, size, multi_label, most)
        stated = {} if intended_use is None else {"intended_use": intended_use}
        say = progress.say
        export = export_model(
            source, choices, model=model, output=output, name=name, version=version, check=check, say=say, **stated
        )
    if export.comparisons:
        wide_console().print(_table(export.comparisons))
    if export.path is None:
        say("It does not answer as the model does, and was not published.")
        raise typer.Exit(1)
    typer.echo(f"Exported {', '.join(export.signatures)}: {export.path}")


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
