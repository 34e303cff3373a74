from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.models.checks import plain_errors
from tfcausal.models.targets import Targets, read_targets

ROWS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
MASK = np.random.default_rng(0).uniform(size=(4, 6, 6, 1)).astype("float32")
ONE_MASK, PER_LABEL = (None, None, None, 1), (None, None, None, None)


def read(y: Any, head: str = "multi_class", outputs: int = 3, shape: tuple = ONE_MASK, scores: Any = None) -> Targets:
    targets, _ = read_targets(y, head, outputs, shape, scores or tf.zeros_like)
    return targets


@pytest.mark.parametrize(
    ("head", "outputs", "label", "classes"),
    [
        ("multi_class", 3, [2, 0, 1, 1], [2, 0, 1, 1]),
        ("multi_class", 3, [[2], [0], [1], [1]], [2, 0, 1, 1]),
        ("multi_class", 3, np.eye(3)[[2, 0, 1, 1]], [2, 0, 1, 1]),
        ("multi_class", 2, np.array([[0.1, 0.9], [0.8, 0.2]]), [1, 0]),
        ("binary", 1, [0, 1, 1, 0], [0, 1, 1, 0]),
        ("binary", 1, [[0.0], [1.0]], [0, 1]),
        ("binary", 1, [False, True], [0, 1]),
    ],
)
def test_classes_of_heads_with_one_class_per_image(head, outputs, label, classes):
    targets = read(tf.constant(label), head, outputs)
    assert targets.classes.dtype == tf.int64
    np.testing.assert_array_equal(targets.classes, classes)
    np.testing.assert_array_equal(targets.present, np.ones(len(classes)))
    np.testing.assert_array_equal(targets.label, label)


def test_scores_decide_which_label_is_looked_at():
    scores = np.array([[0.2, 0.9, 0.1], [0.5] * 3, [0.9, 0.0, 0.9], [0.1, 0.3, 0.2]], "float32")
    targets = read(ROWS, "multi_label", scores=lambda rows: tf.constant(scores))
    np.testing.assert_array_equal(targets.present, [1, 0, 1, 1])
    np.testing.assert_array_equal(targets.classes.numpy()[[0, 2, 3]], [0, 1, 1])
    np.testing.assert_array_equal(targets.label, ROWS)
    assert ROWS[3, read(ROWS, "multi_label").classes[3]] == 1


