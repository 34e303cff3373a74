"""Runs of every training method, tiny; what is checked before they begin; trainings that are interrupted."""

import json
import os
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
import zarr
from PIL import Image
from rich.console import Console

from tfcausal import experiment, training
from tfcausal.callbacks import StopOnDivergence
from tfcausal.config import config_from_mapping
from tfcausal.errors import DataError, InvalidArgument, UnsupportedOperation
from tfcausal.experiment import load_data, run_experiment
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory
from tfcausal.training import check_models, trained_on

TINY = """
version: 1
name: tiny
seed: 3
data:
  source: textured_digits
  image_size: 16
  channels: 1
  digit_width: [12, 16]
  train_size: 48
  validation_size: 10
  test_size: 20
  balanced_size: 220
backbone: {name: vgg, blocks: [[4], [6]], dense_units: [], dropout: 0.2}
training: {epochs: 2, batch_size: 16, learning_rate: 0.003}
models: {}
evaluation: {batch_size: 32, deletion_steps: 2, deletion_images: 4, minimum_group_size: 3}
report: {images: 2}
"""
METHODS = {
    "dfr": {"method": "dfr", "of": "plain", "inverse_strengths": [0.3, 0.1], "subsets": 2},
    "plain": {"method": "plain"},
    "ppi": {"method": "ppi", "saliency": "grad_cam", "mask": "box", "contrast": "probability", "warm_up_epochs": 1},
    "cfcn": {"method": "cfcn", "variant": "F", "mask_share": 0.5, "epochs": 1},
    "gain": {"method": "gain", "supervision_weight": 10, "warm_up_epochs": 0},
    "rrr": {"method": "rrr", "mask_share": 0.25, "epochs": 3},
}


@pytest.fixture(scope="module")
def quiet():
    return ConsoleProgress(Console(quiet=True))


def tiny(models, **changes):
    settings = {**yaml.safe_load(TINY), "models": models}
    for section, values in changes.items():
        settings[section] = {**settings[section], **values}
    return config_from_mapping(settings)


def experimented(folder, quiet, config):
    run = RunDirectory.create(folder, config)
    with quiet:
        run_experiment(run, quiet)
    return run


@pytest.fixture(scope="module")
def every_method(tmp_path_factory, quiet):
    return experimented(tmp_path_factory.mktemp("methods"), quiet, tiny(METHODS))


def test_every_method_is_trained_and_measured(every_method):
    metrics = every_method.metrics
    assert every_method.status.state == "complete"
    assert metrics["model_names"] == list(METHODS)
    epochs = {name: every_method.history(name)["epoch"].tolist() for name in METHODS}
    assert epochs == {"dfr": [1], "plain": [1, 2], "ppi": [1, 2], "cfcn": [1], "gain": [1, 2], "rrr": [1, 2, 3]}
    masks = {name: metrics["models"][name]["training_masks"] for name in METHODS}
    assert masks == {"dfr": 0, "plain": 0, "ppi": 0, "cfcn": 20, "gain": 48, "rrr": 10}
    for name in METHODS:
        assert keras.models.load_model(every_method.model_path(name)).output_shape == (None, 10)
        assert metrics["models"][name]["splits"]["test_shuffled"]["accuracy"]["n"] == 20
    for name, term in {"ppi": "contrast_loss", "gain": "supervision_loss", "rrr": "right_reasons_loss"}.items():
        assert every_method.history(name)[term].iloc[-1] > 0
    assert every_method.history("ppi")["contrast_loss"].iloc[0] == 0  # the warm-up


def test_models_are_not_measured_on_the_balanced_images(every_method):
    metrics = every_method.metrics
    assert metrics["split_names"] == ["validation", "test", "test_shuffled"]
    assert metrics["group_splits"] == ["test", "test_shuffled"]
    maps = zarr.open_group(every_method.maps_path, mode="r")
    assert set(maps["splits"]) == {"validation", "test", "test_shuffled"}
    for model in metrics["models"].values():
        assert set(model["splits"]) == {"validation", "test", "test_shuffled"}
    assert metrics["data"]["splits"]["balanced"]["images"] == 220
    assert metrics["models"]["plain"]["trained_on"] == ["train"]
    assert metrics["models"]["dfr"]["trained_on"] == ["train", "balanced"]


