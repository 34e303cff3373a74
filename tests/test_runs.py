import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfcausal import environment as environment_module
from tfcausal.atomic import to_json
from tfcausal.config import RunConfig, config_from_mapping, dump_config
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.runs import RunDirectory, atomic_path, environment, write_atomic


def config(name: str = "try") -> RunConfig:
    models = {"plain": {"method": "plain"}, "ppi": {"method": "ppi"}}
    return config_from_mapping({"version": 1, "name": name, "data": {"source": "textured_digits"}, "models": models})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, config())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Atomic writing.


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "first")
    write_atomic(path, "zweites ü")
    assert path.read_text(encoding="utf-8") == "zweites ü"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["b.txt"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "maps.zarr", "history.csv"])
def test_the_temporary_path_has_the_suffixes_of_the_target(name: str, tmp_path: Path) -> None:
    with atomic_path(tmp_path / name) as partial:
        partial.write_text("")
        assert partial.parent == tmp_path
        assert partial.name != name
        assert partial.name.endswith(f".{name}")
        assert not (tmp_path / name).exists()
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "maps.zarr"
    for content in (["a", "b"], ["c"]):
        with atomic_path(path) as partial:
            partial.mkdir()
            for name in content:
                (partial / name).write_text(name)
    assert names(path) == ["c"]
    assert names(tmp_path) == ["maps.zarr"]


def test_after_an_error_the_old_folder_is_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "maps.zarr").mkdir()
    (tmp_path / "maps.zarr" / "old").touch()

    def interrupted() -> None:
        with atomic_path(tmp_path / "maps.zarr") as partial:
            partial.mkdir()
            (partial / "new").touch()
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        interrupted()
    assert names(tmp_path) == ["maps.zarr"]
    assert names(tmp_path / "maps.zarr") == ["old"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maps.zarr").mkdir()
    (tmp_path / "maps.zarr" / "old").touch()
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with (
        pytest.raises(RunError, match=r"maps\.zarr: cannot be written: No space left on device\. Check the path"),
        atomic_path(tmp_path / "maps.zarr") as partial,
    ):
        partial.mkdir()
    assert names(tmp_path) == ["maps.zarr"]
    assert names(tmp_path / "maps.zarr") == ["old"]


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"a\.txt: expected something to be written to \.partial-\w+\.a\.txt; received"),
        atomic_path(tmp_path / "a.txt"),
    ):
        pass


