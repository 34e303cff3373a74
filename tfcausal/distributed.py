"""Training on several devices: which strategy, and what one replica of a step needs to know of the whole batch.

Under a `tf.distribute` strategy every replica has a part of the batch, and the gradients of all replicas are added up.
The functions for use inside a step make of that what one device would compute with the whole batch. With one replica
they give back what they are given.
"""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from typing import Any, Literal, get_args

import tensorflow as tf

from tfcausal.errors import InvalidArgument, message

logger = logging.getLogger(__name__)

StrategyName = Literal["auto", "one_device", "mirrored", "multi_worker"]

_TF_CONFIG = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'


def choose_strategy(name: StrategyName = "auto", devices: int | None = None) -> tf.distribute.Strategy:
    """The strategy to train with; build and compile the model inside its `scope()`.

    `multi_worker` connects this process with the others of `TF_CONFIG`: it comes before everything else that
    TensorFlow does, and waits until all workers are there.

    Args:
        name: `auto` takes the workers of `TF_CONFIG` where it names two or more, else all GPUs where there are two or
            more, else the device that TensorFlow takes by itself. `one_device` is the latter; `mirrored` are the GPUs
            of this machine, of which there must be one; `multi_worker` the workers of `TF_CONFIG`, each with all of
            its GPUs, or its CPU.
        devices: Number of replicas to use of this machine, for `mirrored` (and `auto`, which becomes that): the first
            GPUs, or on a machine without any, logical CPU devices, with which the training on several devices can be
            tried out.

    Returns:
        The strategy. `strategy.num_replicas_in_sync` is the number of parts that a batch is divided into.

    Raises:
        InvalidArgument: No such strategy; fewer devices than asked for; `TF_CONFIG` is missing or broken, or this
            process cannot listen at its address; or TensorFlow has begun its work before `multi_worker` was chosen.

    Example:
        >>> choose_strategy("one_device").num_replicas_in_sync
        1
    """
    if name not in get_args(StrategyName):
        raise InvalidArgument(message("strategy", f"one of {', '.join(get_args(StrategyName))}", repr(name)))
    if devices is not None:
        if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
            raise InvalidArgument(message("devices", "an integer of at least 1, or None", repr(devices)))
        if name not in ("auto", "mirrored"):
            raise InvalidArgument(message("devices", f"None with the strategy {name}", devices))
        return _mirrored(devices)
    if name == "multi_worker" or (name == "auto" and _count_workers() > 1):
        return _multi_worker()
    if name == "mirrored" or (name == "auto" and len(tf.config.list_physical_devices("GPU")) > 1):
        return _mirrored(None)
    return tf.distribute.get_strategy()


def replica_batch_size(batch_size: int, replicas: int, name: str = "batch_size") -> int:
    """The part of a batch that every replica gets.

    Args:
        batch_size: Samples in the whole batch.
        replicas: Number of replicas, `strategy.num_replicas_in_sync`.
        name: What the batch size is called where the user sets it.

    Raises:
        InvalidArgument: The batch cannot be divided into equal parts.

    Example:
        >>> replica_batch_size(32, replicas=4)
        8
    """
    if batch_size < 1 or batch_size % replicas:
        lower = batch_size // replicas * replicas
        values = f"{lower} or {lower + replicas}" if lower > 0 else f"{replicas}"
        remedy = f"Set it to {values}, or train on fewer devices."
        raise InvalidArgument(message(name, f"a multiple of the {replicas} replicas", batch_size, remedy))
    return batch_size // replicas


