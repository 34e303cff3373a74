"""The commands `tfcausal explore` and `tfcausal mask`. Importing them imports neither TensorFlow nor Streamlit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
from rich.console import Console

from tfcausal.cli_console import fail
from tfcausal.errors import InvalidArgument, message

EPILOG = """
**Examples**

`tfcausal explore`

`tfcausal explore experiments/runs --port 8600 --no-browser`

`tfcausal explore runs/quickstart`

`tfcausal explore model.keras`
"""

MASK_EPILOG = """
**Examples**

`tfcausal mask data/cells`

`tfcausal mask data/cells --images 50 --seed 1`

`tfcausal mask data/cells --run runs/cells --model plain`

Then train with them: `tfcausal run configs/image_folder.yaml --set data.path=data/cells --set models.cfcn.method=cfcn`
"""


def explore(
    runs: Annotated[
        Path,
        typer.Argument(
            metavar="RUNS_FOLDER",
            help="The folder of run directories, or one of them; or a model saved by Keras (.keras, .h5), "
            "to be shown images of one's own.",
        ),
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
    if explorer_command.is_model_file(runs):
        folder, page = Path(os.environ.get(explorer_command.RUNS_VARIABLE, "runs")), "own_images"
        raise typer.Exit(explorer_command.explore(folder, port, address, browser, page, say=say, model=runs))
    if (not runs.exists() or runs.is_dir()) and not RunsFolder(runs).names():
        say(f"There are no runs in {runs} yet: `tfcausal run {explorer_command.quickstart_config()} --runs {runs}`")
        if sys.stdin.isatty() and typer.confirm("Start the quickstart now, a few minutes beside the explorer?"):
            explorer_command.start_quickstart(runs.resolve())
    raise typer.Exit(explorer_command.explore(runs, port, address, browser, say=say))


def mask(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The folder of images: `images/<class>/*.png`, or jpg, as for a run."),
    ],
    images: Annotated[int, typer.Option(min=1, help="How many images to draw on.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images.")] = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Draw where a model of this run looks least at the cause: by lowest mask energy."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model of the run.", show_default="the first that it measured")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="The folder of runs that the other pages show.", show_default="that of the run, or runs"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Where it listens.", show_default="8501, or the next that is free")
    ] = None,
    address: Annotated[
        str, typer.Option(help="The address it listens on; others than localhost let the network draw in the folder.")
    ] = "localhost",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open a browser.")] = True,
) -> None:
    """Draw masks of the cause for training, on a sample of the images of a folder, in a browser.

    With polygons, boxes or a brush. Every mask is saved to `masks/<class>/<same name>.png`, where `tfcausal run`
    reads it; none is overwritten unasked. The time that each took goes to `mask_times.csv` in the folder.
    """
    from tfcausal import explorer_command
    from tfcausal.data.mask_folder import MaskFolder

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    if run is None and model is not None:
        fail("--model goes with --run: give the run whose model it is.")
    if run is not None and runs is not None:
        fail("--run names the folder of runs already: leave out --runs.")
    explorer_command.check_installed()
    opened = MaskFolder(folder)
    opened.check_writable()
    view = {"order": "random", "count": min(images, len(opened.images)), "seed": seed}
    if run is not None:
        view |= _by_energy(folder, run, model)
    for note in opened.notes[:10]:
        say(f"Left out: {note}")
    if len(opened.notes) > 10:
        say(f"Left out: {len(opened.notes) - 10} more files")
    shown = run or runs or Path("runs")
    page = f"masks?{urlencode(view)}"
    raise typer.Exit(explorer_command.explore(shown, port, address, browser, page, folder, say))


def _by_energy(folder: Path, path: Path, model: str | None) -> dict[str, str]:
    """The choices of the page for images by lowest mask energy, checked."""
    from tfcausal.browsing.mask_sample import data_folder, mask_energies
    from tfcausal.browsing.stored_split import StoredSplit, split_names
    from tfcausal.runs import RunDirectory

    run = RunDirectory.open(path)
    trained_on = data_folder(run, Path.cwd())
    if trained_on != folder.expanduser().resolve():
        received = "images made by tfcausal" if trained_on is None else str(trained_on)
        remedy = "Take its own folder, or leave --run out and draw on images at random."
        raise InvalidArgument(message("run", f"a run that was trained on {folder}", received, remedy))
    chosen = model or next(name for split in split_names(run) for name in StoredSplit(run, split).models)
    mask_energies(run, chosen)
    return {"order": "energy", "run": run.name, "model": chosen}
