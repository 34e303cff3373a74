from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.graph import OperationGraph
from tfcausal.saliency.cam import GradCAM, feature_maps, grad_cam

L = keras.layers


def flat() -> keras.Model:
    x = inputs = keras.Input((12, 10, 2))
    x = L.Conv2D(4, 3, activation="relu", name="first")(x)
    x = L.Conv2D(5, 3, activation="relu", padding="same", name="last")(L.MaxPooling2D()(x))
    x = L.Dropout(0.5)(L.MaxPooling2D(padding="same", name="pool")(x))
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.Flatten()(x)))


def nested() -> keras.Model:
    x = inputs = keras.Input((12, 10, 2))
    x = L.ReLU(name="rectified")(L.BatchNormalization()(L.Conv2D(4, 3, strides=2, name="last")(x)))
    backbone = keras.Model(inputs, x, name="backbone")
    inputs = keras.Input((12, 10, 2))
    x = L.Dense(6, activation="tanh")(L.Flatten()(backbone(L.Rescaling(0.5)(inputs))))
    return keras.Model(inputs, L.Dense(3)(x))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.features = L.Conv2D(3, 3, activation="relu", name="features")
        self.head = L.Dense(3)

    def call(self, images):
        return keras.ops.softmax(self.head(keras.ops.mean(self.features(images) ** 2, axis=(1, 2))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 12, 10, 2), "float32"))
    return model


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 12, 10, 2)).astype("float32")


def test_class_maps_by_hand():
    """Features (1, 2; 3, 4) and (-1, 0; 0, 1) with the slopes of w * mean: weights 8 / 4 and -4 / 4."""
    inputs = keras.Input((2, 2, 2))
    x = L.Conv2D(2, 1, use_bias=False, name="features")(inputs)
    model = keras.Model(inputs, L.Dense(1, use_bias=False)(L.GlobalAveragePooling2D()(x)))
    model.set_weights([np.eye(2)[None, None], np.array([[8.0], [-4.0]])])
    images = np.stack([[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [0.0, 9.0]]], axis=-1)[None]
    assert GradCAM(model, rectify=False)(images)[0, :, :, 0].tolist() == [[3.0, 4.0], [6.0, -1.0]]
    assert GradCAM(model)(images)[0, :, :, 0].tolist() == [[3.0, 4.0], [6.0, 0.0]]


def test_class_maps_of_a_nonlinear_head_are_those_of_numpy():
    inputs = keras.Input((4, 3, 5))
    x = L.Flatten()(L.Conv2D(2, 1, name="features")(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Dense(6, activation="tanh")(x)))
    kernel, shift, first, bias, second, _ = (weight.numpy().astype(np.float64) for weight in model.weights)
    images = np.random.default_rng(0).normal(size=(4, 4, 3, 5))
    classes = np.array([2, 0, 1, 2])
    features = images @ kernel[0, 0] + shift
    hidden = np.tanh(features.reshape(4, -1) @ first + bias)
    slopes = ((second[:, classes].T * (1 - hidden**2)) @ first.T).reshape(features.shape)
    expected = (features * slopes.mean(axis=(1, 2), keepdims=True)).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(GradCAM(model, "features", rectify=False)(images, classes), expected, atol=1e-5)


@pytest.mark.parametrize(("build", "layer"), [(flat, "last"), (flat, "first"), (nested, "backbone/rectified")])
@pytest.mark.parametrize("targets", [None, [2, 0, 1]])
def test_class_maps_are_those_of_tf_keras_vis(build, layer, targets):
    """It gets the very model, cut by hand at the top, so that the flattening of this library takes no part."""
    gradcam = pytest.importorskip("tf_keras_vis.gradcam", exc_type=ImportError)
    model, images = build(), images_of(3)
    name = layer.rpartition("/")[2]
    if "/" in layer:
        parts = [model.layers[1], *model.get_layer("backbone").layers[1:], *model.layers[3:]]
        copies = [type(part).from_config(part.get_config()) for part in parts]
        model_for_peer = keras.Sequential([keras.Input((12, 10, 2)), *copies])
        model_for_peer.set_weights(model.get_weights())
    else:
        model_for_peer = keras.models.clone_model(model)
        model_for_peer.set_weights(model.get_weights())
        model_for_peer.layers[-1].activation = keras.activations.linear
    classes = model_for_peer.predict(images, verbose=0).argmax(axis=1) if targets is None else targets
    peer = gradcam.Gradcam(model_for_peer)(
        lambda outputs: [outputs[row, column] for row, column in enumerate(classes)],
        images,
        penultimate_layer=name,
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    assert np.max(peer) > 0
    enlarged = tf.image.resize(np.asarray(peer)[..., np.newaxis], (12, 10)).numpy()
    np.testing.assert_allclose(GradCAM(model, layer)(images, targets), enlarged, atol=1e-6)


def test_default_layers():
    assert GradCAM(flat()).position == OperationGraph(flat()).layer_output("last")
    model = nested()
    assert GradCAM(model).position == OperationGraph(model).layer_output("backbone/rectified")
    inputs = keras.Input((8, 8, 1))
    x = L.Conv2D(2, 3, name="features")(inputs)
    x = L.Conv2D(4, 1)(L.GlobalAveragePooling2D(keepdims=True)(L.ZeroPadding2D()(x)))
    model = keras.Model(inputs, L.Flatten()(x))
    assert GradCAM(model).position == OperationGraph(model).layer_output("features")


@pytest.mark.parametrize(
    ("name", "path"),
    [("VGG16", "block5_conv3/activation"), ("ResNet50", "conv5_block3_out"), ("MobileNetV2", "out_relu")],
)
def test_default_layers_of_well_known_models(name, path):
    graph = OperationGraph(getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5))
    assert graph.producer(feature_maps(graph)).path == path


