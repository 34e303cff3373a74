import numpy as np
import pytest
from PIL import Image

from tfcausal.data.decoding import decode_image, decode_mask, refuse_decompression_bombs
from tfcausal.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]


def decode(path, channels=3, height=6, width=8):
    return decode_image(path, height, width, channels)[0]


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_eight_bit_colour(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    pixels, size = decode_image(path, 6, 8, 3)
    assert size == (6, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, COLOURS)
    luminance = COLOURS @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(path, channels=1)[..., 0], luminance, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bit_grey_keeps_one_channel(tmp_path, channels):
    path = save(tmp_path / "a.png", Image.fromarray(GREYS))
    np.testing.assert_array_equal(decode(path, channels), GREYS[..., None])


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_by_its_own_range(tmp_path, channels):
    values = np.random.default_rng(1).integers(0, 65536, (6, 8)).astype(np.uint16)
    values[0, :2] = 0, 65535
    path = save(tmp_path / "a.png", Image.fromarray(values))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    pixels = decode(path, channels)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[..., 0], values / 65535.0, atol=1e-6)


def test_one_bit(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREYS > 100))
    np.testing.assert_array_equal(decode(path)[..., 0], np.where(GREYS > 100, 255, 0))


def test_palette(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(64)
    path = save(tmp_path / "a.png", palette)
    with Image.open(path) as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(decode(path), np.asarray(palette.convert("RGB")))


def test_transparent_palette_entries_become_black(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(8)
    path = save(tmp_path / "a.png", palette, transparency=2)
    expected = np.array(palette.convert("RGB"))
    clear = np.asarray(palette) == 2
    assert clear.any()
    expected[clear] = 0
    np.testing.assert_array_equal(decode(path), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_onto_black(tmp_path, channels):
    alpha = np.full((6, 8, 1), 128, dtype=np.uint8)
    alpha[0] = 0
    colour = save(tmp_path / "a.png", Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)))
    grey = save(tmp_path / "b.png", Image.fromarray(np.concatenate([GREYS[..., None], alpha], axis=2)))
    for path, opaque in ((colour, COLOURS), (grey, np.repeat(GREYS[..., None], 3, axis=2))):
        expected = opaque * (alpha / 255.0)
        if channels == 1:
            expected = expected @ np.array([[0.299], [0.587], [0.114]])
        np.testing.assert_allclose(decode(path, channels), expected, atol=1.5)
        assert not decode(path, channels)[0].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_jpeg(tmp_path, channels):
    flat = Image.new("RGB", (8, 6), (200, 40, 90))
    path = save(tmp_path / "a.jpg", flat.convert("CMYK"), quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    expected = [200, 40, 90] if channels == 3 else [0.299 * 200 + 0.587 * 40 + 0.114 * 90]
    np.testing.assert_allclose(decode(path, channels)[3, 3], expected, atol=4)


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    upright, size = decode_image(path, 32, 16, 3)
    assert size == (32, 16)
    assert upright[:14].min() > 200
    assert upright[18:].max() < 50


def test_resizing_averages_instead_of_dropping_pixels(tmp_path):
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(checkerboard))
    small = decode(path, 1, height=8, width=16)
    assert small.shape == (8, 16, 1)
    np.testing.assert_allclose(small, 127.5, atol=3)
    deep = save(tmp_path / "b.png", Image.fromarray(checkerboard.astype(np.uint16) * 257))
    np.testing.assert_allclose(decode(deep, 1, height=8, width=16), 0.5, atol=0.01)


def test_damaged_files_say_what_is_wrong(tmp_path):
    png = save(tmp_path / "a.png", Image.fromarray(np.tile(COLOURS, (20, 20, 1)))).read_bytes()
    jpeg = save(tmp_path / "a.jpg", Image.fromarray(np.tile(COLOURS, (20, 20, 1)))).read_bytes()
    gif = save(tmp_path / "a.gif", Image.fromarray(GREYS)).read_bytes()
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    cases = {
        "empty.png": (b"", r"the file is empty \(zero bytes\)"),
        "text.png": (b"not an image at all", "neither PNG nor JPEG"),
        "other.png": (gif, "neither PNG nor JPEG"),
        "cut.png": (png[: len(png) // 2], "cannot be decoded"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], r"cannot be decoded \(.*truncated"),
        "flipped.png": (bytes(flipped), "cannot be decoded"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            decode(tmp_path / name)
    with pytest.raises(DataError, match="the file is gone"):
        decode(tmp_path / "absent.png")


@pytest.mark.filterwarnings("default")  # as outside the tests, where Pillow only warns
@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above its limit and raises above twice its limit
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with refuse_decompression_bombs(), pytest.raises(DataError, match="the image is too large"):
        decode(path)


def test_masks_of_every_format(tmp_path):
    truth = np.zeros((6, 8), dtype=bool)
    truth[1:4, 2:7] = True
    grey = np.where(truth, 255, 100).astype(np.uint8)
    images = {
        "grey": Image.fromarray(grey),
        "one_bit": Image.fromarray(truth),
        "low": Image.fromarray(truth.astype(np.uint8)),
        "deep": Image.fromarray(np.where(truth, 40000, 15000).astype(np.uint16)),
        "colour": Image.fromarray(np.repeat(grey[..., None], 3, axis=2)),
        "alpha": Image.fromarray(
            np.stack([np.full((6, 8), 255, dtype=np.uint8), np.where(truth, 255, 0).astype(np.uint8)], axis=2)
        ),
        "palette": Image.fromarray(truth.astype(np.uint8)),
    }
    images["palette"].putpalette([0, 0, 0, 128, 0, 0])
    for name, image in images.items():
        mask = decode_mask(save(tmp_path / f"{name}.png", image), (6, 8), 6, 8)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask[..., 0], truth, err_msg=name)


def test_masks_that_do_not_fit(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREYS))
    with pytest.raises(DataError, match=r"another size than its image: expected 6x8 pixels .*; received 8x6"):
        decode_mask(path, (8, 6), 8, 6)
    black = save(tmp_path / "b.png", Image.fromarray(np.zeros((6, 8), dtype=np.uint8)))
    with pytest.raises(DataError, match="zero everywhere"):
        decode_mask(black, (6, 8), 6, 8)
