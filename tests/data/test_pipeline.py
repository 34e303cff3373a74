import dataclasses
import json
import threading
from itertools import chain

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.data.image_set import DataSet, ImageSet, SkippedFile
from tfcausal.data.masks import with_mask_share
from tfcausal.data.pipeline import evaluation_batches, summarise, training_batches
from tfcausal.errors import DataError, InvalidArgument


def numbered(count=11, reader=None):
    """Every pixel of image k is k; its mask is one in the row k modulo 4; its label is k modulo 3."""

    def read(indices):
        images = np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 5, 3)).astype(np.float32)
        masks = np.zeros((len(indices), 4, 5, 1), dtype=np.float32)
        masks[np.arange(len(indices)), indices % 4] = 1.0
        return images, masks

    return ImageSet(
        names=tuple(f"image {k}" for k in range(count)),
        labels=np.arange(count) % 3,
        class_names=("a", "b", "c"),
        image_shape=(4, 5, 3),
        has_mask=np.ones(count, dtype=bool),
        reader=reader or read,
    )


def order_of(batches):
    return [images[:, 0, 0, 0].astype(int).tolist() for images, _ in batches.as_numpy_iterator()]


def test_every_epoch_is_a_permutation_of_its_own_without_the_remainder():
    batches, steps = training_batches(numbered(11), batch_size=4, epochs=6, seed=0)
    order = order_of(batches)
    assert steps == 2
    assert len(order) == 12 == batches.cardinality()
    epochs = [order[2 * k] + order[2 * k + 1] for k in range(6)]
    for epoch in epochs:
        assert len(set(epoch)) == 8
        assert set(epoch) <= set(range(11))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set(chain(*epochs)) == set(range(11))


def test_a_resumed_run_sees_the_batches_it_would_have_seen():
    whole = order_of(training_batches(numbered(), 3, epochs=5, seed=7)[0])
    for initial_epoch in range(6):
        resumed = order_of(training_batches(numbered(), 3, epochs=5, seed=7, initial_epoch=initial_epoch)[0])
        assert resumed == whole[3 * initial_epoch :]
    assert order_of(training_batches(numbered(), 3, epochs=9, seed=7)[0])[:15] == whole
    assert order_of(training_batches(numbered(), 3, epochs=5, seed=8)[0]) != whole


def test_iterating_twice_gives_the_same_batches():
    batches, _ = training_batches(numbered(), 4, epochs=2, seed=0)
    assert order_of(batches) == order_of(batches)


def test_fit_goes_through_the_epochs_and_resumes_between_them():
    class Record(keras.Model):
        """Keeps the images that it was trained on, and learns nothing."""

        def __init__(self):
            super().__init__()
            self.seen = []

        def train_step(self, data):
            images, _ = data
            tf.py_function(
                lambda values: self.seen.append(values.numpy().astype(int).tolist()), [images[:, 0, 0, 0]], []
            )
            return {"loss": tf.reduce_mean(images)}

    def record(initial_epoch):
        batches, steps = training_batches(numbered(), 4, epochs=4, seed=2, initial_epoch=initial_epoch)
        model = Record()
        model.compile()
        model.fit(batches, epochs=4, initial_epoch=initial_epoch, steps_per_epoch=steps, shuffle=False, verbose=0)
        return model.seen

    whole = record(0)
    assert whole == order_of(training_batches(numbered(), 4, epochs=4, seed=2)[0])
    assert record(2) == whole[4:]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_evaluation_goes_through_all_images_in_order(batch_size):
    batches = evaluation_batches(numbered(11), batch_size)
    order = order_of(batches)
    assert list(chain(*order)) == list(range(11))
    assert len(order) == batches.cardinality() == -(-11 // batch_size)
    assert all(len(batch) == batch_size for batch in order[:-1])


def test_elements_and_their_static_shapes():
    image_set = with_mask_share(numbered(11), 0.5, seed=0)
    training, _ = training_batches(image_set, 4, epochs=1, seed=0, with_masks=True)
    evaluation = evaluation_batches(image_set, 4, with_masks=True)
    for batches, size in ((training, 4), (evaluation, None)):
        images, targets = batches.element_spec
        assert images == tf.TensorSpec((size, 4, 5, 3), tf.float32)
        assert targets == {
            "label": tf.TensorSpec((size,), tf.int64),
            "mask": tf.TensorSpec((size, 4, 5, 1), tf.float32),
            "has_mask": tf.TensorSpec((size,), tf.float32),
        }
    assert training_batches(image_set, 4, 1, 0)[0].element_spec[1] == tf.TensorSpec((4,), tf.int64)
    assert evaluation_batches(image_set, 4).element_spec[1] == tf.TensorSpec((None,), tf.int64)


@pytest.mark.parametrize("training", [True, False])
def test_labels_and_masks_belong_to_their_images(training):
    image_set = with_mask_share(numbered(11), 0.5, seed=0)
    if training:
        batches, _ = training_batches(image_set, 4, epochs=3, seed=0, with_masks=True)
        plain, _ = training_batches(image_set, 4, epochs=3, seed=0)
    else:
        batches, plain = evaluation_batches(image_set, 4, with_masks=True), evaluation_batches(image_set, 4)
    for (images, targets), (_, labels) in zip(batches.as_numpy_iterator(), plain.as_numpy_iterator(), strict=True):
        index = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels, index % 3)
        np.testing.assert_array_equal(targets["label"], index % 3)
        np.testing.assert_array_equal(targets["has_mask"], image_set.has_mask[index])
        np.testing.assert_array_equal(targets["mask"], image_set.read(index)[1])


