"""What a run keeps of every image, written and read again."""

import shutil

import numpy as np
import pytest
import zarr

from tfcausal.browsing.image_table import attention_change, choose, disagreement, image_table, order
from tfcausal.browsing.maps import MapWriter, attention, from_codes, to_codes, write_split
from tfcausal.browsing.stored_split import StoredSplit, split_names
from tfcausal.config import config_from_mapping
from tfcausal.data.image_set import ImageSet
from tfcausal.data.loading import load_data
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory

LABELS = np.array([0, 1, 2, 0, 1, 2, 0])
CONTEXTS = np.array([0, 1, 0, 1, 1, 2, 0])
ANSWERS = {
    "one": np.float32([[0.6, 0.2, 0.1, 0.1]] * 3 + [[0.1, 0.7, 0.1, 0.1]] * 4),
    "two": np.float32([[0.2, 0.1, 0.4, 0.3]] * 7),
}


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 10, 13, 1)).astype(np.float32) / np.float32(255.0) - np.float32(0.5)
    masks = (random.random((7, 10, 13, 1)) < 0.3).astype(np.float32)
    return ImageSet(
        names=tuple(f"images/{number}" for number in range(7)),
        labels=LABELS,
        class_names=("a", "b", "c", "d"),
        image_shape=(10, 13, 1),
        has_mask=np.array([True, False, True, True, True, True, True]),
        reader=lambda indices: (images[indices], masks[indices]),
        contexts=CONTEXTS,
        context_agrees=CONTEXTS == LABELS,
        context_names=("x", "y", "z"),
    )


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(1).normal(size=(7, 10, 13)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory, split, maps):
    models = {"two": {"method": "plain"}, "one": {"method": "plain"}, "unmeasured": {"method": "plain"}}
    settings = {"version": 1, "name": "kept", "data": {"source": "textured_digits"}, "models": models}
    run = RunDirectory.create(tmp_path_factory.mktemp("runs"), config_from_mapping(settings))
    group = zarr.create_group(run.maps_path).create_group("splits/test")
    done = []
    write_split(group, split, (-0.5, 0.5), "wbp", 3, done.append)
    assert done == [3, 3, 1]
    for name, answers in ANSWERS.items():
        writer = MapWriter(group, name, split.image_shape, 7, 3)
        for start in (0, 3, 6):
            part = slice(start, min(start + 3, 7))
            writer(part, maps[part] if name == "one" else -maps[part])
        writer.finish(answers, np.linspace(0, 1, 7))
    return run


@pytest.fixture
def stored(run):
    return StoredSplit(run, "test")


def test_what_was_written_is_read_again(stored, split, maps):
    images, masks = split.read(np.arange(7))
    assert np.array_equal(stored.images(range(7)), images)
    assert np.array_equal(stored.images([5, 1]), images[[5, 1]])
    np.testing.assert_allclose(stored.pictures([3])[0], images[3] + 0.5, atol=1e-6)
    first, unknown = stored.masks([2, 1])
    assert np.array_equal(first, masks[2, ..., 0] > 0.5)
    assert unknown is None
    assert np.array_equal(stored.maps("one", [6, 0]), maps[[6, 0]])
    assert np.array_equal(stored.probabilities("two"), ANSWERS["two"])
    assert stored.models == ("two", "one")  # as in the configuration
    assert (stored.names, stored.class_names, stored.method) == (split.names, split.class_names, "wbp")
    area = stored.column("mask_area")
    np.testing.assert_allclose(np.delete(area, 1), np.delete(masks.mean(axis=(1, 2, 3)), 1), rtol=1e-6)
    assert np.isnan(area[1])
    assert stored.find("images/4") == 4


def test_eight_bit_pixels_come_back_bit_by_bit_and_others_within_half_a_step():
    exact = np.arange(256, dtype=np.float32) / np.float32(255.0)
    for low, high in ((0.0, 1.0), (-0.5, 0.5)):
        shown = exact + np.float32(low)
        assert np.array_equal(from_codes(to_codes(shown, (low, high)), (low, high)), shown)
    fine = np.linspace(-0.5, 0.5, 9999, dtype=np.float32)
    assert np.abs(from_codes(to_codes(fine, (-0.5, 0.5)), (-0.5, 0.5)) - fine).max() <= 0.5 / 65535 + 1e-7
    assert to_codes(np.array([-9.0, 9.0]), (-0.5, 0.5)).tolist() == [0, 65535]


