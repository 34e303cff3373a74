import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfcausal.models.inputs import read_image
from tfcausal.serving.image_bytes import pictures

ORIENTATION = 0x0112
RANDOM = np.random.default_rng(3)
COLOURS = RANDOM.integers(0, 256, (33, 21, 3), dtype=np.uint8)
SHAPES = [(33, 21, 1), (8, 6, 3), (40, 30, 3)]  # grey in its own size, smaller, larger
_FUNCTIONS = {}


def ours(contents, shape, most_pixels=100_000):
    key = (shape, most_pixels)
    if key not in _FUNCTIONS:
        _FUNCTIONS[key] = tf.function(
            lambda files: pictures(files, shape, most_pixels),
            input_signature=[tf.TensorSpec((None,), tf.string)],
            autograph=False,
        )
    return _FUNCTIONS[key](tf.constant(contents)).numpy()


def library(content, shape, folder):
    path = folder / "image"
    path.write_bytes(content)
    return read_image(path, shape)


def same(content, folder, shapes=SHAPES, atol=0.0):
    for shape in shapes:
        np.testing.assert_allclose(ours([content], shape)[0], library(content, shape, folder), rtol=0, atol=atol)


_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# A transparent colour in 16 bits is left out: Pillow compares 8 of them, see the module.
PNG_KINDS = [
    (colours, depth, transparent)
    for colours, depths in _DEPTHS.items()
    for depth in depths
    for transparent in ((False, True) if colours < 4 and (colours, depth) != (2, 16) else (False,))
]


@pytest.mark.parametrize(("colours", "depth", "transparent"), PNG_KINDS)
def test_png_files_of_every_kind(png, tmp_path, colours, depth, transparent):
    values = RANDOM.integers(0, 2**depth, (33, 21, png.samples[colours]))
    chunks = []
    if colours == 3:
        chunks.append((b"PLTE", RANDOM.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes()))
    if transparent and colours == 3:
        chunks.append((b"tRNS", RANDOM.integers(0, 256, 2 ** (depth - 1), dtype=np.uint8).tobytes()))
    elif transparent:
        values[:9, :9] = values[0, 0]
        chunks.append((b"tRNS", values[0, 0].astype(">u2").tobytes()))
    same(png(depth, colours, values, *chunks), tmp_path, atol=1e-6 if (colours, depth) == (0, 16) else 0.0)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_files_in_colour(saved, tmp_path, subsampling, progressive):
    for quality in (30, 90):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        same(saved(COLOURS, "JPEG", **options), tmp_path)


def test_jpeg_files_in_grey_and_in_cmyk(saved, tmp_path):
    same(saved(COLOURS[..., 0], "JPEG"), tmp_path)
    inks = np.concatenate([COLOURS, COLOURS[..., :1]], axis=2)
    # TensorFlow truncates where Pillow rounds: 1 of 255 in a pixel.
    same(saved(inks, "JPEG", "CMYK"), tmp_path, atol=1.01 / 255)