def divided_among_workers(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A data set of whole batches, told how several workers divide it: each takes its part of every batch.

    The parts of a batch, in the order of the workers, are the batch that a single process would have had, and all
    workers have the same number of batches. Every worker must produce the same batches in the same order (the same
    files and the same seed), and it reads all of them: what it does not use it drops.

    TensorFlow decides on its own otherwise (`AutoShardPolicy.AUTO`): it gives every worker other files where the data
    set is read from files by `tf.data`, so that batches are mixed differently and may differ in number. With one
    worker nothing changes.

    Args:
        dataset: Its elements are batches of the global batch size.

    Example:
        >>> batches = divided_among_workers(tf.data.Dataset.range(8).batch(4))
        >>> batches.options().experimental_distribute.auto_shard_policy.name
        'DATA'
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def scaled_for_replicas(loss: tf.Tensor, count: tf.Tensor | None = None) -> tf.Tensor:
    """A mean over the samples of this replica as its share of the mean over the whole batch.

    The shares of all replicas add up to the mean over the whole batch, and so do their gradients.

    Args:
        loss: Mean over the samples of this replica.
        count: Number of samples of this replica, an integer scalar; None says that all replicas have equally many.
            With it, the share is right for parts of unequal size, such as what is left over at the end of an epoch,
            and 0 for a replica without samples, whatever the loss of none is.

    Example:
        >>> float(scaled_for_replicas(tf.constant(3.0), tf.constant(4)))
        3.0
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return loss
    if count is None:
        return loss / replicas
    _, total = place_among_replicas(count)
    return tf.math.multiply_no_nan(loss, tf.math.divide_no_nan(tf.cast(count, loss.dtype), tf.cast(total, loss.dtype)))


def unscaled_for_replicas(loss: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The mean over the samples of this replica of which :func:`scaled_for_replicas` gave the share; 0 without samples.

    Args:
        loss: The share of this replica.
        count: Number of samples of this replica, an integer scalar.

    Example:
        >>> float(unscaled_for_replicas(tf.constant(3.0), tf.constant(4)))
        3.0
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return loss
    _, total = place_among_replicas(count)
    return tf.math.divide_no_nan(loss * tf.cast(total, loss.dtype), tf.cast(count, loss.dtype))


def takes_empty_parts() -> bool:
    """Whether a replica can run a convolution on no samples, which it gets where a batch has fewer than replicas.

    On CPUs it fails: the convolutions of oneDNN give an empty tensor of a wrong shape (TensorFlow 2.21).
    """
    on_cpu = any("CPU" in device for device in tf.distribute.get_strategy().extended.worker_devices)
    return not on_cpu or os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0"


def gathered(tensor: tf.Tensor) -> tf.Tensor:
    """The tensors of all replicas, one after the other along axis 0, in the order of the replicas.

    It can be differentiated: the gradient for this replica's tensor is the sum over the replicas of the gradients that
    arrive at its part. All replicas must call it, outside of conditions.

    Args:
        tensor: Numbers of shape (N, ...); N may differ from replica to replica, the rest may not.

    Returns:
        (sum of all N, ...), the same on all replicas.

    Example:
        >>> gathered(tf.constant([1.0, 2.0])).numpy().tolist()
        [1.0, 2.0]
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensor
    # The sum of tensors that are 0 outside their part, and not `ReplicaContext.all_gather`: that has no path through
    # NCCL, and none at all for several workers in eager mode.
    count = tf.shape(tensor)[0]
    offset, total = place_among_replicas(count)
    padded = tf.pad(tensor, [[offset, total - offset - count], *[[0, 0]] * (tensor.shape.rank - 1)])
    everything = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, padded)
    return tf.ensure_shape(everything, (None, *tensor.shape[1:]))


def place_among_replicas(count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the samples of this replica stand in the whole batch.

    Args:
        count: Number of samples of this replica, an integer scalar, below 2^24 in the whole batch.

    Returns:
        The position of its first sample, and the number of samples of all replicas; both like `count`.

    Example:
        >>> [int(value) for value in place_among_replicas(tf.constant(4))]
        [0, 4]
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return tf.zeros_like(count), count
    context = tf.distribute.get_replica_context()
    # In float32, which every kind of device can add up.
    own = tf.one_hot(context.replica_id_in_sync_group, replicas) * tf.cast(count, tf.float32)
    counts = tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, own), count.dtype)
    return tf.reduce_sum(counts[: context.replica_id_in_sync_group]), tf.reduce_sum(counts)