FLAGS = np.array([1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("shape", "has_mask", "expected"),
    [
        (ONE_MASK, FLAGS, FLAGS),
        (ONE_MASK, FLAGS[:, None], FLAGS),
        (ONE_MASK, FLAGS.astype(bool), FLAGS),
        (PER_LABEL, FLAGS, FLAGS),
        (PER_LABEL, FLAGS[:, None], FLAGS),
        (PER_LABEL, ROWS, ROWS),
        (PER_LABEL, None, np.ones(4)),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_flags_of_one_mask_or_of_one_for_every_label(shape, has_mask, expected, compiled):
    y = {"label": ROWS, "mask": MASK} | ({} if has_mask is None else {"has_mask": has_mask})
    function = lambda y: read(y, "multi_label", shape=shape).has_mask
    found = (tf.function(function, autograph=False) if compiled else function)(
        {name: tf.constant(part) for name, part in y.items()}
    )
    np.testing.assert_array_equal(tf.cast(found, tf.float32), expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("y", "shape", "expected"),
    [
        ({"has_mask": FLAGS[:3]}, ONE_MASK, r"`y\['has_mask'\]`: expected shape \(N,\); received shape \(3\)"),
        ({"has_mask": ROWS}, ONE_MASK, r"`y\['has_mask'\]`: expected shape \(N,\); received shape \(4 3\)"),
        ({"has_mask": ROWS[:, :2]}, PER_LABEL, r"expected shape \(N,\) or \(N, 3\); received shape \(4 2\)"),
        (
            {"has_mask": 2 * FLAGS},
            ONE_MASK,
            r"`y\['has_mask'\]`: expected values in \[0, 1\]; received 2 values outside",
        ),
        ({"has_mask": np.nan * FLAGS}, PER_LABEL, r"`y\['has_mask'\]`: .*; received 4 values outside"),
        (
            {"mask": MASK[..., 0]},
            ONE_MASK,
            r"`y\['mask'\]`: expected shape \(N, any, any, 1\); received shape \(4, 6, 6\)",
        ),
        ({"mask": MASK.repeat(3, 3)}, ONE_MASK, r"shape \(N, any, any, 1\); received shape \(4, 6, 6, 3\)"),
        ({"mask": MASK.repeat(2, 3)}, PER_LABEL, "expected 1 channel, or one for each of the 3 labels; received 2"),
        ({"mask": 3 * MASK}, PER_LABEL, r"`y\['mask'\]`: expected values in \[0, 1\]"),
        (
            {"mask": MASK},
            (None, 2, None, None, 1),
            r"expected shape \(N, 2, any, any, 1\); received shape \(4, 6, 6, 1\)",
        ),
        ({"mask": MASK[:, None]}, (None, 2, None, None, 1), r"\(N, 2, any, any, 1\); received shape \(4, 1, 6, 6, 1\)"),
    ],
)
def test_masks_and_flags_of_another_shape_or_range(y, shape, expected, compiled):
    def function(y: dict[str, tf.Tensor]) -> tf.Tensor:
        targets, checks = read_targets(y, "multi_label", 3, shape, tf.zeros_like)
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(targets.classes)

    y = {name: tf.constant(part) for name, part in {"label": ROWS, "mask": MASK, **y}.items()}
    with pytest.raises(InvalidArgument, match=expected), plain_errors():
        (tf.function(function, autograph=False) if compiled else function)(y)


def test_sizes_that_are_unknown_when_the_step_is_compiled():
    signature = {
        "label": tf.TensorSpec((None, None)),
        "mask": tf.TensorSpec((None, None, None, None)),
        "has_mask": tf.TensorSpec((None, None)),
    }

    @tf.function(input_signature=[signature], autograph=False)
    def function(y: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        targets, checks = read_targets(y, "multi_label", 3, PER_LABEL, tf.zeros_like)
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(targets.classes), tf.identity(targets.has_mask)

    given = {"label": ROWS.astype("float32"), "mask": MASK, "has_mask": ROWS.astype("float32")}
    classes, has_mask = function(given)
    np.testing.assert_array_equal(classes, [0, 0, 1, 0])
    np.testing.assert_array_equal(has_mask, ROWS)
    _, has_mask = function({**given, "has_mask": FLAGS[:, None].astype("float32")})
    np.testing.assert_array_equal(has_mask.numpy().ravel(), FLAGS)
    for name, value, expected in (
        ("label", given["label"][:, :2], r"`y`: expected shape \(N, 3\); received shape \(4 2\)"),
        ("mask", MASK.repeat(2, 3), "1 channel, or one for each of the 3 labels; received 2"),
        ("has_mask", given["has_mask"][:, :2], r"expected shape \(N,\) or \(N, 3\); received shape \(4 2\)"),
    ):
        with pytest.raises(InvalidArgument, match=expected), plain_errors():
            function({**given, name: value})


@pytest.mark.parametrize("head", ["multi_class", "binary", "multi_label"])
def test_labels_without_a_known_rank(head):
    signature = [tf.TensorSpec(None)]
    function = tf.function(lambda label: read(label, head).classes, input_signature=signature, autograph=False)
    with pytest.raises(InvalidArgument, match=r"received a tensor of unknown rank\. Keep the rank from call to call"):
        function.get_concrete_function()


@pytest.mark.parametrize(
    ("head", "label", "expected"),
    [
        ("binary", 1, r"0 or 1, of shape \(N,\) or \(N, 1\); received shape \(\). One unit tells two classes apart"),
        ("binary", np.zeros((4, 1, 1)), r"0 or 1, of shape \(N,\) or \(N, 1\); received shape \(4, 1, 1\)"),
        ("multi_class", np.zeros((4, 3, 1)), r"class indices of shape .* received shape \(4, 3, 1\)"),
        ("multi_label", np.zeros((4, 3, 1)), r"rows of 0 and 1 of shape \(N, 3\), .* received shape \(4, 3, 1\)"),
    ],
)
def test_labels_of_another_rank(head, label, expected):
    with pytest.raises(InvalidArgument, match=f"Invalid value for `y`: expected {expected}"):
        read(tf.constant(label), head)
