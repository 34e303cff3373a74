import numpy as np
import pytest

from tfcausal.data.contexts import assign_contexts, composite, shuffle_contexts
from tfcausal.errors import InvalidArgument

LABELS = np.random.default_rng(7).integers(0, 10, size=20000)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.0])
def test_contexts_agree_as_often_as_asked(strength):
    contexts = assign_contexts(LABELS, 10, strength, seed=1)
    deviation = np.sqrt(strength * (1 - strength) / len(LABELS))
    assert abs((contexts == LABELS).mean() - strength) <= 4 * deviation
    assert contexts.dtype == np.int64


def test_contexts_that_disagree_are_uniform_over_the_others():
    contexts = assign_contexts(LABELS, 10, 0.1, seed=1)
    for label in range(10):
        of_label = contexts[label == LABELS]
        counts = np.bincount(of_label[of_label != label], minlength=10)
        assert counts[label] == 0
        others = np.delete(counts, label)
        assert np.all(np.abs(others - others.mean()) < 5 * np.sqrt(others.mean()))


def test_shuffled_contexts_are_balanced_within_each_class_and_over_all():
    labels = LABELS[:497]
    contexts = shuffle_contexts(labels, 10, seed=2)
    table = np.zeros((10, 10), dtype=int)
    np.add.at(table, (labels, contexts), 1)
    assert np.all(table.max(axis=1) - table.min(axis=1) <= 1)
    assert np.ptp(table.sum(axis=0)) <= 1


def test_shuffled_contexts_do_not_follow_the_order_of_the_images():
    contexts = shuffle_contexts(np.zeros(1000, dtype=int), 10, seed=0)
    steps = np.bincount((contexts[1:] - contexts[:-1]) % 10, minlength=10)
    assert steps.max() < 150


def test_contexts_depend_on_the_seed_alone():
    np.testing.assert_array_equal(assign_contexts(LABELS, 10, 0.5, 3), assign_contexts(LABELS, 10, 0.5, 3))
    np.testing.assert_array_equal(shuffle_contexts(LABELS, 10, 3), shuffle_contexts(LABELS, 10, 3))
    assert np.any(assign_contexts(LABELS, 10, 0.5, 3) != assign_contexts(LABELS, 10, 0.5, 4))
    assert np.any(shuffle_contexts(LABELS, 10, 3) != shuffle_contexts(LABELS, 10, 4))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((LABELS, 10, 1.1, 0), "`strength`: expected a probability"),
        ((LABELS, 10, float("nan"), 0), "`strength`: expected a probability"),
        ((LABELS, 1, 0.5, 0), "`num_classes`: expected 2 or more"),
        ((LABELS, 9, 0.5, 0), r"`labels`: expected class indices in \[0, 9\); received values from 0 to 9"),
        ((LABELS - 1, 10, 0.5, 0), "received values from -1 to 8"),
        ((LABELS.astype(float), 10, 0.5, 0), "expected integers"),
        ((LABELS, 10, 0.5, -1), "`seed`: expected 0 or more"),
    ],
)
def test_bad_arguments_of_assign_contexts(arguments, match):
    with pytest.raises(InvalidArgument, match=match):
        assign_contexts(*arguments)


def test_bad_labels_of_shuffle_contexts():
    with pytest.raises(InvalidArgument, match="`labels`"):
        shuffle_contexts(np.array([0, 3]), 3, 0)


def test_composite_equals_a_loop_over_pixels():
    generator = np.random.default_rng(0)
    background = generator.random((2, 3, 4, 3), dtype=np.float32)
    colour = generator.random((2, 3), dtype=np.float32)
    coverage = generator.random((2, 3, 4), dtype=np.float32)
    drawn = composite(background, colour, coverage)
    for image, row, column, channel in np.ndindex(background.shape):
        alpha = coverage[image, row, column]
        expected = alpha * colour[image, channel] + (1 - alpha) * background[image, row, column, channel]
        assert drawn[image, row, column, channel] == pytest.approx(expected, abs=1e-6)
    assert drawn.dtype == np.float32


def test_composite_refuses_shapes_that_do_not_go_together():
    with pytest.raises(InvalidArgument, match="`colour`"):
        composite(np.zeros((2, 3, 3, 3)), np.zeros((2, 1)), np.zeros((2, 3, 3)))
    with pytest.raises(InvalidArgument, match="`coverage`"):
        composite(np.zeros((2, 3, 3, 3)), np.zeros((2, 3)), np.zeros((2, 3, 4)))
