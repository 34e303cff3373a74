"""Arguments and options that several commands have, each with one text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tfcausal.cli_console import fail, parsed_options

if TYPE_CHECKING:
    from tfcausal.scale.engine import Engine

RUN_OR_MODEL: Any = typer.Argument(
    metavar="RUN_OR_MODEL", help="A run directory, or a model saved by Keras (.keras, .h5)."
)
"""For `Annotated`, as a path that is required or not."""
IMAGES: Any = typer.Argument(metavar="IMAGES...", help="PNG and JPEG files, and folders of them.")
"""For `Annotated`, as paths that are required or not."""

MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the method; may be given several times."),
]
Layer = Annotated[str | None, typer.Option(help="The layer that a class activation map shows: its name, or its path.")]
ModelOfRun = Annotated[str | None, typer.Option(help="Which model of a run that has several.")]
Target = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="The class to explain, by name or number.", show_default="predicted"),
]
LabelNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES_OR_FILE",
        help="Names of the classes by index, with commas between them, or a text file with one in every line.",
        show_default="what is known, else numbers",
    ),
]
Pixels = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="What black and white are in the model's input. Known for a run; for a model file 0 255 if it begins "
        "with a layer that scales pixels, else 0 1.",
    ),
]
Size = Annotated[
    tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="For a model that takes images of any size.")
]
OverwriteFiles = Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier explanation.")]
ManyImages = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="For many images: local, or ray (extra `ray`), by --workers processes. Writes tables and arrays, block by "
        "block.",
        show_default="none",
    ),
]
Workers = Annotated[int | None, typer.Option(help="Processes of the engine ray.", show_default="1")]
Address = Annotated[
    str | None,
    typer.Option(
        help="The Ray cluster. All of its machines must reach the model, the images and the output.",
        show_default="RAY_ADDRESS, or a Ray of this machine",
    ),
]
ImagesOfBlock = Annotated[
    int | None,
    typer.Option(
        "--block", help="With --engine: images that are finished together.", show_default="by the size of the results"
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--column",
        help="With --engine: the column of parquet files with the images, as bytes, paths, or {bytes, path}.",
        show_default="the only one",
    ),
]


def engine_options(
    workers: int | None, address: str | None, block: int | None, column: str | None
) -> dict[str, int | str | None]:
    """The options that go with `--engine` alone, by their names on the command line."""
    return {"--workers": workers, "--address": address, "--block": block, "--column": column}


def check_engine_options(engine: str | None, options: Mapping[str, Any]) -> None:
    """Refuse options that need `--engine` without it, and with it what the engine does not take.

    Args:
        engine: What was given as `--engine`.
        options: By their names, with `--workers` and `--address` among them; None where one was not given.
    """
    from tfcausal.scale.engine import check_engine

    needless = [name for name, value in options.items() if value is not None]
    if engine is not None:
        check_engine(engine, options["--workers"], options["--address"])
    elif needless:
        fail(f"{needless[0]} needs --engine local or --engine ray.")


def chosen_engine(name: str, workers: int | None, address: str | None) -> Engine:
    """The engine, with its extra installed."""
    from tfcausal.scale.engine import Engine

    if name == "ray":
        from tfcausal.scale.ray_session import ray_module

        ray_module(address)
    return Engine(cast(Any, name), workers, address)


def method_options(options: list[str] | None, layer: str | None) -> dict[str, Any]:
    """The options of a saliency method as `--option` and `--layer` give them."""
    return {**parsed_options(options or []), **({} if layer is None else {"layer": layer})}


def label_names(given: str) -> list[str]:
    """The names that `--labels` gives: with commas between them, or those of a file."""
    path = Path(given)
    if path.suffix.lower() != ".txt":
        return [label.strip() for label in given.split(",")]
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        fail(f"--labels {given}: the file cannot be read ({error}).")
