from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.saliency.wbp import WBP

L = keras.layers


def classifier(height: int | None = 6, classes: int = 3) -> keras.Model:
    inputs = keras.Input((height, 5, 2))
    x = L.Conv2D(4, 3, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))


def images_of(count: int, height: int = 6) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, height, 5, 2)).astype("float32")


class Counting(WBP):
    """Counts how often its maps are traced, and how large the batches are that it is called with."""

    traces = 0

    def maps(self, inputs, classes):
        self.traces += 1
        return super().maps(inputs, classes)

    def __call__(self, images, targets=None, reducer=None):
        self.sizes = [*getattr(self, "sizes", []), len(images)]
        return super().__call__(images, targets, reducer)


def datasets(images: np.ndarray, labels: np.ndarray) -> dict[str, tf.data.Dataset]:
    of = tf.data.Dataset.from_tensor_slices
    weights = np.ones(len(images), "float32")
    masks = {"label": labels, "mask": images[..., :1], "has_mask": weights}
    return {
        "images": of(images),
        "labels": of((images, labels)),
        "weights": of((images, labels, weights)),
        "masks": of((images, masks)),
        "one_hot": of((images, np.eye(3, dtype="float32")[labels])),
        "column": of((images, labels[:, None])),
    }


@pytest.mark.parametrize("batch", [None, 3, 4, 50])
@pytest.mark.parametrize("kind", ["images", "labels", "weights", "masks", "one_hot", "column"])
def test_maps_of_a_dataset_are_those_of_its_images(kind, batch):
    images, labels = images_of(11), np.arange(11) % 3
    explainer = WBP(classifier(), batch_size=4)
    dataset = datasets(images, labels)[kind]
    dataset = dataset if batch is None else dataset.batch(batch)
    targets = None if kind == "images" else "labels"
    streamed = list(explainer.stream(dataset, targets))
    assert [len(maps) for maps in streamed[:-1]] == [batch or 4] * (len(streamed) - 1)
    expected = explainer(images, None if kind == "images" else labels)
    np.testing.assert_allclose(np.concatenate(streamed), expected, rtol=1e-5, atol=1e-7)


def test_one_class_for_all_and_a_reducer():
    images, explainer = images_of(5), WBP(classifier(), batch_size=2)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.zeros(5, int)))
    (maps,) = explainer.stream(dataset.batch(5), targets=np.int64(2), reducer="abs_max")
    np.testing.assert_allclose(maps, explainer(images, [2] * 5, "abs_max"), rtol=1e-5, atol=1e-7)


def test_no_batch_is_traced_anew_and_unbatched_images_are_gathered():
    explainer = Counting(classifier(), batch_size=4)
    dataset = tf.data.Dataset.from_tensor_slices(images_of(11))
    assert [len(maps) for maps in explainer.stream(dataset)] == [4, 4, 3]
    assert explainer.sizes == [4, 4, 3]
    assert [len(maps) for maps in explainer.stream(dataset.batch(7))] == [7, 4]
    assert explainer.traces == 1


def test_images_of_several_sizes_for_a_model_of_any_size():
    parts = [images_of(1, height)[0] for height in (6, 6, 9, 6)]
    spec = tf.TensorSpec((None, 5, 2), tf.float32)
    dataset = tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)
    explainer = WBP(classifier(height=None), batch_size=8)
    streamed = list(explainer.stream(dataset))
    assert [maps.shape[:2] for maps in streamed] == [(2, 6), (1, 9), (1, 6)]
    np.testing.assert_allclose(streamed[1], explainer(parts[2][None]), rtol=1e-5)


def test_a_model_of_two_inputs_gets_a_dictionary():
    first, second = keras.Input((4,), name="zebra"), keras.Input((2,), name="ape")
    explainer = WBP(keras.Model([first, second], L.Dense(2)(L.Concatenate()([first, second]))))
    values = {"zebra": np.ones((3, 4), "float32"), "ape": np.ones((3, 2), "float32")}
    dataset = tf.data.Dataset.from_tensor_slices((values, [0, 1, 0]))
    expected = explainer(values, [0, 1, 0])
    for given in (dataset, dataset.batch(2)):
        streamed = list(explainer.stream(given, "labels"))
        for name in values:
            np.testing.assert_allclose(np.concatenate([maps[name] for maps in streamed]), expected[name], rtol=1e-6)


def test_an_empty_dataset_has_no_maps_and_one_image_has_one():
    explainer = WBP(classifier())
    dataset = tf.data.Dataset.from_tensor_slices(images_of(3))
    assert list(explainer.stream(dataset.take(0))) == []
    assert list(explainer.stream(dataset.batch(2).take(0))) == []
    (maps,) = explainer.stream(dataset.take(1))
    assert maps.shape == (1, 6, 5, 2)


