import numpy as np
import pytest
from PIL import Image

from tfcausal.data.sources.image_folder import image_folder
from tfcausal.errors import DataError, InvalidArgument

SIZE = (8, 10)


def write_image(path, level=100, mode="RGB", size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 255 - level, 0)).save(path)
    return path


def write_mask(path, size=(20, 16)):
    """Marks the left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[:, : size[0] // 2] = 255
    Image.fromarray(mask).save(path)
    return path


def make_folder(root, classes, masks=()):
    for name, count in classes.items():
        for k in range(count):
            write_image(root / "images" / name / f"{k:02d}.png", level=20 * len(name) + k)
            if name in masks:
                write_mask(root / "masks" / name / f"{k:02d}.png")
    return root


def read_all(image_set):
    return image_set.read(np.arange(len(image_set)))


def all_names(data_set):
    return sorted(name for image_set in data_set.splits.values() for name in image_set.names)


def test_a_folder_with_masks_for_one_class(tmp_path):
    make_folder(tmp_path, {"b": 20, "aaaa": 10}, masks=["b"])
    write_image(tmp_path / "images" / "b" / "LAST.JPG", level=99)
    progress = []
    data_set = image_folder(tmp_path, SIZE, seed=3, on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(done, 31) for done in range(1, 32)]
    assert {split: len(image_set) for split, image_set in data_set.splits.items()} == {
        "train": 19,
        "validation": 5,
        "test": 7,
    }
    assert len(set(all_names(data_set))) == 31
    assert "images/b/LAST.JPG" in all_names(data_set)
    for image_set in data_set.splits.values():
        assert image_set.class_names == ("aaaa", "b")
        assert set(image_set.labels) == {0, 1}
        images, masks = read_all(image_set)
        assert images.shape == (len(image_set), 8, 10, 3)
        assert masks.shape == (len(image_set), 8, 10, 1)
        assert images.dtype == masks.dtype == np.float32
        for name, label, known, image, mask in zip(
            image_set.names, image_set.labels, image_set.has_mask, images, masks, strict=True
        ):
            _, class_name, file_name = name.split("/")
            assert image_set.class_names[label] == class_name
            assert known == (class_name == "b" and file_name != "LAST.JPG")
            if file_name != "LAST.JPG":
                level = 20 * len(class_name) + int(file_name[:2])
                np.testing.assert_allclose(image, np.broadcast_to([level / 255, 1 - level / 255, 0], image.shape))
            expected = np.ones((8, 10, 1))
            expected[:, 5:] = not known
            np.testing.assert_array_equal(mask, expected)


def test_the_split_depends_on_the_seed(tmp_path):
    make_folder(tmp_path, {"a": 12, "b": 12})
    names = [image_folder(tmp_path, 8, seed=seed).splits["test"].names for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert names[0] != names[2]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("with_validation", [False, True])
def test_folders_of_splits(tmp_path, nested, with_validation):
    inside = "images/" if nested else ""
    for split, count in {"train": 10, "test": 3, **({"validation": 2} if with_validation else {})}.items():
        for name in ("cat", "dog") if split != "test" else ("dog",):
            for k in range(count):
                write_image(tmp_path / f"{split}/{inside}{name}/{k}.jpeg")
                if nested and k % 2 == 0:
                    write_mask(tmp_path / f"{split}/masks/{name}/{k}.png")
    splits = image_folder(tmp_path, 8, validation_share=0.2).splits
    assert splits["test"].names == tuple(f"test/{inside}dog/{k}.jpeg" for k in range(3))
    assert splits["test"].labels.tolist() == [1, 1, 1]
    assert splits["test"].has_mask.tolist() == ([True, False, True] if nested else [False] * 3)
    assert np.bincount(splits["train"].labels).tolist() == ([10, 10] if with_validation else [8, 8])
    assert np.bincount(splits["validation"].labels).tolist() == [2, 2]
    origin = "validation/" if with_validation else "train/"
    assert all(name.startswith(origin) for name in splits["validation"].names)
    assert not set(splits["train"].names) & set(splits["validation"].names)


def test_pixel_formats_and_hidden_files(tmp_path):
    make_folder(tmp_path, {"a": 3, "b": 3})
    deep = np.full((16, 20), 30000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "images/a/deep.png")
    write_image(tmp_path / "images/a/grey.png", mode="L", level=51)
    (tmp_path / "images/a/.DS_Store").write_bytes(b"x")
    (tmp_path / "images/a/._00.png").write_bytes(b"x")
    (tmp_path / "images/a/notes.txt").write_text("x")
    (tmp_path / "images/.hidden").mkdir()
    for channels in (1, 3):
        data_set = image_folder(tmp_path, 8, channels=channels)
        found = {}
        for image_set in data_set.splits.values():
            images, _ = read_all(image_set)
            assert images.shape[3] == channels
            found |= dict(zip(image_set.names, images, strict=True))
        np.testing.assert_allclose(found["images/a/deep.png"], 30000 / 65535, rtol=1e-6)
        np.testing.assert_allclose(found["images/a/grey.png"], 0.2, rtol=1e-6)
        assert len(found) == 8


def test_without_room_in_the_cache_images_are_decoded_when_read(tmp_path):
    make_folder(tmp_path, {"a": 4, "b": 4}, masks=["a"])
    cached, uncached = (image_folder(tmp_path, SIZE, cache_megabytes=size).splits["train"] for size in (1, 0.0005))
    for kept, decoded in zip(read_all(cached), read_all(uncached), strict=True):
        np.testing.assert_array_equal(kept, decoded)
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"changed")
    assert len(read_all(cached)[0]) == len(cached)
    with pytest.raises(DataError, match=r"images/a/.*cannot be used any more: .*neither PNG nor JPEG"):
        read_all(uncached)


def test_excluded_classes_are_left_out(tmp_path):
    make_folder(tmp_path, {"a": 3, "b": 3, "rare": 1}, masks=["rare"])
    with pytest.raises(DataError, match=r"`class rare`: expected at least 3 images.*received 1\..*\[rare\]"):
        image_folder(tmp_path, 8)
    data_set = image_folder(tmp_path, 8, exclude_classes=["rare"])
    assert data_set.splits["train"].class_names == ("a", "b")
    with pytest.raises(DataError, match=r"`exclude_classes`: .*'a', 'b', 'rare'.*received \['bare'\]"):
        image_folder(tmp_path, 8, exclude_classes=["bare"])


def break_folder(root, kind):
    """Add one file that cannot be used, and return it with the reason that is expected."""
    if kind == "truncated":
        path = write_image(root / "images/a/bad.jpg", size=(200, 160))
        path.write_bytes(path.read_bytes()[:700])
        return path, "cannot be decoded"
    if kind == "empty":
        path = root / "images/a/bad.png"
        path.touch()
        return path, "zero bytes"
    if kind == "other format":
        path = root / "images/a/bad.tif"
        path.touch()
        return path, r"expected \.png, \.jpg, \.jpeg; received \.tif"
    if kind == "folder in a class":
        path = root / "images/a/more"
        path.mkdir()
        return path, "a folder inside a class folder"
    if kind == "image outside the classes":
        return write_image(root / "images/bad.png"), "an image outside the class folders"
    if kind == "mask of another size":
        return write_mask(root / "masks/a/00.png", size=(16, 20)), "another size than its image: expected 20x16"
    if kind == "black mask":
        return write_image(root / "masks/a/00.png", mode="L", level=0), "zero everywhere"
    if kind == "mask without its image":
        return write_mask(root / "masks/a/99.png"), "a mask without its image"
    if kind == "masks without images":
        path = write_mask(root / "masks/unknown/00.png").parent
        return path, "masks of a class that has no folder of images"
    path = root / "masks/a/00.jpg"
    write_image(path)
    return path, r"expected \.png; received \.jpg"


KINDS = [
    "truncated",
    "empty",
    "other format",
    "folder in a class",
    "image outside the classes",
    "mask of another size",
    "black mask",
    "mask without its image",
    "masks without images",
    "mask of another format",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_used_stops_or_is_listed(tmp_path, kind):
    make_folder(tmp_path, {"a": 4, "b": 4}, masks=["b"])
    before = all_names(image_folder(tmp_path, 8))
    path, reason = break_folder(tmp_path, kind)
    with pytest.raises(DataError, match=rf"`{path}` cannot be used: .*{reason}.*data\.on_error: skip"):
        image_folder(tmp_path, 8)
    progress = []
    data_set = image_folder(tmp_path, 8, on_error="skip", on_progress=lambda *counts: progress.append(counts))
    assert progress[-1][0] == progress[-1][1]
    assert [file.path for file in data_set.skipped] == [path.relative_to(tmp_path).as_posix()]
    assert all_names(data_set) == before
    for image_set in data_set.splits.values():
        _, masks = read_all(image_set)
        np.testing.assert_array_equal(image_set.has_mask, image_set.labels == 1)
        assert masks[image_set.labels == 0].all()


def test_skipping_may_leave_too_few_images(tmp_path):
    make_folder(tmp_path, {"a": 4, "b": 3})
    (tmp_path / "images/b/00.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"`class b`: expected at least 3 images.*received 2 \(1 files were skipped\)"):
        image_folder(tmp_path, 8, on_error="skip")


def test_decompression_bombs_are_named(tmp_path, monkeypatch):
    make_folder(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "images/a/big.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with pytest.raises(DataError, match=r"big\.png` cannot be used: the image is too large"):
        image_folder(tmp_path, 8)


def test_folders_that_are_not_data_sets(tmp_path):
    def refused(match, **options):
        with pytest.raises(DataError, match=match):
            image_folder(tmp_path / "data", 8, **options)

    root = tmp_path / "data"
    refused(r"data`: expected a folder of images; received nothing at that place\. Check data\.path")
    root.write_text("x")
    refused("expected a folder of images; received a file")
    root.unlink()
    root.mkdir()
    refused("received no folder inside. Use images/<class>")
    (root / "photos").mkdir()
    refused(r"expected `images`, or `train` and `test`; received folders \['photos'\]")
    (root / "train" / "cat").mkdir(parents=True)
    refused(r"received folders \['photos', 'train'\]")
    (root / "test").mkdir()
    refused(r"only train, validation, test beside each other; received \['photos'\]")
    (root / "photos").rmdir()
    refused("train/cat`: expected at least one image; received none")
    write_image(root / "train/cat/0.png")
    refused("test`: expected a folder per class; received none")
    write_image(root / "test/cat/0.png")
    refused(r"`classes`: expected at least two; received 1 \['cat'\]")
    write_image(root / "train/dog/0.png")
    write_image(root / "test/cow/0.png")
    refused(r"`test/<class>`: expected classes of train \(cat, dog\); received \['cow'\]")
    refused("`class cat`: expected at least 2 images, one each for train, validation", exclude_classes=["cow"])
    (root / "images").mkdir()
    refused("either images or train and test")


def test_an_images_folder_without_classes_or_with_one(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images`: expected a folder per class; received none"):
        image_folder(tmp_path, 8)
    make_folder(tmp_path, {"only": 5})
    with pytest.raises(DataError, match=r"at least two; received 1 \['only'\]\. Add a folder"):
        image_folder(tmp_path, 8)
    with pytest.raises(DataError, match=r"at least two; received 0 \[\]"):
        image_folder(tmp_path, 8, exclude_classes=["only"])


def test_a_split_whose_images_were_all_skipped(tmp_path):
    for k in range(3):
        write_image(tmp_path / f"train/a/{k}.png")
        write_image(tmp_path / f"train/b/{k}.png")
    (tmp_path / "test/a").mkdir(parents=True)
    (tmp_path / "test/a/0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"`test folder`: expected at least one image; received none \(1 files"):
        image_folder(tmp_path, 8, on_error="skip")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_two_images_of_one_name(tmp_path, on_error):
    make_folder(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "images/a/00.jpg")
    with pytest.raises(DataError, match=r"00\.png`: expected one file of a name; received also 00\.jpg"):
        image_folder(tmp_path, 8, on_error=on_error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image_size": 0}, "`image_size`"),
        ({"image_size": (8, -1)}, "`image_size`"),
        ({"channels": 2}, "`channels`"),
        ({"exclude_classes": "a"}, r"`exclude_classes`: expected a list of names; received 'a'\. Write \[a\]"),
        ({"validation_share": 0.0}, "`validation_share`"),
        ({"test_share": 1.0}, "`test_share`"),
        ({"validation_share": 0.5, "test_share": 0.5}, r"expected less than 1; received 0\.5 \+ 0\.5"),
        ({"on_error": "ignore"}, "`on_error`: expected raise or skip; received 'ignore'"),
        ({"cache_megabytes": -1}, "`cache_megabytes`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(tmp_path, options, match):
    with pytest.raises(InvalidArgument, match=match):
        image_folder(tmp_path, **({"image_size": 8} | options))


@pytest.mark.parametrize("name", ["test", "mask", "Masks", "validation"])
def test_a_folder_that_would_be_ignored_beside_images_is_an_error(tmp_path, name):
    make_folder(tmp_path, {"a": 6, "b": 6})
    write_image(tmp_path / name / "a" / "00.png")
    with pytest.raises(DataError, match=rf"only `images` and `masks` beside each other; received \['{name}'\]"):
        image_folder(tmp_path, SIZE)
