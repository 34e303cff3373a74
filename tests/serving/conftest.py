"""Small classifiers, image files made by hand, exported models to ask, and servers to ask them."""

import io
import socket
import struct
import zlib
from contextlib import ExitStack
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfcausal.export import Choices, export_model
from tfcausal.serving.signatures import explain, predict
from tfcausal.serving.subject import load_source, prepare

L = keras.layers
RESPONSES = Path(__file__).parents[2] / "benchmarks" / "serving_responses.py"
collect_ignore = ["model_server"]  # run as a process of its own
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the type of colour of PNG


def _classifier(shape=(8, 6, 3), units=3, activation="softmax", nested=True):
    """A nested model with branches, an addition, batch normalisation and a shared layer."""
    keras.utils.set_random_seed(units)
    x = inner = keras.Input((*shape[:2], 4))
    shared = L.Conv2D(4, 3, padding="same", name="shared")
    x = L.Add()([L.ReLU()(shared(x)), shared(x)])
    block = keras.Model(inner, L.BatchNormalization()(x), name="block")
    inputs = keras.Input(shape)
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inputs)
    x = L.Concatenate()([block(x), L.MaxPooling2D(3, 1, "same")(x)]) if nested else x
    x = L.Dense(units, name="logits")(L.GlobalAveragePooling2D()(L.Dropout(0.5)(x)))
    model = keras.Model(inputs, L.Activation(activation)(x) if activation else x, name="small")
    for layer in block.layers:
        if isinstance(layer, L.BatchNormalization):  # other than 0 and 1
            layer.set_weights([np.linspace(0.5, 1.5, 4), np.linspace(-1, 1, 4), np.linspace(0, 1, 4), np.full(4, 2.0)])
    return model


@pytest.fixture(autouse=True, scope="module")
def _seeded():
    """Once per file: seeding throws away what TensorFlow has compiled, which takes seconds for an exported model."""
    keras.utils.set_random_seed(20)


@pytest.fixture(scope="session")
def classifier():
    return _classifier


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Export a model and load it; gives the export and its signatures."""

    def export(model, *, name="small", check=False, output=None, **choices):
        choices.setdefault("pixels", (0.0, 1.0))
        folder = output or tmp_path_factory.mktemp("saved_models")
        done = export_model(model, Choices(**choices), name=name, output=folder, check=check)
        return done, tf.saved_model.load(str(done.path)).signatures

    return export


@pytest.fixture(scope="session")
def asked():
    """The signatures that take arrays, as the export makes them, without its files."""

    def functions(model, **choices):
        choices.setdefault("pixels", (-1.0, 1.0))
        served, _ = prepare(load_source(model, None), Choices(**choices), print)
        images = tf.TensorSpec((None, *served.graph.input_shape[1:]), tf.float32)
        indices = tf.TensorSpec((None,), tf.int64)

        @tf.function(input_signature=[images], autograph=False)
        def answer(images):
            return predict(served, images)

        @tf.function(input_signature=[images, indices], autograph=False)
        def explanation(images, class_index):
            return explain(served, images, class_index)

        return answer, explanation

    return functions


@pytest.fixture(scope="session")
def colour(exported, classifier):
    """A model of colour images with three classes, its export and its signatures."""
    model = classifier()
    return model, *exported(model, labels=["cat", "two\nlines", "Kuh ü"], pixels=(-1.0, 1.0), most_pixels=100_000)


@pytest.fixture(scope="session")
def png():
    """A PNG file of any depth and type of colour, chunk by chunk; `values` (rows, columns, samples)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(depth, colours, values, *chunks, size=None):
        lines = b""
        for row in values:
            if depth >= 8:
                line = row.astype(f">u{depth // 8}").tobytes()
            else:
                bits = "".join(format(value, f"0{depth}b") for value in row.ravel())
                bits += "0" * (-len(bits) % 8)
                line = bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8))
            lines += b"\0" + line
        height, width = size or values.shape[:2]
        header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
        body = [chunk(b"IHDR", header), *(chunk(*one) for one in chunks), chunk(b"IDAT", zlib.compress(lines))]
        return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")

    make.samples = _SAMPLES
    return make


@pytest.fixture(scope="session")
def saved():
    """An image as a file in memory."""

    def save(pixels, kind="PNG", mode=None, **options):
        image = Image.fromarray(np.asarray(pixels, np.uint8).squeeze(), mode)
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    return save


@pytest.fixture(scope="session")
def of_run(small_effects, tmp_path_factory):
    """CFCN of a run, whose concepts were learned at two levels."""
    folder = tmp_path_factory.mktemp("exports")
    said = []
    export = export_model(small_effects, model="cfcn", output=folder, intended_use="Tests.", say=said.append)
    return small_effects, export, said


@pytest.fixture(scope="session")
def responses():
    """The script that asks a server what docs/serving.md asks."""
    specification = util.spec_from_file_location(RESPONSES.stem, RESPONSES)
    script = util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


@pytest.fixture(scope="session")
def model_server(responses):
    """Starts servers of exported models with flags of TensorFlow Serving; they end with the tests."""
    with ExitStack() as stack:

        def start(*flags):
            ports = stack.enter_context(responses.running(*flags))
            address, url = f"localhost:{ports['port']}", f"http://localhost:{ports['rest_api_port']}"
            return SimpleNamespace(address=address, url=url, ports=ports)

        yield start


@pytest.fixture(scope="session")
def shelf(of_run, exported, classifier, tmp_path_factory):
    """What is served: the run's `cfcn`, and two versions of `pets`, with their models by version."""
    folder = tmp_path_factory.mktemp("shelf")
    labels = ["cat", "dog", "Kuh ü"]
    pets = {1: classifier(), 2: classifier(nested=False)}
    for model in pets.values():
        exported(model, name="pets", output=folder, labels=labels, pixels=(-1.0, 1.0), most_pixels=100_000)
    config = folder / "models.config"
    versions = "model_version_policy { specific { versions: 1 versions: 2 } }"
    names = "version_labels { key: 'stable' value: 1 } version_labels { key: 'canary' value: 2 }"
    paths = (("cfcn", of_run[1].path.parent, ""), ("pets", folder / "pets", f"{versions} {names}"))
    entries = (
        f"config {{ name: '{name}' base_path: '{path}' model_platform: 'tensorflow' {more} }}"
        for name, path, more in paths
    )
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}", encoding="utf-8")
    return SimpleNamespace(config=config, pets=pets, labels=labels, run=of_run[0])


@pytest.fixture(scope="session")
def served(shelf, model_server):
    """A server of both models."""
    return model_server(f"--model_config_file={shelf.config}")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, saved):
    """A folder of files in several forms."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(4)
    for number, (kind, shape) in enumerate([("PNG", (40, 33, 3)), ("JPEG", (30, 30)), ("PNG", (24, 24))]):
        pixels = generator.integers(0, 256, shape)
        (folder / f"{number}.{'png' if kind == 'PNG' else 'jpg'}").write_bytes(saved(pixels, kind))
    return folder


@pytest.fixture
def messy(pictures, tmp_path):
    """The same with three files among them that a server refuses."""
    folder = tmp_path / "messy"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cut = (pictures / "1.jpg").read_bytes()
    (folder / "1_cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "1_text.png").write_bytes(b"no image")
    (folder / "2_empty.jpg").touch()
    return folder


@pytest.fixture(scope="session")
def free_port():
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
