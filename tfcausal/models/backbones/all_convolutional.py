"""The all-convolutional classifier of CFCN, with class maps (CFCN-C) or a fully connected layer (CFCN-F)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import keras

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.backbones.head import answered, check_head, check_image_shape, classified, positive_integers


def all_convolutional(
    input_shape: tuple[int, int, int],
    num_classes: int,
    filters: Sequence[int] = (128, 128, 64, 64, 32),
    strides: int | Sequence[int] = 1,
    dropout: float = 0.3,
    class_map_activation: Literal["linear", "relu"] = "linear",
    classifier_activation: str | None = "softmax",
    head: Literal["class_maps", "feature_maps"] = "class_maps",
    feature_maps: int = 16,
) -> keras.Model:
    """Build the classifier: blocks of convolution, ReLU, batch norm and dropout, then a head of a 1x1 convolution.

    The head is one map per class and global average pooling (CFCN-C, `class_maps`), or a number of feature maps with a
    ReLU, all of whose values go into a dense layer (CFCN-F, `feature_maps`).

    Source: *Causally Focused Convolutional Networks*, appendix C and table 4 (the default is its Aeroplane-Cow row
    without strides; :data:`TABLE_4` has all of them). The paper does not give kernel size and padding of the blocks;
    here 3x3 and `same`.

    Departures from the paper. The class maps are linear by default, so that a class can have evidence against it; the
    paper applies a ReLU to them (`class_map_activation="relu"`). With it no logit is negative, so that a sigmoid gives
    every label a probability of at least 0.5: a multi-label classifier needs linear maps. Batch norm keeps its moving
    statistics with momentum 0.9 instead of Keras's 0.99, because runs on small data sets are too short for the latter.
    With `feature_maps`, convolutions start with He's initial weights: a map whose ReLU gives 0 everywhere cannot come
    back under the causal-focus loss.

    Args:
        input_shape: (height, width, channels) of the images.
        num_classes: Number of classes; 1 for a binary head of one sigmoid.
        filters: Filters of each block.
        strides: Stride of each block, or one for all.
        dropout: Share of values dropped after each block, in [0, 1).
        class_map_activation: `linear` or `relu`; feature maps always have a ReLU.
        classifier_activation: Activation of the logits: `softmax`, `sigmoid` (binary and multi-label heads), or None to
            end with the logits.
        head: `class_maps` or `feature_maps`.
        feature_maps: Number of feature maps of the head of this name.

    Returns:
        A functional model from images (N, height, width, channels) to (N, num_classes). Its layer `class_maps` holds
        the class maps, (N, h, w, num_classes), or its layer `feature_maps` the feature maps, (N, h, w, feature_maps).

    Raises:
        InvalidArgument: A stride for every block is missing, a size is not positive, an argument is none of those named
            here, or the activation does not go with the number of classes.

    Example:
        >>> model = all_convolutional((16, 16, 3), num_classes=4, filters=(8, 8), strides=(1, 2))
        >>> model.get_layer("class_maps").output.shape
        (None, 8, 8, 4)
        >>> model = all_convolutional((16, 16, 3), num_classes=4, filters=(8,), head="feature_maps")
        >>> model.get_layer("feature_maps").output.shape, model.get_layer("logits").input.shape
        ((None, 16, 16, 16), (None, 4096))
    """
    check_image_shape(input_shape)
    if not positive_integers(filters) or not filters:
        raise InvalidArgument(message("filters", "at least one positive integer", repr(filters)))
    block_strides: Sequence[int] = strides if isinstance(strides, Sequence) else (strides,) * len(filters)
    if not positive_integers(block_strides) or len(block_strides) != len(filters):
        raise InvalidArgument(message("strides", f"one stride, or {len(filters)} as there are filters", repr(strides)))
    if class_map_activation not in ("linear", "relu"):
        raise InvalidArgument(message("class_map_activation", "'linear' or 'relu'", repr(class_map_activation)))
    if head not in ("class_maps", "feature_maps"):
        raise InvalidArgument(message("head", "'class_maps' or 'feature_maps'", repr(head)))
    if not positive_integers([feature_maps]):
        raise InvalidArgument(message("feature_maps", "an integer of at least 1", repr(feature_maps)))
    check_head(num_classes, classifier_activation, dropout)

    initial = {"kernel_initializer": "he_normal" if head == "feature_maps" else "glorot_uniform"}
    inputs = keras.Input(tuple(input_shape), name="images")
    x = inputs
    for number, (count, stride) in enumerate(zip(map(int, filters), map(int, block_strides), strict=True), start=1):
        options = {"padding": "same", "activation": "relu", **initial}
        x = keras.layers.Conv2D(count, 3, stride, **options, name=f"block{number}_conv")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"block{number}_norm")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"block{number}_dropout")(x)
    if head == "feature_maps":
        x = keras.layers.Conv2D(int(feature_maps), 1, activation="relu", **initial, name="feature_maps")(x)
        x = classified(keras.layers.Flatten(name="flatten")(x), num_classes, classifier_activation)
    else:
        x = keras.layers.Conv2D(num_classes, 1, activation=class_map_activation, name="class_maps")(x)
        x = answered(keras.layers.GlobalAveragePooling2D(name="logits")(x), classifier_activation)
    return keras.Model(inputs, x, name="all_convolutional")


@dataclass(frozen=True)
class Experiment:
    """One row of table 4 of *Causally Focused Convolutional Networks*, with what appendix C says beside it.

    Attributes:
        dataset: Name of the data set.
        image_size: Height and width that the images are brought to; their values are in [0, 1].
        filters: Filters of each block.
        strides: Stride of each block.
        dropout: Share of values dropped after each block.
        feature_maps: Filters of the 1x1 convolution of CFCN-F.
        classifier_activation: Activation of the logits.
        batch_size: Images per step.
        learning_rate: The learning rate; the paper does not name the optimiser.
        epochs: Passes over the training images.
        alpha: Weight of the causal-focus loss.
        resize: Whether the masks go to the size of the maps (`masks`), or the maps to that of the masks (`maps`); where
            they have the same size, it changes nothing.

    Example:
        >>> row = TABLE_4["mri"]
        >>> model = all_convolutional((*row.image_size, 1), num_classes=3, **row.backbone)
        >>> model.get_layer("class_maps").output.shape
        (None, 24, 24, 3)
    """

    dataset: str
    image_size: tuple[int, int]
    filters: tuple[int, ...]
    strides: tuple[int, ...]
    dropout: float
    feature_maps: int
    classifier_activation: Literal["softmax", "sigmoid"]
    batch_size: int
    learning_rate: float
    epochs: int
    alpha: float
    resize: Literal["masks", "maps"] = "masks"

    @property
    def backbone(self) -> dict[str, Any]:
        """Arguments of :func:`all_convolutional` beside `input_shape`, `num_classes` and `head`."""
        names = ("filters", "strides", "dropout", "feature_maps", "classifier_activation")
        return {name: getattr(self, name) for name in names}


#: The experiments of *Causally Focused Convolutional Networks*, table 4 and appendix C. The paper gives the images of
#: IDRiD the shape 250x175 and does not say which is the height; they are wider than high.
TABLE_4: Mapping[str, Experiment] = MappingProxyType(
    {
        "pets": Experiment(
            dataset="Oxford-IIIT Pets",
            image_size=(96, 96),
            filters=(128, 128, 64, 64, 32, 32, 16, 16),
            strides=(1,) * 8,
            dropout=0.3,
            feature_maps=16,
            classifier_activation="softmax",
            batch_size=64,
            learning_rate=1e-4,
            epochs=500,
            alpha=1.0,
        ),
        "aeroplane_cow": Experiment(
            dataset="Aeroplane-Cow, from Pascal VOC 2012",
            image_size=(96, 96),
            filters=(128, 128, 64, 64, 32),
            strides=(1, 2, 1, 2, 1),
            dropout=0.3,
            feature_maps=16,
            classifier_activation="softmax",
            batch_size=16,
            learning_rate=1e-4,
            epochs=200,
            alpha=1.5,
            resize="maps",
        ),
        "mri": Experiment(
            dataset="Brain MRI",
            image_size=(96, 96),
            filters=(64, 64, 64, 32, 32, 32),
            strides=(1, 1, 2, 1, 1, 2),
            dropout=0.0,
            feature_maps=16,
            classifier_activation="softmax",
            batch_size=32,
            learning_rate=1e-5,
            epochs=150,
            alpha=3.0,
        ),
        "idrid": Experiment(
            dataset="IDRiD",
            image_size=(175, 250),
            filters=(32, 32, 16, 16, 8, 8),
            strides=(1,) * 6,
            dropout=0.3,
            feature_maps=3,
            classifier_activation="sigmoid",
            batch_size=5,
            learning_rate=1e-4,
            epochs=200,
            alpha=0.8,
        ),
    }
)
