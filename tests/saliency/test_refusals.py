"""What both WBP and LRP refuse, since their rules would give a wrong map, and what looks like it but is handled."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import UnsupportedOperation
from tfcausal.saliency.lrp import LRP
from tfcausal.saliency.wbp import WBP

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
]
L, ops = keras.layers, keras.ops
ACROSS = "acts along the first axis, the samples of the batch, on which a map must not depend"
MIXING = "multiplies different samples with each other"
BESIDE = "takes a tensor beside its first argument"
SHAPE = (6, 4)


class Pooled(L.Layer):
    """Hides a layer that takes a mask, and takes none itself."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pool = L.GlobalAveragePooling1D()

    def call(self, x):
        return self.pool(x)


def masked(x):
    return L.Masking(name="masking")(x)


def gram(x):
    flat = L.Flatten()(x)
    return ops.matmul(ops.matmul(flat, ops.transpose(flat)), flat)


REFUSED = {
    "mask of attention": (lambda x: L.MultiHeadAttention(1, 2)(*[masked(x)] * 2), "uses the mask that `masking"),
    "constant value": (lambda x: L.MultiHeadAttention(1, 2)(x, np.ones((1, 5, 4))), "attends to a constant"),
    "mask of an average": (lambda x: L.GlobalAveragePooling1D()(masked(x)), "is given a mask"),
    "mask in a layer of one's own": (lambda x: Pooled()(masked(x)), "uses the mask that `masking` attaches"),
    "mask of a normalisation": (lambda x: L.BatchNormalization()(masked(x)), "is given a mask"),
    "product over the batch": (gram, MIXING),
    "constant on the left": (lambda x: ops.matmul(np.ones((3, 2)), L.Flatten()(x)), MIXING),
    "stack of constants": (lambda x: ops.sum(ops.matmul(L.Flatten()(x), np.ones((2, 24, 3))), axis=1), MIXING),
    "einsum over the batch": (lambda x: ops.einsum("nwc,nk->kwc", x, np.ones((2, 3))), MIXING),
    "tensordot over the batch": (lambda x: ops.tensordot(x, np.ones((2, 3)), axes=[[0], [0]]), MIXING),
    "dot from the left": (lambda x: ops.sum(ops.dot(np.ones((3, 6)), x), axis=1), MIXING),
    "tensor weights": (lambda x: ops.average(x, axis=1, weights=L.Dense(4)(x)), BESIDE),
    "tensor indices": (lambda x: ops.mean(ops.take(x, ops.argmax(x[:, 0], axis=-1), axis=1), axis=1), BESIDE),
    "area": (lambda x: L.Resizing(3, 3, interpolation="area")(x[..., None]), "resizes by area"),
    "initial value": (lambda x: ops.max(x, axis=1, initial=0.5), "has an initial value"),
    "maximum with a constant": (lambda x: L.Maximum()([L.Dense(4)(x), np.ones((1, 6, 4))]), "is given a constant"),
    "minimum with a constant": (lambda x: L.Minimum()([x, np.ones((1, 6, 4))]), "is given a constant"),
    "mean of samples": (lambda x: x - ops.mean(x, axis=0, keepdims=True), ACROSS),
    "mean counted from behind": (lambda x: x - ops.mean(x, axis=-3, keepdims=True), ACROSS),
    "mean of several axes": (lambda x: x - ops.mean(x, axis=(0, 1), keepdims=True), ACROSS),
    "mean of everything": (lambda x: x - ops.mean(x), ACROSS),
    "maximum of samples": (lambda x: x - ops.max(x, axis=0, keepdims=True), ACROSS),
    "flip": (lambda x: ops.flip(x, axis=0), ACROSS),
    "flip of everything": (lambda x: ops.flip(x), ACROSS),
    "roll": (lambda x: ops.roll(x, 1, axis=0), ACROSS),
    "cumulative sum": (lambda x: ops.cumsum(x, axis=0), ACROSS),
    "rotation": (lambda x: ops.rot90(ops.rot90(x, axes=(0, 1)), axes=(0, 1)), ACROSS),
    "reshape": (lambda x: L.Dense(5)(ops.reshape(x, (-1, 12))), ACROSS),
    "rows of two samples": (lambda x: ops.reshape(ops.reshape(x, (-1, 16)), (-1, 24)), ACROSS),
    "ravel": (lambda x: ops.expand_dims(ops.ravel(x), -1), ACROSS),
    "transpose": (lambda x: ops.transpose(ops.transpose(x, (1, 0, 2)), (1, 0, 2)), ACROSS),
    "all axes turned": (lambda x: ops.transpose(ops.transpose(x)), ACROSS),
    "swapped axes": (lambda x: ops.swapaxes(ops.swapaxes(x, 0, 1), -3, 1), ACROSS),
    "moved axis": (lambda x: ops.moveaxis(ops.moveaxis(x, 1, 0), 1, 0), ACROSS),
    "concatenation": (lambda x: ops.concatenate([x, x], axis=0), ACROSS),
    "stack": (lambda x: ops.mean(ops.stack([x, x], axis=-4), axis=1), ACROSS),
    "new axis": (lambda x: ops.mean(ops.expand_dims(x, 0), axis=1), ACROSS),
    "squeeze of what has one place": (lambda x: ops.squeeze(x[:, :1]), ACROSS),
    "padding": (lambda x: ops.pad(x, ((1, 1), (0, 0), (0, 0))), ACROSS),
    "tiles": (lambda x: ops.tile(x, (2, 1, 1)), ACROSS),
    "repeat": (lambda x: ops.repeat(x, 2, axis=0), ACROSS),
    "one sample": (lambda x: x - x[0], ACROSS),
    "a slice of the batch": (lambda x: ops.slice(x, (0, 1, 0), (2, 3, 4)), ACROSS),
    "an image without samples": (lambda x: ops.image.gaussian_blur(x), ACROSS),
}


