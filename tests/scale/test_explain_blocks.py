"""`tfcausal explain --engine local`: results, resuming, refusals."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import keras
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zarr
from rich.console import Console

from tfcausal.errors import DataError, InvalidArgument, RunError, UnsupportedOperation
from tfcausal.explain import ImageExplainer, Settings, explain_files
from tfcausal.progress import ConsoleProgress
from tfcausal.scale.block_store import BlockStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory, explain_many, small_model, images):
    """The results of 20 images in blocks of 6; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    outcome = explain_many(small_model, images, folder, block=6)
    assert (outcome.done, outcome.failed, outcome.first) == (20, 0, ())
    return folder


def parts(folder):
    """By name, when a part was written and which file it is."""
    found = (folder / "explanations.parquet").glob("part-*")
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def part(folder, index):
    return folder / "explanations.parquet" / f"part-{index:06}.parquet"


def without_leftovers(folder):
    return not [path for path in folder.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "grad_cam", "options": {"layer": "conv1"}, "target": "2"},
        {"method": "gradient", "pixels": (-1.0, 1.0), "reducer": "abs_max", "options": {"batch_size": 4}},
    ],
)
def test_the_maps_and_answers_are_those_of_explaining_files(
    explain_many, results, small_model, images, tmp_path, settings
):
    progress = ConsoleProgress(Console(quiet=True))
    records = explain_files(small_model, [images], tmp_path / "files", Settings(**settings), progress)
    explain_many(small_model, images, tmp_path / "blocks", settings, block=7)
    rows, maps = results(tmp_path / "blocks")
    assert maps.dtype == np.float32
    assert len(rows) == len(records) == 20
    for record, (_, row), saliency in zip(records, rows.iterrows(), maps, strict=True):
        expected = np.load(tmp_path / "files" / record["map"])
        np.testing.assert_allclose(saliency, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        assert record["file"].endswith(row["image"])
        assert row[["predicted_class", "explained_class", "map_is_zero"]].tolist() == [
            record[name] for name in ("predicted_class", "explained_class", "map_is_zero")
        ]
        for name in ("predicted_probability", "explained_probability"):
            assert row[name] == pytest.approx(record[name], rel=1e-6)
    assert rows["error"].isna().all()


def test_the_folder_says_what_was_done(finished, small_model, images):
    job = json.loads((finished / "job.json").read_text())
    assert (job["method"], job["block"], job["image_shape"]) == ("wbp", 6, [8, 6, 3])
    assert (job["source"]["images"], job["source"]["places"]) == (20, [str(images)])
    assert job["versions"]["keras"] == keras.__version__
    maps = zarr.open_array(finished / "maps.zarr", mode="r")
    assert maps.chunks == (6, 8, 6, 3)
    assert maps.attrs["method"] == "wbp"
    assert maps.attrs["model"] == str(small_model)
    assert sorted(parts(finished)) == [part(finished, index).name for index in range(4)]
    assert len([path for path in (finished / "maps.zarr").iterdir() if path.name.startswith("c.")]) == 4
    schema = pyarrow.parquet.read_schema(part(finished, 0))
    assert str(schema.field("explained_probability").type) == "float"
    assert without_leftovers(finished)


def test_a_run_gives_the_names_of_its_classes(small_run, tmp_path, explain_many, results, images):
    explain_many(small_run[0], images, tmp_path, {"target": "7"}, model_name="ppi")
    rows, _ = results(tmp_path)
    assert set(rows["explained_name"]) == {"7"}
    assert set(rows["predicted_name"]) <= set("0123456789")
    assert zarr.open_array(tmp_path / "maps.zarr", mode="r").attrs["class_names"] == list("0123456789")


def test_a_model_without_softmax_answers_with_logits(tmp_path, explain_many, results, images):
    inputs = keras.Input((8, 6, 3))
    keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs))).save(tmp_path / "model.keras")
    explain_many(tmp_path / "model.keras", images, tmp_path / "out")
    rows, _ = results(tmp_path / "out")
    assert "predicted_logit" in rows.columns
    assert "predicted_probability" not in rows.columns


