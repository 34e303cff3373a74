import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tfcausal.browsing.uploads import LIMITS, Limits, Upload, admit, shown_name
from tfcausal.errors import DataError
from tfcausal.models.inputs import read_image

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SHAPE = (6, 8, 3)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side):
    """A PNG of a few kilobytes that claims to be a black square."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\x00" * (1 + side // 8)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = zlib.compress(row * min(side, 4096), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS = {
    "colour": encoded(Image.fromarray(COLOURS)),
    "grey": encoded(Image.fromarray(COLOURS[..., 0])),
    "sixteen_bits": encoded(Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257)),
    "alpha": encoded(Image.fromarray(np.concatenate([COLOURS, COLOURS[..., :1]], axis=2))),
    "palette": encoded(Image.fromarray(COLOURS).quantize(9), transparency=2),
    "animated": encoded(Image.fromarray(COLOURS), save_all=True, append_images=[Image.fromarray(COLOURS[::-1].copy())]),
    "turned": encoded(Image.fromarray(COLOURS), "JPEG", exif=TURNED),
    "cmyk": encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("shape", [(6, 8, 3), (4, 4, 1), (9, 5, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_decoded_as_the_command_line_does(tmp_path, kind, shape):
    (tmp_path / "file").write_bytes(KINDS[kind])
    picture = Upload("any name", KINDS[kind]).picture(shape)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, read_image(tmp_path / "file", shape))


def test_pixels_are_shares_of_white():
    np.testing.assert_allclose(Upload("a", KINDS["colour"]).picture(SHAPE), COLOURS / 255.0, atol=1e-7)
    grey = Upload("a", KINDS["sixteen_bits"]).picture(SHAPE)
    np.testing.assert_allclose(grey, np.repeat(COLOURS[..., :1] / 255.0, 3, axis=2), atol=1e-6)


def test_what_a_file_is_its_content_says():
    taken, left = admit([("a.exe", KINDS["colour"]), ("b.png", b"GIF89a"), ("c.jpg", KINDS["grey"]), ("d.png", b"")])
    assert [upload.name for upload in taken] == ["a.exe", "c.jpg"]
    assert [(file.name, file.reason) for file in left] == [
        ("b.png", "the content is neither PNG nor JPEG"),
        ("d.png", "the file is empty (zero bytes)"),
    ]


def test_files_are_bounded_in_number_and_size_each_and_together():
    content = KINDS["colour"]
    size = len(content)
    limits = Limits(files=3, file_bytes=size, all_bytes=10 * size)
    files = [("big", content + b"0"), *((str(number), content) for number in range(4))]
    taken, left = admit(files, limits=limits)
    assert [upload.name for upload in taken] == ["0", "1", "2"]
    assert [file.name for file in left] == ["big", "3"]
    assert "too large" in left[0].reason
    assert left[1].reason == "there are 3 images already, which is the most"
    more, left = admit(files[1:], taken[:2], limits)
    assert [upload.name for upload in more] == ["0"]
    few, left = admit(files[1:], taken[:1], Limits(files=9, file_bytes=size, all_bytes=2 * size))
    assert [upload.name for upload in few] == ["0"]
    assert "too large together" in left[0].reason


def test_the_limits_are_those_that_the_page_names():
    assert (LIMITS.files, LIMITS.file_bytes, LIMITS.pixels) == (200, 25 * 2**20, 25_000_000)
    assert LIMITS.all_bytes <= 256 * 2**20


@pytest.mark.parametrize("side", [5_008, 12_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side, monkeypatch):
    """The second is what Pillow only warns of; the first it takes."""
    content = bomb(side)
    assert len(content) < 2**20
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    with pytest.raises(DataError, match=r"^the image is too large"):
        Upload("a.png", content).picture(SHAPE)


def test_an_image_at_the_limit_is_taken():
    with pytest.raises(DataError, match=r"at most 47 pixels; received 8 x 6"):
        Upload("a", KINDS["colour"]).picture(SHAPE, Limits(pixels=47))
    assert Upload("a", KINDS["colour"]).picture(SHAPE, Limits(pixels=48)).shape == SHAPE


def test_damaged_files_say_what_is_wrong():
    png, jpeg = encoded(Image.fromarray(np.tile(COLOURS, (20, 20, 1)))), KINDS["turned"]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    for content in (
        png[: len(png) // 2],
        png[:40],
        jpeg[: len(jpeg) // 2],
        bytes(flipped),
        b"\xff\xd8\xff" + b"0" * 99,
    ):
        with pytest.raises(DataError, match=r"cannot be decoded|neither PNG nor JPEG"):
            Upload("a", content).picture(SHAPE)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of what is odd in a file, and goes on
def test_no_damage_is_an_error_of_another_kind():
    """Bytes changed at random: a picture, or a reason."""
    random = np.random.default_rng(1)
    for number in range(400):
        content = bytearray([*KINDS.values()][number % len(KINDS)])
        for place in random.integers(len(content), size=random.integers(1, 6)):
            content[place] = random.integers(256)
        try:
            picture = Upload("a", bytes(content)).picture((4, 4, 3), Limits(pixels=10**6))
        except DataError:
            continue
        assert picture.shape == (4, 4, 3)
        assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\x00b\n.png", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}.png"),
        ("\u202egnp.exe", "\N{REPLACEMENT CHARACTER}gnp.exe"),
        ("\ud800.png", "\N{REPLACEMENT CHARACTER}.png"),
        ("  ", "a file without a name"),
        ("größe 10 µm.png", "größe 10 µm.png"),
    ],
)
def test_names_are_for_the_eye_only(name, shown):
    assert shown_name(name) == shown
    shown_name(name).encode()


def test_the_digest_is_of_the_content():
    one, same, other = Upload("a", b"1"), Upload("b", b"1"), Upload("a", b"2")
    assert one.digest == same.digest != other.digest
