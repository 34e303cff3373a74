import sys

import pytest

from tfcausal.errors import DataError, InvalidArgument, RunError, UnsupportedOperation
from tfcausal.scale.engine import Engine, check_engine, run_blocks
from tfcausal.scale.ray_session import ray_session


def test_every_block_is_done_once_and_in_order_by_one_worker():
    made, finished = [], []

    def make():
        made.append(1)
        return lambda block: block * 10

    run_blocks(make, range(5), lambda block, result: finished.append((block, result)))
    assert finished == [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]
    assert made == [1]


def test_without_blocks_no_worker_is_made():
    run_blocks(lambda: pytest.fail("made"), [], lambda block, result: pytest.fail("finished"))


def test_blocks_are_taken_when_they_are_needed():
    taken, finished = [], []

    def blocks():
        for block in range(4):
            taken.append(block)
            yield block

    run_blocks(lambda: lambda block: len(taken), blocks(), lambda block, result: finished.append(result))
    assert finished == [1, 2, 3, 4]


def test_errors_on_purpose_come_as_they_are_and_others_name_the_block():
    def worker(block):
        if block == 1:
            raise DataError("text of its own")
        return 1 / block

    with pytest.raises(DataError, match=r"^text of its own$"):
        run_blocks(lambda: worker, [1], lambda block, result: None)
    with pytest.raises(
        RunError, match=r"^0 could not be done \(ZeroDivisionError: division by zero\).*the same command"
    ):
        run_blocks(lambda: worker, [2, 0], lambda block, result: None)


def test_an_interruption_is_not_an_error_of_a_block():
    def worker(block):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_blocks(lambda: worker, [1], lambda block, result: None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("spark",), "expected one of local, ray; received 'spark'"),
        (("ray", 0), "`workers`: expected an integer of at least 1; received 0"),
        (("ray", True), "`workers`: expected an integer of at least 1; received True"),
        (("local", 2), "expected 1 with the engine local; received 2.*--engine ray"),
        (("local", None, "host:1"), "`address`: expected none with the engine local; received 'host:1'"),
    ],
)
def test_engines_that_do_not_exist_are_refused_before_anything(arguments, text):
    with pytest.raises(InvalidArgument, match=text):
        check_engine(*arguments)
    with pytest.raises(InvalidArgument, match=text):
        Engine(*arguments)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedOperation, match=r"pip install 'tfcausal\[ray\]', or use --engine local"):
        run_blocks(lambda: pytest.fail("made"), [1], print, Engine("ray"))
    with pytest.raises(UnsupportedOperation), ray_session():
        pytest.fail("connected")
