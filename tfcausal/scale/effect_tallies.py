"""What a block leaves behind for the table of effects: enough to put blocks together, however many images they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfcausal.effects.results import EffectResult, EffectSummary
from tfcausal.evaluation.statistics import Estimate
from tfcausal.scale.moments import Moments, moments_of

_NOTHING = Moments(0, np.zeros(()), np.zeros(()))


@dataclass(frozen=True)
class Tally:
    """Effects of one level and intervention in some images.

    Attributes:
        moments: Of the effects, (nodes, classes).
        codes: The lowest and the highest value of every concept, (concepts, 2); None for an intervention on the image.
        agreed: In how many images the network gives the same answer through the autoencoder, and the sum over the
            images of the divergence of its answers, (2,); None for an intervention on the image.
    """

    moments: Moments
    codes: np.ndarray | None = None
    agreed: np.ndarray | None = None

    def __add__(self, other: Tally) -> Tally:
        """The tally of the images of both."""
        codes, agreed = other.codes, other.agreed
        if self.codes is not None:
            codes = self.codes if codes is None else _wider(self.codes, codes)
        if self.agreed is not None:
            agreed = self.agreed if agreed is None else self.agreed + agreed
        return Tally(self.moments + other.moments, codes, agreed)

    def summary(self, result: EffectResult, values: np.ndarray, classes: np.ndarray) -> EffectSummary:
        """Mean effects with intervals.

        Args:
            result: A result of the same measurement, in any images.
            values: What the concepts are set to, (nodes, 1).
            classes: As in :class:`EffectSummary`.
        """
        n, (low, high) = self.moments.n, self.moments.interval()
        dead, causal = np.zeros(len(result.nodes), bool), True
        if self.codes is not None:
            dead = (self.codes[:, 0] == self.codes[:, 1])[list(result.nodes)]
        if self.agreed is not None and result.agreement is not None:
            same, divergence = (Estimate(float(total) / n, np.nan, np.nan, n) for total in self.agreed)
            causal = replace(result.agreement, same_answer=same, divergence=divergence).faithful
        return EffectSummary(
            effect=self.moments.mean[:, None],
            low=low[:, None],
            high=high[:, None],
            n=n,
            nodes=result.nodes,
            values=values,
            classes=classes,
            dead=dead,
            causal=causal,
            intervention=result.intervention,
        )

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All of it by name, for a file."""
        parts = {"n": np.array(self.moments.n), "mean": self.moments.mean, "squares": self.moments.squares}
        parts |= {} if self.codes is None else {"codes": self.codes}
        parts |= {} if self.agreed is None else {"agreed": self.agreed}
        return {f"{name}/{part}": values for part, values in parts.items()}

    @classmethod
    def of(cls, effects: np.ndarray, results: Sequence[EffectResult]) -> Tally:
        """The tally of images.

        Args:
            effects: Image by image, (N, nodes, classes).
            results: What was measured in parts of them, in all together once.
        """
        tally = cls(moments_of(effects))
        for result in results:
            if result.agreement is not None:
                n, same, divergence = result.agreement.n, result.agreement.same_answer, result.agreement.divergence
                tally += cls(_NOTHING, result.codes, n * np.array([same.value, divergence.value]))
        return tally

    @classmethod
    def from_arrays(cls, name: str, stored: Mapping[str, np.ndarray]) -> Tally | None:
        """What :meth:`arrays` gave; None if it is not there."""
        if f"{name}/n" not in stored:
            return None
        moments = Moments(int(stored[f"{name}/n"]), stored[f"{name}/mean"], stored[f"{name}/squares"])
        own = {part: stored[f"{name}/{part}"] for part in ("codes", "agreed") if f"{name}/{part}" in stored}
        return cls(moments, **own)


def _wider(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The ranges (..., 2) that two of them are in."""
    return np.stack([np.minimum(one, other)[..., 0], np.maximum(one, other)[..., 1]], axis=-1)