def test_last_layer_retraining_changes_the_last_layer_alone(every_method):
    plain, retrained = (keras.models.load_model(every_method.model_path(name)) for name in ("plain", "dfr"))
    last = plain.get_layer("logits")
    for layer in plain.layers:
        same = layer is not last
        for one, other in zip(layer.get_weights(), retrained.get_layer(layer.name).get_weights(), strict=True):
            assert np.array_equal(one, other) == same
    row = every_method.history("dfr").iloc[0]
    assert row["inverse_strength"] in (0.3, 0.1)
    assert 0 <= row["accuracy"] <= 1
    assert row["loss"] > 0


def test_the_balanced_images_reach_last_layer_retraining_with_their_contexts(
    every_method, tmp_path, quiet, monkeypatch
):
    seen = {}

    def spied(model, images, labels, groups, **options):
        seen.update(images=images, labels=labels, groups=groups, **options)
        raise InvalidArgument("enough")

    monkeypatch.setattr(training, "retrain_last_layer", spied)
    shutil.copytree(every_method.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "models" / "dfr")
    run = RunDirectory.open(tmp_path / "copy")
    with quiet, pytest.raises(InvalidArgument, match="enough"):
        run_experiment(run, quiet)
    split = load_data(run.config, quiet).splits["balanced"]
    np.testing.assert_array_equal(seen["images"], split.read(np.arange(220))[0])
    np.testing.assert_array_equal(seen["labels"], split.labels)
    np.testing.assert_array_equal(seen["groups"], split.contexts)
    assert {key: seen[key] for key in ("inverse_strengths", "selection_share", "subsets", "batch_size", "seed")} == {
        "inverse_strengths": (0.3, 0.1),
        "selection_share": 0.5,
        "subsets": 2,
        "batch_size": 32,
        "seed": 3,
    }


# Interrupted.


class Killed(BaseException):
    pass


class KillInTheSecondEpoch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 5:  # of three in an epoch
            raise Killed


