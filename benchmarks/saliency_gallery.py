"""Every saliency method on one image, and how much of each lies on the known cause, over three seeds.

.venv/bin/python benchmarks/saliency_gallery.py [--picture docs/saliency.png]

A small network (convolutions, batch normalisation, ReLU, max pooling, a head of its own: two nested models) learns the
embedded digits on textures that say nothing about the label, so that the digit is the only cause. The share of positive
saliency inside the digit's mask is measured on the 200 first images of the test split, for the predicted class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import keras
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import RESULTS

from tfcausal import MaskEnergy, available_explainers, get_explainer, textured_digits
from tfcausal.figures import outlined, overlay

matplotlib.use("agg")
from matplotlib import pyplot as plt

SEEDS = (0, 1, 2)
IMAGES = 200
SHOWN = 3
OPTIONS = {
    "lrp.epsilon_gamma_box": {"low": -0.5, "high": 0.5},
    "occlusion": {"patch": 8, "stride": 4},
}


def network() -> keras.Model:
    L = keras.layers
    x = inputs = keras.Input((48, 48, 1))
    for filters in (32, 64, 96):
        x = L.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
        x = L.MaxPooling2D()(L.Conv2D(filters, 3, padding="same", activation="relu")(x))
    backbone = keras.Model(inputs, x, name="backbone")
    head = keras.Sequential(
        [L.GlobalAveragePooling2D(), L.Dropout(0.2), L.Dense(10, activation="softmax")], name="head"
    )
    inputs = keras.Input((48, 48, 1))
    return keras.Model(inputs, head(backbone(inputs)))


def trained(seed: int):
    keras.utils.set_random_seed(seed)
    data = textured_digits(channels=1, contrast=0.45, context_strength=0.1, seed=seed)
    splits = {}
    for name in ("train", "test"):
        split = data.splits[name]
        images, masks = split.read(np.arange(len(split)))
        splits[name] = (images - 0.5, split.labels, masks)
    model = network()
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*splits["train"][:2], batch_size=32, epochs=15, verbose=0)
    images, labels, masks = splits["test"]
    accuracy = model.evaluate(images, labels, verbose=0)[1]
    return model, images[:IMAGES], masks[:IMAGES], accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to write the picture")
    picture = parser.parse_args().picture
    methods = [entry.name for entry in available_explainers()]
    energies: dict[str, list[float]] = {name: [] for name in methods}
    accuracies, chances, tiles = [], [], []
    for seed in SEEDS:
        model, images, masks, accuracy = trained(seed)
        accuracies.append(accuracy)
        chances.append(float(MaskEnergy().chance(masks).mean()))
        if seed == SEEDS[0]:
            tiles.append(("image", outlined(images[SHOWN] + 0.5, masks[SHOWN, ..., 0])))
        for name in methods:
            maps = get_explainer(name, model, **OPTIONS.get(name, {}))(images)
            energies[name].append(float(np.nanmean(MaskEnergy()(maps, masks))))
            if seed == SEEDS[0]:
                tiles.append((name, overlay(images[SHOWN] + 0.5, maps[SHOWN].sum(axis=-1))))

    table = Table(title=f"Positive saliency inside the digit, {IMAGES} test images, seeds {SEEDS}")
    for column in ("method", "mean", "least", "greatest"):
        table.add_column(column)
    rows = []
    for name, values in {"chance (area of the digit)": chances, **energies}.items():
        rows.append({"method": name, "mean": np.mean(values), "least": min(values), "greatest": max(values)})
        table.add_row(name, *(f"{rows[-1][key]:.2f}" for key in ("mean", "least", "greatest")))
    Console().print(table)
    Console().print(f"Test accuracy {np.mean(accuracies):.2f} ({min(accuracies):.2f}-{max(accuracies):.2f})")
    RESULTS.mkdir(exist_ok=True)
    result = {"seeds": SEEDS, "images": IMAGES, "accuracies": accuracies, "rows": rows}
    (RESULTS / "saliency_gallery.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    if picture is not None:
        columns = 6
        figure, axes = plt.subplots(-(-len(tiles) // columns), columns, figsize=(12, 9), layout="constrained")
        for axis in axes.flat:
            axis.axis("off")
        for axis, (name, tile) in zip(axes.flat, tiles, strict=False):
            axis.imshow(tile, interpolation="nearest")
            axis.set_title(name, fontsize=8)
        figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main()
