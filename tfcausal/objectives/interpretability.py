"""Penalties that make the concepts of an autoencoder easier to look at: smooth, sparse, in one place, or with texture.

Every penalty takes the code of the autoencoder and the hidden tensors before and behind it, and gives one loss per
sample. M. Harradon, J. Druce and B. Ruttenberg (*Causal Learning and Explanation of Deep Neural Networks via
Autoencoded Activations*, 2018) ask for sparse and smooth codes, here `l1` and `tv`; the formulas of their penalties are
not known to us. `tv_texture` is what the code of the authors of *When Causal Intervention Meets Image Masking and
Adversarial Perturbation for Deep Neural Networks* (section 3.2, ``L_interpretability``) computes instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import tensorflow as tf

from tfcausal.errors import InvalidArgument, message

Penalty = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""Takes `code` (N, ..., concepts), `before` and `behind` (N, ..., hidden); gives a loss per sample, (N,)."""

Interpretability = str | Sequence[str] | Mapping[str, float] | Penalty
"""One penalty by name, several (which are added), several with their weights, or a penalty of a user's own."""


def tv(code: tf.Tensor, before: tf.Tensor, behind: tf.Tensor) -> tf.Tensor:
    """Total variation of the code: mean absolute difference between neighbours, added over the spatial directions.

    Args:
        code: (N, height, width, concepts), of volumes (N, slices, height, width, concepts), or (N, concepts).
        before: Not used.
        behind: Not used.

    Returns:
        Loss per sample, (N,), at least 0; 0 where there are no neighbours.

    Example:
        >>> import tensorflow as tf
        >>> code = tf.reshape(tf.constant([[1.0, 2.0], [1.0, 5.0]]), (1, 2, 2, 1))
        >>> float(tv(code, code, code)[0])  # (1 + 4) / 2 along the rows, (0 + 3) / 2 along the columns
        4.0
    """
    axes = range(1, code.shape.rank - 1)
    return tf.add_n([tf.zeros_like(_mean(code)), *(_mean(tf.abs(_differences(code, axis))) for axis in axes)])


def l1(code: tf.Tensor, before: tf.Tensor, behind: tf.Tensor) -> tf.Tensor:
    """Mean absolute value of the code.

    Args:
        code: (N, ..., concepts).
        before: Not used.
        behind: Not used.

    Returns:
        Loss per sample, (N,), at least 0.

    Example:
        >>> import tensorflow as tf
        >>> code = tf.constant([[3.0, -1.0]])
        >>> l1(code, code, code).numpy().tolist()
        [2.0]
    """
    return _mean(tf.abs(code))


def entropy(code: tf.Tensor, before: tf.Tensor, behind: tf.Tensor) -> tf.Tensor:
    """How evenly a concept is spread over the image: entropy of its absolute values over the places, mean of concepts.

    The entropy is divided by the logarithm of the number of places, so that it does not depend on the resolution. The
    penalty does not change with the scale of the code.

    Args:
        code: (N, height, width, concepts), of volumes (N, slices, height, width, concepts), or (N, concepts).
        before: Not used.
        behind: Not used.

    Returns:
        Loss per sample, (N,), in [0, 1]: 0 for concepts in one place each, 1 for concepts that are the same
        everywhere. A concept that is 0 everywhere counts as 0, and so does one of a code with a single place.

    Example:
        >>> import tensorflow as tf
        >>> code = tf.constant([[[[1.0, 2.0], [0.0, 2.0]]]])  # two places, two concepts
        >>> float(entropy(code, code, code)[0])
        0.5
    """
    places = list(range(1, code.shape.rank - 1))
    if not places:
        return tf.zeros_like(_mean(code))
    size = tf.abs(code)
    share = tf.math.divide_no_nan(size, tf.reduce_sum(size, axis=places, keepdims=True))
    entropies = -tf.reduce_sum(tf.math.xlogy(share, share), axis=places)
    number = tf.cast(tf.reduce_prod(tf.shape(code)[1:-1]), code.dtype)
    return tf.reduce_mean(tf.math.divide_no_nan(entropies, tf.math.log(number)), axis=-1)


def tv_texture(code: tf.Tensor, before: tf.Tensor, behind: tf.Tensor) -> tf.Tensor:
    """How far the texture behind the code differs from that before it: | |d_y behind| - |d_y before| |.

    Vertical differences only, as in the authors' code; it keeps texture and makes nothing smooth or sparse. Departure
    from that code: the mean over places and channels of each sample instead of the sum over everything divided by the
    height, so that the weight of the term depends neither on the size nor on the batch.

    Args:
        code: Not used.
        before: Hidden tensor of the encoder, (N, height, width, hidden), or of volumes (N, slices, height, width,
            hidden).
        behind: Hidden tensor of the decoder, the same shape.

    Returns:
        Loss per sample, (N,), at least 0; 0 where there are no vertical neighbours.

    Example:
        >>> import tensorflow as tf
        >>> before, behind = (tf.reshape(tf.constant(values), (1, 2, 1, 1)) for values in ([0.0, 3.0], [1.0, -1.0]))
        >>> tv_texture(before, before, behind).numpy().tolist()
        [1.0]
    """
    if before.shape.rank < 4:
        return tf.zeros_like(_mean(before))
    return _mean(tf.abs(tf.abs(_differences(behind, -3)) - tf.abs(_differences(before, -3))))