def test_only_a_few_batches_are_read_ahead():
    reads, lock = [], threading.Lock()
    source = numbered(400)

    def counting(indices):
        with lock:
            reads.append(len(indices))
        return source.reader(indices)

    batches, steps = training_batches(numbered(400, reader=counting), 4, epochs=50, seed=0)
    iterator = iter(batches)
    for _ in range(20):
        next(iterator)
    assert steps * 50 == 5000
    assert len(reads) <= 20 + 6


def test_bad_pixels_stop_the_pipeline_with_the_name_of_the_image():
    def broken(indices):
        images = np.zeros((len(indices), 4, 5, 3), dtype=np.float32)
        images[indices == 6] = np.nan
        return images, np.ones((len(indices), 4, 5, 1), dtype=np.float32)

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"DataError: .*NaN or Inf in image 6"):
        order_of(evaluation_batches(numbered(reader=broken), 4))


def test_fewer_images_than_a_batch():
    with pytest.raises(
        DataError, match=r"at most the 11 training images; received 12\. Lower training\.batch_size to 11"
    ):
        training_batches(numbered(11), 12, epochs=1, seed=0)
    with pytest.raises(DataError, match="`image_set`: expected at least one image; received none"):
        evaluation_batches(numbered(0), 4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "`batch_size`: expected 1 or more"),
        ({"epochs": -1}, "`epochs`"),
        ({"initial_epoch": 3}, r"`initial_epoch`: expected 0 to epochs \(2\); received 3"),
        ({"initial_epoch": -1}, "`initial_epoch`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(InvalidArgument, match=match):
        training_batches(numbered(), **({"batch_size": 4, "epochs": 2, "seed": 0} | options))


def test_the_summary_can_be_written_as_json():
    image_set = with_mask_share(numbered(11), 0.1, seed=0)
    data_set = DataSet({"train": image_set}, description="Numbers.", skipped=(SkippedFile("a/b.png", "is empty"),))
    assert json.loads(json.dumps(summarise(data_set))) == {
        "description": "Numbers.",
        "splits": {
            "train": {
                "images": 11,
                "masks": 3,
                "classes": {"a": 4, "b": 4, "c": 3},
                "context_agreement": None,
            }
        },
        "skipped": [{"path": "a/b.png", "reason": "is empty"}],
    }


def test_the_summary_counts_agreeing_contexts():
    image_set = dataclasses.replace(numbered(4), context_agrees=np.array([True, True, True, False]))
    assert summarise(DataSet({"test": image_set}))["splits"]["test"]["context_agreement"] == 0.75
