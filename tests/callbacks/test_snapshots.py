import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfcausal.callbacks import ResumableTraining, SaliencySnapshots, snapshots
from tfcausal.callbacks.snapshot_sheet import snapshot_sheet
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.saliency.registry import get_explainer
from tfcausal.saliency.wbp import WBP

QUIET = {"verbose": 0, "shuffle": False, "batch_size": 6}


@pytest.fixture
def sheets(monkeypatch):
    """The arguments of every picture that is drawn; drawing takes its time."""
    drawn = []

    def draw(*arguments):
        drawn.append(arguments)
        return snapshot_sheet(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2)), [""], "", arguments[-1])

    monkeypatch.setattr(snapshots, "snapshot_sheet", draw)
    return drawn


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fit(model, images, labels, *callbacks, **options):
    return model.fit(images, labels, callbacks=list(callbacks), **{**QUIET, **options})


class Explains(keras.callbacks.Callback):
    """Explains with a new explainer after every epoch."""

    def __init__(self, network, method, images, targets=None):
        super().__init__()
        self.explained = lambda: get_explainer(method, network)(images, targets, reducer="sum")[..., 0]
        self.maps = []

    def on_epoch_end(self, epoch, logs=None):
        self.maps.append(self.explained())


@pytest.mark.parametrize("method", ["wbp", "lrp.epsilon_plus", "grad_cam", "occlusion", "layer_cam"])
def test_the_maps_are_those_of_the_weights_of_the_moment(plain, images, labels, sheets, tmp_path, method):
    if method == "layer_cam":
        pytest.importorskip("tf_keras_vis")
    model = plain()
    fresh = Explains(model, method, images[:2], [0, 2])
    fit(model, images, labels, SaliencySnapshots(images[:2], tmp_path, method, [0, 2]), fresh, epochs=2)
    assert len(sheets) == 2
    for arguments, expected in zip(sheets, fresh.maps, strict=True):
        np.testing.assert_allclose(arguments[1], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(sheets[0][1] - sheets[1][1]).max() > 1e-3


def test_the_maps_are_traced_once_for_all_epochs(plain, images, labels, sheets, tmp_path, monkeypatch):
    traces = []
    maps = WBP.maps
    monkeypatch.setattr(WBP, "maps", lambda self, *arguments: traces.append(1) or maps(self, *arguments))
    model, callback = plain(), SaliencySnapshots(images, tmp_path, overwrite=True)
    fit(model, images, labels, callback, epochs=3)
    fit(model, images, labels, callback, epochs=2)
    assert len(traces) == 1


def test_titles_have_the_predicted_class_and_its_probability(plain, images, labels, sheets, tmp_path):
    model = plain()
    callback = SaliencySnapshots(images, tmp_path, class_names=["ant", "bee", "cat"], pixels=(-2.0, 2.0))
    fit(model, images, labels, callback)
    probabilities = model.predict(images, verbose=0)
    best = probabilities.argmax(axis=1)
    expected = [
        f"{['ant', 'bee', 'cat'][index]} {row[index]:.2f}" for index, row in zip(best, probabilities, strict=True)
    ]
    shown, _, titles, heading, _ = sheets[0]
    assert titles == expected
    assert heading == "wbp, epoch 1"
    np.testing.assert_allclose(shown, np.clip((images + 2) / 4, 0, 1))


@pytest.mark.parametrize(
    ("units", "activation", "expected"),
    [
        (1, "sigmoid", [("class 1", 0.75), ("class 0", 0.6)]),
        (1, None, [("class 1", 0.75), ("class 0", 0.6)]),
        (2, "sigmoid", [("class 0", 0.75), ("class 1", 0.45)]),
    ],
)
def test_heads_of_one_unit_and_of_labels(images, sheets, tmp_path, units, activation, expected):
    """The network gives the logits that stand in its pixels: sigmoid(log 3) is 0.75, sigmoid(log 2/3) is 0.4."""
    pixels = np.array([[np.log(3), np.log(1 / 9)], [np.log(2 / 3), np.log(9 / 11)]], "float32").reshape(2, 1, 2, 1)
    dense = keras.layers.Dense(units, activation=activation, use_bias=False)
    model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten(), dense])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    dense.set_weights([np.eye(2)[:, :units]])
    fit(model, pixels, np.zeros((2, units)), SaliencySnapshots(pixels, tmp_path))
    assert sheets[0][2] == [f"{name} {share:.2f}" for name, share in expected]


def test_the_network_inside_a_wrapper_is_explained_by_the_method_it_trains_with(ppi, images, labels, sheets, tmp_path):
    model = ppi(saliency="grad_cam", layer="features")
    fresh = Explains(model.backbone, "grad_cam", images)
    fit(model, images, labels, SaliencySnapshots(images, tmp_path), fresh)
    np.testing.assert_allclose(sheets[0][1], fresh.maps[0], rtol=1e-5, atol=1e-6)


def test_a_picture_for_every_second_epoch(plain, images, labels, tmp_path):
    fit(plain(), images, labels, SaliencySnapshots(images[:1], tmp_path / "new" / "folder", every=2), epochs=5)
    assert names(tmp_path / "new" / "folder") == ["saliency-epoch-0002.png", "saliency-epoch-0004.png"]


