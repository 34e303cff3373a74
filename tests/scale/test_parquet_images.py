import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tfcausal.errors import DataError, InvalidArgument
from tfcausal.scale.blocks import Block, blocks_to_do
from tfcausal.scale.open_images import open_images

BYTES = [f"image {number}".encode() * (1 + number % 5) for number in range(100)]


def write(path, columns, rows_of_a_group=7, **types):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pyarrow.array(values, types.get(name)) for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, row_group_size=rows_of_a_group)
    return path


@pytest.fixture
def folder(tmp_path):
    """100 images in three files of several row groups, one file without rows."""
    for name, first, last in (("2.parquet", 45, 100), ("0.parquet", 0, 45), ("1.parquet", 0, 0)):
        write(
            tmp_path / "t" / name, {"label": [1] * (last - first), "image": BYTES[first:last]}, image=pyarrow.binary()
        )
    return tmp_path / "t"


def test_the_rows_of_all_files_are_the_images(folder):
    found = open_images([str(folder)])
    assert len(found) == 100
    assert found.column == "image"
    contents = [content for block in blocks_to_do(100, 9) for content in found.reader()(found.block(block))]
    assert [content.data for content in contents] == BYTES
    assert contents[44].name == "0.parquet#44"
    assert contents[45].name == "2.parquet#0"
    assert len({content.name for content in contents}) == 100


