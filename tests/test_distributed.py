from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal import distributed, keras_api
from tfcausal.errors import InvalidArgument

L = keras.layers
WORKER = Path(__file__).parent / "distributed_worker.py"
SECONDS = 600
TWO = {"cluster": {"worker": ["127.0.0.1:29001", "127.0.0.1:29002"]}, "task": {"type": "worker", "index": 0}}


def run(scenarios: list[str], workers: int = 0, **environment: str) -> list[dict[str, Any]]:
    """What the scenarios give in a process with two replicas, or in every one of several worker processes."""
    sockets = [socket.socket() for _ in range(workers)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(index) for index in range(max(workers, 1))]
        processes = []
        try:
            for index, output in enumerate(outputs):
                if workers:
                    task = {"type": "worker", "index": index}
                    variables["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
                command = [sys.executable, str(WORKER), str(output), str(SECONDS), *scenarios]
                log = output.with_suffix(".log").open("w+")
                processes.append((subprocess.Popen(command, env=variables, stdout=log, stderr=log), log))
            for process, log in processes:
                code = process.wait(timeout=SECONDS + 30)
                log.seek(0)
                assert code == 0, log.read()[-5000:]
            return [pickle.loads(output.read_bytes()) for output in outputs]
        finally:
            for process, log in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                log.close()


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(got["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance)
    assert got.keys() == expected.keys()
    if "predictions" in expected:
        np.testing.assert_allclose(got["predictions"], expected["predictions"], atol=tolerance)
    for part in got.keys() & {"history", "evaluation"}:
        assert got[part].keys() == expected[part].keys()
        for name, values in expected[part].items():
            np.testing.assert_allclose(got[part][name], values, atol=tolerance, err_msg=name)


FAST = ["plain", "ppi", "cfcn", "gain", "rrr"]
SLOW = ["ppi:synchronized", "gain:synchronized", "cfcn:digits", "ppi:rest", "cfcn:rest"]


@pytest.fixture(scope="module")
def replicas():
    return run(["replica_context", "bad_image", "empty_part", "halves", *FAST])[0]


@pytest.fixture(scope="module")
def workers():
    return run(["replica_context", "plain", "ppi", "cfcn"], workers=2)


@pytest.fixture(scope="module")
def more_replicas():
    return run(SLOW)[0]


@pytest.fixture(scope="module")
def more_workers():
    return run(["gain", "rrr", *SLOW], workers=2)


def test_methods_train_differently(replicas):
    """Otherwise equality of replicas would say nothing of the terms."""
    for method in FAST[1:]:
        pairs = zip(replicas[method]["one"]["weights"], replicas["plain"]["one"]["weights"], strict=True)
        assert max(np.abs(mine - theirs).max() for mine, theirs in pairs) > 1e-3, method


@pytest.mark.parametrize("scenario", FAST)
def test_two_replicas_train_like_one(replicas, scenario):
    assert_same(replicas[scenario]["several"], replicas[scenario]["one"])


@pytest.mark.parametrize("scenario", ["plain", "ppi", "cfcn"])
def test_two_workers_train_like_one_process(workers, replicas, scenario):
    for worker in workers:
        got = worker[scenario]["several"]
        if scenario == "plain":  # trained as the CausalClassifier that it has to be here, which logs its only term
            for logs in (got["history"], got["evaluation"]):
                for name in [name for name in logs if name.endswith("classification_loss")]:
                    np.testing.assert_allclose(logs.pop(name), logs[name.replace("classification_", "")], atol=1e-6)
        assert_same(got, replicas[scenario]["one"])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SLOW)
def test_two_replicas_train_like_one_in_more_ways(more_replicas, scenario):
    """Batch norm over all replicas; the pipeline of a run; parts of unequal size at the end of an epoch."""
    assert_same(more_replicas[scenario]["several"], more_replicas[scenario]["one"])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["gain", "rrr", *SLOW])
def test_two_workers_train_like_one_process_in_more_ways(more_workers, more_replicas, replicas, scenario):
    one = (more_replicas if scenario in SLOW else replicas)[scenario]["one"]
    for worker in more_workers:
        assert_same(worker[scenario]["several"], one)


@pytest.mark.slow
def test_a_replica_may_be_left_without_images():
    """Nine images in batches of eight; convolutions of oneDNN in TensorFlow 2.21 do not take an empty batch."""
    results = run(["ppi:single_rest"], TF_ENABLE_ONEDNN_OPTS="0")[0]["ppi:single_rest"]
    assert_same(results["several"], results["one"])


def test_batch_norm_of_each_replica_uses_its_part(replicas):
    """The documented difference: gradients are those of the halves, moving statistics those of the first half."""
    first, second = replicas["halves"]["one"]["weights"]
    (both,) = replicas["halves"]["several"]["weights"]
    names = ["kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias"]
    for name, got, of_first, of_second in zip(names, both, first, second, strict=True):
        expected = of_first if name.startswith("moving") else (of_first + of_second) / 2
        np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=name)
    differences = [np.abs(one - other).max() for one, other in zip(first, second, strict=True)]
    assert min(differences[4:6]) > 1e-3


