import csv
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from tfcausal.data.mask_drawing import Box, BrushStroke, Polygon, drawn_mask
from tfcausal.data.mask_folder import TIMES, MaskFolder, folder_version
from tfcausal.data.mask_times import COLUMNS, MaskTimes
from tfcausal.data.sources.image_folder import image_folder
from tfcausal.errors import DataError, InvalidArgument, RunError

HEIGHT, WIDTH = 30, 44
TURNED = 6  # an orientation of EXIF: a quarter turn


def write_images(root, classes=("a", "b"), count=4, parent="images"):
    random = np.random.default_rng(0)
    for name in classes:
        (root / parent / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / parent / name / f"{number}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "data")


@pytest.fixture
def box():
    return drawn_mask([Box(3, 4, 20, 9)], HEIGHT, WIDTH)


def read_by_a_run(root, size):
    """What `tfcausal run` gets: masks by name of the image."""
    data = image_folder(root, size, seed=0)
    found = {}
    for split in data.splits.values():
        masks = split.read(np.arange(len(split)))[1][..., 0]
        found |= {name: mask for name, mask, known in zip(split.names, masks, split.has_mask, strict=True) if known}
    return found


def test_masks_are_read_back_as_they_were_drawn(root):
    folder = MaskFolder(root)
    drawn = {
        "images/a/0.png": [Polygon(((2.2, 3.1), (40.5, 8.8), (17.3, 28.2)))],
        "images/a/3.png": [Box(0, 0, WIDTH, HEIGHT), Box(5, 5, 6, 6, cut=True)],
        "images/b/1.png": [BrushStroke(((3, 3), (30, 20), (12, 25)), 5.5)],
        "images/b/2.png": [Box(7, 7, 8, 8)],
    }
    masks = {name: drawn_mask(shapes, HEIGHT, WIDTH) for name, shapes in drawn.items()}
    for name, mask in masks.items():
        assert folder.save(name, mask, seconds=3.0) == root / name.replace("images", "masks", 1)
    read = read_by_a_run(root, (HEIGHT, WIDTH))
    assert read.keys() == masks.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(read[name], mask)
        np.testing.assert_array_equal(folder.mask(name, (HEIGHT, WIDTH)), mask)
    assert folder.mask("images/a/1.png", (HEIGHT, WIDTH)) is None


def test_a_mask_has_the_size_of_the_upright_image(root):
    sideways = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    exif = sideways.getexif()
    exif[0x0112] = TURNED
    sideways.save(root / "images" / "a" / "photo.jpg", exif=exif)
    folder = MaskFolder(root)
    picture = folder.picture("images/a/photo.jpg", longest=22)
    assert picture.size == (WIDTH, HEIGHT)
    assert picture.pixels.shape == (22, 15, 3)
    mask = drawn_mask([Box(1, 2, 20, 40)], *picture.size)
    folder.save("images/a/photo.jpg", mask, seconds=1.0)
    assert (root / "masks" / "a" / "photo.png").is_file()
    np.testing.assert_array_equal(read_by_a_run(root, (WIDTH, HEIGHT))["images/a/photo.jpg"], mask)
    with pytest.raises(InvalidArgument, match=r"bool of shape \(44, 30\); received bool of shape \(30, 44\)"):
        folder.save("images/a/photo.jpg", mask.T, seconds=1.0, replace=True)


def test_pictures_are_what_a_run_reads(root):
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(root / "images" / "a" / "grey.png")
    pixels = MaskFolder(root).picture("images/a/grey.png", 1000).pixels
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, np.repeat(grey[..., None] / 65535, 3, axis=2), atol=1e-6)


