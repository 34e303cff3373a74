"""Runs: which there are, how far they are, what they measured, and how their configurations differ."""

from __future__ import annotations

import contextlib
from datetime import datetime
from functools import partial
from io import BytesIO

import pandas as pd
import streamlit as st
from PIL import Image

from tfcausal.browsing.runs import (
    RunSummary,
    config_differences,
    deletion_curves,
    epochs_done,
    measures,
    snapshots,
    training_curves,
)
from tfcausal.config import dump_config
from tfcausal.errors import TfCausalError
from tfcausal.explorer_command import quickstart_config, start_quickstart
from tfcausal.report import headline
from tfcausal.runs import RunDirectory
from widgets import address, cached, charts, export, frame, pictures
from widgets.wording import plain

ABOUT = "Every run in the folder, how far it is, and what it measured; a run that trains is followed while it does."
REFRESH_SECONDS = 3
MEASURED, TRAINING, CONFIGURATIONS = "measures", "training", "configurations"


def is_alive(runs: list[RunSummary]) -> bool:
    return any(run.state == "running" for run in runs)


def listed(runs: list[RunSummary]) -> pd.DataFrame:
    rows = [
        {
            "run": run.name,
            "state": f"{frame.STATES[run.state]} {run.state}",
            "started": _time(run.started),
            "updated": _time(run.updated),
            "models": ", ".join(run.models),
            "problem": " ".join((run.problem or "").split()),
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def show_list(alive: bool) -> None:
    runs = cached.summaries()
    if is_alive(runs) != alive:
        st.rerun()  # the whole page: it is followed from now on, or no longer
    table = listed(runs)
    if not any(run.problem for run in runs):
        table = table.drop(columns="problem")
    counts = table["state"].str[2:].value_counts()
    alt = f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    st.dataframe(table, hide_index=True, alt=alt)
    st.caption(
        "complete: measured, with a report · running: a process works on it · stopped: not finished, and no process "
        "works on it (`tfcausal run --resume`) · failed: ended with an error · broken: cannot be read"
    )


def choose_section(summary: RunSummary | None) -> str:
    """Which part of the page is shown; first of a run is what it measured, or how it trains."""
    state = "broken" if summary is None else summary.state
    address.anew("section", of=None if summary is None else summary.name)
    first = {"complete": MEASURED, "broken": CONFIGURATIONS}.get(state, TRAINING)
    return address.segments("section", "Section", [MEASURED, TRAINING, CONFIGURATIONS], first)


def show_run(name: str, section: str) -> None:
    summary = found(name)
    if summary is None:
        st.error(f"The run '{name}' is gone: it was deleted or moved.", icon=":material/error:")
        return
    if summary.problem:
        frame.problem(f"{summary.state}: {summary.problem}")
    if summary.state == "broken":
        return
    with frame.shown_errors():
        run = cached.open_run(cached.run_key(name))
        if summary.state != "complete":
            show_progress(run)
        if section == MEASURED:
            show_metrics(run, summary)
        elif section == TRAINING:
            show_training(run)
            show_snapshots(run)


def show_metrics(run: RunDirectory, summary: RunSummary) -> None:
    if summary.state != "complete":
        st.info("This run has measured nothing yet: it does when all its models are trained.", icon=":material/info:")
        return
    try:
        columns = headline(run.metrics)
    except (LookupError, TypeError, AttributeError) as error:
        frame.problem(f"The metrics of this run cannot be read ({type(error).__name__}: {error}).")
        return
    table = pd.DataFrame({column.title: column.cells for column in columns})
    alt = "; ".join(
        f"{model}: " + ", ".join(f"{column.title} {column.cells[row]}" for column in columns[1:])
        for row, model in enumerate(columns[0].cells)
    )
    st.dataframe(table, hide_index=True, alt=f"Measures by model. {alt}")
    st.caption(" ".join(f"**{column.title}**: {column.meaning}" for column in columns if column.meaning))


def show_progress(run: RunDirectory) -> None:
    for model, (done, wanted) in epochs_done(run).items():
        text = f"{model}: {done} of {wanted} epochs" if wanted else f"{model}: its last layer is trained again"
        st.progress(min(1.0, done / wanted) if wanted else float(run.model_path(model).exists()), text)


def show_training(run: RunDirectory) -> None:
    table = training_curves(run)
    if table.empty:
        st.info("No epoch is finished yet.", icon=":material/hourglass_empty:")
        return
    values = list(dict.fromkeys(["loss", "accuracy", *table["value"]]))
    value = address.segments("value", "Value over the epochs", values, format_func=frame.spoken)
    charts.training(table, value, key="training")
    address.update()


def show_snapshots(run: RunDirectory) -> None:
    for model, files in snapshots(run).items():
        epoch = int(files[0].stem.rsplit("-", 1)[1])
        st.subheader(f"{model}, maps after epoch {epoch}", anchor=False)
        alt = f"Images and saliency maps of {model} after epoch {epoch}"
        try:
            content = files[0].read_bytes()
            Image.open(BytesIO(content)).verify()
            pictures.show_png(content, alt)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # no picture, or gone
            frame.problem(f"{files[0].name}: cannot be read ({error}).")


def show_differences() -> pd.DataFrame:
    usable = [run.name for run in cached.summaries() if run.state != "broken"]
    chosen = address.several("configs", "Runs whose configurations are compared", usable, usable[:2])
    configs = {name: cached.open_run(cached.run_key(name)).config for name in chosen}
    differences = config_differences(configs).rename_axis("setting").reset_index()
    if len(configs) > 1 and differences.empty:
        st.info("These configurations differ in nothing but the name.", icon=":material/info:")
    elif len(configs) > 1:
        st.dataframe(differences, hide_index=True, alt=f"{len(differences)} settings in which the runs differ")
    for name, config in configs.items():
        with st.expander(f"run.yaml of {name}"):
            st.code(dump_config(config), language="yaml")
    return differences


def offer_quickstart() -> None:
    if cached.summaries():
        st.rerun()
    folder = cached.folder().path
    st.info(f"There are no runs in {plain(folder)} yet.", icon=":material/info:")
    st.write("The quickstart trains four small models in a few minutes, on digits that need no download:")
    config = quickstart_config()
    st.code(f"tfcausal run {config} --runs {folder}", language="bash")
    if config.is_file() and st.button("Run the quickstart now", type="primary", icon=":material/play_arrow:"):
        start_quickstart(folder)
        st.success("Started; it will be listed here in some seconds.", icon=":material/check:")


def _time(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M") if text else ""


def found(name: str) -> RunSummary | None:
    return next((run for run in cached.summaries() if run.name == name), None)


def measures_table(name: str) -> pd.DataFrame:
    try:
        return measures(cached.open_run(cached.run_key(name)))
    except TfCausalError:  # it has none
        return listed(cached.summaries())


def deletion_picture(run: RunDirectory) -> bytes:
    from tfcausal import figures

    return figures.deletion_curves(deletion_curves(run, run.metrics["headline_split"]))


def training_picture(run: RunDirectory) -> bytes:
    from tfcausal import figures

    begun = [model for model, (done, _) in epochs_done(run).items() if done]
    return figures.histories({model: run.history(model) for model in begun})


def offer_exports(name: str, section: str) -> None:
    table, picture = partial(measures_table, name), None
    with contextlib.suppress(TfCausalError):
        run = cached.open_run(cached.run_key(name))
        if section == MEASURED and deletion_curves(run, str(run.metrics.get("headline_split"))):
            picture = partial(deletion_picture, run)
        elif section == TRAINING and any(done for done, _ in epochs_done(run).values()):
            table, picture = partial(training_curves, run), partial(training_picture, run)
    export.bar(f"runs-{section}-{name}", table, picture)


with frame.page("Runs", ABOUT):
    runs = cached.summaries()
    alive = is_alive(runs)
    every = REFRESH_SECONDS if alive else None
    if runs:
        st.fragment(show_list, run_every=every)(alive)
        _, chosen, _ = frame.choose_run(runs)
        section = choose_section(found(chosen))
        st.fragment(show_run, run_every=every)(chosen, section)
        if section == CONFIGURATIONS:
            with frame.shown_errors():
                differences = show_differences()
                export.bar("runs-configurations", lambda: differences)
        else:
            offer_exports(chosen, section)
    else:
        st.fragment(offer_quickstart, run_every=REFRESH_SECONDS)()
