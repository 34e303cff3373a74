"""`tfcausal run --engine ray`: what the workers train, and what happens when one of them, or the command, is killed."""

import os
import signal
import subprocess
import time

import keras
import numpy as np
import pytest
from rich.console import Console

from tfcausal.config import config_from_mapping
from tfcausal.errors import InvalidArgument, RunError, UnsupportedOperation, WorkerLost
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory
from tfcausal.scale import training
from tfcausal.scale.training import RayTraining

CONFIG = """
version: 1
name: tiny
seed: 3
data:
  {source: textured_digits, image_size: 16, channels: 1, digit_width: [12, 16], train_size: 48, validation_size: 10,
   test_size: 20, balanced_size: 0}
backbone: {name: vgg, blocks: [[4], [6]], dense_units: [], dropout: 0.0}
training: {epochs: 8, batch_size: 16, learning_rate: 0.003}
models: {a: {method: plain}, b: {method: ppi, warm_up_epochs: 1}}
evaluation: {batch_size: 32, deletion_steps: 2, deletion_images: 4, minimum_group_size: 3}
report: {images: 2}
"""
RAY = ["--engine", "ray", "--workers", "2"]
SECONDS = 400


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(config, run_command, tmp_path_factory):
    """The same run in one process."""
    runs = tmp_path_factory.mktemp("alone")
    run_command("run", config, "--runs", runs)
    return RunDirectory.open(runs / "tiny")


@pytest.fixture
def quiet():
    return ConsoleProgress(Console(quiet=True))


@pytest.fixture
def start(command, tmp_path):
    """Starts the command; what it says goes into a file."""
    started = []

    def begin(*words):
        log = (tmp_path / "log").open("a")
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"}
        words = [*command, "run", *map(str, words), *RAY]
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        started.append((process, log))
        return process

    yield begin
    for process, log in started:
        if process.poll() is None:
            process.terminate()
            process.wait()
        log.close()


def said(folder):
    return " ".join((folder / "log").read_text().split())


def workers_of(process, processes):
    return [pid for pid in processes.descendants(process.pid) if "RayTrainWorker" in processes.title(pid)]


