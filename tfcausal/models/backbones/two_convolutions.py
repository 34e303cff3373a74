"""The network of two convolutions for Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.backbones.head import check_head, check_image_shape, classified, positive_integers


def two_convolutions(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    filters: Sequence[int] = (32, 64),
    dropout: float = 0.0,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build the shallow classifier of Fashion-MNIST: twice convolution, ReLU and max pooling, then a dense layer.

    Source: *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural Networks*,
    section 4.2, which trains it with Adam (learning rate 0.001, batches of 100) to an accuracy of 0.896. It says no
    more than that there are two convolutional layers; the 32 channels of the first are those of its code, whose level
    `L = 2` is the output of `conv1` here. Kernels of 3x3, 64 channels in the second, the poolings and He's initial
    weights are choices of this function.

    Args:
        input_shape: (height, width, channels) of the images, height and width at least 4.
        num_classes: Number of classes; 1 for a binary head of one sigmoid.
        filters: Filters of the first and of the second convolution.
        dropout: Share of the features that are dropped before the dense layer, in [0, 1).
        classifier_activation: `softmax`, `sigmoid` (binary and multi-label heads), or None to end with logits.

    Returns:
        A functional model from images (N, height, width, channels) to (N, num_classes), with the layers `conv1`,
        `pool1`, `conv2`, `pool2`, `flatten`, `logits` and `predictions`.

    Raises:
        InvalidArgument: A size is not a positive integer, the images are too small, or the activation does not go with
            the number of classes.

    Example:
        >>> model = two_convolutions()
        >>> model.get_layer("conv1").output.shape, model.count_params()
        ((None, 28, 28, 32), 50186)
    """
    check_image_shape(input_shape, 4, "Each of the two poolings halves it.")
    if not positive_integers(filters) or len(filters) != 2:
        raise InvalidArgument(message("filters", "two positive integers", repr(filters)))
    check_head(num_classes, classifier_activation, dropout)

    x = inputs = keras.Input(tuple(input_shape), name="images")
    for number, count in enumerate(map(int, filters), start=1):
        x = keras.layers.Conv2D(
            count, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"conv{number}"
        )(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, classified(x, num_classes, classifier_activation), name="two_convolutions")
