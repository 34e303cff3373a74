"""The models of a run, from its configuration: backbone, training method, optimizer, precision, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.config import BackboneConfig, DFRConfig, ModelConfig, RunConfig
from tfcausal.data.image_set import DataSet
from tfcausal.errors import InvalidArgument, message
from tfcausal.functional import flatten
from tfcausal.models.backbones.all_convolutional import all_convolutional
from tfcausal.models.backbones.applications import chexnet, inception_v3
from tfcausal.models.backbones.two_convolutions import two_convolutions
from tfcausal.models.backbones.vgg import vgg, vgg11, vgg16, vgg19
from tfcausal.models.base import CausalClassifier
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.loading import RUN_PIXELS
from tfcausal.models.ppi import PPIModel
from tfcausal.models.rrr import RRRModel

_BACKBONES: dict[str, Callable[..., keras.Model]] = {
    "all_convolutional": all_convolutional,
    "vgg": vgg,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "inception_v3": inception_v3,
    "densenet121": chexnet,
    "two_convolutions": two_convolutions,
}
_METHODS: dict[str, type[CausalClassifier]] = {
    "ppi": PPIModel,
    "cfcn": CFCNModel,
    "gain": GAINModel,
    "rrr": RRRModel,
}
# What `preprocess_input` of these networks makes of pixels in [0, 255]: a mean and a deviation per channel of RGB.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406]) * 255.0
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225]) * 255.0
_CAFFE_MEAN = np.array([123.68, 116.779, 103.939])
_PREPROCESSING = {
    "vgg16": (_CAFFE_MEAN, np.ones(3)),
    "vgg19": (_CAFFE_MEAN, np.ones(3)),
    "inception_v3": (np.full(3, 127.5), np.full(3, 127.5)),
    "densenet121": (_IMAGENET_MEAN, _IMAGENET_DEVIATION),
}
_BLUE_FIRST = ("vgg16", "vgg19")


def build_backbone(config: BackboneConfig, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build the classifier of a run, with a softmax over its classes.

    A network with pretrained weights begins with a layer `preprocessing`, which brings the pixels of a run, in
    [-0.5, 0.5], to what `keras.applications` trained it on. VGG16 and VGG19 were trained with the colours in the order
    blue, green, red: their first kernels are turned round instead of the images.

    Args:
        config: The section `backbone` of a configuration.
        input_shape: (height, width, channels) of the images.
        num_classes: Number of classes.

    Returns:
        The classifier, not compiled.

    Raises:
        InvalidArgument: The network does not take such images, or its weights cannot be had.

    Example:
        >>> from tfcausal.config import TwoConvolutionsConfig
        >>> build_backbone(TwoConvolutionsConfig(name="two_convolutions"), (28, 28, 1), 10).output.shape
        (None, 10)
    """
    settings = {**config.model_dump(exclude={"name"}), "classifier_activation": "softmax"}
    network = _BACKBONES[config.name](input_shape, num_classes, **settings)
    return _with_preprocessing(network, config.name) if config.pretrained else network


def build_model(
    config: RunConfig,
    model: ModelConfig,
    data: DataSet,
    steps_per_epoch: int,
    strategy: tf.distribute.Strategy | None = None,
) -> keras.Model:
    """Build and compile one model of a run; equal configurations and seeds give equal initial weights.

    Args:
        config: The configuration.
        model: The model's part of it; not one of `dfr`, which trains no network.
        data: The data set, for the shapes.
        steps_per_epoch: Batches per epoch, for the learning rate's schedule.
        strategy: Where it is trained; None is the strategy of the moment.

    Returns:
        The compiled model: the backbone itself for `plain`, else, and with several workers, a model around it.

    Raises:
        InvalidArgument: The method does not take this backbone, as its model says.
        UnsupportedOperation: As the method's model says.
    """
    if isinstance(model, DFRConfig):
        raise InvalidArgument(message("model", "a method that trains a network", "dfr"))
    train, training = data.splits["train"], config.training
    keras.utils.set_random_seed(config.seed)
    strategy = strategy or tf.distribute.get_strategy()
    epochs = training.epochs if model.epochs is None else model.epochs
    with _precision(training.precision), strategy.scope():
        network = build_backbone(config.backbone, train.image_shape, len(train.class_names))
        if model.method in _METHODS:
            network = _METHODS[model.method](network, **_options(model))
        elif isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            network = CausalClassifier(network)  # no terms; but Keras's own models cannot be fitted by several workers
        rate: Any = training.learning_rate
        if training.learning_rate_schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, epochs * steps_per_epoch)
        decay = training.weight_decay or None
        if training.optimizer == "adam":
            optimizer = keras.optimizers.Adam(rate, weight_decay=decay)
        else:
            optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay)
        network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return network


def _options(model: ModelConfig) -> dict[str, Any]:
    """The arguments of a method's model."""
    options = model.model_dump(exclude={"method", "epochs", "mask_share"}, exclude_none=True)
    if "masked_value" in options and len(options["masked_value"]) == 1:
        (options["masked_value"],) = options["masked_value"]
    if "box" in options.get("saliency", ""):  # the composites that end with the z-box rule
        options["low"], options["high"] = RUN_PIXELS
    return options


@contextmanager
def _precision(policy: str) -> Iterator[None]:
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _with_preprocessing(network: keras.Model, name: str) -> keras.Model:
    """The network behind a layer that makes of pixels in [-0.5, 0.5] what it was trained on."""
    mean, deviation = _PREPROCESSING[name]
    if name in _BLUE_FIRST:
        first = next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
        kernel, *rest = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *rest])
    low, high = RUN_PIXELS
    scale = 255.0 / (high - low)
    rescaling = keras.layers.Rescaling(
        (scale / deviation).tolist(), ((-low * scale - mean) / deviation).tolist(), name="preprocessing"
    )
    images = keras.Input(network.input_shape[1:], name="images")
    return flatten(keras.Model(images, network(rescaling(images)), name=network.name))
