"""ART's attacks on the compiled classifier against the same attacks on ART's own `TensorFlowV2Classifier`.

    .venv/bin/python benchmarks/attacks.py [fgsm bim pgd jsma]

FGSM, BIM and PGD on a ResNet50 of 64x64 pixels, JSMA on the paper's network of two convolutions at 28x28. Both
classifiers have the same network, which ends in its logits, the same loss, labels, batch size and random numbers.

The results are compared with TensorFlow's arithmetic optimiser off, and must not differ by more than 1e-6 in any value.
On, as it is for the timing and for users, it adds in another order than ART's own classifier does, operation by
operation; where the gradient of a value is about 0, the last bit decides its sign, an attack follows the sign, and what
comes after follows the attack. The share of the values that differ then, and how strong either attack is, stand in the
JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from side_by_side import RESULTS, measure, report

from tfcausal.interventions.art_classifier import art_classifier, art_module
from tfcausal.models.backbones.two_convolutions import two_convolutions

CLASSES, EPS, STEPS, SAME = 10, 0.3, 10, 1e-6
ITERATED = {"eps": EPS, "eps_step": EPS / STEPS, "max_iter": STEPS, "verbose": False}
# How much faster the attacks are to be, as the largest share of ART's own time.
LIMITS = {"fgsm": 1 / 1.5, "bim": 1 / 1.5, "pgd": 1 / 1.5, "jsma": 1 / 5}
COMPILED, OWN = "compiled", "ART's own"


def resnet50() -> keras.Model:
    """Random weights, and the statistics of batch normalisation that belong to them: no signal fades or explodes."""
    model = keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )
    images = np.random.default_rng(1).random((16, 64, 64, 3), dtype=np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        model(images, training=True)
    return model


def attack_of(name: str, classifier: Any, batch: int) -> Any:
    evasion = art_module("art.attacks.evasion")
    if name == "fgsm":
        return evasion.FastGradientMethod(classifier, eps=EPS, batch_size=batch)
    if name == "bim":
        return evasion.BasicIterativeMethod(classifier, batch_size=batch, **ITERATED)
    if name == "pgd":
        return evasion.ProjectedGradientDescent(classifier, num_random_init=1, batch_size=batch, **ITERATED)
    return evasion.SaliencyMapMethod(classifier, theta=EPS, gamma=0.145, batch_size=batch, verbose=False)


def compare(name: str, model: keras.Model, count: int, batch: int, repeats: int) -> bool:
    shape = model.input_shape[1:]
    images = np.random.default_rng(0).random((count, *shape), dtype=np.float32)
    logits = model.predict(images, verbose=0)
    # JSMA leads to the class that it is given, the others away from it.
    labels = np.eye(CLASSES, dtype=np.float32)[np.argsort(logits, axis=1)[:, -2 if name == "jsma" else -1]]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    own = art_module("art.estimators.classification").TensorFlowV2Classifier
    attacks = {
        OWN: attack_of(name, own(model, CLASSES, shape, loss, clip_values=(0.0, 1.0)), batch),
        COMPILED: attack_of(name, art_classifier(model), batch),
    }
    results: dict[str, np.ndarray] = {}

    def run(what: str) -> Callable[[], None]:
        def function() -> None:
            np.random.seed(0)  # ART draws its random start from NumPy's global state
            results[what] = attacks[what].generate(images, labels)

        return function

    runs = {what: run(what) for what in attacks}
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    for function in runs.values():
        function()
    difference = float(np.abs(results[COMPILED] - results[OWN]).max())
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})
    seconds = measure(runs, repeats=repeats, warm_up=1)
    change = np.abs(results[OWN] - images)
    losses = {what: float(loss(labels, model.predict(changed, verbose=0))) for what, changed in results.items()}
    details = {
        "greatest difference": difference,
        "share that differs with the arithmetic optimiser on": _share(results[COMPILED] - results[OWN]),
        "loss before": float(loss(labels, logits)),
        **{f"loss after, {what}": value for what, value in losses.items()},
        "share changed by the attack": float((change > 0).mean()),
        "greatest change": float(change.max()),
        "images": count,
        "batch size": batch,
    }
    title = f"{name}, {count} images of {shape[0]}x{shape[1]}x{shape[2]} in batches of {batch}: seconds"
    kept = report(title, seconds, OWN, {COMPILED: LIMITS[name]}, f"attacks_{name}", details=details)
    print("  " + ", ".join(f"{key} {value:.3g}" for key, value in details.items()))
    return kept and difference <= SAME


def _share(differences: np.ndarray) -> float:
    return float((np.abs(differences) > SAME).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of {', '.join(LIMITS)}; all without")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    chosen = arguments.attacks or list(LIMITS)
    if unknown := set(chosen) - set(LIMITS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    keras.utils.set_random_seed(0)
    large = resnet50() if set(chosen) - {"jsma"} else None
    small = two_convolutions((28, 28, 1), CLASSES, classifier_activation=None)
    kept = {}
    for name in chosen:
        if name == "jsma":
            kept[name] = compare(name, small, count=16, batch=16, repeats=arguments.repeats)
        else:
            kept[name] = compare(name, large, count=32, batch=16, repeats=arguments.repeats)
    print(json.dumps({"same results, within limits": kept}, indent=2), f"written to {RESULTS.name}/attacks_*.json")


if __name__ == "__main__":
    main()