@pytest.mark.parametrize("method", [WBP, LRP])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_give_a_wrong_map_is_refused(name, method):
    build, text = REFUSED[name]
    inputs = keras.Input(SHAPE, dtype="float64")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(build(inputs))))
    with pytest.raises(UnsupportedOperation, match=text):
        method(model)


ACCEPTED = {
    "means": lambda x: x - ops.mean(x, axis=(1, -1), keepdims=True) + ops.max(x, axis=-2, keepdims=True),
    "flips": lambda x: ops.roll(ops.flip(x, axis=(1, 2)), 1, axis=-1),
    "reshape": lambda x: ops.reshape(x, (-1, 3, 8)),
    "into the batch and back": lambda x: ops.reshape(L.Dense(5)(ops.reshape(x, (-1, 2, 4))), (-1, 3, 10)),
    "back to two rows, then to one": lambda x: ops.reshape(
        L.Dense(3)(ops.reshape(L.Dense(5)(ops.reshape(x, (-1, 4))), (-1, 15))), (-1, 6)
    ),
    "transpose": lambda x: ops.swapaxes(ops.moveaxis(ops.transpose(x, (0, 2, 1)), 1, -1), -1, -2),
    "concatenation": lambda x: ops.concatenate([ops.stack([x, x], axis=-1), ops.expand_dims(x, -1)], axis=-1),
    "parts": lambda x: ops.concatenate([x[:, 1], x[..., 0], x[:, :1, 2], x[..., 1, :]], axis=-1),
    "padding": lambda x: ops.tile(ops.pad(x, ((0, 0), (1, 0), (0, 0))), (2, 1)),
    "products": lambda x: (
        ops.matmul(np.ones((3, 6)), x) + ops.tensordot(x, np.ones((6, 3)), axes=[[1], [0]])[:, :3, :1]
    ),
    "products of tensors": lambda x: ops.matmul(ops.matmul(x, ops.transpose(x, (0, 2, 1))), x),
    "einsum": lambda x: ops.einsum("...d,de->...e", x, np.ones((4, 2))),
    "maximum": lambda x: ops.maximum(L.Maximum()([x, L.Dense(4)(x)]), 0.1),
    "average": lambda x: ops.average(x, axis=1),
    "mask": lambda x: L.Dense(3)(masked(x)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_keeps_samples_apart_has_a_map_that_does_not_depend_on_the_batch(frozen, name):
    inputs = keras.Input(SHAPE, dtype="float64")
    model = frozen.randomise(keras.Model(inputs, L.Dense(2)(L.Flatten()(ACCEPTED[name](inputs)))))
    images = frozen.spaced(3, SHAPE)
    for method in (WBP, LRP):
        explainer = method(model)
        alone = np.concatenate([explainer(images[i : i + 1], [0]) for i in range(3)])
        np.testing.assert_allclose(explainer(images, [0, 0, 0]), alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["into the batch and back", "back to two rows, then to one"])
def test_constants_of_what_is_in_the_batch_count_for_its_sample(frozen, name):
    inputs = keras.Input(SHAPE, dtype="float64")
    model = frozen.randomise(keras.Model(inputs, L.Dense(2)(L.Flatten()(ACCEPTED[name](inputs)))))
    for whole, logits in accounts(model, frozen.spaced(3, SHAPE)):
        np.testing.assert_allclose(whole, logits, rtol=1e-5)


@pytest.mark.parametrize("method", [WBP, LRP])
def test_a_bias_that_keras_may_add_along_the_width_is_refused(method):
    def model(filters: int, use_bias: bool) -> keras.Model:
        inputs = keras.Input((3, 5, 4), dtype="float32")
        layer = L.DepthwiseConv2D if filters == 3 else L.Conv2D
        options = {} if filters == 3 else {"filters": filters}
        x = layer(kernel_size=1, data_format="channels_first", use_bias=use_bias, dtype="float32", **options)(inputs)
        return keras.Model(inputs, L.Flatten(dtype="float32")(x))

    with pytest.raises(UnsupportedOperation, match="4 channels, which come first, in outputs of the same width"):
        method(model(4, True))
    method(model(4, False))
    method(model(3, True))


def accounts(model: keras.Model, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The sum of all parts of the account, and the logits, for WBP and for LRP."""
    result = WBP(model, fallback="gradient").decompose(images, [1] * len(images))
    account = LRP(model, fallback="gradient").conservation(images, [1] * len(images))
    whole = result.maps.sum(axis=tuple(range(1, result.maps.ndim))) + result.bias
    return [(whole, result.logits), (account.relevance + account.absorbed, account.logits)]


@pytest.mark.parametrize("twice", [False, True])
def test_the_gradient_stands_in_where_a_mask_is_an_input(frozen, twice):
    inputs = keras.Input(SHAPE, dtype="float64")
    x = masked(inputs)
    merged = L.LSTM(3)(x) + L.GRU(3)(x) if twice else L.LSTM(3)(x)
    model = frozen.randomise(keras.Model(inputs, L.Dense(2)(merged)))
    images = frozen.spaced(3, SHAPE)
    images[:, 4:] = 0
    for whole, logits in accounts(model, images):
        np.testing.assert_allclose(whole, logits, rtol=1e-5)
    value = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(value)
        logit = model(value)[:, 1]
    expected = images * tape.gradient(logit, value).numpy()
    np.testing.assert_allclose(WBP(model, fallback="gradient")(images, [1, 1, 1]), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [WBP, LRP])
def test_without_a_gradient_nothing_stands_in(method):
    inputs = keras.Input((4, 4, 1), dtype="float32")
    x = L.Resizing(2, 2, interpolation="area", name="small", dtype="float32")(inputs)
    model = keras.Model(inputs, L.Flatten(dtype="float32")(x))
    explainer = method(model, fallback="gradient")
    with pytest.raises(
        UnsupportedOperation, match=r"`small` \(Resizing\) runs an operation for which TensorFlow has no"
    ):
        explainer(np.ones((1, 4, 4, 1), "float32"))