PENALTIES: dict[str, Penalty] = {"tv": tv, "l1": l1, "entropy": entropy, "tv_texture": tv_texture}
"""The penalties by name."""


def chosen_penalties(interpretability: Interpretability) -> dict[str, float]:
    """The penalties that a user has named, with their weights.

    Args:
        interpretability: A name, a sequence of names, each with weight 1, or a dictionary of weights by name.

    Returns:
        Weights by name.

    Raises:
        InvalidArgument: An unknown name; the message gives the closest. Or none, a weight that is no finite number of
            at least 0, or no weight above 0.

    Example:
        >>> chosen_penalties(("tv", "l1"))
        {'tv': 1.0, 'l1': 1.0}
    """
    expected = f"a callable, or names of {', '.join(PENALTIES)}, in a sequence or as the keys of a dict of weights"
    if isinstance(interpretability, str):
        interpretability = (interpretability,)
    if not isinstance(interpretability, (Mapping, Sequence)) or len(interpretability) == 0:
        raise InvalidArgument(message("interpretability", expected, repr(interpretability)))
    weights: dict[str, Any] = {}
    for name in interpretability:
        if not isinstance(name, str) or name not in PENALTIES:
            close = difflib.get_close_matches(str(name), PENALTIES, n=1, cutoff=0.3)
            remedy = f"Did you mean `{close[0]}`?" if close else ""
            raise InvalidArgument(message("interpretability", expected, repr(name), remedy))
        weight = weights[name] = interpretability[name] if isinstance(interpretability, Mapping) else 1.0
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < inf:
            received = f"{weight!r} for `{name}`"
            raise InvalidArgument(message("interpretability", "weights that are finite and at least 0", received))
    if not any(weights.values()):
        remedy = "To train without, set interpretability_weight=0."
        raise InvalidArgument(message("interpretability", "a weight above 0", "none", remedy))
    return {name: float(weight) for name, weight in weights.items()}


def weighted_penalty(weights: Mapping[str, float]) -> Penalty:
    """One penalty that is the weighted sum of several.

    Args:
        weights: Weights by name, as :func:`chosen_penalties` gives them.

    Example:
        >>> import tensorflow as tf
        >>> code = tf.constant([[3.0, -1.0]])
        >>> weighted_penalty({"l1": 0.5})(code, code, code).numpy().tolist()
        [1.0]
    """

    def penalty(code: tf.Tensor, before: tf.Tensor, behind: tf.Tensor) -> tf.Tensor:
        return tf.add_n([weight * PENALTIES[name](code, before, behind) for name, weight in weights.items() if weight])

    return penalty


def relative_to_strength(code: tf.Tensor, smallest: float = 1e-3) -> tf.Tensor:
    """Every concept divided by its root mean square over the batch.

    A decoder can make up for codes that are made small, so that `l1` and `tv` of the codes as they are could be brought
    to 0 without a change in what the autoencoder does. Of codes divided by their strength they cannot.

    Args:
        code: (N, ..., concepts).
        smallest: Strength below which a concept counts as dead and is divided by less and less more than it has.

    Returns:
        The same shape; each concept has a mean square of 1 over the batch and the places, or less where it is dead.

    Example:
        >>> import tensorflow as tf
        >>> relative_to_strength(tf.constant([[30.0, 0.0], [-40.0, 0.0]]))[:, 1].numpy().tolist()
        [0.0, 0.0]
    """
    square = tf.reduce_mean(tf.square(code), axis=list(range(code.shape.rank - 1)), keepdims=True)
    return code * tf.math.rsqrt(square + smallest**2)


def _differences(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Differences between neighbours along an axis, which becomes one shorter."""
    upper, lower = ([slice(None)] * values.shape.rank for _ in range(2))
    upper[axis], lower[axis] = slice(1, None), slice(None, -1)
    return values[tuple(upper)] - values[tuple(lower)]


def _mean(values: tf.Tensor) -> tf.Tensor:
    """Mean of every sample, (N,); 0 where it has no values."""
    axes = list(range(1, values.shape.rank))
    count = tf.cast(tf.reduce_prod(tf.shape(values)[1:]), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values, axis=axes), count)