@pytest.mark.parametrize("rows_of_a_group", [7, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_blocks_in_any_order_by_any_reader_are_the_same(folder, seed, rows_of_a_group):
    random = np.random.default_rng(seed)
    for file in folder.iterdir():
        write(file, {"image": pyarrow.parquet.read_table(file)["image"].combine_chunks()}, rows_of_a_group)
    readers = [open_images([str(folder)]).reader() for _ in range(2)]
    blocks = list(blocks_to_do(100, int(random.integers(1, 12))))
    for place in random.permutation(len(blocks)):
        block, reader = blocks[place], readers[place % 2]
        assert [content.data for content in reader(block)] == BYTES[block.start : block.stop]
        readers[place % 2] = pickle.loads(pickle.dumps(reader)) if random.random() < 0.3 else reader


def test_a_row_group_is_decoded_once_for_blocks_one_after_the_other(folder, monkeypatch):
    opened = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self, *arguments, **options):
        opened.append(options["row_groups"])
        return original(self, *arguments, **options)

    path = write(folder.parent / "one.parquet", {"image": BYTES}, rows_of_a_group=50)
    reader = open_images([str(path)]).reader()
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    for block in blocks_to_do(100, 10):
        assert len(list(reader(block))) == 10
    assert opened == [[0], [1]]


def test_structs_of_bytes_and_paths(tmp_path):
    (tmp_path / "aside.png").write_bytes(b"of a file")
    values = [
        {"bytes": b"first", "path": "x/first.png"},
        {"bytes": b"second", "path": None},
        {"bytes": None, "path": "aside.png"},
        {"bytes": None, "path": None},
        None,
    ]
    found = open_images([str(write(tmp_path / "t.parquet", {"image": values, "text": ["a"] * 5}))])
    contents = list(found.reader()(Block(0, 0, 5)))
    assert [content.name for content in contents] == [
        "x/first.png",
        "t.parquet#1",
        "aside.png",
        "t.parquet#3",
        "t.parquet#4",
    ]
    assert [content.data for content in contents] == [b"first", b"second", b"of a file", b"", b""]
    assert [content.error for content in contents] == ["", "", "", "the value is null", "the value is null"]


def test_paths_are_relative_to_the_table_absolute_or_addresses(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.png").write_bytes(b"x")
    absolute = str(tmp_path / "pictures" / "x.png")
    values = ["../pictures/x.png", absolute, f"file://{absolute}", "missing.png", "nope://x/y.png", None]
    found = open_images([str(write(tmp_path / "tables" / "t.parquet", {"path": values}))])
    contents = list(found.reader()(Block(0, 0, 6)))
    assert [content.data for content in contents] == [b"x", b"x", b"x", b"", b"", b""]
    assert [content.name for content in contents[:4]] == values[:4]
    assert contents[3].error == "the file is gone"
    assert "nope://x/y.png" in contents[4].error
    assert contents[5].error == "the value is null"


def test_the_column_is_chosen_if_several_can_be_meant(tmp_path):
    path = str(write(tmp_path / "t.parquet", {"one": [b"1"], "two": [b"2"], "path": ["a.png"], "number": [3]}))
    with pytest.raises(InvalidArgument, match=r"one of one, two; received none\. Choose it with --column"):
        open_images([path])
    (content,) = open_images([path], "two").reader()(Block(0, 0, 1))
    assert content.data == b"2"
    with pytest.raises(InvalidArgument, match=r"a column of .* \(one, two, path, number\); received 'three'"):
        open_images([path], "three")
    with pytest.raises(InvalidArgument, match=r"received 'number' of int64"):
        open_images([path], "number")


def test_tables_without_images_are_errors(tmp_path, folder):
    with pytest.raises(DataError, match=r"received number \(int64\)"):
        open_images([str(write(tmp_path / "n.parquet", {"number": [1]}))])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"broken.parquet.*expected a parquet file"):
        open_images([str(broken)])
    write(folder / "3.parquet", {"label": [1], "image": ["text"]})
    with pytest.raises(DataError, match=r"binary, as in the first file; received string in 3\.parquet"):
        open_images([str(folder)])


def test_rows_that_cannot_be_read_are_told_and_the_others_are_read(tmp_path):
    path = tmp_path / "t.parquet"
    random = np.random.default_rng(0)
    images = [random.bytes(2000) for _ in range(20)]
    table = pyarrow.table({"image": pyarrow.array(images)})
    pyarrow.parquet.write_table(table, path, row_group_size=10, use_dictionary=False, compression="zstd")
    found = open_images([str(path)])
    metadata = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = metadata.data_page_offset + 5
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    contents = list(found.reader()(Block(0, 0, 20)))
    assert [content.data for content in contents[:10]] == images[:10]
    assert len(contents) == 20
    for number, content in enumerate(contents[10:], 10):
        assert content.name == f"t.parquet#{number}"
        assert content.error.startswith("row group 1 of t.parquet cannot be read (")


def test_a_table_that_is_gone_is_told_of_its_images(folder):
    reader = open_images([str(folder)]).reader()
    (folder / "0.parquet").unlink()
    contents = list(reader(Block(0, 40, 50)))
    assert [bool(content.error) for content in contents] == [True] * 5 + [False] * 5


def test_the_fingerprint_tells_rows_and_the_column(tmp_path):
    one = write(tmp_path / "a" / "t.parquet", {"x": [b"1", b"2"], "y": [b"1", b"2"]})
    two = write(tmp_path / "b" / "t.parquet", {"x": [b"1", b"2", b"3"], "y": [b"1", b"2", b"3"]})
    prints = {open_images([str(path)], column).fingerprint() for path in (one, two) for column in "xy"}
    assert len(prints) == 4


def test_rows_are_called_by_the_path_of_their_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pyarrow.parquet.write_table(pyarrow.table({"x": pyarrow.array([b"1"])}), tmp_path / name / "t.parquet")
    images = open_images([str(tmp_path)])
    assert [content.name for content in images.reader()(Block(0, 0, 2))] == ["a/t.parquet#0", "b/t.parquet#0"]


def test_a_struct_whose_path_is_no_text_is_refused(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.int64())])
    column = pyarrow.array([{"bytes": None, "path": 3}], kind)
    pyarrow.parquet.write_table(pyarrow.table({"x": column}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"expected a column of bytes, of texts, or of \{bytes, path\}"):
        open_images([str(tmp_path / "t.parquet")])
