import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import yaml
import zarr
from PIL import Image
from rich.console import Console

from tfcausal import experiment, training
from tfcausal.config import config_from_mapping
from tfcausal.data.pipeline import training_batches
from tfcausal.errors import DataError, RunError, TrainingDiverged
from tfcausal.evaluation.localisation import MaskEnergy
from tfcausal.experiment import build_model, load_data, run_experiment
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory
from tfcausal.saliency.wbp import WBP


@pytest.fixture
def quiet():
    return ConsoleProgress(Console(quiet=True))


def small_settings(small_config, **changes):
    return {**yaml.safe_load(small_config.read_text()), **changes}


def test_a_run_leaves_everything_that_it_promises(small_run):
    path, result = small_run
    run = RunDirectory.open(path)
    assert run.status.state == "complete"
    for model in ("plain", "ppi", "cfcn"):
        assert {file.name for file in (path / "models" / model).iterdir()} == {"model.keras", "history.csv"}
        assert run.history(model)["epoch"].tolist() == [1, 2, 3]
    assert {"environment.json", "metrics.json", "maps.zarr", "report.html", "run.yaml"} <= set(os.listdir(path))
    for column in ("shuffled contexts", "worst-group", "saliency in mask (chance)", "deletion (random)"):
        assert column in result.stdout
    assert "left 0:00:00" in result.stderr


def test_metrics_are_those_of_the_saved_models(small_run, quiet):
    """Accuracy, mask energy and stored maps, computed again from the files with the library's parts."""
    path, _ = small_run
    run = RunDirectory.open(path)
    maps = zarr.open_group(run.maps_path, mode="r")
    data = load_data(run.config, quiet)
    split = data.splits["test_shuffled"]
    images, masks = split.read(np.arange(len(split)))
    for name in run.config.models:
        model = keras.models.load_model(run.model_path(name))
        probabilities = model.predict(images, verbose=0)
        measured = run.metrics["models"][name]["splits"]["test_shuffled"]
        assert measured["accuracy"]["value"] == pytest.approx((probabilities.argmax(1) == split.labels).mean())
        saliency = WBP(model)(images)
        assert maps[f"splits/test_shuffled/maps/{name}"][:] == pytest.approx(saliency.sum(axis=3), abs=1e-5)
        assert measured["mask_energy"]["value"] == pytest.approx(np.nanmean(MaskEnergy()(saliency, masks)), abs=1e-4)
        assert measured["mask_energy_chance"]["value"] == pytest.approx(masks.mean(), abs=1e-6)


def test_methods_differ_and_start_from_the_same_weights(small_run, small_config, quiet):
    path, _ = small_run
    run = RunDirectory.open(path)
    trained = [keras.models.load_model(run.model_path(name)).get_weights() for name in run.config.models]
    assert not np.allclose(trained[0][0], trained[1][0])
    assert not np.allclose(trained[0][0], trained[2][0])
    data = load_data(run.config, quiet)
    initial = [build_model(run.config, model, data, 5) for model in run.config.models.values()]
    weights = [getattr(model, "explained_network", model).get_weights() for model in initial]
    for other in weights[1:]:
        assert all((one == two).all() for one, two in zip(weights[0], other, strict=True))