def test_what_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/a\.txt: cannot be written: .*Check the path, its permissions and"):
        write_atomic(tmp_path / "file" / "a.txt", "")
    with pytest.raises(RunError, match=r"cannot be written: File name too long\."):
        write_atomic(tmp_path / ("a" * 250), "")
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file(run: RunDirectory) -> None:
    run.write_metrics({"accuracy": 0.5})
    code = f"""
import os, signal
from tfcausal.runs import RunDirectory, atomic_path
run = RunDirectory.open({str(run.path)!r})
with run.lock():
    with atomic_path(run.path / "maps.zarr") as folder:
        folder.mkdir()
        (folder / "chunk").touch()
        with atomic_path(run.model_path("ppi")) as model, atomic_path(run.path / "metrics.json") as metrics:
            model.write_text("half")
            metrics.write_text('{{"accura')
            os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == -signal.SIGKILL
    assert run.metrics == {"accuracy": 0.5}
    assert not run.model_path("ppi").exists()
    half_made = run.path.parent / f".partial-0123abcd.{run.name}"
    another = run.path.parent / f".partial-0123abcd.re{run.name}"
    half_made.mkdir()
    another.mkdir()
    assert len(list(run.path.rglob(".partial-*"))) == 3
    with RunDirectory.open(run.path).lock():
        assert list(run.path.rglob(".partial-*")) == []
    assert names(run.path.parent) == [another.name, run.name]


# JSON.


def test_numbers_of_numpy_and_undefined_numbers_become_json() -> None:
    value = {
        "b": np.float32(0.5),
        "a": np.int64(3),
        "flag": np.bool_(True),
        "nan": [float("nan"), np.nan, np.float32("inf"), -np.inf],
        "array": np.array([[1.0, np.nan]]),
        "tuple": (None, "ü"),
        7: {},
    }
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "7": {},
        "a": 3,
        "array": [[1.0, None]],
        "b": 0.5,
        "flag": True,
        "nan": [None, None, None, None],
        "tuple": [None, "ü"],
    }
    assert re.findall(r'^  "(\w+)"', text, re.MULTILINE) == ["7", "a", "array", "b", "flag", "nan", "tuple"]


def test_what_json_has_no_word_for_is_named() -> None:
    with pytest.raises(
        InvalidArgument, match=r"`value\.test\.images\[1\]`: expected a text, .*; received an object of"
    ):
        to_json({"test": {"images": [1, {1, 2}]}})


def test_file_names_that_are_no_valid_text_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_atomic(tmp_path / "a.json", to_json({"skipped": [name]}))
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"skipped": [name]}


# Making and opening.


def test_a_new_run_has_its_config_and_status(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "runs", config())
    assert run.path == tmp_path / "runs" / "try"
    assert names(run.path) == ["models", "run.yaml", "status.json"]
    assert names(run.path / "models") == ["plain", "ppi"]
    assert names(run.path.parent) == ["try"]
    again = RunDirectory.open(run.path)
    assert again.config == config()
    assert again.name == "try"
    assert again.status.state == "running"
    assert again.status.error is None
    age = datetime.now(UTC) - datetime.fromisoformat(again.status.started)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "try").mkdir()
    assert RunDirectory.create(tmp_path, config()).status.state == "running"


@pytest.mark.parametrize(
    ("state", "words"), [("running", "unfinished"), ("complete", "complete"), ("failed", "failed")]
)
def test_a_run_is_never_overwritten(state: Any, words: str, run: RunDirectory) -> None:
    run.set_status(state, "no space" if state == "failed" else None)
    expected = (
        f"{run.path} holds a run that is {words}: go on with it (`--resume {run.path}`), "
        f"choose another name (`--name OTHER`), or remove {run.path}."
    )
    with pytest.raises(RunError) as caught:
        RunDirectory.create(run.path.parent, config())
    assert str(caught.value) == expected


def test_what_is_no_run_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "thesis.tex").touch()
    expected = r"try exists and is not a run directory: choose another name \(`--name OTHER`\), or remove"
    with pytest.raises(RunError, match=expected):
        RunDirectory.create(tmp_path, config())
    (tmp_path / "other").touch()
    with pytest.raises(RunError, match="other exists and is not a run directory"):
        RunDirectory.create(tmp_path, config("other"))
    with pytest.raises(RunError, match=r"other/try: cannot be written: (Not a directory|File exists)\."):
        RunDirectory.create(tmp_path / "other", config())
    assert names(tmp_path / "try") == ["thesis.tex"]


def test_a_damaged_run_is_not_overwritten(run: RunDirectory) -> None:
    (run.path / "status.json").write_text("{")
    with pytest.raises(RunError, match=r"holds a damaged run: choose another name"):
        RunDirectory.create(run.path.parent, config())


def test_of_two_that_create_the_same_run_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def slow_rename(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        RunDirectory.create(tmp_path, config()).write_metrics({"winner": 1})
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    with pytest.raises(RunError, match="holds a run that is unfinished"):
        RunDirectory.create(tmp_path, config())
    assert RunDirectory.open(tmp_path / "try").metrics == {"winner": 1}
    assert names(tmp_path) == ["try"]


def test_a_run_that_could_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        RunDirectory.create(tmp_path, config())
    assert names(tmp_path) == []


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no: expected a run directory; received nothing there\. Check the path\."):
        RunDirectory.open(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file: expected a run directory; received a file"):
        RunDirectory.open(tmp_path / "file")
    with pytest.raises(RunError, match=r"expected a run directory; received a folder without run\.yaml"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("run.yaml", "", r"configuration of this run cannot be used: .*run\.yaml: expected keys and values"),
        ("run.yaml", "version: [", r"run\.yaml, line 1, column 11: expected valid YAML"),
        (
            "run.yaml",
            dump_config(config()).replace("version: 1", "version: 2"),
            r"(?s)version: expected 1, the version that this tfcausal reads; received 2\..*"
            r"Open the run with the release of tfcausal that wrote it \(see environment\.json\), or run it again\.",
        ),
        (
            "status.json",
            "{",
            r"status\.json: expected JSON; it cannot be read .*Remove the run's directory and run again",
        ),
        ("status.json", "\x00", r"status\.json: expected JSON; it cannot be read"),
        ("status.json", "[]", r"status\.json: expected a JSON object; received \[\]"),
        ("status.json", '{"state": "complete"}', r"status\.json: expected the keys state, started, updated, error and"),
        (
            "status.json",
            '{"state": "done", "started": "", "updated": "", "error": null}',
            r'a state of running, complete, failed; received \{"state": "done"',
        ),
        ("status.json", None, r"status\.json: expected the status of the run; the file is missing"),
    ],
)
def test_a_damaged_run_cannot_be_opened(file: str, text: str | None, expected: str, run: RunDirectory) -> None:
    (run.path / file).unlink()
    if text is not None:
        (run.path / file).write_text(text)
    with pytest.raises(RunError, match=expected):
        RunDirectory.open(run.path)


# What is in a run.


def test_the_status_keeps_the_start_and_the_error(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    started = run.status.started
    monkeypatch.setattr("tfcausal.runs._now", lambda: "2100-01-01T00:00:00+00:00")
    run.set_status("failed", error="TrainingDiverged: the loss is NaN")
    status = RunDirectory.open(run.path).status
    assert (status.state, status.error) == ("failed", "TrainingDiverged: the loss is NaN")
    assert (status.started, status.updated) == (started, "2100-01-01T00:00:00+00:00")
    run.set_status("running")
    assert run.status.error is None


def test_a_status_that_makes_no_sense_is_rejected(run: RunDirectory) -> None:
    with pytest.raises(InvalidArgument, match="`state`: expected one of running, complete, failed; received 'done'"):
        run.set_status("done")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="`error`: expected a text with state `failed`, and only then"):
        run.set_status("failed")
    with pytest.raises(InvalidArgument, match="`error`: expected a text with state `failed`, and only then"):
        run.set_status("complete", error="oops")
    assert run.status.state == "running"


def test_metrics_and_environment_are_read_back(run: RunDirectory) -> None:
    run.write_metrics({"plain": {"accuracy": np.float64(0.1), "score": float("nan")}})
    run.add_environment({"seed": 3})
    again = RunDirectory.open(run.path)
    assert again.metrics == {"plain": {"accuracy": 0.1, "score": None}}
    assert again.environment == {"seed": 3}


def test_what_is_not_there_yet_says_how_to_get_it(run: RunDirectory) -> None:
    resume = re.escape(f"`tfcausal run --resume {run.path}`.")
    rest = f": there is none yet; the run is unfinished. Go on with it: {resume}"
    with pytest.raises(RunError, match=rf"metrics\.json{rest}"):
        _ = run.metrics
    with pytest.raises(RunError, match=rf"environment\.json{rest}"):
        _ = run.environment
    with pytest.raises(RunError, match=rf"history\.csv{rest}"):
        run.history("ppi")


def test_damaged_results_are_named(run: RunDirectory) -> None:
    (run.path / "metrics.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"metrics\.json: expected JSON; it cannot be read"):
        _ = run.metrics
    for content in (b"", b"a,b\n\xff,1\n", b"a,b\n1,2\n3\n", b'a,b\n1,"2\n'):
        (run.path / "models" / "ppi" / "history.csv").write_bytes(content)
        with pytest.raises(RunError, match=r"history\.csv: expected a table of epochs; it cannot be read"):
            run.history("ppi")


def test_a_history_is_read_back_to_the_last_bit(run: RunDirectory) -> None:
    loss = np.random.default_rng(0).random(50) * 10.0 ** np.arange(-25, 25)
    rows = [{"epoch": epoch, "loss": value} for epoch, value in enumerate(loss, start=1)]
    rows[1] |= {"val_loss": np.float32(0.1), "rate": float("nan")}
    run.write_history("ppi", rows)
    table = RunDirectory.open(run.path).history("ppi")
    assert list(table.columns) == ["epoch", "loss", "val_loss", "rate"]
    assert table["loss"].to_numpy().tobytes() == loss.tobytes()
    assert table["epoch"].tolist() == list(range(1, 51))
    assert table["val_loss"].notna().tolist() == [False, True] + [False] * 48
    assert table["val_loss"][1] == float(np.float32(0.1))
    assert table["rate"].isna().all()


def test_a_history_has_rows(run: RunDirectory) -> None:
    with pytest.raises(InvalidArgument, match="`rows`: expected at least one epoch; received none"):
        run.write_history("ppi", [])


def test_paths_are_inside_the_run(run: RunDirectory) -> None:
    assert run.report_path == run.path / "report.html"
    assert run.maps_path == run.path / "maps.zarr"
    assert run.model_path("ppi") == run.path / "models" / "ppi" / "model.keras"
    assert run.checkpoint_path("ppi", 12) == run.path / "models" / "ppi" / "checkpoint-0012.weights.h5"
    with pytest.raises(InvalidArgument, match=r"`model`: expected .*; received 'pppi'\. Did you mean `ppi`\?"):
        run.model_path("pppi")
    with pytest.raises(InvalidArgument, match=r"received '\.\.'\. Valid models: plain, ppi\."):
        run.history("..")


def test_checkpoints_are_in_the_order_of_their_epochs(run: RunDirectory) -> None:
    assert run.checkpoints("ppi") == []
    for epoch in (10000, 2, 10, 9):
        write_atomic(run.checkpoint_path("ppi", epoch), str(epoch))
    folder = run.path / "models" / "ppi"
    for other in (
        ".partial-0123abcd.checkpoint-0011.weights.h5",
        "checkpoint-0012.weights.h5.tmp",
        "checkpoint-x.keras",
    ):
        (folder / other).touch()
    assert run.checkpoints("ppi") == [(epoch, run.checkpoint_path("ppi", epoch)) for epoch in (2, 9, 10, 10000)]
    run.drop_checkpoints("ppi", keep=2)
    assert [epoch for epoch, _ in run.checkpoints("ppi")] == [10, 10000]
    run.drop_checkpoints("ppi", keep=5)
    assert [epoch for epoch, _ in run.checkpoints("ppi")] == [10, 10000]
    run.drop_checkpoints("ppi")
    assert run.checkpoints("ppi") == []
    assert len(names(folder)) == 3
    with pytest.raises(InvalidArgument, match="`keep`: expected a number of at least 0; received -1"):
        run.drop_checkpoints("ppi", keep=-1)
    with pytest.raises(
        InvalidArgument, match="`epoch`: expected a number of finished epochs of at least 1; received 0"
    ):
        run.checkpoint_path("ppi", 0)


# The lock.


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed."""
    code = f"""
import time
from tfcausal.runs import RunDirectory
with RunDirectory.open({str(path)!r}).lock():
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_kept_out_until_the_first_is_killed(run: RunDirectory) -> None:
    with holder(run.path) as process:
        expected = rf"try is being written by another process \(pid {process.pid}\)\. Wait until it has ended\."
        with pytest.raises(RunError, match=expected), run.lock():
            pytest.fail("two processes hold the lock")
        assert run.status.state == "running"  # reading needs no lock
        process.send_signal(signal.SIGKILL)
        process.wait()
        with run.lock():
            assert (run.path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_released_after_an_error(run: RunDirectory) -> None:
    def failing() -> None:
        with run.lock():
            raise ValueError("in the middle")

    for _ in range(2):
        with pytest.raises(ValueError, match="in the middle"):
            failing()


def test_a_second_thread_is_kept_out_and_removes_nothing(run: RunDirectory) -> None:
    errors: list[str] = []

    def second() -> None:
        try:
            with RunDirectory.open(run.path).lock():
                pass
        except RunError as error:
            errors.append(str(error))

    with run.lock(), atomic_path(run.report_path) as partial:
        partial.touch()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert partial.exists()
    assert len(errors) == 1


# The environment.


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    result = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_names_versions_and_seed(checkout: Path) -> None:
    found = environment(seed=7)
    assert found["seed"] == 7
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu_count"] == os.cpu_count()
    assert found["git"] is None
    to_json(found)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "PACKAGES", ("numpy", "no-such-package"))
    assert environment(seed=0)["versions"]["no-such-package"] is None


def test_the_environment_tells_nothing_about_the_user(checkout: Path) -> None:
    text = to_json(environment(seed=0))
    assert str(Path.home()) not in text
    assert str(checkout) not in text
    assert not re.search(r'"/', text)
    assert platform.node() not in text


def test_the_revision_of_a_checkout(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    assert environment(seed=0)["git"] is None  # nothing is committed
    (checkout / "a.txt").write_text("1")
    git(checkout, "add", "a.txt")
    git(checkout, "commit", "--quiet", "--message", "first")
    revision = git(checkout, "rev-parse", "HEAD")
    (checkout / "untracked").touch()
    assert environment(seed=0)["git"] == {"revision": revision, "dirty": False}
    (checkout / "a.txt").write_text("2")
    assert environment(seed=0)["git"] == {"revision": revision, "dirty": True}


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "init", "--quiet")
    monkeypatch.setenv("PATH", "")
    assert environment(seed=0)["git"] is None
