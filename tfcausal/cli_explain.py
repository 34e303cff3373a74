"""The command `tfcausal explain`. Importing it does not import TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tfcausal.cli_console import counted, fail, wide_console
from tfcausal.cli_options import (
    RUN_OR_MODEL,
    Address,
    ImageColumn,
    ImagesOfBlock,
    Layer,
    ManyImages,
    MethodOptions,
    ModelOfRun,
    OverwriteFiles,
    Pixels,
    Size,
    Target,
    Workers,
    check_engine_options,
    chosen_engine,
    engine_options,
    method_options,
)
from tfcausal.cli_work import interruption_told, tell_outcome, tensorflow_progress

EPILOG = """
**Examples**

`tfcausal explain runs/quickstart photo.png --model ppi`

`tfcausal explain model.keras images/ --method lrp.epsilon_plus --pixels -1 1`

`tfcausal explain model.keras photo.jpg --method grad_cam --layer backbone/conv5 --target zebra`

`tfcausal explain model.keras photo.jpg --method occlusion --option patch=16 --option stride=8`

`tfcausal explain model.keras photos.parquet --engine local --output explanations/photos`

`tfcausal explain model.keras s3://bucket/images --engine ray --workers 8 --reducer sum --output explanations/images`

`tfcausal explain --list-methods`
"""


def explain(
    source: Annotated[Path | None, RUN_OR_MODEL] = None,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES...",
            help="PNG and JPEG files, and folders of them. With --engine also parquet files and folders of them, and "
            "addresses such as s3://bucket/images.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="The saliency method; see --list-methods.")] = "wbp",
    options: MethodOptions = None,
    layer: Layer = None,
    model: ModelOfRun = None,
    target: Target = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write to.", show_default="explanations/METHOD")
    ] = None,
    pixels: Pixels = None,
    size: Size = None,
    reducer: Annotated[
        str | None,
        typer.Option(help="Reduce the channels of the raw maps: sum, mean, max or abs_max.", show_default="keep them"),
    ] = None,
    overwrite: OverwriteFiles = False,
    engine: ManyImages = None,
    workers: Workers = None,
    address: Address = None,
    block: ImagesOfBlock = None,
    column: ImageColumn = None,
    list_methods: Annotated[bool, typer.Option("--list-methods", help="Show the saliency methods and exit.")] = False,
) -> None:
    """Show what a trained model looks at in images.

    Writes for every image an overlay (PNG: red speaks for the class, blue against it) and the raw map (.npy), and at
    last explanations.json with the model's answers.

    With --engine it writes the answers to explanations.parquet and the maps to maps.zarr, for any number of images. The
    same command goes on where it was interrupted. Images that cannot be read are told in the column error; the exit
    code is 1 only if none could be explained.
    """
    from tfcausal.saliency.registry import find_explainer

    if list_methods:
        _list_methods()
        return
    if source is None or not images:
        fail("Give a run or a model and images, for instance `tfcausal explain runs/quickstart photo.png`.")
    check_engine_options(engine, engine_options(workers, address, block, column))
    find_explainer(method)
    chosen = method_options(options, layer)
    folder = output or Path("explanations", method)
    settings = {
        "method": method,
        "options": chosen,
        "target": target,
        "pixels": pixels,
        "size": size,
        "reducer": reducer,
        "overwrite": overwrite,
    }
    if engine is None:
        _explain_files(source, images, folder, settings, model)
        return
    how = {"engine": chosen_engine(engine, workers, address), "block": block, "column": column, "model_name": model}
    _explain_many(source, images, folder, settings, how)


def _explain_files(source: Path, images: list[str], folder: Path, settings: dict[str, Any], model: str | None) -> None:
    from tfcausal.data.image_files import find_images

    files = find_images([Path(image) for image in images])
    with tensorflow_progress() as progress:
        from tfcausal.explain import Settings, explain_files

        records = explain_files(source, files, folder, Settings(**settings), progress, model, progress.say)
    typer.echo(f"Explained {counted(len(records))} with {settings['method']}: {folder}")


def _explain_many(source: Path, images: list[str], folder: Path, settings: dict[str, Any], how: dict[str, Any]) -> None:
    kept = "What is finished is kept: the same command, without --overwrite, goes on."
    with interruption_told(kept), tensorflow_progress() as progress:
        from tfcausal.explain import Settings
        from tfcausal.scale.explain_blocks import ROWS, explain_many

        outcome = explain_many(source, images, folder, Settings(**settings), progress, **how)
    tell_outcome(outcome, f"Explained {{}} with {settings['method']}", folder, folder / ROWS)


def _list_methods() -> None:
    from rich.table import Table

    from tfcausal.saliency.registry import available_explainers

    table = Table("method", "what its map tells", "source")
    for entry in available_explainers():
        needs = f" (needs tfcausal[{entry.needs}])" if entry.needs else ""
        table.add_row(entry.name, escape(entry.description + needs), escape(entry.source))
    wide_console().print(table)