def _start(command, *words):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def _kill_in_the_second_epoch(process, folder):
    """kill -9 as soon as the first epoch has been saved."""
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoint-*.weights.h5")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(command, run_command, small_run, small_config, tmp_path):
    """Killed twice: in the second epoch of the plain model, and in the second epoch of PPI, where the warm-up ends."""
    whole, _ = small_run
    killed = tmp_path / "small"
    process = _start(command, "run", small_config, "--runs", tmp_path)
    _kill_in_the_second_epoch(process, killed / "models" / "plain")
    assert RunDirectory.open(killed).status.state == "running"
    assert not (killed / "models" / "plain" / "model.keras").exists()

    process = _start(command, "run", "--resume", killed)
    _kill_in_the_second_epoch(process, killed / "models" / "ppi")
    plain = (killed / "models" / "plain" / "model.keras").stat().st_mtime_ns

    run_command("run", "--resume", killed)
    assert (killed / "models" / "plain" / "model.keras").stat().st_mtime_ns == plain
    assert json.loads((killed / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    for name in ("plain", "ppi", "cfcn"):
        tables = [RunDirectory.open(path).history(name).drop(columns="seconds") for path in (whole, killed)]
        assert tables[0].equals(tables[1])
    leftovers = [path for path in killed.rglob("*") if "partial" in path.name or "checkpoint" in path.name]
    assert leftovers == []


def _folder(path, with_masks):
    """Two classes of 16x16 images, bright above or below the middle, in the layout of a user's folder."""
    random = np.random.default_rng(0)
    for label, rows in {"high": slice(0, 8), "low": slice(8, 16)}.items():
        for kind in ("images", "masks"):
            (path / kind / label).mkdir(parents=True)
        for number in range(20):
            image = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            image[rows] += 150
            Image.fromarray(image).save(path / "images" / label / f"{number}.png")
            mask = np.zeros((16, 16), np.uint8)
            mask[rows] = 255
            Image.fromarray(mask).save(path / "masks" / label / f"{number}.png")
    if not with_masks:
        shutil.rmtree(path / "masks")


def folder_settings(path, **models):
    return {
        "version": 1,
        "name": "folder",
        "data": {"source": "image_folder", "path": str(path), "image_size": 16},
        "backbone": {"name": "all_convolutional", "filters": [4], "strides": 1, "dropout": 0.0},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "evaluation": {"deletion_steps": 2, "deletion_images": 4, "minimum_group_size": 2},
        "report": {"images": 2},
        "models": models or {"plain": {"method": "plain"}},
    }


def test_the_same_run_works_on_a_folder_with_masks(tmp_path, quiet):
    _folder(tmp_path / "data", with_masks=True)
    config = config_from_mapping(
        folder_settings(tmp_path / "data", plain={"method": "plain"}, cfcn={"method": "cfcn", "mask_share": 0.5})
    )
    run = RunDirectory.create(tmp_path / "runs", config)
    with quiet:
        metrics = run_experiment(run, quiet)
    assert metrics["headline_split"] == "test"
    assert metrics["group_attributes"] == ["class"]
    train = metrics["data"]["splits"]["train"]
    assert (train["images"], train["masks"], train["classes"]) == (24, 24, {"high": 12, "low": 12})
    assert run.metrics["models"]["cfcn"]["splits"]["test"]["mask_energy_chance"]["value"] == pytest.approx(0.5)
    assert "shuffled" not in run.report_path.read_text(encoding="utf-8")


def test_a_folder_without_masks_has_no_mask_energy_and_cannot_train_cfcn(tmp_path, quiet):
    _folder(tmp_path / "data", with_masks=False)
    run = RunDirectory.create(tmp_path / "plain", config_from_mapping(folder_settings(tmp_path / "data")))
    with quiet:
        metrics = run_experiment(run, quiet)
    assert metrics["models"]["plain"]["splits"]["test"]["mask_energy"]["n"] == 0
    assert "saliency in mask (chance)" not in run.report_path.read_text(encoding="utf-8")

    config = config_from_mapping(folder_settings(tmp_path / "data", cfcn={"method": "cfcn"}))
    run = RunDirectory.create(tmp_path / "cfcn", config)
    with quiet, pytest.raises(DataError, match=r"`models.cfcn` \(method: cfcn\) needs masks"):
        run_experiment(run, quiet)
    assert not run.path.exists()


def test_skipped_files_are_counted_and_listed_in_the_report(tmp_path, quiet):
    _folder(tmp_path / "data", with_masks=True)
    broken = tmp_path / "data" / "images" / "low" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    settings = folder_settings(tmp_path / "data")
    settings["data"]["on_error"] = "skip"
    run = RunDirectory.create(tmp_path / "runs", config_from_mapping(settings))
    with quiet:
        metrics = run_experiment(run, quiet)
    assert [os.path.basename(file["path"]) for file in metrics["data"]["skipped"]][:1] == ["3.png"]
    page = run.report_path.read_text(encoding="utf-8")
    assert "files were left out" in page
    assert "low/3.png" in page


def test_an_image_that_goes_while_a_model_trains_is_named(tmp_path, quiet, monkeypatch):
    _folder(tmp_path / "data", with_masks=True)
    settings = folder_settings(tmp_path / "data")
    settings["data"]["cache_megabytes"] = 0
    run = RunDirectory.create(tmp_path / "runs", config_from_mapping(settings))

    def check_and_break(config, data):
        shutil.rmtree(tmp_path / "data" / "images")

    monkeypatch.setattr(experiment, "check_data", check_and_break)
    with quiet, pytest.raises(DataError, match=r"images/(high|low)/\d+\.png"):
        run_experiment(run, quiet)
    assert run.status.state == "failed"


def test_a_diverging_run_fails_with_a_reason_and_writes_no_model(small_config, tmp_path, quiet):
    settings = small_settings(small_config, models={"plain": {"method": "plain"}})
    settings["training"]["learning_rate"] = 1e30
    settings["training"]["optimizer"] = "sgd"
    run = RunDirectory.create(tmp_path, config_from_mapping(settings))
    with (
        quiet,
        pytest.raises(TrainingDiverged, match=r"not finite after epoch 1\. Lower the learning rate"),
    ):
        run_experiment(run, quiet)
    assert run.status.state == "failed"
    assert not run.model_path("plain").exists()
    assert run.checkpoints("plain") == []


def test_two_processes_do_not_write_one_run(small_config, tmp_path, quiet):
    run = RunDirectory.create(tmp_path, config_from_mapping(small_settings(small_config)))
    with run.lock(), quiet, pytest.raises(RunError, match="being written by another process"):
        run_experiment(RunDirectory.open(run.path), quiet)


def test_the_share_of_masks_is_what_the_training_sees(small_config, tmp_path, quiet, monkeypatch):
    """80 images, 8 of each class: a quarter of the masks are 2 of each class."""
    seen = []

    def spied(image_set, *arguments):
        seen.append(int(image_set.has_mask.sum()))
        return training_batches(image_set, *arguments)

    monkeypatch.setattr(training, "training_batches", spied)
    models = {"quarter": {"method": "cfcn", "mask_share": 0.25}, "all": {"method": "cfcn", "mask_share": 1.0}}
    run = RunDirectory.create(tmp_path, config_from_mapping(small_settings(small_config, models=models)))
    with quiet:
        metrics = run_experiment(run, quiet)
    assert seen == [20, 80]
    assert [metrics["models"][name]["training_masks"] for name in models] == seen


def test_a_wrong_path_leaves_no_directory_that_blocks_the_right_one(run_command, tmp_path):
    _folder(tmp_path / "data", with_masks=False)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(folder_settings(tmp_path / "data")), encoding="utf-8")
    runs = tmp_path / "runs"
    result = run_command("run", config, "--runs", runs, "--set", f"data.path={tmp_path / 'nowhere'}", check=False)
    assert "nowhere" in result.stderr
    assert list(runs.iterdir()) == []
    run_command("run", config, "--runs", runs)
    assert RunDirectory.open(runs / "folder").status.state == "complete"


def test_a_resumed_run_notices_other_data(tmp_path, quiet):
    _folder(tmp_path / "data", with_masks=True)
    run = RunDirectory.create(tmp_path / "runs", config_from_mapping(folder_settings(tmp_path / "data")))
    with quiet:
        run_experiment(run, quiet)
    (tmp_path / "data" / "images" / "low" / "5.png").unlink()
    (tmp_path / "data" / "masks" / "low" / "5.png").unlink()
    metrics = (run.path / "metrics.json").read_bytes()
    with quiet, pytest.raises(RunError, match=r"the data has changed since the run began \(train, "):
        run_experiment(RunDirectory.open(run.path), quiet)
    assert (run.path / "metrics.json").read_bytes() == metrics


def test_an_interrupted_run_says_how_to_go_on(command, small_config, tmp_path):
    # A process that was started in the background of a shell ignores SIGINT, and hands that on to its children.
    listening = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = _start([sys.executable, "-c", listening, *command], "run", small_config, "--runs", tmp_path)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "small").glob("models/plain/checkpoint-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Go on with `tfcausal run --resume {tmp_path / 'small'}`" in errors


def test_every_training_setting_reaches_the_model(small_config, quiet):
    def compiled(**changes):
        settings = small_settings(small_config, models={"plain": {"method": "plain"}})
        for section, values in changes.items():
            settings[section] = {**settings[section], **values}
        config = config_from_mapping(settings)
        data = load_data(config, quiet)
        _, steps = training_batches(data.splits["train"], config.training.batch_size, config.training.epochs, 0)
        return build_model(config, config.models["plain"], data, steps)

    model = compiled()
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    model.optimizer.iterations.assign(15)  # 3 epochs of 5 steps: the end of the cosine
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0, abs=1e-9)
    model = compiled(training={"learning_rate_schedule": "constant", "optimizer": "sgd", "learning_rate": 0.5})
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    model.optimizer.iterations.assign(15)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5)
    assert compiled(backbone={"filters": [5], "strides": 1}).count_params() != model.count_params()
