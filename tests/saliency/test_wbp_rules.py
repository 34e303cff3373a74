"""Every WBP rule in float64 against a plain matrix: ``W_in = W_out B`` and ``offset = <W_out, f(x) - B x>``.

Where a layer is linear around a point that is not on a kink, central differences on its own forward pass give the
matrix to rounding; the inputs keep 0.01 from a kink. Where a map is linear only with something frozen (batch
statistics, standard deviations, gates, the other factors), its matrix is written down by hand.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.usefixtures("float64")
L, ops = keras.layers, keras.ops
SHAPE = (5, 6, 2)
SEQUENCE, IMAGE, VOLUME = (7, 4), (6, 6, 4), (4, 5, 4, 2)
FIRST = {"data_format": "channels_first"}


@pytest.mark.parametrize("kernel_size", [1, 3, (3, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
def test_conv2d(frozen, strides, padding, kernel_size):
    layer = L.Conv2D(3, kernel_size, strides=strides, padding=padding, use_bias=kernel_size != 1)
    frozen.assert_measured(frozen.network(layer), frozen.spaced(2))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), SHAPE])
def test_dense(frozen, shape, use_bias):
    frozen.assert_measured(frozen.network(L.Dense(4, use_bias=use_bias), shape), frozen.spaced(2, shape))


EINSUM_DENSE = {
    "vectors": ((7,), "ab,bc->ac", 4, "c"),
    "several axes": (SHAPE, "abcd,cde->abe", (5, 3), "e"),
    "ellipsis": (SHAPE, "...d,de->...e", 3, "e"),
    "bias on two axes": (SHAPE, "abcd,de->abce", (5, 6, 3), "ce"),
    "without bias": (SHAPE, "abcd,cde->abe", (5, 3), None),
}


@pytest.mark.parametrize("name", EINSUM_DENSE)
def test_einsum_dense(frozen, name):
    shape, equation, output_shape, bias_axes = EINSUM_DENSE[name]
    layer = L.EinsumDense(equation, output_shape, bias_axes=bias_axes)
    frozen.assert_measured(frozen.network(layer, shape), frozen.spaced(2, shape))


CONVOLUTIONS = {
    "1d": (SEQUENCE, lambda: L.Conv1D(3, 3, strides=2, padding="same")),
    "1d dilated": (SEQUENCE, lambda: L.Conv1D(3, 2, dilation_rate=3)),
    "1d causal": (SEQUENCE, lambda: L.Conv1D(3, 3, padding="causal")),
    "1d causal dilated": (SEQUENCE, lambda: L.Conv1D(3, 2, padding="causal", dilation_rate=2)),
    "1d causal strides": (SEQUENCE, lambda: L.Conv1D(3, 3, padding="causal", strides=2)),
    "1d causal groups": (SEQUENCE, lambda: L.Conv1D(4, 3, padding="causal", groups=4)),
    "1d groups": (SEQUENCE, lambda: L.Conv1D(4, 3, groups=4)),
    "2d dilated": (IMAGE, lambda: L.Conv2D(3, 2, dilation_rate=2)),
    "2d dilated unevenly": (IMAGE, lambda: L.Conv2D(3, 2, dilation_rate=(1, 3), padding="same")),
    "2d groups": (IMAGE, lambda: L.Conv2D(6, 3, groups=2, padding="same", strides=2)),
    "2d groups of one channel": (IMAGE, lambda: L.Conv2D(4, 3, groups=4, strides=2)),
    "2d groups of one channel, dilated": (IMAGE, lambda: L.Conv2D(4, 3, groups=4, dilation_rate=2)),
    "2d groups of one channel, more filters": (IMAGE, lambda: L.Conv2D(8, 3, groups=4, padding="same")),
    "2d groups of one channel, uneven strides": (IMAGE, lambda: L.Conv2D(4, 3, groups=4, strides=(2, 1))),
    "2d as many groups as filters": (IMAGE, lambda: L.Conv2D(2, 3, groups=2)),
    "3d": (VOLUME, lambda: L.Conv3D(3, 2, strides=(1, 2, 1), padding="same")),
    "3d valid": (VOLUME, lambda: L.Conv3D(2, (2, 1, 3))),
    "1d transposed": (SEQUENCE, lambda: L.Conv1DTranspose(3, 3, strides=2)),
    "1d transposed, output padding": (SEQUENCE, lambda: L.Conv1DTranspose(3, 3, strides=2, output_padding=1)),
    "2d transposed": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2, padding="same")),
    "2d transposed, output padding": (
        IMAGE,
        lambda: L.Conv2DTranspose(3, 3, strides=(2, 3), padding="same", output_padding=(1, 2)),
    ),
    "3d transposed": (VOLUME, lambda: L.Conv3DTranspose(2, 2, strides=2)),
    "1d depthwise": (SEQUENCE, lambda: L.DepthwiseConv1D(3, depth_multiplier=2, strides=2, padding="same")),
    "2d depthwise": (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same")),
    "2d depthwise, dilated": (IMAGE, lambda: L.DepthwiseConv2D(2, dilation_rate=2, use_bias=False)),
    "1d separable": (SEQUENCE, lambda: L.SeparableConv1D(3, 3, depth_multiplier=2, padding="same", strides=2)),
    "2d separable": (IMAGE, lambda: L.SeparableConv2D(3, 3, depth_multiplier=2, padding="same", strides=2)),
    "2d separable, dilated": (IMAGE, lambda: L.SeparableConv2D(3, 2, dilation_rate=2, use_bias=False)),
    # A processor runs no other convolutions with the channels first.
    "2d depthwise, channels first": ((4, 6, 5), lambda: L.DepthwiseConv2D(3, **FIRST)),
    "3d channels first": ((2, 4, 5, 4), lambda: L.Conv3D(2, 2, **FIRST)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(frozen, name):
    shape, layer = CONVOLUTIONS[name]
    frozen.assert_measured(frozen.network(layer(), shape), frozen.spaced(2, shape))


POOLINGS = {
    "max": (SHAPE, lambda: L.MaxPooling2D()),
    "max same": (SHAPE, lambda: L.MaxPooling2D(2, padding="same")),
    "max overlapping": (SHAPE, lambda: L.MaxPooling2D((3, 2), strides=(1, 2))),
    "max overlapping same": (SHAPE, lambda: L.MaxPooling2D(3, strides=2, padding="same")),
    "max channels first": (SHAPE, lambda: L.MaxPooling2D((3, 1), **FIRST)),
    "max 1d": (SEQUENCE, lambda: L.MaxPooling1D(3, strides=2, padding="same")),
    "average": (SHAPE, lambda: L.AveragePooling2D(2)),
    "average same": (SHAPE, lambda: L.AveragePooling2D(2, padding="same")),
    "average overlapping": (SHAPE, lambda: L.AveragePooling2D((3, 2), strides=(1, 2))),
    "average overlapping same": (SHAPE, lambda: L.AveragePooling2D(3, strides=2, padding="same")),
    "average channels first": (SHAPE, lambda: L.AveragePooling2D((3, 1), **FIRST)),
    "average 1d": (SEQUENCE, lambda: L.AveragePooling1D(3, strides=2, padding="same")),
    "global average": (SHAPE, lambda: L.GlobalAveragePooling2D()),
    "global average, axes kept": (SHAPE, lambda: L.GlobalAveragePooling2D(keepdims=True)),
    "global average, channels first": (SHAPE, lambda: L.GlobalAveragePooling2D(**FIRST)),
    "global average 1d": (SEQUENCE, lambda: L.GlobalAveragePooling1D()),
    "global average 3d": (VOLUME, lambda: L.GlobalAveragePooling3D()),
    "global max": (SHAPE, lambda: L.GlobalMaxPooling2D()),
    "global max, axes kept": (SHAPE, lambda: L.GlobalMaxPooling2D(keepdims=True)),
    "global max, channels first": (SHAPE, lambda: L.GlobalMaxPooling2D(**FIRST)),
    "global max 1d": (SEQUENCE, lambda: L.GlobalMaxPooling1D()),
    "global max 3d": (VOLUME, lambda: L.GlobalMaxPooling3D()),
    "adaptive average 1d": (SEQUENCE, lambda: L.AdaptiveAveragePooling1D(3)),
    "adaptive average 2d": (SHAPE, lambda: L.AdaptiveAveragePooling2D((2, 4))),
    "adaptive average, channels first": (SHAPE, lambda: L.AdaptiveAveragePooling2D((4, 1), **FIRST)),
    "adaptive max 1d": (SEQUENCE, lambda: L.AdaptiveMaxPooling1D(3)),
    "adaptive max 2d": (SHAPE, lambda: L.AdaptiveMaxPooling2D((2, 4))),
}
SHAPES = {
    "flatten": (SHAPE, lambda: L.Flatten()),
    "flatten channels first": (SHAPE, lambda: L.Flatten(**FIRST)),
    "reshape": (SHAPE, lambda: L.Reshape((3, -1))),
    "permute": (SHAPE, lambda: L.Permute((3, 1, 2))),
    "repeat": ((4,), lambda: L.RepeatVector(3)),
    "identity": (SHAPE, lambda: L.Identity()),
    "activity": (SHAPE, lambda: L.ActivityRegularization(0.1)),
    "padding": (SHAPE, lambda: L.ZeroPadding2D(2)),
    "asymmetric padding": (SHAPE, lambda: L.ZeroPadding2D(((1, 0), (0, 3)))),
    "padding, channels first": (SHAPE, lambda: L.ZeroPadding2D(1, **FIRST)),
    "padding 1d": (SEQUENCE, lambda: L.ZeroPadding1D((1, 2))),
    "padding 3d": (VOLUME, lambda: L.ZeroPadding3D(1)),
    "cropping 1d": (SEQUENCE, lambda: L.Cropping1D((1, 2))),
    "cropping 2d": (SHAPE, lambda: L.Cropping2D(((1, 0), (2, 1)))),
    "cropping 3d": (VOLUME, lambda: L.Cropping3D(1)),
    "up-sampling 1d": (SEQUENCE, lambda: L.UpSampling1D(2)),
    "up-sampling 2d": (SHAPE, lambda: L.UpSampling2D((2, 3))),
    "up-sampling 3d": (VOLUME, lambda: L.UpSampling3D(2)),
    "center crop": (SHAPE, lambda: L.CenterCrop(3, 4)),
    "rescaling": (SHAPE, lambda: L.Rescaling(1 / 127.5, offset=-1)),
    "rescaling by channel": (SHAPE, lambda: L.Rescaling([0.5, 2.0], offset=[1.0, -3.0])),
    "normalization": (SHAPE, lambda: L.Normalization(mean=[0.2, -0.4], variance=[2.0, 0.3])),
    "normalization of places": (SHAPE, lambda: L.Normalization(axis=1, mean=np.arange(5), variance=np.arange(1, 6))),
    "normalization of everything": (SHAPE, lambda: L.Normalization(axis=None, mean=0.3, variance=4.0)),
    "inverse normalization": (
        SHAPE,
        lambda: L.Normalization(mean=[0.2, -0.4], variance=[2.0, 0.3], invert=True),
    ),
    "random crop of the same size": (SHAPE, lambda: L.RandomCrop(5, 6)),
    "random crop": (SHAPE, lambda: L.RandomCrop(3, 4)),
    "dropout in inference": (SHAPE, lambda: L.Dropout(0.5)),
    "alpha dropout in inference": (SHAPE, lambda: L.AlphaDropout(0.5)),
}


@pytest.mark.parametrize("name", [*POOLINGS, *SHAPES])
def test_layer(frozen, name):
    shape, layer = {**POOLINGS, **SHAPES}[name]
    frozen.assert_measured(frozen.network(layer(), shape), frozen.spaced(2, shape))


FLOAT32_POOLINGS = {
    "max 3d": lambda: L.MaxPooling3D(2, padding="same"),
    "average 3d": lambda: L.AveragePooling3D(2),
    "average 3d same": lambda: L.AveragePooling3D(2, padding="same"),
    "adaptive average 3d": lambda: L.AdaptiveAveragePooling3D((2, 1, 2)),
    "adaptive max 3d": lambda: L.AdaptiveMaxPooling3D(2),
}


@pytest.mark.parametrize("name", FLOAT32_POOLINGS)
def test_pooling_of_volumes(frozen, name):
    """In float32, the only precision they have on a processor; of multiples of 1/8 it takes exact differences."""
    keras.config.set_dtype_policy("float32")
    model = frozen.network(FLOAT32_POOLINGS[name](), VOLUME)
    images = np.round(50 * frozen.spaced(2, VOLUME) + 0.5).astype("float32")
    frozen.assert_measured(model, images, atol=1e-3, step=0.125)


def test_adapted_normalization(frozen):
    layer, images = L.Normalization(), frozen.spaced(4)
    layer.adapt(3 * images + 1)
    inputs = keras.Input(SHAPE, dtype="float64")
    frozen.assert_measured(keras.Model(inputs, L.Flatten()(layer(inputs))), images)


RESIZINGS = {
    "bilinear up-sampling": lambda: L.UpSampling2D(2, interpolation="bilinear"),
    "bicubic up-sampling": lambda: L.UpSampling2D(2, interpolation="bicubic"),
    "bilinear": lambda: L.Resizing(7, 4),
    "nearest": lambda: L.Resizing(3, 8, interpolation="nearest"),
    "padded": lambda: L.Resizing(8, 4, pad_to_aspect_ratio=True, fill_value=0.5),
    "cropped": lambda: L.Resizing(4, 4, crop_to_aspect_ratio=True),
    "center crop of small images": lambda: L.CenterCrop(8, 7),
    "random crop of small images": lambda: L.RandomCrop(8, 7),
    "operation": lambda: lambda x: ops.image.resize(x, (3, 8)),
}


@pytest.mark.parametrize("name", RESIZINGS)
def test_resizing(frozen, name):
    """TensorFlow resizes in float32, so the columns of the matrix are the images of unit vectors, and less exact."""
    model = frozen.network(RESIZINGS[name]())

    def twin(image, place):
        constant = model(np.zeros((1, *SHAPE)), training=False).numpy()[0]
        columns = model(np.eye(image.size).reshape(-1, *SHAPE), training=False).numpy() - constant
        return columns.T, constant

    frozen.assert_follows(model, frozen.spaced(2), twin, atol=2e-6)


@pytest.mark.parametrize(
    "layer", [lambda: L.Resizing(3, 8, interpolation="lanczos3"), lambda: L.Resizing(3, 3, antialias=True)]
)
def test_resizing_that_has_a_gradient_in_float32_only(frozen, layer):
    keras.config.set_dtype_policy("float32")
    model = frozen.network(layer())
    matrix = model(np.eye(60, dtype="float32").reshape(-1, *SHAPE), training=False).numpy().T
    images = frozen.spaced(2).astype("float32")
    frozen.assert_follows(model, images, lambda image, place: (matrix, np.zeros(len(matrix))), atol=1e-5)


AUGMENTATIONS = {
    "AugMix": {},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.3},
    "RandomColorDegeneration": {"factor": 0.3},
    "RandomColorJitter": {"brightness_factor": 0.3},
    "RandomContrast": {"factor": 0.3},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": 0.3},
    "RandomInvert": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 3},
    "RandomRotation": {"factor": 0.3},
    "RandomSaturation": {"factor": 0.3},
    "RandomSharpness": {"factor": 0.3},
    "RandomShear": {},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_the_identity_in_inference(frozen, name):
    shape = (8, 8, 3)
    keras.config.set_dtype_policy("float32")
    model = frozen.network(getattr(L, name)(**AUGMENTATIONS[name]), shape)
    images = frozen.spaced(2, shape).astype("float32")
    cotangent = np.random.default_rng(2).normal(size=(2, 192)).astype("float32")
    weights, offsets, logits = frozen.walk(model, images, cotangent)
    np.testing.assert_array_equal(logits, images.reshape(2, -1))
    np.testing.assert_array_equal(weights, cotangent.reshape(images.shape))
    np.testing.assert_array_equal(offsets, 0)


MERGES = {
    "add": lambda x: L.Add()([x, L.Dense(2)(x)]),
    "add three": lambda x: L.Add()([x, L.Dense(2)(x), L.Conv2D(2, 3, padding="same")(x)]),
    "add twice the same": lambda x: L.Add()([x, x]),
    "add over pixels": lambda x: L.Add()([L.GlobalAveragePooling2D(keepdims=True)(x), x]),
    "add over channels": lambda x: L.Add()([x, L.Conv2D(1, 1)(x)]),
    "add over rows": lambda x: L.Add()([x, L.AveragePooling2D((5, 1))(x)]),
    "add of another rank": lambda x: L.Add()([x, L.GlobalAveragePooling2D()(x)]),
    "add of another rank, one channel": lambda x: L.Add()([L.Dense(1)(L.Flatten()(x)), x]),
    "subtract": lambda x: L.Subtract()([L.Dense(2)(x), x]),
    "average": lambda x: L.Average()([L.Dense(2)(x), x, x]),
    "maximum": lambda x: L.Maximum()([x, ops.flip(x, axis=2)]),
    "maximum of three": lambda x: L.Maximum()([x, ops.flip(x, axis=2), 0.5 * x]),
    "minimum": lambda x: L.Minimum()([x, ops.flip(x, axis=2)]),
    "maximum over pixels": lambda x: ops.maximum(L.GlobalAveragePooling2D(keepdims=True)(x), x),
    "concatenate": lambda x: L.Concatenate()([x, L.Dense(3)(x), x]),
    "concatenate rows": lambda x: L.Concatenate(axis=1)([x, L.MaxPooling2D((2, 1))(x)]),
    "concatenate columns": lambda x: L.Concatenate(axis=-2)([L.ZeroPadding2D((0, 1))(x), x]),
    "concatenate vectors": lambda x: L.Concatenate()([L.Flatten()(x), L.GlobalMaxPooling2D()(x)]),
}
ARRAY = np.random.default_rng(5).normal(size=SHAPE)
WEIGHT = np.random.default_rng(6).normal(size=(2, 3))
KERNEL = np.random.default_rng(7).normal(size=(3, 2, 2, 4))
OPERATIONS = {
    "times a number": lambda x: x * 2.0,
    "number times": lambda x: -0.5 * x,
    "times an array": lambda x: x * ARRAY,
    "times a larger array": lambda x: ops.multiply(ARRAY, ops.mean(x, axis=(1, 2, 3), keepdims=True)),
    "minus a number": lambda x: x - 0.3,
    "number minus": lambda x: 1.0 - x,
    "plus an array": lambda x: x + ARRAY,
    "plus a larger array": lambda x: ops.mean(x, axis=-1, keepdims=True) + ARRAY,
    "plus a tensor": lambda x: x + ops.flip(x, axis=1),
    "divided by a number": lambda x: x / 3,
    "divided by an array": lambda x: ops.divide(x, 2 + ARRAY**2),
    "negative": lambda x: -x,
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "sum": lambda x: ops.sum(x, axis=1, keepdims=True),
    "weighted average": lambda x: ops.average(x, axis=1, weights=np.arange(1.0, 6.0)),
    "cumulative sum": lambda x: ops.cumsum(x, axis=2),
    "differences": lambda x: ops.diff(x, axis=1),
    "max": lambda x: ops.max(x, axis=(1, 2)),
    "min": lambda x: ops.min(x, axis=3),
    "largest": lambda x: ops.amax(x, axis=1),
    "smallest": lambda x: ops.amin(x, axis=1),
    "concatenate": lambda x: ops.concatenate([x, 2.0 * x], axis=2),
    "stack": lambda x: ops.stack([x, -x], axis=1),
    "horizontally": lambda x: ops.hstack([x, -x]),
    "split, all parts": lambda x: ops.multiply(2.0, ops.split(x, 3, axis=2)[0]) - ops.split(x, 3, axis=2)[2],
    "split, parts unused": lambda x: ops.split(x, [1, 4], axis=2)[1],
    "unstack": lambda x: ops.unstack(x, axis=1)[3],
    "slice of columns": lambda x: x[:, 1:],
    "slice with steps": lambda x: x[:, ::-2, 1:-1],
    "one place": lambda x: x[:, 2, 3],
    "new axis": lambda x: x[:, None],
    "take": lambda x: ops.take(x, [3, 1, 1], axis=2),
    "reshape": lambda x: ops.reshape(x, (-1, 10, 6)),
    "squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "swap axes": lambda x: ops.swapaxes(x, 1, 2),
    "move axis": lambda x: ops.moveaxis(x, 1, -1),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=0.7),
    "pad by reflection": lambda x: ops.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="reflect"),
    "flip": lambda x: ops.flip(x, axis=2),
    "roll": lambda x: ops.roll(x, 2, axis=1),
    "rotate": lambda x: ops.rot90(x, axes=(1, 2)),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 3)),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "cast": lambda x: ops.cast(x, "float64"),
    "copy": lambda x: ops.copy(x),
    "max pool": lambda x: ops.max_pool(x, 2, padding="same"),
    "average pool": lambda x: ops.average_pool(x, 2, 1),
    "adaptive pools": lambda x: ops.adaptive_average_pool(x, (2, 2)) - ops.adaptive_max_pool(x, (2, 2)),
    "depth to space": lambda x: ops.depth_to_space(ops.concatenate([x, x], axis=-1), 2),
    "space to depth": lambda x: ops.space_to_depth(x[:, 1:], 2),
    "matrix product with a weight": lambda x: x @ WEIGHT,
    "weight on the left": lambda x: ops.matmul(ARRAY[None, :, :3, 0], x[:, :3, :, 1]),
    "dot with a weight": lambda x: ops.dot(x, WEIGHT),
    "tensordot with a weight": lambda x: ops.tensordot(x, WEIGHT, axes=1),
    "einsum with a weight": lambda x: ops.einsum("nhwc,cd->nwd", x, WEIGHT),
    "convolution": lambda x: ops.conv(x, KERNEL, strides=2, padding="same"),
    "depthwise convolution": lambda x: ops.depthwise_conv(x, KERNEL[..., :1]),
    "separable convolution": lambda x: ops.separable_conv(x, KERNEL[..., :2], np.ones((1, 1, 4, 3)), padding="same"),
    "fold": lambda x: ops.fold(L.Reshape((12, 5))(x), (2, 6), (2, 2)),
    "grayscale": lambda x: ops.image.rgb_to_grayscale(ops.concatenate([x, x[..., :1]], axis=-1)),
    "blur": lambda x: ops.image.gaussian_blur(x),
    "selection": lambda x: ops.where(x > 0.2, 2.0 * x, 1.0 - x),
    "selection by an array": lambda x: ops.where(ARRAY > 0, x, 0.5),
    "square of a maximum": lambda x: ops.maximum(ops.max(x, axis=1), ops.mean(x, axis=1)),
    "patches": lambda x: ops.image.extract_patches(x, 2),
    "crop": lambda x: ops.image.crop_images(x, 1, 2, target_height=3, target_width=3),
    "pad images": lambda x: ops.image.pad_images(x, 1, 2, target_height=9, target_width=9),
}


@pytest.mark.parametrize("name", [*MERGES, *OPERATIONS])
def test_operation(frozen, name):
    frozen.assert_measured(frozen.network({**MERGES, **OPERATIONS}[name]), frozen.spaced(2))


def test_functions_that_name_the_batch(frozen):
    images, cotangent = frozen.spaced(2), np.random.default_rng(2).normal(size=(2, 120))
    x = keras.Input(batch_shape=(2, *SHAPE), dtype="float64")
    repeated = keras.Model(x, L.Flatten()(ops.broadcast_to(ops.expand_dims(x, 1), (2, 2, *SHAPE))))
    weights, _, _ = frozen.walk(repeated, images, cotangent)
    np.testing.assert_allclose(weights, cotangent.reshape(2, 2, *SHAPE).sum(1), rtol=0, atol=1e-12)
    part = keras.Model(x, L.Flatten()(ops.slice(x, (0, 1, 2, 0), (2, 3, 4, 1))))
    weights, _, _ = frozen.walk(part, images, cotangent[:, :12])
    expected = np.zeros_like(images)
    expected[:, 1:4, 2:6, :1] = cotangent[:, :12].reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(weights, expected)


def test_unused_and_used_parts_of_a_split_take_part_together(frozen):
    def build(x):
        first, _, third = ops.split(x, 3, axis=2)
        return L.Concatenate()([L.Flatten()(first * 3.0), L.Flatten()(third), L.Flatten()(first)])

    frozen.assert_measured(frozen.network(build), frozen.spaced(2))


# Batch normalisation


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((4,), -1), (SHAPE, -1), (SHAPE, 1), (SHAPE, 2)])
def test_batch_normalization_in_inference(frozen, shape, axis, center, scale):
    layer = L.BatchNormalization(center=center, scale=scale, axis=axis)
    frozen.assert_measured(frozen.network(layer, shape), frozen.spaced(2, shape))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((4,), -1), (SHAPE, -1), (SHAPE, 1)])
def test_batch_normalization_in_training(frozen, shape, axis, center, scale):
    layer = L.BatchNormalization(center=center, scale=scale, epsilon=0.01, axis=axis)
    model, images = frozen.network(layer, shape), 3 * frozen.spaced(4, shape) + 2
    channels = axis % images.ndim
    axes = tuple(place for place in range(images.ndim) if place != channels)
    spread = [-1 if place == channels else 1 for place in range(images.ndim)]
    # Frozen: the statistics of this batch are numbers, so every value is x * gain + shift.
    gain = (layer.gamma.numpy() if scale else 1.0) / np.sqrt(images.var(axis=axes) + 0.01)
    shift = (layer.beta.numpy() if center else 0.0) - images.mean(axis=axes) * gain
    gains, shifts = (np.broadcast_to(value.reshape(spread), (1, *shape)).ravel() for value in (gain, shift))
    frozen.assert_follows(model, images, lambda image, place: (np.diag(gains), shifts), training=True)


def test_frozen_batch_normalization_keeps_its_moving_statistics_in_training(frozen):
    layer = L.BatchNormalization()
    model, images = frozen.network(layer), 3 * frozen.spaced(3) + 2
    layer.trainable = False
    cotangent = np.random.default_rng(2).normal(size=(3, 60))

    in_training = frozen.walk(model, images, cotangent, training=True)
    in_inference = frozen.walk(model, images, cotangent, training=False)

    for got, expected in zip(in_training, in_inference, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


# The other normalisations: standard deviations are constants, means are not.


def normalisation_twin(image, axes, epsilon, gain, shift, centred=True):
    """B and c of gain * (x - mean) / sqrt(var + epsilon) + shift, the square root frozen."""
    spread = image.var(axis=axes, keepdims=True) if centred else (image**2).mean(axis=axes, keepdims=True)
    factor = np.broadcast_to(gain / np.sqrt(spread + epsilon), image.shape).ravel()
    unit = np.eye(image.size).reshape(-1, *image.shape)
    means = unit.mean(axis=tuple(axis + 1 for axis in axes), keepdims=True) if centred else 0.0
    centring = (unit - means).reshape(image.size, -1).T
    return factor[:, None] * centring, np.broadcast_to(shift, image.shape).ravel()


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, False)])
@pytest.mark.parametrize("axis", [-1, 1, (1, 3), (2, 3), (1, 2, 3), (-1, -2)])
def test_layer_normalization(frozen, axis, center, scale):
    layer = L.LayerNormalization(axis=axis, center=center, scale=scale, epsilon=0.02)
    model = frozen.network(layer)
    axes = [place % 4 - 1 for place in np.atleast_1d(axis)]
    spread = [size if place in axes else 1 for place, size in enumerate(SHAPE)]
    gain = layer.gamma.numpy().reshape(spread) if scale else 1.0
    shift = layer.beta.numpy().reshape(spread) if center else 0.0
    frozen.assert_follows(
        model,
        3 * frozen.spaced(2) + 1,
        lambda image, place: normalisation_twin(image, tuple(axes), 0.02, gain, shift),
    )


@pytest.mark.parametrize("axis", [-1, (2, 3), (1, 2, 3)])  # Keras does not broadcast its scale to others
def test_rms_normalization(frozen, axis):
    layer = L.RMSNormalization(axis=axis, epsilon=0.02)
    model = frozen.network(layer)
    axes = [place % 4 - 1 for place in np.atleast_1d(axis)]
    spread = [size if place in axes else 1 for place, size in enumerate(SHAPE)]
    gain = layer.scale.numpy().reshape(spread)
    frozen.assert_follows(
        model,
        3 * frozen.spaced(2) + 1,
        lambda image, place: normalisation_twin(image, tuple(axes), 0.02, gain, 0.0, centred=False),
    )


@pytest.mark.parametrize("axis", [-1, 1, (1, 3)])
def test_unit_normalization(frozen, axis):
    axes = tuple(place % 4 - 1 for place in np.atleast_1d(axis))

    def twin(image, place):
        norm = np.sqrt((image**2).sum(axis=axes, keepdims=True))
        return np.diag(np.broadcast_to(1 / norm, image.shape).ravel()), np.zeros(image.size)

    frozen.assert_follows(frozen.network(L.UnitNormalization(axis=axis)), frozen.spaced(2), twin)


@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_unit_normalization_of_tiny_vectors(frozen, size):
    image = np.full((1, 3), size)
    weights, _, logits = frozen.walk(frozen.network(L.UnitNormalization(), (3,)), image, np.ones((1, 3)))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights * image, logits, rtol=1e-12)


@pytest.mark.parametrize(("groups", "axis"), [(2, -1), (4, -1), (-1, -1), (1, -1), (3, 2)])
@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, False)])
def test_group_normalization(frozen, groups, axis, center, scale):
    layer = L.GroupNormalization(groups, axis=axis, center=center, scale=scale, epsilon=0.02)
    model = frozen.network(layer, IMAGE)
    channels = axis % 4 - 1
    count = IMAGE[channels] if groups == -1 else groups
    spread = [size if place == channels else 1 for place, size in enumerate(IMAGE)]
    gain = np.broadcast_to(layer.gamma.numpy().reshape(spread) if scale else 1.0, IMAGE)
    shift = np.broadcast_to(layer.beta.numpy().reshape(spread) if center else 0.0, IMAGE)

    def twin(image, place):
        matrix, size = np.zeros((image.size, image.size)), IMAGE[channels] // count
        for group in range(count):
            members = np.zeros(IMAGE, bool)
            index = [slice(None)] * 3
            index[channels] = slice(group * size, (group + 1) * size)
            members[tuple(index)] = True
            members = members.ravel()
            inverse = 1 / np.sqrt(image.ravel()[members].var() + 0.02)
            centring = np.eye(members.sum()) - 1 / members.sum()
            matrix[np.ix_(members, members)] = gain.ravel()[members][:, None] * inverse * centring
        return matrix, shift.ravel()

    frozen.assert_follows(model, 3 * frozen.spaced(2, IMAGE) + 1, twin)


# Randomness in training


def draw(layer, images):
    """What the layer will draw next, seen through other images."""
    state = layer.seed_generator.state.numpy()
    drawn = layer(images, training=True).numpy()
    layer.seed_generator.state.assign(state)
    return drawn


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: L.Dropout(0.4, seed=3), SHAPE),
        (lambda: L.Dropout(0.4, noise_shape=(None, 1, 1, 2), seed=3), SHAPE),
        (lambda: L.SpatialDropout1D(0.4, seed=3), SEQUENCE),
        (lambda: L.SpatialDropout2D(0.4, seed=3), SHAPE),
        (lambda: L.SpatialDropout3D(0.4, seed=4), VOLUME),
        (lambda: L.GaussianDropout(0.4, seed=3), SHAPE),
    ],
)
def test_dropout_in_training(frozen, build, shape):
    layer = build()
    model, images = frozen.network(layer, shape), frozen.spaced(3, shape)
    factors = draw(layer, np.ones_like(images))
    assert factors.std() > 0.1
    frozen.assert_follows(
        model, images, lambda image, place: (np.diag(factors[place].ravel()), np.zeros(image.size)), training=True
    )


def test_gaussian_noise_in_training(frozen):
    layer = L.GaussianNoise(0.4, seed=3)
    model, images = frozen.network(layer), frozen.spaced(3)
    noise = draw(layer, np.zeros_like(images))
    assert noise.std() > 0.1
    frozen.assert_follows(model, images, lambda image, place: (np.eye(60), noise[place].ravel()), training=True)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_zeros_gives_finite_weights(frozen, rate):
    model = frozen.network(L.Dropout(rate))
    weights, _, _ = frozen.walk(model, np.zeros((2, *SHAPE)), np.ones((2, 60)), training=True)
    assert np.isfinite(weights).all()


# Products


def two_inputs(build, first, second):
    inputs = [keras.Input(first), keras.Input(second)]
    outputs = build(inputs)
    return keras.Model(inputs, outputs if len(outputs.shape) == 2 else L.Flatten()(outputs))


def product_of(frozen, build, *values, seed=2):
    """Weights at the inputs, logits and the cotangent, for a model of a product of its inputs."""
    inputs = [keras.Input(value.shape[1:]) for value in values]
    outputs = build(inputs)
    model = keras.Model(inputs, L.Flatten()(outputs))
    cotangent = np.random.default_rng(seed).normal(size=model(list(values)).shape)
    weights, offsets, logits = frozen.walk(model, list(values), cotangent)
    np.testing.assert_array_equal(offsets, 0)
    return weights, logits, cotangent.reshape((len(cotangent), *outputs.shape[1:]))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


MULTIPLICATIONS = {"layer": lambda x: L.Multiply()(x), "operation": lambda x: x[0] * x[1]}


@pytest.mark.parametrize("multiply", MULTIPLICATIONS)
def test_factors_of_a_product_share_alike(frozen, multiply):
    a, b = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    (got_a, got_b), logits, cotangent = product_of(frozen, MULTIPLICATIONS[multiply], a, b)
    np.testing.assert_allclose(logits, (a * b).reshape(3, -1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_a, cotangent * b / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_b, cotangent * a / 2, rtol=0, atol=1e-12)


def test_three_factors_share_alike(frozen):
    values = [normal(3, 4, seed=seed) for seed in range(3)]
    got, _, cotangent = product_of(frozen, lambda x: L.Multiply()(x), *values)
    for place in range(3):
        others = np.prod([value for other, value in enumerate(values) if other != place], axis=0)
        np.testing.assert_allclose(got[place], cotangent * others / 3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 2), (4, 5, 1), (4, 1, 1), (2,)])
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("multiply", MULTIPLICATIONS)
def test_a_factor_that_is_spread_is_a_gate(frozen, multiply, gate_first, shape):
    a, gate = normal(3, 4, 5, 2), normal(3, *shape, seed=1)
    if shape == (2,):
        a, gate = normal(3, 3, 2), normal(3, 2, seed=1)  # broadcasting gives the batch of the gate to the rows
        (got_a, got_gate), _, cotangent = product_of(frozen, MULTIPLICATIONS[multiply], a, gate[:, None, :])
        gate = gate[:, None, :]
    elif gate_first:
        (got_gate, got_a), _, cotangent = product_of(frozen, MULTIPLICATIONS[multiply], gate, a)
    else:
        (got_a, got_gate), _, cotangent = product_of(frozen, MULTIPLICATIONS[multiply], a, gate)
    np.testing.assert_allclose(got_a, cotangent * gate, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(got_gate, 0)


def test_factors_that_are_both_spread_share_alike(frozen):
    a, b = normal(3, 4, 1), normal(3, 1, 5, seed=1)
    (got_a, got_b), _, cotangent = product_of(frozen, lambda x: L.Multiply()(x), a, b)
    np.testing.assert_allclose(got_a, (cotangent * b).sum(2, keepdims=True) / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_b, (cotangent * a).sum(1, keepdims=True) / 2, rtol=0, atol=1e-12)


GATES = {
    "sigmoid": lambda x: L.Activation("sigmoid")(x),
    "dense sigmoid": lambda x: L.Dense(5, activation="sigmoid", kernel_initializer="identity")(x),
    "sigmoid operation": ops.sigmoid,
    "reshaped sigmoid": lambda x: ops.reshape(ops.transpose(ops.expand_dims(ops.sigmoid(x), -1), (0, 2, 1)), (-1, 5)),
    "dropped sigmoid": lambda x: L.Dropout(0.1)(L.Reshape((5,))(ops.sigmoid(x))),
}


@pytest.mark.parametrize("name", GATES)
def test_a_sigmoid_is_a_gate(frozen, name):
    a, b = normal(3, 5), normal(3, 5, seed=1)
    build = lambda x: L.Multiply()([x[0], GATES[name](x[1])])
    (got_a, got_b), _, cotangent = product_of(frozen, build, a, b)
    np.testing.assert_allclose(got_a, cotangent / (1 + np.exp(-b)), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(got_b, 0)


def test_softmax_and_hard_sigmoid_are_gates(frozen):
    a, b = normal(3, 5), normal(3, 5, seed=1)
    softmax = np.exp(b) / np.exp(b).sum(1, keepdims=True)
    hard = np.clip(b / 6 + 0.5, 0, 1)
    for layer, gate in ((L.Softmax(), softmax), (L.Activation("softmax"), softmax), (ops.hard_sigmoid, hard)):
        (got_a, got_b), _, cotangent = product_of(frozen, lambda x, layer=layer: x[0] * layer(x[1]), a, b)
        np.testing.assert_allclose(got_a, cotangent * gate, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got_b, 0)


@pytest.mark.parametrize("build", [lambda x: L.Multiply()([x, x]), ops.square, lambda x: x**2, lambda x: x * x])
def test_the_map_of_a_square_is_the_value(frozen, build):
    images = frozen.spaced(2)
    frozen.assert_follows(
        frozen.network(build), images, lambda image, place: (np.diag(image.ravel()), np.zeros(image.size))
    )


def test_divisors_are_constants(frozen):
    a, b = normal(3, 4), 2 + normal(3, 4, seed=1) ** 2
    (got_a, got_b), _, cotangent = product_of(frozen, lambda x: x[0] / x[1], a, b)
    np.testing.assert_allclose(got_a, cotangent / b, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(got_b, 0)


CONTRACTIONS = {
    "dot layer": (lambda x: L.Dot(axes=(2, 1))(x), "nij,njk->nik"),
    "matmul": (lambda x: ops.matmul(x[0], x[1]), "nij,njk->nik"),
    "einsum": (lambda x: ops.einsum("nij,njk->nik", x[0], x[1]), "nij,njk->nik"),
    "transposed": (lambda x: x[0] @ ops.transpose(ops.transpose(x[1], (0, 2, 1)), (0, 2, 1)), "nij,njk->nik"),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_factors_of_a_contraction_share_alike(frozen, name):
    a, b = normal(3, 4, 5), normal(3, 5, 2, seed=1)
    build, equation = CONTRACTIONS[name]
    (got_a, got_b), logits, cotangent = product_of(frozen, build, a, b)
    np.testing.assert_allclose(logits, np.einsum(equation, a, b).reshape(3, -1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_a, np.einsum("nik,njk->nij", cotangent, b) / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got_b, np.einsum("nij,nik->njk", a, cotangent) / 2, rtol=0, atol=1e-12)


def test_einsum_of_three_operands_shares_in_thirds(frozen):
    a, b, c = normal(3, 4), normal(3, 4, 5, seed=1), normal(3, 5, seed=2)
    got, _, w = product_of(frozen, lambda x: ops.einsum("ni,nij,nj->nj", *x), a, b, c)
    expected = [
        np.einsum(e, *t) / 3
        for e, t in (
            ("nj,nij,nj->ni", (w, b, c)),
            ("nj,ni,nj->nij", (w, a, c)),
            ("nj,ni,nij->nj", (w, a, b)),
        )
    ]
    for result, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-12)


# Ties, and values on a kink


def test_relu_is_closed_at_zero(frozen):
    weights, _, _ = frozen.walk(frozen.network(L.ReLU(), (3,)), np.array([[-1.0, 0.0, 1.0]]), np.ones((1, 3)))
    assert weights.tolist() == [[0.0, 0.0, 1.0]]


def test_global_max_pooling_shares_between_equal_maxima(frozen):
    image = np.array([1.0, 3.0, 3.0, 0.0]).reshape(1, 2, 2, 1)
    weights, _, _ = frozen.walk(frozen.network(L.GlobalMaxPooling2D(), (2, 2, 1)), image, np.ones((1, 1)))
    assert weights.ravel().tolist() == [0.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("merge", [L.Maximum, L.Minimum])
def test_equal_values_of_a_maximum_are_counted_once(frozen, merge):
    model = two_inputs(lambda x: merge()(x), (3,), (3,))
    same = np.array([[1.0, -2.0, 0.0]])
    (first, second), _, _ = frozen.walk(model, [same, same], np.ones((1, 3)))
    np.testing.assert_array_equal(first + second, 1.0)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_masked_steps_count_nothing(frozen):
    image = frozen.spaced(1, SEQUENCE)
    image[:, 2] = 0.0
    frozen.assert_follows(
        frozen.network(L.Masking(), SEQUENCE),
        image,
        lambda value, place: (np.diag(np.repeat(value.any(axis=1), 4).astype(float)), np.zeros(value.size)),
    )


def test_a_user_class_of_a_scale_is_followed(frozen):
    class LayerScale(L.Layer):
        def build(self, shape):
            self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

        def call(self, x):
            return x * self.gamma

    frozen.assert_measured(frozen.network(LayerScale()), frozen.spaced(2))


def test_float_arrays_of_another_dtype_do_not_matter(frozen):
    model = frozen.network(lambda x: x * np.float32(0.5) + tf.constant(0.25, tf.float64))
    frozen.assert_measured(model, frozen.spaced(2))
