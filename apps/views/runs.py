"""Runs: which there are, how far they are, what they measured, and how their configurations differ."""

from __future__ import annotations

import contextlib
from datetime import datetime
from functools import partial

import pandas as pd
import streamlit as st

from tfcausal.browsing.runs import (
    MEASURES,
    RunSummary,
    config_differences,
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
from widgets import address, cached, charts, export, frame
from widgets.wording import plain

ABOUT = "Every run in the folder, how far it is, and what it measured; a run that trains is followed while it does."
REFRESH_SECONDS = 3


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


def show_run(name: str) -> None:
    summary = next((run for run in cached.summaries() if run.name == name), None)
    if summary is None:
        st.error(f"The run '{name}' is gone: it was deleted or moved.", icon=":material/error:")
        return
    if summary.problem:
        frame.problem(f"{summary.state}: {summary.problem}")
    if summary.state == "broken":
        return
    with frame.shown_errors():
        run = cached.open_run(cached.run_key(name))
        if summary.state == "complete":
            show_metrics(run)
        else:
            show_progress(run)
        show_training(run)
        show_snapshots(run)


def show_metrics(run: RunDirectory) -> None:
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
            st.image(files[0].read_bytes(), alt=alt, width="stretch", output_format="PNG")
        except OSError as error:  # no picture, or gone
            frame.problem(f"{files[0].name}: cannot be read ({error}).")


def show_differences() -> None:
    usable = [run.name for run in cached.summaries() if run.state != "broken"]
    chosen = address.several("configs", "Runs whose configurations are compared", usable, usable[:2])
    configs = {name: cached.open_run(cached.run_key(name)).config for name in chosen}
    if len(configs) > 1:
        differences = config_differences(configs).rename_axis("setting").reset_index()
        if differences.empty:
            st.info("These configurations differ in nothing but the name.", icon=":material/info:")
        else:
            st.dataframe(differences, hide_index=True, alt=f"{len(differences)} settings in which the runs differ")
    for name, config in configs.items():
        with st.expander(f"run.yaml of {name}"):
            st.code(dump_config(config), language="yaml")


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


def exported(name: str) -> pd.DataFrame:
    try:
        return measures(cached.open_run(cached.run_key(name)))
    except TfCausalError:
        return listed(cached.summaries())


def picture(run: RunDirectory, models: list[str]) -> bytes:
    from tfcausal import figures

    return figures.histories({model: run.history(model) for model in models})


def offer_exports(name: str) -> None:
    make = None
    with contextlib.suppress(TfCausalError):
        run = cached.open_run(cached.run_key(name))
        begun = [model for model, (done, _) in epochs_done(run).items() if done]
        make = partial(picture, run, begun) if begun else None
    export.bar(f"runs-{name}", lambda: exported(name), make)


with frame.page("Runs", ABOUT):
    runs = cached.summaries()
    alive = is_alive(runs)
    every = REFRESH_SECONDS if alive else None
    if runs:
        st.fragment(show_list, run_every=every)(alive)
        _, chosen, _ = frame.choose_run(runs)
        st.fragment(show_run, run_every=every)(chosen)
        st.subheader("Configurations", anchor=False)
        with frame.shown_errors():
            show_differences()
        offer_exports(chosen)
        with st.expander("What the measures say"):
            st.write("\n".join(f"- **{frame.spoken(name)}**: {meaning}" for name, meaning in MEASURES.items()))
    else:
        st.fragment(offer_quickstart, run_every=REFRESH_SECONDS)()
