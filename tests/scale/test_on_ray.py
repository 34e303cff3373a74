"""The engine `ray`: the same results as in one process, and nothing lost or double when processes die."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tfcausal.errors import DataError, RunError
from tfcausal.scale import effect_blocks, explain_blocks
from tfcausal.scale import ray_session as ray_session_module
from tfcausal.scale.block_store import BlockStore
from tfcausal.scale.engine import Engine, run_blocks
from tfcausal.scale.ray_session import ray_module, ray_session


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    """One Ray for all tests of this module; the commands that they start have their own."""
    with ray_session("local", cpus=2) as ray:
        yield ray


def on_ray(workers=2):
    return Engine("ray", workers)


def done_on_ray(make_worker, blocks, workers=2, say=lambda text: None):
    finished = []
    run_blocks(make_worker, blocks, lambda *result: finished.append(result), on_ray(workers), say)
    return finished


def test_every_block_is_done_once_by_workers_made_once_in_processes_of_their_own(tmp_path):
    def make():
        with open(tmp_path / "made", "a") as file:
            file.write(f"{os.getpid()}\n")

        def work(block):
            time.sleep(0.1)
            return os.getpid(), block * 10

        return work

    finished = done_on_ray(make, range(30))
    assert sorted((block, result) for block, (_, result) in finished) == [(block, block * 10) for block in range(30)]
    made = (tmp_path / "made").read_text().split()
    assert len(made) == len(set(made)) <= 2
    assert {str(pid) for _, (pid, _) in finished} == set(made)
    assert str(os.getpid()) not in made


def test_workers_share_the_cores(monkeypatch):
    def make():
        return lambda block: {name: value for name, value in os.environ.items() if name.startswith("TF_NUM_")}

    cores = int(ray_module().cluster_resources()["CPU"])
    for workers in (1, 2):
        ((_, threads),) = done_on_ray(make, [0], workers)
        assert threads == {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // workers)), "TF_NUM_INTEROP_THREADS": "1"}


def test_blocks_are_taken_when_they_are_needed():
    taken, most = [], []

    def blocks():
        for block in range(40):
            taken.append(block)
            yield block

    finished = []

    def count(block, result):
        finished.append(block)
        most.append(len(taken) - len(finished))

    run_blocks(lambda: lambda block: block, blocks(), count, on_ray())
    assert len(finished) == 40
    assert max(most) <= 2 * 2 + 1


def test_without_blocks_nothing_is_done():
    assert done_on_ray(lambda: pytest.fail("made"), []) == []


def test_errors_of_workers_are_those_of_one_process():
    def make():
        def work(block):
            if block == "bad":
                raise DataError("text of its own")
            raise ZeroDivisionError("nothing\nto divide by")

        return work

    with pytest.raises(DataError, match=r"^text of its own$"):
        done_on_ray(make, ["bad"])
    with pytest.raises(RunError, match=r"^other could not be done \(ZeroDivisionError: nothing to divide by\)"):
        done_on_ray(make, ["other"])

    def make_none():
        raise DataError("no such model")

    with pytest.raises(DataError, match=r"^no such model$"):
        done_on_ray(make_none, ["any"])


def test_a_process_that_dies_is_replaced_and_every_block_is_done(tmp_path):
    def make():
        def work(block):
            if block in (3, 8) and not (tmp_path / str(block)).exists():
                (tmp_path / str(block)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return block

        return work

    said = []
    finished = done_on_ray(make, range(12), say=said.append)
    assert sorted(finished) == [(block, block) for block in range(12)]
    assert 1 <= len(said) <= 2
    assert all("died (killed, or out of memory)" in text and "will be done again" in text for text in said)


def test_a_block_that_kills_its_process_ends_the_work_and_is_named(tmp_path):
    def make():
        def work(block):
            if block == "poison":
                with open(tmp_path / "begun", "a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return block

        return work

    blocks = [f"block {number}" for number in range(5)]
    blocks.insert(2, "poison")
    with pytest.raises(RunError, match=r"^poison: the process that did it died 3 times .*the same command goes on"):
        done_on_ray(make, blocks)
    assert (tmp_path / "begun").read_text() == "xxx"


def test_workers_that_die_when_they_start_end_the_work():
    def make():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match=r"^No worker can be started: the last of 3 died"):
        done_on_ray(make, [1], workers=1)


def test_more_workers_than_cpus_are_told_and_the_others_do_the_work():
    said = []
    cores = int(ray_module().cluster_resources()["CPU"])
    finished = done_on_ray(lambda: lambda block: block, range(5), workers=cores + 1, say=said.append)
    assert len(finished) == 5
    assert said == [f"Ray has {cores} CPUs for {cores + 1} workers: the others begin when there are more."]


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_images):
    """60 images and two files that are none."""
    folder = write_images(tmp_path_factory.mktemp("many") / "images", 60)
    (folder / "a" / "001x.png").write_text("no image")
    (folder / "b" / "000x.png").touch()
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, explain_many, small_model, source):
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    explain_many(small_model, source, folder, block=7)
    return folder


def test_explanations_are_those_of_one_process(
    explain_many, same_results, small_model, source, undisturbed, tmp_path, monkeypatch
):
    outcome = explain_many(small_model, source, tmp_path, block=7, engine=on_ray())
    assert (outcome.done, outcome.failed) == (60, 2)
    same_results(tmp_path, undisturbed)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "explanations.parquet").iterdir()}
    gone = tmp_path / "explanations.parquet" / "part-000004.parquet"
    gone.unlink()
    explain_many(small_model, source, tmp_path, block=7)  # what Ray began, one process goes on with
    assert [path for path, written in before.items() if path.stat().st_mtime_ns != written] == [gone]
    same_results(tmp_path, undisturbed)
    with monkeypatch.context() as patched:  # where all is done, no Ray is asked for
        patched.setattr(ray_session_module, "ray_module", lambda *arguments: pytest.fail("asked for"))
        assert explain_many(small_model, source, tmp_path, block=7, engine=Engine("ray", 2, "host:1")).done == 60


@contextmanager
def killed_worker(monkeypatch, module, note, moment):
    """While it lasts, a worker that `module._make` makes is killed from outside: block 2 is begun, or just written."""
    make = module._make

    def make_watched(*arguments):
        worker = make(*arguments)

        def work(block):
            if moment == "after":
                worker(block)
            if block.index == 2 and not note.exists():
                note.with_suffix(".new").write_text(str(os.getpid()))
                note.with_suffix(".new").rename(note)
                time.sleep(120)
            if moment == "before":
                worker(block)

        return work

    killed = []

    def kill():
        deadline = time.monotonic() + 120
        while not note.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.append(int(note.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(module, "_make", make_watched)
    thread = Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert killed
    assert killed[0] != os.getpid()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_actor_that_is_killed_loses_nothing_and_doubles_nothing(
    explain_many, same_results, small_model, source, undisturbed, tmp_path, monkeypatch, moment
):
    said = []
    with killed_worker(monkeypatch, explain_blocks, tmp_path / "pid", moment):
        outcome = explain_many(small_model, source, tmp_path / "out", said=said, block=7, engine=on_ray())
    assert any("Block 2 (images 14 to 20)" in text and "will be done again" in text for text in said)
    assert (outcome.done, outcome.failed) == (60, 2)
    assert len(list((tmp_path / "out" / "explanations.parquet").glob("*"))) == 9
    same_results(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_effects_are_those_of_one_process_also_if_an_actor_is_killed(
    measure_many, same_effects, small_model, small_concepts, source, tmp_path, monkeypatch, moment
):
    measure_many(small_model, small_concepts, source, tmp_path / "undisturbed", block=13)
    with killed_worker(monkeypatch, effect_blocks, tmp_path / "pid", moment):
        outcome = measure_many(small_model, small_concepts, source, tmp_path / "out", block=13, engine=on_ray())
    assert (outcome.done, outcome.failed) == (60, 2)
    assert len(list((tmp_path / "out" / "answers.parquet").glob("*"))) == 5
    assert len(list((tmp_path / "out" / "tallies").glob("*"))) == 5
    same_effects(tmp_path / "out", tmp_path / "undisturbed")


def test_a_worker_that_cannot_reach_the_folder_says_so(explain_many, small_model, source, tmp_path, monkeypatch):
    make = explain_blocks._make

    def make_elsewhere(*arguments):
        return make(*arguments[:4], BlockStore(Path("/nowhere/else"), "rows", "maps.zarr"), *arguments[5:])

    monkeypatch.setattr(explain_blocks, "_make", make_elsewhere)
    with pytest.raises(RunError, match=r"/nowhere/else/maps\.zarr is gone, or not to be reached from where"):
        explain_many(small_model, source, tmp_path / "out", block=7, engine=on_ray(1))
    assert not list((tmp_path / "out" / "explanations.parquet").glob("part*"))


# Occlusion in many steps: slow enough to be ended in the middle.
SLOW = ["--method", "occlusion", "--option", "patch=2", "--option", "stride=1", "--option", "batch_size=1"]


@pytest.fixture(scope="module")
def slowly_undisturbed(tmp_path_factory, run_command, small_model, source):
    """What one process makes of the images, slowly."""
    folder = tmp_path_factory.mktemp("slowly") / "out"
    run_command("explain", small_model, source, *SLOW, "--engine", "local", "--block", "1", "--output", folder)
    return folder


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_command_that_is_ended_in_the_middle_goes_on(
    command, run_command, same_results, small_model, source, slowly_undisturbed, tmp_path, processes, ending, code
):
    output = tmp_path / "out"
    words = [*command, "explain", small_model, source, *SLOW, "--engine", "ray", "--workers", "2", "--block", "1"]
    words = [str(word) for word in (*words, "--output", output)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(output.glob("explanations.parquet/part*"))) >= 2:
            break
        time.sleep(0.005)
    started = processes.descendants(process.pid)
    actors = [pid for pid in started if processes.title(pid).startswith("ray::_Actor")]
    assert 1 <= len(actors) <= 2
    os.kill(process.pid, ending)
    told, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert told == ""
    assert processes.are_gone(actors, 60)
    processes.end(started)  # Ray's agents notice only after minutes that the rest of it was killed
    before = {path: path.stat().st_mtime_ns for path in output.glob("explanations.parquet/part*")}
    assert 2 <= len(before) < 62
    if ending == signal.SIGINT:
        assert "Interrupted. What is finished is kept: the same command, without --overwrite, goes on." in said
        assert "Traceback" not in said
    result = run_command(*words[1:])
    assert result.stdout.startswith("Explained 60 images with occlusion, failed 2")
    assert "(raylet)" not in result.stdout + result.stderr
    assert "ray" not in result.stderr.lower().replace(str(tmp_path).lower(), "")
    after = {path: path.stat().st_mtime_ns for path in output.glob("explanations.parquet/part*")}
    assert len(after) == 62
    assert before.items() <= after.items()
    assert not [path for path in output.rglob("*") if "partial" in path.name]
    same_results(output, slowly_undisturbed)


def test_an_address_without_a_cluster_is_an_error(run_command, small_model, source, tmp_path):
    words = [
        "explain",
        small_model,
        source,
        "--engine",
        "ray",
        "--address",
        "127.0.0.1:1",
        "--output",
        tmp_path / "out",
    ]
    result = run_command(*words, check=False)
    assert result.returncode == 1
    assert "Error: 127.0.0.1:1: expected the address of a Ray cluster, from --address or RAY_ADDRESS" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
