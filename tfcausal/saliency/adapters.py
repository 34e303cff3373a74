"""Maps of this package for the metrics of other libraries: Quantus and xplique. Neither is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.saliency.base import Explainer, Images, Reducer, check_reducer
from tfcausal.saliency.registry import find_explainer, get_explainer

Method = str | Callable[..., Explainer]
_KEPT = 2  # a metric that randomises a model goes back and forth between two


class _ExplainerOfModel:
    """Makes the explainer of a model, and keeps those of the last models: a new one would be compiled again.

    An explainer holds its model. More than the last ones are not kept, so that a metric over many randomised models
    does not keep them all.
    """

    def __init__(self, method: Method, options: dict[str, Any]) -> None:
        if isinstance(method, Explainer) or not (isinstance(method, str) or callable(method)):
            received = f"an explainer ({method.name})" if isinstance(method, Explainer) else repr(method)
            expected = "the name of a saliency method, or a class of explainers"
            remedy = "Metrics bring models of their own, such as randomised ones, each of which needs its explainer."
            raise InvalidArgument(message("method", expected, received, remedy))
        if isinstance(method, str):
            find_explainer(method)
        self._method, self._options = method, options
        self._made: list[tuple[Any, Explainer]] = []

    def __call__(self, model: Any) -> Explainer:
        known = [pair for pair in self._made if pair[0] is model]
        pair = known[0] if known else (model, self._make(model))
        self._made = [pair, *(other for other in self._made if other is not pair)][:_KEPT]
        return pair[1]

    def _make(self, model: Any) -> Explainer:
        if isinstance(self._method, str):
            return get_explainer(self._method, model, **self._options)
        return self._method(model, **self._options)


def quantus_explain_func(method: Method, reducer: Reducer = "sum", **options: Any) -> Callable[..., np.ndarray]:
    """An `explain_func` for the metrics of Quantus.

    Quantus hands over a Keras model, images with the channels first or last, and class indices, and takes maps with the
    channels first.

    Args:
        method: Name of the method, as for :func:`get_explainer`, or a class of explainers.
        reducer: How to reduce the channels to one. Quantus takes a Keras model's images with the channels last and its
            own with the channels first, between which only maps of one channel are the same.
        **options: Options of the method.

    Returns:
        A function of (model, inputs, targets) that gives maps, float32 (N, 1, height, width). Further keyword arguments
        that Quantus passes along (`device`, `method`) are ignored. The explainers of the last two models are kept.

    Raises:
        InvalidArgument: An unknown method or reducer.

    Example:
        >>> explain_func = quantus_explain_func("wbp")
        >>> inputs = keras.Input((4, 4, 3))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        >>> explain_func(model=model, inputs=np.ones((5, 3, 4, 4), "float32"), targets=np.zeros(5, int)).shape
        (5, 1, 4, 4)
    """
    if reducer is None:
        raise InvalidArgument(message("reducer", "a way to reduce the channels to one", "None"))
    check_reducer(reducer)
    explainer_of = _ExplainerOfModel(method, options)

    def explain_func(model: Any, inputs: Any, targets: Any, **ignored: Any) -> np.ndarray:
        explainer = explainer_of(model)
        images = _channels_last(np.asarray(inputs), explainer.graph.input_shape)
        maps: np.ndarray = explainer(images, np.atleast_1d(np.asarray(targets)), reducer)
        return np.moveaxis(maps, -1, 1)

    return explain_func


def _channels_last(images: np.ndarray, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Images as the model takes them; those that fit as they are stay so."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(input_shape) and all(
            wanted in (None, size) for wanted, size in zip(input_shape[1:], shape[1:], strict=True)
        )

    if images.ndim > 2 and not fits(images.shape):
        moved = np.moveaxis(images, 1, -1)
        return moved if fits(moved.shape) else images
    return images


class XpliqueExplainer:
    """An explainer as the metrics of xplique call it: with one-hot targets, and with a model that they may replace.

    Args:
        method: Name of the method, as for :func:`get_explainer`, or a class of explainers.
        model: A Keras classifier.
        reducer: How to reduce the channels to one; None keeps them.
        **options: Options of the method.

    Attributes:
        model: The classifier. Metrics that randomise a model put another one here for a while.

    Raises:
        InvalidArgument: An unknown method or reducer; or as the method raises.

    Example:
        >>> inputs = keras.Input((4, 4, 3))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        >>> explainer = XpliqueExplainer("wbp", model)
        >>> explainer(tf.ones((5, 4, 4, 3)), tf.one_hot([0, 1, 0, 1, 0], 2)).shape.as_list()
        [5, 4, 4, 1]
    """

    def __init__(self, method: Method, model: keras.Model, reducer: Reducer | None = "sum", **options: Any) -> None:
        check_reducer(reducer)
        self._explainer_of = _ExplainerOfModel(method, options)
        self._reducer = reducer
        self._explainer_of(model)
        self.model = model

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self._explainer_of(self.model).batch_size

    def explain(self, inputs: Images, targets: Any = None) -> tf.Tensor:
        """Explain images.

        Args:
            inputs: Images, (N, height, width, channels).
            targets: One-hot rows (N, classes), class indices (N,), or None for the predicted class. For a model with a
                head of one logit a column (N, 1) of ones.

        Returns:
            Maps, float32 (N, height, width, 1), or with all channels where `reducer` is None.

        Raises:
            InvalidArgument: As for calling the explainer.
        """
        explainer = self._explainer_of(self.model)
        if targets is not None:
            targets = np.asarray(targets)
            if explainer.graph.num_classes == 1 and targets.ndim == 2 and (targets == 1).all():
                targets = np.zeros(len(targets), np.int64)
        return tf.convert_to_tensor(explainer(np.asarray(inputs), targets, self._reducer))

    __call__ = explain
