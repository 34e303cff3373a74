import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr

from tfcausal.browsing.mask_sample import (
    data_folder,
    lowest_energy,
    mask_energies,
    next_position,
    parts_of,
    random_sample,
)
from tfcausal.data.folder_layout import ImageFile
from tfcausal.errors import InvalidArgument
from tfcausal.runs import RunDirectory


def images_of(counts, parent="images"):
    names = [f"{parent}/{name}/{number}.png" for name, count in counts.items() for number in range(count)]
    return [ImageFile(name, name.split("/")[-2], Path(name), None) for name in names]


IMAGES = images_of({"many": 60, "few": 20, "rare": 2})


def names_of(sample):
    return [image.name for image in sample]


@pytest.fixture
def folder_run(small_run, tmp_path):
    """A run on a folder, as far as the choice of images goes: its configuration, and what it measured."""
    run = shutil.copytree(small_run[0], tmp_path / "runs" / "small")
    settings = (run / "run.yaml").read_text(encoding="utf-8").splitlines()
    start = settings.index("data:")
    end = next(k for k in range(start + 1, len(settings)) if not settings[k].startswith(" "))
    data = ["data:", "  source: image_folder", "  path: cells", "  image_size: [24, 24]", "  channels: 1"]
    (run / "run.yaml").write_text("\n".join([*settings[:start], *data, *settings[end:]]) + "\n", encoding="utf-8")
    return run


def test_a_random_sample_has_the_classes_in_their_proportions_and_grows():
    sample = random_sample(IMAGES, 41, seed=3)
    counts = Counter(image.class_name for image in sample)
    assert counts == {"many": 30, "few": 10, "rare": 1}
    assert names_of(random_sample(IMAGES, 12, seed=3)) == names_of(sample)[:12]
    assert names_of(random_sample(IMAGES, 12, seed=4)) != names_of(sample)[:12]
    assert sorted(names_of(random_sample(IMAGES, 999, seed=3))) == sorted(image.name for image in IMAGES)
    assert all(image.energy is None for image in sample)


def test_the_lowest_energy_comes_first_and_other_images_count_with_their_class():
    energies = {"images/many/0.png": 0.125, "images/many/1.png": 0.75, "images/few/3.png": 0.2}
    sample = lowest_energy(IMAGES, energies, 82, seed=0)
    assert sample[0].name == "images/many/0.png"
    assert {image.class_name for image in sample[1:21]} == {"few"}  # 0.2, its one image and the mean of the class
    assert {image.energy for image in sample[21:79]} == {0.4375}
    assert sample[79].name == "images/many/1.png"
    assert [(image.class_name, image.energy) for image in sample[80:]] == [("rare", None)] * 2
    measured = {image.name: image.energy for image in sample if image.measured}
    assert measured == energies
    assert names_of(sample)[:9] == names_of(lowest_energy(IMAGES, energies, 9, seed=0))
    assert names_of(sample)[1:21] != names_of(lowest_energy(IMAGES, energies, 82, seed=1))[1:21]


@pytest.mark.parametrize(("count", "seed", "text"), [(0, 0, "at least 1; received 0"), (1, -1, "0 or more")])
def test_a_sample_of_nothing_is_refused(count, seed, text):
    with pytest.raises(InvalidArgument, match=text):
        random_sample(IMAGES, count, seed)
    with pytest.raises(InvalidArgument, match=text):
        lowest_energy(IMAGES, {}, count, seed)


def test_energies_are_those_that_the_run_has_measured(folder_run):
    run = RunDirectory.open(folder_run)
    energies = mask_energies(run, "cfcn")
    splits = zarr.open_group(run.maps_path, mode="r")["splits"]
    expected = {}
    for name in splits.group_keys():
        values = splits[name]["mask_energy/cfcn"][:].tolist()
        expected |= dict(zip(splits[name].attrs["names"], values, strict=True))
    assert energies == {name: value for name, value in expected.items() if np.isfinite(value)}
    assert len(energies) > 60
    with pytest.raises(InvalidArgument, match=r"a model of small; received 'cfnc'.*cfcn"):
        mask_energies(run, "cfnc")


def test_a_run_without_masks_in_its_test_has_no_energies(folder_run):
    maps = zarr.open_group(folder_run / "maps.zarr", mode="r+")["splits"]
    for name in maps.group_keys():
        maps[name]["mask_energy/plain"][:] = np.nan
    with pytest.raises(InvalidArgument, match=r"small has measured no mask energy of plain.*Choose images at random"):
        mask_energies(RunDirectory.open(folder_run), "plain")


def test_the_folder_of_a_run_starts_where_the_command_was_given(folder_run, small_run, tmp_path):
    run = RunDirectory.open(folder_run)
    assert data_folder(run, tmp_path) == tmp_path / "cells"
    assert data_folder(RunDirectory.open(small_run[0]), tmp_path) is None


def test_parts_come_from_the_folders_or_from_what_a_run_has_measured(folder_run):
    split = images_of({"a": 2}, "train/images") + images_of({"a": 2}, "test/images")
    assert list(parts_of(split).values()) == ["train", "train", "test", "test"]
    assert parts_of(IMAGES) == {}
    run = RunDirectory.open(folder_run)
    names = zarr.open_group(run.maps_path, mode="r")["splits/validation"].attrs["names"]
    images = [ImageFile("images/a/0.png", "a", Path("0.png"), None), ImageFile(names[3], "a", Path("1.png"), None)]
    # The names of made-up digits are no paths in `images`; what counts is which of them the run has measured.
    assert parts_of(images, run) == {"images/a/0.png": "train", names[3]: "validation"}


def test_the_next_image_can_be_one_without_a_mask():
    done = [False, True, True, False, True]
    assert next_position(done, 0, 1, pass_over=True) == 3
    assert next_position(done, 0, 1, pass_over=False) == 1
    assert next_position(done, 3, 1, pass_over=True) is None
    assert next_position(done, 3, -1, pass_over=True) == 0
    assert next_position(done, 0, -1, pass_over=False) is None
    assert next_position(done, 4, 1, pass_over=False) is None
