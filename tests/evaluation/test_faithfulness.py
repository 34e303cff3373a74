import keras
import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.faithfulness import Deletion


def linear_classifier(kernel):
    """Logits are `x @ kernel` on 2x2 grey images."""
    model = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(kernel.shape[1], activation="softmax")]
    )
    model.layers[-1].set_weights([kernel, np.zeros(kernel.shape[1])])
    return model


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_curve_equals_a_loop_that_deletes_pixel_by_pixel():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(4, 3))
    images, maps = random.random((5, 2, 2, 1)).astype("float32"), random.normal(size=(5, 2, 2, 2))
    curves = Deletion(linear_classifier(kernel), steps=4).curves(images, maps)
    for curve, image, saliency in zip(curves, images.reshape(5, 4), maps.sum(axis=3).reshape(5, 4), strict=True):
        predicted = softmax(image @ kernel).argmax()
        remaining = image.astype("float64").copy()
        expected = [softmax(remaining @ kernel)[predicted]]
        for pixel in sorted(range(4), key=lambda at: -saliency[at]):
            remaining[pixel] = 0
            expected.append(softmax(remaining @ kernel)[predicted])
        assert curve == pytest.approx(expected, abs=1e-6)


def test_score_is_the_area_by_the_trapezoidal_rule():
    """Two steps on a model that always answers one half: the area under a constant 0.5 is 0.5."""
    deletion = Deletion(linear_classifier(np.zeros((4, 2))), steps=2)
    images = np.ones((1, 2, 2, 1), "float32")
    assert deletion(images, images) == pytest.approx([0.5])
    # Points 1, 0, 0 at 0, 1/2, 1: area 1/4.
    assert deletion.area(np.array([[1.0, 0.0, 0.0]])) == pytest.approx([0.25])


def test_the_map_that_knows_the_used_pixel_beats_the_one_that_does_not():
    kernel = np.zeros((4, 2))
    kernel[2, 1] = 8.0
    deletion = Deletion(linear_classifier(kernel), steps=4)
    images = np.ones((1, 2, 2, 1), "float32")
    right, wrong = np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1))
    right[0, 1, 0], wrong[0, 0, 1] = 1, 1
    assert deletion(images, right) < deletion(images, wrong)


def test_batch_size_and_order_of_the_batch_do_not_matter():
    random = np.random.default_rng(2)
    model = linear_classifier(random.normal(size=(4, 3)))
    images, maps = random.random((7, 2, 2, 1)).astype("float32"), random.random((7, 2, 2, 1))
    scores = Deletion(model, steps=3, batch_size=7)(images, maps)
    assert Deletion(model, steps=3, batch_size=2)(images, maps) == pytest.approx(scores, abs=1e-7)
    assert Deletion(model, steps=3)(images[::-1], maps[::-1]) == pytest.approx(scores[::-1], abs=1e-7)


def test_steps_and_baseline_change_the_score():
    random = np.random.default_rng(3)
    model = linear_classifier(random.normal(size=(4, 3)))
    images, maps = random.random((3, 2, 2, 1)).astype("float32"), random.random((3, 2, 2, 1))
    score = Deletion(model, steps=4)(images, maps)
    assert not np.allclose(Deletion(model, steps=2)(images, maps), score)
    assert not np.allclose(Deletion(model, steps=4, baseline=0.9)(images, maps), score)


def test_random_maps_depend_on_their_seed():
    deletion = Deletion(linear_classifier(np.eye(4, 2)), steps=2)
    images = np.ones((2, 2, 2, 1), "float32")
    assert (deletion.random_maps(images, 1) == deletion.random_maps(images, 1)).all()
    assert (deletion.random_maps(images, 1) != deletion.random_maps(images, 2)).any()


@pytest.mark.parametrize("argument", ["steps", "batch_size"])
def test_sizes_below_one_are_errors(argument):
    with pytest.raises(InvalidArgument, match=f"`{argument}`: expected a positive integer; received 0"):
        Deletion(linear_classifier(np.eye(4, 2)), **{argument: 0})


def test_maps_of_another_size_are_an_error():
    with pytest.raises(InvalidArgument, match=r"`maps`: expected maps of shape \(1, 2, 2\)"):
        Deletion(linear_classifier(np.eye(4, 2)))(np.ones((1, 2, 2, 1)), np.ones((1, 3, 3, 1)))
