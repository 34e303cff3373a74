"""What the explorer reads of measured effects: a run whose numbers are written by hand."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import zarr

from tfcausal.browsing.effect_maps import StoredEffectMaps, spread
from tfcausal.browsing.effect_state import effects_version, measured_models, unfinished_models, what_to_do
from tfcausal.browsing.effect_words import stated
from tfcausal.browsing.effects import StoredEffects
from tfcausal.browsing.maps import EVERY_FILE, WHOLE
from tfcausal.config import config_from_mapping
from tfcausal.effects.store import EffectStore
from tfcausal.effects.table import DETECTION, EFFECTS, as_frame
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.runs import RunDirectory

LEVELS, CONDITIONS = ("conv2", "block/conv1"), ("clean", "pgd")
CLASSES = ("cat", "dog", "emu")
#                 node: effects on the three classes
CLEAN = {
    "conv2": {0: (0.1, -0.3, 0.2), 4: (0.0, 0.0, 0.0), 7: (0.5, -0.25, -0.25)},
    "block/conv1": {1: (-0.9, 0.4, 0.5)},
}
AGREEMENT = {"text": "It agrees.", "faithful": True}
SIZE, CODES = (6, 8), (3, 4)


def effect_rows(model):
    rows = []
    common = {"model": model, "value": None, "n": 20, "sign": "do_minus_observed", "weighting": "class", "dead": False}
    common |= {"scale": "probability", "faithful": True}

    def add(effects, **of):
        for index, effect in enumerate(effects):
            known = {"class": index, "class_name": CLASSES[index], "low": effect - 0.05, "high": effect + 0.1}
            rows.append({**common, **known, "effect": effect, **of})

    add((0.2, -0.6, 0.4), level=None, node=-1, intervention="pgd", reference="model")
    for level, nodes in CLEAN.items():
        for intervention, factor in (("set_range", 1.0), ("set_range+pgd", -0.5)):
            for node, effects in nodes.items():
                of = {"level": level, "node": node, "intervention": intervention, "reference": "autoencoder"}
                of |= {"dead": node == 4, "faithful": factor == 1.0}
                add([factor * effect for effect in effects], **of)
                for value in (2.0, -1.0):  # larger than the expectation, and not in order
                    add([10 * value * effect for effect in effects], value=value, **of)
    return as_frame(EFFECTS, pandas.DataFrame(rows))


def detection_rows(model):
    row = dict.fromkeys(DETECTION.names) | {"model": model, "attack": "pgd", "fitted_on": "pgd", "features": 1}
    row |= {"n_clean": 10, "n_attacked": 10, "only_successful": False}
    found = [{**row, "detector": name, "auc": auc} for name, auc in (("low_confidence", 0.2), ("confidence", 0.8))]
    return as_frame(DETECTION, {name: [each[name] for each in found] for name in DETECTION.names})


def findings(model):
    curve = {
        "model": model,
        "attack": "pgd",
        "detector": "effects",
        "level": "conv2",
        "auc": 0.75,
        "low": 0.5,
        "high": 1.0,
    }
    curve |= {"false_positive_rates": [0, 0.5, 1], "true_positive_rates": [0, 1, 1], "chosen": [0.5, 1.0]}
    nothing = {"auc": None, "low": None, "high": None, "false_positive_rates": [], "true_positive_rates": []}
    return {
        "model": model,
        "n": 20,
        "conditions": list(CONDITIONS),
        "changed_answers": {"pgd": {"value": 0.5, "low": 0.3, "high": 0.7, "n": 20}},
        "never_predicted": ["emu"],
        "levels": [
            {"layer": "conv2", "folder": "conv2", "concepts": 8, "nodes": [0, 4, 7], "agreement": AGREEMENT},
            {"layer": "block/conv1", "folder": "block_conv1", "concepts": 2, "nodes": [1], "agreement": None},
        ],
        "effects": {
            "attacks": [{"name": "pgd"}],
            "sign": "do_minus_observed",
            "scale": "probability",
            "detection": {},
            "maps": {},
        },
        "roc": [curve, {**curve, **nothing, "detector": "low_confidence", "level": None, "chosen": [None, None]}],
    }


def arrays():
    random = np.random.default_rng(0)
    outputs = {"clean": [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], "pgd": [[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]}
    found = {}
    for condition in CONDITIONS:
        found[f"images/{condition}"] = random.uniform(-0.5, 0.5, (2, *SIZE, 1)).astype(np.float32)
        found[f"outputs/{condition}"] = np.float32(outputs[condition])
        found[f"pixel_wise/{condition}"] = random.normal(size=(2, *SIZE)).astype(np.float32)
        found[f"levels/conv2/codes/{condition}"] = random.normal(size=(2, *CODES, 2)).astype(np.float32)
        found[f"levels/conv2/concept_weighted/{condition}"] = random.normal(size=(2, *SIZE)).astype(np.float32)
    return found


def measure(run, model):
    store = EffectStore(run.path, model)
    store.begin({"images": 20}, overwrite=False)
    group = zarr.create_group(store.maps)
    names = ["test/one", "test/two"]
    group.attrs.update(conditions=list(CONDITIONS), names=names, class_names=list(CLASSES), value_range=[-0.5, 0.5])
    group.attrs[WHOLE] = True
    group.create_group("levels/conv2").attrs.update(layer="conv2", nodes=[7, 0])
    group.create_group("levels/block_conv1").attrs.update(layer="block/conv1", nodes=[1])
    for name, values in arrays().items():
        group.create_array(name, data=values, chunks=(1, *values.shape[1:]), config=EVERY_FILE)
    parts = {"effects.parquet": [effect_rows(model)], "detection.parquet": [detection_rows(model)]}
    store.finish(parts, findings(model))
    return store


@pytest.fixture
def run(tmp_path):
    models = {name: {"method": "plain"} for name in ("two", "one", "half", "none")}
    settings = {"version": 1, "name": "kept run", "data": {"source": "textured_digits"}, "models": models}
    run = RunDirectory.create(tmp_path, config_from_mapping({**settings, "name": "kept"}))
    for model in models:
        run.model_path(model).touch()
    measure(run, "one")
    measure(run, "two")
    EffectStore(run.path, "half").begin({"images": 20}, overwrite=False)
    return run


@pytest.fixture
def effects(run):
    return StoredEffects(run, "one")


def test_models_are_those_that_are_finished_in_the_order_of_the_configuration(run):
    assert measured_models(run) == ("two", "one")
    assert unfinished_models(run) == ("half",)


def test_what_is_missing_says_what_to_do(run):
    text, command = what_to_do(run, "none")
    assert "No effects of none are measured yet" in text
    assert command == f"tfcausal effects {run.path} --model none"
    with pytest.raises(RunError, match=r"of half are measured in part.*tfcausal effects .*kept --model half"):
        StoredEffects(run, "half")
    assert "half are measured in part" in what_to_do(run)[0]
    run.model_path("none").unlink()
    assert what_to_do(run, "none")[1] == f"tfcausal run --resume {run.path}"
    with pytest.raises(InvalidArgument, match="Did you mean `one`"):
        StoredEffects(run, "on")


def test_a_path_with_a_space_is_one_word_of_the_command(run):
    spaced = run.path.rename(run.path.parent / "my run")
    assert what_to_do(RunDirectory.open(spaced))[1] == f"tfcausal effects '{spaced}'"


def test_findings_levels_and_choices(effects):
    assert (effects.n, effects.conditions, effects.attacks) == (20, CONDITIONS, ("pgd",))
    assert effects.unit == "change of P(class)"
    assert [(level.layer, level.faithful) for level in effects.levels] == [("conv2", True), ("block/conv1", True)]
    assert [level.agreement for level in effects.levels][1] == "Its 2 channels are the concepts; nothing is lost."
    both = ("set_range", "set_range+pgd")
    assert effects.interventions == {None: ("pgd",), "conv2": both, "block/conv1": both}
    assert effects.classes == dict(enumerate(CLASSES))


def test_a_concept_has_the_row_of_the_class_that_it_moves_most_and_the_largest_comes_first(effects):
    rows = effects.concept_rows("set_range", "conv2")
    found = list(zip(rows["node"], rows["of"], rows["effect"], rows["dead"], strict=True))
    assert found == [(7, "cat", 0.5, False), (0, "dog", -0.3, False), (4, "cat", 0.0, True)]
    every = effects.concept_rows("set_range+pgd")
    assert list(zip(every["level"], every["node"], every["effect"], strict=True)) == [
        ("conv2", 7, -0.25),
        ("conv2", 0, 0.15),
        ("conv2", 4, 0.0),
        ("block/conv1", 1, 0.45),
    ]
    assert not every["faithful"].any()


def test_rows_of_a_class_are_of_that_class_alone(effects):
    rows = effects.concept_rows("set_range", "conv2", class_index=2)
    assert list(zip(rows["node"], rows["effect"], strict=True)) == [(7, -0.25), (0, 0.2), (4, 0.0)]
    assert set(rows["of"]) == {"emu"}
    assert set(rows["model"]) == {"one"}
    assert rows["value"].isna().all()  # the expectation, not one of the values


def test_an_intervention_on_the_image_has_a_row_for_every_class(effects):
    rows = effects.image_rows("pgd")
    assert list(zip(rows["of"], rows["effect"], strict=True)) == [("dog", -0.6), ("emu", 0.4), ("cat", 0.2)]
    assert effects.image_rows("set_range").empty  # is done to concepts


def test_values_of_a_concept_rise(effects):
    rows = effects.value_rows("set_range", "conv2", 0, 1)
    assert list(zip(rows["value"], rows["effect"], strict=True)) == [
        (-1.0, pytest.approx(3.0)),
        (2.0, pytest.approx(-6.0)),
    ]


def test_curves_and_detectors(effects):
    first, second = effects.curves()
    assert (first.name, first.auc, first.chosen) == ("effects, conv2", 0.75, (0.5, 1.0))
    assert first.true_positive_rates == (0.0, 1.0, 1.0)
    assert second.name == "low_confidence"
    assert np.isnan([second.auc, *second.chosen]).all()
    assert effects.detection_rows()["detector"].tolist() == ["low_confidence", "confidence"]
    assert set(effects.detection_rows()["model"]) == {"one"}


def test_what_numbers_mean_is_said_of_the_rows_themselves(effects):
    text = stated(effects.concept_rows("set_range"))
    assert text.startswith("n = 20 images · sign: the output with the intervention minus the output without")
    assert "reference: the answer through the untouched autoencoder · weighting: every class by itself" in text
    other = effects.image_rows("pgd").assign(
        sign="observed_minus_do", weighting="posterior", scale="logit", n=[3, 9, 3]
    )
    text = stated(other)
    assert "n = 3 to 9 images · sign: the output without the intervention minus" in text
    assert "reference: the answer of the model as it is · weighting: all classes together" in text
    assert "scale: logits" in text


def test_only_the_asked_rows_of_the_table_are_read_and_opening_reads_none(run, monkeypatch):
    read, asked = pyarrow.parquet.read_table, []

    def counted(*arguments, **options):
        table = read(*arguments, **options)
        asked.append((table.num_rows, table.num_columns))
        return table

    monkeypatch.setattr(pyarrow.parquet, "read_table", counted)
    effects = StoredEffects(run, "two")
    assert asked == []
    effects.concept_rows("set_range", "block/conv1", class_index=0)
    assert asked == [(3, len(EFFECTS.names))]  # the expectation and two values, of 150 rows
    _ = effects.interventions
    assert asked[-1][1] == 2


def test_a_damaged_table_is_named_and_leaves_the_findings(run):
    (run.path / "effects.parquet").write_bytes(b"PAR1 nothing")
    effects = StoredEffects(run, "one")
    assert effects.curves()[0].auc == 0.75
    with pytest.raises(RunError, match=r"effects\.parquet: expected a parquet table; it cannot be read"):
        _ = effects.interventions
    (run.path / "detection.parquet").unlink()
    with pytest.raises(RunError, match=r"detection\.parquet: expected a table; there is none"):
        effects.detection_rows()


def test_a_table_without_the_model_is_an_error_that_says_so(run):
    store = EffectStore(run.path, "one")
    text = (store.folder / "finished.json").read_text()
    store.begin({"images": 21}, overwrite=True)  # killed after that, but for the findings
    (store.folder / "finished.json").write_text(text)
    with pytest.raises(
        RunError, match=r"has no row of one.*Measure again: tfcausal effects .* --model one --overwrite"
    ):
        _ = StoredEffects(run, "one").interventions


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"n": 20}), json.dumps({**findings("one"), "levels": [{}]})])
def test_damaged_findings_are_named(run, content):
    (run.path / "effects" / "one" / "finished.json").write_text(content)
    with pytest.raises(RunError, match=r"finished\.json.*[Mm]easure again"):
        StoredEffects(run, "one")
    assert StoredEffects(run, "two").n == 20


def test_a_run_that_is_deleted_is_said_to_be_gone(run, effects):
    maps = StoredEffectMaps(effects)
    run.path.rename(run.path.parent / "elsewhere")
    with pytest.raises(RunError, match="kept is gone: the run was deleted or moved"):
        maps.picture("clean", 0)


def test_the_version_changes_when_effects_do_and_only_then(run):
    before = effects_version(run.path)
    assert before == effects_version(run.path)
    for name in ("effects.parquet", "effects/two/finished.json", "effects.zarr/one/zarr.json"):
        os.utime(run.path / name, ns=(1, len(name)))
        assert effects_version(run.path) != before, name
        before = effects_version(run.path)
    (run.path / "effects.parquet").unlink()
    assert effects_version(run.path) != before
    assert effects_version(run.path / "gone") == ""


def test_maps_are_those_that_were_kept(effects):
    maps, kept = StoredEffectMaps(effects), arrays()
    assert (len(maps), maps.names, maps.conditions) == (2, ("test/one", "test/two"), CONDITIONS)
    np.testing.assert_allclose(maps.picture("pgd", 1), kept["images/pgd"][1] + 0.5, atol=1e-6)
    assert np.array_equal(maps.pixel_map("clean", 1), kept["pixel_wise/clean"][1])
    assert np.array_equal(maps.concept_map("conv2", "pgd", 0), kept["levels/conv2/concept_weighted/pgd"][0])
    assert maps.nodes("conv2") == (7, 0)
    codes = maps.codes("conv2", 0, "pgd", 1)
    assert np.array_equal(codes, np.kron(kept["levels/conv2/codes/pgd"][1, :, :, 1], np.ones((2, 2))))
    assert (maps.has_pixel_maps, maps.has_concept_maps("conv2"), maps.has_concept_maps("block/conv1")) == (
        True,
        True,
        False,
    )
    assert maps.nodes("block/conv1") == ()  # its codes were not kept


def test_answers_are_those_under_the_intervention_and_maps_are_of_the_clean_answer(effects):
    maps = StoredEffectMaps(effects)
    assert maps.answer("clean", 0) == (0, "cat", pytest.approx(0.7))
    assert maps.answer("pgd", 0) == (1, "dog", pytest.approx(0.5))
    assert maps.explained("pgd", 0) == ("cat", pytest.approx(0.2))


def test_codes_are_spread_over_sizes_that_are_no_multiples():
    codes = np.arange(6).reshape(2, 3)
    shown = spread(codes, (5, 7))
    rows, columns = [0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2]  # the code at the centre of every pixel
    assert np.array_equal(shown, codes[rows][:, columns])


def test_a_damaged_map_is_of_its_own_image_only(run, effects):
    maps = StoredEffectMaps(effects)
    place = run.path / "effects.zarr" / "one" / "pixel_wise" / "clean" / "c"
    next(path for path in (place / "0").rglob("*") if path.is_file()).write_bytes(b"\x00" * 9)
    with pytest.raises(RunError, match=r"effects\.zarr.one: cannot be read.*--model one --overwrite"):
        maps.pixel_map("clean", 0)
    assert maps.pixel_map("clean", 1).any()
    place = run.path / "effects.zarr" / "one" / "outputs" / "pgd" / "c" / "1"
    next(path for path in place.rglob("*") if path.is_file()).unlink()  # a lost file reads as zeros
    with pytest.raises(RunError, match=r"outputs/pgd/c/1/0 is lost.*--overwrite"):
        maps.answer("pgd", 1)
    shutil.rmtree(run.path / "effects.zarr" / "one" / "levels" / "conv2" / "codes" / "clean" / "c" / "1")
    with pytest.raises(RunError, match=r"codes/clean/c/1/0/0/0 is lost"):
        maps.codes("conv2", 7, "clean", 1)
    assert maps.codes("conv2", 7, "clean", 0).any()
    (run.path / "effects.zarr" / "one" / "zarr.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        StoredEffectMaps(effects)


def test_maps_that_were_not_asked_for_and_images_that_are_not_there_are_said(run, effects):
    maps = StoredEffectMaps(effects)
    with pytest.raises(InvalidArgument, match="`position`: expected 0 to 1; received 2"):
        maps.pixel_map("clean", 2)
    with pytest.raises(InvalidArgument, match=r"`node`: expected a concept whose codes were kept \(7, 0\); received 4"):
        maps.codes("conv2", 4, "clean", 0)
    with pytest.raises(InvalidArgument, match="Did you mean `conv2`"):
        maps.nodes("conv")
    path = run.path / "effects" / "two" / "finished.json"
    values = json.loads(path.read_text())
    values["effects"] |= {"maps": None, "detection": None}
    path.write_text(json.dumps(values))
    other = StoredEffects(run, "two")
    assert other.detection_rows().empty
    with pytest.raises(RunError, match="measured without maps"):
        StoredEffectMaps(other)


def test_reading_effects_needs_no_tensorflow():
    modules = "tfcausal.browsing.effect_maps, tfcausal.effect_study.figures"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
