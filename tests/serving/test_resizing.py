import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfcausal.serving.resizing import bilinear_weights, block_means, factors, resized


@tf.function(
    input_signature=[
        tf.TensorSpec((None, None, None), tf.uint8),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((), tf.bool),
    ]
)
def resize(image, wanted, lying):
    size = tf.shape(image)[:2]
    block = factors(size, wanted)
    covered = tf.cast(size, tf.float64) / tf.cast(block, tf.float64)
    return resized(block_means(image, block), covered, wanted, lying)


def pillow(image, wanted):
    """What `tfcausal.data.decoding` asks of Pillow."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    result = np.asarray(picture.resize(wanted[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0))
    return result.reshape(*wanted, image.shape[-1])


def some_sizes(count, most):
    generator = np.random.default_rng(7)
    edges = [(1, 1, 5, 7), (40, 3, 1, 2), (2, 300, 3, 1), (97, 97, 8, 8), (24, 24, 24, 24), (9, 200, 9, 20)]
    random = np.concatenate([generator.integers(1, most, (count, 2)), generator.integers(1, 40, (count, 2))], axis=1)
    return [*edges, *map(tuple, random.tolist())]


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_pillows_resize_bit_for_bit(channels):
    generator = np.random.default_rng(channels)
    for height, width, rows, columns in some_sizes(60, 300):
        image = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
        ours = resize(image, (rows, columns), False).numpy()
        np.testing.assert_array_equal(ours, pillow(image, (rows, columns)), err_msg=f"{height, width, rows, columns}")


def test_a_lying_image_is_resized_as_pillow_resizes_it_when_it_is_upright():
    generator = np.random.default_rng(0)
    for height, width, rows, columns in some_sizes(40, 300):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        upright = np.ascontiguousarray(image.transpose(1, 0, 2))
        ours = resize(image, (rows, columns), True).numpy()
        expected = pillow(upright, (columns, rows))
        np.testing.assert_array_equal(ours, expected, err_msg=f"{height, width, rows, columns}")


def test_extremes_stay_within_eight_bits():
    image = np.zeros((50, 50, 1), np.uint8)
    image[::2] = 255
    for value in (0, 255):
        assert (resize(np.full((50, 50, 1), value, np.uint8), (7, 9), False).numpy() == value).all()
    assert resize(image, (60, 60), False).numpy().max() == 255


def test_floats_are_resized_without_rounding_to_bytes():
    generator = np.random.default_rng(1)
    for height, width, rows, columns in some_sizes(20, 200):
        image = generator.random((height, width, 1), np.float32)
        wanted = tf.constant([rows, columns])
        block = factors(tf.constant([height, width]), wanted)
        covered = tf.constant([height, width], tf.float64) / tf.cast(block, tf.float64)
        ours = resized(block_means(tf.constant(image), block), covered, wanted).numpy()
        np.testing.assert_allclose(ours, pillow(image, (rows, columns)), atol=3e-7)


def test_weights_are_those_of_a_triangle():
    first, weights = bilinear_weights(tf.constant(6), tf.constant(6.0, tf.float64), tf.constant(2))
    # By hand: centres at 1.5 and 4.5, pixels at 0.5, 1.5, ..., a triangle of half-width 3.
    triangle = np.maximum(0, 1 - np.abs(np.arange(6)[None] + 0.5 - np.array([[1.5], [4.5]])) / 3)
    triangle /= triangle.sum(axis=1, keepdims=True)
    for row, start, own in zip(triangle, first.numpy(), weights.numpy(), strict=True):
        np.testing.assert_allclose(own[: 6 - start], row[start : start + len(own)], atol=1e-15)


def test_means_of_blocks_leave_out_what_is_not_there():
    image = tf.constant(np.arange(15, dtype=np.uint8).reshape(3, 5, 1))
    means = block_means(image, tf.constant([2, 2]))[..., 0].numpy()
    # (0+1+5+6)/4 = 3, (2+3+7+8)/4 = 5, (4+9)/2 = 6.5 -> 7, (10+11)/2 = 10.5 -> 11, ...
    np.testing.assert_array_equal(means, [[3, 5, 7], [11, 13, 14]])
