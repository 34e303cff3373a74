"""A multi-view network for volumes: one network for every slice, then the slices are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.models.backbones.head import check_head, classified, positive_integers
from tfcausal.models.backbones.vgg import Blocks, check_blocks, vgg_features

_POOLINGS = {"max": keras.ops.max, "mean": keras.ops.mean}


def multi_view(
    input_shape: tuple[int, int, int, int],
    num_classes: int,
    slice_network: keras.Model | None = None,
    blocks: Blocks = ((32,), (64,), (128,)),
    batch_norm: bool = False,
    pooling: Literal["max", "mean"] = "max",
    dense_units: Sequence[int] = (),
    dropout: float = 0.0,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build a classifier of volumes: a network shared by all slices, pooling over the slices, a head.

    Source: Su et al. 2015, *Multi-view Convolutional Neural Networks for 3D Shape Recognition*, section 3.2: the
    elementwise maximum of the last convolution's maps over the views, then the rest of the network. *Proactive
    Pseudo-Intervention*, section 4.2, has it for optical coherence tomography, the scans of a volume as its views.

    A saliency map has the shape of the volumes, a map for every slice: `maps.sum(axis=(2, 3, 4))`, (N, slices), tells
    on which slices a logit rests. With `max` every pooled value comes from one slice; with `mean` all have a share.

    Departures from Su et al. Pooled maps go through global average pooling instead of being flattened, so that dense
    layers do not grow with the slices' size; a `slice_network` that ends with `Flatten` has it as published. Without
    `slice_network`, the slices go through a small VGG network.

    Args:
        input_shape: (slices, height, width, channels) of the volumes.
        num_classes: Number of classes; 1 for a binary head of one sigmoid.
        slice_network: Gives features (N, features) or feature maps (N, h, w, channels) for images (N, height, width,
            channels), such as :func:`~tfcausal.models.backbones.applications.application_body` for pretrained weights.
            It is a part of the result, with the weights that it has.
        blocks: Without `slice_network`: filters of the convolutions of every block, as for
            :func:`~tfcausal.models.backbones.vgg.vgg`.
        batch_norm: Without `slice_network`: whether there is batch norm after every convolution.
        pooling: What is taken over the slices: `max` or `mean`.
        dense_units: Units of the hidden dense layers after the pooling.
        dropout: Share of values dropped after each hidden dense layer, or after the pooling where there is none.
        classifier_activation: `softmax`, `sigmoid` (binary and multi-label heads), or None to end with logits.

    Returns:
        A functional model from volumes (N, slices, height, width, channels) to (N, num_classes).

    Raises:
        InvalidArgument: A size is not a positive integer, the slices are too small for the poolings, the slice network
            takes other images or is a classifier already, or the activation does not go with the number of classes.

    Example:
        >>> import numpy as np
        >>> from tfcausal import WBP
        >>> model = multi_view((5, 16, 16, 1), num_classes=2, blocks=((4,), (8,)))
        >>> maps = WBP(model)(np.ones((2, 5, 16, 16, 1), "float32"))
        >>> maps.shape, maps.sum(axis=(2, 3, 4)).shape
        ((2, 5, 16, 16, 1), (2, 5))
    """
    if not positive_integers(input_shape) or len(input_shape) != 4:
        raise InvalidArgument(message("input_shape", "(slices, height, width, channels)", repr(input_shape)))
    if not isinstance(pooling, str) or pooling not in _POOLINGS:
        raise InvalidArgument(message("pooling", "'max' or 'mean'", repr(pooling)))
    if not positive_integers(dense_units):
        raise InvalidArgument(message("dense_units", "positive integers, or ()", repr(dense_units)))
    check_head(num_classes, classifier_activation, dropout)
    slices, *image_shape = map(int, input_shape)
    network = _small(tuple(image_shape), blocks, batch_norm) if slice_network is None else slice_network

    inputs = keras.Input(tuple(input_shape), name="volumes")
    features = _features(network, keras.ops.reshape(inputs, (-1, *image_shape)))
    x = _POOLINGS[pooling](keras.ops.reshape(features, (-1, slices, *features.shape[1:])), axis=1)
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    for number, units in enumerate(dense_units, start=1):
        x = keras.layers.Dense(int(units), activation="relu", kernel_initializer="he_normal", name=f"fc{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"fc{number}_dropout")(x)
    if dropout and not dense_units:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, classified(x, num_classes, classifier_activation), name="multi_view")


def _small(image_shape: tuple[int, ...], blocks: Blocks, batch_norm: bool) -> keras.Model:
    check_blocks(blocks, image_shape)
    images = keras.Input(image_shape, name="images")
    return keras.Model(images, vgg_features(images, blocks, batch_norm), name="slice_network")


def _features(network: object, images: Any) -> Any:
    """What a slice network gives for the slices of all volumes, one below the other."""
    expected = "a keras.Model from images to features (N, features) or feature maps (N, h, w, channels)"
    if not isinstance(network, keras.Model):
        raise InvalidArgument(message("slice_network", expected, type(network).__name__))
    taken = f"a network that takes images of shape {tuple(images.shape[1:])}, as `input_shape` says"
    functional = keras_api.functional_graph(network)
    shapes = [] if functional is None else [tensor.shape for tensor in keras_api.input_tensors(functional)]
    # Keras drops a last axis of 1 without a word where a model does not have it.
    if functional is not None and (len(shapes) != 1 or not _fits(images.shape, shapes[0])):
        received = f"`{network.name}`, which takes {' and '.join(str(tuple(shape[1:])) for shape in shapes)}"
        raise InvalidArgument(message("slice_network", taken, received))
    try:
        features = network(images)
    except Exception as error:  # whatever a network of the user's own raises for images that it cannot take
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InvalidArgument(message("slice_network", taken, f"`{network.name}` ({reason})")) from error
    shape = getattr(features, "shape", ())
    if len(shape) not in (2, 4) or None in shape[1:]:
        raise InvalidArgument(message("slice_network", expected, f"`{network.name}`, which gives {_spelled(features)}"))
    if len(shape) == 2 and _classifies(network):
        remedy = "Take the layer before its head: keras.Model(network.input, network.get_layer(...).output)."
        received = f"`{network.name}`, which ends with the probabilities of a classifier"
        raise InvalidArgument(message("slice_network", expected, received, remedy))
    return features


def _fits(shape: Sequence[int | None], taken: Sequence[int | None]) -> bool:
    return len(shape) == len(taken) and all(
        wanted in (None, size) for size, wanted in zip(shape[1:], taken[1:], strict=True)
    )


def _classifies(network: keras.Model) -> bool:
    try:
        graph = OperationGraph(network)
    except UnsupportedOperation:
        return False
    return graph.output != graph.logits


def _spelled(features: Any) -> str:
    return f"shape {tuple(features.shape)}" if hasattr(features, "shape") else f"a {type(features).__name__}"