def test_progress_is_told_after_every_batch():
    explainer, seen = WBP(classifier(), batch_size=2), []
    dataset = tf.data.Dataset.from_tensor_slices(images_of(5))
    stream = explainer.stream(dataset, progress=lambda done, total: seen.append((done, total)))
    assert seen == []
    list(stream)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    seen.clear()
    list(explainer.stream(dataset.batch(4), progress=lambda done, total: seen.append((done, total))))
    assert seen == [(1, 2), (2, 2)]
    seen.clear()
    unknown = dataset.filter(lambda image: True)
    list(explainer.stream(unknown, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(2, None), (4, None), (5, None)]


def test_the_bar_says_how_much_is_done_also_without_a_total(capsys, monkeypatch):
    monkeypatch.setattr("tfcausal.progress._SECONDS_BETWEEN_LINES", 0.0)
    explainer = WBP(classifier(), batch_size=2)
    dataset = tf.data.Dataset.from_tensor_slices(images_of(3))
    list(explainer.stream(dataset, progress=True))
    lines = capsys.readouterr().err.splitlines()
    assert ["explaining (wbp)" in line for line in lines] == [True, True]
    assert "2/3" in lines[0]
    assert "left" in lines[0]
    list(explainer.stream(dataset.filter(lambda image: True), progress=True))
    lines = capsys.readouterr().err.splitlines()
    assert " 2  0:00:0" in lines[0]
    assert "left" not in lines[0]


def test_the_stream_of_an_endless_dataset_can_be_left():
    explainer = WBP(classifier(), batch_size=2)
    stream = explainer.stream(tf.data.Dataset.from_tensor_slices(images_of(3)).repeat())
    assert [len(next(stream)) for _ in range(4)] == [2, 2, 2, 2]
    stream.close()


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("nan", r"In image 9 of the dataset: .*expected finite values of float32; received NaN or infinity\."),
        ("label", r"In image 9 of the dataset: .*expected class indices in \[0, 2\]; received values in \[7, 7\]"),
    ],
)
def test_a_bad_image_or_label_is_named_by_its_number(batch, what, text):
    images, labels = images_of(11), np.zeros(11, int)
    images[9, 0, 0, 0] = np.nan if what == "nan" else 0.0
    labels[9] = 7 if what == "label" else 0
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset if batch is None else dataset.batch(batch)
    stream = WBP(classifier(), batch_size=4).stream(dataset, "labels")
    assert [len(next(stream)), len(next(stream))] == [4, 4]
    with pytest.raises(InvalidArgument, match=text):
        next(stream)


def test_an_image_of_another_size_is_named_by_its_number():
    parts = [images_of(1, height)[0] for height in (6, 6, 9)]
    spec = tf.TensorSpec((None, 5, 2), tf.float32)
    dataset = tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)
    explainer = WBP(classifier())
    with pytest.raises(InvalidArgument, match=r"image 2 of the dataset.*shape \(6, 5, 2\); received shape \(9, 5, 2\)"):
        list(explainer.stream(dataset))
    with pytest.raises(
        InvalidArgument, match=r"expected a readable element 0; received .*batch tensors with different"
    ):
        list(explainer.stream(dataset.batch(3)))
    with pytest.raises(InvalidArgument, match=r"In image 2 of the dataset: .*shape \(1, 9, 5, 2\)"):
        list(explainer.stream(dataset.batch(1)))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"targets": "label"}, "expected None, 'labels' or a class index; received 'label'"),
        ({"targets": 3}, r"class indices in \[0, 2\]"),
        ({"targets": -1}, r"class indices in \[0, 2\]"),
        ({"targets": True}, "received bool"),
        ({"targets": [0, 1]}, "Targets of each image belong into the dataset"),
        ({"reducer": "median"}, "sum, mean, max, abs_max"),
        ({"progress": "yes"}, "True, False or a function"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, text):
    dataset = tf.data.Dataset.from_tensor_slices((images_of(3), [0, 1, 2]))
    with pytest.raises(InvalidArgument, match=text):
        WBP(classifier()).stream(dataset, **arguments)


@pytest.mark.parametrize(
    ("dataset", "targets", "text"),
    [
        (lambda: images_of(3), None, "a tf.data.Dataset; received ndarray. For images in memory"),
        (lambda: tf.data.Dataset.from_tensor_slices(images_of(3)), "labels", "elements without labels"),
        (
            lambda: tf.data.Dataset.from_tensor_slices((images_of(2), {"mask": [0, 1]})),
            "labels",
            "labels with the keys mask",
        ),
        (lambda: tf.data.Dataset.from_tensor_slices(np.zeros((3, 5))), None, r"images of shape \(None, 6, 5, 2\)"),
        (
            lambda: tf.data.Dataset.from_generator(lambda: iter([0]), output_signature=tf.TensorSpec(None)),
            None,
            "Set their shape with `set_shape`",
        ),
        (lambda: tf.data.Dataset.from_tensor_slices(np.zeros((3, 6, 5, 4))), None, r"received shape \(6, 5, 4\)"),
    ],
)
def test_datasets_that_the_model_does_not_take(dataset, targets, text):
    with pytest.raises(InvalidArgument, match=text):
        list(WBP(classifier()).stream(dataset(), targets))


MEMORY = """
import keras, numpy as np, tensorflow as tf
from tfcausal.saliency.wbp import WBP

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

L = keras.layers
inputs = keras.Input((64, 64, 3))
x = L.Conv2D(4, 3, 2, activation="relu")(inputs)
x = L.Conv2D(8, 3, 2, activation="relu")(x)
model = keras.Model(inputs, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)))
pool = np.random.default_rng(0).normal(size=(500, 64, 64, 3)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices(pool).repeat(40)
done, early = 0, None
for maps in WBP(model).stream(dataset):
    done += len(maps)
    if early is None and done >= 1000:
        early = resident()
print(done, resident() - early)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_dataset():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    done, growth = result.stdout.split()
    assert int(done) == 20_000
    assert float(growth) < 300
