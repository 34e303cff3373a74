"""Explainers by the gradient of a logit: plain, times the input, averaged over noise, integrated, and guided."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation, message
from tfcausal.saliency.arguments import check_baselines, check_integer
from tfcausal.saliency.base import Explainer, Images
from tfcausal.saliency.logit_gradients import (
    Tensors,
    gradient,
    guided_relus,
    integrated_gradients,
    noisy_gradient_statistics,
)


class Gradient(Explainer):
    """Explain a classifier by the gradient of the logit with respect to the input, signed.

    Source: Simonyan, Vedaldi and Zisserman 2013, *Deep Inside Convolutional Networks*, section 3. Departure from the
    paper: it takes the largest magnitude over the channels, which here is `reducer="abs_max"`.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`.
        UnsupportedOperation: As for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> Gradient(model)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[1.0, 1.0]]
    """

    name = "gradient"

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return gradient(self.graph, inputs, classes)[0]


class GradientTimesInput(Gradient):
    """Explain a classifier by the gradient of the logit times the input.

    Source: Shrikumar et al. 2016, *Not Just a Black Box*, section 3.2. On a network that is piecewise linear and has
    no additive constants the map sums to the logit.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`.
        UnsupportedOperation: As for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> GradientTimesInput(model)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[3.0, -1.0]]
    """

    name = "gradient_times_input"

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return tuple(slope * value for slope, value in zip(super().maps(inputs, classes), inputs, strict=True))


class SmoothGrad(Explainer):
    """Explain a classifier by the mean gradient over noisy copies of the image.

    Source: Smilkov et al. 2017, *SmoothGrad: removing noise by adding noise*, section 3. Every image of a batch gets
    the same noise up to its scale; the predicted class is that of the image without noise.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        samples: Number of noisy copies; the memory does not depend on it.
        noise_level: Standard deviation of the noise, as a share of the range (maximum minus minimum) of each image.
        seed: Seed of the noise, an integer of at least 0.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`, or an argument is outside its range.
        UnsupportedOperation: As for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> SmoothGrad(model, samples=4)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[1.0, 1.0]]
    """

    name = "smoothgrad"
    _fewest = 1

    def __init__(
        self,
        model: keras.Model,
        samples: int = 16,
        noise_level: float = 0.15,
        seed: int = 0,
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.samples = check_integer("samples", samples, self._fewest)
        self.seed = check_integer("seed", seed, 0)
        if not isinstance(noise_level, (int, float)) or isinstance(noise_level, bool) or not 0 <= noise_level < inf:
            raise InvalidArgument(message("noise_level", "a finite number of at least 0", repr(noise_level)))
        self.noise_level = float(noise_level)
        super().__init__(model, output, batch_size)

    def statistics(self, inputs: Tensors, classes: tf.Tensor) -> tuple[Tensors, Tensors]:
        """Mean and variance of the gradients of one batch."""
        return noisy_gradient_statistics(self.graph, inputs, classes, self.samples, self.noise_level, self.seed)

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return self.statistics(inputs, classes)[0]


class VarGrad(SmoothGrad):
    """Explain a classifier by the variance of the gradient over noisy copies of the image; at least 0.

    Sources: Adebayo et al. 2018, *Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter
    Values*, section 2; Hooker et al. 2019, *A Benchmark for Interpretability Methods in Deep Neural Networks*, section
    3.2. The variance is divided by the number of samples.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        samples: Number of noisy copies, at least 2; the memory does not depend on it.
        noise_level: Standard deviation of the noise, as a share of the range (maximum minus minimum) of each image.
        seed: Seed of the noise, an integer of at least 0.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`, or an argument is outside its range.
        UnsupportedOperation: As for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> VarGrad(model, samples=4)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[0.0, 0.0]]
    """

    name = "vargrad"
    _fewest = 2

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return self.statistics(inputs, classes)[1]


class IntegratedGradients(Explainer):
    """Explain a classifier by the gradients between a baseline and the image; sums to the logit's change.

    Source: Sundararajan, Taly and Yan 2017, *Axiomatic Attribution for Deep Networks*, section 3, equation 1. Departure
    from the paper: its Riemann sum is the right one; the rules here converge faster.

    Args:
        model: A Keras classifier: functional, Sequential, nested, or subclassed and called once.
        steps: Number of points at which the gradient is taken.
        baseline: What the way starts from: a number, one value per channel, or an image (height, width, channels). For
            a model with several inputs a number for all, or a list or dictionary with one of these for every input.
        rule: How the integral is approximated: `gauss_legendre` or `midpoint`.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images, or points on their way, per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`, or an argument is outside its range.
        UnsupportedOperation: As for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> maps, residual = IntegratedGradients(model, baseline=1.0).explain_with_residual(np.array([[3.0, -1.0]]))
        >>> maps.round(5).tolist(), bool(abs(residual[0]) < 1e-5)
        ([[2.0, -2.0]], True)
    """

    name = "integrated_gradients"

    def __init__(
        self,
        model: keras.Model,
        steps: int = 32,
        baseline: Any = 0.0,
        rule: Literal["gauss_legendre", "midpoint"] = "gauss_legendre",
        output: str | int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.steps = check_integer("steps", steps)
        if rule not in ("gauss_legendre", "midpoint"):
            raise InvalidArgument(message("rule", "gauss_legendre or midpoint", repr(rule)))
        super().__init__(model, output, batch_size)
        self._baselines = check_baselines(baseline, self.graph)
        if rule == "midpoint":
            self._nodes, self._weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
        else:
            nodes, weights = np.polynomial.legendre.leggauss(steps)
            self._nodes, self._weights = (nodes + 1) / 2, weights / 2
        self._with_residual: Callable[..., Any] | None = None

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return self._integrate(inputs, classes)[0]

    def explain_with_residual(self, images: Images, targets: object = None) -> tuple[Any, np.ndarray]:
        """Explain images, and tell how far the maps are from complete.

        Args:
            images: Batch in the model's input space, as for calling the explainer.
            targets: Class indices (N,), one-hot rows (N, classes), or None for the predicted class.

        Returns:
            The maps, as calling gives them, and the residual of completeness, float32 (N,): logit of the image minus
            logit of the baseline minus the sum of the map. More steps make it smaller.

        Raises:
            InvalidArgument: As for calling the explainer.
        """
        if self._with_residual is None:
            self._with_residual = self.compiled(self._maps_and_residual)
        *maps, residual = self.in_batches(self._with_residual, images, targets)
        return self.as_given(images, maps), residual

    def _integrate(self, inputs: Tensors, classes: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        arguments = (self._baselines, self._nodes, self._weights, self.batch_size)
        return integrated_gradients(self.graph, inputs, classes, *arguments)

    def _maps_and_residual(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        maps, residual = self._integrate(inputs, classes)
        return (*maps, residual)


class GuidedBackpropagation(Explainer):
    """Explain a classifier by the gradient with negative signals stopped at every ReLU.

    Source: Springenberg et al. 2015, *Striving for Simplicity: The All Convolutional Net*, section 3.4. Its maps depend
    little on the class and on the upper layers (Adebayo et al. 2018, *Sanity Checks for Saliency Maps*).

    Args:
        model: A Keras classifier with at least one ReLU, which may stand in a nested model.
        output: Which output is explained, by name or position; may be None where there is only one.
        batch_size: Images per forward pass; None chooses by the model's size.

    Raises:
        InvalidArgument: As for :class:`Explainer`.
        UnsupportedOperation: The model has no ReLU, or as for :class:`Explainer`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
        >>> GuidedBackpropagation(model)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[1.0, 0.0]]
    """

    name = "guided_backpropagation"

    def __init__(self, model: keras.Model, output: str | int | None = None, batch_size: int | None = None) -> None:
        super().__init__(model, output, batch_size)
        self._guided = guided_relus(self.graph)
        if not self._guided:
            raise UnsupportedOperation(
                f"{self.name}: model `{model.name}` has no ReLU, at which negative signals could be stopped: the map "
                "would be the plain gradient. Use `gradient` instead."
            )

    def maps(self, inputs: Tensors, classes: tf.Tensor) -> Tensors:
        """Compiled by the base class."""
        return gradient(self.graph, inputs, classes, self._guided)[0]
