"""How well a network answers through an autoencoder: what decides whether its concepts stand for the network's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.statistics import Estimate, mean, proportion
from tfcausal.objectives.heads import Head
from tfcausal.objectives.reconstruction import deep_loss
from tfcausal.saliency.arguments import check_integer


@dataclass(frozen=True)
class Agreement:
    """How well a network answers through an autoencoder, on images that it was not trained with.

    Attributes:
        same_answer: Share of the images with the same answer with the autoencoder as without, and its Wilson interval.
            The answer is the most probable class; of a sigmoid head, which of the outputs are above one half, all of
            them.
        divergence: Mean Kullback-Leibler divergence KL(network || through the autoencoder) in nats, of a sigmoid head
            summed over the outputs, and its bootstrap interval. By Pinsker's inequality the probability of no set of
            classes is changed by more than the root of half of it, in the mean over the images.
        least_same_answer: Share from which the autoencoder counts as faithful.
        largest_divergence: Divergence up to which it counts as faithful.
    """

    same_answer: Estimate
    divergence: Estimate
    least_same_answer: float
    largest_divergence: float

    @property
    def n(self) -> int:
        """Number of images."""
        return self.same_answer.n

    @property
    def faithful(self) -> bool:
        """Whether both estimates are within their thresholds."""
        return self.same_answer.value >= self.least_same_answer and self.divergence.value <= self.largest_divergence

    @property
    def text(self) -> str:
        """The finding in words; where the autoencoder is not faithful, with what that means and what to do."""
        same, kl = self.same_answer, self.divergence
        finding = (
            f"Through the autoencoder the network gives the same answer on {same.value:.1%} of {self.n} images (95 % "
            f"interval {same.low:.1%} to {same.high:.1%}); the mean divergence of its probabilities is {kl.value:.3g} "
            f"nats ({kl.low:.3g} to {kl.high:.3g})."
        )
        if self.faithful:
            return finding
        return (
            f"{finding} Needed are {self.least_same_answer:.1%} and at most {self.largest_divergence:g} nats: the "
            "autoencoder changes the answers, so that effects of its concepts are not effects in the network. Train it "
            "for longer, with more concepts, or with a larger deep_weight."
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {**asdict(self), "n": self.n, "faithful": self.faithful}


def agreement_of(
    logits: np.ndarray,
    reconstructed_logits: np.ndarray,
    head: Head,
    least_same_answer: float = 0.9,
    largest_divergence: float = 0.1,
    seed: int = 0,
) -> Agreement:
    """Compare a network's answers with those that it gives through an autoencoder.

    Args:
        logits: Of the network as it is, (N, outputs).
        reconstructed_logits: Of the network with the autoencoder, (N, outputs).
        head: `multi_class`, `binary` or `multi_label`.
        least_same_answer: Share from which the autoencoder counts as faithful, in [0, 1].
        largest_divergence: Divergence in nats up to which it counts as faithful, at least 0.
        seed: Seed of the bootstrap, 0 or more.

    Raises:
        InvalidArgument: A threshold or seed outside its range.

    Example:
        >>> logits, through = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[2.0, 0.0], [1.0, 0.5]])
        >>> agreement = agreement_of(logits, through, "multi_class")
        >>> agreement.same_answer.value, agreement.faithful
        (0.5, False)
    """
    check_arguments(least_same_answer, largest_divergence, seed)
    first, second = (np.asarray(values, np.float64) for values in (logits, reconstructed_logits))
    divergence = np.maximum(deep_loss(tf.constant(first), tf.constant(second), head).numpy(), 0.0)
    if head == "multi_class":
        same = first.argmax(axis=1) == second.argmax(axis=1)
    else:
        same = ((first > 0) == (second > 0)).all(axis=1)
    return Agreement(proportion(same), mean(divergence, seed), float(least_same_answer), float(largest_divergence))


def check_arguments(least_same_answer: object, largest_divergence: object, seed: object) -> None:
    """Check the thresholds and the seed of :func:`agreement_of`.

    Raises:
        InvalidArgument: One is outside its range.
    """
    for name, value, high, expected in (
        ("least_same_answer", least_same_answer, 1.0, "a share in [0, 1]"),
        ("largest_divergence", largest_divergence, np.inf, "a number of at least 0"),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise InvalidArgument(message(name, expected, repr(value)))
    check_integer("seed", seed, 0)