def uniform_like(like: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Uniform numbers in [0, 1) that depend on the step and on the place in the whole batch of all replicas.

    Args:
        like: A tensor (N, outputs) of the shape wanted, this replica's part.
        step: A number, int32.

    Returns:
        Float32 (N, outputs); equal however the batch is divided among replicas.
    """
    offset, total = place_among_replicas(tf.shape(like)[0])
    drawn = tf.random.stateless_uniform(tf.stack([total, tf.shape(like)[1]]), tf.stack([step, 0]))
    return tf.ensure_shape(drawn[offset : offset + tf.shape(like)[0]], like.shape)


def _mirrored(devices: int | None) -> tf.distribute.Strategy:
    """The GPUs of this machine, or a number of them; without GPUs, a number of logical CPU devices."""
    kind = "GPU"
    if devices is not None and not tf.config.list_physical_devices("GPU"):
        kind = "CPU"
        _divide_cpu(devices)
    found = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(found) < (devices or 1):
        expected = f"a machine with at least {devices or 1} {kind if kind == 'GPU' else 'logical CPU device'}(s)"
        remedy = "Ask for fewer devices." if found else "Use the strategy `one_device`, or `auto`."
        if kind == "CPU":
            remedy = "Choose the strategy before TensorFlow does anything else, or ask for fewer devices."
        raise InvalidArgument(message("strategy", expected, len(found), remedy))
    return tf.distribute.MirroredStrategy(found[: devices or len(found)])


def _divide_cpu(devices: int) -> None:
    """Make logical devices of the CPU, unless there are some already or it is too late."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        except RuntimeError:
            logger.debug("TensorFlow has begun its work: its CPU cannot be divided into %d devices", devices)


def _multi_worker() -> tf.distribute.Strategy:
    if not _count_workers():
        remedy = f"Set the variable TF_CONFIG of the environment in every process, in the form {_TF_CONFIG}."
        raise InvalidArgument(message("TF_CONFIG", "the workers, for the strategy multi_worker", "none", remedy))
    return _connected(os.environ["TF_CONFIG"])


@lru_cache(maxsize=1)
def _connected(tf_config: str) -> tf.distribute.Strategy:
    """The strategy of a TF_CONFIG; one process can be connected only once."""
    logger.info("Waiting for the workers of TF_CONFIG: %s", tf_config)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        remedy = "Call choose_strategy once, before anything else that uses TensorFlow."
        expected = "a choice before TensorFlow begins its work, for the strategy multi_worker"
        raise InvalidArgument(message("strategy", expected, "one after it", remedy)) from None
    except tf.errors.OpError as error:
        task = json.loads(tf_config)["task"]
        address = json.loads(tf_config)["cluster"][task["type"]][int(task["index"])]
        remedy = "Another process may have the port; take a free one, the same in every process's TF_CONFIG."
        raise InvalidArgument(
            message("TF_CONFIG", "an address at which this process can listen", f"{address} ({error.message})", remedy)
        ) from None


def _count_workers() -> int:
    """Number of workers in TF_CONFIG, 0 where it is not set.

    Raises:
        InvalidArgument: It has another form.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return 0
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken_config(f"JSON in the form {_TF_CONFIG}", f"{text!r} ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("cluster", {}), dict):
        raise _broken_config(f"the form {_TF_CONFIG}", repr(text))
    cluster = settings.get("cluster", {})
    if not cluster:
        return 0
    if set(cluster) - {"chief", "worker"}:
        raise _broken_config("a cluster of `worker`, and perhaps one `chief`", ", ".join(cluster))
    if not all(isinstance(addresses, list) for addresses in cluster.values()):
        raise _broken_config("a list of addresses for every kind of task", repr(cluster))
    addresses = [address for kind in cluster.values() for address in kind]
    wrong = [address for address in addresses if not _is_address(address)]
    if wrong or not addresses or len(set(addresses)) < len(addresses):
        raise _broken_config("different addresses `host:port`", repr(wrong[0] if wrong else addresses))
    if len(addresses) > 1:
        task = settings.get("task")
        kind, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
        known = cluster.get(kind, []) if isinstance(kind, str) else []
        if not str(index).isdigit() or int(str(index)) >= len(known):
            raise _broken_config("a `task` of the cluster, with its type and index", repr(task))
    return len(addresses)


def _is_address(address: Any) -> bool:
    host, _, port = str(address).rpartition(":")
    return isinstance(address, str) and bool(host) and port.isdigit() and 0 < int(port) < 2**16


def _broken_config(expected: str, received: str) -> InvalidArgument:
    remedy = "Correct the variable TF_CONFIG of the environment, or unset it to train on this machine alone."
    return InvalidArgument(message("TF_CONFIG", expected, received, remedy))