def test_red_speaks_for_the_class_and_blue_against_it():
    """The left half of the map is positive, the right half negative; the middle of the lower picture is theirs."""
    saliency = np.repeat([[[1.0, 1.0, -1.0, -1.0]]], 4, axis=1)
    png = snapshot_sheet(np.full((1, 4, 4, 3), 0.5), saliency, ["class 0 1.00"], "wbp, epoch 1", "")
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
    height, width = pixels.shape[:2]
    left, right = pixels[height * 3 // 4, width // 3], pixels[height * 3 // 4, width * 2 // 3]
    upper = pixels[height * 3 // 8, width // 2]
    assert left[0] > left[2] + 50
    assert right[2] > right[0] + 50
    np.testing.assert_array_equal(upper, [127, 127, 127])


def test_more_images_than_fit_in_a_row(tmp_path):
    nine = np.random.default_rng(0).random((9, 4, 4, 1))
    png = snapshot_sheet(nine, nine[..., 0], ["title"] * 9, "", "")
    height_of = lambda data: Image.open(io.BytesIO(data)).size[1]
    assert height_of(png) > 1.8 * height_of(snapshot_sheet(nine[:8], nine[:8, ..., 0], ["title"] * 8, "", ""))


def test_tensorboard_gets_the_picture_of_every_epoch(plain, images, labels, tmp_path):
    callback = SaliencySnapshots(images[:2], tmp_path / "png", log_dir=tmp_path / "events")
    fit(plain(), images, labels, callback, epochs=2)
    (events,) = (tmp_path / "events").iterdir()
    records = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    written = [(record.step, value) for record in records for value in record.summary.value]
    assert [(step, value.tag) for step, value in written] == [(0, "saliency"), (1, "saliency")]
    for number, (_, value) in enumerate(written, start=1):
        assert value.metadata.plugin_data.plugin_name == "images"
        width, height, png = value.tensor.string_val
        assert png == (tmp_path / "png" / f"saliency-epoch-{number:04d}.png").read_bytes()
        assert Image.open(io.BytesIO(png)).size == (int(width), int(height))


def test_pictures_of_another_training_are_not_touched(plain, images, labels, sheets, tmp_path):
    fit(plain(), images, labels, SaliencySnapshots(images, tmp_path), epochs=2)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model = plain()
    weights = model.get_weights()
    with pytest.raises(InvalidArgument, match=r"received saliency-epoch-0001\.png of another training.*overwrite=True"):
        fit(model, images, labels, SaliencySnapshots(images, tmp_path))
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    fit(model, images, labels, SaliencySnapshots(images, tmp_path, overwrite=True), epochs=1)
    assert (tmp_path / "saliency-epoch-0001.png").stat().st_mtime_ns > before["saliency-epoch-0001.png"]


def test_a_training_that_goes_on_replaces_the_pictures_of_the_epochs_it_repeats(
    plain, images, labels, sheets, tmp_path
):
    folder = tmp_path / "pictures"
    fit(plain(), images, labels, SaliencySnapshots(images, folder), ResumableTraining(tmp_path / "run"), epochs=2)
    (folder / "saliency-epoch-0003.png").write_bytes((folder / "saliency-epoch-0002.png").read_bytes())
    before = (folder / "saliency-epoch-0002.png").stat().st_mtime_ns
    fit(plain(), images, labels, SaliencySnapshots(images, folder), ResumableTraining(tmp_path / "run"), epochs=3)
    assert len(sheets) == 3
    assert (folder / "saliency-epoch-0002.png").stat().st_mtime_ns == before
    other = SaliencySnapshots(images + 1, folder)
    with pytest.raises(InvalidArgument, match=r"received saliency-epoch-0003\.png of another training"):
        fit(plain(), images, labels, other, initial_epoch=2, epochs=3)
    (folder / "saliency-epoch-0003.png").write_bytes(b"no picture")
    with pytest.raises(InvalidArgument, match=r"received saliency-epoch-0003\.png of another training"):
        fit(plain(), images, labels, SaliencySnapshots(images, folder), initial_epoch=2, epochs=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "`folder`: expected a place for the pictures; received neither folder nor log_dir"),
        ({"folder": __file__}, "`folder`: expected a folder, or nothing yet; received the file"),
        (
            {"folder": ".", "method": "wpb"},
            "expected the name of a saliency method; received 'wpb'. Did you mean `wbp`",
        ),
        ({"folder": ".", "every": 0}, "`every`: expected an integer of at least 1; received 0"),
        ({"folder": ".", "pixels": (1.0, 0.0)}, "`pixels`: expected the values of black and of white, in order"),
        (
            {"folder": ".", "images": np.zeros((8, 8, 3))},
            r"`images`: expected images \(N, .*received shape \(8, 8, 3\)",
        ),
    ],
)
def test_arguments_that_are_wrong_by_themselves(images, options, text):
    with pytest.raises(InvalidArgument, match=text):
        SaliencySnapshots(**{"images": images, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"images": np.zeros((1, 9, 8, 3))},
            r"expected an array of shape \(N, 8, 8, 3\); received shape \(1, 9, 8, 3\)",
        ),
        ({"images": np.full((1, 8, 8, 3), np.nan)}, "NaN or infinity in image 0"),
        ({"targets": [0, 1, 2, 0, 1, 3]}, r"`targets`: expected class indices in \[0, 2\]"),
        ({"class_names": ["ant", "bee"]}, "`class_names`: expected 3 names; received 2"),
        ({"method": "occlusion", "stripe": 2}, "expected options of occlusion .*; received 'stripe'"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_before_training(plain, images, labels, tmp_path, options, text):
    model = plain()
    weights = model.get_weights()
    callback = SaliencySnapshots(**{"images": images, "folder": tmp_path / "new", **options})
    with pytest.raises(InvalidArgument, match=text):
        fit(model, images, labels, callback)
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
    assert not (tmp_path / "new").exists()


def test_models_that_the_method_does_not_take(images, labels, tmp_path):
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    unbuilt.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(UnsupportedOperation, match=r"has no graph of operations\. Call `build"):
        fit(unbuilt, images, labels, SaliencySnapshots(images, tmp_path))
