from __future__ import annotations

import keras
import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.models.backbones.all_convolutional import TABLE_4, all_convolutional

SHAPE = (8, 12, 3)
SMALL = {"input_shape": SHAPE, "num_classes": 2, "filters": (4, 5)}


def convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def test_layers_in_their_order():
    model = all_convolutional(**SMALL)
    kinds = [type(layer).__name__ for layer in model.layers]
    block = ["Conv2D", "BatchNormalization", "Dropout"]
    assert kinds == ["InputLayer", *block, *block, "Conv2D", "GlobalAveragePooling2D", "Activation"]
    first, second, maps = convolutions(model)
    for block in (first, second):
        assert (block.kernel_size, block.padding, block.activation) == ((3, 3), "same", keras.activations.relu)
    assert (maps.name, maps.kernel_size, maps.activation) == ("class_maps", (1, 1), keras.activations.linear)
    assert model.get_layer("block1_norm").momentum == 0.9


def test_parameters_counted_by_hand():
    model = all_convolutional(**SMALL)
    trainable = (3 * 9 * 4 + 4) + 2 * 4 + (4 * 9 * 5 + 5) + 2 * 5 + (5 * 2 + 2)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == trainable
    assert model.count_params() == trainable + 2 * 4 + 2 * 5 + sum(
        int(np.prod(state.shape)) for state in model.non_trainable_weights if "seed" in state.path
    )


def test_default_is_the_row_of_the_paper():
    model = all_convolutional((96, 96, 3), num_classes=2)
    assert [layer.filters for layer in convolutions(model)] == [128, 128, 64, 64, 32, 2]
    assert [layer.strides for layer in convolutions(model)] == [(1, 1)] * 6
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.3] * 5
    assert model.output.shape == (None, 2)


@pytest.mark.parametrize(
    ("strides", "size"), [(1, (8, 12)), (2, (2, 3)), ((1, 2), (4, 6)), ([2, 1], (4, 6)), ((3, 2), (2, 2))]
)
def test_strides_set_the_size_of_the_class_maps(strides, size):
    model = all_convolutional(**SMALL, strides=strides)
    assert model.get_layer("class_maps").output.shape == (None, *size, 2)


def test_number_of_classes_and_filters():
    model = all_convolutional(SHAPE, num_classes=7, filters=[3])
    assert model.output.shape == (None, 7)
    assert [layer.filters for layer in convolutions(model)] == [3, 7]


@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_dropout(rate):
    model = all_convolutional(**SMALL, dropout=rate)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [rate, rate] * (rate > 0)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    first, second = (model(images, training=True).numpy() for _ in range(2))
    assert np.array_equal(first, second) == (rate == 0)


