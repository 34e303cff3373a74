"""Adversarial perturbations as interventions: FGSM, BIM, PGD and JSMA, carried out by ART on a compiled classifier.

Source: *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural Networks*, sections
3.3 and 4: perturbations of at most 0.3 in every pixel, in 10 iterations. The attacks themselves are those of Goodfellow
et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD) and Papernot et al. 2016 (JSMA), as the
Adversarial Robustness Toolbox (ART) has them.

Needs the extra `adversarial`: `pip install "tfcausal[adversarial]"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tfcausal.errors import InvalidArgument, message
from tfcausal.interventions.art_classifier import art_module, compiled_classifier
from tfcausal.interventions.attack_inputs import check_attacked_images, check_clip_values, class_indices, label_rows
from tfcausal.interventions.logit_functions import LogitFunctions
from tfcausal.objectives.heads import Head

ATTACKS = ("fgsm", "bim", "pgd", "jsma")
# Papernot et al. 2016 distort at most 14.5 % of the features of a 28x28 image.
_JSMA_SHARE, _JSMA_FEATURES = 0.145, 1000


@dataclass(frozen=True)
class Attack:
    """An attack on a classifier: call it with images. Made by :func:`get_attack`.

    Attributes:
        name: `fgsm`, `bim`, `pgd` or `jsma`.
        classifier: The classifier as ART takes it, of images in units of the range: 0 is the lowest value, 1 the
            highest.
        clip_values: The lowest and highest value of an input.
        eps: This and the others as in :func:`get_attack`, `eps_step` with its default filled in.
    """

    name: str
    classifier: Any = field(repr=False)
    clip_values: tuple[np.ndarray, np.ndarray]
    eps: float
    steps: int
    eps_step: float
    gamma: float | None
    seed: int
    batch_size: int

    def __call__(self, images: Any, labels: Any = None, targets: Any = None) -> np.ndarray:
        """Change images so that the classifier's loss rises.

        NumPy's global random state, which ART draws from, is the same after the call as before it, but not during it.

        Args:
            images: (N, height, width, channels) in the classifier's input space, within `clip_values` up to rounding.
            labels: What the classifier is led away from: class indices (N,), one-hot rows (N, classes), or for a
                multi-label head rows of 0 and 1 (N, labels). None takes the classifier's own answer.
            targets: For `jsma` alone: the class indices (N,) that it leads to. None takes the class with the highest
                logit apart from the label: the runner-up, where the label is the answer.

        Returns:
            The changed images, float32, in the same shape, within `clip_values`; but for `jsma`, no value changed by
            more than `eps` times the range, up to rounding.

        Raises:
            InvalidArgument: Images of another shape, not finite, or outside `clip_values`; labels or targets of another
                shape or outside the classes; targets for another attack than `jsma`.

        Example:
            >>> head = keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")
            >>> model = keras.Sequential([keras.Input((2,)), head])
            >>> get_attack("fgsm", model, eps=0.25)([[0.5, 0.9]], labels=[0]).round(6).tolist()
            [[0.75, 1.0]]
        """
        low, high = self.clip_values
        functions = self.classifier.functions
        images = check_attacked_images(images, functions.graph.input_shape, low, high)
        rows = None if labels is None else label_rows(labels, len(images), functions.classes, functions.head)
        aims = None if targets is None else class_indices("targets", targets, len(images), functions.classes)
        if aims is not None and self.name != "jsma":
            raise InvalidArgument(message("targets", "None, as only jsma leads to a class", f"targets for {self.name}"))
        attack = self._art_attack(images[0].size)
        result = np.empty_like(images)
        with _numpy_seed(self.seed):
            for start in range(0, len(images), self.batch_size):
                part = slice(start, start + self.batch_size)
                # In units of the range, every attack has one number for eps and one for either bound.
                units = np.clip((images[part] - low) / (high - low), 0.0, 1.0)
                goal = self._goal(units, None if rows is None else rows[part], None if aims is None else aims[part])
                with np.errstate(invalid="ignore"):  # ART divides rows of labels by their sum, which can be 0
                    moved = attack.generate(units, y=goal)
                result[part] = np.where(moved == units, images[part], low + moved * (high - low))
        return np.clip(result, low, high)

    def _goal(self, units: np.ndarray, rows: np.ndarray | None, aims: np.ndarray | None) -> np.ndarray:
        """The rows (N, classes) that ART's attack takes: of the labels, or of the targets of `jsma`."""
        one_hot = np.eye(self.classifier.nb_classes, dtype=np.float32)
        if aims is not None:
            return one_hot[aims]
        if rows is not None and self.name != "jsma":
            return rows
        logits = self.classifier.predict(units, self.batch_size)
        if self.classifier.functions.head == "multi_label":
            return (logits > 0).astype(np.float32)
        if rows is None:
            rows = one_hot[logits.argmax(axis=1)]
        return one_hot[np.where(rows > 0, -np.inf, logits).argmax(axis=1)] if self.name == "jsma" else rows

    def _art_attack(self, features: int) -> Any:
        attacks = art_module("art.attacks.evasion")
        shared = {"eps": self.eps, "batch_size": self.batch_size}
        iterated = {"eps_step": self.eps_step, "max_iter": self.steps, "verbose": False}
        if self.name == "fgsm":
            return attacks.FastGradientMethod(self.classifier, **shared)
        if self.name == "bim":
            return attacks.BasicIterativeMethod(self.classifier, **shared, **iterated)
        if self.name == "pgd":
            return attacks.ProjectedGradientDescent(self.classifier, num_random_init=1, **shared, **iterated)
        gamma = self.gamma or min(_JSMA_SHARE, _JSMA_FEATURES / features)
        return attacks.SaliencyMapMethod(self.classifier, self.eps, gamma, self.batch_size, verbose=False)


