"""What measuring effects gives: the answers image by image, and their means with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from tfcausal.effects.agreement import Agreement
from tfcausal.effects.equations import Head, Sign, effect, expected_effect, posterior_weighted
from tfcausal.effects.intervals import mean_intervals
from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.statistics import Estimate
from tfcausal.saliency.arguments import check_integer
from tfcausal.saliency.base import check_targets

Node = int | tuple[int, ...]
Scale = Literal["probability", "logit"]
Weighting = Literal["class", "posterior"]
IMAGE = -1
EVERY_CLASS = -1


@dataclass(frozen=True)
class EffectSummary:
    """Mean effects with 95 % intervals, for every node, value and class.

    Attributes:
        effect: (nodes, values, classes), float64.
        low: Lower ends of the intervals; NaN for a single image, which has none.
        high: Upper ends.
        n: Number of images.
        nodes: The concepts intervened on: an index, several for an intervention on all of them at once, or -1 for an
            intervention on the image.
        values: What the concept is set to, (nodes, values); NaN where it is not one number: sampled values, an
            expectation over several, an intervention on the image.
        classes: The classes, (classes,); -1 where an effect is not one class's: all classes weighted by their
            posterior, or in each image a class of its own.
        dead: Which nodes have the same value at all places of all images, (nodes,).
        causal: Whether the network answers through the untouched autoencoder as it does without it, so that what is
            true of the one holds of the other.
        intervention: `zero`, `mean`, `range`, `sampled`, `values` or `image`.
    """

    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    nodes: tuple[Node, ...]
    values: np.ndarray
    classes: np.ndarray
    dead: np.ndarray
    causal: bool
    intervention: str

    def estimate(self, node: Node, of: int | None = None, value: int = 0) -> Estimate:
        """One of the effects.

        Args:
            node: One of `nodes`.
            of: One of `classes`; may be None where there is only one.
            value: Position among the values.

        Raises:
            InvalidArgument: There is no such node, class or value.
        """
        classes = self.classes.tolist()
        if of is None and len(classes) == 1:
            of = classes[0]
        if not isinstance(node, (int, np.integer, tuple)) or node not in self.nodes:
            raise InvalidArgument(message("node", f"one of {', '.join(map(str, self.nodes))}", repr(node)))
        if of not in classes:
            raise InvalidArgument(message("of", f"one of the classes {', '.join(map(str, classes))}", repr(of)))
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < self.effect.shape[1]:
            raise InvalidArgument(message("value", f"a position below {self.effect.shape[1]}", repr(value)))
        place = self.nodes.index(node), value, classes.index(of)
        return Estimate(float(self.effect[place]), float(self.low[place]), float(self.high[place]), self.n)

    def columns(self) -> dict[str, np.ndarray]:
        """The effects as the columns of a table, one row per node, value and class; `pandas.DataFrame` takes it.

        The column `node` is -1 where the intervention is not on one concept alone; `concepts` spells it out.
        """
        nodes, values, classes = self.effect.shape
        rows = np.array(list(product(range(nodes), range(values), range(classes))), int).reshape(-1, 3)
        node, value, of = rows[:, 0], rows[:, 1], rows[:, 2]
        single = np.array([node if isinstance(node, int) else IMAGE for node in self.nodes], np.int64)
        spelled = np.array(["+".join(map(str, concepts_of(node))) for node in self.nodes], object)
        return {
            "node": single[node],
            "concepts": spelled[node],
            "intervention": np.full(len(rows), self.intervention, object),
            "value": self.values[node, value],
            "class": self.classes[of],
            "effect": self.effect.reshape(-1),
            "low": self.low.reshape(-1),
            "high": self.high.reshape(-1),
            "n": np.full(len(rows), self.n),
            "dead": self.dead[node],
            "causal": np.full(len(rows), self.causal),
        }


def concepts_of(node: Node) -> tuple[int, ...]:
    """The concepts of a node: none for the image as a whole."""
    nodes = (node,) if isinstance(node, int) else node
    return tuple(concept for concept in nodes if concept != IMAGE)


@dataclass(frozen=True)
class EffectResult:
    """The answers of a classifier without and with interventions, image by image.

    Attributes:
        observed: The answers that the effects refer to, (N, classes), float32: the network's own output, or its logits
            for `scale="logit"`.
        intervened: The answers under the interventions, (N, nodes, values, classes), float32.
        untouched: The answers through the untouched autoencoder for the images intervened on, (N, classes).
        posterior: The observed output for all classes of the model, (N, all classes), whatever the scale.
        head: What stands behind the logits: `softmax`, `sigmoid` or `linear`.
        nodes: As in :class:`EffectSummary`.
        values: As in :class:`EffectSummary`.
        frequencies: How often the concept has about this value, (nodes, values), with sum 1: P(X = x) of equation 2.
        dead: As in :class:`EffectSummary`.
        classes: The classes of `observed` and `intervened`, (classes,).
        intervention: As in :class:`EffectSummary`.
        sign: Which way round the effects are.
        reference: What they refer to: `autoencoder` or `model`.
        scale: `probability`, the model's own output, or `logit`.
        agreement: How well the network answers to the images through the untouched autoencoder; None for
            interventions on the image, where there is none.
        codes: The lowest and the highest value of every concept of the level, at all places of all images, (concepts,
            2); None for interventions on the image.
    """

    observed: np.ndarray
    intervened: np.ndarray
    untouched: np.ndarray
    posterior: np.ndarray
    head: Head
    nodes: tuple[Node, ...]
    values: np.ndarray
    frequencies: np.ndarray
    dead: np.ndarray
    classes: np.ndarray
    intervention: str
    sign: Sign = "do_minus_observed"
    reference: str = "autoencoder"
    scale: Scale = "probability"
    agreement: Agreement | None = None
    codes: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Size in memory of what is there for every image."""
        return sum(array.nbytes for array in (self.observed, self.intervened, self.untouched, self.posterior))

    @property
    def causal(self) -> bool:
        """As in :class:`EffectSummary`."""
        return self.agreement is None or self.agreement.faithful

    @property
    def effects(self) -> np.ndarray:
        """Equation 1 for every image, node, value and class: (N, nodes, values, classes), float32."""
        return effect(self.intervened, self.observed[:, None, None], self.sign)

    def summary(
        self, weighting: Weighting = "class", expected: bool = True, seed: int = 0, resamples: int = 2000
    ) -> EffectSummary:
        """Mean effects over the images with 95 % bootstrap intervals: the images are what is resampled.

        Args:
            weighting: `class`: the mean of the effect on each class. `posterior`: as in the code of the paper's
                authors, each class weighted by how probable it is in the image; with a softmax the sum over the
                classes, with sigmoids class by class (:func:`tfcausal.effects.equations.posterior_weighted`).
            expected: Whether the values of a concept are put together by equation 2, weighted with `frequencies`,
                which count as known: the interval is for these weights. Otherwise one effect for every value.
            seed: Seed of the resampling, 0 or more.
            resamples: Number of bootstrap samples, at least 1.

        Raises:
            InvalidArgument: An unknown weighting; posterior weights for a linear head or for some of the classes;
                sampled values one by one, which differ from image to image; a seed or a number of resamples outside its
                range.
        """
        return self._summarised(*self.per_image(weighting, expected), seed, resamples)

    def per_image(
        self, weighting: Weighting = "class", expected: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The effects whose means over the images are the summary.

        Args:
            weighting: As for :meth:`summary`.
            expected: As for :meth:`summary`.

        Returns:
            The effects (N, nodes, values, classes); the values that they are of, (nodes, values), as in
            :class:`EffectSummary`; and the classes, (classes,), as there.

        Raises:
            InvalidArgument: As for :meth:`summary`.
        """
        effects, classes = self.effects, self.classes
        if weighting == "posterior":
            if not np.array_equal(classes, np.arange(self.posterior.shape[1])):
                received = f"{len(classes)} of {self.posterior.shape[1]} classes"
                raise InvalidArgument(message("weighting", "effects on all classes, to weight them", received))
            effects = posterior_weighted(effects, self.posterior, self.head)
            classes = np.array([EVERY_CLASS]) if self.head == "softmax" else classes
        elif weighting != "class":
            raise InvalidArgument(message("weighting", "class or posterior", repr(weighting)))
        return *self._expected(effects, expected), classes

    def towards(
        self, targets: object = None, expected: bool = True, seed: int = 0, resamples: int = 2000
    ) -> EffectSummary:
        """Mean effects on one class of every image.

        Args:
            targets: Class indices (N,) or one-hot rows (N, classes); an integer for the same class in all images; None
                for the class that the observed answer is largest for.
            expected: As for :meth:`summary`.
            seed: Seed of the resampling, 0 or more.
            resamples: Number of bootstrap samples, at least 1.

        Returns:
            The effects with one column of classes: the class, or -1 where the images have different ones.

        Raises:
            InvalidArgument: Targets of another length or outside the classes that were measured; or as for
                :meth:`summary`.
        """
        n, total = len(self.observed), self.posterior.shape[1]
        if isinstance(targets, (int, np.integer)) and not isinstance(targets, bool):
            targets = np.full(n, targets)
        chosen = check_targets(targets, n, total)
        chosen = np.where(chosen < 0, self.posterior.argmax(axis=1), chosen)
        missing = np.setdiff1d(chosen, self.classes)
        if len(missing):
            expected_classes = f"among the classes measured, {', '.join(map(str, self.classes))}"
            raise InvalidArgument(message("targets", expected_classes, f"class {missing[0]}"))
        order = np.argsort(self.classes)
        columns = order[np.searchsorted(self.classes, chosen, sorter=order)]
        effects = np.take_along_axis(self.effects, columns[:, None, None, None], axis=3)
        classes = chosen[:1] if (chosen == chosen[0]).all() else np.array([EVERY_CLASS])
        return self._summarised(*self._expected(effects, expected), classes, seed, resamples)

    def _expected(self, effects: np.ndarray, expected: bool) -> tuple[np.ndarray, np.ndarray]:
        """Equation 2 over the values of the concepts, if wanted: the effects and the values that they are of."""
        values = self.values
        if not expected and self.intervention == "sampled":
            remedy = "The values of different images have nothing in common."
            raise InvalidArgument(message("expected", "True for sampled values", expected, remedy))
        if expected and effects.shape[2] > 1:
            weights = self.frequencies[:, None, :]
            effects = expected_effect(np.moveaxis(effects, 2, 3), weights)[:, :, None]
            values = np.full((len(self.nodes), 1), np.nan)
        return effects, values

    def _summarised(
        self, effects: np.ndarray, values: np.ndarray, classes: np.ndarray, seed: int, resamples: int
    ) -> EffectSummary:
        check_integer("seed", seed, 0)
        check_integer("resamples", resamples)
        means, low, high = mean_intervals(effects, seed, resamples)
        common = (self.nodes, values, classes, self.dead, self.causal, self.intervention)
        return EffectSummary(means, low, high, len(effects), *common)