def test_a_layer_by_name_path_or_object():
    model, images = nested(), images_of(2)
    backbone = model.get_layer("backbone")
    expected = GradCAM(model, "last")(images)
    for layer in ("backbone/last", backbone.get_layer("last")):
        np.testing.assert_array_equal(GradCAM(model, layer)(images), expected)
    np.testing.assert_array_equal(GradCAM(model, backbone)(images), GradCAM(model, "rectified")(images))


@pytest.mark.parametrize("build", [flat, nested, subclassed])
def test_batches_second_calls_and_the_model(build):
    model, images = build(), images_of(5)
    answers, weights = model(images), [weight.numpy() for weight in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    explainer = GradCAM(model, batch_size=2)
    maps = explainer(images)
    assert maps.shape == (5, 12, 10, 1)
    assert maps.dtype == np.float32
    assert maps.max() > maps.min() >= 0
    np.testing.assert_array_equal(explainer(images), maps)
    alone = GradCAM(model)
    np.testing.assert_allclose(np.concatenate([alone(image[None]) for image in images]), maps, atol=1e-6)
    np.testing.assert_array_equal(model(images), answers)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_batch_is_not_traced_again_and_only_the_top_is_differentiated():
    calls = []

    class Watched(GradCAM):
        def maps(self, inputs, classes):
            calls.append(tf.autodiff.ForwardAccumulator)
            return super().maps(inputs, classes)

    explainer = Watched(flat(), batch_size=3)
    for count in (5, 3, 1):
        explainer(images_of(count, seed=count))
    explainer(images_of(2), [0, 1])
    assert len(calls) == 1
    function = explainer.compiled(explainer.maps).get_concrete_function()
    kinds = [operation.type for operation in function.graph.get_operations()]
    assert kinds.count("Conv2D") == 2
    assert kinds.count("Conv2DBackpropInput") == kinds.count("Conv2DBackpropFilter") == 0


def test_the_map_can_be_trained_through():
    """The derivative of a loss on the map by a weight of the features and one of the head, against differences."""
    inputs = keras.Input((12, 10, 2))
    x = L.Conv2D(3, 3, activation="tanh", name="features")(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Dense(5, activation="tanh")(L.Flatten()(x))))
    graph, images = OperationGraph(model), tf.constant(images_of(3))
    position, classes = graph.layer_output("features"), tf.constant([0, 2, 1])

    def loss() -> tf.Tensor:
        maps, activations = grad_cam(graph, images, classes, position, rectify=False)
        return tf.reduce_sum(maps**2) + tf.reduce_sum(activations[graph.logits])

    kernels = [model.get_layer("features").kernel, model.layers[-1].kernel]
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [kernel.value for kernel in kernels])
    for kernel, slope in zip(kernels, gradients, strict=True):
        before, direction = kernel.numpy(), np.random.default_rng(0).normal(size=kernel.shape)
        values = []
        for step in (1e-2, -1e-2):
            kernel.assign(before + step * direction)
            values.append(float(loss()))
        kernel.assign(before)
        assert np.sum(slope.numpy() * direction) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.005)


