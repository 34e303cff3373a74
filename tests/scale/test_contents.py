import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs

from tfcausal.data.image_files import find_images
from tfcausal.errors import DataError, InvalidArgument
from tfcausal.scale import open_images as module
from tfcausal.scale.blocks import Block, blocks_to_do
from tfcausal.scale.contents import Place
from tfcausal.scale.open_images import open_images


def everything(images, size=7):
    reader = pickle.loads(pickle.dumps(images.reader()))
    return [content for block in blocks_to_do(len(images), size) for content in reader(images.block(block))]


def test_a_folder_gives_the_files_that_explain_finds_in_their_order(images):
    found = open_images([str(images)])
    expected = find_images([images])
    contents = everything(found)
    assert len(found) == len(expected) == 20
    assert [images / content.name for content in contents] == expected
    assert [content.data for content in contents] == [file.read_bytes() for file in expected]
    assert not any(content.error for content in contents)


@pytest.mark.parametrize("prefix", ["file://", ""])
def test_an_address_of_a_file_system_is_a_folder_like_any_other(images, prefix):
    assert [content.name for content in everything(open_images([f"{prefix}{images}/"]))][:2] == [
        "a/000.png",
        "a/002.png",
    ]


def test_an_object_store_is_read_through_its_file_system(images, monkeypatch):
    store = fs.SubTreeFileSystem(str(images.parent), fs.LocalFileSystem())
    monkeypatch.setattr(module, "place_of", lambda address: Place(address, store, address.removeprefix("s3://")))
    contents = everything(open_images(["s3://all/b", "s3://all/a/000.png"]))
    assert [content.name for content in contents][:2] == ["a/000.png", "b/001.png"]
    assert contents[0].data == (images / "a" / "000.png").read_bytes()
    assert len(contents) == 11


def test_hidden_files_other_files_and_repetitions_are_left_out(images, tmp_path):
    for name in ("x.PNG", ".hidden.png", "notes.txt", "deep/y.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    found = open_images([str(tmp_path), str(tmp_path / "x.PNG"), str(tmp_path / "deep")])
    assert [content.name for content in everything(found)] == ["deep/y.jpeg", "x.PNG"]


def test_names_begin_at_the_folder_above_everything(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    assert {content.name[:2] for content in everything(open_images(["all"]))} == {"a/", "b/"}
    assert {content.name[:2] for content in everything(open_images(["all/a", "all/b"]))} == {"a/", "b/"}
    assert [content.name for content in everything(open_images(["all/a/000.png"]))] == ["000.png"]


def test_a_name_with_signs_of_addresses_is_a_name(tmp_path):
    (tmp_path / "a b#1%20?.png").write_bytes(b"content")
    (content,) = everything(open_images([str(tmp_path)]))
    assert (content.name, content.data) == ("a b#1%20?.png", b"content")


def test_a_file_that_is_gone_is_told_and_the_others_are_read(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    found = open_images([str(tmp_path)])
    (tmp_path / "b.png").unlink()
    contents = everything(found)
    assert [(content.data, content.error) for content in contents] == [
        (b"a", ""),
        (b"", "the file is gone"),
        (b"c", ""),
    ]


@pytest.mark.parametrize("change", ["add", "remove", "size", "rename"])
def test_the_fingerprint_tells_other_images(tmp_path, write_images, change):
    write_images(tmp_path / "images", 4)
    before = open_images([str(tmp_path / "images")]).fingerprint()
    assert open_images([f"file://{tmp_path}/images"]).fingerprint() == before
    file = tmp_path / "images" / "a" / "000.png"
    match change:
        case "add":
            (tmp_path / "images" / "z.png").write_bytes(b"")
        case "remove":
            file.unlink()
        case "size":
            file.write_bytes(file.read_bytes() + b"0")
        case "rename":
            file.rename(file.with_name("0.png"))
    assert open_images([str(tmp_path / "images")]).fingerprint() != before


@pytest.mark.parametrize(
    ("places", "kind", "text"),
    [
        ([], DataError, "at least one image file, folder, parquet file or address; received none"),
        (["nowhere"], DataError, "`nowhere`: .* received nothing at that place"),
        (["empty"], DataError, "`empty`: expected images, or a folder with some .* received none in it"),
        (["notes.txt"], DataError, "received a file `notes.txt`"),
        (["x.png", "empty"], DataError, "`empty`"),
        (["mixed"], DataError, "not both; received 1 image files and 1 parquet files"),
        (["nope://bucket/x"], InvalidArgument, "such as s3://, gs:// or file://; received 'nope://bucket/x'"),
        (["x.png", "mock://images"], InvalidArgument, "places in one file system"),
    ],
)
def test_places_without_images_are_errors(tmp_path, monkeypatch, places, kind, text):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "mixed"):
        Path(name).mkdir()
    for name in ("notes.txt", "x.png", "mixed/x.png", "mixed/x.parquet"):
        Path(name).write_bytes(b"content")
    with pytest.raises(kind, match=text):
        open_images(places)


def test_a_column_beside_image_files_is_refused(images):
    with pytest.raises(InvalidArgument, match=r"Leave out --column"):
        open_images([str(images)], column="image")


def test_a_file_system_that_answers_with_an_error_is_told(images, monkeypatch):
    class Broken:
        def equals(self, other):
            return True

        def get_file_info(self, what):
            raise OSError("access denied")

    monkeypatch.setattr(module, "place_of", lambda address: Place(address, Broken(), "x"))
    with pytest.raises(DataError, match=r"s3://bucket.*received an error of the file system \(access denied\)"):
        open_images(["s3://bucket"])


def test_the_reader_needs_no_list_of_all_images(tmp_path, write_images):
    few, many = (open_images([str(write_images(tmp_path / str(count), count))]) for count in (2, 60))
    assert len(pickle.dumps(many.reader())) <= len(pickle.dumps(few.reader())) + 1
    assert many.block(Block(1, 2, 4)).names == ("a/004.png", "a/006.png")


def test_an_image_counts_once_whatever_links_lead_to_it(tmp_path, write_images):
    folder = write_images(tmp_path / "images", 4)
    (folder / "link").symlink_to(folder / "a")
    (folder / "again.png").symlink_to(folder / "b" / "001.png")
    assert len(open_images([str(folder)])) == 4
    assert len(open_images([str(folder), str(tmp_path / "images" / "a")])) == 4


def test_names_that_are_not_utf_8_are_told(tmp_path, write_images):
    folder = write_images(tmp_path / "images", 2)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"received a name that is not UTF-8, .*Rename it"):
        open_images([str(folder)])
    with pytest.raises(DataError, match="a name that is not UTF-8"):
        open_images([os.fsdecode(os.fsencode(folder) + b"/\xff.png")])
