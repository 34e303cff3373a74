"""What TF_SET_ONEDNN_FPMATH_MODE=BF16 gains and costs: VGG16 and ResNet50, 8 images of 224x224, forward pass and WBP.

.venv/bin/python benchmarks/bf16.py

The variable counts when a process starts, so every alternative is a process of its own; they take turns, run by run.
`float32 again` is the noise of the measurement. `rounded` is float32 whose convolutions and matrix products round both
factors to bfloat16 and add up in float32, as AMX does: it gives the cost in accuracy on a processor without AMX (its
seconds mean nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
VARIABLE = "TF_SET_ONEDNN_FPMATH_MODE"
REFERENCE = "float32"
ALTERNATIVES = {REFERENCE: "", "float32 again": "", "BF16": "BF16", "rounded": ""}
MODELS = ("VGG16", "ResNet50")
PASSES = ("forward", "WBP")
IMAGES, SIZE = 8, 224
SEEDS, REPEATS = (0, 1, 2), 5


class Child:
    """A process that holds one model at a time and runs it when told to."""

    def __init__(self, name: str, folder: Path) -> None:
        environment = {**os.environ, VARIABLE: ALTERNATIVES[name], "TF_CPP_MIN_LOG_LEVEL": "3"}
        words = [sys.executable, __file__, "--child", *(["--rounded"] if name == "rounded" else [])]
        self._messages = folder / f"{name}.txt"
        with self._messages.open("w") as stream:
            self._process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                bufsize=1,
            )

    def ask(self, **order: object) -> float:
        """Send an order; gives the seconds that it took."""
        self._process.stdin.write(json.dumps(order) + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"A child process has ended:\n{self._messages.read_text()}")
        return float(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def child(rounded: bool) -> None:
    """Take orders from standard input: make a model, run a pass, save what it gave."""
    import keras
    import tensorflow as tf

    from tfcausal import WBP

    if rounded:
        tf.nn.convolution = with_rounded_factors(tf.nn.convolution)
        tf.nn.conv2d_transpose = with_rounded_factors(tf.nn.conv2d_transpose)
        tf.matmul = with_rounded_factors(tf.matmul)
        tf.tensordot = with_rounded_factors(tf.tensordot)
    passes: dict[str, Callable[[], np.ndarray]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        begin = time.perf_counter()
        if "model" in order:
            keras.backend.clear_session()
            model = randomise(
                getattr(keras.applications, order["model"])(weights=None, classifier_activation=None), order["seed"]
            )
            images = np.random.default_rng(order["seed"]).normal(size=(IMAGES, SIZE, SIZE, 3)).astype("float32")
            forward, explainer = tf.function(model), WBP(model, batch_size=IMAGES)
            passes = {
                # Without defaults Python would look the names up when the next model has taken them.
                "forward": lambda forward=forward, images=images: forward(images, training=False).numpy(),
                "WBP": lambda explainer=explainer, images=images: explainer(images, list(range(IMAGES))),
            }
        elif "save" in order:
            np.savez(order["save"], **{name: function() for name, function in passes.items()})
        else:
            passes[order["run"]]()
        print(time.perf_counter() - begin, flush=True)


def randomise(model, seed: int):
    """Random weights, and random batch-norm statistics and biases, of which a fresh model has none."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(0.3 * rng.normal(size=weight.shape))
        else:
            # He initialisation: the signal keeps its size, and the logits depend on the image.
            weight.assign(rng.normal(size=weight.shape) * np.sqrt(2 / np.prod(weight.shape[:-1])))
    return model


def with_rounded_factors(function):
    """The same product with both factors rounded to bfloat16; the sum stays float32."""
    import tensorflow as tf

    def rounded(first, second, *arguments, **options):
        first, second = (tf.cast(tf.cast(factor, tf.bfloat16), tf.float32) for factor in (first, second))
        return function(first, second, *arguments, **options)

    return rounded


