"""The all-convolutional classifier of CFCN-C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np

from tfcausal.errors import InvalidArgument, message


def all_convolutional(
    input_shape: tuple[int, int, int],
    num_classes: int,
    filters: Sequence[int] = (128, 128, 64, 64, 32),
    strides: int | Sequence[int] = 1,
    dropout: float = 0.3,
    class_map_activation: Literal["linear", "relu"] = "linear",
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build the classifier: blocks of convolution, ReLU, batch norm and dropout, one map per class, global average.

    Source: *Causally Focused Convolutional Networks*, appendix C and table 4 (the default is its Aeroplane-Cow row
    without strides). The paper does not give kernel size and padding of the blocks; here 3x3 and `same`.

    Departures from the paper. The class maps are linear by default, so that a class can have evidence against it; the
    paper applies a ReLU to them (`class_map_activation="relu"`). Batch norm keeps its moving statistics with momentum
    0.9 instead of Keras's 0.99, because runs on small data sets are too short for the latter.

    Args:
        input_shape: (height, width, channels) of the images.
        num_classes: Number of classes, at least 2.
        filters: Filters of each block.
        strides: Stride of each block, or one for all.
        dropout: Share of values dropped after each block, in [0, 1).
        class_map_activation: `linear` or `relu`.
        classifier_activation: Activation of the pooled maps; None gives logits.

    Returns:
        A functional model from images (N, height, width, channels) to (N, num_classes). Its layer `class_maps` holds
        the class maps, (N, h, w, num_classes).

    Raises:
        InvalidArgument: A stride for every block is missing, a size is not positive, or there is only one class.

    Example:
        >>> model = all_convolutional((16, 16, 3), num_classes=4, filters=(8, 8), strides=(1, 2))
        >>> model.get_layer("class_maps").output.shape
        (None, 8, 8, 4)
    """
    if not _positive_integers(input_shape) or len(input_shape) != 3:
        raise InvalidArgument(message("input_shape", "(height, width, channels)", repr(input_shape)))
    if not _positive_integers([num_classes]) or num_classes < 2:
        raise InvalidArgument(message("num_classes", "an integer of at least 2", repr(num_classes)))
    if not _positive_integers(filters) or not filters:
        raise InvalidArgument(message("filters", "at least one positive integer", repr(filters)))
    block_strides: Sequence[int] = strides if isinstance(strides, Sequence) else (strides,) * len(filters)
    if not _positive_integers(block_strides) or len(block_strides) != len(filters):
        raise InvalidArgument(message("strides", f"one stride, or {len(filters)} as there are filters", repr(strides)))
    if not 0 <= dropout < 1:
        raise InvalidArgument(message("dropout", "a share in [0, 1)", repr(dropout)))
    if class_map_activation not in ("linear", "relu"):
        raise InvalidArgument(message("class_map_activation", "'linear' or 'relu'", repr(class_map_activation)))

    inputs = keras.Input(input_shape, name="images")
    x = inputs
    for number, (count, stride) in enumerate(zip(map(int, filters), map(int, block_strides), strict=True), start=1):
        x = keras.layers.Conv2D(count, 3, stride, padding="same", activation="relu", name=f"block{number}_conv")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"block{number}_norm")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"block{number}_dropout")(x)
    x = keras.layers.Conv2D(num_classes, 1, activation=class_map_activation, name="class_maps")(x)
    x = keras.layers.GlobalAveragePooling2D(name="logits")(x)
    if classifier_activation is not None:
        x = keras.layers.Activation(classifier_activation, name="predictions")(x)
    return keras.Model(inputs, x, name="all_convolutional")


def _positive_integers(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, int | np.integer) and value >= 1 for value in values)
