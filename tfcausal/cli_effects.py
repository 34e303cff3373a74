"""The command `tfcausal effects`. Importing it does not import TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfcausal.cli_console import fail, wide_console
from tfcausal.cli_options import (
    RUN_OR_MODEL,
    Address,
    ImageColumn,
    ImagesOfBlock,
    ManyImages,
    Pixels,
    Size,
    Workers,
    check_engine_options,
    chosen_engine,
    engine_options,
)
from tfcausal.cli_work import interruption_told, tell_outcome, tensorflow_progress

if TYPE_CHECKING:
    from tfcausal.progress import ConsoleProgress

EPILOG = """
**Examples**

`tfcausal effects runs/quickstart --model plain`

`tfcausal effects runs/quickstart --config configs/textured_digits_effects.yaml`

`tfcausal effects runs/quickstart --model plain --set levels=[conv3] --set autoencoder.concepts=8 --set images=128`

`tfcausal effects model.keras images/ --pixels 0 255 --set attacks=[fgsm,pgd] --output effects/mine`

`tfcausal effects vgg16.keras images/ --config configs/effects_vgg16.yaml --pixels 0 255`

`tfcausal effects runs/quickstart photos.parquet --model plain --engine local --output effects/photos`

`tfcausal effects runs/quickstart s3://bucket/images --model plain --engine ray --workers 8 --output effects/images`
"""


def effects(
    source: Annotated[Path, RUN_OR_MODEL],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES...]",
            help="PNG and JPEG files, and folders of them; a run has images of its own. With --engine also parquet "
            "files and folders of them, and addresses such as s3://bucket/images.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="What is measured: a YAML file with a section `effects`.",
            show_default="the run's own section, else two levels and 64 images",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model of a run.", show_default="all of them")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Replace a setting of the section; may be given several times."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write to.", show_default="the run, or effects/MODEL")
    ] = None,
    pixels: Pixels = None,
    size: Size = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace effects that were measured before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved section and do nothing else.")] = False,
    engine: ManyImages = None,
    concepts: Annotated[
        Path | None,
        typer.Option(
            help="With --engine: where effects on some images were measured; their concepts and settings are used.",
            show_default="the run, or effects/MODEL",
        ),
    ] = None,
    workers: Workers = None,
    address: Address = None,
    block: ImagesOfBlock = None,
    column: ImageColumn = None,
) -> None:
    """Measure what happens to a model's answer when a concept, a region or an attack intervenes.

    Leaves effects.parquet (a row per model, level, node, intervention and class, with intervals), effect maps
    (effects.zarr), pictures and, if asked for, detection.parquet. A measurement that was interrupted goes on.

    With --engine it measures any number of images, with the concepts and the settings of effects that were measured
    before without it, and leaves the answers (answers.parquet), the effects image by image (effects.zarr) and
    effects.parquet. Images that cannot be read are told in the column error; the exit code is 1 only if none could be
    measured.
    """
    many = {"--concepts": concepts, **engine_options(workers, address, block, column)}
    check_engine_options(engine, many)
    if engine is not None:
        given = {"--config": config, "--set": overrides, "--pixels": pixels, "--size": size, "--dry-run": dry_run}
        needless = [name for name, value in given.items() if value]
        if needless:
            fail(f"{needless[0]} does not go with --engine: all settings are those of the effects in --concepts.")
        if not images or output is None:
            fail("--engine needs IMAGES and --output.")
        how = {"engine": chosen_engine(engine, workers, address), "block": block, "column": column}
        root = concepts or (source if source.is_dir() else Path("effects", source.stem))
        _measure_many((source, root, model), images, output, {**how, "overwrite": overwrite})
        return
    from tfcausal.config_yaml import write_yaml
    from tfcausal.effect_study.request import Request, settings

    paths = [Path(image) for image in images or ()]
    request = Request(source, paths, config, overrides or (), model, output, overwrite, pixels, size)
    chosen = settings(request)
    if dry_run:
        typer.echo(write_yaml({"version": 1, "effects": chosen.model_dump()}), nl=False)
        return
    with _measuring("The same command, without --overwrite, goes on.") as progress:
        from tfcausal.effect_study.command import measure_effects
        from tfcausal.experiment import make_deterministic

        make_deterministic()
        stores = measure_effects(request, chosen, progress, progress.say)
    from tfcausal.report_effects import effects_table

    root, wide = stores[0].root, wide_console()
    wide.print(effects_table(root, [store.model for store in stores]))
    wide.print(f"Effects: {root / 'effects.parquet'}", soft_wrap=True, highlight=False)


def _measure_many(study: tuple[Path, Path, str | None], images: list[str], folder: Path, how: dict[str, Any]) -> None:
    with _measuring("What is finished is kept: the same command, without --overwrite, goes on.") as progress:
        from tfcausal.scale.effect_blocks import ROWS, measure_many
        from tfcausal.scale.effect_measurer import Study

        outcome = measure_many(Study(*study), images, folder, progress, **how)
    tell_outcome(outcome, "Measured effects on {}", folder, folder / ROWS)


@contextmanager
def _measuring(kept: str) -> Iterator[ConsoleProgress]:
    with interruption_told(kept), tensorflow_progress() as progress:
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # every level has compiled functions of its own, which it takes for retracing
        yield progress
