"""Whether the answer rests on what a saliency map shows."""

from __future__ import annotations

from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph


class Deletion:
    """Area under the curve of the predicted class's probability while the most salient pixels are deleted first.

    All channels of a pixel are deleted together, in steps of equal size, down to an image of the baseline value; the
    curve starts with the whole image. A map that ranks pixels as the model uses them makes the probability fall
    early. Compare it with a map of random values (:meth:`random_maps`) on the same model: how low the curve lies
    depends on the model too.

    Reference: V. Petsiuk et al., *RISE*, 2018.

    Args:
        model: A functional or built Sequential classifier of at least 2 classes.
        steps: Number of deletion steps, at least 1.
        baseline: Value that deleted pixels get.
        batch_size: Images per forward pass.

    Attributes:
        name: Name in tables.
        range: Lowest and highest possible value.
        higher_is_better: Which direction is better.

    Raises:
        InvalidArgument: `steps` or `batch_size` is not positive.

    Example:
        >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> images = np.ones((1, 2, 2, 1), "float32")
        >>> Deletion(model, steps=4).curves(images, images).shape
        (1, 5)
    """

    name: ClassVar[str] = "deletion"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = False

    def __init__(self, model: keras.Model, steps: int = 20, baseline: float = 0.0, batch_size: int = 64) -> None:
        for argument, value in {"steps": steps, "batch_size": batch_size}.items():
            if value < 1:
                raise InvalidArgument(message(argument, "a positive integer", value))
        self.graph = OperationGraph(model)
        self.steps = steps
        self.baseline = baseline
        self.batch_size = batch_size
        self._probabilities = tf.function(
            self._probabilities_without,
            input_signature=[
                tf.TensorSpec(self.graph.input_shape, tf.float32),
                tf.TensorSpec((None, None, None, 1), tf.int32),
                tf.TensorSpec((), tf.int32),
            ],
        )

    def __call__(self, images: np.ndarray, maps: np.ndarray) -> np.ndarray:
        """Measure maps.

        Args:
            images: (N, height, width, channels) in the model's input space.
            maps: Signed maps (N, height, width, channels or 1); their channel sum ranks the pixels, ties by position.

        Returns:
            Area under each curve by the trapezoidal rule, (N,) in [0, 1].

        Raises:
            InvalidArgument: The shapes do not go together.
        """
        return self.area(self.curves(images, maps))

    def area(self, curves: np.ndarray) -> np.ndarray:
        """Area under curves (N, steps + 1) by the trapezoidal rule, (N,)."""
        return np.trapezoid(curves, dx=1 / self.steps, axis=1)

    def curves(self, images: np.ndarray, maps: np.ndarray) -> np.ndarray:
        """Probability of the class predicted for the whole image, after each step, (N, steps + 1)."""
        images, maps = np.asarray(images, np.float32), np.asarray(maps)
        if maps.ndim != 4 or maps.shape[:3] != images.shape[:3]:
            expected = f"maps of shape {images.shape[:3]} and a channel axis"
            raise InvalidArgument(message("maps", expected, f"shape {maps.shape}"))
        curves = np.empty((len(images), self.steps + 1))
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            curves[part] = self._batch_curves(images[part], maps[part])
        return curves

    def random_maps(self, images: np.ndarray, seed: int = 0) -> np.ndarray:
        """Maps of random values, (N, height, width, 1): the control that every score is shown beside."""
        return np.random.default_rng(seed).random((*images.shape[:3], 1))

    def _batch_curves(self, images: np.ndarray, maps: np.ndarray) -> np.ndarray:
        saliency = maps.sum(axis=3, dtype=np.float64).reshape(len(maps), -1)
        order = np.argsort(-saliency, axis=1, kind="stable")
        ranks = np.argsort(order, axis=1, kind="stable").astype(np.int32).reshape(*maps.shape[:3], 1)
        pixels = saliency.shape[1]
        columns = [
            self._probabilities(images, ranks, round(step * pixels / self.steps)).numpy()
            for step in range(self.steps + 1)
        ]
        predicted = columns[0].argmax(axis=1)
        return np.stack([column[np.arange(len(images)), predicted] for column in columns], axis=1)

    def _probabilities_without(self, images: tf.Tensor, ranks: tf.Tensor, deleted: tf.Tensor) -> tf.Tensor:
        remaining = tf.where(ranks >= deleted, images, tf.cast(self.baseline, images.dtype))
        return tf.nn.softmax(tf.cast(self.graph.run(remaining)[self.graph.logits], tf.float32))