def wait_for_epoch(process, folder, epoch):
    deadline = time.monotonic() + SECONDS
    while not any(path.name >= f"checkpoint-{epoch:04d}" for path in folder.glob("tiny/models/b/checkpoint-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)


def assert_same(run, alone):
    for name in ("a", "b"):
        tables = [each.history(name)[["epoch", "loss", "accuracy", "val_loss"]].to_numpy() for each in (run, alone)]
        np.testing.assert_allclose(*tables, rtol=1e-4)
        assert tables[0][:, 0].tolist() == list(range(1, 9))
        weights = [keras.models.load_model(each.model_path(name), compile=False).get_weights() for each in (run, alone)]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert run.status.state == "complete"
    assert run.metrics["model_names"] == ["a", "b"]
    assert run.report_path.is_file()
    assert not list(run.path.rglob(".partial-*"))
    assert not list(run.path.rglob("checkpoint-*"))


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_is_killed_and_the_training_goes_on_from_the_last_epoch(
    config, start, tmp_path, alone, processes, lost
):
    process = start(config, "--runs", tmp_path)
    wait_for_epoch(process, tmp_path, 2)
    workers = workers_of(process, processes)
    assert len(workers) == 2
    os.kill(workers[lost], signal.SIGKILL)
    assert process.wait(timeout=SECONDS) == 0, said(tmp_path)
    assert said(tmp_path).count("A worker was lost") == 1
    assert "All are started again and go on from the last epoch." in said(tmp_path)
    assert_same(RunDirectory.open(tmp_path / "tiny"), alone)


def test_the_command_is_killed_and_its_workers_end_and_it_is_resumed(config, start, tmp_path, alone, processes):
    process = start(config, "--runs", tmp_path)
    wait_for_epoch(process, tmp_path, 2)
    started, workers = processes.descendants(process.pid), workers_of(process, processes)
    process.kill()
    process.wait()
    assert len(workers) == 2
    assert processes.are_gone(workers, 60)
    processes.end(started)  # Ray's agents notice only after minutes that the rest of it was killed
    done = RunDirectory.open(tmp_path / "tiny").checkpoints("b")[-1][0]
    assert done < 8
    assert start("--resume", tmp_path / "tiny").wait(timeout=SECONDS) == 0, said(tmp_path)
    assert_same(RunDirectory.open(tmp_path / "tiny"), alone)


def test_an_error_of_the_training_is_not_tried_again(config, start, tmp_path):
    process = start(config, "--runs", tmp_path, "--set", "training.learning_rate=1e30")
    assert process.wait(timeout=SECONDS) == 1
    run = RunDirectory.open(tmp_path / "tiny")
    assert run.status.state == "failed"
    assert "A worker was lost" not in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert "Error: Training was stopped" in said(tmp_path)
    assert not list(run.path.glob(".partial-*"))


# Without Ray.


def small(**changes):
    settings = {
        "version": 1,
        "name": "tiny",
        "data": {"source": "textured_digits"},
        "models": {"plain": {"method": "plain"}},
        "training": {"epochs": 4, "batch_size": 16, **changes},
    }
    return config_from_mapping(settings)


@pytest.mark.parametrize(
    ("workers", "changes", "environment", "match"),
    [
        (3, {}, {}, "`training.batch_size`: expected a multiple of the 3 replicas; received 16"),
        (2, {"strategy": "mirrored"}, {}, "`training.strategy`: expected auto, or multi_worker.*received mirrored"),
        (2, {}, {"TF_CONFIG": "{}"}, "`TF_CONFIG`: expected none with the engine ray.*Ray Train sets it"),
    ],
)
def test_what_the_workers_cannot_train_is_said_before_anything_starts(
    workers, changes, environment, match, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidArgument, match=match):
        RayTraining(workers).check(small(**changes))


@pytest.mark.parametrize("workers", [0, True, 1.5])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(InvalidArgument, match="`workers`: expected an integer of at least 1"):
        RayTraining(workers)


def test_without_ray_nothing_is_made(config, monkeypatch, tmp_path):
    import sys

    from typer.testing import CliRunner

    from tfcausal.cli import app

    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["run", str(config), "--runs", str(tmp_path), *RAY])
    assert isinstance(result.exception, UnsupportedOperation)
    assert "tfcausal[ray]" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


class NoSession:
    """In the place of a session of Ray."""

    def __call__(self, address, cpus):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def cluster_resources(self):
        return {"CPU": 2}


@pytest.mark.parametrize(("epochs", "attempts"), [([0, 0, 0], 3), ([1, 0, 0], 3), ([0, 0, 1, 0, 0], 5)])
def test_workers_are_lost_three_times_without_an_epoch(tmp_path, monkeypatch, quiet, epochs, attempts):
    run, begun, losses = RunDirectory.create(tmp_path, small()), [], iter(epochs)

    def fit(self, run, gpus):
        begun.append(gpus)
        for _ in range(next(losses)):
            run.checkpoint_path("plain", len(begun)).touch()
        return "killed"

    monkeypatch.setattr(training, "ray_session", NoSession())
    monkeypatch.setattr(RayTraining, "_fit", fit)
    with quiet, pytest.raises(RunError, match=r"lost 3 times without a new epoch \(killed\).*--resume .*tiny --engine"):
        RayTraining(2)(run, None, quiet, None)
    assert begun == [False] * attempts


def test_a_lost_worker_is_no_error_of_the_training(tmp_path, monkeypatch):
    """What the others raise when one is lost; and an error of the training beside it counts more."""
    import ray.train
    import ray.train.tensorflow

    failures = {}

    class Trainer:
        def __init__(self, work, **settings):
            assert settings["scaling_config"].num_workers == 2
            assert settings["run_config"].failure_config.max_failures == 0

        def fit(self):
            raise ray.train.WorkerGroupError("failed", dict(failures))

    monkeypatch.setattr(ray.train.tensorflow, "TensorflowTrainer", Trainer)
    run = RunDirectory.create(tmp_path, small())
    failures[0] = WorkerLost("another worker has failed")
    assert RayTraining(2)._fit(run, gpus=False) == "WorkerLost: another worker has failed"
    failures[1] = InvalidArgument("the data are wrong")
    with pytest.raises(InvalidArgument, match="the data are wrong"):
        RayTraining(2)._fit(run, gpus=False)