def test_a_replica_without_images_is_an_error_on_cpus(replicas):
    text = "`batch_size`: expected an image for each of the 2 replicas; received a batch without one for some of them."
    assert text in replicas["empty_part"]["several"]["error"]


@pytest.mark.slow
def test_error_of_a_worker_is_said_by_all():
    first, second = [results["bad_image"]["several"]["error"] for results in run(["bad_image"], workers=2)]
    assert "Training was stopped: another worker has failed or ended; its log says why." in first
    assert "`x`: expected finite values; received 192" in second


def test_error_of_a_replica_is_a_plain_one(replicas):
    assert "`x`: expected finite values; received 192" in replicas["bad_image"]["several"]["error"]


@pytest.mark.parametrize("kind", ["replicas", "workers"])
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_functions_for_steps(kind, mode, request):
    """Against NumPy, with two rows on the first replica and three on the second."""
    results = request.getfixturevalue(kind)
    parts = [results] if kind == "replicas" else results
    parts = [part["replica_context"]["several"][mode] for part in parts]
    values = {name: [value for part in parts for value in part[name]] for name in parts[0] if name != "moments"}
    rows = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    assert np.ravel(values["offset"]).tolist() == [0, 2]
    assert np.ravel(values["total"]).tolist() == [5, 5]
    for everything in values["gathered"]:
        np.testing.assert_array_equal(everything, rows)
    # The losses are 1 and 2 times sum(i * row_i^2).
    gradient = 3 * 2 * np.arange(5)[:, None] * rows
    np.testing.assert_allclose(np.concatenate(values["gradient"]), gradient, rtol=1e-5)
    np.testing.assert_allclose(sum(values["share"]), rows.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.ravel(values["mean"]), [rows[:2].mean(), rows[2:].mean()], rtol=1e-5)
    np.testing.assert_allclose(sum(values["equal"]), (rows[:2].mean() + rows[2:].mean()) / 2, rtol=1e-5)
    assert np.ravel(values["of_none"]).tolist() == [0, 0]
    for part in parts:
        for got, expected in zip(part["moments"], (rows.mean(axis=0), rows.var(axis=0)), strict=True):
            for of_replica in got:
                np.testing.assert_allclose(of_replica, expected, rtol=1e-5)