def test_head_and_class_maps():
    images = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")
    outputs = {}
    for options in (
        {},
        {"classifier_activation": None},
        {"classifier_activation": None, "class_map_activation": "relu"},
    ):
        keras.utils.set_random_seed(0)
        model = all_convolutional(**SMALL, **options)
        maps = keras.Model(model.input, model.get_layer("class_maps").output)(images).numpy()
        outputs[tuple(options)] = maps, model(images).numpy()
    (maps, probabilities), (same_maps, logits), (positive, positive_logits) = outputs.values()
    np.testing.assert_array_equal(maps, same_maps)
    np.testing.assert_allclose(logits, maps.mean(axis=(1, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    assert maps.min() < 0
    np.testing.assert_allclose(positive, np.maximum(maps, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(positive_logits, positive.mean(axis=(1, 2)), rtol=1e-5, atol=1e-7)


def test_batch_norm_comes_after_the_relu():
    """With the statistics of the batch, the normalised activations have mean 0, which no ReLU would leave."""
    model = all_convolutional(**SMALL, dropout=0.0)
    images = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")
    conv, norm = (model.get_layer(f"block1_{name}") for name in ("conv", "norm"))
    activation = conv(images).numpy()
    assert activation.min() == 0
    np.testing.assert_allclose(norm(activation, training=True).numpy().mean(axis=(0, 1, 2)), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"num_classes": 1},
            "`classifier_activation`: expected 'sigmoid' or None for one class; received 'softmax'. A",
        ),
        ({"num_classes": 0}, "`num_classes`: expected an integer of at least 1; received 0"),
        ({"num_classes": 2.0}, "`num_classes`: expected an integer of at least 1; received 2.0"),
        ({"classifier_activation": "relu"}, "`classifier_activation`: expected 'softmax', 'sigmoid' or None; .*'relu'"),
        ({"head": "dense"}, "`head`: expected 'class_maps' or 'feature_maps'; received 'dense'"),
        ({"head": "feature_maps", "feature_maps": 0}, "`feature_maps`: expected an integer of at least 1; received 0"),
        ({"filters": ()}, r"`filters`: expected at least one positive integer; received \(\)"),
        ({"filters": (4, 0)}, r"`filters`: expected at least one positive integer; received \(4, 0\)"),
        ({"filters": 8}, "`filters`: expected at least one positive integer; received 8"),
        ({"strides": (1, 1, 2)}, r"`strides`: expected one stride, or 2 as there are filters; received \(1, 1, 2\)"),
        ({"strides": 0}, "`strides`: expected one stride, or 2 as there are filters; received 0"),
        ({"strides": (1.5, 2)}, r"`strides`: .* received \(1.5, 2\)"),
        ({"dropout": 1.0}, r"`dropout`: expected a share in \[0, 1\); received 1.0"),
        ({"dropout": -0.1}, r"`dropout`: expected a share in \[0, 1\); received -0.1"),
        ({"class_map_activation": "tanh"}, "`class_map_activation`: expected 'linear' or 'relu'; received 'tanh'"),
        ({"input_shape": (8, 8)}, r"`input_shape`: expected \(height, width, channels\); received \(8, 8\)"),
        ({"input_shape": (8, 0, 3)}, r"`input_shape`: expected \(height, width, channels\); received \(8, 0, 3\)"),
    ],
)
def test_arguments_outside_their_range(options, expected):
    with pytest.raises(InvalidArgument, match=f"Invalid value for {expected}"):
        all_convolutional(**{**SMALL, **options})


def test_layers_of_the_fully_connected_head():
    model = all_convolutional(**SMALL, head="feature_maps")
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[-5:] == ["Dropout", "Conv2D", "Flatten", "Dense", "Activation"]
    maps = model.get_layer("feature_maps")
    assert (maps.filters, maps.kernel_size, maps.activation) == (16, (1, 1), keras.activations.relu)
    blocks = (3 * 9 * 4 + 4) + 2 * 4 + (4 * 9 * 5 + 5) + 2 * 5
    trainable = blocks + (5 * 16 + 16) + (8 * 12 * 16 * 2 + 2)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == trainable


def test_logits_of_the_fully_connected_head():
    model = all_convolutional(**SMALL, head="feature_maps", feature_maps=3, classifier_activation=None)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    maps = keras.Model(model.input, model.get_layer("feature_maps").output)(images).numpy()
    kernel, bias = model.get_layer("logits").get_weights()
    assert maps.shape == (2, 8, 12, 3)
    assert maps.min() == 0 < maps.max()
    np.testing.assert_allclose(model(images), maps.reshape(2, -1) @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["feature_maps", "class_maps"])
def test_initial_weights(head):
    """He's for feature maps; Glorot's, as Keras has it, for class maps."""
    model = all_convolutional((8, 8, 3), 2, filters=(100, 90), head=head, feature_maps=80)
    for layer in convolutions(model)[: 3 if head == "feature_maps" else 2]:
        *sizes, inputs, outputs = layer.kernel.shape
        variance = 2 / (np.prod(sizes) * (inputs + (outputs if head == "class_maps" else 0)))
        assert layer.kernel.numpy().std() == pytest.approx(np.sqrt(variance), rel=0.05)


@pytest.mark.parametrize("row", TABLE_4)
def test_rows_of_table_4(row):
    """The rows as the paper prints them: filters, dropout, batch size, learning rate, epochs, alpha."""
    printed = {
        "pets": "128,128,64,64,32,32,16,16 0.3 64 1e-4 500 1",
        "aeroplane_cow": "128,128,64,64,32 0.3 16 1e-4 200 1.5",
        "mri": "64,64,64,32,32,32 0 32 1e-5 150 3",
        "idrid": "32,32,16,16,8,8 0.3 5 1e-4 200 0.8",
    }[row]
    filters, *numbers = printed.split()
    experiment = TABLE_4[row]
    assert experiment.filters == tuple(map(int, filters.split(",")))
    found = ("dropout", "batch_size", "learning_rate", "epochs", "alpha")
    assert [getattr(experiment, name) for name in found] == list(map(float, numbers))


@pytest.mark.parametrize("head", ["class_maps", "feature_maps"])
@pytest.mark.parametrize(
    ("row", "maps", "count"), [("pets", (96, 96), 16), ("aeroplane_cow", (24, 24), 16), ("mri", (24, 24), 16)]
)
def test_networks_of_table_4(row, maps, count, head):
    experiment = TABLE_4[row]
    model = all_convolutional((*experiment.image_size, 3), 2, **experiment.backbone, head=head)
    assert model.get_layer(head).output.shape == (None, *maps, 2 if head == "class_maps" else count)
    assert (experiment.resize == "maps") == (row == "aeroplane_cow")


def test_the_network_of_idrid_answers_for_three_labels():
    model = all_convolutional((*TABLE_4["idrid"].image_size, 3), 3, **TABLE_4["idrid"].backbone, head="feature_maps")
    assert model.get_layer("feature_maps").output.shape == (None, 175, 250, 3)
    assert model.layers[-1].activation is keras.activations.sigmoid


def test_numpy_integers_are_integers():
    model = all_convolutional(SHAPE, np.int64(3), filters=(np.int32(4),), strides=np.int64(2))
    assert model.get_layer("class_maps").output.shape == (None, 4, 6, 3)
