"""Where effects lie: what is kept, what may be replaced, and the table of several models."""

from __future__ import annotations

import pytest

from tfcausal.effects.store import EffectStore, finished_models
from tfcausal.effects.table import DETECTION, EFFECTS, ParquetTable, as_frame
from tfcausal.errors import RunError


def rows(model, effects):
    values = {name: [0] * len(effects) for name in EFFECTS.names}
    for name in ("intervention", "reference", "sign", "weighting", "scale", "level", "class_name"):
        values[name] = ["x"] * len(effects)
    return as_frame(
        EFFECTS,
        values
        | {"model": [model] * len(effects), "effect": effects}
        | {"dead": [False] * len(effects), "faithful": [True] * len(effects)},
    )


def finished(root, model, effects, settings=None):
    store = EffectStore(root, model)
    store.begin(settings or {"images": 3}, overwrite=False)
    nothing = as_frame(DETECTION, {name: [] for name in DETECTION.names})
    store.finish({"effects.parquet": [rows(model, effects)], "detection.parquet": [nothing]}, {"n": 3})
    return store


def test_models_share_a_table_and_one_that_is_measured_again_replaces_its_own_rows(tmp_path):
    finished(tmp_path, "plain", [1.0, 2.0])
    store = finished(tmp_path, "ppi", [3.0])
    assert finished_models(tmp_path) == ["plain", "ppi"]
    assert store.findings == {"n": 3}
    again = EffectStore(tmp_path, "plain")
    again.begin({"images": 4}, overwrite=True)
    assert not again.is_finished
    again.finish({"effects.parquet": [rows("plain", [5.0])]}, {})
    table = ParquetTable(tmp_path / "effects.parquet").read()
    assert dict(zip(table["effect"], table["model"], strict=True)) == {3.0: "ppi", 5.0: "plain"}
    assert not (tmp_path / "detection.parquet").exists()


def test_other_settings_are_not_written_over_the_first(tmp_path):
    finished(tmp_path, "plain", [1.0], {"images": 3, "levels": ["a"]})
    store = EffectStore(tmp_path, "plain")
    store.check({"images": 3, "levels": ["a"]}, overwrite=False)
    with pytest.raises(RunError, match=r"measured otherwise \(levels\).*--output OTHER.*--overwrite"):
        store.begin({"images": 3, "levels": ["b"]}, overwrite=False)
    assert store.is_finished
    store.check({"images": 5}, overwrite=True)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "effects" / "plain").mkdir(parents=True)
    (tmp_path / "effects" / "plain" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"expected effects, with settings\.json; received mine\.txt.*--output OTHER"):
        EffectStore(tmp_path, "plain").begin({"images": 3}, overwrite=False)
    assert (tmp_path / "effects" / "plain" / "mine.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected a folder to write to; received a file"):
        EffectStore(tmp_path / "file", "plain").check({}, overwrite=False)


def test_a_folder_that_was_killed_before_its_settings_were_written_is_gone_on_with(tmp_path):
    left = tmp_path / "effects" / "plain" / ".partial-0123abcd.settings.json"
    left.parent.mkdir(parents=True)
    left.touch()
    store = EffectStore(tmp_path, "plain")
    store.begin({"images": 3}, overwrite=False)
    assert (store.folder / "settings.json").is_file()
    assert not left.exists()


def test_what_was_left_half_written_is_removed(tmp_path):
    store = EffectStore(tmp_path, "plain")
    store.begin({"images": 3}, overwrite=False)
    left = store.unfinished / ".partial-0123abcd.images.npz"
    left.parent.mkdir()
    left.touch()
    kept = store.unfinished / "images.npz"
    kept.touch()
    store.begin({"images": 3}, overwrite=False)
    assert not left.exists()
    assert kept.exists()


def test_no_two_levels_have_one_folder(tmp_path):
    store = EffectStore(tmp_path, "plain")
    folders = [store.level(layer).name for layer in ("a/b", "a_b", "A_B", "ünï", "..", "a/b")]
    assert folders == ["a_b", "a_b_2", "A_B_3", "_n_", "level", "a_b"]


def test_damaged_records_say_what_to_do(tmp_path):
    store = finished(tmp_path, "plain", [1.0])
    (store.folder / "finished.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"finished\.json: expected JSON.*--overwrite"):
        _ = store.findings
    (store.folder / "settings.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match=r"settings\.json: expected a JSON object"):
        store.check({"images": 3}, overwrite=False)
