"""Maps by the signature `explain` of an exported model against the same explainer in Python, side by side.

The signature gives the answers beside the map; the explainer in Python gives the map alone. VGG16 without pretrained
weights with 8 images of 224x224, and the network of the quickstart with 64 images of 32x32, each by WBP and Grad-CAM.
The last table is of files: JPEG photographs of 640x480 to maps, decoded by TensorFlow in the exported model and by
Pillow in Python. Files have no limit: TensorFlow decodes them by general operations, one after the other.

.venv/bin/python benchmarks/export.py [--small]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import io
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from side_by_side import measure, report

from tfcausal.data.decoding import decode_image, to_shares
from tfcausal.export import Choices, export_model
from tfcausal.models.backbones.all_convolutional import all_convolutional
from tfcausal.saliency.registry import get_explainer

LIMIT = 1.10


def networks(small: bool) -> dict[str, tuple[keras.Model, int]]:
    digits = all_convolutional((32, 32, 3), 10)
    if small:
        return {"all_convolutional": (digits, 8)}
    vgg = keras.applications.VGG16(weights=None)
    return {"vgg16": (vgg, 8), "all_convolutional": (digits, 64)}


def signatures(model: keras.Model, method: str, folder: str) -> dict:
    export = export_model(model, Choices(method, pixels=(0.0, 1.0)), name=method, output=folder)
    return tf.saved_model.load(str(export.path)).signatures


def photographs(count: int) -> list[bytes]:
    generator, files = np.random.default_rng(1), []
    for _ in range(count):
        blocks = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        stream = io.BytesIO()
        blocks.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the small network alone, to try the script")
    small = parser.parse_args().small
    keras.utils.set_random_seed(0)
    kept = True
    for name, (model, count) in networks(small).items():
        shape = tuple(model.input_shape[1:])
        images = np.random.default_rng(0).random((count, *shape), dtype=np.float32)
        for method in ("wbp", "grad_cam"):
            explainer = get_explainer(method, model, batch_size=count)
            with tempfile.TemporaryDirectory() as folder:
                explain = signatures(model, method, folder)["explain"]
                predicted = tf.fill((count,), tf.constant(-1, tf.int64))

                def served(explain=explain, images=images, predicted=predicted) -> np.ndarray:
                    return explain(images=tf.constant(images), class_index=predicted)["map"].numpy()

                seconds = measure({"in Python": lambda of=explainer, at=images: of(at), "exported": served}, repeats=11)
                difference = np.abs(served() - explainer(images)).max()
            title = f"{name}, {method}, {count} images (largest difference of the maps: {difference:.1e})"
            kept &= report(title, seconds, "in Python", {"exported": LIMIT}, f"export_{name}_{method}")
        files, explainer = photographs(count), get_explainer("wbp", model, batch_size=count)
        with tempfile.TemporaryDirectory() as folder:
            explain_files = signatures(model, "wbp", folder)["explain_image_bytes"]

            def from_files(explain=explain_files, files=files, predicted=predicted) -> np.ndarray:
                return explain(image_bytes=tf.constant(files), class_index=predicted)["map"].numpy()

            def in_python(files=files, shape=shape, explainer=explainer) -> np.ndarray:
                return explainer(np.stack([to_shares(decode_image(file, *shape)[0], shape) for file in files]))

            seconds = measure({"in Python": in_python, "exported": from_files})
            difference = np.abs(from_files() - in_python()).max()
        title = f"{name}, wbp, {count} JPEG files of 640x480 (largest difference of the maps: {difference:.1e})"
        report(title, seconds, "in Python", {}, f"export_{name}_files")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
