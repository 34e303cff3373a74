"""The explainers beside peer libraries: one process per library, each asked in turn, so that only one works at a time.

VGG16 and ResNet50 without pretrained weights (the same in every process, by seed), explained at their logits for one
class. The peers live in an environment of their own, which `requirements-peers.txt` describes:

.venv/bin/python benchmarks/saliency.py --peers-python .venv-peers/bin/python
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
CLASS = 7
PATCH = 28
FORWARD_BATCH = 16
XPLIQUE_OCCLUSION_BATCH = 64
# Where Grad-CAM is taken: the name for the peers, and the step that computes the same tensor in the graph of tfcausal.
CAM_LAYERS = {
    "VGG16": ("block5_conv3", "block5_conv3"),
    "ResNet50": ("conv5_block3_out", "conv5_block3_out"),
}
PEERS = {"tf-keras-vis": "0.8.7", "xplique": "2.0.2", "tf-explain": "0.3.1"}
SHARED = ("tensorflow", "keras", "numpy")
GRADIENT_FLOOR = "floor gradient times input"
FORWARD_FLOOR = "floor occluded forward"

# What a round runs, grouped by what belongs into one table.
GRADIENTS = {
    "floor": ("forward", "gradient times input"),
    "tfcausal": ("wbp", "lrp.epsilon_plus", "grad_cam"),
    "tf-keras-vis": ("Saliency", "Gradcam"),
    "xplique": ("GradientInput", "GradCAM"),
    "tf-explain": ("GradientsInputs", "GradCAM"),
}
OCCLUSIONS = {
    "floor": ("occluded forward",),
    "tfcausal": ("occlusion",),
    "xplique": ("Occlusion",),
    "tf-explain": ("Occlusion",),
}
LIMITS = {"tfcausal wbp": 1.10, "tfcausal lrp.epsilon_plus": 3.0}
COMPARISONS = (
    ("tfcausal wbp", "tf-keras-vis Saliency", 1.0),
    ("tfcausal wbp", "xplique GradientInput", 1.0),
    ("tfcausal grad_cam", "tf-keras-vis Gradcam", 1 / 1.5),
    ("tfcausal grad_cam", "xplique GradCAM", 1.0),
    ("tfcausal occlusion", "xplique Occlusion", 1 / 1.5),
)
# The same quantity by several libraries, up to scale and, for Grad-CAM, the interpolation.
SAME = (
    ("floor gradient times input", "tfcausal wbp", "xplique GradientInput", "tf-explain GradientsInputs"),
    ("tfcausal grad_cam", "tf-keras-vis Gradcam", "xplique GradCAM"),
    ("tfcausal occlusion", "xplique Occlusion"),
)


@dataclass(frozen=True)
class Method:
    """What is timed, and what gives the maps to compare where that is something else."""

    run: Callable[[np.ndarray], Any]
    maps: Callable[[np.ndarray], Any] | None = None


def floor_methods(model: Any, layer: str) -> dict[str, Callable[[], Method]]:
    import tensorflow as tf

    forward = tf.function(lambda batch: model(batch, training=False), autograph=False)

    @tf.function(autograph=False)
    def gradient_times_input(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(batch)
            logits = model(batch, training=False)[:, CLASS]
        return tape.gradient(logits, batch) * batch

    def occluded(images: np.ndarray) -> None:
        patches = (images.shape[1] // PATCH) * (images.shape[2] // PATCH)
        batch = np.resize(images, (FORWARD_BATCH, *images.shape[1:]))
        for start in range(0, len(images) * (patches + 1), FORWARD_BATCH):
            forward(tf.constant(batch[: len(images) * (patches + 1) - start])).numpy()

    return {
        "forward": lambda: Method(lambda images: forward(tf.constant(images)).numpy()),
        "gradient times input": lambda: Method(lambda images: gradient_times_input(tf.constant(images)).numpy()),
        "occluded forward": lambda: Method(occluded),
    }


def tfcausal_methods(model: Any, layer: str) -> dict[str, Callable[[], Method]]:
    def method(name: str, **options: Any) -> Callable[[], Method]:
        def build() -> Method:
            from tfcausal.saliency.registry import get_explainer

            explainer = get_explainer(name, model, **options)
            return Method(lambda images: explainer(images, np.full(len(images), CLASS)))

        return build

    return {
        "wbp": method("wbp", batch_size=8),
        "lrp.epsilon_plus": method("lrp.epsilon_plus", batch_size=8),
        "grad_cam": method("grad_cam", layer=layer, batch_size=8),
        "occlusion": method("occlusion", patch=PATCH, stride=PATCH, baseline=0.0),
    }


def tf_keras_vis_methods(model: Any, layer: str) -> dict[str, Callable[[], Method]]:
    import tensorflow as tf
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    def score(images: np.ndarray) -> Any:
        return CategoricalScore([CLASS] * len(images))

    def gradcam() -> Method:
        explainer = Gradcam(model)
        options = {"penultimate_layer": layer, "seek_penultimate_conv_layer": False}

        def bilinear(images: np.ndarray) -> np.ndarray:
            """Its class maps enlarged with TensorFlow: its own enlargement aligns the corners."""
            small = explainer(score(images), images, expand_cam=False, normalize_cam=False, **options)
            return tf.image.resize(np.asarray(small)[..., np.newaxis], images.shape[1:3]).numpy()

        return Method(lambda images: explainer(score(images), images, **options), bilinear)

    def saliency() -> Method:
        explainer = Saliency(model)
        return Method(lambda images: explainer(score(images), images))

    return {"Saliency": saliency, "Gradcam": gradcam}


def xplique_methods(model: Any, layer: str) -> dict[str, Callable[[], Method]]:
    from xplique.attributions import GradCAM, GradientInput, Occlusion

    def method(explainer: Any) -> Method:
        return Method(lambda images: explainer(images, np.eye(1000, dtype=np.float32)[[CLASS] * len(images)]).numpy())

    occlusion = {"patch_size": PATCH, "patch_stride": PATCH, "occlusion_value": 0.0}
    return {
        "GradientInput": lambda: method(GradientInput(model, batch_size=8, reducer=None)),
        "GradCAM": lambda: method(GradCAM(model, batch_size=8, conv_layer=layer)),
        "Occlusion": lambda: method(Occlusion(model, batch_size=XPLIQUE_OCCLUSION_BATCH, **occlusion)),
    }


def tf_explain_methods(model: Any, layer: str) -> dict[str, Callable[[], Method]]:
    from tf_explain.core import GradCAM, GradientsInputs, OcclusionSensitivity

    def gradients() -> Method:
        explainer = GradientsInputs()
        return Method(
            lambda images: explainer.explain((images, None), model, CLASS),
            lambda images: explainer.compute_gradients(images, model, CLASS).numpy(),
        )

    options = {"layer_name": layer, "use_guided_grads": False}
    return {
        "GradientsInputs": gradients,
        "GradCAM": lambda: Method(lambda images: GradCAM().explain((images, None), model, CLASS, **options)),
        "Occlusion": lambda: Method(lambda images: OcclusionSensitivity().explain((images, None), model, CLASS, PATCH)),
    }


LIBRARIES = {
    "floor": floor_methods,
    "tfcausal": tfcausal_methods,
    "tf-keras-vis": tf_keras_vis_methods,
    "xplique": xplique_methods,
    "tf-explain": tf_explain_methods,
}


def serve(library: str, name: str) -> None:
    """Answer requests, one JSON object a line: {"method", "images", "save"} with {"seconds"} or {"error"}."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print does not belong among the replies
    import keras

    keras.config.disable_interactive_logging()
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    builders = LIBRARIES[library](model, CAM_LAYERS[name][library == "tfcausal"])
    packages = (*SHARED, library) if library in PEERS else SHARED
    print(json.dumps({package: version(package) for package in packages}), file=replies)
    methods: dict[str, Method] = {}
    for line in sys.stdin:
        request = json.loads(line)
        images = np.random.default_rng(0).random((request["images"], 224, 224, 3), dtype=np.float32)
        try:
            if request["method"] not in methods:
                methods[request["method"]] = builders[request["method"]]()
            method = methods[request["method"]]
            run = method.maps if request["save"] and method.maps else method.run
            begin = time.perf_counter()
            result = run(images)
            reply = {"seconds": time.perf_counter() - begin}
            if request["save"]:
                np.save(request["save"], np.asarray(result))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=replies)


