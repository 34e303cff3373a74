"""The command `tfcausal effects`. Importing it does not import TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tfcausal.cli_console import native_messages_held_back, wide_console
from tfcausal.cli_options import RUN_OR_MODEL, Pixels, Size

EPILOG = """
**Examples**

`tfcausal effects runs/quickstart --model plain`

`tfcausal effects runs/quickstart --config configs/textured_digits_effects.yaml`

`tfcausal effects runs/quickstart --model plain --set levels=[conv3] --set autoencoder.concepts=8 --set images=128`

`tfcausal effects model.keras images/ --pixels 0 255 --set attacks=[fgsm,pgd] --output effects/mine`

`tfcausal effects vgg16.keras images/ --config configs/effects_vgg16.yaml --pixels 0 255`
"""


def effects(
    source: Annotated[Path, RUN_OR_MODEL],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGES...]", help="PNG and JPEG files, and folders of them; a run has images of its own."
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
) -> None:
    """Measure what happens to a model's answer when a concept, a region or an attack intervenes.

    Leaves effects.parquet (a row per model, level, node, intervention and class, with intervals), effect maps
    (effects.zarr), pictures and, if asked for, detection.parquet. A measurement that was interrupted goes on.
    """
    from tfcausal.config_yaml import write_yaml
    from tfcausal.effect_study.request import Request, settings

    request = Request(source, images or (), config, overrides or (), model, output, overwrite, pixels, size)
    chosen = settings(request)
    if dry_run:
        typer.echo(write_yaml({"version": 1, "effects": chosen.model_dump()}), nl=False)
        return
    console = Console(stderr=True)

    with native_messages_held_back():
        import tensorflow as tf

        from tfcausal.effect_study.command import measure_effects
        from tfcausal.experiment import make_deterministic
        from tfcausal.progress import ConsoleProgress

        make_deterministic()
        tf.get_logger().setLevel("ERROR")  # every level has compiled functions of its own, which it takes for retracing
    try:
        with ConsoleProgress(console) as progress:
            stores = measure_effects(request, chosen, progress, progress.say)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command, without --overwrite, goes on.", soft_wrap=True)
        raise typer.Exit(130) from None
    from tfcausal.report_effects import effects_table

    root, wide = stores[0].root, wide_console()
    wide.print(effects_table(root, [store.model for store in stores]))
    wide.print(f"Effects: {root / 'effects.parquet'}", soft_wrap=True, highlight=False)
