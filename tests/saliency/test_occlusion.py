from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.local_changes import Reach, Windows, local_segments, stages
from tfcausal.saliency.occlusion import Occlusion, patch_starts

L = keras.layers


def dense() -> keras.Model:
    inputs = keras.Input((9, 7, 2))
    return keras.Model(inputs, L.Dense(3)(L.Dense(6, activation="tanh")(L.Flatten()(inputs))))


def residual() -> keras.Model:
    """Odd sizes, strides, both paddings, a shortcut, both poolings: what a window can meet."""
    inputs = keras.Input((33, 29, 3))
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="stem")(L.Rescaling(0.5)(inputs))
    x = L.BatchNormalization(name="norm")(x)
    short = L.Conv2D(6, 1, strides=2)(x)
    x = L.Conv2D(6, 3, strides=2)(L.ZeroPadding2D(((1, 1), (1, 1)))(x))
    x = L.ReLU(name="rectified")(L.Add()([short, x]))
    x = L.MaxPooling2D(3, strides=1, padding="same")(x)
    x = L.AveragePooling2D(2, padding="same")(L.DepthwiseConv2D(3, padding="same")(x))
    x = L.Concatenate()([x, L.SeparableConv2D(2, 3, padding="same")(x)])
    return keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x)))


def nested() -> keras.Model:
    backbone = keras.Sequential(
        [
            keras.Input((30, 26, 2)),
            *(L.Conv2D(4, 5, dilation_rate=2, padding="same"), L.MaxPooling2D(3, 2), L.LeakyReLU()),
            *(L.Conv2D(4, (3, 1), padding="same", activation="gelu"), L.Dropout(0.5)),
        ]
    )
    inputs = keras.Input((30, 26, 2))
    return keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(backbone(inputs))))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.features = L.Conv2D(3, 3, padding="same", activation="relu")
        self.again = L.Conv2D(3, 3, padding="same")
        self.head = L.Dense(3)

    def call(self, images):
        x = self.features(images)
        x = keras.ops.relu(self.again(x) + x)
        return keras.ops.softmax(self.head(keras.ops.mean(x**2, axis=(1, 2))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 20, 17, 2), "float32"))
    return model


def images_for(model: keras.Model, count: int, seed: int = 0) -> np.ndarray:
    shape = OperationGraph(model).input_shape[1:]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def reference(model, images, classes, patch, stride, baseline=0.0) -> np.ndarray:
    """An explicit loop over the patches: whole images through the model, cut at its logits."""
    graph = OperationGraph(model)

    forward = tf.function(lambda batch: graph.run(batch)[graph.logits], autograph=False)

    def logits(batch):
        return forward(tf.constant(batch)).numpy().astype(np.float64)

    count, height, width, _ = images.shape
    rows = [min(y, height - patch[0]) for y in range(0, height - patch[0] + stride[0], stride[0])]
    columns = [min(x, width - patch[1]) for x in range(0, width - patch[1] + stride[1], stride[1])]
    totals, times = np.zeros((count, height, width)), np.zeros((height, width))
    clean = logits(images)
    classes = clean.argmax(axis=1) if classes is None else classes
    for y in rows:
        for x in columns:
            covered = images.copy()
            covered[:, y : y + patch[0], x : x + patch[1]] = baseline
            lost = (clean - logits(covered))[np.arange(count), classes]
            totals[:, y : y + patch[0], x : x + patch[1]] += lost[:, None, None]
            times[y : y + patch[0], x : x + patch[1]] += 1
    assert times.min() >= 1
    return (totals / times)[..., np.newaxis]


@pytest.mark.parametrize("build", [dense, residual, nested, subclassed])
@pytest.mark.parametrize(("patch", "stride"), [((4, 3), (4, 3)), ((5, 4), (3, 2))])
def test_maps_are_those_of_a_loop_over_whole_images(build, patch, stride):
    model = build()
    images = images_for(model, 2)
    expected = reference(model, images, None, patch, stride)
    maps = Occlusion(model, patch, stride, batch_size=16)(images)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(maps, expected, atol=2e-6)


@pytest.mark.parametrize("patch", [(1, 1), (33, 29), (2, 29), (13, 2)])
def test_the_smallest_the_largest_and_narrow_patches(patch):
    model = residual()
    images = images_for(model, 1)
    stride = tuple(max(side - 1, 1) for side in patch)
    expected = reference(model, images, [1], patch, stride)
    np.testing.assert_allclose(Occlusion(model, patch, stride)(images, [1]), expected, atol=2e-6)


def test_maps_of_a_model_of_known_answers_are_those_of_predict():
    model = dense()
    images, classes = images_for(model, 2), [2, 0]
    before = model.predict(images, verbose=0)
    covered = images.copy()
    covered[:, 6:9, 4:7] = 0.25
    lost = (before - model.predict(covered, verbose=0))[[0, 1], classes]
    maps = Occlusion(model, patch=3, baseline=0.25)(images, classes)
    # columns start at 0, 3 and 4: the last one alone covers the last pixel
    np.testing.assert_allclose(maps[:, 8, 6, 0], lost, atol=1e-6)


