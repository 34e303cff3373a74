"""The pixel-wise effect map beside the bare forward passes that it needs: one per patch and one per image.

VGG16 without pretrained weights, 8 images of 224x224, patches of 28 pixels:

.venv/bin/python benchmarks/effect_maps.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import sys

import keras
import numpy as np
import tensorflow as tf
from side_by_side import measure, report

from tfcausal.effects.maps import PixelEffects

LIMIT = 1.15
FLOOR = "forward passes, batches of {}"
MAP = "pixel-wise effect map"


def forward_passes(model: keras.Model, images: np.ndarray, passes: int, batch: int) -> None:
    """As many images through the model as asked for, in batches, the last one smaller."""
    several = np.resize(images, (batch, *images.shape[1:]))
    for start in range(0, passes, batch):
        model(tf.constant(several[: passes - start])).numpy()


def vgg16(side: int) -> keras.Model:
    """VGG16 with weights that keep the signal's size from layer to layer, so that effects are no rounding errors."""
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None, input_shape=(side, side, 3))
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            deviation = np.sqrt(2 / np.prod(weight.shape[:-1]))
            weight.assign(deviation * random.standard_normal(weight.shape, np.float32))
    return model


def largest(model: keras.Model, images: np.ndarray, patch: int) -> tuple[float, float]:
    """The largest effect, and how far effects are from those of masking whole images, in the first and last patch."""
    measured = PixelEffects(model, patch).measure(images)
    of = np.arange(len(images)), measured.classes
    differences = []
    for row, column in ((0, 0), (-1, -1)):
        masked = images.copy()
        y, x = measured.rows[row], measured.columns[column]
        masked[:, y : y + patch, x : x + patch] = 0
        effect = model.predict(masked, verbose=0)[of] - model.predict(images, verbose=0)[of]
        differences.append(np.abs(measured.effects[:, row, column] - effect).max())
    return float(np.abs(measured.effects).max()), float(max(differences))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="height and width of the images")
    parser.add_argument("--patch", type=int, default=28, help="height and width of a patch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32], help="batch sizes of the forward passes")
    options = parser.parse_args()
    model = vgg16(options.side)
    shape = (options.images, options.side, options.side, 3)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    forward = tf.function(lambda batch: model(batch, training=False), autograph=False)
    effects = PixelEffects(model, options.patch)
    patches = effects.measure(images[:1]).effects.size
    passes = options.images * (patches + 1)

    alternatives = {MAP: lambda: effects(images)}
    for batch in options.batches:
        alternatives[FLOOR.format(batch)] = lambda batch=batch: forward_passes(forward, images, passes, batch)
    seconds = measure(alternatives, options.repeats, options.warm_up)
    floor = min((name for name in seconds if name != MAP), key=lambda name: np.median(seconds[name]))
    title = f"VGG16, {options.images} images of {options.side}x{options.side}, {passes} forward passes"
    effect, difference = largest(model, images, options.patch)
    details = {
        "images": options.images,
        "patches": patches,
        "forward_passes": passes,
        "largest_effect": effect,
        "largest_difference_from_masking_whole_images": difference,
    }
    return 0 if report(title, seconds, floor, {MAP: LIMIT}, "effect_maps", details=details) else 1


if __name__ == "__main__":
    sys.exit(main())
