"""Measuring effects end to end on a small network and image files: what is left, what is refused, what goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import zarr
from PIL import Image
from rich.console import Console

from tfcausal.config import effects_from_mapping
from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.effect_study import plan as effect_plan
from tfcausal.effect_study import study as effect_study
from tfcausal.effect_study.evidence import on_predicted
from tfcausal.effect_study.plan import default_levels, plan
from tfcausal.effect_study.study import measure
from tfcausal.effect_study.subject import measured_and_training, of_files
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.table import DETECTION, ParquetTable
from tfcausal.errors import DataError, InvalidArgument, RunError, TfCausalError, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.interventions.masking import random_blocks
from tfcausal.progress import ConsoleProgress

L = keras.layers
SMALL = {
    "levels": ["conv1", {"layer": "conv2", "nodes": [2, 0]}],
    "autoencoder": {"concepts": 3, "hidden": 4, "epochs": 2, "batch_size": 8},
    "masking": {"share": 0.25, "blocks": [4, 4]},
    "attacks": [{"name": "fgsm", "eps": 0.1}],
    "images": 20,
    "resamples": 200,
    "maps": {"images": 2, "pixel_wise": {"patch": 4}, "nodes": 2},
}


FEW_MAPS = {"images": 6, "pixel_wise": None, "concept_weighted": False, "nodes": 1}


def classifier(activation="softmax", classes=3, size=12) -> keras.Model:
    x = inputs = keras.Input((size, size, 1))
    x = L.Conv2D(6, 3, activation="relu", name="conv1")(x)
    x = L.Conv2D(5, 3, activation="relu", name="conv2")(x)
    return keras.Model(inputs, L.Dense(classes, activation=activation, name="head")(L.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.keras"
    keras.utils.set_random_seed(5)
    model = classifier()
    model.get_layer("head").kernel.assign(4 * model.get_layer("head").kernel)
    model.save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images, each a bright block somewhere on noise."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = random.integers(0, 60, (12, 12), dtype=np.uint8)
        top, left = random.integers(0, 8, 2)
        pixels[top : top + 5, left : left + 4] += np.uint8(random.integers(60, 190))
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


def settings(**changes):
    return effects_from_mapping({**SMALL, **changes})


@pytest.fixture
def quiet():
    return ConsoleProgress(Console(quiet=True))


def subject_of(model_file, folder, effects, say=lambda text: None, **options):
    known = {"model_name": None, "pixels": (0.0, 1.0), "size": None, **options}
    return of_files(model_file, [folder], effects, **known, progress=ConsoleProgress(Console(quiet=True)), say=say)


def measured(model_file, folder, root, effects, say=lambda text: None, overwrite=False):
    subject = subject_of(model_file, folder, effects)
    return measure(subject, effects, root, ConsoleProgress(Console(quiet=True)), overwrite, say)


@pytest.fixture(scope="module")
def whole(model_file, folder, tmp_path_factory):
    """A measurement that nothing disturbed, and what was said in it."""
    said: list[str] = []
    return measured(model_file, folder, tmp_path_factory.mktemp("whole"), settings(), said.append), said


def table(store):
    return ParquetTable(store.root / "effects.parquet").read()


def test_a_measurement_leaves_everything_that_it_promises(whole):
    store, said = whole
    assert {path.name for path in store.root.iterdir()} == {"effects", "effects.parquet", "effects.zarr"}
    assert {path.name for path in (store.folder / "levels" / "conv1").iterdir()} == {
        "autoencoder.keras",
        "agreement.json",
        "effects.parquet",
    }
    pictures = {path.stem for path in store.folder.glob("*.png")}
    assert {"effects", "map_conv1_fgsm", "map_pixels_fgsm"} <= pictures
    assert sum(name.startswith("node_") for name in pictures) == 4
    assert [text.split(":")[0] for text in said] == ["conv1", "conv2"]
    assert all("Through the autoencoder the network gives the same answer on" in text for text in said)
    findings = store.findings
    assert findings["n"] == 20
    assert set(findings["changed_answers"]) == {"masking", "fgsm"}
    assert [level["agreement"]["text"] for level in findings["levels"]] == [text.split(": ", 1)[1] for text in said]


def test_there_is_a_row_for_every_level_node_intervention_and_class(whole):
    store, _ = whole
    rows = table(store)
    found = set(zip(rows["level"].fillna("-"), rows["node"], rows["intervention"], rows["class"], strict=True))
    interventions = ("zero_out", "zero_out+masking", "zero_out+fgsm")
    expected = {("-", -1, name, of) for name in ("masking", "fgsm") for of in range(3)}
    for level, nodes in (("conv1", (0, 1, 2)), ("conv2", (2, 0))):
        expected |= {(level, node, name, of) for node in nodes for name in interventions for of in range(3)}
    assert found == expected
    assert len(rows) == len(expected)
    assert set(rows["model"]) == {"net"}
    assert set(rows["n"]) == {20}
    assert set(rows["reference"]) == {"autoencoder", "model"}
    assert rows["class_name"].isna().all()
    assert (rows["low"] <= rows["effect"]).all()
    assert (rows["effect"] <= rows["high"]).all()


def test_the_effects_are_those_of_the_saved_autoencoder(whole, model_file, folder):
    """Computed again from the files: the autoencoder, the model, and the images that were measured."""
    store, _ = whole
    effects, rows = settings(), table(store)
    subject = subject_of(model_file, folder, effects)
    images = subject.measured.read(np.arange(20))[0]
    autoencoder = keras.models.load_model(store.folder / "levels" / "conv2" / "autoencoder.keras")
    summary = ConceptEffects(autoencoder)(images, [2, 0]).summary(resamples=200)
    own = rows[(rows["level"] == "conv2") & (rows["intervention"] == "zero_out")]
    np.testing.assert_allclose(own["effect"].to_numpy().reshape(2, 3), summary.effect[:, 0], atol=1e-6)
    np.testing.assert_allclose(own["low"].to_numpy().reshape(2, 3), summary.low[:, 0], atol=1e-6)
    model = keras.models.load_model(model_file)
    masked = np.where(random_blocks(20, (12, 12), 0.25, (4, 4)) > 0, np.float32(0.5), images)
    expected = (model.predict(masked, verbose=0) - model.predict(images, verbose=0)).mean(axis=0)
    of_image = rows[rows["intervention"] == "masking"]
    np.testing.assert_allclose(of_image["effect"], expected, atol=1e-6)


def test_autoencoders_are_trained_on_other_images_than_those_measured(model_file, folder):
    subject = subject_of(model_file, folder, settings())
    assert set(subject.measured.names).isdisjoint(subject.training.names)
    assert (len(subject.measured), len(subject.training)) == (20, 20)


def test_maps_are_kept_of_the_same_images_clean_and_changed(whole):
    store, _ = whole
    group = zarr.open_group(store.maps, mode="r")
    assert group.attrs["conditions"] == ["clean", "masking", "fgsm"]
    clean, attacked = (group[f"images/{name}"][:] for name in ("clean", "fgsm"))
    assert clean.shape == (2, 12, 12, 1)
    assert 0.05 < np.abs(attacked - clean).max() < 0.1001
    for level, side in (("conv1", 10), ("conv2", 8)):
        assert group[f"levels/{level}/concept_weighted/fgsm"].shape == (2, 12, 12)
        assert group[f"levels/{level}/codes/clean"].shape == (2, side, side, 2)
        assert group[f"levels/{level}"].attrs["layer"] == level
    assert group["pixel_wise/clean"].shape == (2, 12, 12)
    rows = table(store)
    strongest = rows[(rows["level"] == "conv1") & (rows["intervention"] == "zero_out")]
    largest = strongest.assign(size=strongest["effect"].abs()).sort_values("size")["node"].iloc[-1]
    assert group["levels/conv1"].attrs["nodes"][0] == largest


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("calls", [1, 4, 5])
def test_a_measurement_that_was_killed_goes_on_and_gives_the_same_table(
    whole, model_file, folder, tmp_path, monkeypatch, calls
):
    """Killed in the first level, and at the first and second intervention of the second level."""
    store, _ = whole
    ask = ConceptEffects.__call__
    done = []

    def killed(self, *arguments, **options):
        done.append(1)
        if len(done) == calls:
            raise Killed
        return ask(self, *arguments, **options)

    monkeypatch.setattr(ConceptEffects, "__call__", killed)
    with pytest.raises(Killed):
        measured(model_file, folder, tmp_path, settings(maps=None))
    assert not (tmp_path / "effects.parquet").exists()
    monkeypatch.setattr(ConceptEffects, "__call__", ask)
    first = tmp_path / "effects" / "net" / "levels" / "conv1"
    kept = [first / "autoencoder.keras", *([first / "effects.parquet"] if calls > 1 else [])]
    before = [path.stat().st_mtime_ns for path in kept]
    again = measured(model_file, folder, tmp_path, settings(maps=None))
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert table(again).equals(table(store))
    assert [path for path in tmp_path.rglob("*") if "partial" in path.name or "unfinished" in path.name] == []


def test_what_is_measured_is_not_measured_again_nor_replaced_unasked(whole, model_file, folder, tmp_path):
    root = tmp_path / "root"
    store = measured(model_file, folder, root, settings(levels=["conv2"], maps=None, attacks=[]))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    said: list[str] = []
    measured(model_file, folder, root, settings(levels=["conv2"], maps=None, attacks=[]), said.append)
    assert "are measured already" in said[-1]
    with pytest.raises(RunError, match=r"measured otherwise \(effects\).*--overwrite"):
        measured(model_file, folder, root, settings(levels=["conv1"], maps=None, attacks=[]))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    measured(model_file, folder, root, settings(levels=["conv1"], maps=None, attacks=[]), overwrite=True)
    assert set(table(store)["level"].dropna()) == {"conv1"}


def test_pictures_are_drawn_by_the_next_call_where_the_first_was_killed_before(
    model_file, folder, tmp_path, monkeypatch
):
    effects = settings(levels=["conv2"], maps=None, attacks=[])

    def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(effect_study.Pictures, "write", killed)
        with pytest.raises(Killed):
            measured(model_file, folder, tmp_path, effects)
    store = measured(model_file, folder, tmp_path, effects)
    assert [path.name for path in store.folder.glob("*.png")] == ["effects.png"]


def test_channels_are_concepts_without_an_autoencoder(model_file, folder, tmp_path):
    store = measured(model_file, folder, tmp_path, settings(autoencoder=None, maps=None, attacks=[]))
    rows = table(store)
    assert rows["faithful"].all()
    assert set(rows[rows["level"] == "conv1"]["node"]) == set(range(6))
    assert [level["agreement"] for level in store.findings["levels"]] == [None, None]
    assert not list(store.folder.rglob("*.keras"))


def test_values_have_rows_of_their_own_and_one_for_their_expectation(model_file, folder, tmp_path):
    store = measured(
        model_file,
        folder,
        tmp_path,
        settings(autoencoder=None, levels=["conv2"], values=[0, 0.5], maps=None, attacks=[], masking=None),
    )
    rows = table(store)
    (one,) = (rows[(rows["node"] == 1) & (rows["class"] == 0)],)
    assert set(one["intervention"]) == {"set_values"}
    assert one["value"].isna().tolist() == [True, False, False]
    assert one["value"].tolist()[1:] == [0.0, 0.5]
    expectation, *single = one["effect"]
    assert min(single) - 1e-12 <= expectation <= max(single) + 1e-12


def test_the_posterior_puts_all_classes_together(model_file, folder, tmp_path):
    base = {"autoencoder": None, "levels": ["conv2"], "maps": None, "attacks": [], "masking": None}
    store = measured(model_file, folder, tmp_path / "a", settings(**base, weighting="posterior"))
    rows = table(store)
    assert set(rows["class"]) == {-1}
    turned = measured(
        model_file, folder, tmp_path / "b", settings(**base, weighting="posterior", sign="observed_minus_do")
    )
    np.testing.assert_allclose(table(turned)["effect"], -rows["effect"])


def test_the_known_cause_is_masked_in_images_that_have_a_mask(model_file, folder, tmp_path, quiet):
    """Every second image has a mask, the upper left corner; those without one are not changed at all."""
    effects = settings(autoencoder=None, levels=["conv2"], attacks=[], evidence=True, images=6, maps=FEW_MAPS)
    subject = subject_of(model_file, folder, effects)
    split, has_mask = subject.measured, np.arange(6) % 2 == 0

    def read(indices):
        masks = np.ones((len(indices), 12, 12, 1), "float32")
        masks[has_mask[indices], 3:] = masks[has_mask[indices], :, 3:] = 0
        return split.reader(indices)[0], masks

    subject = replace(subject, measured=replace(split, has_mask=has_mask, reader=read))
    store = measure(subject, effects, tmp_path, quiet)
    group = zarr.open_group(store.maps, mode="r")
    clean, changed = group["images/clean"][:], group["images/evidence"][:]
    masked = has_mask[group.attrs["positions"]]
    assert (changed[masked, :3, :3] == 0.5).all()
    np.testing.assert_array_equal(changed[masked, 3:], clean[masked, 3:])
    np.testing.assert_array_equal(changed[~masked], clean[~masked])
    assert {"evidence", "zero_out+evidence"} <= set(table(store)["intervention"])


def test_some_classes_alone(model_file, folder, tmp_path):
    base = {"autoencoder": None, "levels": ["conv2"], "maps": None, "attacks": []}
    rows = table(measured(model_file, folder, tmp_path / "a", settings(**base, classes=[2])))
    every = table(measured(model_file, folder, tmp_path / "b", settings(**base)))
    assert rows.equals(every[every["class"] == 2].reset_index(drop=True))


def test_detection_has_a_row_for_every_attack_and_detector(model_file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(effect_plan, "LEAST_DETECTION_PART", 4)
    detect = effect_study.detected.__globals__["detect"]
    monkeypatch.setitem(
        effect_study.detected.__globals__, "detect", lambda *words, **options: detect(*words, **options, minimum=4)
    )
    effects = settings(
        levels=["conv2"],
        attacks=["fgsm", "bim"],
        maps=None,
        detection={"attacks": ["bim"], "detectors": ["effects", "largest_effect", "concept_map", "pixel_map"]},
    )
    store = measured(model_file, folder, tmp_path, effects)
    rows = ParquetTable(tmp_path / "detection.parquet", DETECTION).read()
    assert set(rows["attack"]) == {"bim"}
    found = dict(zip(rows["detector"], rows["level"].fillna("-"), strict=True))
    assert found == {
        "low_confidence": "-",
        "confidence": "-",
        "effects": "conv2",
        "largest_effect": "conv2",
        "concept_map": "conv2",
        "pixel_map": "-",
    }
    assert rows["over_confidence"].isna().tolist() == [name == "confidence" for name in rows["detector"]]
    assert dict(zip(rows["detector"], rows["features"], strict=True))["effects"] == 3
    assert set(rows["n_clean"]) == {8}
    assert (store.folder / "detection.png").is_file()
    assert len(store.findings["roc"]) == 6


def test_the_detector_of_effects_has_the_effects_on_the_predicted_class(model_file, folder):
    """By hand: three images, two nodes, two values with their frequencies, and the class that each image is given."""
    effects = np.random.default_rng(0).normal(size=(3, 2, 2, 2))
    posterior = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    frequencies = np.array([[0.5, 0.5], [0.25, 0.75]])
    found = on_predicted(SimpleNamespace(effects=effects, posterior=posterior, frequencies=frequencies))
    for image, of in enumerate((0, 1, 0)):
        for node in range(2):
            expected = sum(frequencies[node, value] * effects[image, node, value, of] for value in range(2))
            assert found[image, node] == pytest.approx(expected)


def test_of_one_sigmoid_the_answer_that_there_is_nothing_has_minus_the_effect():
    effects = np.array([[[[0.25]]], [[[0.25]]]])
    of_one = SimpleNamespace(effects=effects, posterior=np.array([[0.9], [0.1]]), frequencies=np.ones((1, 1)))
    assert on_predicted(of_one).tolist() == [[0.25], [-0.25]]


def test_blocks_of_images_give_the_table_of_all_at_once(whole, model_file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(effect_study, "_BLOCK_BYTES", 4 * 12 * 12 * 7)  # seven images: blocks of 7, 7 and 6
    store = measured(model_file, folder, tmp_path, settings(maps=None))
    assert table(store).equals(table(whole[0]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_concepts_of_a_run_are_trained_on_images_that_are_not_measured(split):
    def of(count, prefix):
        names = tuple(f"{prefix}{number}" for number in range(count))
        labels = np.zeros(count, int)

        def read(indices):
            return np.zeros((len(indices), 2, 2, 1), np.float32), np.ones((len(indices), 2, 2, 1), np.float32)

        return ImageSet(names, labels, ("one",), (2, 2, 1), labels > 0, read)

    data = DataSet({"train": of(30, "a"), "test": of(9, "b")})
    effects = settings(split=split, images=20, autoencoder={**SMALL["autoencoder"], "images": 25})
    measured_images, training = measured_and_training(data, effects, seed=0)
    assert set(measured_images.names).isdisjoint(training.names)
    assert (len(measured_images), len(training)) == ((20, 10) if split == "train" else (9, 25))
    if split == "train":
        with pytest.raises(InvalidArgument, match=r"effects\.images`: expected fewer than all 30 images.*received 30"):
            measured_and_training(data, effects.model_copy(update={"images": 30}), seed=0)


def test_levels_without_places_have_no_maps_and_it_is_said(folder, tmp_path, monkeypatch):
    inputs = keras.Input((12, 12, 1))
    x = L.Dense(6, activation="relu", name="units")(L.Flatten()(inputs))
    keras.Model(inputs, L.Dense(3, activation="softmax")(x)).save(tmp_path / "net.keras")
    said: list[str] = []
    subject = subject_of(tmp_path / "net.keras", folder, settings(levels=["units"]))
    plan(subject, settings(levels=["units"]), said.append)
    assert said == ["Without concept-weighted maps, as their concepts have no places: units."]
    monkeypatch.setattr(effect_plan, "LEAST_DETECTION_PART", 4)
    with pytest.raises(
        InvalidArgument, match=r"effects\.detection\.detectors`: expected a detector beside concept_map"
    ):
        plan(subject, settings(levels=["units"], detection={"detectors": ["concept_map"]}))


@pytest.mark.parametrize(
    "name", ["levels/conv1/autoencoder.keras", "unfinished/images/clean.npy", "unfinished/outputs/clean.npz"]
)
def test_a_damaged_file_of_an_unfinished_measurement_is_named(model_file, folder, tmp_path, monkeypatch, name):
    effects = settings(maps=None, attacks=[], masking=None, levels=["conv1"])

    def killed(self, *arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ConceptEffects, "__call__", killed)
        with pytest.raises(Killed):
            measured(model_file, folder, tmp_path, effects)
    (damaged := tmp_path / "effects" / "net" / name).write_bytes(b"no file of ours")
    with pytest.raises(RunError, match=rf"{damaged.name}: the file is damaged.*Remove it"):
        measured(model_file, folder, tmp_path, effects)
    damaged.unlink()
    assert measured(model_file, folder, tmp_path, effects).is_finished


def test_an_overwrite_that_is_killed_leaves_no_rows_that_look_like_the_new_ones(
    model_file, folder, tmp_path, monkeypatch
):
    few = {"maps": None, "attacks": [], "masking": None}
    measured(model_file, folder, tmp_path, settings(**few, levels=["conv1"]))

    def killed(self, *arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ConceptEffects, "__call__", killed)
        with pytest.raises(Killed):
            measured(model_file, folder, tmp_path, settings(**few, levels=["conv2"]), overwrite=True)
    assert not (tmp_path / "effects.parquet").exists()
    again = measured(model_file, folder, tmp_path, settings(**few, levels=["conv2"]))
    assert set(table(again)["level"].dropna()) == {"conv2"}


def test_a_level_starts_the_same_whatever_other_levels_there_are(model_file, folder):
    def kernel(levels):
        effects = settings(levels=levels)
        level = plan(subject_of(model_file, folder, effects), effects).levels[-1]
        return level.concepts.encoder[0].kernel.numpy()

    np.testing.assert_array_equal(kernel(["conv1", "conv2"]), kernel(["conv2"]))


def test_sigmoids_are_labels_of_their_own(folder, tmp_path):
    keras.utils.set_random_seed(6)
    classifier("sigmoid", classes=2).save(tmp_path / "labels.keras")
    base = {"levels": ["conv2"], "maps": None, "weighting": "posterior"}
    store = measured(tmp_path / "labels.keras", folder, tmp_path / "out", settings(**base))
    assert set(table(store)["class"]) == {0, 1}
    with pytest.raises(InvalidArgument, match=r"effects\.attacks\[0\] \(jsma\): .*exclude each other"):
        measured(tmp_path / "labels.keras", folder, tmp_path / "other", settings(**base, attacks=["jsma"]))
    assert not (tmp_path / "other").exists()


def test_a_dead_concept_has_no_effect_and_says_so(folder, tmp_path):
    model = classifier()
    kernel, bias = model.get_layer("conv2").get_weights()
    kernel[..., 3], bias[3] = 0.0, -1.0  # behind the ReLU it is 0 in all images
    model.get_layer("conv2").set_weights([kernel, bias])
    model.save(tmp_path / "net.keras")
    effects = settings(autoencoder=None, levels=["conv2"], maps=None, attacks=[])
    rows = table(measured(tmp_path / "net.keras", folder, tmp_path / "out", effects))
    dead = rows[(rows["level"] == "conv2") & (rows["node"] == 3)]
    assert dead["dead"].all()
    assert (dead[["effect", "low", "high"]] == 0).all(axis=None)
    assert not rows[rows["node"] != 3]["dead"].any()


def test_one_image_has_effects_without_intervals(model_file, folder, tmp_path):
    said: list[str] = []
    effects = settings(levels=["conv2"])
    subject = subject_of(model_file, folder / "00.png", effects, said.append)
    store = measure(subject, effects, tmp_path, ConsoleProgress(Console(quiet=True)))
    rows = table(store)
    assert set(rows["n"]) == {1}
    assert rows[["low", "high"]].isna().all(axis=None)
    assert rows["effect"].notna().all()
    assert "There is one image: the autoencoder is trained on it, too" in said[0]


def two_inputs() -> keras.Model:
    inputs = [keras.Input((12, 12, 1)), keras.Input((12, 12, 1))]
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()(inputs))))


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"levels": ["conv9"]}, InvalidArgument, r"effects\.levels \(conv9\): .*one of .*conv1.*received 'conv9'"),
        ({"levels": ["head"]}, InvalidArgument, r"effects\.levels \(head\): .*"),
        ({"levels": [{"layer": "conv2", "nodes": [3]}]}, InvalidArgument, r"concepts in \[0, 2\]; received 3"),
        ({"autoencoder": {"concepts": 9}}, InvalidArgument, r"effects\.levels \(conv1\): .*at most 6.*received 9"),
        ({"classes": [3]}, InvalidArgument, r"class indices in \[0, 2\]"),
        ({"classes": ["cat"]}, InvalidArgument, "The names are not known here: give numbers"),
        ({"masking": {"blocks": [13, 4]}}, InvalidArgument, r"effects\.masking\.blocks: expected at most 12 rows"),
        (
            {"maps": {"pixel_wise": {"patch": 13}}},
            InvalidArgument,
            r"effects\.maps\.pixel_wise\.patch: expected at most",
        ),
        (
            {"maps": {"pixel_wise": {"patch": 2, "stride": 3}}},
            InvalidArgument,
            r"effects\.maps\.pixel_wise.*`stride`: expected",
        ),
        ({"detection": {}}, InvalidArgument, r"effects\.images.*at least 50 images.*received 20"),
        ({"evidence": True}, InvalidArgument, r"effects\.evidence.*without a mask.*masks/<class>/"),
        ({"levels": [], "autoencoder": {"concepts": 6}}, InvalidArgument, r"a convolution of at least 6 channels .*"),
    ],
)
def test_what_does_not_go_with_the_model_is_an_error_before_any_work(model_file, folder, tmp_path, changes, kind, text):
    changes = dict(changes)
    if "autoencoder" in changes:
        changes["autoencoder"] = {**SMALL["autoencoder"], **changes["autoencoder"]}
    if text.startswith("a convolution"):
        changes["autoencoder"]["concepts"] = 7
        text = text.replace("6 channels", "7 channels")
    with pytest.raises(kind, match=text):
        measured(model_file, folder, tmp_path / "out", settings(**changes))
    assert not (tmp_path / "out").exists()


def test_models_that_effects_cannot_be_measured_in(folder, tmp_path):
    classifier(activation=None).save(tmp_path / "logits.keras")
    for changes, text in (
        ({"weighting": "posterior"}, "ends with logits"),
        ({"detection": {}, "images": 50}, "images"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            measured(tmp_path / "logits.keras", folder, tmp_path / "out", settings(**changes))
    two_inputs().save(tmp_path / "two.keras")
    with pytest.raises(TfCausalError, match="takes models of one image"):
        measured(tmp_path / "two.keras", folder, tmp_path / "out", settings())
    with pytest.raises(DataError, match="received nothing at that place"):
        measured(tmp_path / "logits.keras", folder / "none.png", tmp_path / "out", settings())
    assert not (tmp_path / "out").exists()


def test_without_art_the_extra_is_named(model_file, folder, tmp_path, monkeypatch):
    def missing(**options):
        raise ImportError('adversarial-robustness-toolbox cannot be imported: pip install "tfcausal[adversarial]"')

    monkeypatch.setattr(effect_plan, "get_attack", missing)
    with pytest.raises(UnsupportedOperation, match=r"effects\.attacks\[0\] \(fgsm\): .*tfcausal\[adversarial\]"):
        measured(model_file, folder, tmp_path / "out", settings())
    measured(model_file, folder, tmp_path / "out", settings(attacks=[], levels=["conv2"], maps=None))


def test_levels_are_chosen_among_convolutions_that_are_not_the_answer():
    x = inputs = keras.Input((16, 16, 3))
    for number, filters in enumerate((8, 20, 24, 32), start=1):
        x = L.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    x = L.Conv2D(40, 1, name="class_maps")(x)
    model = keras.Model(inputs, L.Activation("softmax")(L.GlobalAveragePooling2D()(x)))
    said: list[str] = []
    concepts = effects_from_mapping({}).autoencoder
    chosen = default_levels(OperationGraph(model), concepts, said.append)
    assert [level.layer for level in chosen] == ["conv3", "conv4"]
    assert "conv3, conv4, chosen among 3 convolutions" in said[0]
    assert [level.layer for level in default_levels(OperationGraph(classifier()), None)] == ["conv1", "conv2"]


def test_the_bounds_of_attacks_are_those_of_the_pixels(model_file, folder):
    effects = settings()
    chosen = plan(subject_of(model_file, folder, effects, pixels=(255.0, 0.0)), effects)
    assert [float(bound) for bound in chosen.attacks["fgsm"].clip_values] == [0.0, 255.0]
    assert chosen.masked_value == pytest.approx(127.5)
    assert json.dumps(chosen.subject.identity)
