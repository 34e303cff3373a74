"""The batches that a model is fed with, as `tf.data`, and a summary of a data set for the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.errors import DataError, InvalidArgument, message

_BATCHES_READY = 2
"""Batches that are kept ready; with the one that is being read they bound the memory of the pipeline."""


def training_batches(
    image_set: ImageSet,
    batch_size: int,
    epochs: int,
    seed: int,
    initial_epoch: int = 0,
    with_masks: bool = False,
) -> tuple[tf.data.Dataset, int]:
    """Shuffled batches of all epochs as one data set, for `fit(..., steps_per_epoch=..., shuffle=False)`.

    The order of an epoch depends on the seed and the number of the epoch alone. A run that is resumed at
    `initial_epoch` sees the batches that it would have seen without the interruption.

    Args:
        image_set: The split to train on.
        batch_size: Images per batch; what is left over at the end of an epoch is dropped.
        epochs: Number of the last epoch, plus one.
        seed: Seed of the order, 0 or more.
        initial_epoch: Number of the first epoch, 0 to `epochs`.
        with_masks: Whether the second component carries masks.

    Returns:
        The data set and its steps per epoch. Elements are `(images, labels)`, float32 (b, height, width, channels) and
        int64 (b,); with masks `(images, {"label": labels, "mask": float32 (b, height, width, 1), "has_mask": float32
        (b,)})`, where the mask of an image without one is all ones.

    Raises:
        InvalidArgument: An argument is out of range.
        DataError: There are fewer images than a batch takes.

    Example:
        >>> from tfcausal.data.sources.textured_digits import textured_digits
        >>> digits = textured_digits(train_size=20, validation_size=10, test_size=10)
        >>> batches, steps = training_batches(digits.splits["train"], batch_size=8, epochs=3, seed=0)
        >>> steps, [labels.shape[0] for images, labels in batches]
        (2, [8, 8, 8, 8, 8, 8])
    """
    _check_batch_size(batch_size)
    for name, value in {"epochs": epochs, "seed": seed}.items():
        if value < 0:
            raise InvalidArgument(message(name, "0 or more", value))
    if not 0 <= initial_epoch <= epochs:
        raise InvalidArgument(message("initial_epoch", f"0 to epochs ({epochs})", initial_epoch))
    if len(image_set) < batch_size:
        remedy = f"Lower training.batch_size to {len(image_set)} or less, or add images."
        raise DataError(message("batch_size", f"at most the {len(image_set)} training images", batch_size, remedy))
    steps = len(image_set) // batch_size

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(image_set))

    def indices(step: int) -> np.ndarray:
        epoch, position = divmod(step, steps)
        return order(epoch)[position * batch_size : (position + 1) * batch_size]

    numbers = tf.data.Dataset.range(initial_epoch * steps, epochs * steps)
    return _batches(image_set, numbers, indices, batch_size, with_masks), steps


def evaluation_batches(image_set: ImageSet, batch_size: int, with_masks: bool = False) -> tf.data.Dataset:
    """Every image once, in order.

    Args:
        image_set: The split to evaluate.
        batch_size: Images per batch; the last batch may have fewer.
        with_masks: Whether the second component carries masks, as in `training_batches`.

    Returns:
        A data set of known length, with elements as in `training_batches`.

    Raises:
        InvalidArgument: The batch size is not positive.
        DataError: There is no image.
    """
    _check_batch_size(batch_size)
    if not len(image_set):
        raise DataError(message("image_set", "at least one image", "none", "Add images to this split."))
    numbers = tf.data.Dataset.range(-(-len(image_set) // batch_size))

    def indices(step: int) -> np.ndarray:
        return np.arange(step * batch_size, min((step + 1) * batch_size, len(image_set)))

    return _batches(image_set, numbers, indices, None, with_masks)


def summarise(data_set: DataSet) -> dict[str, Any]:
    """Count the images of a data set, for the report.

    Args:
        data_set: The data set.

    Returns:
        What can be written as JSON: the description, per split the number of images, of masks, of images per class and,
        where contexts are planted, the share of images whose context agrees; and the skipped files.
    """
    splits = {}
    for name, image_set in data_set.splits.items():
        counts = np.bincount(image_set.labels, minlength=len(image_set.class_names))
        agrees = image_set.context_agrees
        splits[name] = {
            "images": len(image_set),
            "masks": int(image_set.has_mask.sum()),
            "classes": {label: int(count) for label, count in zip(image_set.class_names, counts, strict=True)},
            "context_agreement": float(agrees.mean()) if agrees is not None and len(agrees) else None,
        }
    skipped = [{"path": file.path, "reason": file.reason} for file in data_set.skipped]
    return {"description": data_set.description, "splits": splits, "skipped": skipped}


def _batches(
    image_set: ImageSet,
    numbers: tf.data.Dataset,
    indices: Callable[[int], np.ndarray],
    batch_size: int | None,
    with_masks: bool,
) -> tf.data.Dataset:
    """Turn numbers of batches into batches; the range of numbers keeps the length known."""
    labels, has_mask = image_set.labels.astype(np.int64), image_set.has_mask.astype(np.float32)

    def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
        chosen = indices(int(number))
        images, masks = image_set.read(chosen)
        return (
            images.astype(np.float32, copy=False),
            labels[chosen],
            masks.astype(np.float32, copy=False),
            has_mask[chosen],
        )

    height, width, channels = image_set.image_shape
    shapes = [(height, width, channels), (), (height, width, 1), ()]

    def batch(number: tf.Tensor) -> tuple[tf.Tensor, Any]:
        tensors = tf.numpy_function(read, [number], [tf.float32, tf.int64, tf.float32, tf.float32])
        for tensor, shape in zip(tensors, shapes, strict=True):
            tensor.set_shape((batch_size, *shape))
        images, label, mask, known = tensors
        return images, {"label": label, "mask": mask, "has_mask": known} if with_masks else label

    options = tf.data.Options()
    # There is nothing to tune, and the tuner makes the end of every `fit` wait for the end of its period, which
    # doubles each time: a training of 50 s would end after 82 s.
    options.autotune.enabled = False
    # Not in parallel: with deterministic operations TensorFlow reads one batch after the other in any case.
    return numbers.map(batch).prefetch(_BATCHES_READY).with_options(options)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InvalidArgument(message("batch_size", "1 or more", batch_size, "Set training.batch_size, e.g. to 32."))
