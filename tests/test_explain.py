from __future__ import annotations

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tfcausal import explanation_files
from tfcausal.data.image_files import find_images, output_names
from tfcausal.errors import DataError, InvalidArgument, RunError, TfCausalError
from tfcausal.explain import Settings, explain_files
from tfcausal.figures import explanation, overlay
from tfcausal.models.loading import load_trained
from tfcausal.progress import ConsoleProgress
from tfcausal.saliency.wbp import WBP

L = keras.layers


def classifier(shape=(8, 6, 3), classes=3, activation="softmax", first=None) -> keras.Model:
    x = inputs = keras.Input(shape)
    x = x if first is None else first(x)
    x = L.Conv2D(4, 3, activation="relu", name="conv1")(x)
    return keras.Model(inputs, L.Dense(classes, activation=activation)(L.GlobalAveragePooling2D()(x)))


def write_image(path, height=8, width=6, mode="RGB", seed=0):
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def explained(model_path, images, output, say=lambda text: None, model_name=None, **settings):
    progress = ConsoleProgress(Console(quiet=True))
    return explain_files(model_path, images, output, Settings(**settings), progress, model_name, say)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.keras"
    keras.utils.set_random_seed(4)
    classifier().save(path)
    return path


def test_a_model_file_leaves_overlays_raw_maps_and_a_record(model_path, tmp_path):
    pixels = write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "deep" / "b.jpg", height=30, width=20, seed=1)
    said = []
    records = explained(model_path, [tmp_path / "images"], tmp_path / "out", said.append, pixels=None)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["a.npy", "a.png", "b.npy", "b.png", "explanations.json"]
    assert "0 to 1" in said[0]

    model = keras.models.load_model(model_path)
    images = (pixels / np.float32(255))[None]
    saliency = np.load(tmp_path / "out" / "a.npy")
    assert saliency.dtype == np.float32
    np.testing.assert_allclose(saliency, WBP(model)(images)[0], rtol=1e-4, atol=1e-7)
    probabilities = model.predict(images, verbose=0)[0]
    content = json.loads((tmp_path / "out" / "explanations.json").read_text(encoding="utf-8"))
    assert content["images"] == records
    assert records[0]["predicted_class"] == records[0]["explained_class"] == probabilities.argmax()
    assert records[0]["predicted_probability"] == pytest.approx(probabilities.max(), rel=1e-5)
    assert records[0]["file"].endswith("a.png")
    assert (content["method"], content["pixels"], content["image_shape"]) == ("wbp", [0.0, 1.0], [8, 6, 3])
    assert content["versions"]["keras"] == keras.__version__
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert picture.width > 2 * 6 * 192 // 8


