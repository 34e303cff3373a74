"""A training step of every method against a plain `fit` step: same backbone, same batch, one process.

    .venv/bin/python benchmarks/training.py [BACKBONE ...]

The floor stands beside every ratio: the passes that the mathematics cannot avoid, in floating-point operations of the
backbone's convolutions and dense layers, over those of a plain step. A forward pass costs F, the gradients of the
kernels F, the gradients of the activations A, which is F without the first layer. So a plain step is 2 F + A, and

    PPI                + F (map, down to the pixels) + 2 (F + F + F) (two masked images, whose masks depend on the
                       weights) + 2 F (through the map) = 11 F + A
    PPI, first order   + F + 2 (2 F + A) = 5 F + 2 A more
    PPI, Grad-CAM      + 6 F, and 3 times what comes after the feature maps
    CFCN               nothing
    GAIN               + 3 F (one masked image, whose mask depends on the weights), and what comes after the feature
                       maps, once: the channels' weights are constants
    RRR                + F (gradient) + 2 F (through it) = 3 F
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from side_by_side import RESULTS, measure, report

from tfcausal.graph import OperationGraph
from tfcausal.models.backbones.all_convolutional import all_convolutional
from tfcausal.models.backbones.vgg import vgg11
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.models.rrr import RRRModel
from tfcausal.saliency.cam import feature_maps

STEPS, CLASSES = 4, 10
LIMITS = {"PPI": 4.2, "PPI, first order": 3.4, "PPI, Grad-CAM": 3.6, "CFCN": 1.10, "GAIN": 2.6, "RRR": 2.6}
MEMORY_LIMIT = 3.5
METHODS = ("plain", *LIMITS)

BACKBONES = {
    "vgg11": (lambda: vgg11((32, 32, 3), CLASSES), 32, 32),
    "resnet50": (lambda: keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3), classes=CLASSES), 96, 16),
    "all_convolutional": (
        lambda: all_convolutional((48, 48, 3), CLASSES, (32, 32, 64, 64, 64), (1, 2, 1, 2, 1), dropout=0.1),
        48,
        32,
    ),
}


def build(what: str, backbone) -> keras.Model:
    if what == "PPI":
        return PPIModel(backbone())
    if what == "PPI, first order":
        return PPIModel(backbone(), second_order=False, regularisation_weight=0.0)
    if what == "PPI, Grad-CAM":
        return PPIModel(backbone(), saliency="grad_cam")
    if what == "CFCN":
        network = backbone()
        has_class_maps = any(layer.name == "class_maps" for layer in network.layers)
        return CFCNModel(network, variant="C" if has_class_maps else "F")
    if what == "GAIN":
        return GAINModel(backbone())
    if what == "RRR":
        return RRRModel(backbone())
    return backbone()


def floors(backbone: keras.Model) -> dict[str, float]:
    """The operations of every method's step over those of a plain step."""
    graph = OperationGraph(backbone)
    maps = feature_maps(graph)
    costs, after, passed = [], 0.0, False
    for operation in graph.operations:
        kernel = getattr(operation.layer, "kernel", None)
        if kernel is not None:
            # Every weight is used once for every place of the output.
            costs.append(float(np.prod(kernel.shape)) * float(np.prod(operation.shape[1:-1])))
            after += costs[-1] if passed else 0.0
        passed = passed or maps in operation.outputs
    forward = sum(costs)
    to_activations = forward - costs[0]
    plain = 2 * forward + to_activations
    more = {
        "plain": 0.0,
        "PPI": 9 * forward,
        "PPI, first order": 5 * forward + 2 * to_activations,
        "PPI, Grad-CAM": 6 * forward + 3 * after,
        "CFCN": 0.0,
        "GAIN": 3 * forward + after,
        "RRR": 3 * forward,
    }
    return {what: (plain + operations) / plain for what, operations in more.items()}


def data(size: int, batch: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    images = random.random((batch * STEPS, size, size, 3), dtype=np.float32)
    labels = random.integers(0, CLASSES, len(images))
    masks = (random.random((len(images), size, size, 1)) > 0.5).astype("float32")
    return images, labels, {"label": labels, "mask": masks, "has_mask": np.ones(len(images), "float32")}


def compare(name: str) -> bool:
    backbone, size, batch = BACKBONES[name]
    images, labels, with_masks = data(size, batch)
    options = tf.data.Options()
    options.autotune.enabled = False  # the tuner would make the end of `fit` wait for its next period
    traces: dict[str, int] = {}

    def epoch(what: str):
        model = build(what, backbone)
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
        targets = with_masks if what in ("CFCN", "RRR") else labels
        batches = tf.data.Dataset.from_tensor_slices((images, targets)).batch(batch, drop_remainder=True)
        batches = batches.with_options(options)

        _count_traces(model, traces, what)
        return lambda: model.fit(batches, verbose=0, shuffle=False)

    seconds = measure({what: epoch(what) for what in METHODS}, repeats=5, warm_up=1)
    per_step = {what: [value / STEPS for value in values] for what, values in seconds.items()}
    memory = {what: _peak(name, what) for what in ("plain", "PPI")}
    unavoidable = floors(backbone())
    details = {
        "floors": unavoidable,
        "traces": traces,
        "memory": {**memory, "ratio": memory["PPI"] / memory["plain"], "limit": MEMORY_LIMIT},
    }
    title = f"{name}, {batch} images of {size}x{size}: seconds per step of fit"
    kept = report(title, per_step, "plain", LIMITS, f"training_{name}", details=details)
    print("  floors: " + ", ".join(f"{what} {ratio:.2f}" for what, ratio in unavoidable.items()))
    print(f"  traces of the step: {sorted(set(traces.values()))}")
    print(f"  memory of a PPI step: {details['memory']['ratio']:.2f} of a plain step's (at most {MEMORY_LIMIT})")
    return kept and details["memory"]["ratio"] <= MEMORY_LIMIT


def _count_traces(model: keras.Model, traces: dict[str, int], what: str) -> None:
    """Count how often the step is run in Python, which it is when it is traced."""
    step = model.train_step
    traces[what] = 0

    def counted(batch):
        traces[what] += 1
        return step(batch)

    model.train_step = counted


def _peak(name: str, what: str) -> float:
    """Greatest resident memory of a process that takes some steps, above what it had before them, in GiB."""
    # What is freed goes back to the system at once, so that the peak is that of the step.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, __file__, "--memory", name, what], capture_output=True, text=True, check=True, env=environment
    )
    return float(result.stdout.split()[-1])


def measure_memory(name: str, what: str) -> None:
    """Memory that steps of a large batch take on top of what the process had before, in GiB."""
    backbone, size, batch = BACKBONES[name]
    images, labels, with_masks = data(size, batch)
    model = build(what, backbone)
    model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    targets = with_masks if what in ("CFCN", "RRR") else labels

    def step(count: int) -> None:
        chosen = {key: value[:count] for key, value in targets.items()} if targets is with_masks else targets[:count]
        model.train_on_batch(images[:count], chosen)

    for count in (2, 3, 4):  # after the second, the step is traced for every size
        step(count)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    step(len(images))
    print(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    """A field of the process's memory, in GiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(*sys.argv[2:])
        return
    keras.utils.set_random_seed(0)
    kept = {name: compare(name) for name in (sys.argv[1:] or BACKBONES)}
    print(json.dumps({"within limits": kept}, indent=2), f"written to {RESULTS.name}/training_*.json")


if __name__ == "__main__":
    main()
