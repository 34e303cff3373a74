"""The networks of `keras.applications` with a head of one's own: Inception_v3, CheXNet (DenseNet121) and all others."""

from __future__ import annotations

from pathlib import Path

import keras

from tfcausal.errors import InvalidArgument, message
from tfcausal.models.backbones.head import check_head, check_image_shape, classified

_WITHOUT_TOP = "weights without the top"


def application(
    architecture: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | Path | None = None,
    dropout: float = 0.0,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build a network of `keras.applications`, its top replaced: global average pooling, dropout, a dense layer.

    Images have to be what the network was trained on: `preprocess_input` of its module in `keras.applications` tells,
    and does nothing for the networks that have their preprocessing inside.

    Args:
        architecture: Name in `keras.applications`, such as `InceptionV3`.
        input_shape: (height, width, channels) of the images. Pretrained weights need three channels.
        num_classes: Number of classes; 1 for a binary head of one sigmoid.
        weights: None for initial weights; `imagenet`, which Keras downloads and keeps; or a file with the weights of
            the network without its top: one that Keras distributes (`..._notop.h5`), or one that
            `save_weights("....weights.h5")` of the network with `include_top=False` has written.
        dropout: Share of the pooled features that are dropped, in [0, 1).
        classifier_activation: `softmax`, `sigmoid` (binary and multi-label heads), or None to end with logits.

    Returns:
        A functional model, not nested, from images (N, height, width, channels) to (N, num_classes). Layers keep the
        names that they have in `keras.applications`; the new ones are `avg_pool`, `dropout`, `logits`, `predictions`.

    Raises:
        InvalidArgument: There is no such network, it does not take images of this size, the weights cannot be had or
            do not fit, or as for :func:`~tfcausal.models.backbones.vgg.vgg`.

    Example:
        >>> model = application("MobileNetV2", (32, 32, 3), num_classes=4)
        >>> [layer.name for layer in model.layers[-3:]], model.output.shape
        (['avg_pool', 'logits', 'predictions'], (None, 4))
    """
    check_head(num_classes, classifier_activation, dropout)
    body = application_body(architecture, input_shape, weights)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(body.output)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(body.input, classified(x, num_classes, classifier_activation), name=body.name)


def inception_v3(
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | Path | None = None,
    dropout: float = 0.0,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Build an Inception_v3, with which *Proactive Pseudo-Intervention* finds lung lesions (table 4).

    Source: Szegedy et al. 2016, *Rethinking the Inception Architecture for Computer Vision*. There is no auxiliary
    classifier. Images are in [-1, 1], height and width at least 75. The rest is as for :func:`application`.

    Example:
        >>> inception_v3((75, 75, 3), num_classes=1, classifier_activation="sigmoid").output.shape
        (None, 1)
    """
    return application("InceptionV3", input_shape, num_classes, weights, dropout, classifier_activation)


def chexnet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 14,
    weights: str | Path | None = None,
    dropout: float = 0.0,
    classifier_activation: str | None = "sigmoid",
) -> keras.Model:
    """Build CheXNet: a DenseNet121 with one sigmoid for each of the 14 findings of ChestX-ray14.

    Source: Rajpurkar et al. 2017, *CheXNet: Radiologist-Level Pneumonia Detection on Chest X-Rays with Deep Learning*,
    which starts from the weights of ImageNet; *When Causal Intervention Meets Image Masking and Adversarial
    Perturbation*, section 4.1, trains it with binary cross-entropy and Adam (learning rate 0.001). Images go from
    [0, 255] through `keras.applications.densenet.preprocess_input`; height and width are at least 32. Arguments, result
    and errors are those of :func:`application`.

    Example:
        >>> model = chexnet((32, 32, 3))
        >>> model.output.shape, model.layers[-1].activation.__name__
        ((None, 14), 'sigmoid')
    """
    return application("DenseNet121", input_shape, num_classes, weights, dropout, classifier_activation)


def application_body(
    architecture: str, input_shape: tuple[int, int, int], weights: str | Path | None = None
) -> keras.Model:
    """Build a network of `keras.applications` without its top; for a slice network of volumes, for instance.

    Args:
        architecture: As for :func:`application`.
        input_shape: As for :func:`application`.
        weights: As for :func:`application`.

    Returns:
        A model from images (N, height, width, channels) to feature maps (N, h, w, features).

    Raises:
        InvalidArgument: As for :func:`application`.

    Example:
        >>> application_body("VGG16", (64, 32, 1)).output.shape
        (None, 2, 1, 512)
    """
    check_image_shape(input_shape)
    check_weights(weights)
    networks = {name: build for name, build in vars(keras.applications).items() if callable(build)}
    if architecture not in networks:
        raise InvalidArgument(message("architecture", f"one of {', '.join(sorted(networks))}", repr(architecture)))
    if weights == "imagenet":
        return _from_imagenet(architecture, input_shape)
    body = _initial(architecture, input_shape)
    if weights is not None:
        try:
            body.load_weights(str(Path(weights).expanduser()))
        except Exception as error:  # whatever Keras meets in a file that is damaged or belongs to another network
            expected = f"a file with {_WITHOUT_TOP} of {architecture}"
            remedy = (
                "Keras's own are named `..._notop.h5`. Weights of a whole model go into it with its `load_weights`."
            )
            raise InvalidArgument(
                message("weights", expected, f"{str(weights)!r} ({_reason(error)})", remedy)
            ) from error
    return body


def check_weights(weights: object) -> None:
    """Raise `InvalidArgument` unless weights are None, `imagenet` or a file."""
    if weights in (None, "imagenet"):
        return
    if not isinstance(weights, str | Path) or not Path(weights).expanduser().is_file():
        expected = f"None, 'imagenet' or a file with {_WITHOUT_TOP} (`.h5`, `.weights.h5`)"
        received = repr(str(weights) if isinstance(weights, Path) else weights)
        raise InvalidArgument(message("weights", expected, received))


def _initial(architecture: str, input_shape: tuple[int, int, int]) -> keras.Model:
    try:
        return _built(architecture, input_shape, None)
    except ValueError as error:
        expected = f"images that {architecture} takes"
        raise InvalidArgument(message("input_shape", expected, repr(input_shape), _reason(error))) from error


def _built(architecture: str, input_shape: tuple[int, int, int], weights: str | None) -> keras.Model:
    images = keras.Input(tuple(input_shape), name="images")
    build = getattr(keras.applications, architecture)
    network = build(include_top=False, weights=weights, input_tensor=images, input_shape=tuple(input_shape))
    return keras.Model(images, network.output, name=network.name)  # Keras takes an `input_tensor` for a list of inputs


def _from_imagenet(architecture: str, input_shape: tuple[int, int, int]) -> keras.Model:
    if input_shape[-1] != 3:
        expected = "three channels for weights='imagenet'"
        remedy = "Repeat the channel of a grey image three times, or use weights=None."
        raise InvalidArgument(message("input_shape", expected, repr(input_shape), remedy))
    try:
        return _built(architecture, input_shape, "imagenet")
    except Exception as error:  # Keras raises what the network raises
        _initial(architecture, input_shape)  # says so, where the size of the images is at fault
        remedy = "Without a connection, fetch the file `..._notop.h5` elsewhere and give its path as `weights`."
        expected = f"weights that Keras can download, of {architecture} on ImageNet"
        raise InvalidArgument(message("weights", expected, f"'imagenet' ({_reason(error)})", remedy)) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