def test_tables_give_what_files_give(explain_many, finished, results, small_model, images, tmp_path):
    files = sorted(images.rglob("*.png"))
    content = [file.read_bytes() for file in files]
    struct_rows = [{"bytes": value, "path": None} for value in content]
    tables = {
        "bytes": pyarrow.array(content),
        "struct": pyarrow.array(struct_rows, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        "paths": pyarrow.array([str(file) for file in files]),
    }
    _, expected = results(finished)
    for name, column in tables.items():
        pyarrow.parquet.write_table(pyarrow.table({"x": column}), tmp_path / f"{name}.parquet", row_group_size=4)
        explain_many(small_model, tmp_path / f"{name}.parquet", tmp_path / name, block=6)
        rows, maps = results(tmp_path / name)
        np.testing.assert_array_equal(maps, expected)
        assert rows["error"].isna().all()


def test_an_address_gives_what_a_folder_gives(explain_many, finished, same_results, small_model, images, tmp_path):
    explain_many(small_model, f"file://{images}", tmp_path, block=6)
    same_results(tmp_path, finished, within=0)


def bomb():
    """A PNG file of 30000 x 30000 pixels, by its header."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    written = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_images_that_cannot_be_read_are_told_and_the_others_are_explained(
    explain_many, finished, results, small_model, images, tmp_path
):
    source = shutil.copytree(images, tmp_path / "source")
    good = (source / "a" / "000.png").read_bytes()
    bad = {
        "a/000x.png": (b"\x00\x01 no image", "neither PNG nor JPEG"),
        "a/004x.png": (good[:-40], "cannot be decoded"),
        "b/001x.png": (bomb(), "too large"),
        "b/019x.png": (b"a text, called an image\n", "neither PNG nor JPEG"),
        "b/019y.png": (b"", "empty"),
    }
    for name, (content, _) in bad.items():
        (source / name).write_bytes(content)
    outcome = explain_many(small_model, source, tmp_path / "out", block=6)
    assert (outcome.done, outcome.failed) == (20, 5)
    assert {name for name, _ in outcome.first} == set(bad)
    rows, maps = results(tmp_path / "out")
    assert rows["position"].tolist() == list(range(25))
    failed = rows["error"].notna()
    assert rows["image"][failed].tolist() == sorted(bad)
    for (_, text), error in zip(bad.values(), rows["error"][failed], strict=True):
        assert text in error
    assert rows["predicted_class"][failed].isna().all()
    assert np.isnan(maps[failed]).all()
    _, expected = results(finished)
    np.testing.assert_allclose(maps[~failed], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_an_image_with_which_the_model_overflows_fails_alone(explain_many, results, images, tmp_path):
    inputs = keras.Input((8, 6, 3))
    x = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Activation("exponential")(1000.0 * x - 500.0)))
    model.save(tmp_path / "model.keras")
    dark = tmp_path / "images" / "dark.png"
    shutil.copytree(images / "a", tmp_path / "images")
    from PIL import Image

    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(dark)
    outcome = explain_many(tmp_path / "model.keras", tmp_path / "images", tmp_path / "out", {"method": "gradient"})
    assert (outcome.done, outcome.failed) == (1, 10)
    rows, maps = results(tmp_path / "out")
    assert rows["image"][rows["error"].isna()].tolist() == ["dark.png"]
    assert np.isfinite(maps[rows["error"].isna()]).all()
    assert "overflow" in rows["error"][0]


def test_what_is_finished_is_not_done_again(explain_many, finished, same_results, small_model, images, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    before = parts(folder)
    part(folder, 1).unlink()
    (folder / "maps.zarr" / "c.1.0.0.0").unlink()
    chunks = {path.name: path.stat().st_mtime_ns for path in (folder / "maps.zarr").glob("c.*")}
    outcome = explain_many(small_model, images, folder, block=6)
    assert (outcome.done, outcome.failed) == (20, 0)
    after = parts(folder)
    assert [name for name in after if after[name] != before[name]] == [part(folder, 1).name]
    for name, written in chunks.items():
        assert (folder / "maps.zarr" / name).stat().st_mtime_ns == written
    same_results(folder, finished, within=0)


def test_a_finished_job_says_so_again_and_makes_no_worker(explain_many, finished, monkeypatch, small_model, images):
    before = parts(finished)
    monkeypatch.setattr(BlockStore, "write", lambda *arguments: pytest.fail("written"))
    assert explain_many(small_model, images, finished, block=6).done == 20
    assert parts(finished) == before


def test_what_was_left_half_written_is_replaced(explain_many, finished, same_results, small_model, images, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    for index in (1, 3):
        whole = part(folder, index).read_bytes()
        part(folder, index).with_name(f".partial-0123abcd.{part(folder, index).name}").write_bytes(whole[:100])
        part(folder, index).unlink()
    chunk = folder / "maps.zarr" / "c.3.0.0.0"
    chunk.with_name("c.3.0.0.0123.partial").write_bytes(b"half")
    chunk.write_bytes(chunk.read_bytes()[:20])  # its rows were not there yet
    (folder / ".partial-00000000.maps.zarr").mkdir()
    explain_many(small_model, images, folder, block=6)
    assert without_leftovers(folder)
    same_results(folder, finished, within=0)


@pytest.mark.parametrize(
    ("target", "name", "done"),
    [
        (ImageExplainer, "__call__", 1),  # its first call is the trial before anything is written
        (zarr.Array, "__setitem__", 2),
        (pyarrow.parquet, "write_table", 2),
    ],
)
def test_an_interruption_leaves_whole_blocks_and_the_same_call_goes_on(
    explain_many, finished, ended_at_the_third_call, same_results, small_model, images, tmp_path, target, name, done
):
    with ended_at_the_third_call(target, name):
        explain_many(small_model, images, tmp_path, block=6)
    assert sorted(parts(tmp_path)) == [part(tmp_path, index).name for index in range(done)]
    assert without_leftovers(tmp_path)
    before = parts(tmp_path)
    explain_many(small_model, images, tmp_path, block=6)
    assert before.items() <= parts(tmp_path).items()
    same_results(tmp_path, finished, within=0)


@pytest.mark.parametrize("change", ["add", "remove", "size"])
def test_other_images_are_refused(explain_many, finished, results, small_model, images, tmp_path, change):
    folder, source = shutil.copytree(finished, tmp_path / "out"), shutil.copytree(images, tmp_path / "source")
    assert explain_many(small_model, source, folder, block=6).done == 20  # moved, and otherwise the same
    file = source / "a" / "000.png"
    if change == "add":
        shutil.copy(file, source / "new.png")
    elif change == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"0")
    before = parts(folder)
    with pytest.raises(RunError, match=r"begun with other images: 20 of .*; received \d+ of .*--overwrite"):
        explain_many(small_model, source, folder, block=6)
    assert parts(folder) == before
    outcome = explain_many(small_model, source, folder, {"overwrite": True}, block=6)
    assert outcome.done == {"add": 21, "remove": 19, "size": 20}[change]
    rows, maps = results(folder)
    assert len(rows) == len(maps) == outcome.done
    assert not set(parts(folder).values()) & set(before.values())


@pytest.mark.parametrize(
    ("settings", "options", "text"),
    [
        ({"method": "gradient"}, {}, r"method: 'wbp', now 'gradient'"),
        ({"reducer": "sum"}, {}, r"reducer: None, now 'sum'"),
        ({"target": "1"}, {}, r"target: None, now '1'"),
        ({"pixels": (-1.0, 1.0)}, {}, r"pixels: \[0.0, 1.0\], now \[-1.0, 1.0\]"),
        ({"options": {"batch_size": 3}}, {}, r"options: \{\}, now \{'batch_size': 3\}"),
        ({}, {"block": 5}, r"block: 6, now 5"),
        ({}, {"block": None}, r"block: 6, now 1024"),
    ],
)
def test_other_settings_are_refused(explain_many, finished, small_model, images, settings, options, text):
    before = parts(finished)
    with pytest.raises(RunError, match=f"begun with other settings .*{text}.*--output OTHER.*--overwrite"):
        explain_many(small_model, images, finished, settings, **{"block": 6, **options})
    assert parts(finished) == before


def test_another_model_under_the_same_name_is_refused(explain_many, finished, small_model, images, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    model = keras.models.load_model(small_model)
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    model.save(tmp_path / "model.keras")
    with pytest.raises(RunError, match="model_sha256"):
        explain_many(tmp_path / "model.keras", images, folder, block=6)


def test_a_folder_with_something_else_is_left_alone(explain_many, finished, small_model, images, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"expected an empty folder, or job\.json in it; received mine\.txt"):
        explain_many(small_model, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(RunError, match="expected a folder to write to; received a file"):
        explain_many(small_model, images, tmp_path / "mine.txt")
    explain_many(small_model, images, tmp_path, {"overwrite": True})
    assert (tmp_path / "mine.txt").read_text() == "mine"
    for content, text in (("{", "expected JSON"), ("[]", "received other JSON"), ('{"source": "abc"}', "other JSON")):
        (tmp_path / "job.json").write_text(content)
        with pytest.raises(RunError, match=rf"job\.json: .*{text}"):
            explain_many(small_model, images, tmp_path)
    folder = shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(folder / "maps.zarr")
    with pytest.raises(RunError, match=r"has lost its maps\.zarr"):
        explain_many(small_model, images, folder, block=6)


def test_overwriting_takes_nothing_that_is_not_of_such_a_job(explain_many, small_model, images, tmp_path):
    """A run has a `maps.zarr`, too."""
    (tmp_path / "maps.zarr").mkdir()
    (tmp_path / "maps.zarr" / "mine").touch()
    with pytest.raises(RunError, match=r"with job\.json, to overwrite; received maps\.zarr without it"):
        explain_many(small_model, images, tmp_path, {"overwrite": True})
    assert (tmp_path / "maps.zarr" / "mine").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_while_it_overwrites_leaves_what_can_be_gone_on_with(
    explain_many, finished, same_results, small_model, images, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(folder / "explanations.parquet")
    (folder / "maps.zarr" / "zarr.json").unlink()  # removed in part
    explain_many(small_model, images, folder, block=6)
    same_results(folder, finished, within=0)


def test_results_are_not_written_among_the_images(explain_many, small_model, images, tmp_path):
    source = shutil.copytree(images, tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    for output in (source / "out", source, tmp_path / "link" / "a" / "out"):
        with pytest.raises(InvalidArgument, match=r"`output`: expected a folder outside of the images in .*/source"):
            explain_many(small_model, source, output)
    with pytest.raises(InvalidArgument, match=r"a folder of a file system of this machine; received s3:/bucket/out"):
        explain_many(small_model, source, Path("s3://bucket/out"))
    assert sorted(path.name for path in source.iterdir()) == ["a", "b"]
    assert explain_many(small_model, source / "a", source / "out").done == 10


def test_two_at_the_same_time_are_refused(explain_many, small_model, images, tmp_path):
    with BlockStore(tmp_path, "rows", "maps.zarr").begin({"source": {}, "block": 1}, Path.mkdir, overwrite=False):
        code = (
            "import sys; from pathlib import Path; from tfcausal.atomic import folder_lock\n"
            "with folder_lock(Path(sys.argv[1])): pass"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "is being written by another process" in result.stderr


@pytest.mark.parametrize(
    ("settings", "options", "kind", "text"),
    [
        ({"method": "wpb"}, {}, InvalidArgument, "Did you mean `wbp`"),
        ({"target": "zebra"}, {}, InvalidArgument, r"a class index in \[0, 2\]; received 'zebra'"),
        ({"options": {"layer": "conv1"}}, {}, InvalidArgument, "options of wbp"),
        ({"reducer": "median"}, {}, InvalidArgument, "sum, mean, max, abs_max"),
        ({"size": (9, 6)}, {}, InvalidArgument, "received 9 x 6"),
        ({}, {"block": 0}, InvalidArgument, "a number of images, 1 or more, here 3728270 at most; received 0"),
        ({}, {"column": "image"}, InvalidArgument, "Leave out --column"),
        ({}, {"model_name": "ppi"}, InvalidArgument, "Leave out --model"),
    ],
)
def test_bad_settings_are_errors_before_anything_is_written(
    explain_many, small_model, images, tmp_path, settings, options, kind, text
):
    with pytest.raises(kind, match=text):
        explain_many(small_model, images, tmp_path / "out", settings, **options)
    assert not (tmp_path / "out").exists()


def test_empty_sources_are_errors_before_anything_is_written(explain_many, small_model, tmp_path):
    (tmp_path / "empty").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"x": pyarrow.array([], pyarrow.binary())}), tmp_path / "none.parquet")
    for place, text in (("empty", "received none in it"), ("none.parquet", "tables with images in their rows")):
        with pytest.raises(DataError, match=text):
            explain_many(small_model, tmp_path / place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_takes_no_images_is_refused(explain_many, images, tmp_path):
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    with pytest.raises(UnsupportedOperation, match=r"takes \(None, 5\)"):
        explain_many(tmp_path / "model.keras", images, tmp_path / "out")


def test_the_command_tells_what_failed(run_command, small_model, images, tmp_path):
    source = shutil.copytree(images, tmp_path / "images")
    for number in range(7):
        (source / f"{number}.png").write_text("no image")
    words = ["explain", small_model, source, "--engine", "local", "--block", "6", "--output", tmp_path / "out"]
    result = run_command(*words)
    first, *lines = result.stdout.splitlines()
    assert first == f"Explained 20 images with wbp, failed 7: {tmp_path / 'out'}"
    assert lines[0] == "  0.png: the content is neither PNG nor JPEG"
    assert len(lines) == 6
    assert "and 2 more" in lines[5]
    assert "explaining (wbp)             27/27" in result.stderr
    shutil.rmtree(source / "a")
    shutil.rmtree(source / "b")
    result = run_command(*words[:-1], tmp_path / "none", check=False)
    assert result.returncode == 1
    assert result.stdout.startswith("Explained 0 images with wbp, failed 7")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--workers", "2"], "--workers needs --engine local or --engine ray"),
        (["--column", "x"], "--column needs --engine"),
        (["--engine", "spark"], "expected one of local, ray; received 'spark'"),
        (["--engine", "local", "--workers", "2"], "expected 1 with the engine local"),
    ],
)
def test_bad_command_lines_end_without_a_traceback(run_command, small_model, images, tmp_path, words, text):
    result = run_command("explain", small_model, images, *words, "--output", tmp_path / "out", check=False)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_command_that_is_ended_in_the_middle_goes_on(
    command, run_command, write_images, same_results, small_model, tmp_path, ending, code
):
    source = write_images(tmp_path / "images", 300)
    words = [
        *command,
        "explain",
        small_model,
        source,
        "--engine",
        "local",
        "--block",
        "2",
        "--output",
        tmp_path / "out",
    ]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(parts(tmp_path / "out")) < 3:
        time.sleep(0.002)
    os.kill(process.pid, ending)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    before = parts(tmp_path / "out")
    assert 3 <= len(before) < 150
    if ending == signal.SIGINT:
        assert "Interrupted. What is finished is kept: the same command, without --overwrite, goes on." in said
        assert "Traceback" not in said
    result = run_command(*words[1:])
    assert result.stdout.startswith("Explained 300 images")
    after = parts(tmp_path / "out")
    assert len(after) == 150
    assert before.items() <= after.items()
    run_command(*words[1:-1], tmp_path / "undisturbed")
    same_results(tmp_path / "out", tmp_path / "undisturbed", within=0)
