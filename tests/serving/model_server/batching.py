"""Requests become batches, and the answers are given back to their requests, as the `BatchingSession` does it."""

import re
import time
from queue import Empty, Queue
from threading import Event, Thread

import numpy as np
from refusal import Refusal

DEFAULTS = {"max_batch_size": 1000, "batch_timeout_micros": 0}


def parameters_of(text):
    """A file of `--batching_parameters_file`, which has the form of a `BatchingParameters` message."""
    text = re.sub(r"#.*", "", text)
    parameters = {name: int(value) for name, value in re.findall(r"(\w+)\s*\{\s*value\s*:\s*(\d+)\s*\}", text)}
    allowed = [int(size) for size in re.findall(r"allowed_batch_sizes\s*:\s*(\d+)", text)]
    parameters = {**DEFAULTS, **parameters, "allowed_batch_sizes": allowed}
    rest = re.sub(r"(\w+)\s*\{\s*value\s*:\s*(\d+)\s*\}|allowed_batch_sizes\s*:\s*(\d+)", "", text).strip()
    if rest:
        raise SystemExit(f"Invalid protobuf file: {rest}")
    if allowed and (allowed != sorted(allowed) or allowed[-1] != parameters["max_batch_size"]):
        raise SystemExit("allowed_batch_sizes must grow, and the last must be max_batch_size.")
    return parameters


class Task:
    """A request that waits for its answer."""

    def __init__(self, inputs, size):
        self.inputs, self.size = inputs, size
        self.outputs, self.error, self.done = None, None, Event()


class Batcher:
    """Puts the requests to one signature of one version together."""

    def __init__(self, run, parameters, log):
        self._run, self._parameters, self._log = run, parameters, log
        self._queue, self._left = Queue(), None
        Thread(target=self._work, daemon=True).start()

    def __call__(self, inputs):
        if any(array.ndim == 0 for array in inputs.values()):
            raise Refusal("INVALID_ARGUMENT", "Batching Run() input tensors must have at least one dimension")
        sizes = {len(array) for array in inputs.values()}
        if len(sizes) > 1:
            raise Refusal("INVALID_ARGUMENT", "Batching Run() input tensors must have equal 0th-dimension size")
        (size,) = sizes
        most = self._parameters["max_batch_size"]
        if size > most:
            said = f"Task size {size} is larger than maximum input batch size {most}"
            raise Refusal("INVALID_ARGUMENT", said)
        task = Task(inputs, size)
        self._queue.put(task)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.outputs

    def _work(self):
        while True:
            tasks = self._batch()
            try:
                self._process(tasks)
            except Exception as error:  # all of a batch fail with it
                for task in tasks:
                    task.error = error
            for task in tasks:
                task.done.set()

    def _batch(self):
        first, self._left = self._left or self._queue.get(), None
        tasks, most = [first], self._parameters["max_batch_size"]
        end = time.monotonic() + self._parameters["batch_timeout_micros"] / 1e6
        while (total := sum(task.size for task in tasks)) < most:
            try:
                following = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                break
            if total + following.size > most:
                self._left = following
                break
            tasks.append(following)
        return tasks

    def _process(self, tasks):
        total = sum(task.size for task in tasks)
        allowed = self._parameters["allowed_batch_sizes"]
        padding = next((size - total for size in allowed if size >= total), 0)
        merged = {}
        for name in tasks[0].inputs:
            arrays = [task.inputs[name] for task in tasks]
            if len({array.shape[1:] for array in arrays}) > 1:
                said = (
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
                )
                raise Refusal("FAILED_PRECONDITION", said)
            merged[name] = np.concatenate([*arrays, *[arrays[-1][:1]] * padding])
        outputs = self._run(merged)
        for array in outputs.values():
            if array.ndim == 0:
                raise Refusal("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if len(array) != total + padding:
                said = "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                raise Refusal("FAILED_PRECONDITION", f"{said}input tensors")
        self._log({"sizes": [task.size for task in tasks], "padding": padding})
        first = 0
        for task in tasks:
            task.outputs = {name: array[first : first + task.size] for name, array in outputs.items()}
            first += task.size
