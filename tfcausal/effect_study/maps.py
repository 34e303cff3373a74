"""Effect maps of a few images, clean and changed, and where they are kept: `effects.zarr`.

<model>/                        attributes: conditions, names, positions, class_names, value_range, classes
  images/<condition>            (M, H, W, C)   the images as the model sees them
  outputs/<condition>           (M, classes)
  pixel_wise/<condition>        (M, H, W)      effect of masking the patches around a pixel
  levels/<level>/               attributes: layer, nodes
    concept_weighted/<condition>  (M, H, W)    codes weighted by their effects
    codes/<condition>             (M, h, w, T) codes of the strongest nodes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import zarr

from tfcausal.atomic import atomic_path
from tfcausal.browsing.maps import EVERY_FILE, WHOLE
from tfcausal.effect_study.evidence import on_predicted
from tfcausal.effect_study.plan import Level, Plan
from tfcausal.effect_study.rows import CLEAN
from tfcausal.effects.channels import Concepts
from tfcausal.effects.concept_maps import ConceptEffectMaps
from tfcausal.effects.features import map_statistics
from tfcausal.effects.results import EffectResult
from tfcausal.effects.store import EffectStore

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ShownImages:
    """The images that maps are made of.

    Attributes:
        positions: Where they are among the measured ones, (M,).
    """

    positions: np.ndarray

    @classmethod
    def of(cls, plan: Plan) -> ShownImages:
        """One image of each class in turn, in seeded order; none where no maps are asked for."""
        split, wanted = plan.subject.measured, plan.effects.maps.images if plan.effects.maps else 0
        order = np.random.default_rng(plan.subject.seed).permutation(len(split))
        turn = np.zeros(len(split), int)
        for label in np.unique(split.labels):
            members = order[split.labels[order] == label]
            turn[members] = np.arange(len(members))
        return cls(order[np.argsort(turn[order], kind="stable")][:wanted])

    def write(
        self,
        store: EffectStore,
        plan: Plan,
        images: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        arrays: Mapping[str, Arrays],
    ) -> None:
        """Write the maps of a model; nothing where no maps are asked for.

        Args:
            store: Where to.
            plan: What was measured.
            images: By condition, these images.
            outputs: By condition, the answers to all measured ones.
            arrays: By level, and for the whole image by an empty name, what was kept of the images.
        """
        if not len(self.positions):
            return
        if not store.maps.parent.is_dir():
            with atomic_path(store.maps.parent) as partial:
                zarr.create_group(partial)
        split, low_high = plan.subject.measured, plan.subject.pixels
        with atomic_path(store.maps) as partial:
            group = zarr.create_group(partial)
            names = plan.subject.class_names
            group.attrs.update(
                conditions=list(plan.conditions),
                names=[split.names[index] for index in self.positions],
                positions=self.positions.tolist(),
                class_names=None if names is None else list(names),
                value_range=list(low_high),
                **{WHOLE: True},
            )
            for condition in plan.conditions:
                _put(group, f"images/{condition}", images[condition])
                _put(group, f"outputs/{condition}", outputs[condition][self.positions])
            for level, kept in arrays.items():
                place = f"levels/{store.level(level).name}/" if level else ""
                if level:
                    of_level = group.create_group(place.rstrip("/"))
                    of_level.attrs.update(layer=level, nodes=kept["nodes"].tolist())
                for key, values in kept.items():
                    kind = key.partition("/")[0]
                    if kind in ("concept_weighted", "codes", "pixel_wise"):
                        _put(group, place + key, values)


def level_arrays(
    plan: Plan,
    level: Level,
    condition: str,
    images: np.ndarray,
    result: EffectResult,
    shown: ShownImages,
    classes: np.ndarray,
    nodes: Sequence[int],
    weighted: ConceptEffectMaps | None,
) -> Arrays:
    """What is kept of a level under an intervention on the images: maps to show, and features to detect attacks by.

    Args:
        plan: What is measured.
        level: The level, its autoencoder trained.
        condition: The intervention on the images.
        images: The images under it.
        result: The effects in them, on all classes.
        shown: The images that maps are made of.
        classes: The class that each of their maps is for.
        nodes: The concepts that are shown.
        weighted: What makes concept-weighted maps of the level; None where its codes have no places.
    """
    arrays: Arrays = {"nodes": np.asarray(nodes, np.int64)}
    if plan.effects.detection is not None and (condition == CLEAN or condition in plan.detected):
        arrays[f"effects/{condition}"] = on_predicted(result)
        if weighted is not None and "concept_map" in plan.effects.detection.detectors:
            arrays[f"concept_map/{condition}"] = map_statistics(weighted(images))
    if weighted is not None and plan.effects.maps is not None and len(shown.positions):
        few = images[shown.positions]
        arrays[f"codes/{condition}"] = _codes(level.concepts, few)[..., list(nodes)]
        if plan.effects.maps.concept_weighted:
            arrays[f"concept_weighted/{condition}"] = weighted(few, classes)[..., 0]
    return arrays


def pixel_arrays(plan: Plan, condition: str, images: np.ndarray, shown: ShownImages, classes: np.ndarray) -> Arrays:
    """Pixel-wise maps under an intervention on the images: to show, and as features to detect attacks by.

    Args:
        plan: What is measured.
        condition: The intervention on the images.
        images: The images under it.
        shown: The images that maps are shown of.
        classes: The class that each of their maps is for.
    """
    arrays: Arrays = {}
    detection, maps = plan.effects.detection, plan.effects.maps
    if plan.pixel_effects is None:
        return arrays
    if (
        detection is not None
        and "pixel_map" in detection.detectors
        and (condition == CLEAN or condition in plan.detected)
    ):
        arrays[f"pixel_map/{condition}"] = map_statistics(plan.pixel_effects(images))
    if maps is not None and maps.pixel_wise is not None and len(shown.positions):
        arrays[f"pixel_wise/{condition}"] = plan.pixel_effects(images[shown.positions], classes)[..., 0]
    return arrays


def _codes(concepts: Concepts, images: np.ndarray) -> np.ndarray:
    """The codes of a few images, float32 (M, height, width, K)."""
    known = concepts.downstream.known(tf.constant(images, tf.float32))
    return np.asarray(tf.cast(concepts.encode(known[concepts.downstream.position]), tf.float32))


def _put(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """An array with one chunk per image."""
    array = np.ascontiguousarray(values)
    group.create_array(name, data=array, chunks=(1, *array.shape[1:]), config=EVERY_FILE)
