import numpy as np
import pytest

from tfcausal.data.splits import stratified_order, stratified_split
from tfcausal.errors import InvalidArgument

LABELS = np.repeat([0, 1, 2], [100, 40, 3])


def test_every_slice_of_the_order_is_stratified():
    labels = np.repeat([0, 1], [300, 100])
    order = stratified_order(labels, seed=0)
    np.testing.assert_array_equal(np.sort(order), np.arange(400))
    for start in range(0, 400, 40):
        assert abs((labels[order[start : start + 40]] == 1).sum() - 10) <= 1


def test_the_order_is_random_and_seeded():
    np.testing.assert_array_equal(stratified_order(LABELS, 1), stratified_order(LABELS, 1))
    assert np.any(stratified_order(LABELS, 1) != stratified_order(LABELS, 2))


def test_parts_are_disjoint_complete_and_of_the_asked_shares():
    parts = stratified_split(LABELS, {"validation": 0.15, "test": 0.25}, seed=5)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(143))
    counts = {name: np.bincount(LABELS[part], minlength=3).tolist() for name, part in parts.items()}
    assert counts == {"validation": [15, 6, 1], "test": [25, 10, 1], "rest": [60, 24, 1]}


def test_every_part_of_a_small_class_keeps_one_member_even_with_large_shares():
    parts = stratified_split(np.zeros(4, dtype=int), {"validation": 0.45, "test": 0.5}, seed=0)
    assert sorted(len(part) for part in parts.values()) == [1, 1, 2]


def test_the_split_is_random_and_seeded():
    first, again, other = (stratified_split(LABELS, {"test": 0.25}, seed)["test"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("labels", "shares", "match"),
    [
        ([0, 0], {"validation": 0.2, "test": 0.2}, "at least 3 members of every class; received 2 of class 0"),
        ([0, 0, 0], {"validation": 0.5, "test": 0.5}, "in all less than 1"),
        ([0, 0, 0], {"test": 0.0}, r"shares in \(0, 1\)"),
        ([], {"test": 0.5}, "at least one label"),
    ],
)
def test_bad_arguments(labels, shares, match):
    with pytest.raises(InvalidArgument, match=match):
        stratified_split(np.array(labels, dtype=int), shares, seed=0)
