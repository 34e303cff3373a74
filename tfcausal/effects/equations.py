"""The causal effect of an intervention (equation 1) and its expectation (equation 2), as functions of answers.

Source: C.-H. H. Yang, Y.-C. Liu, P.-Y. Chen, X. Ma and Y.-C. J. Tsai, *When causal intervention meets adversarial
examples and image masking for deep neural networks*, ICIP 2019.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tfcausal.errors import InvalidArgument, message

Sign = Literal["do_minus_observed", "observed_minus_do"]
Head = Literal["softmax", "sigmoid", "linear"]
SIGNS = ("do_minus_observed", "observed_minus_do")
_TOLERANCE = 1e-6


def effect(intervened: Any, observed: Any, sign: Sign = "do_minus_observed") -> Any:
    """Equation 1, ``P(y | do(x'), Z) - P(y | Z)``, element by element.

    Departure from the paper: none with the default sign. The positive zero-out values in its tables, and a part of the
    authors' code, are the other way round, which is `observed_minus_do`.

    Args:
        intervened: Answers under the intervention, an array or a tensor.
        observed: Answers without it; broadcasts to `intervened`.
        sign: `do_minus_observed`: taking away what speaks for a class gives a negative effect;
            `observed_minus_do`: a positive one.

    Returns:
        The effects, in [-1, 1] for probabilities.

    Raises:
        InvalidArgument: `sign` is neither of the two.

    Example:
        >>> effect(np.array([0.25, 0.75]), np.array([0.75, 0.25])).tolist()
        [-0.5, 0.5]
        >>> effect(np.array([0.25, 0.75]), np.array([0.75, 0.25]), "observed_minus_do").tolist()
        [0.5, -0.5]
    """
    if sign not in SIGNS:
        raise InvalidArgument(message("sign", " or ".join(SIGNS), repr(sign)))
    return intervened - observed if sign == "do_minus_observed" else observed - intervened


def expected_effect(effects: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Equation 2, ``sum_x P(X = x | Z) * Effect(x)``, along the last axis.

    Args:
        effects: Effects of the values of X, (..., values).
        weights: Their probabilities, not negative, with sum 1 along the last axis; broadcasts to `effects`.

    Returns:
        Expected effects (...).

    Raises:
        InvalidArgument: The weights are negative, do not add up to 1, or are not one for every value; effects that
            are no numbers, or a single one.

    Example:
        >>> float(expected_effect(np.array([-0.5, 0.25]), np.array([0.5, 0.5])))
        -0.125
    """
    effects = _numbers("effects", effects, "numbers of shape (..., values)")
    if effects.ndim == 0:
        raise InvalidArgument(message("effects", "numbers of shape (..., values)", "a single number"))
    expected = f"one probability for each of the {effects.shape[-1]} values"
    weights = _numbers("weights", weights, expected).astype(np.float64)
    if weights.ndim == 0 or weights.shape[-1] != effects.shape[-1]:
        raise InvalidArgument(message("weights", expected, f"shape {weights.shape}"))
    try:
        np.broadcast_shapes(weights.shape, effects.shape)
    except ValueError:
        raise InvalidArgument(message("weights", f"shape {effects.shape}", f"shape {weights.shape}")) from None
    if not (weights >= 0).all() or not np.allclose(weights.sum(axis=-1), 1.0, rtol=0.0, atol=_TOLERANCE):
        raise InvalidArgument(message("weights", "probabilities with sum 1", f"sums of {weights.sum(axis=-1)}"))
    return (weights * effects).sum(axis=-1)


def posterior_weighted(effects: np.ndarray, posterior: np.ndarray, head: Head) -> np.ndarray:
    """Effects weighted by how probable each class is in each image, as in the code of the paper's authors.

    With a softmax, the classes are the values of one variable: ``sum_k p_k * effect_k``, one number per image, which is
    equation 2 with the posterior of the class as P. Sigmoids are a variable each, so that a sum over them is no
    expectation: departing from the authors' code, which takes a softmax over them, each class keeps its own
    ``p_c * effect_c``.

    Args:
        effects: (N, ..., classes).
        posterior: Observed probabilities, (N, classes).
        head: `softmax` or `sigmoid`.

    Returns:
        (N, ..., 1) for a softmax, (N, ..., classes) for sigmoids.

    Raises:
        InvalidArgument: The head gives no probabilities, or the posterior is not one for every image and class.

    Example:
        >>> effects, posterior = np.array([[-0.5, 0.5]]), np.array([[0.75, 0.25]])
        >>> posterior_weighted(effects, posterior, "softmax").tolist()
        [[-0.25]]
        >>> posterior_weighted(effects, posterior, "sigmoid").tolist()
        [[-0.375, 0.125]]
    """
    if head not in ("softmax", "sigmoid"):
        remedy = "Give the model the softmax or the sigmoid that belongs to its logits."
        raise InvalidArgument(message("head", "a softmax or sigmoid, whose outputs are probabilities", head, remedy))
    effects = _numbers("effects", effects, "numbers of shape (N, ..., classes)")
    expected = f"shape ({', '.join(str(size) for size in (*effects.shape[:1], *effects.shape[-1:]))})"
    posterior = _numbers("posterior", posterior, expected)
    if effects.ndim < 2 or posterior.shape != (len(effects), effects.shape[-1]):
        received = f"shape {posterior.shape} for effects of shape {effects.shape}"
        raise InvalidArgument(message("posterior", expected, received))
    shape = (len(posterior), *(1,) * (effects.ndim - 2), posterior.shape[-1])
    weighted = posterior.reshape(shape) * effects
    return weighted.sum(axis=-1, keepdims=True) if head == "softmax" else weighted


def _numbers(name: str, values: Any, expected: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidArgument(message(name, expected, "rows of different lengths")) from None
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(message(name, expected, f"dtype {array.dtype}"))
    return array
