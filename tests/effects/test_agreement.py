"""When an autoencoder counts as faithful, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tfcausal.effects.agreement import Agreement, agreement_of
from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.statistics import Estimate, mean, proportion

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, 40, 3))


def agreement(same=0.95, divergence=0.05, **thresholds) -> Agreement:
    limits = {"least_same_answer": 0.9, "largest_divergence": 0.1, **thresholds}
    return Agreement(Estimate(same, 0.85, 0.99, 60), Estimate(divergence, 0.03, 0.08, 60), **limits)


def test_the_most_probable_class_is_the_answer():
    found = agreement_of(FIRST, SECOND, "multi_class", seed=4)
    assert found.same_answer == proportion(FIRST.argmax(axis=1) == SECOND.argmax(axis=1))
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (FIRST, SECOND))
    expected = mean((p * np.log(p / q)).sum(axis=1), seed=4)
    np.testing.assert_allclose(list(found.divergence.as_dict().values()), list(expected.as_dict().values()))
    assert found.n == 40


@pytest.mark.parametrize(("head", "columns"), [("multi_label", 3), ("binary", 1)])
def test_every_label_counts(head, columns):
    first, second = FIRST[:, :columns], SECOND[:, :columns]
    found = agreement_of(first, second, head)
    same = [all((one > 0) == (other > 0)) for one, other in zip(first, second, strict=True)]
    assert found.same_answer == proportion(np.array(same))
    p, q = (1 / (1 + np.exp(-z)) for z in (first, second))
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1)
    assert found.divergence.value == pytest.approx(divergence.mean())


def test_equal_answers_agree_exactly():
    found = agreement_of(FIRST.astype("float32"), FIRST.astype("float32"), "multi_class")
    assert (found.same_answer.value, found.divergence, found.faithful) == (1.0, Estimate(0.0, 0.0, 0.0, 40), True)


@pytest.mark.parametrize(
    ("given", "faithful"),
    [
        ({}, True),
        ({"same": 0.9, "divergence": 0.1}, True),
        ({"same": 0.89}, False),
        ({"divergence": 0.11}, False),
        ({"same": 0.89, "least_same_answer": 0.8}, True),
        ({"divergence": 0.04, "largest_divergence": 0.03}, False),
    ],
)
def test_both_estimates_must_be_within_their_thresholds(given, faithful):
    found = agreement(**given)
    assert found.faithful is faithful
    assert ("the autoencoder changes the answers" in found.text) is not faithful


def test_the_text_has_the_numbers_and_the_remedy():
    assert agreement().text == (
        "Through the autoencoder the network gives the same answer on 95.0% of 60 images (95 % interval 85.0% to "
        "99.0%); the mean divergence of its probabilities is 0.05 nats (0.03 to 0.08)."
    )
    assert agreement(same=0.5).text.endswith(
        "Needed are 90.0% and at most 0.1 nats: the autoencoder changes the answers, so that effects of its concepts "
        "are not effects in the network. Train it for longer, with more concepts, or with a larger deep_weight."
    )


def test_all_of_it_goes_into_json():
    read = json.loads(json.dumps(agreement(same=0.5).as_dict()))
    assert read["same_answer"] == {"value": 0.5, "low": 0.85, "high": 0.99, "n": 60}
    assert (read["faithful"], read["n"], read["least_same_answer"]) == (False, 60, 0.9)


@pytest.mark.parametrize(
    ("thresholds", "text"),
    [
        ({"least_same_answer": 1.2}, r"`least_same_answer`: expected a share in \[0, 1\]; received 1.2"),
        ({"least_same_answer": float("nan")}, "`least_same_answer`: .* received nan"),
        ({"largest_divergence": -1}, "`largest_divergence`: expected a number of at least 0; received -1"),
        ({"largest_divergence": "0.1"}, "`largest_divergence`: .* received '0.1'"),
        ({"seed": -1}, "`seed`: expected an integer of at least 0; received -1"),
        ({"largest_divergence": True}, "`largest_divergence`: .* received True"),
    ],
)
def test_thresholds_out_of_range(thresholds, text):
    with pytest.raises(InvalidArgument, match=text):
        agreement_of(FIRST, SECOND, "multi_class", **thresholds)
