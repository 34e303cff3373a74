"""VGG networks: from a few small blocks to VGG11, VGG16 and VGG19."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.backbones.applications import application_body, check_weights
from tfcausal.models.backbones.head import check_head, check_image_shape, classified, positive_integers

Blocks = Sequence[Sequence[int]]

VGG11: Blocks = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16: Blocks = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG19: Blocks = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)

_L = keras.layers


def vgg(
    input_shape: tuple[int, int, int],
    num_classes: int,
    blocks: Blocks = VGG11,
    batch_norm: bool = False,
    dense_units: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    name: str = "vgg",
) -> keras.Model:
    """Build a VGG network: blocks of 3x3 convolutions and ReLU, a 2x2 max pooling after each, dense layers.

    Source: Simonyan and Zisserman 2015, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, section
    2.1 and table 1. Batch norm, which the paper does not have, stands between a convolution and its ReLU, with momentum
    0.9 and epsilon 1e-5, as the training of *Proactive Pseudo-Intervention* has it from its library.

    Departures from the paper. The layers with a ReLU start with He's initial weights, with which also the deep networks
    learn without batch norm; the paper copies weights from a trained VGG11. Images of any size are taken as they are,
    so that the first dense layer has as many weights as the last maps need: 512 inputs for a VGG11 on 32x32 images,
    25,088 on 224x224. With `dense_units=()` there is global average pooling in place of the dense layers.

    Args:
        input_shape: (height, width, channels) of the images, height and width at least 2 to the number of blocks.
        num_classes: Number of classes; 1 for a binary head of one sigmoid.
        blocks: Filters of the convolutions of every block.
        batch_norm: Whether there is batch norm after every convolution.
        dense_units: Units of the hidden dense layers; () for global average pooling.
        dropout: Share of values dropped after each hidden dense layer, or after global average pooling; in [0, 1).
        classifier_activation: `softmax`, `sigmoid` (binary and multi-label heads), or None to end with logits.
        name: Name of the model.

    Returns:
        A functional model from images (N, height, width, channels) to (N, num_classes). Its layers have the names that
        they have in `keras.applications.VGG16`: `block1_conv1`, `block1_pool`, ..., `fc1`, `fc2`; then `logits` and
        `predictions`.

    Raises:
        InvalidArgument: A size is not a positive integer, the images are too small for the poolings, or the activation
            does not go with the number of classes.

    Example:
        >>> model = vgg((32, 32, 3), num_classes=10, blocks=((8,), (16, 16)), dense_units=())
        >>> [layer.name for layer in model.layers][1:5], model.get_layer("block2_pool").output.shape
        (['block1_conv1', 'block1_pool', 'block2_conv1', 'block2_conv2'], (None, 8, 8, 16))
    """
    check_blocks(blocks, input_shape)
    if not positive_integers(dense_units):
        raise InvalidArgument(message("dense_units", "positive integers, or ()", repr(dense_units)))
    check_head(num_classes, classifier_activation, dropout)

    inputs = keras.Input(tuple(input_shape), name="images")
    x = vgg_features(inputs, blocks, batch_norm)
    x = _L.Flatten(name="flatten")(x) if dense_units else _L.GlobalAveragePooling2D(name="avg_pool")(x)
    for number, units in enumerate(dense_units, start=1):
        x = _L.Dense(int(units), activation="relu", kernel_initializer="he_normal", name=f"fc{number}")(x)
        if dropout:
            x = _L.Dropout(dropout, name=f"fc{number}_dropout")(x)
    if dropout and not dense_units:
        x = _L.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, classified(x, num_classes, classifier_activation), name=name)


def vgg_features(images: Any, blocks: Blocks, batch_norm: bool = False) -> Any:
    """The blocks of a VGG network without a head.

    Args:
        images: Symbolic tensor (N, height, width, channels).
        blocks: Filters of the convolutions of every block.
        batch_norm: Whether there is batch norm after every convolution.

    Returns:
        Symbolic tensor: the feature maps after the last pooling.
    """
    x = images
    for block, filters in enumerate(blocks, start=1):
        for number, count in enumerate(map(int, filters), start=1):
            activation = None if batch_norm else "relu"
            options = {"padding": "same", "activation": activation, "kernel_initializer": "he_normal"}
            x = _L.Conv2D(count, 3, **options, name=f"block{block}_conv{number}")(x)
            if batch_norm:
                x = _L.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"block{block}_norm{number}")(x)
                x = _L.ReLU(name=f"block{block}_relu{number}")(x)
        x = _L.MaxPooling2D(2, name=f"block{block}_pool")(x)
    return x


def check_blocks(blocks: object, input_shape: object) -> None:
    """Check the blocks of a VGG network, and that the images are large enough for its poolings.

    Raises:
        InvalidArgument: They are not.
    """
    check_image_shape(input_shape)
    if not isinstance(blocks, Sequence) or not blocks or not all(map(_is_block, blocks)):
        expected = "the filters of every block, such as ((64,), (128,), (256, 256))"
        raise InvalidArgument(message("blocks", expected, repr(blocks)))
    poolings = f"Each of the {len(blocks)} blocks halves the image: give fewer blocks or larger images."
    check_image_shape(input_shape, 2 ** len(blocks), poolings)


def _is_block(filters: object) -> bool:
    return positive_integers(filters) and len(filters) > 0


def vgg11(
    input_shape: tuple[int, int, int],
    num_classes: int,
    batch_norm: bool = False,
    dense_units: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build a VGG11, configuration A of table 1, which *Proactive Pseudo-Intervention* trains on CIFAR-10 and CUB.

    Keras distributes no weights for it. Arguments, result and errors are those of :func:`vgg`.

    Example:
        >>> vgg11((32, 32, 3), num_classes=10, dense_units=()).get_layer("block5_pool").output.shape
        (None, 1, 1, 512)
    """
    return vgg(
        input_shape, num_classes, VGG11, batch_norm, dense_units, dropout, classifier_activation, _name(11, batch_norm)
    )