class Worker:
    """A process that holds one library, its model and its explainers."""

    def __init__(self, python: str, library: str, model: str, folder: str) -> None:
        command = [python, "-W", "ignore", str(Path(__file__)), "--worker", library, "--models", model]
        self._messages = Path(folder, f"{library}.txt")
        with self._messages.open("w") as messages:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True
            )
        ready = self._reply()
        self.error = ready.pop("error", None)
        self.versions: dict[str, str] = ready

    def ask(self, method: str, images: int, save: str = "") -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        print(json.dumps({"method": method, "images": images, "save": save}), file=self._process.stdin, flush=True)
        reply = self._reply()
        if self._process.poll() is not None:
            self.error = reply["error"]
        return reply

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        last = self._messages.read_text().strip().split("\n")[-1]
        return {"error": f"the process ended ({self._process.returncode}): {last}"}


def time_in_turn(
    workers: dict[str, Worker], group: dict[str, tuple[str, ...]], images: int, rounds: int, warm_up: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every round by "library method", and the errors of those that do not run.

    Every round starts with another method, so that a load that comes and goes does not meet the same one each time.
    """
    names = [(library, method) for library, methods in group.items() if library in workers for method in methods]
    seconds: dict[str, list[float]] = {f"{library} {method}": [] for library, method in names}
    errors: dict[str, str] = {}
    for number in range(warm_up + rounds):
        for library, method in (*names[number % len(names) :], *names[: number % len(names)]):
            name = f"{library} {method}"
            if name in errors:
                continue
            reply = workers[library].ask(method, images)
            if "error" in reply:
                errors[name] = reply["error"]
                del seconds[name]
            elif number >= warm_up:
                seconds[name].append(reply["seconds"])
    return seconds, errors


def agreement(workers: dict[str, Worker], names: list[str], images: int, folder: str) -> list[dict[str, Any]]:
    """How far maps that should be the same are apart, each scaled to a largest magnitude of 1 per image."""
    rows = []
    for group in SAME:
        maps = {}
        for name in (name for name in group if name in names):
            library, method = name.split(" ", 1)
            path = str(Path(folder, f"{name}.npy"))
            if "error" not in workers[library].ask(method, images, path):
                maps[name] = np.load(path)
        for first, second in combinations(maps, 2):
            a, b = maps[first], maps[second]
            if a.shape[-1] != b.shape[-1] or a.ndim != b.ndim:
                a, b = (value.sum(axis=-1) if value.ndim == 4 else value for value in (a, b))
            a, b = _scaled(a), _scaled(b)
            correlation = float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
            difference = float(np.abs(a - b).max())
            rows.append({"maps": [first, second], "largest_difference": difference, "correlation": correlation})
    return rows


def _scaled(maps: np.ndarray) -> np.ndarray:
    maps = maps.astype(np.float64).reshape(len(maps), -1)
    largest = np.abs(maps).max(axis=1, keepdims=True)
    return maps / np.where(largest == 0, 1, largest)


def benchmark(model: str, options: argparse.Namespace) -> bool:
    """Whether every limit is kept and every method of tfcausal runs."""
    libraries = [library for library in LIBRARIES if library == "floor" or library in options.libraries]
    pythons = {library: options.peers_python if library in PEERS else sys.executable for library in libraries}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for library in libraries:
                workers[library] = Worker(pythons[library], library, model, folder)
            check_versions(workers)
            file = f"saliency_{model.lower()}"
            kept = [compare(workers, model, GRADIENTS, GRADIENT_FLOOR, options.images, file, options, folder)]
            if options.occlusion_images:
                images = options.occlusion_images
                file = f"{file}_occlusion"
                kept += [compare(workers, model, OCCLUSIONS, FORWARD_FLOOR, images, file, options, folder)]
        finally:
            for worker in workers.values():
                worker.close()
    return all(kept)


def compare(
    workers: dict[str, Worker],
    model: str,
    group: dict[str, tuple[str, ...]],
    floor: str,
    images: int,
    file: str,
    options: argparse.Namespace,
    folder: str,
) -> bool:
    """Time one table's methods, compare their maps, and report both."""
    from side_by_side import Comparison, report

    seconds, errors = time_in_turn(workers, group, images, options.rounds, options.warm_up)
    same = agreement(workers, list(seconds), images, folder)
    details: dict[str, object] = {
        "images": images,
        "rounds": options.rounds,
        "peers": {name: workers[name].versions.get(name) for name in PEERS if name in workers},
        "not_run": errors,
        "agreement": same,
    }
    if group is OCCLUSIONS:
        details["batch"] = {"floor": FORWARD_BATCH, "xplique": XPLIQUE_OCCLUSION_BATCH, "tf-explain": 32}
    comparisons = [Comparison(*values) for values in COMPARISONS]
    kept = report(f"{model}, {images} images of 224x224", seconds, floor, LIMITS, file, comparisons, details)
    for row in same:
        print(f"{' and '.join(row['maps'])}: correlation {row['correlation']:.6f}", end=", ")
        print(f"largest difference {row['largest_difference']:.1e} of the largest value")
    for name, error in errors.items():
        print(f"{name} does not run: {error}")
    return kept and not any(name.startswith("tfcausal") for name in errors)


def check_versions(workers: dict[str, Worker]) -> None:
    expected = {package: workers["floor"].versions[package] for package in SHARED}
    for library, worker in workers.items():
        wanted = expected | ({library: PEERS[library]} if library in PEERS else {})
        if not worker.error and worker.versions != wanted:
            raise SystemExit(f"{library} runs on {worker.versions}; the comparison needs {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers-python", default=str(REPOSITORY / ".venv-peers" / "bin" / "python"))
    parser.add_argument("--models", nargs="+", default=list(CAM_LAYERS), choices=list(CAM_LAYERS))
    parser.add_argument("--libraries", nargs="+", default=["tfcausal", *PEERS], choices=["tfcausal", *PEERS])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--occlusion-images", type=int, default=8, help="0 leaves the occlusion out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, options.models[0])
        return
    if not Path(options.peers_python).exists() and set(options.libraries) & set(PEERS):
        raise SystemExit(f"There is no {options.peers_python}. See benchmarks/requirements-peers.txt.")
    kept = [benchmark(model, options) for model in options.models]
    if not all(kept):
        raise SystemExit("A limit is not kept, or a method of tfcausal does not run.")


if __name__ == "__main__":
    main()
