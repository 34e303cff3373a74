import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.groups import group_accuracy

LABELS = np.array(["cow"] * 6 + ["plane"] * 4)
CONTEXTS = np.array(["agrees"] * 4 + ["conflicts"] * 2 + ["agrees"] * 3 + ["conflicts"])
CORRECT = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 0], bool)


def test_every_combination_is_a_group_with_its_share_of_right_answers():
    """cow agrees 3 of 4, cow conflicts 1 of 2, plane agrees 3 of 3, plane conflicts 0 of 1."""
    result = group_accuracy(CORRECT, {"class": LABELS, "context": CONTEXTS}, minimum_size=1)
    assert {name: (group.value, group.n) for name, group in result.groups.items()} == {
        "class cow, context agrees": (0.75, 4),
        "class cow, context conflicts": (0.5, 2),
        "class plane, context agrees": (1.0, 3),
        "class plane, context conflicts": (0.0, 1),
    }
    assert (result.worst_name, result.worst.value) == ("class plane, context conflicts", 0.0)


def test_small_groups_are_not_the_worst():
    result = group_accuracy(CORRECT, {"class": LABELS, "context": CONTEXTS}, minimum_size=2)
    assert (result.worst_name, result.worst.value, result.worst.n) == ("class cow, context conflicts", 0.5, 2)


def test_no_group_large_enough_is_said_and_not_guessed():
    result = group_accuracy(CORRECT, {"class": LABELS}, minimum_size=11)
    assert result.worst_name == ""
    assert np.isnan(result.worst.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (({},), "expected at least one attribute"),
        (({"class": LABELS[:3]},), r"groups\['class'\]`: expected 10 values; received 3"),
        (({"class": LABELS}, 0), "`minimum_size`: expected a positive integer; received 0"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(InvalidArgument, match=text):
        group_accuracy(CORRECT, *arguments)
