"""A training step of PPI and of CFCN-C against a plain `fit` step: same backbone, same batch, one process.

    .venv/bin/python benchmarks/training_step.py

The floor in passes: a plain step is one forward and two backward passes (weights, activations), 3 units. PPI adds the
map (1), two masked forward passes (2) and their backward passes (4); through second order the map's own backward pass
comes on top (2): (3 + 1 + 2 + 4 + 2) / 3 = 4.0, and 3.3 with the map's gradient stopped.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from side_by_side import measure, report

from tfcausal.models.backbones.all_convolutional import all_convolutional
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.ppi import PPIModel

BATCH, STEPS, CLASSES = 32, 8, 10


def all_convolutional_backbone() -> keras.Model:
    return all_convolutional((48, 48, 3), CLASSES, (32, 32, 64, 64, 64), (1, 2, 1, 2, 1), dropout=0.1)


def vgg_backbone() -> keras.Model:
    return keras.applications.VGG16(weights=None, input_shape=(64, 64, 3), classes=CLASSES)


def compare(name: str, backbone, size: int, file: str) -> None:
    random = np.random.default_rng(0)
    images = random.random((BATCH * STEPS, size, size, 3), dtype=np.float32)
    labels = random.integers(0, CLASSES, len(images))
    masks = {
        "label": labels,
        "mask": (random.random((len(images), size, size, 1)) > 0.5).astype("float32"),
        "has_mask": np.ones(len(images), "float32"),
    }
    models = {
        "plain": (backbone(), labels),
        "PPI, second order": (PPIModel(backbone()), labels),
        "PPI, map's gradient stopped": (PPIModel(backbone(), second_order=False, regularisation_weight=0.0), labels),
    }
    if backbone is all_convolutional_backbone:
        models["CFCN-C"] = (CFCNModel(backbone()), masks)

    options = tf.data.Options()
    options.autotune.enabled = False  # the tuner would make the end of `fit` wait for its next period

    def epoch(model, targets):
        batches = tf.data.Dataset.from_tensor_slices((images, targets)).batch(BATCH).with_options(options)
        return lambda: model.fit(batches, verbose=0, shuffle=False)

    for model, _ in models.values():
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    seconds = measure({what: epoch(*pair) for what, pair in models.items()})
    per_step = {what: [value / STEPS for value in values] for what, values in seconds.items()}
    limits = {"PPI, second order": 4.5, "PPI, map's gradient stopped": 3.6}
    report(f"{name}, {BATCH} images of {size}x{size}: seconds per step of fit", per_step, "plain", limits, file)


def main() -> None:
    keras.utils.set_random_seed(0)
    compare("all-convolutional", all_convolutional_backbone, 48, "training_step_all_convolutional")
    compare("VGG16", vgg_backbone, 64, "training_step_vgg16")


if __name__ == "__main__":
    main()
