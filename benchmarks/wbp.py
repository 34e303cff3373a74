"""WBP of a batch against a compiled gradient times input: VGG16 without pretrained weights, 8 images of 224x224.

.venv/bin/python benchmarks/wbp.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from side_by_side import measure, report

from tfcausal.saliency.wbp import WBP


def main() -> None:
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None, classifier_activation=None)
    images = np.random.default_rng(0).random((8, 224, 224, 3), dtype=np.float32)
    explainer = WBP(model, batch_size=8)

    @tf.function
    def gradient_times_input(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(batch)
            logit = tf.reduce_max(model(batch, training=False), axis=-1)
        return tape.gradient(logit, batch) * batch

    def floor() -> np.ndarray:
        return gradient_times_input(tf.constant(images)).numpy()

    seconds = measure({"gradient times input": floor, "WBP": lambda: explainer(images)})
    difference = np.abs(explainer(images) - floor()).max() / np.abs(floor()).max()
    title = f"VGG16, 8 images of 224x224 (largest relative difference of the maps: {difference:.1e})"
    report(title, seconds, "gradient times input", {"WBP": 1.10}, "wbp")


if __name__ == "__main__":
    main()