@pytest.mark.parametrize("target", [0, 1, 2])
def test_options_target_and_reducer_reach_the_method(model_path, tmp_path, target):
    pixels = write_image(tmp_path / "a.png")
    options = {"fallback": "gradient", "batch_size": 1}
    settings = {"options": options, "target": str(target), "reducer": "mean", "pixels": (-1.0, 1.0)}
    (record,) = explained(model_path, [tmp_path / "a.png"], tmp_path / "out", **settings)
    assert record["explained_class"] == target
    images = (2 * (pixels / np.float32(255)) - 1)[None]
    expected = WBP(keras.models.load_model(model_path))(images, [target], "mean")[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a.npy"), expected, rtol=1e-4, atol=1e-7)
    assert json.loads((tmp_path / "out" / "explanations.json").read_text())["options"] == options


def test_the_box_rule_is_given_the_range_of_the_pixels(model_path, tmp_path):
    write_image(tmp_path / "a.png")
    settings = {"method": "lrp.epsilon_gamma_box", "pixels": (1.0, -1.0)}  # white on black, turned over
    explained(model_path, [tmp_path / "a.png"], tmp_path / "out", **settings)
    options = json.loads((tmp_path / "out" / "explanations.json").read_text())["options"]
    assert options == {"low": -1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("first", "high"), [(L.Rescaling(1 / 255), 255.0), (L.Normalization(mean=120.0, variance=9.0), 255.0), (None, 1.0)]
)
def test_the_range_of_pixels_follows_from_the_first_layer(tmp_path, first, high):
    classifier(first=first).save(tmp_path / "model.keras")
    write_image(tmp_path / "a.png")
    said = []
    explained(tmp_path / "model.keras", [tmp_path / "a.png"], tmp_path / "out", said.append)
    assert json.loads((tmp_path / "out" / "explanations.json").read_text())["pixels"] == [0.0, high]
    assert f"0 to {high:g}" in said[0]
    assert "--pixels" in said[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_grey_models_and_grey_files(tmp_path, mode):
    classifier(shape=(8, 6, 1), activation=None).save(tmp_path / "model.h5")
    write_image(tmp_path / "a.png", mode=mode)
    (record,) = explained(tmp_path / "model.h5", [tmp_path / "a.png"], tmp_path / "out")
    assert "predicted_logit" in record  # the model has no softmax
    assert "predicted_probability" not in record
    assert np.load(tmp_path / "out" / "a.npy").shape == (8, 6, 1)


def test_a_model_of_any_size_needs_a_size(tmp_path):
    classifier(shape=(None, None, 3)).save(tmp_path / "model.keras")
    write_image(tmp_path / "a.png")
    given = (tmp_path / "model.keras", [tmp_path / "a.png"], tmp_path / "out")
    with pytest.raises(InvalidArgument, match=r"Use --size"):
        explained(*given)
    explained(*given, size=(16, 10))
    assert np.load(tmp_path / "out" / "a.npy").shape == (16, 10, 3)


def test_an_all_zero_map_is_drawn_as_the_plain_image():
    for channels in (1, 3):
        image = np.full((5, 4, channels), 0.5)
        drawn = overlay(image, np.zeros((5, 4)))
        assert np.isfinite(drawn).all()
        assert np.ptp(drawn) == 0
        assert explanation(image, np.zeros((5, 4)), ["a" * 500, "Ünï — 漢字"]).startswith(b"\x89PNG")


def test_a_map_of_zeros_is_said_to_be_one(model_path, tmp_path):
    model = classifier()
    model.layers[-1].kernel.assign(np.zeros((4, 3)))
    model.save(tmp_path / "blind.keras")
    write_image(tmp_path / "a.png")
    (blind,) = explained(tmp_path / "blind.keras", [tmp_path / "a.png"], tmp_path / "blind")
    (seeing,) = explained(model_path, [tmp_path / "a.png"], tmp_path / "seeing")
    assert (blind["map_is_zero"], seeing["map_is_zero"]) == (True, False)


def test_files_are_never_overwritten_unasked(model_path, tmp_path):
    write_image(tmp_path / "a.png")
    given = (model_path, [tmp_path / "a.png"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.npy").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"a\.npy exists\. .*--output.*--overwrite"):
        explained(*given)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.npy"]
    explained(*given, overwrite=True)
    assert np.load(tmp_path / "out" / "a.npy").shape == (8, 6, 3)
    with pytest.raises(RunError, match=r"explanations\.json exists"):
        explained(model_path, [tmp_path / "a.png"], tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected a folder to write to; received a file"):
        explained(model_path, [tmp_path / "a.png"], tmp_path / "file")


def test_the_same_name_in_two_folders_does_not_collide(model_path, tmp_path):
    for folder in ("cats", "dogs"):
        write_image(tmp_path / folder / "1.png", seed=len(folder))
    write_image(tmp_path / "dogs" / "2.png")
    write_image(tmp_path / "dogs" / "2.jpg")
    records = explained(model_path, [tmp_path / "cats", tmp_path / "dogs", tmp_path / "dogs" / "1.png"], tmp_path / "o")
    assert [record["map"] for record in records] == ["cats_1.npy", "dogs_1.npy", "2_jpg.npy", "2_png.npy"]


def test_names_are_unique_whatever_the_files_are_called(tmp_path):
    paths = ["a/b/x.png", "c/b/x.png", "d/x.png", "d/X.PNG", "e/b_x.png", "f/x_png.png", "f/x.png", "f/x.jpg"]
    names = output_names([tmp_path / path for path in paths])
    assert len({name.casefold() for name in names}) == len(paths)
    assert output_names([tmp_path / "p" / "x.png", tmp_path / "q" / "y.png"]) == ["x", "y"]


def test_broken_images_are_found_before_anything_is_written(model_path, tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png` cannot be used: the content is neither PNG nor JPEG\. Repair it"):
        explained(model_path, [tmp_path / "images"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_only_whole_files(model_path, tmp_path, monkeypatch):
    for name in "abc":
        write_image(tmp_path / "images" / f"{name}.png")
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explanation(*arguments)

    monkeypatch.setattr(explanation_files, "explanation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explained(model_path, [tmp_path / "images"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npy", "a.png"]


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"method": "wpb"}, InvalidArgument, "Did you mean `wbp`"),
        ({"options": {"layer": "conv1"}}, InvalidArgument, "options of wbp"),
        ({"method": "grad_cam", "options": {"layer": "conv7"}}, InvalidArgument, r"one of .*conv1.*'conv7'"),
        ({"target": "3"}, InvalidArgument, r"a class index in \[0, 2\]; received '3'"),
        ({"target": "zebra"}, InvalidArgument, r"a class index in \[0, 2\]; received 'zebra'"),
        ({"pixels": (1.0, 1.0)}, InvalidArgument, "two different finite numbers"),
        ({"pixels": (0.0, float("nan"))}, InvalidArgument, "two different finite numbers"),
        ({"size": (9, 6)}, InvalidArgument, "size of the model's input, 8 x 6; received 9 x 6"),
        ({"reducer": "median"}, InvalidArgument, "sum, mean, max, abs_max"),
        ({"model_name": "ppi"}, InvalidArgument, "Leave out --model"),
    ],
)
def test_bad_settings_are_errors_before_any_work(model_path, tmp_path, settings, kind, text):
    write_image(tmp_path / "a.png")
    with pytest.raises(kind, match=text):
        explained(model_path, [tmp_path / "a.png"], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: keras.Sequential([keras.Input((5,)), L.Dense(2)]), r"takes \(None, 5\)"),
        (lambda: classifier(shape=(8, 6, 4)), r"takes \(None, 8, 6, 4\)"),
        (lambda: two_inputs(), r"takes \(None, 8, 6, 3\), \(None, 8, 6, 3\)"),
        (lambda: two_outputs(), r"position of one of the outputs .*\(colour\), 1 \(shape\)"),
    ],
)
def test_models_that_do_not_take_one_image(tmp_path, model, text):
    model().save(tmp_path / "model.keras")
    write_image(tmp_path / "a.png")
    with pytest.raises(TfCausalError, match=text):
        explained(tmp_path / "model.keras", [tmp_path / "a.png"], tmp_path / "out")


def two_inputs() -> keras.Model:
    inputs = [keras.Input((8, 6, 3)), keras.Input((8, 6, 3))]
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()(inputs))))


def two_outputs() -> keras.Model:
    inputs = keras.Input((8, 6, 3))
    x = L.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, [L.Dense(2, name="colour")(x), L.Dense(4, name="shape")(x)])


def test_one_of_several_outputs_is_chosen_by_an_option(tmp_path):
    two_outputs().save(tmp_path / "model.keras")
    write_image(tmp_path / "a.png")
    settings = {"options": {"output": "shape"}, "target": "3"}
    (record,) = explained(tmp_path / "model.keras", [tmp_path / "a.png"], tmp_path / "out", **settings)
    assert record["explained_class"] == 3


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("model.keras", b"nothing", "a model that Keras can load; received"),
        ("model.h5", b"nothing", "a model that Keras can load; received"),
        ("model.onnx", b"", "a run directory or a model file"),
        ("missing.keras", None, "received nothing at that place"),
    ],
)
def test_files_that_are_no_model(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=text):
        load_trained(tmp_path / name)


def test_paths_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    for paths, text in (
        ([tmp_path / "nowhere.png"], "received nothing at that place"),
        ([tmp_path / "empty"], "a folder with images .* received none in it"),
        ([tmp_path / "notes.txt"], "received a file `notes.txt`"),
        ([], "at least one image file or folder"),
    ):
        with pytest.raises(DataError, match=text):
            find_images(paths)


def test_a_run_knows_its_classes_and_its_pixels(small_run, run_command, tmp_path):
    run, _ = small_run
    pixels = write_image(tmp_path / "a.png", height=24, width=24, mode="L")
    words = ["explain", run, tmp_path / "a.png", "--model", "ppi", "--target", "7", "--output", tmp_path / "out"]
    result = run_command(*words)
    assert result.stdout == f"Explained 1 image with wbp: {tmp_path / 'out'}\n"
    assert "explaining (wbp)" in result.stderr
    assert "gpu" not in result.stderr.lower()  # TensorFlow's own messages
    assert "Pixels" not in result.stderr
    content = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert content["pixels"] == [-0.5, 0.5]
    assert content["images"][0]["explained_name"] == "7"
    model = load_trained(run, "ppi").model
    expected = WBP(model)((pixels / np.float32(255) - np.float32(0.5))[None, ..., None], [7])[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a.npy"), expected, rtol=1e-4, atol=1e-6)


def test_the_model_of_a_run_must_be_chosen_and_trained(small_run, tmp_path):
    run, _ = small_run
    with pytest.raises(InvalidArgument, match=r"one of the 3 models .*--model: plain, ppi, cfcn"):
        load_trained(run)
    with pytest.raises(InvalidArgument, match="Did you mean `plain`"):
        load_trained(run, "plan")
    with pytest.raises(RunError, match=r"without run\.yaml"):
        load_trained(tmp_path)
    unfinished = tmp_path / "small"
    shutil.copytree(run, unfinished)
    (unfinished / "models" / "cfcn" / "model.keras").unlink()
    with pytest.raises(RunError, match=r"not trained yet\. Finish the run: `tfcausal run --resume"):
        load_trained(unfinished, "cfcn")
    (unfinished / "data.json").unlink()
    with pytest.raises(RunError, match="names of the classes cannot be read"):
        load_trained(unfinished, "plain")
    write_image(tmp_path / "a.png")
    with pytest.raises(InvalidArgument, match="name of a class, or a class index"):
        explained(run, [tmp_path / "a.png"], tmp_path / "out", model_name="ppi", target="seven")


def test_the_command_line_reads_options_and_lists_methods(model_path, run_command, tmp_path):
    write_image(tmp_path / "a.png")
    words = ["--method", "occlusion", "--option", "patch=[3, 2]", "--option", "stride=2", "--pixels", "-1", "1"]
    run_command("explain", model_path, "a.png", *words, cwd=tmp_path)
    content = json.loads((tmp_path / "explanations" / "occlusion" / "explanations.json").read_text())
    assert content["options"] == {"patch": [3, 2], "stride": 2}
    assert content["pixels"] == [-1.0, 1.0]
    listed = run_command("explain", "--list-methods").stdout
    for text in ("lrp.epsilon_plus", "Selvaraju et al. 2017", "needs tfcausal[vis]"):
        assert text in listed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Give a run or a model and images"),
        (["MODEL"], "Give a run or a model and images"),
        (["MODEL", "a.png", "--method", "gradcam"], "Did you mean `grad_cam`"),
        (["MODEL", "a.png", "--option", "patch"], "--option takes KEY=VALUE"),
        (["MODEL", "a.png", "--option", "patch=[1"], "The value of --option patch cannot be read"),
        (["MODEL", "missing.png"], "received nothing at that place"),
        (["MODEL", "a.png", "--layer", "conv1"], "options of wbp"),
    ],
)
def test_bad_command_lines_end_without_a_traceback(model_path, run_command, tmp_path, words, text):
    write_image(tmp_path / "a.png")
    words = [str(model_path) if word == "MODEL" else word for word in words]
    result = run_command("explain", *words, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "explanations").exists()


def test_the_help_shows_examples_and_imports_no_tensorflow(run_command):
    text = run_command("explain", "--help").stdout
    for example in ("tfcausal explain runs/quickstart", "--method lrp.epsilon_plus", "--list-methods"):
        assert example in text
    code = (
        "import sys, tfcausal.cli; from typer.testing import CliRunner; "
        "results = [CliRunner().invoke(tfcausal.cli.app, ['explain', word]) for word in ('--help', '--list-methods')]; "
        "assert all(result.exit_code == 0 for result in results); "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras', 'matplotlib', 'pandas') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
