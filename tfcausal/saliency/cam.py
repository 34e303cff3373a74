"""Grad-CAM: the feature maps of a layer, weighted by their mean slope."""

from __future__ import annotations

from math import prod

import keras
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.functional import Shape
from tfcausal.graph import Activations, OperationGraph
from tfcausal.saliency.logit_gradients import Tensors, chosen_logits
from tfcausal.saliency.spatial import SpatialExplainer, forward_batch

_CARRIES_ON = (
    *(keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.GaussianDropout, keras.layers.GaussianNoise),
    *(keras.layers.AlphaDropout, keras.layers.ActivityRegularization, keras.layers.Identity),
    *(keras.layers.MaxPooling2D, keras.layers.AveragePooling2D),
    *(keras.layers.ZeroPadding2D, keras.layers.Cropping2D),
)


def grad_cam(
    graph: OperationGraph,
    inputs: tf.Tensor | Tensors,
    classes: tf.Tensor,
    position: int,
    rectify: bool = True,
    training: bool = False,
) -> tuple[tf.Tensor, Activations]:
    """Grad-CAM of one logit per sample, in one forward pass of which only the part after the layer is differentiated.

    ``relu(sum over channels of mean over places(dy/dA) * A)``; equations 1 and 2 of Selvaraju et al. 2017. It is
    differentiable in turn, so that a loss on the map can train the model.

    Args:
        graph: The model's operations.
        inputs: Batch of model inputs, as `graph.run` takes them.
        classes: Integers (N,); a negative one stands for the predicted class.
        position: Position of the feature maps A, (N, height, width, channels).
        rectify: Whether negative values become 0.
        training: Whether layers behave as in training.

    Returns:
        The map at the size of the feature maps, float32 (N, height, width, 1), and every tensor of the forward pass.
    """
    before = graph.run(inputs, training, until=position)
    features = before[position]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(features)
        activations = graph.run(inputs, training, given=before)
        logits, _ = chosen_logits(activations[graph.logits], classes)
    slopes = tape.gradient(logits, features, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    weights = tf.reduce_mean(tf.cast(slopes, tf.float32), axis=(1, 2), keepdims=True)
    maps = tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1, keepdims=True)
    return (tf.nn.relu(maps) if rectify else maps), activations


def feature_maps(graph: OperationGraph, layer: object = None) -> int:
    """Position of the feature maps that a class activation map is taken from: one for every image, or every slice.

    Args:
        graph: The model's operations.
        layer: The layer, its name, or its path through nested models; its fused activation is included. None takes the
            last tensor with more than one place, without the pooling, padding and dropout that come after it.

    Returns:
        The position of a tensor (N, height, width, channels); for a volume, those of its slices one below the other.

    Raises:
        InvalidArgument: There is no such layer, its name is not unique, its output has no places, or it is not that of
            one image or slice each.
        UnsupportedOperation: `layer` is None and no layer gives feature maps.
    """
    image_shape = next((shape for shape in graph.input_shapes if len(shape) > 3), ())
    slices = prod(size or 1 for size in image_shape[1:-3])
    if layer is not None:
        position = graph.layer_output(layer)
        producer = graph.producer(position)
        rows = 1 if producer is None else producer.rows
        if not _has_places(graph.shape(position)) or rows != slices:
            expected = "a layer whose output is (batch, height, width, channels) with more than one place"
            name = layer if isinstance(layer, str) else getattr(layer, "name", layer)
            received = f"{name!r}, whose output has shape {graph.shape(position)}"
            if rows != slices:
                expected += f", {slices} for every sample"
                received += f" and {rows} for every sample"
            raise InvalidArgument(message("layer", expected, received))
        return position
    for operation in reversed(graph.operations):
        if not _has_places(operation.shape) or operation.rows != slices:
            continue
        if not isinstance(operation.layer, _CARRIES_ON):
            return operation.output
    raise UnsupportedOperation(
        "No layer of the model gives feature maps (batch, height, width, channels) with more than one place, from "
        "which a class activation map could be taken. Explain it with a method of the gradients instead."
    )


def _has_places(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1:3] != (1, 1)


def _inputs_of(graph: OperationGraph, position: int) -> set[int]:
    """Positions of the model's inputs that a tensor depends on."""
    wanted = {position}
    for operation in reversed(graph.operations):
        if wanted.intersection(operation.outputs):
            wanted.update(operation.inputs)
    return wanted.intersection(graph.inputs)


class ClassActivationExplainer(SpatialExplainer):
    """An explainer whose map is taken from the feature maps of one layer.

    The image inputs that the layer depends on get the same map, each at its size by bilinear interpolation; where the
    model has other images they get none.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Attributes:
        position: Where the feature maps stand in the graph.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or no layer gives feature maps; or as for :class:`Explainer`.
    """

    def __init__(
        self,
        model: keras.Model,
        layer: object = None,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(model, output, batch_size)
        self.position = feature_maps(self.graph, layer)
        reached = _inputs_of(self.graph, self.position)
        self.image_inputs = tuple(position for position in self.image_inputs if position in reached)
        if not self.image_inputs:
            expected = "a layer that an image goes into"
            received = f"feature maps that depend on {', '.join(self.graph.input_names[i] for i in reached)} alone"
            raise InvalidArgument(message("layer", expected, received))
        if batch_size is None:
            operations = self.graph.operations
            after = next(number for number, step in enumerate(operations, 1) if self.position in step.outputs)
            self.batch_size = forward_batch(self.graph, kept=operations[after:])

    def enlarged(self, maps: tf.Tensor, inputs: Tensors) -> Tensors:
        """A map (N, height, width, 1) at the size of every image input."""
        return tuple(tf.image.resize(maps, tf.shape(inputs[position])[1:3]) for position in self.image_inputs)


class GradCAM(ClassActivationExplainer):
    """Explain a classifier by Grad-CAM; at least 0 unless `rectify` is off, one channel, not normalised.

    Source: Selvaraju et al. 2017, *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*,
    section 3, equations 1 and 2. The map is rectified before it is enlarged to the size of the image.

    Args:
        model: A Keras classifier with at least one image among its inputs.
        layer: The layer, its name, or its path through nested models; None takes the last feature maps with more than
            one place, before pooling, padding and dropout.
        rectify: Whether negative values become 0.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: There is no such layer; the message lists the paths. Or as for :class:`Explainer`.
        UnsupportedOperation: No input is an image, or no layer gives feature maps; or as for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> inputs = keras.Input((2, 2, 1))
        >>> features = keras.layers.Conv2D(1, 1, kernel_initializer="ones", name="features")(inputs)
        >>> pooled = keras.layers.GlobalAveragePooling2D()(features)
        >>> model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(pooled))
        >>> images = np.array([[[[4.0], [8.0]], [[-4.0], [0.0]]]])
        >>> GradCAM(model, layer="features")(images)[..., 0].tolist()
        [[[1.0, 2.0], [0.0, 0.0]]]
    """

    name = "grad_cam"

    def __init__(
        self,
        model: keras.Model,
        layer: object = None,
        rectify: bool = True,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(rectify, bool):
            raise InvalidArgument(message("rectify", "True or False", repr(rectify)))
        super().__init__(model, layer, output, batch_size)
        self.rectify = rectify

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        maps, _ = grad_cam(self.graph, inputs, classes, self.position, self.rectify)
        return self.enlarged(maps, inputs)