def test_one_forward_pass_gives_map_and_logits_in_training():
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(2, 3, name="features")(L.BatchNormalization(name="norm")(inputs))
    model = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5, seed=3)(L.Flatten()(x))))
    graph, images = OperationGraph(model), np.random.default_rng(0).normal(2, 1, (4, 6, 6, 1)).astype("float32")
    position = graph.layer_output("features")
    _, activations = grad_cam(graph, tf.constant(images), tf.constant([0, 1, 0, 1]), position, training=True)
    # one update of the moving mean from 0 with momentum 0.99
    assert model.get_layer("norm").moving_mean.numpy() == pytest.approx([0.01 * images.mean()], rel=1e-4)
    dropped = activations[graph.producer(graph.logits).inputs[0]].numpy()
    assert (dropped == 0).any()
    dense = model.layers[-1]
    np.testing.assert_allclose(activations[graph.logits], dropped @ dense.kernel.numpy(), atol=1e-5)


def test_images_of_any_size():
    inputs = keras.Input((None, None, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, strides=2, activation="relu")(inputs))
    explainer = GradCAM(keras.Model(inputs, L.Dense(2)(x)))
    assert explainer(np.ones((1, 9, 5, 2))).shape == (1, 9, 5, 1)
    assert explainer(np.ones((2, 6, 7, 2))).shape == (2, 6, 7, 1)


def two_images() -> keras.Model:
    image, other, number = keras.Input((8, 8, 1), name="a"), keras.Input((6, 6, 1), name="b"), keras.Input((2,))
    left, right = L.Conv2D(2, 3, name="left")(image), L.Conv2D(2, 3, name="right")(other)
    x = L.Concatenate()([L.Flatten()(left), L.Flatten()(right), number])
    return keras.Model([image, other, number], L.Dense(2)(x))


def test_images_that_the_layer_depends_on_get_a_map():
    model = two_images()
    arrays = [np.random.default_rng(0).normal(size=(2, *shape[1:])) for shape in OperationGraph(model).input_shapes]
    assert GradCAM(model, "right")(arrays).shape == (2, 6, 6, 1)
    named = dict(zip(OperationGraph(model).input_names, arrays, strict=True))
    assert {name: maps.shape for name, maps in GradCAM(model, "left")(named).items()} == {"a": (2, 8, 8, 1)}


def test_mixed_precision():
    inputs = keras.Input((12, 10, 2))
    x = L.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, L.Dense(3, dtype="mixed_bfloat16")(L.GlobalAveragePooling2D()(x)))
    maps = GradCAM(model, rectify=False)(images_of(2))
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


def test_a_layer_that_does_not_exist():
    text = "`layer`: expected one of first, max_pooling2d, last, pool, dropout, flatten, head; received 'lost'."
    keras.backend.clear_session()
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        GradCAM(flat(), "lost")


def test_a_layer_without_places():
    text = "more than one place; received 'head', whose output has shape (None, 3)."
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        GradCAM(flat(), "head")


def test_models_without_images_or_feature_maps():
    text = "grad_cam: model `numbers` has no image among its inputs; their shapes are (None, 4), an image is"
    with pytest.raises(UnsupportedOperation, match=re.escape(text)):
        GradCAM(keras.Sequential([keras.Input((4,)), L.Dense(2)], name="numbers"))
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        GradCAM(keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(2)]))


def test_feature_maps_that_no_image_goes_into():
    image, number = keras.Input((4, 4, 1), name="image"), keras.Input((2,), name="number")
    drawn = L.Reshape((4, 4, 1), name="drawn")(L.Dense(16)(number))
    model = keras.Model([image, number], L.Dense(2)(L.Flatten()(L.Add()([image, drawn]))))
    with pytest.raises(
        InvalidArgument, match="a layer that an image goes into; received feature maps that depend on n"
    ):
        GradCAM(model, "drawn")


def test_wrong_arguments():
    with pytest.raises(InvalidArgument, match="`rectify`: expected True or False; received 'yes'"):
        GradCAM(flat(), rectify="yes")
    with pytest.raises(InvalidArgument, match=r"class indices in \[0, 2\]; received values in \[3, 3\]"):
        GradCAM(flat())(images_of(1), [3])


def test_the_batch_fits_what_is_kept_for_the_way_back():
    inputs = keras.Input((256, 256, 3))
    x = L.Conv2D(32, 3, padding="same", name="early")(inputs)
    for _ in range(4):
        x = L.ReLU()(x)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(2, 1, name="late")(x))))
    # 2 * 8 MiB at most are alive before `late`; four more activations, twice, after `early`
    assert GradCAM(model, "late").batch_size == 31
    assert GradCAM(model, "early").batch_size == 6