def test_patches_start_where_they_should():
    assert patch_starts(8, 3, 2).tolist() == [0, 2, 4, 5]
    assert patch_starts(9, 3, 3).tolist() == [0, 3, 6]
    assert patch_starts(4, 4, 1).tolist() == [0]
    for length in range(1, 12):
        for patch in range(1, length + 1):
            for stride in range(1, patch + 1):
                starts = patch_starts(length, patch, stride)
                covered = {pixel for start in starts for pixel in range(start, start + patch)}
                assert covered == set(range(length))
                assert len(set(starts.tolist())) == len(starts)
                dynamic = patch_starts(tf.constant(length), tf.constant(patch), stride)
                assert dynamic.numpy().tolist() == starts.tolist()


def test_baselines():
    model = dense()
    images = images_for(model, 2)
    for given, values in (
        (0.5, 0.5),
        ([0.5, -1.0], np.array([0.5, -1.0])),
        ("mean", images.mean(axis=(1, 2), keepdims=True)),
    ):
        expected = reference(model, images, None, (3, 3), (3, 3), values)
        np.testing.assert_allclose(Occlusion(model, 3, baseline=given)(images), expected, atol=2e-6)


def test_the_default_patch_is_an_eighth_of_the_side():
    inputs = keras.Input((64, 33, 1))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(inputs)))
    images = images_for(model, 1)
    np.testing.assert_array_equal(Occlusion(model)(images), Occlusion(model, patch=(8, 4))(images))


@pytest.mark.parametrize("build", [residual, nested, subclassed])
def test_batches_second_calls_and_the_model(build):
    model = build()
    images = images_for(model, 3)
    answers, weights = model(images), [weight.numpy() for weight in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    explainer = Occlusion(model, 7, batch_size=2)
    maps = explainer(images)
    assert maps.shape == (*images.shape[:3], 1)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(explainer(images), maps)
    another = Occlusion(model, 7)
    np.testing.assert_allclose(np.concatenate([another(image[None]) for image in images]), maps, atol=1e-6)
    np.testing.assert_array_equal(model(images), answers)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_batch_is_not_traced_again():
    class Counting(Occlusion):
        traces = 0

        def maps(self, inputs, classes):
            self.traces += 1
            return super().maps(inputs, classes)

    model = residual()
    explainer = Counting(model, 9, batch_size=3)
    for count in (5, 3, 1):
        explainer(images_for(model, count, seed=count))
    explainer(images_for(model, 2), [0, 1])
    assert explainer.traces == 1


def test_images_of_any_size():
    inputs = keras.Input((None, None, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, activation="relu")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    explainer = Occlusion(model, patch=(4, 3), stride=2)
    for shape in ((1, 9, 5, 2), (2, 6, 7, 2)):
        images = np.random.default_rng(0).normal(size=shape).astype("float32")
        expected = reference(model, images, None, (4, 3), (2, 2))
        np.testing.assert_allclose(explainer(images), expected, atol=2e-6)
    assert explainer(np.ones((1, 3, 3, 2))).shape == (1, 3, 3, 1)
    assert Occlusion(model)(np.ones((1, 9, 5, 2))).shape == (1, 9, 5, 1)


def two_images() -> keras.Model:
    image, number, other = keras.Input((8, 8, 1), name="a"), keras.Input((2,), name="n"), keras.Input((6, 5, 1))
    left = L.Conv2D(2, 3, padding="same")(L.Conv2D(2, 3, padding="same")(image))
    x = L.Concatenate()([L.Flatten()(left), L.Dense(3)(number), L.Flatten()(other)])
    return keras.Model([image, number, other], L.Dense(2)(L.Dense(4, activation="tanh")(x)))


def test_every_image_is_covered_by_itself():
    model = two_images()
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype("float32") for shape in ((3, 8, 8, 1), (3, 2), (3, 6, 5, 1))]
    before = model.predict(arrays, verbose=0)[:, 1]
    maps = Occlusion(model, patch=2, batch_size=5)(arrays, [1, 1, 1])
    assert [values.shape for values in maps] == [(3, 8, 8, 1), (3, 6, 5, 1)]
    for position, values in zip((0, 2), maps, strict=True):
        covered = [array.copy() for array in arrays]
        covered[position][:, :2, :2] = 0
        lost = before - model.predict(covered, verbose=0)[:, 1]
        np.testing.assert_allclose(values[:, 0, 0, 0], lost, atol=2e-6)
    named = Occlusion(model, patch=2)(dict(zip(OperationGraph(model).input_names, arrays, strict=True)), [1, 1, 1])
    assert list(named) == [name for name in OperationGraph(model).input_names if name != "n"]


def test_mixed_precision():
    inputs = keras.Input((16, 16, 2))
    x = L.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, L.Dense(3, dtype="mixed_bfloat16")(L.Flatten(dtype="mixed_bfloat16")(x)))
    maps = Occlusion(model, 4)(images_for(model, 2))
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