def test_attention_is_the_share_of_positive_saliency_in_every_cell(maps):
    cells = attention(maps, cells=4)
    rows, columns = [0, 2, 5, 7, 10], [0, 3, 6, 9, 13]
    for number, saliency in enumerate(np.maximum(maps.astype(float), 0.0)):
        for row in range(4):
            for column in range(4):
                cell = saliency[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
                assert cells[number, row, column] == pytest.approx(cell.sum() / saliency.sum(), rel=1e-5)
    assert attention(-np.ones((1, 4, 4))).sum() == 0
    assert attention(np.ones((1, 3, 20))).shape == (1, 3, 8)


def test_the_table_says_what_the_answers_and_labels_say(stored):
    table = image_table(stored, "one")
    assert table["predicted"].tolist() == ["a"] * 3 + ["b"] * 4
    assert table["right"].tolist() == [True, False, False, False, True, False, False]
    assert table["confidence"].tolist() == pytest.approx([0.6] * 3 + [0.7] * 4)
    np.testing.assert_allclose(table["loss"], -np.log([0.6, 0.2, 0.1, 0.1, 0.7, 0.1, 0.1]), rtol=1e-6)
    assert table["group"].iloc[[0, 2]].tolist() == ["class a, context agrees", "class c, context conflicts"]
    assert table["context"].tolist() == ["x", "y", "x", "y", "y", "z", "x"]
    np.testing.assert_allclose(table["mask_energy"], np.linspace(0, 1, 7), rtol=1e-6)


def test_rows_are_chosen_by_every_condition_together(stored):
    table = image_table(stored, "one")
    assert choose(table, labels=["a", "c"])["position"].tolist() == [0, 2, 3, 5, 6]
    assert choose(table, labels=["a"], answer="wrong")["position"].tolist() == [3, 6]
    assert choose(table, agreement="conflicts")["position"].tolist() == [2, 3]
    assert choose(table, contexts=["x"], answer="right")["position"].tolist() == [0]
    assert choose(table, group="class b, context agrees")["position"].tolist() == [1, 4]
    assert len(choose(table)) == 7


def test_rows_are_ordered_with_equal_ones_as_they_are_and_unknown_ones_last(stored):
    table = image_table(stored, "one")
    assert order(table, "confidence")["position"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert order(table, "confidence", descending=True)["position"].tolist() == [3, 4, 5, 6, 0, 1, 2]
    table.loc[0, "mask_energy"] = np.nan
    assert order(table, "mask_energy", descending=True)["position"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(InvalidArgument, match="Did you mean `confidence`"):
        order(table, "confidense")


def test_two_models_differ_by_the_total_variation_distance(stored, maps):
    expected = [0.5 * (0.4 + 0.1 + 0.3 + 0.2)] * 3 + [0.5 * (0.1 + 0.6 + 0.3 + 0.2)] * 4
    assert disagreement(stored, "one", stored, "two").tolist() == pytest.approx(expected)
    shares = [attention(maps), attention(-maps)]
    changed = attention_change(stored, "one", stored, "two")
    assert changed.tolist() == pytest.approx((0.5 * np.abs(shares[0] - shares[1]).sum(axis=(1, 2))).tolist())
    assert attention_change(stored, "one", stored, "one").tolist() == [0.0] * 7


def test_names_that_are_not_there_are_refused_with_what_is(run, stored):
    with pytest.raises(InvalidArgument, match="Valid splits: test"):
        StoredSplit(run, "../../etc")
    with pytest.raises(InvalidArgument, match="model measured on test; received 'three'"):
        stored.maps("three", [0])
    with pytest.raises(InvalidArgument, match="measured on test"):
        stored.probabilities("unmeasured")
    with pytest.raises(InvalidArgument, match="positions from 0 to 6; received 0 to 7"):
        stored.images([0, 7])
    with pytest.raises(InvalidArgument, match="positions from 0 to 6; received -1"):
        stored.maps("one", [-1])
    with pytest.raises(InvalidArgument, match="the name of an image of test"):
        stored.find("images/7")


LOST = {
    "images/c/1/0/0/0": lambda stored: stored.pictures([4]),
    "maps/one/c/2/0/0": lambda stored: stored.maps("one", [0, 6]),
    "masks/c/0/0/0": lambda stored: stored.masks([2]),
    "labels/c/0": lambda stored: stored.labels,
    "has_mask/c/0": lambda stored: stored.masks([2]),
    "mask_energy/one/c/0": lambda stored: stored.mask_energy("one"),
    "attention/one/c/0/0/0": lambda stored: stored.attention("one"),
    "probabilities/one/c/0/0": lambda stored: stored.probabilities("one"),
}


@pytest.mark.parametrize("file", LOST)
def test_a_lost_file_is_said_and_not_read_as_zeros(run, tmp_path, file):
    copy = shutil.copytree(run.path, tmp_path / "kept")
    (copy / "maps.zarr" / "splits" / "test" / file).unlink()
    stored = StoredSplit(RunDirectory.open(copy), "test")
    with pytest.raises(RunError, match=r"is lost|answers of one are missing"):
        LOST[file](stored)
    assert stored.maps("two", [0]).any()


def test_what_is_zero_everywhere_is_not_taken_for_lost(run, tmp_path, split):
    copy = shutil.copytree(run.path, tmp_path / "kept")
    group = zarr.open_group(copy / "maps.zarr", mode="r+")
    nothing = ImageSet(
        **{name: getattr(split, name) for name in ("names", "class_names", "image_shape", "context_names")},
        labels=np.zeros(7, np.int64),
        has_mask=np.zeros(7, bool),
        reader=lambda indices: (np.full((len(indices), 10, 13, 1), -0.5, np.float32),) * 2,
        contexts=np.zeros(7, np.int64),
        context_agrees=np.zeros(7, bool),
    )
    write_split(group.create_group("splits/black"), nothing, (-0.5, 0.5), "wbp", 3)
    writer = MapWriter(group["splits/black"], "one", split.image_shape, 7, 3)
    for start in (0, 3, 6):
        writer(slice(start, min(start + 3, 7)), np.zeros((min(3, 7 - start), 10, 13), np.float32))
    writer.finish(ANSWERS["one"], np.zeros(7))
    stored = StoredSplit(RunDirectory.open(copy), "black")
    assert not stored.pictures(range(7)).any()
    assert not stored.maps("one", range(7)).any()
    assert stored.masks(range(7)) == [None] * 7
    assert image_table(stored, "one")["agrees"].tolist() == [False] * 7


def test_a_run_without_maps_says_how_to_get_them(tmp_path, run):
    other = RunDirectory.create(tmp_path, run.config)
    with pytest.raises(RunError, match=r"measured no images yet.*--resume"):
        split_names(other)


def test_a_finished_run_keeps_the_images_of_its_data(small_run):
    run = RunDirectory.open(small_run[0])
    assert split_names(run) == ("test_shuffled", "test", "validation")
    data = load_data(run.config, ConsoleProgress())
    for name in split_names(run):
        stored, source = StoredSplit(run, name), data.splits[name]
        images, masks = source.read(np.arange(len(source)))
        assert np.array_equal(stored.images(range(len(source))), images)
        assert np.array_equal(np.stack(stored.masks(range(len(source)))), masks[..., 0] > 0.5)
        assert stored.column("context_agrees").tolist() == source.context_agrees.tolist()
        measured = run.metrics["models"]["cfcn"]["splits"][name]
        assert measured["mask_energy"]["value"] == pytest.approx(np.nanmean(stored.mask_energy("cfcn")), rel=1e-5)
        assert measured["accuracy"]["value"] == pytest.approx(image_table(stored, "cfcn")["right"].mean())
        np.testing.assert_allclose(
            stored.attention("ppi"), attention(stored.maps("ppi", range(len(source)))), atol=1e-7
        )
