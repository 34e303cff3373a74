"""Last-layer retraining (DFR): keep a trained network's features, and learn anew on balanced data which of them count.

Source: P. Kirichenko, P. Izmailov and A. G. Wilson, *Last Layer Re-Training is Sufficient for Robustness to Spurious
Correlations* (deep feature reweighting), 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal import keras_api
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.graph import OperationGraph
from tfcausal.models.balanced_regression import (
    INVERSE_STRENGTHS,
    LinearHead,
    balanced_groups,
    balanced_linear_head,
    check_labels,
    check_options,
)
from tfcausal.operations import Operation
from tfcausal.saliency.arguments import check_integer
from tfcausal.saliency.base import check_inputs


@dataclass(frozen=True)
class RetrainedModel:
    """A classifier with a new last layer.

    Attributes:
        model: A copy of the classifier with the new weights in its last Dense layer.
        layer: Path of that layer.
        head: Its weights, and how they were chosen.
    """

    model: keras.Model
    layer: str
    head: LinearHead


def retrain_last_layer(
    model: keras.Model,
    images: Any,
    labels: Any,
    groups: Any = None,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
    selection_share: float = 0.5,
    subsets: int = 10,
    multi_label: bool | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> RetrainedModel:
    """Retrain the last Dense layer of a classifier on held-out images, balanced over groups.

    A network that relies on a shortcut has mostly learned the cause as well; what misleads it is the weight that its
    last layer gives to either. The other layers keep their weights, and the classifier itself is not changed: a copy
    is. How the weights are found: :func:`balanced_linear_head`.

    Args:
        model: A trained classifier whose logits come from a Dense layer, with a softmax, a sigmoid or nothing after it.
        images: Images that the classifier was not trained on (on those it was, it is right anyway), (N, ...) in its
            input space; for several inputs a list of arrays, or a dictionary by the names of the inputs.
        labels: Class indices (N,) or one-hot rows (N, classes); 0 or 1 for a head of one unit; rows of 0 and 1
            (N, labels) for a multi-label head.
        groups: What must not give the answer away, for instance the context of each image: integers or strings (N,).
            Balanced are the pairs of a class and one of these; None balances the classes alone.
        inverse_strengths: Candidates for the inverse strength of the L1 penalty, positive.
        selection_share: Share of each group that is left out to choose among the candidates, in (0, 1).
        subsets: Number of balanced subsets over which the weights are averaged.
        multi_label: Whether each unit is a label of its own; None: where there are several and a sigmoid follows.
        batch_size: Images per forward pass.
        seed: Seed of the split, the subsets and the solver, at least 0.

    Returns:
        The copy and its head.

    Raises:
        InvalidArgument: Images, labels or groups that do not fit the model or one another, a class without images, a
            group that is too small, or another argument outside its range.
        UnsupportedOperation: The logits do not come from a Dense layer of their own, or the model cannot be copied.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
        >>> images = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 1.0], [1.0, -1.0]] * 10)
        >>> retrained = retrain_last_layer(model, images, labels=images[:, 0], groups=images[:, 1])
        >>> retrained.model.predict(images[:4], verbose=0).argmax(axis=1).tolist()
        [0, 0, 1, 1]
        >>> retrained.head.selection_accuracy
        (1.0,)
    """
    check_integer("batch_size", batch_size)
    check_options(inverse_strengths, selection_share, subsets, seed)
    graph = OperationGraph(model)
    dense = _last_dense(graph, model.name)
    inputs = check_inputs(images, graph)
    checked = check_labels(labels, len(inputs[0]), graph.num_classes, _is_multi_label(graph, multi_label))
    balanced_groups(checked, groups, choice=len(inverse_strengths) > 1)

    head = balanced_linear_head(
        _features(graph, model, inputs, dense.inputs[0], batch_size),
        checked,
        groups,
        outputs=graph.num_classes,
        inverse_strengths=inverse_strengths,
        selection_share=selection_share,
        subsets=subsets,
        bias=dense.layer.use_bias,
        seed=seed,
    )
    retrained = _copied(model)
    layer = OperationGraph(retrained).find(dense.path).layer
    layer.kernel.assign(head.kernel)
    if layer.use_bias:
        layer.bias.assign(head.bias)
    return RetrainedModel(retrained, dense.path, head)


def _last_dense(graph: OperationGraph, name: str) -> Operation:
    last = graph.producer(graph.logits)
    if last is None or not isinstance(last.layer, keras.layers.Dense) or not hasattr(last.layer.kernel, "assign"):
        found = "the input itself" if last is None else f"`{last.path}` ({type(last.layer).__name__})"
        raise UnsupportedOperation(
            f"The logits of model `{name}` come from {found}. Last-layer retraining needs a classifier that ends with "
            "a Dense layer, one unit per class or label (with a softmax or a sigmoid after it, or none)."
        )
    kernels = [
        operation.layer.kernel for operation in graph.operations if isinstance(operation.layer, type(last.layer))
    ]
    if sum(kernel is last.layer.kernel for kernel in kernels) > 1:
        raise UnsupportedOperation(
            f"`{last.path}`, the last layer of model `{name}`, is called several times: new weights would change the "
            "features that it is given. Last-layer retraining needs a Dense layer that is called once."
        )
    return last


def _is_multi_label(graph: OperationGraph, multi_label: bool | None) -> bool:
    """Whether each of several units is a label of its own."""
    if multi_label not in (None, True, False) or (multi_label and graph.num_classes == 1):
        expected = "None or False for a head of one unit" if graph.num_classes == 1 else "True, False or None"
        raise InvalidArgument(message("multi_label", expected, repr(multi_label)))
    last = graph.producer(graph.output)
    activated = last is not None and graph.output != graph.logits
    softmax = last is not None and activated and keras_api.is_softmax(last.layer)
    if activated and graph.num_classes > 1 and multi_label not in (None, not softmax):
        name = "softmax" if softmax else "sigmoid"
        raise InvalidArgument(message("multi_label", f"{not softmax} for a head with a {name}", repr(multi_label)))
    return bool(activated and not softmax and graph.num_classes > 1) if multi_label is None else multi_label


def _features(
    graph: OperationGraph, model: keras.Model, inputs: Sequence[np.ndarray], position: int, batch_size: int
) -> np.ndarray:
    """What goes into the last layer, float32 (N, features)."""
    signature = [tuple(tf.TensorSpec((None, *shape[1:]), tf.float32) for shape in graph.input_shapes)]

    def batch_features(tensors: tuple[tf.Tensor, ...]) -> tf.Tensor:
        with keras_api.losses_kept(model):
            return tf.cast(graph.run(tensors, until=position)[position], tf.float32)

    compiled = tf.function(batch_features, input_signature=signature, autograph=False)
    starts = range(0, len(inputs[0]), batch_size)
    features = np.concatenate(
        [compiled(tuple(array[start : start + batch_size] for array in inputs)).numpy() for start in starts]
    )
    if not np.isfinite(features).all():
        expected = "images whose features are finite"
        raise InvalidArgument(message("images", expected, f"{(~np.isfinite(features)).sum()} values that are not"))
    return features


def _copied(model: keras.Model) -> keras.Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a user's own classes raise when they are not fit to be saved
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedOperation(
            f"Model `{model.name}` cannot be copied ({type(error).__name__}: {reason}). Register its own classes and "
            "functions with keras.saving.register_keras_serializable, or load it with compile=False."
        ) from error
