import json
import shutil

import numpy as np
import pytest

from tfcausal import explorer_command
from tfcausal.browsing.overlays import to_png
from tfcausal.report import headline
from tfcausal.runs import RunDirectory


def errors(app):
    assert not app.exception
    return [error.value for error in app.error]


def test_every_run_is_listed_with_its_state_and_a_broken_one_disturbs_no_other(explorer, finished_runs):
    app = explorer(finished_runs, run="small")
    assert errors(app) == []
    listed = app.dataframe[0].value.set_index("run")
    states = listed["state"].str.split().str[1].to_dict()
    assert states == {"small": "complete", "failed": "failed", "other": "complete", "half": "broken"}
    assert listed.loc["failed", "problem"] == "no space left"
    assert "data" in listed.loc["half", "problem"]
    table = app.dataframe[1].value
    expected = headline(RunDirectory.open(finished_runs / "small").metrics)
    assert {name: table[name].tolist() for name in table} == {column.title: column.cells for column in expected}
    assert app.get("plotly_chart") == []  # only the section that is shown is made


def test_a_broken_run_says_what_is_wrong_with_it(explorer, finished_runs):
    (error,) = errors(explorer(finished_runs, run="half"))
    assert error.startswith("broken: ")
    assert "data" in error


def test_a_failed_run_shows_its_error_and_what_it_trained(explorer, finished_runs):
    app = explorer(finished_runs, run="failed")
    assert errors(app) == ["failed: no space left"]
    assert app.query_params["section"] == "training"
    assert len(app.get("plotly_chart")) == 1


def test_a_training_run_shows_its_epochs_and_what_became_of_its_process(explorer, runs, start_training, add_epoch):
    running = start_training(runs)
    app = explorer(runs, run="training")
    assert errors(app) == []
    assert app.dataframe[0].value.set_index("run").loc["training", "state"].split()[1] == "running"
    assert app.query_params["section"] == "training"
    assert len(app.get("plotly_chart")) == 1
    shown = [element.proto.text for element in app.get("progress")]
    assert shown == ["plain: 1 of 3 epochs", "ppi: 0 of 3 epochs", "cfcn: 0 of 3 epochs"]
    add_epoch(running)
    app.run()
    assert app.get("progress")[0].proto.text == "plain: 2 of 3 epochs"

    (running / ".lock").write_text(str(2**22 + 1))  # above the largest process number
    app.run()
    assert app.dataframe[0].value.set_index("run").loc["training", "state"].split()[1] == "stopped"


def test_a_run_that_is_deleted_while_it_is_shown_is_gone_without_a_crash(explorer, runs):
    app = explorer(runs, run="small")
    shutil.rmtree(runs / "small")
    app.run()
    assert errors(app) == ["failed: no space left"]  # the run that is now the first one
    assert "small" not in app.selectbox(key="choice-run").options


def test_configurations_are_compared_by_setting(explorer, finished_runs):
    app = explorer(finished_runs, run="small", section="configurations", configs=["small", "other"])
    _, differences = (table.value for table in app.dataframe)
    assert differences.to_dict("records") == [{"setting": "seed", "small": "3", "other": "4"}]


@pytest.mark.parametrize("name", ["../..", "/etc", "small/models", "..", "half/../small", "\x00"])
def test_a_link_to_a_path_opens_nothing(explorer, finished_runs, name):
    app = explorer(finished_runs, run=name)
    assert not app.exception
    assert "There is no run" in app.warning[0].value
    assert app.query_params["run"] == "failed"  # the one that changed last


def test_metrics_of_another_shape_are_reported(explorer, runs):
    metrics = json.loads((runs / "small" / "metrics.json").read_text())
    del metrics["headline_split"]
    (runs / "small" / "metrics.json").write_text(json.dumps(metrics))
    (error,) = errors(explorer(runs, run="small"))
    assert "cannot be read (KeyError: 'headline_split')" in error


def test_without_runs_the_quickstart_is_offered(explorer, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(explorer_command, "start_quickstart", started.append)
    app = explorer(tmp_path / "nothing")
    assert errors(app) == []
    assert "There are no runs" in app.info[0].value
    assert f"--runs {tmp_path / 'nothing'}" in app.code[0].value
    app.button[0].click().run()
    assert started == [tmp_path / "nothing"]
    assert not app.exception


def test_the_snapshots_of_a_training_are_shown(explorer, runs):
    folder = runs / "small" / "snapshots" / "ppi"
    folder.mkdir(parents=True)
    for epoch in (1, 3):
        (folder / f"saliency-epoch-{epoch:04d}.png").write_bytes(to_png(np.zeros((2, 2, 3))))
    app = explorer(runs, run="small", section="training")
    assert app.subheader[0].value == "ppi, maps after epoch 3"
    (picture,) = app.get("image")
    assert picture.proto.imgs[0].alt == "Images and saliency maps of ppi after epoch 3"


def test_a_section_that_was_chosen_stays_until_another_run_is_chosen(explorer, runs, start_training):
    start_training(runs)
    app = explorer(runs, run="small")
    app.segmented_control(key="choice-section").set_value("configurations").run()
    app.run()
    assert app.query_params["section"] == "configurations"
    app.selectbox(key="choice-run").set_value("training").run()
    assert app.query_params["section"] == "training"
    app.segmented_control(key="choice-section").set_value("measures").run()
    assert "has measured nothing yet" in app.info[0].value
    assert len(app.get("progress")) == 3  # how far it is shows beside every section
    assert errors(app) == []


def test_what_is_exported_is_the_section_that_is_shown(explorer, finished_runs):
    app = explorer(finished_runs, run="small")
    for section, expected in {"measures": 2, "training": 2, "configurations": 1}.items():
        app.segmented_control(key="choice-section").set_value(section).run()
        labels = [button.proto.label for button in app.get("download_button")]
        assert labels == ["PNG", "CSV"][-expected:]