def get_attack(
    name: str,
    model: keras.Model,
    clip_values: tuple[Any, Any] = (0.0, 1.0),
    eps: float = 0.3,
    steps: int = 10,
    eps_step: float | None = None,
    gamma: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    output: str | int | None = None,
    head: Head | None = None,
) -> Attack:
    """Make an attack on a classifier.

    `fgsm` is one step of `eps` in the direction of the sign of the loss's gradient. `bim` takes several smaller steps,
    each followed by a projection to the values within `eps` of the image and within `clip_values`. `pgd` does the same
    from a random start within `eps`; the numbers of an image depend on the seed and on its place in the call, not on
    the batch size. Pixels whose gradient is exactly 0 are left alone.

    `jsma` raises, by `eps` at a time and at most to the highest value, the two features whose gradient speaks most for
    a target class, until the classifier answers with it; it lowers none, and an image that has the answer already is
    not changed. A feature can be raised several times, so that `eps` is no bound for it. That is ART's form of the
    attack; that of Papernot et al. scores pairs of features by the gradients of all classes. A batch takes up to
    ``gamma * features / 2 * ceil(1 / eps)`` gradients and as many predictions: seconds at 28x28, hours at 224x224.

    Departures from the paper, which gives eps and the number of iterations only, and no range that eps belongs to: eps
    is a share of the range, as only in [0, 1] a change by 0.3 makes sense; the attack is on the logits, so that it does
    not stop at images of which the model is sure; the size of a step is as below.

    Args:
        name: `fgsm`, `bim`, `pgd` or `jsma`.
        model: A Keras classifier with one input; it is not changed.
        clip_values: The lowest and highest value of an input: numbers, or arrays with one for every channel, as inputs
            normalised by channel have them.
        eps: The largest change of a value as a share of the range of `clip_values`, in (0, 1], so that 0.3 is the
            paper's in every input space. For `jsma` the change of a feature at a time.
        steps: Iterations of `bim` and `pgd`; the others do not use it.
        eps_step: Change of an iteration as a share of the range, in (0, eps]. None is ``eps / steps`` for `bim`, which
            can just reach eps, and ``2.5 * eps / steps``, at most eps, for `pgd`, which can reach it from any start
            (Madry et al. 2018).
        gamma: For `jsma`, the share of the features that can change, in (0, 1], up to two features more. None is that
            of Papernot et al. 2016, 0.145, or as much as makes 1000 features.
        seed: Seed of the random start.
        batch_size: Images per gradient.
        output: Which output is attacked, by name or position; may be None where there is only one.
        head: `multi_class`, `binary` (one unit) or `multi_label` (one sigmoid per label); None sees it from the model.

    Returns:
        The attack; call it with images and labels.

    Raises:
        ImportError: ART is not installed.
        InvalidArgument: An unknown name, or a value outside its range; `jsma` for a multi-label head, whose labels are
            no alternatives to each other.
        UnsupportedOperation: The model has several inputs or takes integers.

    Example:
        >>> inputs = keras.Input((4, 4, 1))
        >>> outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs))
        >>> images = np.full((2, 4, 4, 1), 0.5, "float32")
        >>> changed = get_attack("pgd", keras.Model(inputs, outputs), eps=0.1)(images)
        >>> round(float(np.abs(changed - images).max()), 6)
        0.1
    """
    if name not in ATTACKS:
        close = difflib.get_close_matches(name, ATTACKS, n=1) if isinstance(name, str) else []
        remedy = f"Did you mean `{close[0]}`?" if close else ""
        raise InvalidArgument(message("name", f"one of {', '.join(ATTACKS)}", repr(name), remedy))
    if not _is_share(eps):
        remedy = "8 grey levels of 255 are 8 / 255, whatever the input space."
        expected = "a share of the range of clip_values, in (0, 1]"
        raise InvalidArgument(message("eps", expected, repr(eps), remedy))
    _require_positive_integer("steps", steps)
    if eps_step is not None and not (_is_share(eps_step) and eps_step <= eps):
        raise InvalidArgument(message("eps_step", f"None or a share of the range in (0, {eps}]", repr(eps_step)))
    if gamma is not None and not _is_share(gamma):
        raise InvalidArgument(message("gamma", "None or a share of the features in (0, 1]", repr(gamma)))
    _require_positive_integer("batch_size", batch_size)
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise InvalidArgument(message("seed", "an integer in [0, 2**32)", repr(seed)))
    low, high = check_clip_values(clip_values)
    functions = LogitFunctions(model, output, head, lambda units: low + units * (high - low))
    check_clip_values(clip_values, functions.graph.input_shape[1:])
    if name == "jsma" and functions.head == "multi_label":
        expected = "an attack for labels that do not exclude each other"
        received = "'jsma', which leads from one class to another"
        raise InvalidArgument(message("name", expected, received, "Take fgsm, bim or pgd."))
    return Attack(
        name=name,
        classifier=compiled_classifier(functions, check_clip_values((0.0, 1.0))),
        clip_values=(low, high),
        eps=float(eps),
        steps=int(steps),
        eps_step=float(default_step(name, eps, steps) if eps_step is None else eps_step),
        gamma=None if gamma is None else float(gamma),
        seed=int(seed),
        batch_size=int(batch_size),
    )


def default_step(name: str, eps: float, steps: int) -> float:
    """The change of an iteration where none is given, see `eps_step` of :func:`get_attack`."""
    return eps / steps if name == "bim" else min(eps, 2.5 * eps / steps)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(0 < value <= 1)


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _require_positive_integer(name: str, value: Any) -> None:
    if not _is_integer(value) or value < 1:
        raise InvalidArgument(message(name, "a positive integer", repr(value)))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed the random numbers that ART draws, which are NumPy's global ones, and put these back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