@pytest.mark.parametrize(
    ("model", "changes", "devices"),
    [
        ({"method": "plain"}, {"precision": "mixed_float16", "weight_decay": 0.1}, None),
        ({"method": "rrr", "ramp_epochs": 2}, {"optimizer": "sgd"}, ["CPU:0"]),
    ],
    ids=["loss scale", "ramp and strategy"],
)
def test_an_interrupted_training_goes_on_and_ends_the_same(tmp_path, quiet, monkeypatch, model, changes, devices):
    """The one that is not interrupted has no strategy: a single device under one must give the same numbers."""
    monkeypatch.setattr(experiment, "_evaluate", lambda run, data, progress: {})
    monkeypatch.setattr(experiment, "write_report", lambda run: None)
    config = tiny({"m": model}, training={"epochs": 3, **changes})
    whole = experimented(tmp_path / "whole", quiet, config)
    if devices:
        monkeypatch.setattr(experiment, "choose_strategy", lambda name: tf.distribute.MirroredStrategy(devices))
    run = RunDirectory.create(tmp_path / "killed", config)
    monkeypatch.setattr(training, "StopOnDivergence", KillInTheSecondEpoch)
    with quiet, pytest.raises(Killed):
        run_experiment(run, quiet)
    monkeypatch.setattr(training, "StopOnDivergence", StopOnDivergence)
    assert [epoch for epoch, _ in run.checkpoints("m")] == [1]
    with quiet:
        run_experiment(RunDirectory.open(run.path), quiet)
    tables = [each.history("m").drop(columns="seconds") for each in (whole, run)]
    assert tables[0]["epoch"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(tables[1].to_numpy(), tables[0].to_numpy(), rtol=1e-5, atol=1e-7)
    weights = [keras.models.load_model(each.model_path("m"), compile=False).get_weights() for each in (whole, run)]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def start_workers(command, words):
    """Two processes of the command line, each with words of its own, on free ports of this machine."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    processes = []
    for index in range(2):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": task}
        arguments = [*command, "run", *map(str, words[index])]
        processes.append(
            subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return processes


@pytest.mark.slow
def test_two_workers_train_what_one_process_does_and_go_on_together(command, run_command, tmp_path):
    """Killed in the last epochs of the second model; then one worker has lost an epoch, the other a finished model."""
    settings = {
        **yaml.safe_load(TINY),
        "models": {"a": {"method": "plain"}, "b": {"method": "ppi", "warm_up_epochs": 1}},
    }
    settings["data"]["balanced_size"] = 0
    settings["backbone"]["dropout"] = 0.0
    settings["training"]["epochs"] = 4
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_command("run", config, "--runs", tmp_path / "alone")
    folders = [tmp_path / "worker0", tmp_path / "worker1"]
    processes = start_workers(command, [(config, "--runs", folder) for folder in folders])
    deadline = time.monotonic() + 300
    while not all(list(folder.glob("tiny/models/b/checkpoint-0002*")) for folder in folders):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [each.stderr.read() for each in processes]
        time.sleep(0.002)
    for process in processes:
        process.kill()
        process.communicate()
    for path in folders[0].glob("tiny/models/b/checkpoint-*"):
        if path.name > "checkpoint-0001.weights.h5":
            path.unlink()
    (folders[1] / "tiny/models/a/model.keras").unlink()
    for process in start_workers(command, [("--resume", folder / "tiny") for folder in folders]):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, *workers = [RunDirectory.open(folder / "tiny") for folder in (tmp_path / "alone", *folders)]
    for name in ("a", "b"):
        tables = [run.history(name)[["loss", "accuracy", "val_loss"]].to_numpy() for run in (alone, *workers)]
        np.testing.assert_array_equal(tables[1], tables[2])
        np.testing.assert_allclose(tables[1], tables[0], rtol=1e-4)
        weights = [keras.models.load_model(run.model_path(name), compile=False).get_weights() for run in workers]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_strategy_of_the_configuration_is_the_one_that_is_chosen(tmp_path, quiet, monkeypatch):
    def spied(name):
        raise InvalidArgument(f"asked for {name}")

    monkeypatch.setattr(experiment, "choose_strategy", spied)
    run = RunDirectory.create(tmp_path, tiny({"m": {"method": "plain"}}, training={"strategy": "mirrored"}))
    with quiet, pytest.raises(InvalidArgument, match="asked for mirrored"):
        run_experiment(run, quiet)
    assert not run.path.exists()


# Checked before anything is trained.


@pytest.mark.parametrize(
    ("model", "changes", "match"),
    [
        (
            {"method": "ppi", "saliency": "grad_cam", "layer": "no_such", "warm_up_epochs": 0},
            {},
            r"models\.m \(method: ppi\): Invalid value for `layer`.*no_such",
        ),
        (
            {"method": "dfr", "of": "plain"},
            {"data": {"balanced_size": 100}},
            r"models\.m \(method: dfr\): Invalid value for `groups`: expected at least 2 images in every group",
        ),
        (
            {"method": "plain"},
            {"backbone": {"name": "vgg16", "weights": "no.weights.h5"}, "data": {"image_size": 32, "channels": 3}},
            r"models\.plain \(method: plain\): Invalid value for `weights`: .*no\.weights\.h5",
        ),
    ],
)
def test_what_does_not_go_together_is_known_before_the_first_epoch(tmp_path, quiet, monkeypatch, model, changes, match):
    def never(*arguments, **options):
        raise AssertionError("a model was trained")

    monkeypatch.setattr(keras.Model, "fit", never)
    settings = {**yaml.safe_load(TINY), "models": {"plain": {"method": "plain"}, "m": model}}
    settings["backbone"] = changes.get("backbone", settings["backbone"])
    settings["data"] = {**settings["data"], **changes.get("data", {})}
    run = RunDirectory.create(tmp_path, config_from_mapping(settings))
    with quiet, pytest.raises(InvalidArgument, match=match):
        run_experiment(run, quiet)
    assert not run.path.exists()  # the corrected command can have the same name


def test_a_layer_without_a_rule_is_known_before_the_first_epoch(tmp_path, quiet, monkeypatch):
    def refuse(*arguments):
        raise UnsupportedOperation("no rule for it")

    monkeypatch.setattr(training, "build_model", refuse)
    run = RunDirectory.create(tmp_path, tiny({"m": {"method": "rrr"}}))
    with quiet, pytest.raises(UnsupportedOperation, match=r"models\.m \(method: rrr\): no rule for it"):
        run_experiment(run, quiet)


def test_batches_are_divided_evenly_among_the_devices(tmp_path):
    run = RunDirectory.create(tmp_path, tiny({"m": {"method": "plain"}}))
    with pytest.raises(
        InvalidArgument, match=r"`training.batch_size`: expected a multiple of the 3 replicas; received 16"
    ):
        check_models(run, None, SimpleNamespace(num_replicas_in_sync=3))


def folder(path, masks=True, count=20):
    """Two classes of 16x16 images, bright above or below the middle."""
    random = np.random.default_rng(0)
    for label, rows in {"high": slice(0, 8), "low": slice(8, 16)}.items():
        for kind in ("images", "masks") if masks else ("images",):
            (path / kind / label).mkdir(parents=True)
        for number in range(count):
            image = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            image[rows] += 150
            Image.fromarray(image).save(path / "images" / label / f"{number}.png")
            if masks:
                mask = np.zeros((16, 16), np.uint8)
                mask[rows] = 255
                Image.fromarray(mask).save(path / "masks" / label / f"{number}.png")
    return {"source": "image_folder", "path": str(path), "image_size": 16, "validation_share": 0.3}


def of_folder(data, models):
    return config_from_mapping({**yaml.safe_load(TINY), "data": data, "models": models})


@pytest.mark.parametrize(
    "model", [{"method": "rrr"}, {"method": "gain", "supervision_weight": 1, "warm_up_epochs": 0}], ids=["rrr", "gain"]
)
def test_methods_with_masks_need_masks(tmp_path, quiet, model):
    config = of_folder(folder(tmp_path / "data", masks=False), {"m": model})
    run = RunDirectory.create(tmp_path / "runs", config)
    with quiet, pytest.raises(DataError, match=rf"`models.m` \(method: {model['method']}\) needs masks of training"):
        run_experiment(run, quiet)
    assert not run.path.exists()


def test_a_model_is_not_measured_on_the_validation_images_that_its_last_layer_has_seen(tmp_path, quiet):
    models = {"plain": {"method": "plain"}, "dfr": {"method": "dfr", "of": "plain"}}
    run = experimented(tmp_path / "runs", quiet, of_folder(folder(tmp_path / "data"), models))
    plain, retrained = (run.metrics["models"][name] for name in ("plain", "dfr"))
    assert retrained["trained_on"] == ["train", "validation"]
    assert retrained["splits"]["validation"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert retrained["splits"]["validation"]["deletion"]["n"] == 0
    assert plain["splits"]["validation"]["accuracy"]["n"] == 12
    assert retrained["splits"]["test"]["accuracy"]["n"] == plain["splits"]["test"]["accuracy"]["n"] == 10
    maps = zarr.open_group(run.maps_path, mode="r")
    assert set(maps["splits/validation/maps"]) == {"plain"}
    assert set(maps["splits/test/maps"]) == {"plain", "dfr"}
    json.loads((run.path / "metrics.json").read_text())
    assert "dfr" in run.report_path.read_text(encoding="utf-8")


def test_the_split_of_its_own_training_comes_last(tmp_path, quiet):
    models = {"plain": {"method": "plain"}, "dfr": {"method": "dfr", "of": "plain"}}
    of_digits, of_images = tiny(models), of_folder(folder(tmp_path), models)
    for config, split in ((of_digits, "balanced"), (of_images, "validation")):
        data = load_data(config, quiet)
        assert trained_on(config.models["dfr"], data) == ["train", split]
        assert trained_on(config.models["plain"], data) == ["train"]


def test_masks_go_to_the_methods_that_take_them(tmp_path, quiet, monkeypatch):
    seen = {}

    def spied(image_set, *arguments):
        seen[len(seen)] = (int(image_set.has_mask.sum()), arguments[-1])
        raise InvalidArgument("enough")

    monkeypatch.setattr(training, "training_batches", spied)
    data = load_data(tiny({"m": {"method": "plain"}}), quiet)
    for number, model in enumerate(
        [{"method": "plain"}, {"method": "gain"}, {"method": "gain", "supervision_weight": 1, "mask_share": 0.25}]
    ):
        run = RunDirectory.create(tmp_path / str(number), tiny({"m": {**model}}, training={"epochs": 3}))
        with quiet, pytest.raises(InvalidArgument, match="enough"):
            training.train_models(run, data, quiet, tf.distribute.get_strategy())
    assert seen == {0: (0, False), 1: (0, False), 2: (10, True)}
