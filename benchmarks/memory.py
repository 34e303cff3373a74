"""Memory of explaining, a large network in default batches and a long dataset, and of measuring causal effects.

.venv/bin/python benchmarks/memory.py

Each part runs in a process of its own. The first gives the greatest resident memory of explaining 4 images of 600x600
with EfficientNetB7, whose default batch size is to fit into 8 GiB; the second the growth of the resident memory while
20,000 images of 64x64 are explained from a dataset, after the first 1,000. The last part measures effects with few and
with many nodes, patches and images, each in batches that the library chooses, and gives how much more memory the many
take at the peak: what lies in files, as the images do, is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table
from side_by_side import RESULTS

LARGE = """
import resource, sys
import keras, numpy as np
from tfcausal import get_explainer
keras.utils.set_random_seed(0)
model = keras.applications.EfficientNetB7(weights=None)
images = np.random.default_rng(0).uniform(0, 255, (4, 600, 600, 3)).astype("float32")
explainer = get_explainer(sys.argv[1], model)
assert explainer(images).shape[:3] == (4, 600, 600)
print(explainer.batch_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
LONG = """
import keras, numpy as np, tensorflow as tf
from tfcausal import get_explainer
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
inputs = keras.Input((64, 64, 3))
x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(inputs)
model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
images = tf.data.Dataset.range(20000).map(lambda i: tf.random.stateless_uniform((64, 64, 3), tf.stack([i, i])))
explained = first = 0
for maps in get_explainer("wbp", model).stream(images.batch(50)):
    explained += len(maps)
    first = first or (resident() if explained >= 1000 else 0)
print(explained, resident() - first)
"""
EFFECTS = """
import sys, tempfile, threading, time
import keras, numpy as np
from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.maps import PixelEffects
what, count = sys.argv[1], int(sys.argv[2])
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 2**10
keras.utils.set_random_seed(0)
x = inputs = keras.Input((96, 96, 3))
x = keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
x = keras.layers.Conv2D(256, 3, strides=2, padding="same", activation="relu", name="level")(x)
x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, outputs)
file = tempfile.NamedTemporaryFile()
images = np.memmap(file, np.float32, "w+", shape=(count if what == "images" else 64, 96, 96, 3))
for image in images:
    image[:] = 0.5
peak, done = 0.0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
if what == "patches":
    measure = PixelEffects(model, patch=96 // round(count**0.5))
else:
    measure = ConceptEffects(ChannelConcepts(model, "level"))
nodes = {} if what == "patches" else {"nodes": list(range(count if what == "nodes" else 4))}
measure(images[:64], **nodes) if what == "images" else None
thread.start()
measure(images, **nodes)
done = True
thread.join()
print(count, peak)
"""
MANY = {"nodes": (8, 256), "patches": (16, 576), "images": (256, 4096)}
METHODS = ("wbp", "lrp.epsilon_plus", "grad_cam")


def run(script: str, *arguments: str) -> tuple[float, float]:
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=None, check=True
    )
    first, second = result.stdout.split()
    return float(first), float(second)


def main() -> None:
    table = Table(title="Memory")
    for column in ("what", "measured", "at most"):
        table.add_column(column)
    rows = []
    for method in METHODS:
        batch_size, peak = run(LARGE, method)
        what = f"{method}, EfficientNetB7, 600x600, default batch of {batch_size:.0f}: peak GiB"
        rows.append({"what": what, "measured": peak, "limit": 8.0})
    _, growth = run(LONG)
    rows.append({"what": "20,000 images of 64x64: growth after 1,000, MiB", "measured": growth, "limit": 300.0})
    for what, (few, many) in MANY.items():
        _, first = run(EFFECTS, what, str(few))
        _, last = run(EFFECTS, what, str(many))
        text = f"effects, {many} {what} in the place of {few}: growth of the peak, MiB (from {first:.0f})"
        rows.append({"what": text, "measured": last - first, "limit": 300.0})
    for row in rows:
        table.add_row(row["what"], f"{row['measured']:.2f}", f"{row['limit']:.0f}")
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