def test_a_mask_is_never_replaced_unasked(root, box):
    folder = MaskFolder(root)
    path = folder.save("images/a/0.png", box, seconds=5.0)
    before = path.read_bytes()
    with pytest.raises(DataError, match="is there already, and was not replaced"):
        folder.save("images/a/0.png", ~box, seconds=5.0)
    assert path.read_bytes() == before
    assert len(folder.times.seconds()) == 1
    folder.save("images/a/0.png", ~box, seconds=2.5, replace=True)
    np.testing.assert_array_equal(folder.mask("images/a/0.png", (HEIGHT, WIDTH)), ~box)
    assert folder.times.seconds() == {"images/a/0.png": 7.5}


def test_a_mask_with_a_suffix_in_capitals_is_replaced_in_its_place(root, box):
    (root / "masks" / "b").mkdir(parents=True)
    Image.fromarray(box.astype(np.uint8) * 255).save(root / "masks" / "b" / "1.PNG", "PNG")
    folder = MaskFolder(root)
    assert folder.has_mask("images/b/1.png")
    assert folder.save("images/b/1.png", ~box, 1.0, replace=True) == root / "masks" / "b" / "1.PNG"
    np.testing.assert_array_equal(read_by_a_run(root, (HEIGHT, WIDTH))["images/b/1.png"], ~box)


def test_masks_that_two_people_save_at_once_are_saved_once(root, box):
    start = threading.Barrier(8)
    problems = []

    def save(number):
        folder = MaskFolder(root)
        start.wait()
        try:
            folder.save("images/a/0.png", box, seconds=float(number + 1))
        except DataError as error:
            problems.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(problems) == 7
    with open(root / TIMES, encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == "images/a/0.png"


def test_empty_and_full_masks_and_unknown_images_leave_no_file(root, box):
    folder = MaskFolder(root)
    for mask, text in ((box & ~box, "no pixel is marked"), (box | ~box, "covers the whole picture")):
        with pytest.raises(DataError, match=text):
            folder.save("images/a/0.png", mask, seconds=1.0)
    with pytest.raises(InvalidArgument, match="bool of shape"):
        folder.save("images/a/0.png", box.astype(np.uint8), seconds=1.0)
    (root.parent / "secret.png").write_bytes((root / "images/a/0.png").read_bytes())
    for name in ("../secret.png", "images/a/../../../secret.png", "/etc/passwd", "images/a/9.png", "", "images/a"):
        with pytest.raises(InvalidArgument, match="the name of an image of"):
            folder.save(name, box, seconds=1.0)
        with pytest.raises(InvalidArgument, match="the name of an image of"):
            folder.picture(name, 100)
    assert sorted(path.name for path in root.iterdir()) == ["images"]


def test_training_folders_have_masks_beside_their_images(tmp_path, box):
    write_images(tmp_path, parent="train/images")
    write_images(tmp_path, parent="test")
    folder = MaskFolder(tmp_path)
    assert {name.split("/")[0] for name in folder.images} == {"train"}
    folder.save("train/images/a/1.png", box, seconds=1.0)
    assert (tmp_path / "train" / "masks" / "a" / "1.png").is_file()
    np.testing.assert_array_equal(read_by_a_run(tmp_path, (HEIGHT, WIDTH))["train/images/a/1.png"], box)


def test_folders_that_cannot_have_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match="a folder of images; received nothing at that place"):
        MaskFolder(tmp_path / "none")
    write_images(tmp_path / "flat", parent="train")
    write_images(tmp_path / "flat", parent="test")
    with pytest.raises(
        DataError, match="images/<class> or train/images/<class>; received only train/<class>, test/<cl"
    ):
        MaskFolder(tmp_path / "flat")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    with pytest.raises(DataError, match="no folder inside"):
        MaskFolder(tmp_path / "pictures")