def differences(expected: dict[str, np.ndarray], received: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Per image: logits relative to the image's largest one, equal predictions, and the maps."""
    logits, other = expected["forward"].astype(float), received["forward"].astype(float)
    relative = np.abs(other - logits) / np.abs(logits).max(axis=1, keepdims=True)
    maps, other_maps = (values["WBP"].reshape(IMAGES, -1).astype(float) for values in (expected, received))
    return {
        "logits_largest": relative.max(axis=1).tolist(),
        "logits_mean": relative.mean(axis=1).tolist(),
        "equal_predictions": (logits.argmax(axis=1) == other.argmax(axis=1)).astype(float).tolist(),
        "map_correlation": [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(maps, other_maps, strict=True)],
        "map_relative_l2": (np.linalg.norm(other_maps - maps, axis=1) / np.linalg.norm(maps, axis=1)).tolist(),
    }


def measure(model: str, children: dict[str, Child], folder: Path) -> list[dict[str, object]]:
    """One row per alternative: seconds over all seeds and runs, differences over all seeds and images."""
    seconds = {name: {kind: [] for kind in PASSES} for name in children}
    distances: dict[str, dict[str, list[float]]] = {name: {} for name in children if name != REFERENCE}
    classes = set()
    for seed in SEEDS:
        values = {}
        for name, process in children.items():
            process.ask(model=model, seed=seed)
            # Also the run that compiles.
            process.ask(save=str(folder / "values.npz"))
            with np.load(folder / "values.npz") as saved:
                values[name] = dict(saved)
        classes |= set(values[REFERENCE]["forward"].argmax(axis=1).tolist())
        for name, collected in distances.items():
            for key, per_image in differences(values[REFERENCE], values[name]).items():
                collected.setdefault(key, []).extend(per_image)
        for _ in range(REPEATS):
            for kind in PASSES:
                for name, process in children.items():
                    seconds[name][kind].append(process.ask(run=kind))
    print(f"{model}: {len(classes)} classes predicted over {len(SEEDS)} seeds", file=sys.stderr)
    return [row(model, name, seconds, distances.get(name), len(classes)) for name in children]


def row(model: str, name: str, seconds: dict, distances: dict[str, list[float]] | None, classes: int) -> dict:
    result: dict[str, object] = {"model": model, "what": name, "classes_predicted": classes}
    for kind in PASSES:
        runs = np.array(seconds[name][kind])
        result[f"{kind}_median"] = float(np.median(runs))
        result[f"{kind}_speed"] = float(np.median(np.array(seconds[REFERENCE][kind]) / runs))
    if distances is not None:
        result |= {
            "logits_largest": max(distances["logits_largest"]),
            "logits_mean": float(np.mean(distances["logits_mean"])),
            "equal_predictions": float(np.mean(distances["equal_predictions"])),
            "map_correlation_median": float(np.median(distances["map_correlation"])),
            "map_correlation_lowest": min(distances["map_correlation"]),
            "map_relative_l2_median": float(np.median(distances["map_relative_l2"])),
            "map_relative_l2_largest": max(distances["map_relative_l2"]),
        }
    return result


def report(rows: list[dict]) -> None:
    from tfcausal.doctor import FEATURES, read_machine

    machine = read_machine()
    features = [feature for feature in FEATURES if feature in (machine.flags or ())]
    title = f"{IMAGES} images of {SIZE}x{SIZE}, {len(SEEDS)} seeds; {machine.processor}: {', '.join(features)}"
    table = Table(title=title)
    columns = {
        "forward_median": "forward s",
        "forward_speed": "speed",
        "WBP_median": "WBP s",
        "WBP_speed": "speed",
        "logits_largest": "logits, largest",
        "logits_mean": "mean",
        "equal_predictions": "equal predictions",
        "map_correlation_median": "map correlation",
        "map_correlation_lowest": "lowest",
        "map_relative_l2_median": "map relative L2",
        "map_relative_l2_largest": "largest",
    }
    table.add_column("model")
    table.add_column("what")
    for header in columns.values():
        table.add_column(header, justify="right")
    for entry in rows:
        table.add_row(entry["model"], entry["what"], *(cell(key, entry.get(key)) for key in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    versions = {name: version(name) for name in ("tensorflow", "keras", "numpy")}
    result = {"title": title, "floor": REFERENCE, "rows": rows, "machine": machine.processor, "features": features}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bf16.json").write_text(
        json.dumps({**result, "cores": machine.usable, "versions": versions}, indent=2) + "\n", encoding="utf-8"
    )


def cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key.endswith("median") and key.split("_")[0] in PASSES:
        return f"{value:.3f}"
    if key.endswith("speed"):
        return f"{value:.2f}"
    if key == "equal_predictions":
        return f"{value:.1%}"
    return f"{value:.5f}" if "correlation" in key else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounded", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.rounded)
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        children = {name: Child(name, folder) for name in ALTERNATIVES}
        rows = [entry for model in MODELS for entry in measure(model, children, folder)]
        for process in children.values():
            process.close()
    report(rows)


if __name__ == "__main__":
    main()
