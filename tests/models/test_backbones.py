"""VGG, Inception_v3, CheXNet and the two-convolution network: sizes as published, weights, heads, maps, errors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.graph import OperationGraph
from tfcausal.models.backbones.all_convolutional import all_convolutional
from tfcausal.models.backbones.applications import application, application_body, chexnet, inception_v3
from tfcausal.models.backbones.two_convolutions import two_convolutions
from tfcausal.models.backbones.vgg import VGG11, VGG16, VGG19, vgg, vgg11, vgg16, vgg19
from tfcausal.saliency.wbp import weight_back_propagation

L = keras.layers
BLOCKS = ((4,), (6, 6))
SMALL = {
    "vgg": lambda **head: vgg((8, 12, 3), blocks=BLOCKS, dense_units=(9, 7), **head),
    "vgg with batch norm": lambda **head: vgg((8, 12, 3), blocks=BLOCKS, batch_norm=True, dense_units=(), **head),
    "two convolutions": lambda **head: two_convolutions((8, 12, 3), filters=(4, 5), dropout=0.5, **head),
    "class maps": lambda **head: all_convolutional((8, 12, 3), filters=(4, 5), **head),
    "feature maps": lambda **head: all_convolutional(
        (8, 12, 3), filters=(4, 5), head="feature_maps", feature_maps=3, **head
    ),
}
LARGE = {
    "vgg11": lambda: vgg11((32, 32, 3), 3, batch_norm=True, dense_units=()),
    "chexnet": lambda: chexnet((32, 32, 3)),
    "inception_v3": lambda: inception_v3((75, 75, 3), 3),
}
large = cache(lambda name: LARGE[name]())


def images_for(model: keras.Model, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype("float32")


def perturbed(model: keras.Model) -> keras.Model:
    """The same model with biases, shifts and statistics that are not 0 or 1."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1 and "seed" not in weight.path:
            weight.assign(weight + rng.uniform(-0.1, 0.1, weight.shape))
    return model


def count(weights) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


# Sizes


@pytest.mark.parametrize(("build", "published"), [(vgg11, 132_863_336), (vgg16, 138_357_544), (vgg19, 143_667_240)])
def test_vgg_has_as_many_weights_as_published(build, published):
    """The convolutions are counted; the dense layers of 4096 units are added by hand, for they fill 500 MB."""
    model = build((224, 224, 3), 1000, dense_units=(1, 1))
    flat = model.get_layer("flatten").output.shape[-1]
    convolutions = count(weight for layer in model.layers if isinstance(layer, L.Conv2D) for weight in layer.weights)
    dense = (flat + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    assert (flat, convolutions + dense) == (25088, published)


def test_dense_layers_have_the_units_of_the_paper_by_default():
    model = vgg((2, 2, 1), 5, blocks=((1,),))
    assert count(model.weights) == 10 + 2 * 4096 + 4097 * 4096 + 4097 * 5
    assert [layer.name for layer in model.layers][3:] == [
        *("flatten", "fc1", "fc1_dropout", "fc2", "fc2_dropout"),
        *("logits", "predictions"),
    ]
    assert {layer.rate for layer in model.layers if isinstance(layer, L.Dropout)} == {0.5}


def test_batch_norm_of_vgg11_adds_a_gain_and_a_shift_for_every_channel():
    plain, normalised = (vgg11((32, 32, 3), 10, batch_norm=flag, dense_units=()) for flag in (False, True))
    channels = 64 + 128 + 2 * 256 + 4 * 512
    assert count(normalised.trainable_weights) - count(plain.trainable_weights) == 2 * channels
    kinds = [type(layer).__name__ for layer in normalised.layers]
    assert kinds[1:5] == ["Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D"]
    assert normalised.get_layer("block1_conv1").activation is keras.activations.linear
    norm = normalised.get_layer("block5_norm2")
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)


