"""Pixel-wise causal effect maps: where an intervention on a patch of the image changes the answer, and how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfcausal.effects.equations import SIGNS, Sign, effect
from tfcausal.effects.results import Scale
from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.functional import Shape
from tfcausal.graph import OperationGraph
from tfcausal.saliency.arguments import check_baseline
from tfcausal.saliency.local_changes import stages
from tfcausal.saliency.logit_gradients import Tensors, chosen_logits
from tfcausal.saliency.occlusion import Occlusion, Pair, over_patches, over_pixels

_SCALES = ("probability", "logit")


@dataclass(frozen=True)
class PatchEffects:
    """What a pixel-wise map is made of.

    Attributes:
        maps: Mean effect of the patches over each pixel, float32 (N, height, width, 1).
        effects: Effect of every patch, float32 (N, patches along the height, patches along the width).
        classes: The classes whose answers were read, (N,).
        observed: The answers for them to the images as they are, float32 (N,): P(y | x).
        rows: First pixel of the patches along the height.
        columns: First pixel of the patches along the width.
        patch: Height and width of a patch in pixels.
    """

    maps: np.ndarray
    effects: np.ndarray
    classes: np.ndarray
    observed: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    patch: Pair


class PixelEffects(Occlusion):
    """Pixel-wise causal effect maps: equation 1 for every patch of the image, one channel, signed.

    The intervention sets one patch to the masked value, ``effect = P(y | do(patch := value)) - P(y | x)``. A pixel gets
    the mean of the effects of the patches that cover it; the last row and the last column of patches are moved back to
    end at the border, so that all patches have one size and every pixel is covered. What a patch has no effect on is
    not computed again, as in :class:`Occlusion`, whose map this is but for the sign and for reading probabilities; a
    map differs by rounding alone from that of forward passes of whole images.

    Source: C.-H. H. Yang et al., *When causal intervention meets adversarial examples and image masking for deep neural
    networks*, ICIP 2019, equation 1 and its pixel-wise masking; departing from the paper, which masks a random tenth of
    the image at once, patches are masked one by one, which gives every place its own effect.

    Args:
        model: A Keras classifier of one image.
        patch: Height and width of a patch, or one number for both; None takes about an eighth of each side.
        stride: Distance between patches along height and width, or one number for both, at most `patch`; None is
            `patch`.
        share: Instead of `patch`: the share of the image's area that a patch covers, in (0, 1], in the image's own
            proportions; 0.01 gives the hundred blocks of the paper's authors.
        masked_value: What a patch is set to, in the model's input space: a number, one value per channel, or `mean`,
            the mean colour of each image.
        sign: `do_minus_observed`, equation 1: negative where the image speaks for the class; or `observed_minus_do`.
        scale: `probability`, the model's own output, or `logit`.
        output: Which output is read, by name or position; may be None where there is only one.
        batch_size: Changed images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: An argument is outside its range; or as for :class:`Explainer`.
        UnsupportedOperation: The model has several inputs, its input is no image, or it has no graph of operations.

    Example:
        >>> inputs = keras.Input((2, 2, 1))
        >>> head = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones")
        >>> model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
        >>> effects = PixelEffects(model, patch=(2, 1))
        >>> effects(np.array([[[[0.5], [2.0]], [[-0.5], [0.0]]]]))[0, 0, :, 0].round(3)
        array([ 0.   , -0.381], dtype=float32)
    """

    name = "pixel_effects"

    def __init__(
        self,
        model: keras.Model,
        patch: int | Pair | None = None,
        stride: int | Pair | None = None,
        share: float | None = None,
        masked_value: float | Sequence[float] | Literal["mean"] = 0.0,
        sign: Sign = "do_minus_observed",
        scale: Scale = "probability",
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        _check_choices(sign, scale)
        if share is not None:
            patch = _sides(OperationGraph(model, output).input_shape, share, patch)
        mean = isinstance(masked_value, str) and masked_value == "mean"
        super().__init__(model, patch, stride, "mean" if mean else 0.0, output, batch_size)
        if len(self.graph.inputs) != 1:
            raise UnsupportedOperation(
                f"Effects are measured in classifiers of one input; model `{model.name}` has {len(self.graph.inputs)}."
            )
        if not mean:
            shape = self.graph.input_shape
            self._baselines[self.graph.input] = check_baseline(masked_value, shape, "masked_value", whole=False)
        self.sign, self.scale = sign, scale
        self._measured: Callable[..., Any] | None = None

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return (self._patch_effects(inputs, classes)[0],)

    def measure(self, images: object, targets: object = None) -> PatchEffects:
        """Measure the effect of every patch.

        Args:
            images: (N, height, width, channels) in the model's input space, finite.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class. A head of a single
                logit has the one class 0.

        Raises:
            InvalidArgument: As for calling it.
        """
        if self._measured is None:
            self._measured = self.compiled(self._patch_effects)
        maps, effects, classes, observed = self.in_batches(self._measured, images, targets)
        sizes = tf.zeros((1, *maps.shape[1:]))
        rows, columns = self._windows(sizes, 0), self._windows(sizes, 1)
        return PatchEffects(maps, effects, classes, observed, rows.starts, columns.starts, (rows.size, columns.size))

    def _patch_effects(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Maps, effects, classes and observed answers of one batch."""
        image, position = inputs[0], self.graph.input
        patches = self._windows(image, 0), self._windows(image, 1)
        known = None not in image.shape[1:3]
        followed = stages(self.graph, self._segments[position], patches) if known else []
        baseline = self._baselines[position]
        fill = tf.reduce_mean(image, (1, 2), keepdims=True) if baseline is None else baseline
        clean = self.graph.run(inputs)
        _, classes = chosen_logits(clean[self.graph.logits], classes)
        observed = self._answers(clean[self.graph.logits], classes)

        def read(logits: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
            answers = self._answers(logits, tf.gather(classes, source))
            return effect(answers, tf.gather(observed, source), self.sign)

        effects = over_patches(self.graph, clean, position, patches, fill, self.rows, followed, read)
        return over_pixels(effects, patches, tf.shape(image)[1:3]), effects, classes, observed

    def _answers(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(logits, tf.float32)
        answers = self.graph.head(logits) if self.scale == "probability" else logits
        return tf.gather(answers, classes, batch_dims=1)


class Measures(Protocol):
    """What makes maps of images: :class:`PixelEffects`, :class:`tfcausal.effects.concept_maps.ConceptEffectMaps`."""

    def measure(self, images: Any, targets: Any = None) -> Any:
        """Something with `maps` (N, height, width, 1) and `classes` (N,)."""


@dataclass(frozen=True)
class MapPair:
    """Maps of clean images and of what an attack made of them.

    Attributes:
        clean: (N, height, width, 1).
        attacked: (N, height, width, 1).
        clean_classes: The classes that the clean images' maps are for, (N,).
        attacked_classes: Those of the attacked images' maps.
        limit: The largest absolute value of both, so that they can be drawn on one scale from -limit to limit.
    """

    clean: np.ndarray
    attacked: np.ndarray
    clean_classes: np.ndarray
    attacked_classes: np.ndarray
    limit: float


def clean_and_attacked(explainer: Measures, clean: Any, attacked: Any, targets: Any = None) -> MapPair:
    """The maps of images and of their attacked versions, on one scale.

    Args:
        explainer: What makes the maps.
        clean: Images (N, height, width, channels).
        attacked: Their attacked versions, in the same order.
        targets: Class indices (N,) for both; None for the class predicted for each version, which is not the same where
            the attack succeeds; `clean` for the class predicted for the clean image in both, which shows what became of
            the evidence for it.

    Raises:
        InvalidArgument: The arrays have different shapes, or images of different sizes; or as for the explainer.
    """
    shape = _shape("clean", clean)
    if _shape("attacked", attacked) != shape:
        expected = f"an image for every clean image, of shape {shape}"
        raise InvalidArgument(message("attacked", expected, f"shape {np.shape(attacked)}"))
    of_clean = isinstance(targets, str)
    if of_clean and targets != "clean":
        raise InvalidArgument(message("targets", "class indices, None, or 'clean'", repr(targets)))
    first = explainer.measure(clean, None if of_clean else targets)
    second = explainer.measure(attacked, first.classes if of_clean else targets)
    limit = float(max(np.abs(first.maps).max(), np.abs(second.maps).max()))
    return MapPair(first.maps, second.maps, first.classes, second.classes, limit)


def _shape(name: str, images: Any) -> tuple[int, ...]:
    try:
        return np.shape(images)
    except ValueError:
        raise InvalidArgument(message(name, "images of one size", "rows of different lengths")) from None


def _check_choices(sign: object, scale: object) -> None:
    if sign not in SIGNS:
        raise InvalidArgument(message("sign", " or ".join(SIGNS), repr(sign)))
    if scale not in _SCALES:
        raise InvalidArgument(message("scale", " or ".join(_SCALES), repr(scale)))


def _sides(shape: Shape, share: float, patch: object) -> Pair:
    """Height and width of a patch that covers a share of the image's area."""
    if patch is not None:
        raise InvalidArgument(message("share", "None where `patch` is given", share))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InvalidArgument(message("share", "a number in (0, 1]", repr(share)))
    height, width = shape[1:3] if len(shape) == 4 else (None, None)
    if height is None or width is None:
        raise InvalidArgument(
            message("share", "None where the model's input size is not fixed", share, "Give `patch`.")
        )
    return max(1, round(sqrt(share) * height)), max(1, round(sqrt(share) * width))
