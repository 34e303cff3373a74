"""What the numbers of the table of effects are, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tfcausal.effect_study.rows import CLEAN

if TYPE_CHECKING:
    import pandas

_SIGNS = {
    "do_minus_observed": "the output with the intervention minus the output without it: negative where what is taken "
    "away speaks for the class",
    "observed_minus_do": "the output without the intervention minus the output with it: positive where what is taken "
    "away speaks for the class",
}
_REFERENCES = {
    "autoencoder": "the answer through the untouched autoencoder",
    "model": "the answer of the model as it is",
}
_WEIGHTINGS = {
    "class": "every class by itself",
    "posterior": "all classes together, weighted by their probability in the image",
}


def effect_unit(sign: str, scale: str) -> str:
    """What an effect is, for an axis.

    Example:
        >>> effect_unit("do_minus_observed", "probability"), effect_unit("observed_minus_do", "logit")
        ('change of P(class)', 'loss of logit')
    """
    what = "P(class)" if scale == "probability" else "logit"
    return f"change of {what}" if sign == "do_minus_observed" else f"loss of {what}"


def stated(rows: pandas.DataFrame) -> str:
    """What the numbers of some rows are, in words: number of images, sign, reference, weighting and scale.

    Args:
        rows: Rows of the table of effects, at least one.

    Example:
        >>> import pandas
        >>> row = {"sign": "do_minus_observed", "reference": "model", "weighting": "class", "scale": "logit", "n": 64}
        >>> stated(pandas.DataFrame([row])).split(" · ")[0]
        'n = 64 images'
    """

    def words(column: str, known: Mapping[str, str]) -> str:
        return "; ".join(known.get(str(value), str(value)) for value in rows[column].unique())

    counts = sorted(rows["n"].unique())
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    scale = words("scale", {"probability": "probability, in [-1, 1]", "logit": "logits"})
    return (
        f"n = {n} images · sign: {words('sign', _SIGNS)} · reference: {words('reference', _REFERENCES)} · "
        f"weighting: {words('weighting', _WEIGHTINGS)} · scale: {scale} · interval: 95 %, bootstrap over images"
    )


def condition_of(intervention: str) -> str:
    """The intervention on the images that a concept is intervened on in.

    Example:
        >>> condition_of("zero_out"), condition_of("zero_out+pgd")
        ('clean', 'pgd')
    """
    return intervention.partition("+")[2] or CLEAN