@pytest.mark.parametrize(("build", "reference"), [(vgg16, "VGG16"), (vgg19, "VGG19")])
def test_vgg_is_the_network_of_keras(build, reference):
    body = getattr(keras.applications, reference)(include_top=False, weights=None, input_shape=(32, 32, 3))
    model = build((32, 32, 3), 2, dense_units=())
    assert [layer.name for layer in model.layers[1 : len(body.layers)]] == [layer.name for layer in body.layers[1:]]
    for layer in body.layers[1:]:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    images = images_for(model)
    features = keras.Model(model.input, model.get_layer("block5_pool").output)(images)
    np.testing.assert_array_equal(features, body(images))


def test_applications_have_as_many_weights_as_published():
    # torchvision's densenet121; keras.io/api/applications for InceptionV3. Both have 1000 classes.
    assert count(large("chexnet").trainable_weights) == 7_978_856 - 1025 * 1000 + 1025 * 14
    assert large("inception_v3").count_params() == 23_851_784 - 2049 * 1000 + 2049 * 3


def test_blocks_set_the_layers():
    model = vgg((16, 16, 1), 4, blocks=[[3, 5], [7]], dense_units=())
    kernels = [layer.kernel.shape for layer in model.layers if isinstance(layer, L.Conv2D)]
    assert kernels == [(3, 3, 1, 3), (3, 3, 3, 5), (3, 3, 5, 7)]
    assert model.get_layer("block2_pool").output.shape == (None, 4, 4, 7)
    assert [list(blocks[-1]) for blocks in (VGG11, VGG16, VGG19)] == [[512] * size for size in (2, 3, 4)]


@pytest.mark.parametrize("build", [vgg, two_convolutions])
def test_relu_layers_start_with_he_weights(build):
    options = {"blocks": ((400,),), "dense_units": (300,)} if build is vgg else {"filters": (400, 8)}
    model = build((8, 8, 3), 2, **options)
    kernels = [layer.kernel.numpy() for layer in model.layers if isinstance(layer, L.Conv2D)]
    if build is vgg:
        kernels.append(model.get_layer("fc1").kernel.numpy())
    for kernel in kernels:
        assert kernel.std() == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:-1])), rel=0.05)


# Heads


