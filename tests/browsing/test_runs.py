import json
import os
import shutil

import pytest

from tfcausal.browsing.runs import (
    RunsFolder,
    config_differences,
    deletion_curves,
    epochs_done,
    measures,
    snapshots,
    training_curves,
)
from tfcausal.config import config_from_mapping
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.runs import RunDirectory


def settings(**changes):
    models = {"plain": {"method": "plain"}, "ppi": {"method": "ppi", "epochs": 9}}
    return {"version": 1, "name": "try", "data": {"source": "textured_digits"}, "models": models, **changes}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs", config_from_mapping(settings()))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../runs", "/etc", "try/models", "try/../try", "a b", ".hidden", "nul\x00"]
)
def test_a_name_that_is_a_path_opens_nothing(run, name):
    folder = RunsFolder(run.path.parent)
    with pytest.raises(InvalidArgument, match="expected the name of a run"):
        folder.open(name)
    assert folder.version(name) == ""
    assert folder.summary(name).state == "broken"


def test_a_link_out_of_the_folder_is_not_followed(run, tmp_path):
    outside = shutil.copytree(run.path, tmp_path / "outside" / "try")
    (run.path.parent / "linked").symlink_to(outside)
    folder = RunsFolder(run.path.parent)
    assert folder.names() == ["try"]
    with pytest.raises(InvalidArgument, match="expected the name of a run"):
        folder.open("linked")


def test_a_run_is_given_in_place_of_its_folder(run):
    folder = RunsFolder(run.path)
    assert (folder.path, folder.chosen, folder.names()) == (run.path.parent, "try", ["try"])
    assert RunsFolder(run.path.parent).chosen is None
    assert RunsFolder(run.path / "nothing").names() == []


def test_the_state_of_a_run_is_that_of_its_process(run):
    folder = RunsFolder(run.path.parent)
    assert folder.summary("try").state == "running"  # nobody has locked it yet
    with run.lock():
        assert folder.summary("try").state == "running"
    (run.path / ".lock").write_text(str(2**22 + 1))  # above the largest process number
    assert folder.summary("try").state == "stopped"
    run.set_status("failed", "no space left")
    assert (folder.summary("try").state, folder.summary("try").problem) == ("failed", "no space left")
    (run.path / "status.json").write_bytes(b"\xff{")
    assert folder.summary("try").state == "broken"
    (run.path / "run.yaml").write_bytes(b"\x00\xff")
    assert folder.summary("try").state == "broken"
    assert folder.summary("gone").state == "broken"


def test_folders_that_are_no_runs_are_left_out_and_the_last_change_comes_first(run):
    root = run.path.parent
    (root / "notes").mkdir()
    (root / "file").write_text("")
    shutil.copytree(run.path, root / ".partial-0a1b2c3d.try")
    second = shutil.copytree(run.path, root / "second")
    os.utime(run.path / "status.json", (1e9, 1e9))
    os.utime(second / "status.json", (2e9, 2e9))
    assert [summary.name for summary in RunsFolder(root).summaries()] == ["second", "try"]


def test_the_version_changes_with_what_is_finished(run):
    folder = RunsFolder(run.path.parent)
    before = folder.version("try")
    assert folder.version("try") == before
    run.write_metrics({})
    assert folder.version("try") != before


def test_epochs_and_curves_grow_while_a_run_trains(run):
    assert epochs_done(run) == {"plain": (0, 25), "ppi": (0, 9)}
    assert training_curves(run).empty
    run.write_history("ppi", [{"epoch": 1, "loss": 2.0, "contrast_loss": 0.5, "val_loss": 3.0, "seconds": 9.0}])
    assert epochs_done(run) == {"plain": (0, 25), "ppi": (1, 9)}
    assert training_curves(run).to_numpy().tolist() == [
        ["ppi", 1, "training", "loss", 2.0],
        ["ppi", 1, "training", "contrast_loss", 0.5],
        ["ppi", 1, "validation", "loss", 3.0],
    ]
    (run.path / "models" / "ppi" / "history.csv").write_text('epoch,loss\n1,"2')
    with pytest.raises(RunError, match=r"history\.csv: expected a table"):
        training_curves(run)