def test_files_that_cannot_be_used_are_named(root, tmp_path, box):
    (root / "images" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (root / "images" / "a" / "empty.png").touch()
    (root / "images" / "b" / "x.gif").write_bytes(b"GIF89a")
    (root / "images" / "b" / "line\nbreak.png").write_bytes((root / "images/a/0.png").read_bytes())
    header = struct.pack(">II5B", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    bomb = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (root / "images" / "b" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    folder = MaskFolder(root)
    assert len(folder.notes) == 2
    assert "images/b/x.gif: expected .png" in folder.notes[0]
    assert "a name that cannot be shown" in folder.notes[1]
    for name, text in (("broken", "cannot be decoded|neither"), ("empty", "zero bytes")):
        with pytest.raises(DataError, match=rf"a/{name}.png` cannot be used: .*({text})"):
            folder.picture(f"images/a/{name}.png", 100)
    with pytest.raises(DataError, match=r"bomb.png` cannot be used: the image is too large"):
        folder.picture("images/b/bomb.png", 100)
    (root / "images" / "a" / "0.png").unlink()
    with pytest.raises(DataError, match="the file is gone"):
        folder.picture("images/a/0.png", 100)
    with pytest.raises(DataError, match="the file is gone"):
        folder.save("images/a/0.png", box, 1.0)


def test_a_mask_that_cannot_be_used_is_an_error_and_can_be_replaced(root, box):
    (root / "masks" / "a").mkdir(parents=True)
    Image.fromarray(np.full((5, 5), 255, np.uint8)).save(root / "masks" / "a" / "0.png")
    folder = MaskFolder(root)
    with pytest.raises(DataError, match=r"masks/a/0.png` cannot be used: the mask has another size than its image"):
        folder.mask("images/a/0.png", (HEIGHT, WIDTH))
    folder.save("images/a/0.png", box, 1.0, replace=True)
    np.testing.assert_array_equal(folder.mask("images/a/0.png", (HEIGHT, WIDTH)), box)


def test_a_folder_that_cannot_be_written_to_is_an_error(root, box, monkeypatch):
    (root / "masks").write_text("a file")
    folder = MaskFolder(root)
    with pytest.raises(RunError, match=r"masks`: expected a folder to save masks in; received a file"):
        folder.check_writable()
    with pytest.raises(RunError, match="cannot be written"):
        folder.save("images/a/0.png", box, 1.0)
    (root / "masks").unlink()
    folder.check_writable()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="a folder that is read-only"):
        folder.check_writable()


def test_the_time_of_every_mask_is_kept_beside_them_and_a_run_does_not_mind(root, box):
    folder = MaskFolder(root)
    folder.save("images/a/0.png", box, seconds=4.26)
    (row,) = csv.DictReader((root / TIMES).read_text(encoding="utf-8").splitlines())
    assert tuple(row) == COLUMNS
    assert (row["image"], row["seconds"], row["replaced"]) == ("images/a/0.png", "4.3", "false")
    assert float(row["area"]) == pytest.approx(17 * 5 / (HEIGHT * WIDTH), abs=1e-6)
    assert read_by_a_run(root, (HEIGHT, WIDTH)).keys() == {"images/a/0.png"}


def test_damaged_rows_of_the_times_spoil_no_other(tmp_path):
    times = MaskTimes(tmp_path / TIMES)
    assert times.seconds() == {}
    name = 'images/a/with "quotes", and ünicode.png'
    with times.locked():
        times.append(name, 3.0, 0.5, False)
    with open(times.path, "ab") as file:
        file.write(b'2020-01-01,images/b/0.png,nan,0.1,false\n2020,images/b/1.png,-4,1,x\n\xff\xfe\n2020,"images')
    with times.locked():
        times.append("images/b/2.png", -1.0, 0.5, True)
    assert times.seconds() == {name: 3.0, "images/b/2.png": 0.0}
    assert times.path.read_text(encoding="utf-8", errors="replace").count("saved,image") == 1


def test_the_version_of_a_folder_changes_with_its_images(root):
    before = folder_version(root)
    assert folder_version(root) == before
    os.utime(root / "images" / "b", ns=(1, 1))
    assert folder_version(root) != before
    assert folder_version(root / "nowhere") != before
