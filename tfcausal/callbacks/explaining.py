"""What the callbacks that explain a model in training share: its explainer, its head, its probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.graph import OperationGraph
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.objectives.heads import Head
from tfcausal.saliency.base import Explainer
from tfcausal.saliency.registry import find_explainer, get_explainer


def explainer_of(model: keras.Model, method: str | None, options: Mapping[str, Any]) -> Explainer:
    """The explainer of a model in training.

    It compiles its function once and reads the weights in every call, so that one explainer serves all epochs.

    Args:
        model: The model; of a wrapper such as PPIModel the network inside is explained.
        method: Name of a saliency method. None takes the one that the model itself trains with, with its settings, and
            WBP for any other model.
        options: Options of the method.

    Returns:
        The explainer.

    Raises:
        InvalidArgument: As for :func:`~tfcausal.saliency.registry.get_explainer`.
        UnsupportedOperation: The method does not take this model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> explainer_of(model, None, {"batch_size": 8}).name
        'wbp'
    """
    name = method or ("grad_cam" if isinstance(model, GAINModel) else str(getattr(model, "saliency", "wbp")))
    own: dict[str, Any] = {}
    if method is None:
        taken = find_explainer(name).options()
        if isinstance(model, (PPIModel, GAINModel)):
            settings = {option: getattr(model, option, None) for option in ("layer", "low", "high") if option in taken}
            own = {option: value for option, value in settings.items() if value is not None}
    return get_explainer(name, getattr(model, "explained_network", model), **{**own, **options})


def predictions(outputs: np.ndarray, graph: OperationGraph, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """The class that a model answers with, and its probability.

    Args:
        outputs: What the model gives, (N, units).
        graph: The operations of its network; without a softmax or sigmoid at their end the outputs are logits.
        head: `multi_class`, `binary` or `multi_label`.

    Returns:
        Class indices (N,), with a multi-label head the most probable label; and probabilities (N,).
    """
    values = tf.convert_to_tensor(np.asarray(outputs, np.float64))
    if graph.output == graph.logits:
        values = tf.nn.softmax(values) if head == "multi_class" else tf.sigmoid(values)
    if head == "binary":
        values = tf.concat([1 - values, values], axis=-1)
    probabilities: np.ndarray = values.numpy()
    return probabilities.argmax(axis=1), probabilities.max(axis=1)