def test_what_a_patch_has_no_effect_on_is_not_computed():
    """The stem and the block with the shortcut are followed as wholes, pixels with what comes before them."""
    model = residual()
    graph = OperationGraph(model)
    segments = local_segments(graph, graph.input)
    assert [segment.end for segment in segments[:2]] == [graph.layer_output("norm"), graph.layer_output("rectified")]
    assert len(segments) == 6
    patches = Windows(patch_starts(33, 2, 2), 2), Windows(patch_starts(29, 2, 2), 2)
    followed = stages(graph, segments, patches)
    assert len(followed) >= 2
    assert followed[1].parts[0].size * followed[1].parts[1].size <= 0.7 * 17 * 15


def test_reaches_by_hand():
    """Two kernels of 3, the first with stride 2: output i sees 2 * (i - 1) - 1 to 2 * (i + 1) + 1 with `same` padding
    around a middle, so that 7 values go in."""
    first, second = Reach(2, 1, 1), Reach(1, 1, 1)
    assert first.then(second) == Reach(2, 3, 3)
    assert second.then(first) == Reach(2, 2, 2)
    inputs = keras.Input((8, 8, 1))
    x = L.ZeroPadding2D(((3, 3), (3, 3)))(inputs)
    x = L.ReLU()(L.Conv2D(1, 7, strides=2)(x))
    graph = OperationGraph(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))))
    (segment,) = local_segments(graph, graph.input)
    assert segment.reaches == (Reach(2, 3, 3), Reach(2, 3, 3))


NOT_LOCAL = {
    "squeeze and excitation": lambda x: L.Multiply()([x, L.GlobalAveragePooling2D(keepdims=True)(x)]),
    "softmax over places": lambda x: L.Softmax(axis=1)(x),
    "own function": lambda x: L.Activation(lambda value: value - keras.ops.mean(value, axis=1, keepdims=True))(x),
    "turned": lambda x: L.Permute((2, 1, 3))(x),
    "shifted": lambda x: keras.ops.roll(x, 3, axis=1),
    "weighted by place": lambda x: x * np.linspace(0, 1, 12, dtype="float32").reshape(1, 12, 1, 1),
    "unlike sizes": lambda x: x + keras.ops.max(x, axis=1, keepdims=True),
    "transposed": lambda x: L.Conv2DTranspose(2, 3, strides=2)(x),
    "normalised over places": lambda x: L.BatchNormalization(axis=1)(x),
    "instance norm": lambda x: L.GroupNormalization(groups=-1)(x),
}


@pytest.mark.parametrize("kind", NOT_LOCAL)
def test_layers_that_are_not_local(kind):
    inputs = keras.Input((12, 12, 2))
    x = NOT_LOCAL[kind](L.Conv2D(2, 3, padding="same")(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    images = images_for(model, 1)
    expected = reference(model, images, [1], (3, 3), (3, 3))
    np.testing.assert_allclose(Occlusion(model, 3)(images, [1]), expected, atol=5e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch": 0}, "`patch`: expected an integer of at least 1; received 0."),
        ({"patch": (2, 3, 4)}, "`patch`: expected an integer, or a pair for height and width; received (2, 3, 4)."),
        ({"patch": 8}, "`patch`: expected at most the width of the image, 7; received 8."),
        ({"patch": (10, 2)}, "`patch`: expected at most the height of the image, 9; received 10."),
        ({"patch": 2.0}, "`patch`: expected an integer of at least 1; received 2.0."),
        ({"patch": 2, "stride": 3}, "`stride`: expected at most the height of a patch, 2; received 3. A larger stride"),
        ({"stride": 2}, "`stride`: expected at most the height of a patch, 1; received 2."),
        ({"stride": -1}, "`stride`: expected an integer of at least 1; received -1."),
        (
            {"baseline": "blur"},
            "`baseline`: expected a finite number, finite values of shape (2,), or 'mean'; received",
        ),
        ({"baseline": [1, 2, 3]}, "`baseline`: expected a finite number, or finite values of shape (2,); received sha"),
        ({"baseline": float("nan")}, "received NaN or infinity."),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        Occlusion(dense(), **options)


def test_a_model_without_images():
    with pytest.raises(UnsupportedOperation, match="occlusion: model `numbers` has no image among its inputs"):
        Occlusion(keras.Sequential([keras.Input((4,)), L.Dense(2)], name="numbers"))


def test_wrong_targets():
    model = dense()
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        Occlusion(model)(images_for(model, 1), [3])
