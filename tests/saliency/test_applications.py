"""Every constructor of `keras.applications`: flattened, taken apart exactly, and explained image by image.

`make test` runs one network of every code path, `make test-all` all of them. Within a family the sizes differ in width
and depth alone, with one exception: EfficientNetV2B* begin with a rescaling and a normalisation, EfficientNetV2S, M
and L with a rescaling.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfcausal.functional import flatten
from tfcausal.saliency.wbp import WBP

FAST = [
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "EfficientNetV2S",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]
SLOW = [
    "ConvNeXtBase",
    "ConvNeXtLarge",
    "ConvNeXtSmall",
    "ConvNeXtXLarge",
    "DenseNet169",
    "DenseNet201",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetB5",
    "EfficientNetB6",
    "EfficientNetB7",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "MobileNetV3Large",
    "NASNetLarge",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "VGG19",
]
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def constructors() -> set[str]:
    return {name for name, value in vars(keras.applications).items() if callable(value) and name[0].isupper()}


def test_no_constructor_is_forgotten():
    assert constructors() == {*FAST, *SLOW}


def side(name: str) -> int:
    return 80 if name.startswith(("Inception", "Xception")) else 48


def pretended(name: str) -> keras.Model:
    """A network as if it had been trained: random biases, and batch-norm statistics near those of its activations.

    The variances are four times as large: with exactly those of a batch, a deep random network multiplies a rounding
    error from layer to layer until its answer is another one, which no trained network does.
    """
    keras.utils.set_random_seed(0)
    shape = (side(name), side(name), 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=5)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(weight * rng.uniform(0.8, 1.25, weight.shape))
        elif weight.name in ("beta", "bias"):
            weight.assign(0.1 * rng.normal(size=weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images_of(name, 4, seed=1), training=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(4.0 * layer.moving_variance)
    return model


def images_of(name: str, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, side(name), side(name), 3)
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


@pytest.mark.parametrize("name", NAMES)
def test_flattened_and_taken_apart(name):
    model, images = pretended(name), images_of(name, 3)
    outputs = model(images, training=False)
    np.testing.assert_allclose(flatten(model)(images, training=False), outputs, rtol=0, atol=1e-5)

    explainer = WBP(model, batch_size=3)
    np.testing.assert_allclose(explainer.outputs(images), outputs, rtol=0, atol=1e-5)
    parts = explainer.decompose(images, [0, 2, 4])
    total = parts.maps.sum(axis=(1, 2, 3), dtype=np.float64) + parts.bias
    np.testing.assert_allclose(total, parts.logits, rtol=1e-3, atol=1e-3 * np.abs(parts.logits).max())
    assert np.abs(parts.maps).max() > 0
    assert np.abs(parts.bias).min() > 1e-3


@pytest.fixture
def _float64():
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_explained_as_its_images_are(name):
    """In float64: in float32, batches of another size are summed in another order, and a ReLU near 0 then flips.

    The gradient of TensorFlow itself differs by a percent of the largest value where that happens.
    """
    model, images = pretended(name), images_of(name, 2)
    explainer = WBP(model, batch_size=2)
    maps = explainer(images, [0, 4])
    alone = np.concatenate([explainer(images[:1], [0]), explainer(images[1:], [4])])
    np.testing.assert_allclose(maps, alone, rtol=0, atol=1e-5 * np.abs(maps).max())
