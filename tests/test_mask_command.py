import shutil

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

from tfcausal import explorer_command
from tfcausal.cli import app
from tfcausal.errors import DataError, InvalidArgument, RunError, TfCausalError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "cells"
    for name in ("long", "round"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "images" / name / f"{number}.png")
    return root


@pytest.fixture
def trained(small_run, folder):
    """A run on the folder, as far as its configuration says."""
    run = shutil.copytree(small_run[0], folder.parent / "runs" / "small")
    lines = (run / "run.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("data:")
    end = next(k for k in range(start + 1, len(lines)) if not lines[k].startswith(" "))
    source = ["data:", "  source: image_folder", f"  path: {folder}", "  image_size: [24, 24]", "  channels: 1"]
    (run / "run.yaml").write_text("\n".join([*lines[:start], *source, *lines[end:]]) + "\n", encoding="utf-8")
    return run


@pytest.fixture
def mask(monkeypatch):
    """The command without a server: what it would have started, and what it said."""

    def run(*words):
        started = []

        def explore(*arguments):
            started.append(arguments)
            return 0

        monkeypatch.setattr(explorer_command, "explore", explore)
        result = CliRunner().invoke(app, ["mask", *map(str, words)])
        if isinstance(result.exception, TfCausalError):
            assert started == []
            raise result.exception
        return result, started

    return run


def test_the_page_opens_on_the_folder_with_the_sample_that_was_asked_for(mask, folder):
    result, [(runs, port, address, browser, page, masks, _)] = mask(
        folder, "--images", "4", "--seed", "7", "--port", "8611", "--no-browser"
    )
    assert result.exit_code == 0
    assert (str(runs), port, address, browser) == ("runs", 8611, "localhost", False)
    assert page == "masks?order=random&count=4&seed=7"
    assert masks == folder
    _, [(_, _, _, _, page, _, _)] = mask(folder)
    assert page == "masks?order=random&count=6&seed=0"


def test_a_run_orders_the_images_by_its_mask_energy(mask, folder, trained):
    _, [(runs, _, _, _, page, _, _)] = mask(folder, "--run", trained)
    assert runs == trained
    assert page == "masks?order=energy&count=6&seed=0&run=small&model=plain"
    _, [(_, _, _, _, page, _, _)] = mask(folder, "--run", trained, "--model", "cfcn")
    assert page.endswith("&run=small&model=cfcn")
    with pytest.raises(InvalidArgument, match=r"a model of small; received 'cfnc'"):
        mask(folder, "--run", trained, "--model", "cfnc")
    maps = zarr.open_group(trained / "maps.zarr", mode="r+")["splits"]
    for name in maps.group_keys():
        maps[name]["mask_energy/plain"][:] = np.nan
    with pytest.raises(InvalidArgument, match="has measured no mask energy of plain"):
        mask(folder, "--run", trained, "--model", "plain")


def test_a_run_on_other_images_is_refused(mask, folder, trained, small_run):
    other = shutil.copytree(folder, folder.parent / "other")
    with pytest.raises(InvalidArgument, match=f"a run that was trained on {other}; received {folder}"):
        mask(other, "--run", trained)
    with pytest.raises(InvalidArgument, match="received images made by tfcausal"):
        mask(folder, "--run", small_run[0])
    with pytest.raises(RunError, match="expected a run directory"):
        mask(folder, "--run", folder)


def test_folders_that_no_mask_can_be_drawn_in_are_refused(mask, folder, tmp_path):
    with pytest.raises(DataError, match="nothing at that place"):
        mask(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folder inside"):
        mask(tmp_path / "empty")
    (folder / "masks").touch()
    with pytest.raises(RunError, match="a folder to save masks in; received a file"):
        mask(folder)


def test_files_without_a_place_are_named_and_the_page_opens(mask, folder):
    for number in range(12):
        (folder / "images" / "long" / f"{number:02d}.bmp").touch()
    result, started = mask(folder)
    assert len(started) == 1
    assert "Left out: images/long/00.bmp: expected .png" in result.stderr
    assert "Left out: 2 more files" in result.stderr


def test_options_that_do_not_go_together_are_refused(mask, folder, trained):
    result, started = mask(folder, "--model", "plain")
    assert "--model goes with --run" in result.stderr
    assert (result.exit_code, started) == (2, [])
    result, started = mask(folder, "--run", trained, "--runs", "runs")
    assert "leave out --runs" in result.stderr
    assert (result.exit_code, started) == (2, [])
    result, started = mask(folder, "--images", "0")
    assert (result.exit_code, started) == (2, [])


def test_the_help_has_examples_and_needs_no_tensorflow(run_command):
    text = run_command("mask", "--help").stdout
    assert "tfcausal mask data/cells --images 50 --seed 1" in text
    assert "masks/<class>/<same name>.png" in text