def test_one_replica_costs_nothing():
    tensor, count = tf.constant([1.0, 2.0]), tf.constant(2)
    assert distributed.scaled_for_replicas(tensor) is tensor
    assert distributed.scaled_for_replicas(tensor, count) is tensor
    assert distributed.unscaled_for_replicas(tensor, count) is tensor
    assert distributed.gathered(tensor) is tensor
    offset, total = distributed.place_among_replicas(count)
    assert (int(offset), total) == (0, count)


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_moments_are_those_of_the_layer(axis, synchronized):
    layer = L.BatchNormalization(axis=axis, momentum=0.0, synchronized=synchronized)
    inputs = np.random.default_rng(0).normal(2.0, 3.0, size=(5, 4, 3)).astype("float32")
    layer(inputs, training=True)
    mean, variance = keras_api.batch_moments(layer, tf.constant(inputs))
    axes = (0, 1) if axis == -1 else (0, 2)
    np.testing.assert_allclose(mean, inputs.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(variance, inputs.var(axes), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


def test_batch_moments_of_half_precision_are_float32():
    layer = L.BatchNormalization(dtype="mixed_float16")
    inputs = np.random.default_rng(0).normal(200.0, 100.0, size=(50, 3)).astype("float16")
    layer.build(inputs.shape)
    mean, variance = keras_api.batch_moments(layer, tf.constant(inputs))
    assert mean.dtype == variance.dtype == tf.float32
    np.testing.assert_allclose(variance, inputs.astype("float64").var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_training_policy_is_that_of_the_layers(policy):
    """Keras scales the loss by it; a cloned model has the global policy, its layers have their own."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, L.Dense(2, dtype="float32")(L.Dense(3)(inputs)))
    finally:
        keras.config.set_dtype_policy(before)
    assert keras_api.training_policy(model).name == policy
    cloned = keras.models.clone_model(model)
    assert cloned.dtype_policy.name == "float32"
    # bfloat16 has the range of float32: there is nothing to scale.
    assert keras_api.training_policy(cloned).name == ("mixed_float16" if policy == "mixed_float16" else "float32")


def test_logs_are_as_they_are_without_several_workers():
    model = keras.Sequential([keras.Input((2,)), L.Dense(1)])
    logs = {"loss": tf.constant(1.0)}
    assert keras_api.reducible_logs(model, logs) is logs


def test_results_of_epoch_are_those_of_the_metrics():
    model = keras.Sequential([keras.Input((2,)), L.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((4, 2)), np.ones(4), verbose=0)
    results = keras_api.results_of_epoch(model, {"loss": -1.0})
    assert results.keys() == {"loss"}
    assert float(results["loss"]) >= 0
    assert keras_api.results_of_epoch(model, {"own": -1.0}) == {"own": -1.0}


def test_auto_and_one_device_take_the_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in ("auto", "one_device"):
        assert distributed.choose_strategy(name) is tf.distribute.get_strategy()


def test_auto_goes_on_alone_with_a_cluster_of_one(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["localhost:29001"]}}))
    assert distributed.choose_strategy("auto") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("both",), "`strategy`: expected one of auto, one_device, mirrored, multi_worker; received 'both'"),
        (("mirrored", 0), "`devices`: expected an integer of at least 1, or None; received 0"),
        (("mirrored", 1.5), "`devices`: expected an integer of at least 1, or None; received 1.5"),
        (("one_device", 2), "`devices`: expected None with the strategy one_device; received 2"),
        (
            ("mirrored",),
            "`strategy`: expected a machine with at least 1 GPU.*received 0. Use the strategy `one_device`",
        ),
        (
            ("mirrored", 7),
            "`strategy`: expected .* at least 7 logical CPU device.*received 1. Choose the strategy before",
        ),
        (("multi_worker",), "`TF_CONFIG`: expected the workers.*received none. Set the variable TF_CONFIG"),
    ],
)
def test_bad_strategies(arguments, text, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    tf.config.list_logical_devices()
    for name in ("list_physical_devices", "list_logical_devices"):
        listed = getattr(tf.config, name)
        monkeypatch.setattr(tf.config, name, lambda kind=None, listed=listed: [] if kind == "GPU" else listed(kind))
    with pytest.raises(InvalidArgument, match=text):
        distributed.choose_strategy(*arguments)


@pytest.mark.parametrize("name", ["auto", "multi_worker"])
def test_multi_worker_comes_before_everything_else(monkeypatch, name):
    tf.constant(1.0)
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    with pytest.raises(InvalidArgument, match=r"`strategy`: expected a choice before .* Call choose_strategy once"):
        distributed.choose_strategy(name)


@pytest.mark.parametrize("name", ["auto", "multi_worker"])
@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{broken", r"expected JSON in the form .*\"cluster\".*; received '\{broken'"),
        ("[]", "expected the form"),
        ({**TWO, "cluster": ["127.0.0.1:29001"]}, "expected the form"),
        ({**TWO, "cluster": {"worker": "127.0.0.1:29001"}}, "expected a list of addresses"),
        ({**TWO, "cluster": {"worker": ["127.0.0.1", "127.0.0.1:29002"]}}, "`host:port`; received '127.0.0.1'"),
        ({**TWO, "cluster": {"worker": [29001, "127.0.0.1:29002"]}}, "`host:port`; received 29001"),
        ({**TWO, "cluster": {"worker": ["a:1", "a:70000"]}}, "`host:port`; received 'a:70000'"),
        ({**TWO, "cluster": {"worker": ["a:1", "a:1"]}}, "different addresses"),
        ({**TWO, "cluster": {"worker": ["a:1", "a:2"], "ps": ["a:3"]}}, "expected a cluster of `worker`.*worker, ps"),
        ({"cluster": TWO["cluster"]}, "expected a `task` of the cluster.*received None"),
        ({**TWO, "task": {"type": "worker", "index": 2}}, "expected a `task`"),
        ({**TWO, "task": {"type": "worker", "index": -1}}, "expected a `task`"),
        ({**TWO, "task": {"type": "chief", "index": 0}}, "expected a `task`"),
        ({**TWO, "task": 0}, "expected a `task`"),
    ],
)
def test_broken_tf_config(config, text, name, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InvalidArgument, match=f"`TF_CONFIG`: .*{text}.*or unset it"):
        distributed.choose_strategy(name)


def test_address_in_use():
    program = "from tfcausal.distributed import choose_strategy; choose_strategy('multi_worker')"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = {"cluster": {"worker": [address, "127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": json.dumps(config)}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert f"`TF_CONFIG`: expected an address at which this process can listen; received {address}" in result.stderr


@pytest.mark.parametrize(("batch_size", "values"), [(10, "8 or 12"), (3, "4"), (0, "4")])
def test_batches_that_cannot_be_divided(batch_size, values):
    text = f"`training.batch_size`: expected a multiple of the 4 replicas; received {batch_size}. Set it to {values},"
    with pytest.raises(InvalidArgument, match=text):
        distributed.replica_batch_size(batch_size, 4, "training.batch_size")
    assert distributed.replica_batch_size(12, 4) == 3


def test_divided_among_workers_keeps_the_other_options():
    options = tf.data.Options()
    options.autotune.enabled = False
    options = distributed.divided_among_workers(tf.data.Dataset.range(4).with_options(options)).options()
    assert options.autotune.enabled is False
    assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA
