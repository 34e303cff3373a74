"""Grad-CAM++, Score-CAM, LayerCAM and activation maximisation, computed by tf-keras-vis on the flattened model.

tf-keras-vis cuts a model at a layer, which fails where that layer stands in a nested model; and it explains the output
that the model has, which should be the logit. It therefore gets a plain model that ends in the logits, made of twins of
the layers, which share their weights. Needs the extra `vis`: `pip install 'tfcausal[vis]'`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import isfinite
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.saliency.arguments import check_integer
from tfcausal.saliency.cam import ClassActivationExplainer
from tfcausal.saliency.logit_gradients import Tensors, chosen_logits

_LARGEST_JITTER = 4


def logits_model(graph: OperationGraph, position: int | None = None) -> tuple[keras.Model, keras.layers.Layer | None]:
    """A plain functional model from the inputs to the logits, without nested models, shared layers or softmax.

    Args:
        graph: The model's operations.
        position: Position of a tensor that the model shall give by a layer of its own.

    Returns:
        The model, whose layers are twins of the graph's and share their weights; it takes a list of inputs and gives
        logits, float32 (N, classes). And the layer that gives the tensor at `position` as float32, or None.
    """
    inputs = [
        keras.Input(batch_shape=(None, *shape[1:]), name=name)
        for shape, name in zip(graph.input_shapes, graph.input_names, strict=True)
    ]
    tensors: dict[int, Any] = dict(zip(graph.inputs, inputs, strict=True))
    probe: keras.layers.Layer | None = None
    for number, operation in enumerate(graph.operations):
        if graph.logits in tensors:
            break
        name = f"{operation.path.replace('/', '_').replace(':', '_')}_{number}"
        args, kwargs = operation.arguments([tensors[source] for source in operation.inputs])
        results = keras_api.call_operation(keras_api.twin(operation.layer, name=name), args, kwargs, training=False)
        tensors.update(zip(operation.outputs, keras.tree.flatten(results), strict=True))
        if position in operation.outputs:
            probe = keras.layers.Identity(dtype="float32", name="feature_maps")
            dtype = tensors[position].dtype
            tensors[position] = keras.layers.Identity(dtype=dtype)(probe(tensors[position]))
    logits = keras.layers.Identity(dtype="float32", name="logits")(tensors[graph.logits])
    return keras.Model(inputs, logits), probe


def activation_maximization(
    model: keras.Model,
    classes: Sequence[int],
    steps: int = 200,
    seed: int = 0,
    input_range: tuple[float, float] = (0.0, 255.0),
    total_variation: float = 1.0,
    norm: float = 0.3,
    output: str | int | None = None,
) -> np.ndarray:
    """Images that make the logits of some classes large.

    Source: Erhan et al. 2009, *Visualizing Higher-Layer Features of a Deep Network*; jitter, rotation and the penalties
    are those of tf-keras-vis. All classes start from the same noise and get the same jitter, so that an image does not
    depend on the others. Departures from tf-keras-vis: its step size, made for the range 0 to 255, is scaled with the
    range; images with sides below 32 get less jitter; everything random follows the seed.

    Args:
        model: A Keras classifier with one input, an image of known size.
        classes: The classes, integers.
        steps: Steps of gradient ascent.
        seed: Seed of the first image, of the jitter and of the rotation.
        input_range: Smallest and largest value of a pixel.
        total_variation: Weight of the penalty on differences between neighbouring pixels, at least 0.
        norm: Weight of the penalty on the mean magnitude of the pixels, at least 0.
        output: Which output is meant, by name or position; may be None where there is only one.

    Returns:
        Images in `input_range`, float32 (len(classes), height, width, channels).

    Raises:
        InvalidArgument: An argument is outside its range.
        UnsupportedOperation: The model has several inputs, or its input is no image of known size.
        ImportError: tf-keras-vis is not installed.
    """
    steps, seed = check_integer("steps", steps), check_integer("seed", seed, 0)
    low, high = _checked_range(input_range)
    for name, weight in {"total_variation": total_variation, "norm": norm}.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not (isfinite(weight) and weight >= 0):
            raise InvalidArgument(message(name, "a finite number of at least 0", repr(weight)))
    graph = OperationGraph(model, output)
    shape = [size for size in graph.input_shape[1:] if size is not None]
    if len(graph.inputs) != 1 or len(graph.input_shape) != 4 or len(shape) != 3:
        raise UnsupportedOperation(
            f"activation_maximization: model `{model.name}` takes inputs of the shapes {graph.input_shapes}; it "
            "takes a single image of known size, (batch, height, width, channels)."
        )
    indices = np.asarray(classes)
    whole = indices.ndim == 1 and indices.size > 0 and indices.dtype.kind in "iu"
    if not whole or indices.min() < 0 or indices.max() >= graph.num_classes:
        raise InvalidArgument(message("classes", f"class indices in [0, {graph.num_classes - 1}]", repr(classes)))
    maximisation = _library("activation_maximization")
    modifiers = _library("activation_maximization.input_modifiers")
    regularizers = _library("activation_maximization.regularizers")
    generator = np.random.default_rng(seed)
    rotation = modifiers.Rotate2D(degree=1)
    rotation.random_generator = generator
    shift = min(_LARGEST_JITTER, min(shape[:2]) // 8)

    def jitter(images: tf.Tensor) -> tf.Tensor:
        return tf.roll(images, generator.integers(-shift, shift + 1, 2), (1, 2))

    start = np.repeat(generator.uniform(low, high, (1, *shape)).astype(np.float32), len(indices), axis=0)
    with keras_api.losses_kept(model):
        flat, _ = logits_model(graph)
        images = maximisation.ActivationMaximization(flat)(
            lambda logits: tf.gather(logits, indices, batch_dims=1),
            seed_input=start,
            steps=steps,
            input_range=(low, high),
            input_modifiers=[jitter, rotation],
            regularizers=[
                regularizers.TotalVariation2D(weight=total_variation),
                regularizers.Norm(weight=norm, p=1),
            ],
            optimizer=keras.optimizers.RMSprop(learning_rate=(high - low) / 255, rho=0.999),
        )
    return np.asarray(images, dtype=np.float32)


def _checked_range(values: object) -> tuple[float, float]:
    expected = "two finite numbers, the smaller one first"
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise InvalidArgument(message("input_range", expected, repr(values)))
    numbers = all(isinstance(value, (int, float)) and isfinite(value) for value in values)
    if not numbers or values[0] >= values[1]:
        raise InvalidArgument(message("input_range", expected, repr(values)))
    return float(values[0]), float(values[1])


def _library(module: str) -> Any:
    """A module of tf-keras-vis, whose own imports are out of date and warn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(f"tf_keras_vis.{module}")
    except ImportError as error:
        raise ImportError(f"tf-keras-vis cannot be imported ({error}): pip install 'tfcausal[vis]'") from error


class KerasVisExplainer(ClassActivationExplainer):
    """A class activation map that tf-keras-vis computes; at least 0, one channel, not normalised.

    It is taken at the size of the feature maps and enlarged by bilinear interpolation, as Grad-CAM's is.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or no layer gives feature maps; or as for :class:`Explainer`.
        ImportError: tf-keras-vis is not installed.
    """

    place: ClassVar[tuple[str, str]]

    def __init__(
        self,
        model: keras.Model,
        layer: object = None,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(model, layer, output, batch_size)
        module, kind = self.place
        method = getattr(_library(module), kind)
        with keras_api.losses_kept(model):
            self._flat, self._probe = logits_model(self.graph, self.position)
        self._method = method(self.scored_model(self._flat))
        self._maps: Callable[..., Any] | None = self._eager

    def scored_model(self, flat: keras.Model) -> keras.Model:
        """The model that the library explains."""
        return flat

    def score(self, outputs: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """What the library differentiates, (N,)."""
        return tf.gather(outputs, classes, batch_dims=1)

    def _eager(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        with keras_api.losses_kept(self._model):
            tensors = tuple(tf.convert_to_tensor(value) for value in inputs)
            return self._float_maps(tensors, tf.convert_to_tensor(classes))

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Called eagerly: the library works on NumPy arrays."""
        _, classes = chosen_logits(self._flat(list(inputs), training=False), classes)
        return self.enlarged(self.class_maps(inputs, classes), inputs)

    def class_maps(self, inputs: Tensors, classes: tf.Tensor, **options: Any) -> tf.Tensor:
        """Maps at the size of the feature maps, float32 (N, height, width, 1)."""
        maps = self._method(
            lambda outputs: self.score(outputs, classes),
            list(inputs),
            penultimate_layer=self._probe,
            seek_penultimate_conv_layer=False,
            expand_cam=False,
            normalize_cam=False,
            **options,
        )
        return tf.cast(maps, tf.float32)[..., tf.newaxis]


class GradCAMPlusPlus(KerasVisExplainer):
    """Explain a classifier by Grad-CAM++; at least 0, one channel, not normalised.

    Source: Chattopadhay et al. 2018, *Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks*,
    section 3.2. Departure from the paper: the map is divided by the exponential of the logit, a factor that all places
    of an image share and that would overflow.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or no layer gives feature maps; or as for :class:`Explainer`.
        ImportError: tf-keras-vis is not installed.
    """

    name = "grad_cam_plus_plus"
    place = ("gradcam_plus_plus", "GradcamPlusPlus")

    def score(self, outputs: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """The logit minus its value: 0 with the gradient of the logit, so that its exponential is 1."""
        logits = super().score(outputs, classes)
        return logits - tf.stop_gradient(logits)


class LayerCAM(KerasVisExplainer):
    """Explain a classifier by LayerCAM; at least 0, one channel, not normalised.

    Source: Jiang et al. 2021, *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*, section III-C.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or no layer gives feature maps; or as for :class:`Explainer`.
        ImportError: tf-keras-vis is not installed.
    """

    name = "layer_cam"
    place = ("layercam", "Layercam")


class ScoreCAM(KerasVisExplainer):
    """Explain a classifier by Score-CAM; at least 0, one channel, not normalised.

    Source: Wang et al. 2020, *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks*,
    section 3. Departure from the paper, which is tf-keras-vis's: the weight of a channel is the probability of the
    class for the image seen through that channel, without that of a baseline image. A model of one logit has the
    probability that its sigmoid gives.

    Every image takes one forward pass per channel, and the memory of that many copies of it, three times over.

    Args:
        model: A Keras classifier whose only input is an image.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        max_channels: Take only that many channels, those with the largest deviation for the image; None takes all.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: The model has several inputs, its input is no image, or no layer gives feature maps; or as
            for :class:`Explainer`.
        ImportError: tf-keras-vis is not installed.
    """

    name = "score_cam"
    place = ("scorecam", "Scorecam")

    def __init__(
        self,
        model: keras.Model,
        layer: object = None,
        max_channels: int | None = None,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.max_channels = None if max_channels is None else check_integer("max_channels", max_channels)
        super().__init__(model, layer, output, batch_size)
        if len(self.graph.inputs) > 1:
            raise UnsupportedOperation(
                f"{self.name}: model `{model.name}` has {len(self.graph.inputs)} inputs; Score-CAM masks a single "
                "image. Use `grad_cam` instead."
            )
        channels = self.graph.shape(self.position)[-1]
        if self.max_channels is not None and channels is not None and self.max_channels > channels:
            expected = f"at most the number of channels of the layer, {channels}"
            raise InvalidArgument(message("max_channels", expected, self.max_channels))

    def scored_model(self, flat: keras.Model) -> keras.Model:
        """The library takes the softmax; beside a second logit of 0 it is the sigmoid of a single one."""
        outputs = flat.outputs[0]
        if self.graph.num_classes == 1:
            outputs = keras.layers.Concatenate(dtype="float32")([outputs, 0.0 * outputs])
        scored = keras.Model(flat.inputs, outputs)
        scored.predict = partial(scored.predict, verbose=0)
        return scored

    def class_maps(self, inputs: Tensors, classes: tf.Tensor, **options: Any) -> tf.Tensor:
        """Image by image: what the library holds for one is large, and it would choose channels for all together."""
        maps = [
            super(ScoreCAM, self).class_maps(
                tuple(value[number : number + 1] for value in inputs),
                classes[number : number + 1],
                max_N=self.max_channels,
                batch_size=self.batch_size,
            )
            for number in range(len(classes))
        ]
        return tf.concat(maps, axis=0)
