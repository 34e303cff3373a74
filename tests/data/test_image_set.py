import numpy as np
import pytest

from tfcausal.data.image_set import ImageSet
from tfcausal.errors import DataError, InvalidArgument


def image_set(images=None, **changes):
    images = np.zeros((3, 2, 2, 1), dtype=np.float32) if images is None else images
    fields = {
        "names": ("a", "b", "c"),
        "labels": np.array([0, 1, 1]),
        "class_names": ("left", "right"),
        "image_shape": (2, 2, 1),
        "has_mask": np.zeros(3, dtype=bool),
        "reader": lambda indices: (images[indices], np.ones((len(indices), 2, 2, 1), dtype=np.float32)),
    }
    return ImageSet(**(fields | changes))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, -1, 1]])
def test_labels_outside_the_classes(labels):
    with pytest.raises(DataError, match=r"class indices in \[0, 2\); received (2 for image c|-1 for image b)"):
        image_set(labels=np.array(labels))


def test_names_must_differ():
    with pytest.raises(DataError, match="a different name for every image"):
        image_set(names=("a", "b", "a"))


@pytest.mark.parametrize("field", ["labels", "has_mask", "contexts", "context_agrees"])
def test_arrays_have_one_value_per_image(field):
    with pytest.raises(InvalidArgument, match=rf"`{field}`: expected one value per image, shape \(3,\)"):
        image_set(**{field: np.zeros(4, dtype=np.int64)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_named(value):
    images = np.zeros((3, 2, 2, 1), dtype=np.float32)
    images[1, 0, 1] = value
    broken = image_set(images)
    assert broken.read(np.array([0, 2]))[0].shape == (2, 2, 2, 1)
    with pytest.raises(DataError, match="finite pixels; received NaN or Inf in b"):
        broken.read(np.array([2, 1]))


def test_a_reader_that_breaks_its_promise():
    with pytest.raises(DataError, match=r"`images`: expected shape \(2, 2, 2, 1\) from the reader"):
        image_set(np.zeros((3, 2, 3, 1), dtype=np.float32)).read(np.array([0, 1]))
