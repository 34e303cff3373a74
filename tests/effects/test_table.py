"""The table of effects: its schema, what it refuses, and files that are damaged."""

from __future__ import annotations

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from tfcausal.effects.results import EffectSummary
from tfcausal.effects.table import (
    DETECTION,
    EFFECTS,
    Measurement,
    ParquetTable,
    as_frame,
    effect_rows,
    write_table,
)
from tfcausal.errors import InvalidArgument, RunError

MEASUREMENT = Measurement("plain", "conv2", "zero_out+fgsm", "autoencoder", "do_minus_observed", "class", "probability")


def summary(nodes=(0, 3), classes=(0, 2), values=1, n=5):
    shape = (len(nodes), values, len(classes))
    effect = np.arange(np.prod(shape), dtype=float).reshape(shape)
    return EffectSummary(
        effect,
        effect - 1,
        effect + 1,
        n,
        nodes,
        np.zeros((len(nodes), values)),
        np.asarray(classes),
        np.array([False, True][: len(nodes)]),
        True,
        "zero",
    )


def test_the_schema():
    """The columns that readers of the file count on; a change here is a change of the file format."""
    text, whole, number, flag = pyarrow.string(), pyarrow.int64(), pyarrow.float64(), pyarrow.bool_()
    assert {field.name: field.type for field in EFFECTS} == {
        "model": text,
        "level": text,
        "node": whole,
        "intervention": text,
        "value": number,
        "class": whole,
        "class_name": text,
        "effect": number,
        "low": number,
        "high": number,
        "n": whole,
        "reference": text,
        "sign": text,
        "weighting": text,
        "scale": text,
        "dead": flag,
        "faithful": flag,
    }
    assert {field.name for field in EFFECTS if field.nullable} == {"level", "value", "class_name", "low", "high"}
    assert {"auc", "low", "high", "threshold", "over_confidence"} <= set(DETECTION.names)


def test_one_row_per_node_value_and_class():
    rows = effect_rows(summary(), MEASUREMENT, ("cat", "dog", "eel"))
    assert list(rows.columns) == EFFECTS.names
    assert rows["node"].tolist() == [0, 0, 3, 3]
    assert rows["class"].tolist() == [0, 2, 0, 2]
    assert rows["class_name"].tolist() == ["cat", "eel", "cat", "eel"]
    assert rows["effect"].tolist() == [0, 1, 2, 3]
    assert rows["dead"].tolist() == [False, False, True, True]
    assert set(rows["intervention"]) == {"zero_out+fgsm"}
    assert set(rows["n"]) == {5}


def test_rows_without_names_levels_and_intervals(tmp_path):
    one = summary(nodes=(-1,), classes=(-1,))
    measured = Measurement("plain", None, "fgsm", "model", "do_minus_observed", "posterior", "probability")
    alone = EffectSummary(one.effect, one.low * np.nan, one.high * np.nan, 1, *list(vars(one).values())[4:])
    write_table(tmp_path / "a.parquet", EFFECTS, effect_rows(alone, measured))
    (row,) = ParquetTable(tmp_path / "a.parquet").read().to_dict("records")
    assert (row["node"], row["class"], row["n"]) == (-1, -1, 1)
    assert all(pandas.isna(row[name]) for name in ("level", "class_name", "low", "high"))


def test_a_file_is_read_back_as_it_was_written_and_only_what_is_asked_for(tmp_path):
    path = tmp_path / "deep" / "effects.parquet"
    frame = effect_rows(summary(), MEASUREMENT, ("cat", "dog", "eel"))
    other = effect_rows(summary(), Measurement("ppi", *list(vars(MEASUREMENT).values())[1:]))
    write_table(path, EFFECTS, pandas.concat([frame, other]))
    table = ParquetTable(path)
    assert len(table) == 8
    assert table.values("model") == ["plain", "ppi"]
    pandas.testing.assert_frame_equal(table.read(model="plain"), frame)
    part = table.read(["effect", "node"], model=["ppi"], **{"class": 2})
    assert part.to_dict("list") == {"effect": [1.0, 3.0], "node": [0, 3]}
    assert pandas.read_parquet(path).columns.tolist() == EFFECTS.names
    assert [file.name for file in path.parent.iterdir()] == ["effects.parquet"]


def test_several_concepts_at_once_have_no_place():
    with pytest.raises(InvalidArgument, match=r"nodes of one concept each; received the node \(1, 2\)"):
        effect_rows(summary(nodes=((1, 2),)), MEASUREMENT)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.drop(columns="n"), "received no `n`"),
        (lambda rows: rows.assign(extra=1), "received also `extra`"),
        (lambda rows: rows.assign(node="three"), "`node`: expected values of type int64"),
        (lambda rows: rows.assign(effect=np.nan), "`effect`: expected a value in every row; received 4 rows without"),
    ],
)
def test_what_is_no_such_table_is_refused_and_leaves_no_file(tmp_path, change, text):
    rows = effect_rows(summary(), MEASUREMENT)
    with pytest.raises(InvalidArgument, match=text):
        write_table(tmp_path / "a.parquet", EFFECTS, change(rows))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_column_is_not_asked_for_in_vain(tmp_path):
    write_table(tmp_path / "a.parquet", EFFECTS, effect_rows(summary(), MEASUREMENT))
    for ask in ({"columns": ["efect"]}, {"modl": "plain"}):
        with pytest.raises(InvalidArgument, match=r"Did you mean `(effect|model)`"):
            ParquetTable(tmp_path / "a.parquet").read(**ask)


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"nothing", lambda content: b""])
def test_a_damaged_file_says_so(tmp_path, damage):
    path = tmp_path / "a.parquet"
    write_table(path, EFFECTS, effect_rows(summary(), MEASUREMENT))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"expected a parquet table; it cannot be read .* --overwrite"):
        ParquetTable(path)


def test_damage_in_the_middle_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, EFFECTS, effect_rows(summary(nodes=tuple(range(2)), classes=range(50)), MEASUREMENT))
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match="expected a parquet table; it cannot be read"):
        ParquetTable(path).read()


def test_a_file_with_other_columns_and_none_at_all(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"model": ["a"]}), path)
    with pytest.raises(RunError, match=r"received one without level, node, intervention"):
        ParquetTable(path)
    write_table(path, DETECTION, as_frame(DETECTION, {name: [] for name in DETECTION.names}))
    with pytest.raises(RunError, match=r"expected a table with model, level, node"):
        ParquetTable(path)
    with pytest.raises(RunError, match=r"expected a table; there is none. Measure effects with `tfcausal effects`"):
        ParquetTable(tmp_path / "b.parquet")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    frame = effect_rows(summary(), MEASUREMENT)
    write_table(path, EFFECTS, frame)
    monkeypatch.setattr(pyarrow.parquet, "write_table", lambda table, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_table(path, EFFECTS, frame.head(1))
    assert len(ParquetTable(path)) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
