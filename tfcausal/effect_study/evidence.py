"""Detection of attacked images by what was measured of a model: which features each detector has, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pandas

from tfcausal.effect_study.plan import Plan
from tfcausal.effect_study.rows import CLEAN
from tfcausal.effects.detection import Detection, detect, split_images
from tfcausal.effects.features import largest_effect, low_confidence
from tfcausal.effects.results import EffectResult
from tfcausal.effects.table import DETECTION, as_frame

LOW_CONFIDENCE, CONFIDENCE = "low_confidence", "confidence"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Detector:
    name: str
    level: str | None
    features: dict[str, np.ndarray]


def on_predicted(result: EffectResult) -> np.ndarray:
    """Effects on the class that the observed answer to each image is largest for, (N, nodes).

    Several values of a concept are put together by equation 2. Where a single sigmoid speaks for the answer that there
    is nothing, the effect on that answer is minus the effect on the sigmoid.

    Args:
        result: Effects on all classes.
    """
    effects = (result.effects * result.frequencies[:, :, None]).sum(axis=2)
    if result.posterior.shape[1] == 1:
        return np.where(result.posterior < 0.5, -1.0, 1.0) * effects[..., 0]
    predicted = result.posterior.argmax(axis=1)
    return np.take_along_axis(effects, predicted[:, None, None], axis=2)[..., 0]


def detected(
    plan: Plan, outputs: Mapping[str, np.ndarray], arrays: Mapping[str, Arrays]
) -> tuple[pandas.DataFrame, list[dict[str, Any]]]:
    """How well every detector finds every attack.

    Args:
        plan: What is measured.
        outputs: By condition, the answers to the images, (N, classes).
        arrays: By level, and for the whole image by an empty name, what was kept of the images.

    Returns:
        The rows of the table of detectors, none where detection is not asked for, and the ROC curves, for JSON.
    """
    settings, attacks = plan.effects.detection, plan.detected
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    if settings is None:
        return _frame(rows), curves
    detectors = _detectors(plan, outputs, arrays)
    names = [str(index) for index in range(len(detectors))]
    results = detect(
        {name: detector.features[CLEAN] for name, detector in zip(names, detectors, strict=True)},
        {
            attack: {name: detector.features[attack] for name, detector in zip(names, detectors, strict=True)}
            for attack in attacks
        },
        split_images(len(outputs[CLEAN]), settings.shares, seed=plan.subject.seed),
        successful={attack: plan.changed_answers(outputs, attack) for attack in attacks},
        only_successful=settings.only_successful,
        rule=settings.rule,
        false_positive_rate=settings.false_positive_rate,
        fitted_on=settings.fitted_on,
        seed=plan.subject.seed,
    )
    confidence = {result.attack: result for result in results if detectors[int(result.detector)].name == CONFIDENCE}
    for result in results:
        detector = detectors[int(result.detector)]
        known = {"model": plan.subject.name, "level": detector.level, "detector": detector.name}
        rows.append({**result.row(), **known, **_compared(result, confidence[result.attack])})
        curves.append({**known, "attack": result.attack, **_curve(result)})
    return _frame(rows), curves


def _detectors(plan: Plan, outputs: Mapping[str, np.ndarray], arrays: Mapping[str, Arrays]) -> list[_Detector]:
    conditions = (CLEAN, *plan.detected)
    confidence = {name: low_confidence(outputs[name], plan.multi_label) for name in conditions}
    # Strong attacks make a classifier more confident, not less. Other detectors learn from attacks which way to look:
    # beside low confidence as it is stands confidence with its direction learned, too, which is the one to beat.
    learned = {name: values[:, None] for name, values in confidence.items()}
    found = [_Detector(LOW_CONFIDENCE, None, confidence), _Detector(CONFIDENCE, None, learned)]
    chosen = plan.effects.detection.detectors if plan.effects.detection else ()
    for level, kept in arrays.items():
        for name in chosen:
            source = "effects" if name == "largest_effect" else name
            if f"{source}/{CLEAN}" not in kept:
                continue
            features = {condition: kept[f"{source}/{condition}"] for condition in conditions}
            if name == "largest_effect":
                features = {condition: largest_effect(values) for condition, values in features.items()}
            found.append(_Detector(name, level or None, features))
    return found


def _compared(result: Detection, confidence: Detection) -> dict[str, float]:
    """The area of a detector minus that of confidence, both fitted on the same images."""
    names = ("over_confidence", "over_confidence_low", "over_confidence_high")
    if result.detector == confidence.detector or isnan(result.area.value) or isnan(confidence.area.value):
        return dict.fromkeys(names, np.nan)
    comparison = result.against(confidence)
    return dict(zip(names, (comparison.difference, comparison.low, comparison.high), strict=True))


def _curve(result: Detection) -> dict[str, Any]:
    return {
        "auc": result.area.value,
        "low": result.area.low,
        "high": result.area.high,
        "false_positive_rates": result.curve.false_positive_rates,
        "true_positive_rates": result.curve.true_positive_rates,
        "chosen": [result.point.false_positive_rate.value, result.point.true_positive_rate.value],
    }


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    return as_frame(DETECTION, {name: [row[name] for row in rows] for name in DETECTION.names})
