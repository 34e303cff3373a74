"""Causal effects against the straightforward way to compute them.

`nodes`: all concepts of a level of VGG16 zeroed one at a time, for a batch of images. The straightforward way is a full
forward pass per concept of a Keras model with the autoencoder in its place and the concept multiplied by 0, compiled,
and one more with nothing zeroed, to subtract. Both must give the same effects to 1e-5. `block3_conv3` is the seventh of
the thirteen convolutions; `block5_conv3` is the last. The network has no pretrained weights, and the autoencoder is
not trained, neither of which matters to the time.

.venv/bin/python benchmarks/effects.py [nodes ...] [--size 224] [--images 8] [--repeats 5]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf
from side_by_side import RESULTS, measure, report

from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects

CONCEPTS = 16
# How much of the time of a full forward pass per node is allowed: at least 2 times as fast, and 5 times.
LEVELS = {"block3_conv3": 1 / 2, "block5_conv3": 1 / 5}
TOLERANCE = 1e-5


class Kept(keras.layers.Layer):
    """Multiplies every concept by a weight of its own, which is 1, or 0 for a concept that is zeroed."""

    def build(self, shape):
        self.mask = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

    def call(self, codes):
        return codes * self.mask

    def zero(self, node: int | None) -> None:
        mask = np.ones(self.mask.shape, "float32")
        mask[[] if node is None else [node]] = 0
        self.mask.assign(mask)


def vgg16(size: int) -> keras.Model:
    """VGG16 with weights that keep the signal's size from layer to layer, so that effects are no rounding errors."""
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None, input_shape=(size, size, 3))
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            deviation = np.sqrt(2 / np.prod(weight.shape[:-1]))
            weight.assign(deviation * random.standard_normal(weight.shape, np.float32))
    return model


def with_autoencoder(model: keras.Model, autoencoder: ConceptAutoencoder, level: str) -> tuple[keras.Model, Kept]:
    """The whole network with the autoencoder inserted, as a Keras model of its own."""
    kept = Kept()
    tensor = model.input
    for layer in model.layers[1:]:
        tensor = layer(tensor)
        if layer.name == level:
            scale = float(autoencoder.scale)
            tensor = tensor / scale
            for part in (*autoencoder.encoder, kept, *autoencoder.decoder):
                tensor = part(tensor)
            tensor = tensor * scale
    return keras.Model(model.input, tensor), kept


def nodes(size: int, count: int, repeats: int) -> bool:
    """All nodes of a level, against a full forward pass per node."""
    network = vgg16(size)
    images = np.random.default_rng(1).normal(size=(count, size, size, 3)).astype("float32")
    within = {}
    for level, limit in LEVELS.items():
        autoencoder = ConceptAutoencoder(network, level, concepts=CONCEPTS)
        autoencoder.trained = True
        inserted, kept = with_autoencoder(network, autoencoder, level)
        forward = tf.function(lambda batch, model=inserted: model(batch, training=False))
        effects = ConceptEffects(autoencoder)

        def per_node(kept=kept, forward=forward) -> np.ndarray:
            answers = []
            for node in (None, *range(CONCEPTS)):
                kept.zero(node)
                answers.append(forward(images).numpy())
            return np.stack(answers[1:], 1) - answers[0][:, None]

        def at_once(effects=effects) -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an autoencoder that is not trained changes the answers
                return effects(images).effects[:, :, 0]

        expected, found = per_node(), at_once()
        error = float(np.abs(found - expected).max())
        alternatives = {"full forward pass per node": per_node, "ConceptEffects": at_once}
        seconds = measure(alternatives, repeats=repeats, warm_up=1)
        details = {
            "level": level,
            "concepts": CONCEPTS,
            "images": count,
            "size": size,
            "largest_effect": float(np.abs(expected).max()),
            "largest_difference": error,
            "operations_behind": autoencoder.downstream.operations,
            "rows_per_pass": effects.engine.rows,
        }
        title = f"VGG16, {level}, {CONCEPTS} nodes, {count} images of {size}x{size}"
        kept_limit = report(
            title,
            seconds,
            "full forward pass per node",
            {"ConceptEffects": limit},
            f"effects_nodes_{level}",
            details=details,
        )
        print(f"  largest effect {details['largest_effect']:.3g}, largest difference {error:.2g}")
        within[level] = kept_limit and error <= TOLERANCE
    print(json.dumps({"within limits": within}, indent=2), f"written to {RESULTS.name}/effects_nodes_*.json")
    return all(within.values())


TABLES = {"nodes": nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(TABLES))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for table in arguments.tables:
        if table not in TABLES:
            parser.error(f"unknown table {table}; there are {', '.join(TABLES)}")
    chosen = arguments.tables or TABLES
    kept = [TABLES[table](arguments.size, arguments.images, arguments.repeats) for table in chosen]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
