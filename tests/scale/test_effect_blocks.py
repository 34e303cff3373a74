"""`tfcausal effects --engine local`: results against one call with all images, resuming, refusals."""

import json
import shutil

import keras
import numpy as np
import pandas
import pytest
import zarr
from PIL import Image

from tfcausal.effects.channels import ChannelConcepts
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.interventions.adversarial import get_attack
from tfcausal.interventions.masking import random_blocks
from tfcausal.scale.block_store import BlockStore
from tfcausal.scale.effect_measurer import EffectMeasurer, Study

CONDITIONS = ("clean", "masking", "fgsm")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, measure_many, small_model, small_concepts, images):
    """The effects in 20 images, by blocks of 6; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    outcome = measure_many(small_model, small_concepts, images, folder, block=6)
    assert (outcome.done, outcome.failed, outcome.first) == (20, 0, ())
    return folder


def part(folder, index):
    return folder / "answers.parquet" / f"part-{index:06}.parquet"


def written(folder):
    """By name, when the files of blocks were written."""
    files = [path for name in ("answers.parquet", "tallies") for path in (folder / name).glob("part-*")]
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in files}


def without_leftovers(folder):
    return not [path for path in folder.rglob("*") if "partial" in path.name]


def inputs_of(folder):
    files = sorted(folder.rglob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float32) / 127.5 - 1.0 for file in files])


def in_one_call(model_file, concepts_folder, clean, **settings):
    """Results by array name, of all images at once: the objects that `tfcausal.effects` offers, called by hand."""
    model = keras.models.load_model(model_file)
    weights = concepts_folder / "effects" / "model" / "levels" / "conv1" / "autoencoder.keras"
    if weights.exists():
        concepts = ConceptAutoencoder(model, "conv1", 3, hidden=4)
        concepts.load_weights(weights)
    else:
        concepts = ChannelConcepts(model, "conv1")
    sign = settings.get("sign", "do_minus_observed")
    scale = settings.get("scale", "probability")
    values = settings.get("values", "zero")
    masks = random_blocks(len(clean), clean.shape[1:3], 0.25, (4, 3), settings.get("seed", 0))
    changed = {
        "clean": clean,
        "masking": np.where(masks > 0, np.float32(0.0), clean),  # grey in a model that takes [-1, 1]
        "fgsm": get_attack("fgsm", model, (-1.0, 1.0), eps=0.1)(clean),
    }
    effects = ConceptEffects(concepts, settings.get("reference", "autoencoder"), sign)
    found = {}
    for condition, images in changed.items():
        name = "zero_out" if values == "zero" else "set_values"
        name += "" if condition == "clean" else f"+{condition}"
        found[f"conv1/{name}"] = effects(images, values=values if values == "zero" else [values], scale=scale)
        if condition != "clean":
            found[f"image/{condition}"] = ImageEffects(model, sign)(images, clean, scale)
    return model, changed, found


@pytest.mark.filterwarnings("ignore:The autoencoder|.*changes the answers:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"values": 0.5, "sign": "observed_minus_do", "scale": "logit", "reference": "model", "seed": 7},
        {"autoencoder": None},
        {"weighting": "posterior"},
    ],
)
def test_effects_are_those_of_all_images_in_one_call(
    measure_many, concepts_of, effects_in, small_model, images, tmp_path, settings
):
    some = concepts_of(small_model, images, tmp_path / "some", **settings)
    measure_many(small_model, some, images, tmp_path / "out", block=6)
    rows, arrays, table = effects_in(tmp_path / "out")
    model, changed, expected = in_one_call(small_model, some, inputs_of(images), **settings)
    assert arrays.keys() == expected.keys()
    weighting = settings.get("weighting", "class")
    for name, result in expected.items():
        effects, _, _ = result.per_image(weighting)
        assert arrays[name].dtype == np.float32
        np.testing.assert_allclose(arrays[name], effects[:, :, 0], rtol=1e-5, atol=1e-6)
        level, intervention = name.split("/")
        own = table[(table["level"] == level) & (table["intervention"] == intervention)]
        if level == "image":
            own = table[table["level"].isna() & (table["intervention"] == intervention)]
        summary = result.summary(weighting)
        np.testing.assert_allclose(own["effect"], summary.effect.ravel(), rtol=1e-5, atol=1e-6)
        assert set(own["n"]) == {20}
        assert own["dead"].tolist() == np.repeat(summary.dead, summary.effect.shape[2]).tolist()
        assert set(own["faithful"]) == {summary.causal}
        half = 1.959964 * effects[:, :, 0].std(axis=0, ddof=1).ravel() / np.sqrt(20)
        np.testing.assert_allclose(own["high"] - own["effect"], half, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(own["effect"] - own["low"], half, rtol=1e-4, atol=1e-7)
    for condition, role in zip(CONDITIONS, ("predicted", "masking", "fgsm"), strict=True):
        answers = model.predict(changed[condition], verbose=0)
        assert rows[f"{role}_class"].tolist() == answers.argmax(axis=1).tolist()
        np.testing.assert_allclose(rows[f"{role}_probability"], answers.max(axis=1), rtol=1e-5)
    assert rows["error"].isna().all()


def test_the_table_is_that_of_effects_without_an_engine(
    measure_many, small_model, small_concepts, images, tmp_path, effects_in
):
    """Means of the plain table, which has other images, are not these; its columns and its rows are."""
    measure_many(small_model, small_concepts, images, tmp_path)
    plain = pandas.read_parquet(small_concepts / "effects.parquet")
    _, _, table = effects_in(tmp_path)
    assert table.columns.tolist() == plain.columns.tolist()
    assert table.dtypes.tolist() == plain.dtypes.tolist()
    for name in ("model", "level", "node", "intervention", "class", "reference", "sign", "weighting", "scale"):
        assert table[name].fillna("").tolist() == plain[name].fillna("").tolist(), name


def test_a_run_gives_its_concepts_and_the_names_of_its_classes(measure_many, effects_in, small_effects, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(5):
        pixels = random.integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    measure_many(small_effects, small_effects, tmp_path / "images", tmp_path / "out", "plain", block=2)
    rows, arrays, table = effects_in(tmp_path / "out")
    assert set(rows["predicted_name"]) <= set("0123456789")
    assert set(table["class_name"]) == set("0123456789")
    assert set(table["model"]) == {"plain"}
    assert {name.split("/")[0] for name in arrays} == {"image", "block1_conv", "block2_conv"}
    attributes = zarr.open_array(tmp_path / "out" / "effects.zarr" / "block1_conv" / "zero_out+pgd", mode="r").attrs
    assert (attributes["level"], attributes["nodes"]) == ("block1_conv", [0, 1, 2])
    assert attributes["class_names"] == list("0123456789")
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["effects"]["detection"] is None
    assert set(job["concepts_sha256"]) == {"block1_conv", "block2_conv"}


def test_the_folder_holds_what_is_said(finished):
    assert {path.name for path in finished.iterdir() if path.name[0] != "."} == {
        "job.json",
        "answers.parquet",
        "effects.zarr",
        "tallies",
        "effects.parquet",
    }
    assert len(written(finished)) == 8
    array = zarr.open_array(finished / "effects.zarr" / "conv1" / "zero_out", mode="r")
    assert (array.shape, array.chunks) == ((20, 3, 3), (6, 3, 3))
    assert without_leftovers(finished)


def test_images_that_cannot_be_read_are_told_and_the_others_keep_their_masks(
    measure_many, effects_in, small_model, small_concepts, images, tmp_path
):
    source = shutil.copytree(images, tmp_path / "source")
    bad = ["a/000x.png", "a/004x.png", "b/001x.png", "b/019y.png"]
    for name in bad:
        (source / name).write_bytes(b"\x00 no image")
    outcome = measure_many(small_model, small_concepts, source, tmp_path / "out", block=6)
    assert (outcome.done, outcome.failed) == (20, 4)
    rows, arrays, table = effects_in(tmp_path / "out")
    failed = rows["error"].notna().to_numpy()
    assert rows["image"][failed].tolist() == bad
    assert rows["masking_class"][failed].isna().all()
    assert (
        rows["masking_changed"][~failed].tolist()
        == (rows["masking_class"] != rows["predicted_class"])[~failed].tolist()
    )
    # The masks of an image depend on its position among all: black images stand where nothing could be read.
    clean = np.full((24, 8, 6, 3), -1.0, np.float32)
    clean[~failed] = inputs_of(images)
    _, _, expected = in_one_call(small_model, small_concepts, clean)
    for name, result in expected.items():
        effects = result.effects[:, :, 0]
        assert np.isnan(arrays[name][failed]).all()
        np.testing.assert_allclose(arrays[name][~failed], effects[~failed], rtol=1e-5, atol=1e-6)
    assert set(table["n"]) == {20}
    own = table[table["intervention"] == "zero_out+masking"]
    mean = expected["conv1/zero_out+masking"].effects[~failed].mean(axis=0)
    np.testing.assert_allclose(own["effect"], mean.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [24, 6])
def test_images_that_cannot_be_read_leave_random_starts_as_they_are(
    measure_many, concepts_of, effects_in, small_model, images, tmp_path, block
):
    """PGD draws where it begins: in an image as if every other one of its block could be read."""
    concepts = concepts_of(small_model, images, tmp_path / "c", attacks=[{"name": "pgd", "eps": 0.2, "steps": 2}])
    source = shutil.copytree(images, tmp_path / "source")
    for name in ("a/000x.png", "a/004x.png", "b/001x.png", "b/019y.png"):
        Image.fromarray(np.full((8, 6, 3), 7, np.uint8)).save(source / name)
    measure_many(small_model, concepts, source, tmp_path / "whole", block=block)
    for name in ("a/004x.png", "b/001x.png"):
        (source / name).write_bytes(b"\x00 no image")
    measure_many(small_model, concepts, source, tmp_path / "out", block=block)
    (_, whole, _), (rows, arrays, _) = effects_in(tmp_path / "whole"), effects_in(tmp_path / "out")
    readable = rows["error"].isna().to_numpy()
    assert readable.sum() == 22
    for name, values in arrays.items():
        np.testing.assert_allclose(values[readable], whole[name][readable], rtol=1e-4, atol=1e-6)


def test_levels_and_nodes_keep_their_names_and_order(measure_many, concepts_of, effects_in, images, tmp_path):
    """Nested models, of which one path with `_` in it is as another with `/`; a layer that is called `image`."""
    inputs = keras.Input((8, 6, 3))
    inner = keras.Sequential([keras.Input((8, 6, 3)), keras.layers.Conv2D(4, 3, activation="relu", name="b")], name="a")
    x = keras.layers.Conv2D(3, 2, activation="relu", name="a_b")(inner(inputs))
    x = keras.layers.Conv2D(3, 2, activation="relu", name="image")(x)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled)).save(tmp_path / "model.keras")
    levels = [{"layer": "a/b", "nodes": [2, 0]}, "a_b", "image"]
    changes = {"levels": levels, "autoencoder": None, "attacks": [], "classes": [2, 0]}
    concepts = concepts_of(tmp_path / "model.keras", images, tmp_path / "c", **changes)
    measure_many(tmp_path / "model.keras", concepts, images, tmp_path / "out", block=6)
    _, arrays, table = effects_in(tmp_path / "out")
    assert {name: array.shape[1:] for name, array in arrays.items()} == {
        "image/masking": (1, 2),
        "a_b/zero_out": (2, 2),
        "a_b/zero_out+masking": (2, 2),
        "a_b/zero_out_": (3, 2),
        "a_b/zero_out+masking_": (3, 2),
        "image/zero_out": (3, 2),
        "image/zero_out+masking": (3, 2),
    }
    model, clean = keras.models.load_model(tmp_path / "model.keras"), inputs_of(images)
    for name, level, nodes in (("a_b/zero_out", "a/b", [2, 0]), ("a_b/zero_out_", "a_b", None)):
        expected = ConceptEffects(ChannelConcepts(model, level))(clean, nodes, classes=[2, 0])
        np.testing.assert_allclose(arrays[name], expected.effects[:, :, 0], rtol=1e-5, atol=1e-6)
        own = table[(table["level"] == level) & (table["intervention"] == "zero_out")]
        assert own["node"].tolist() == np.repeat(nodes or [0, 1, 2], 2).tolist()
        assert own["class"].tolist() == [2, 0] * (len(own) // 2)
        assert own["dead"].tolist() == np.repeat(expected.dead, 2).tolist()


def test_blocks_of_any_size_do_not_trace_again(small_model, small_concepts):
    measure = EffectMeasurer(Study(small_model, small_concepts))
    pictures = np.random.default_rng(0).random((6, 8, 6, 3), dtype=np.float32)
    for count in (6, 2, 1, 6):
        measure(measure.changed(pictures[:count]))
    assert measure._answers._answers.experimental_get_tracing_count() == 1


def test_an_image_with_which_the_model_overflows_fails_alone(measure_many, concepts_of, effects_in, images, tmp_path):
    x = keras.Input((8, 6, 3))
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.Activation("relu", name="maps")(x))
    steep = keras.layers.Activation("exponential")(1000.0 * pooled - 500.0)
    keras.Model(x, keras.layers.Dense(2)(steep)).save(tmp_path / "model.keras")
    for name, value in (("dark", 0), ("grey", 40), ("bright", 255)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 6, 3), value, np.uint8)).save(tmp_path / name / f"{name}.png")
    shutil.copytree(tmp_path / "dark", tmp_path / "some" / "a")
    shutil.copytree(tmp_path / "grey", tmp_path / "some" / "b")
    changes = {"levels": ["maps"], "autoencoder": None, "attacks": [], "masking": {"share": 0.25, "blocks": [2, 2]}}
    concepts = concepts_of(tmp_path / "model.keras", tmp_path / "some", tmp_path / "c", pixels=(0.0, 1.0), **changes)
    places = [tmp_path / name for name in ("dark", "grey", "bright")]
    outcome = measure_many(tmp_path / "model.keras", concepts, places, tmp_path / "out")
    assert (outcome.done, outcome.failed) == (2, 1)
    rows, arrays, table = effects_in(tmp_path / "out")
    assert rows["image"][rows["error"].notna()].tolist() == ["bright/bright.png"]
    assert "NaN or infinity" in rows["error"][0]
    assert np.isfinite(arrays["maps/zero_out"][1:]).all()
    assert np.isnan(arrays["maps/zero_out"][0]).all()
    assert set(table["n"]) == {2}


def test_without_any_image_there_is_no_table(measure_many, small_model, small_concepts, tmp_path, run_command):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    outcome = measure_many(small_model, small_concepts, tmp_path / "images", tmp_path / "out")
    assert (outcome.done, outcome.failed) == (0, 1)
    assert not (tmp_path / "out" / "effects.parquet").exists()
    words = ["effects", small_model, tmp_path / "images", "--concepts", small_concepts, "--engine", "local"]
    result = run_command(*words, "--output", tmp_path / "other", check=False)
    assert result.returncode == 1
    assert result.stdout.startswith("Measured effects on 0 images, failed 1: ")
    assert "a.png: the content is neither PNG nor JPEG" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_concept_counts_as_dead_only_if_it_is_in_all_blocks(measure_many, concepts_of, effects_in, tmp_path):
    x = keras.Input((8, 6, 3))
    maps = keras.layers.Activation("relu", name="maps")(x)
    keras.Model(x, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps))).save(tmp_path / "model.keras")
    (tmp_path / "images").mkdir()
    for number in range(6):  # no red, green in the first block alone, blue in the last
        pixels = np.zeros((8, 6, 3), np.uint8)
        pixels[..., 1] = 100 if number < 2 else 0
        pixels[..., 2] = 200 if number > 3 else 0
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    changes = {"levels": ["maps"], "autoencoder": None, "attacks": [], "masking": None}
    model, places = tmp_path / "model.keras", tmp_path / "images"
    concepts = concepts_of(model, places, tmp_path / "c", pixels=(0.0, 1.0), **changes)
    measure_many(model, concepts, places, tmp_path / "out", block=2)
    _, _, table = effects_in(tmp_path / "out")
    dead = table.groupby("node")["dead"].first()
    assert dead.tolist() == [True, False, False]
    blocks = [dict(np.load(path)) for path in sorted((tmp_path / "out" / "tallies").glob("*.npz"))]
    assert len(blocks) == 3
    assert all(np.equal(*block["maps/zero_out/codes"].T).all() for block in blocks)


def test_what_is_finished_is_not_done_again(
    measure_many, finished, same_effects, small_model, small_concepts, images, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "out")
    before = written(folder)
    part(folder, 1).unlink()
    (folder / "effects.zarr" / "conv1" / "zero_out" / "c.1.0.0").unlink()
    (folder / "effects.zarr" / "conv1" / "zero_out" / "c.1.0.0.0123.partial").write_bytes(b"half")
    (folder / "tallies" / ".partial-01234567.part-000001.npz").write_bytes(b"half")
    (folder / "effects.parquet").unlink()
    outcome = measure_many(small_model, small_concepts, images, folder, block=6)
    assert (outcome.done, outcome.failed) == (20, 0)
    after = written(folder)
    assert sorted(name for name in after if after[name] != before[name]) == [
        "answers.parquet/part-000001.parquet",
        "tallies/part-000001.npz",
    ]
    assert without_leftovers(folder)
    same_effects(folder, finished, within=0)


@pytest.mark.parametrize(
    ("target", "name", "done"), [(EffectMeasurer, "__call__", 1), (zarr.Array, "__setitem__", 0), (np, "savez", 2)]
)
def test_an_interruption_leaves_whole_blocks_and_the_same_call_goes_on(
    measure_many,
    finished,
    same_effects,
    ended_at_the_third_call,
    small_model,
    small_concepts,
    images,
    tmp_path,
    target,
    name,
    done,
):
    with ended_at_the_third_call(target, name):
        measure_many(small_model, small_concepts, images, tmp_path, block=6)
    assert len(list((tmp_path / "answers.parquet").glob("part-*"))) == done
    assert not (tmp_path / "effects.parquet").exists()
    before = written(tmp_path)
    measure_many(small_model, small_concepts, images, tmp_path, block=6)
    whole = {name: when for name, when in before.items() if part(tmp_path, done).stem not in name}
    assert len(whole) == 2 * done
    assert whole.items() <= written(tmp_path).items()
    assert without_leftovers(tmp_path)
    same_effects(tmp_path, finished, within=0)


def test_while_blocks_are_missing_there_is_no_table(
    measure_many, finished, monkeypatch, small_model, small_concepts, images, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "out")
    part(folder, 1).unlink()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockStore, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_many(small_model, small_concepts, images, folder, block=6)
    assert not (folder / "effects.parquet").exists()


def test_a_finished_job_makes_its_table_again_and_no_block(
    measure_many, finished, monkeypatch, small_model, small_concepts, images, effects_in
):
    before, (_, _, table) = written(finished), effects_in(finished)
    (finished / "effects.parquet").unlink()
    monkeypatch.setattr(BlockStore, "write", lambda *arguments: pytest.fail("written"))
    assert measure_many(small_model, small_concepts, images, finished, block=6).done == 20
    assert written(finished) == before
    pandas.testing.assert_frame_equal(effects_in(finished)[2], table)


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_damaged_tallies_are_named_with_what_to_do(
    measure_many, finished, same_effects, small_model, small_concepts, images, tmp_path, damage
):
    folder = shutil.copytree(finished, tmp_path / "out")
    path = folder / "tallies" / "part-000002.npz"
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"part-000002\.npz: the file is damaged, or gone .*Remove .*000002\.parquet"):
        measure_many(small_model, small_concepts, images, folder, block=6)
    part(folder, 2).unlink()
    measure_many(small_model, small_concepts, images, folder, block=6)
    same_effects(folder, finished, within=0)


def test_other_concepts_or_settings_are_refused(
    measure_many, concepts_of, finished, small_model, small_concepts, images, tmp_path
):
    before = written(finished)
    with pytest.raises(RunError, match=r"begun with other settings \(block: 6, now 5\)"):
        measure_many(small_model, small_concepts, images, finished, block=5)
    other = concepts_of(small_model, images, tmp_path / "other", seed=1)
    with pytest.raises(RunError, match=r"begun with other settings \(concepts_sha256: .*; effects: .*; seed: 0, now 1"):
        measure_many(small_model, other, images, finished, block=6)
    assert written(finished) == before


def test_overwriting_leaves_nothing_of_what_was_there(
    measure_many, finished, same_effects, small_model, small_concepts, images, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(RunError, match=r"begun with other images: 20 of .*; received 10 of"):
        measure_many(small_model, small_concepts, images / "b", folder, block=6)
    measure_many(small_model, small_concepts, images / "b", folder, block=6, overwrite=True)
    measure_many(small_model, small_concepts, images / "b", tmp_path / "new", block=6)
    assert len(written(folder)) == 4
    same_effects(folder, tmp_path / "new", within=0)


def test_overwriting_takes_no_effects_that_were_measured_otherwise(
    measure_many, small_model, small_concepts, images, tmp_path
):
    folder = shutil.copytree(small_concepts, tmp_path / "some")
    kept = (folder / "effects.parquet").read_bytes()
    with pytest.raises(RunError, match=r"with job\.json, to overwrite; received effects"):
        measure_many(small_model, folder, images, folder, overwrite=True)
    assert (folder / "effects.parquet").read_bytes() == kept


@pytest.mark.parametrize("values", ["mean", "range", "sampled", [0.0, 1.0]])
def test_values_that_need_other_images_are_refused(
    measure_many, concepts_of, small_model, small_concepts, images, tmp_path, values
):
    folder = shutil.copytree(small_concepts, tmp_path / "some")
    path = folder / "effects" / "model" / "settings.json"
    settings = json.loads(path.read_text())
    settings["effects"]["values"] = values
    path.write_text(json.dumps(settings))
    with pytest.raises(InvalidArgument, match=r"effects\.values`: expected `zero` or one number.*--set values=zero"):
        measure_many(small_model, folder, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_concepts_must_be_there_and_of_this_model(measure_many, small_model, small_concepts, images, tmp_path):
    remedy = r"Measure them first, without --engine: `tfcausal effects .*--concepts"
    with pytest.raises(RunError, match=rf"expected the effects of model on some images.*{remedy}"):
        measure_many(small_model, tmp_path / "none", images, tmp_path / "out")
    unfinished = shutil.copytree(small_concepts, tmp_path / "unfinished")
    (unfinished / "effects" / "model" / "finished.json").unlink()
    with pytest.raises(RunError, match=remedy):
        measure_many(small_model, unfinished, images, tmp_path / "out")
    model = keras.models.load_model(small_model)
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    model.save(tmp_path / "model.keras")
    with pytest.raises(InvalidArgument, match=r"the model whose concepts are in .*; received another one"):
        measure_many(tmp_path / "model.keras", small_concepts, images, tmp_path / "out")
    damaged = shutil.copytree(small_concepts, tmp_path / "damaged")
    (damaged / "effects" / "model" / "levels" / "conv1" / "autoencoder.keras").write_bytes(b"half")
    with pytest.raises(RunError, match=r"autoencoder\.keras: the file is damaged .*`tfcausal effects --overwrite`"):
        measure_many(small_model, damaged, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--concepts", "x"], "--concepts needs --engine local or --engine ray"),
        (["--block", "3"], "--block needs --engine"),
        (["--engine", "local", "--set", "values=mean"], "--set does not go with --engine"),
        (["--engine", "local", "--pixels", "0", "1"], "--pixels does not go with --engine"),
        (["--engine", "local", "--dry-run"], "--dry-run does not go with --engine"),
        (["--engine", "local"], "--engine needs IMAGES and --output"),
        (["--engine", "spark"], "expected one of local, ray; received 'spark'"),
    ],
)
def test_bad_command_lines_end_without_a_traceback(run_command, small_model, images, tmp_path, words, text):
    result = run_command("effects", small_model, images, *words, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_measures_and_tells(
    run_command, same_effects, finished, small_model, small_concepts, images, tmp_path
):
    words = ["effects", small_model, images, "--concepts", small_concepts, "--engine", "local", "--block", "6"]
    result = run_command(*words, "--output", tmp_path / "out")
    assert result.stdout == f"Measured effects on 20 images: {tmp_path / 'out'}\n"
    assert "measuring effects            20/20" in result.stderr
    same_effects(tmp_path / "out", finished, within=0)
