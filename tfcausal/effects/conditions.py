"""The three causal conditions of the paper's Figure 1, as questions to a classifier.

Source: C.-H. H. Yang et al., *When causal intervention meets adversarial examples and image masking for deep neural
networks*, ICIP 2019, Figure 1 and section 4.1. X is what is intervened on, Y and Z are answers:

1. single task, ``X -> Y``: take a concept away and read one answer;
2. several classes, ``X <- Y``: take the known evidence out of the image and read all answers;
3. conditional multi-task, ``Z <- X -> Y``: take away the concepts that carry one answer and read another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfcausal.effects.engine import checked_images
from tfcausal.effects.equations import effect
from tfcausal.effects.expected import ConceptEffects, checked_classes
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.effects.results import EffectResult, EffectSummary, Node, Scale
from tfcausal.errors import InvalidArgument, message
from tfcausal.evaluation.statistics import Estimate
from tfcausal.saliency.arguments import check_baseline, check_integer


def single_task(
    effects: ConceptEffects,
    images: object,
    targets: object = None,
    nodes: Sequence[Node] | None = None,
    scale: Scale = "probability",
) -> EffectSummary:
    """Zero-out of concepts, and the effect on one class: ``X -> Y``.

    Args:
        effects: Effects of the concepts of a layer.
        images: (N, height, width, channels).
        targets: The class Y: an integer, one for every image (N,), one-hot rows, or None for the class that the
            observed answer to each image is largest for.
        nodes: The concepts X; None: each of them.
        scale: `probability` or `logit`.

    Returns:
        The effects (nodes, 1, 1) with intervals.

    Raises:
        InvalidArgument: As for :class:`ConceptEffects` and :meth:`EffectResult.towards`.
    """
    return effects(images, nodes, scale=scale).towards(targets)


def several_classes(
    effects: ImageEffects,
    images: object,
    masks: object,
    masked_value: float | Sequence[float] = 0.0,
    scale: Scale = "probability",
) -> EffectResult:
    """The known evidence taken out of the images, and the effect on every class: ``X <- Y``.

    Args:
        effects: Effects of changed images on the classifier.
        images: (N, height, width, channels).
        masks: Where the evidence lies, 1 inside and 0 outside, or the share to take away: (N, height, width, 1), or
            (1, height, width, 1) for the same place in all images. An image whose mask is empty has an effect of 0.
        masked_value: What takes the place of the evidence, a number or one for every channel.
        scale: `probability` or `logit`.

    Returns:
        The answers with and without the evidence; `summary()` has the effect on every class.

    Raises:
        InvalidArgument: Masks of another shape or outside [0, 1], a masked value that is no number, or images that the
            model does not take.
    """
    array = checked_images(images, effects.graph)
    value = check_baseline(masked_value, effects.graph.input_shape, "masked_value", whole=False)
    try:
        mask = np.asarray(masks, np.float32)
    except (TypeError, ValueError):
        raise InvalidArgument(message("masks", "an array of numbers", type(masks).__name__)) from None
    shape = (*array.shape[:-1], 1)
    if mask.shape not in (shape, (1, *shape[1:])):
        raise InvalidArgument(message("masks", f"shape {shape}, or one mask for all", f"shape {mask.shape}"))
    if not ((mask >= 0) & (mask <= 1)).all():
        raise InvalidArgument(message("masks", "values in [0, 1]", f"values in [{mask.min()}, {mask.max()}]"))
    # What lies outside stays bit for bit as it is.
    changed = np.where(mask == 0, array, array - mask * (array - value))
    return effects(changed.astype(np.float32), array, scale=scale)


@dataclass(frozen=True)
class ConditionalEffects:
    """The concepts that carry one answer, and what zeroing them all does to it and to other answers.

    Attributes:
        nodes: The concepts, the one that carries most first.
        evidence: How much the answer Y through the untouched autoencoder loses by the zero-out of each of them alone,
            in the images that they were chosen in, (nodes,).
        cause: The class Y.
        read: The classes Z.
        result: The joint zero-out, image by image, for Y and then Z.
    """

    nodes: tuple[int, ...]
    evidence: np.ndarray
    cause: int
    read: tuple[int, ...]
    result: EffectResult

    def on_cause(self, seed: int = 0) -> Estimate:
        """The effect on Y."""
        return self.on(self.cause, seed)

    def on(self, of: int, seed: int = 0) -> Estimate:
        """The effect on one of the classes Z, or on Y.

        Raises:
            InvalidArgument: It is neither.
        """
        return self.result.summary(seed=seed).estimate(self.result.nodes[0], of)


def conditional_multi_task(
    effects: ConceptEffects,
    images: object,
    cause: int,
    read: Sequence[int] | None = None,
    top: int = 1,
    selection_images: object = None,
    scale: Scale = "probability",
) -> ConditionalEffects:
    """Zero the concepts that carry the evidence for Y, and read the effect on Z: ``Z <- X -> Y``.

    The evidence is ranked by zero-out of one concept at a time: the concepts without which the mean answer Y is lowest
    are then zeroed together. What an autoencoder cannot reconstruct does not count, also where the effects refer to the
    network without it: a dead concept that is 0 has no evidence. Sigmoid heads have labels that can share concepts or
    not, and the effect on Z says so. The classes of a softmax compete: what Y loses the others gain, whether or not
    they share a concept with it; there `scale="logit"` reads what the concepts do to Z's own evidence.

    Args:
        effects: Effects of the concepts of a layer.
        images: (N, height, width, channels).
        cause: The class Y.
        read: The classes Z; None: all others.
        top: How many concepts at most: only such as lower Y count.
        selection_images: Images in which the concepts are chosen. None: `images`, where the effect on Y then looks
            larger than it is, as the concepts were chosen for it.
        scale: `probability` or `logit`.

    Raises:
        InvalidArgument: `cause` or `read` is no class, `read` has `cause`, `top` is not positive, no concept carries
            evidence for `cause` in these images, or as for :class:`ConceptEffects`.
    """
    total = effects.concepts.downstream.graph.num_classes
    check_integer("top", top)
    cause = int(checked_classes([cause], total, "cause")[0])
    others = [index for index in range(total) if index != cause]
    chosen = np.array(others, np.int64) if read is None else checked_classes(read, total, "read")
    if cause in chosen or not len(chosen):
        received = f"cause {cause}, read {chosen.tolist()}"
        raise InvalidArgument(message("read", "classes other than the cause, at least one", received))
    single = effects(images if selection_images is None else selection_images, scale=scale, classes=[cause])
    # Against the untouched autoencoder whatever the effects refer to: its error is no evidence of any concept.
    evidence = effect(single.intervened, single.untouched[:, None, None], "observed_minus_do")
    means = evidence.mean(axis=0, dtype=np.float64)[:, 0, 0]
    order = [int(node) for node in np.argsort(-means, kind="stable") if means[node] > 0][:top]
    if not order:
        remedy = "No concept of this layer lowers it in these images."
        raise InvalidArgument(message("cause", "a class that some concept speaks for", cause, remedy))
    node: Node = order[0] if len(order) == 1 else tuple(sorted(order))
    result = effects(images, [node], scale=scale, classes=[cause, *chosen.tolist()])
    return ConditionalEffects(tuple(order), means[order], cause, tuple(chosen.tolist()), result)