def test_snapshots_are_listed_last_epoch_first(run):
    folder = run.path / "snapshots" / "plain"
    folder.mkdir(parents=True)
    for number in (2, 10, 1):
        (folder / f"saliency-epoch-{number:04d}.png").touch()
    assert [path.stem[-2:] for path in snapshots(run)["plain"]] == ["10", "02", "01"]
    assert list(snapshots(run)) == ["plain"]


def test_measures_are_those_of_the_metrics(small_run):
    run = RunDirectory.open(small_run[0])
    table = measures(run)
    assert len(table) == 3 * (3 * 5 + 1)
    row = table[(table.model == "cfcn") & (table.split == "test") & (table.measure == "deletion")].iloc[0]
    expected = run.metrics["models"]["cfcn"]["splits"]["test"]["deletion"]
    assert row[["value", "low", "high", "n"]].to_dict() == {key: expected[key] for key in ("value", "low", "high", "n")}
    worst = table[table.measure.str.startswith("worst_group") & (table.model == "ppi")].iloc[0]
    assert worst["value"] == run.metrics["models"]["ppi"]["worst_group"]["value"]
    curve, control = deletion_curves(run, "test")["plain"]
    assert (len(curve), len(control)) == (5, 5)
    assert curve[0] == control[0]
    assert deletion_curves(run, "nothing") == {}


def test_metrics_that_are_damaged_name_their_file(small_run, tmp_path):
    path = shutil.copytree(small_run[0], tmp_path / "small")
    metrics = json.loads((path / "metrics.json").read_text())
    del metrics["models"]["ppi"]
    (path / "metrics.json").write_text(json.dumps(metrics))
    run = RunDirectory.open(path)
    with pytest.raises(RunError, match=r"metrics\.json: cannot be read \(KeyError: 'ppi'\)"):
        measures(run)
    shutil.rmtree(path)
    with pytest.raises(RunError, match="missing"):
        measures(run)


def test_configurations_differ_in_settings_by_key_path():
    one = config_from_mapping(settings())
    two = config_from_mapping(settings(seed=7, name="other", models={"plain": {"method": "plain", "epochs": 3}}))
    table = config_differences({"one": one, "two": two})
    assert table.loc["seed"].tolist() == ["0", "7"]
    assert table.loc["models.plain.epochs"].tolist() == ["null", "3"]
    assert table.loc["models.ppi.threshold"].tolist() == ["0.25", "–"]
    assert "name" not in table.index
    assert config_differences({"one": one, "same": one}).empty


@pytest.mark.parametrize("change", [{"started": "yesterday"}, {"updated": 3}, {"error": [1]}])
def test_a_status_that_says_nothing_makes_a_broken_run(run, change):
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps({**status, **change}))
    summary = RunsFolder(run.path.parent).summary("try")
    assert summary.state == "broken"
    assert "status.json: cannot be read" in summary.problem


@pytest.mark.parametrize("table", ["turn,loss\n1,2\n", "epoch,loss\n,0.5\n"])
def test_a_history_of_another_shape_is_an_error_that_names_it(run, table):
    (run.path / "models" / "plain" / "history.csv").write_text(table)
    with pytest.raises(RunError, match=r"models/plain: cannot be read"):
        training_curves(run)


def test_only_files_of_an_epoch_are_snapshots(run):
    folder = run.path / "snapshots" / "plain"
    folder.mkdir(parents=True)
    for name in ("saliency-epoch-0002.png", "saliency-epoch-0010.png", "saliency-epoch-x.png", "other.png"):
        (folder / name).write_bytes(b"")
    assert [file.name for file in snapshots(run)["plain"]] == ["saliency-epoch-0010.png", "saliency-epoch-0002.png"]