def vgg16(
    input_shape: tuple[int, int, int],
    num_classes: int,
    batch_norm: bool = False,
    dense_units: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    weights: str | Path | None = None,
) -> keras.Model:
    """Build a VGG16, configuration D of table 1.

    *When Causal Intervention Meets Image Masking and Adversarial Perturbation* explains one trained on ImageNet. The
    pretrained weights here are those of the convolutions; the whole network with the 1000 classes of ImageNet is
    `keras.applications.VGG16()`, which every method takes as it is. For pretrained weights, images go from [0, 255]
    through `keras.applications.vgg16.preprocess_input`.

    Args:
        input_shape: As for :func:`vgg`.
        num_classes: As for :func:`vgg`.
        batch_norm: As for :func:`vgg`; there are no pretrained weights with it.
        dense_units: As for :func:`vgg`.
        dropout: As for :func:`vgg`.
        classifier_activation: As for :func:`vgg`.
        weights: None for initial weights; `imagenet`, which Keras downloads; or a file, as for
            :func:`~tfcausal.models.backbones.applications.application`.

    Returns:
        As for :func:`vgg`.

    Raises:
        InvalidArgument: As for :func:`vgg`; or the weights cannot be had or do not fit.

    Example:
        >>> model = vgg16((32, 32, 3), num_classes=2, dense_units=(16,))
        >>> model.get_layer("fc1").input.shape
        (None, 512)
    """
    _check_weights(weights, batch_norm)
    model = vgg(
        input_shape, num_classes, VGG16, batch_norm, dense_units, dropout, classifier_activation, _name(16, batch_norm)
    )
    return _pretrained(model, "VGG16", input_shape, weights)


def vgg19(
    input_shape: tuple[int, int, int],
    num_classes: int,
    batch_norm: bool = False,
    dense_units: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    weights: str | Path | None = None,
) -> keras.Model:
    """Build a VGG19, configuration E of table 1. Arguments, result and errors are those of :func:`vgg16`.

    Example:
        >>> model = vgg19((32, 32, 3), num_classes=2, dense_units=())
        >>> sum(layer.name.startswith("block5_conv") for layer in model.layers)
        4
    """
    _check_weights(weights, batch_norm)
    model = vgg(
        input_shape, num_classes, VGG19, batch_norm, dense_units, dropout, classifier_activation, _name(19, batch_norm)
    )
    return _pretrained(model, "VGG19", input_shape, weights)


def _name(layers: int, batch_norm: bool) -> str:
    return f"vgg{layers}_batch_norm" if batch_norm else f"vgg{layers}"


def _check_weights(weights: object, batch_norm: bool) -> None:
    check_weights(weights)
    if weights is not None and batch_norm:
        remedy = "Keras's weights belong to the network without batch norm."
        raise InvalidArgument(message("weights", "None with batch_norm=True", repr(weights), remedy))


def _pretrained(
    model: keras.Model, architecture: str, input_shape: tuple[int, int, int], weights: str | Path | None
) -> keras.Model:
    if weights is not None:
        for layer in application_body(architecture, input_shape, weights).layers[1:]:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model