@pytest.mark.parametrize("name", SMALL)
def test_heads(name):
    outputs = {}
    for classes, activation in [(3, "softmax"), (3, "sigmoid"), (3, None), (1, "sigmoid")]:
        keras.utils.set_random_seed(0)
        model = SMALL[name](num_classes=classes, classifier_activation=activation)
        assert OperationGraph(model).num_classes == classes
        outputs[classes, activation] = model(images_for(model)).numpy()
    logits = outputs[3, None]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(outputs[3, "softmax"], exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(outputs[3, "sigmoid"], 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert outputs[1, "sigmoid"].shape == (2, 1)


def test_presets_have_the_heads_of_their_papers():
    model = large("chexnet")
    assert (model.output.shape, model.layers[-1].activation) == ((None, 14), keras.activations.sigmoid)
    model = application("VGG16", (32, 32, 1), 1, dropout=0.2, classifier_activation="sigmoid")
    assert [layer.name for layer in model.layers[-4:]] == ["avg_pool", "dropout", "logits", "predictions"]
    assert model.get_layer("dropout").rate == 0.2
    assert model.input.name == "images"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_mixed_precision_answers_in_float32(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = SMALL["vgg"](num_classes=3)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("logits").compute_dtype == policy.removeprefix("mixed_")
    assert model.output.dtype == ("float64" if policy == "float64" else "float32")


# Training, saving, explaining


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_weight(name):
    model = SMALL[name](num_classes=3)
    images = images_for(model, 4)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(np.array([0, 1, 2, 0]), model(images, training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    kernels = [
        value for value, weight in zip(gradients, model.trainable_weights, strict=True) if "kernel" in weight.path
    ]
    assert all(np.abs(gradient).max() > 0 for gradient in kernels)


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded(name, tmp_path):
    model = perturbed(SMALL[name](num_classes=3))
    model.save(tmp_path / "model.keras")
    images = images_for(model)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(images), model(images))


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_wbp_accounts_for_the_logits(name):
    model = perturbed(large(name) if name in LARGE else SMALL[name](num_classes=3, classifier_activation="sigmoid"))
    graph = OperationGraph(model)
    images = tf.constant(images_for(model))
    activations = graph.run(images)
    (maps,), bias = weight_back_propagation(graph, activations, tf.constant([2, 0]), with_bias=True)
    logits = tf.gather(activations[graph.logits], [2, 0], batch_dims=1)
    assert maps.shape == images.shape
    np.testing.assert_allclose(tf.reduce_sum(maps, (1, 2, 3)) + bias, logits, rtol=1e-4, atol=1e-4)


# Weights from a file


@pytest.fixture(scope="module")
def bodies() -> dict[str, keras.Model]:
    """Networks without their top whose weights are known: what a file of pretrained weights is made from."""
    keras.utils.set_random_seed(5)
    vgg16_body = keras.applications.VGG16(include_top=False, weights=None, input_shape=(None, None, 3))
    densenet = large("chexnet")
    densenet_body = keras.Model(densenet.input, densenet.get_layer("relu").output)
    return {"VGG16": perturbed(vgg16_body), "DenseNet121": perturbed(densenet_body)}


def write_as_distributed(body: keras.Model, path: Path) -> Path:
    """The layout of Keras's own files `..._notop.h5`: one group per layer, its weights in order."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in body.layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for layer in body.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0".encode() for weight in layer.weights]
            group.attrs["weight_names"] = names
            for name, value in zip(names, layer.get_weights(), strict=True):
                group.create_dataset(name.decode(), data=value)
    return path


def assert_has_weights_of(model: keras.Model, body: keras.Model) -> None:
    features = next(layer.name for layer in reversed(body.layers) if layer.weights)
    probe, reference = (keras.Model(net.input, net.get_layer(features).output) for net in (model, body))
    images = images_for(model)
    np.testing.assert_array_equal(probe(images), reference(images))


def test_weights_as_keras_distributes_them(bodies, tmp_path):
    path = write_as_distributed(bodies["DenseNet121"], tmp_path / "densenet121_notop.h5")
    assert_has_weights_of(chexnet((32, 32, 3), weights=str(path)), bodies["DenseNet121"])
    path = write_as_distributed(bodies["VGG16"], tmp_path / "vgg16_notop.h5")
    assert_has_weights_of(vgg16((64, 32, 3), 2, dense_units=(4,), weights=path), bodies["VGG16"])


def test_weights_as_keras_saves_them(bodies, tmp_path):
    bodies["VGG16"].save_weights(tmp_path / "body.weights.h5")
    weights = tmp_path / "body.weights.h5"
    assert_has_weights_of(application("VGG16", (64, 32, 3), 2, weights), bodies["VGG16"])


def test_weights_of_another_network(bodies, tmp_path):
    path = write_as_distributed(bodies["VGG16"], tmp_path / "vgg16.h5")
    with pytest.raises(
        InvalidArgument, match=r"`weights`: expected a file with weights without the top of VGG19; .*count"
    ):
        vgg19((32, 32, 3), 2, dense_units=(), weights=path)
    bodies["VGG16"].save_weights(tmp_path / "vgg16.weights.h5")
    with pytest.raises(InvalidArgument, match="file with weights without the top of VGG19"):
        application_body("VGG19", (32, 32, 3), tmp_path / "vgg16.weights.h5")
    (tmp_path / "notes.h5").write_text("no weights")
    with pytest.raises(InvalidArgument, match=r"notes.h5' \(OSError: .*its `load_weights`"):
        application_body("VGG16", (32, 32, 3), tmp_path / "notes.h5")


def test_without_a_connection_the_error_says_what_to_do(monkeypatch):
    build = keras.applications.VGG16

    def offline(weights, **options):
        if weights == "imagenet":
            raise Exception("URL fetch failure on https://somewhere: None -- no route")  # as keras.utils.get_file does
        return build(weights=weights, **options)

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    expected = (
        "`weights`: expected weights that Keras can download, .*no route.* fetch the file .* its path as `weights`"
    )
    with pytest.raises(InvalidArgument, match=expected):
        vgg16((32, 32, 3), 2, dense_units=(), weights="imagenet")


# Errors


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: vgg((8, 8), 2), r"`input_shape`: expected \(height, width, channels\); received \(8, 8\)"),
        (lambda: vgg((8, True, 3), 2), "`input_shape`: .*True"),
        (lambda: vgg11((31, 64, 3), 2), "`input_shape`: expected an image of at least 32 x 32 .* 5 blocks halves"),
        (lambda: vgg((8, 8, 3), 2, blocks=((4,), ())), r"`blocks`: expected the filters .* \(\(4,\), \(\)\)"),
        (lambda: vgg((8, 8, 3), 2, blocks=(4, 8)), r"`blocks`: .* \(4, 8\)"),
        (lambda: vgg((8, 8, 3), 2, blocks=()), r"`blocks`: .* received \(\)"),
        (lambda: vgg((8, 8, 3), 2, blocks=BLOCKS, dense_units=(0,)), r"`dense_units`: .* received \(0,\)"),
        (lambda: vgg((8, 8, 3), 0, blocks=BLOCKS), "`num_classes`: expected an integer of at least 1; received 0"),
        (lambda: vgg((8, 8, 3), 1, blocks=BLOCKS), "`classifier_activation`: .* for one class; .* set it to 'sigmoid'"),
        (lambda: vgg((8, 8, 3), 2, blocks=BLOCKS, dropout=1), r"`dropout`: expected a share in \[0, 1\); received 1"),
        (lambda: vgg((8, 8, 3), 2, blocks=BLOCKS, dropout="much"), "`dropout`: .* received 'much'"),
        (lambda: two_convolutions((3, 28, 1)), "`input_shape`: expected an image of at least 4 x 4"),
        (lambda: two_convolutions(filters=(4,)), r"`filters`: expected two positive integers; received \(4,\)"),
        (lambda: two_convolutions(classifier_activation="tanh"), "`classifier_activation`: .* received 'tanh'"),
        (
            lambda: vgg16((32, 32, 3), 2, batch_norm=True, weights="imagenet"),
            "`weights`: expected None with batch_norm",
        ),
        (
            lambda: vgg16((32, 32, 3), 2, weights="here.h5"),
            "`weights`: expected None, 'imagenet' or a file .*here.h5",
        ),
        (lambda: chexnet((32, 32, 3), weights=3), "`weights`: expected None, 'imagenet' or a file .* received 3"),
        (lambda: chexnet((32, 32, 1), weights="imagenet"), "`input_shape`: expected three channels for weights='image"),
        (lambda: chexnet((16, 16, 3)), r"`input_shape`: expected images that DenseNet121 takes; .*at least 32x32"),
        (lambda: chexnet((16, 16, 3), weights="imagenet"), r"`input_shape`: expected images that DenseNet121 takes"),
        (lambda: inception_v3((74, 80, 3), 2), r"`input_shape`: .* InceptionV3 takes; .* at least 75x75"),
        (lambda: application("VGG11", (32, 32, 3), 2), "`architecture`: expected one of ConvNeXtBase, .*'VGG11'"),
        (lambda: application("MobileNetV2", (32, 32, 3), 2, dropout=-1), "`dropout`"),
        (lambda: application_body("MobileNetV2", (32, 32)), "`input_shape`"),
    ],
)
def test_arguments_outside_their_range(build, expected):
    with pytest.raises(InvalidArgument, match=expected):
        build()
