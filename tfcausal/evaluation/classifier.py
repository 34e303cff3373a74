"""One classifier on one split: its answers, its maps, and how well both hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfcausal.data.image_set import ImageSet
from tfcausal.evaluation.faithfulness import Deletion
from tfcausal.evaluation.localisation import MaskEnergy
from tfcausal.saliency.base import Explainer

Store = Callable[[slice, np.ndarray], None]


@dataclass(frozen=True)
class SplitResult:
    """What was measured on every image of a split.

    Attributes:
        probabilities: The classifier's output, float32 (N, classes).
        correct: Whether the most probable class is the label, booleans (N,).
        mask_energy: Share of positive saliency inside the true mask, (N,); NaN without a mask or positive saliency.
        mask_area: The mask's share of the area, (N,): the chance level of `mask_energy`; NaN without a mask.
        deletion: Deletion score of the images that it was asked for, (M,).
        deletion_random: The score of random maps on the same images, (M,).
        deletion_curve: Mean deletion curve, (steps + 1,).
        deletion_random_curve: Mean deletion curve of the random maps, (steps + 1,).
    """

    probabilities: np.ndarray
    correct: np.ndarray
    mask_energy: np.ndarray
    mask_area: np.ndarray
    deletion: np.ndarray
    deletion_random: np.ndarray
    deletion_curve: np.ndarray
    deletion_random_curve: np.ndarray


def evaluate_classifier(
    image_set: ImageSet,
    explainer: Explainer,
    deletion: Deletion,
    deletion_indices: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
    store: Store | None = None,
    advance: Callable[[int], Any] = lambda images: None,
) -> SplitResult:
    """Evaluate a classifier on a split, batch by batch; the maps explain the predicted class.

    Args:
        image_set: The split.
        explainer: The saliency method, bound to the classifier; the largest of the classifier's outputs is its answer.
        deletion: The deletion score, bound to the same classifier.
        deletion_indices: Which images the deletion score is computed for, integers (M,).
        batch_size: Images that are read at once.
        seed: Seed of the random maps that deletion is compared with.
        store: Called with the positions of a batch and its maps, float32 (n, height, width), summed over the channels.
        advance: Called with the number of images after each batch.

    Returns:
        The measurements, image by image.
    """
    energy = MaskEnergy()
    count, chosen = len(image_set), set(np.asarray(deletion_indices).tolist())
    probabilities = np.empty((count, len(image_set.class_names)), np.float32)
    mask_energy, mask_area = np.full(count, np.nan), np.full(count, np.nan)
    curves: list[np.ndarray] = []
    random_curves: list[np.ndarray] = []
    for start in range(0, count, batch_size):
        positions = np.arange(start, min(start + batch_size, count))
        part = slice(int(positions[0]), int(positions[-1]) + 1)
        images, masks = image_set.read(positions)
        probabilities[part] = explainer.outputs(images)
        maps = explainer(images, reducer="sum")
        masked = image_set.has_mask[part]
        mask_energy[part][masked] = energy(maps, masks)[masked]
        mask_area[part][masked] = energy.chance(masks)[masked]
        if store is not None:
            store(part, maps[..., 0])
        deleted = [position - start for position in positions.tolist() if position in chosen]
        if deleted:
            # Seeded by position, so that the batch size does not change the control.
            controls = [deletion.random_maps(images[[at]], seed=seed + start + at) for at in deleted]
            curves.append(deletion.curves(images[deleted], maps[deleted]))
            random_curves.append(deletion.curves(images[deleted], np.concatenate(controls)))
        advance(len(positions))
    curve, random_curve = np.concatenate(curves), np.concatenate(random_curves)
    return SplitResult(
        probabilities=probabilities,
        correct=probabilities.argmax(axis=1) == image_set.labels,
        mask_energy=mask_energy,
        mask_area=mask_area,
        deletion=deletion.area(curve),
        deletion_random=deletion.area(random_curve),
        deletion_curve=curve.mean(axis=0),
        deletion_random_curve=random_curve.mean(axis=0),
    )