def test_large_images_are_reduced_in_parts(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tfcausal.serving.image_bytes._BLOCK_PIXELS", 1000
    )  # as in images of more than 4 million pixels
    content = saved(RANDOM.integers(0, 256, (211, 97, 4), dtype=np.uint8))
    np.testing.assert_array_equal(ours([content], (8, 7, 3))[0], library(content, (8, 7, 3), tmp_path))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_put_upright(saved, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[ORIENTATION] = orientation
    same(saved(COLOURS, kind, exif=exif), tmp_path, SHAPES[:2])


def tiff(byte_order, kind, value, offset=8):
    """EXIF by hand: one entry, which says the orientation."""
    order = "little" if byte_order == b"II" else "big"
    number = lambda content, size: int(content).to_bytes(size, order)
    size = {1: 1, 3: 2, 4: 4}[kind]
    entry = number(ORIENTATION, 2) + number(kind, 2) + number(1, 4) + number(value, size).ljust(4, b"\0")
    head = byte_order + number(42, 2) + number(offset, 4)
    return head.ljust(offset, b"\0") + number(1, 2) + entry + number(0, 4)


def with_segment(jpeg, *payloads):
    segments = b"".join(b"\xff\xe1" + (len(one) + 2).to_bytes(2, "big") + one for one in payloads)
    return jpeg[:2] + b"\xff" + segments + jpeg[2:]  # with a byte that fills up


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize(("kind", "offset"), [(3, 8), (4, 8), (3, 22)])
def test_both_byte_orders_and_types_of_exif(saved, tmp_path, order, kind, offset):
    exif = b"Exif\0\0" + tiff(order, kind, 6, offset)
    same(with_segment(saved(COLOURS, "JPEG"), b"other\0", exif), tmp_path, SHAPES[1:2])


def test_xmp_says_the_orientation_where_exif_does_not(saved, tmp_path):
    jpeg = saved(COLOURS, "JPEG")
    for text in (b'<x tiff:Orientation="8"/>', b"<tiff:Orientation>3</tiff:Orientation>", b"<x>nothing, \xc3\xbc</x>"):
        xmp = b"http://ns.adobe.com/xap/1.0/\0" + text
        same(with_segment(jpeg, xmp), tmp_path, SHAPES[1:2])
        same(with_segment(jpeg, xmp, b"Exif\0\0" + tiff(b"MM", 3, 1)), tmp_path, SHAPES[1:2])


def test_damaged_metadata_counts_as_none(saved, tmp_path):
    jpeg = saved(COLOURS, "JPEG")
    plain = ours([jpeg], (8, 6, 3))
    exif = tiff(b"II", 3, 6)
    for payload in (exif[:9], b"XX" + exif[2:], exif[:4] + b"\xff\xff\xff\xff", exif[:8] + b"\xff\xff", b""):
        np.testing.assert_array_equal(ours([with_segment(jpeg, b"Exif\0\0" + payload)], (8, 6, 3)), plain)


def test_a_batch_is_its_images_one_by_one(saved):
    contents = [saved(COLOURS), saved(COLOURS[:9], "JPEG"), saved(COLOURS[..., 0])]
    together = ours(contents, (8, 6, 3))
    for content, picture in zip(contents, together, strict=True):
        np.testing.assert_array_equal(ours([content], (8, 6, 3))[0], picture)


def refused(contents, most_pixels=100_000):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ours(contents, (8, 6, 3), most_pixels)
    return caught.value.message


def test_files_that_are_no_images_are_refused_by_their_place(saved):
    good = saved(COLOURS)
    assert "Image 1 of `image_bytes` cannot be used: the content is neither PNG nor JPEG." in refused([good, b"GIF89a"])
    assert "Image 2 of `image_bytes` cannot be used: the file is empty (zero bytes)." in refused([good, good, b""])
    assert "Invalid value for `image_bytes`: expected at least one image; received an empty batch." in refused(
        tf.zeros((0,), tf.string)
    )


def test_damaged_images_are_refused(saved):
    for kind in ("PNG", "JPEG"):
        whole = saved(COLOURS, kind)
        for content in (whole[: len(whole) // 2], whole[:20], whole[:8]):
            assert refused([content])
    assert "Invalid JPEG data" in refused([saved(COLOURS, "JPEG")[: len(whole) // 2]])


def test_a_decompression_bomb_is_refused_by_its_header(png, saved):
    bomb = png(8, 2, np.zeros((1, 1, 3), int), size=(60_000, 60_000))
    began = time.perf_counter()
    expected = "Image 0 of `image_bytes` cannot be used: expected an image of 1 to 25,000,000 pixels; received 60000 x"
    assert expected in refused([bomb], 25_000_000)
    assert time.perf_counter() - began < 20  # decoding would take minutes and 10 GB
    overflowing = png(8, 2, np.zeros((1, 1, 3), int), size=(2**31 - 1, 2**31 - 1))
    assert "expected an image of 1 to 100,000 pixels" in refused([overflowing])
    assert "received 317 x 316" in refused([saved(np.zeros((316, 317, 3)), "JPEG")])
    assert ours([saved(np.zeros((316, 316, 3)), "JPEG")], (8, 6, 3)).shape == (1, 8, 6, 3)


def test_files_with_any_bytes_changed_are_answered_or_refused(saved):
    """Whatever is sent, nothing hangs and nothing but an error of the request comes out."""
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    answered = 0
    for kind in ("PNG", "JPEG"):
        whole = np.frombuffer(saved(COLOURS, kind, exif=exif), np.uint8)
        for _ in range(60):
            content = whole.copy()
            places = generator.integers(2, min(len(whole), 200), generator.integers(1, 6))
            content[places] = generator.integers(0, 256, len(places))
            try:
                picture = ours([content.tobytes()], (8, 6, 3))
            except tf.errors.InvalidArgumentError:
                continue
            answered += 1
            assert np.isfinite(picture).all()
            assert picture.min() >= 0
            assert picture.max() <= 1
    assert answered


def test_a_file_of_very_many_parts_is_no_way_to_keep_a_server_busy(png, saved):
    empty = [(b"abCd", b"")] * 100_000
    many = png(8, 2, COLOURS, *empty)
    began = time.perf_counter()
    np.testing.assert_array_equal(ours([many], (8, 6, 3)), ours([saved(COLOURS)], (8, 6, 3)))
    assert time.perf_counter() - began < 20
