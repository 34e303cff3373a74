"""Whether an exported model answers as the model does, in a process that has neither tfcausal nor Keras."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcausal.errors import TfCausalError
from tfcausal.serving import clean_process, names
from tfcausal.serving.probes import Probe

BATCH_SIZES = (1, 3, 8)
"""Images of the questions."""
TOLERANCE = 1e-5
"""Largest difference, by the measure of :func:`difference`."""
_SECONDS = 1800


@dataclass(frozen=True)
class Comparison:
    """An output of a signature beside what the model gives.

    Attributes:
        signature: Name of the signature.
        output: Name of the output.
        differences: Largest difference for every batch size, by the measure of the tolerance; for texts and classes
            the share that is not equal; NaN where the shape is another or the output is not there.
    """

    signature: str
    output: str
    differences: dict[int, float]

    @property
    def same(self) -> bool:
        """Whether all differences are within the tolerance."""
        return all(difference <= TOLERANCE for difference in self.differences.values())


def compare(folder: Path, probes: Sequence[Probe]) -> list[Comparison]:
    """Ask an exported model and compare its answers.

    Args:
        folder: Where it is.
        probes: Questions with the answers of the model.

    Returns:
        A comparison for every output of every signature, also of those that are not asked.

    Raises:
        TfCausalError: The process failed; the message ends in what it said.
    """
    given = _asked(folder, probes)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for number, probe in enumerate(probes):
        signature = probe.request.signature
        for name, expected in probe.expected.items():
            answer = given.get(f"{number}/{signature}/{name}")
            of_map = name == names.MAP
            found.setdefault((signature, name), {})[probe.count] = difference(answer, expected, 0.0 if of_map else 1.0)
    unasked = set(given["signatures"].tolist()) - {signature for signature, _ in found}
    found.update({(signature, "not compared"): {0: np.nan} for signature in sorted(unasked)})
    return [Comparison(*key, differences) for key, differences in found.items()]


def difference(answer: np.ndarray | None, expected: np.ndarray, floor: float = 1.0) -> float:
    """How far two arrays are from each other.

    A probability is compared as it is. A logit of 100 has no digits below 1e-5 in float32: above 1, a difference is a
    share. The values of a map can all be far below 1e-5: with a floor of 0, its differences always are shares.

    Args:
        answer: What was given, (N, ...); None for nothing.
        expected: What was expected.
        floor: Differences are shares of the largest magnitude in the same sample, or of this where that is larger.

    Returns:
        Of numbers the largest difference over the samples; of integers and texts the share that is not equal; NaN for
        another shape.

    Example:
        >>> difference(np.array([[1.0, 4.0]]), np.array([[1.0, 2.0]])), difference(np.array([1, 4]), np.array([1, 2]))
        (1.0, 0.5)
        >>> difference(np.array([[2e-9, 0.0]]), np.array([[1e-9, 0.0]]), floor=0.0)
        1.0
    """
    if answer is None or answer.shape != expected.shape:
        return float("nan")
    if expected.dtype.kind != "f":
        return float((answer != expected).mean())
    expected = expected.astype(np.float64).reshape(len(expected), -1)
    apart = np.abs(answer.reshape(expected.shape) - expected).max(axis=1)
    scale = np.maximum(np.abs(expected).max(axis=1), floor)
    with np.errstate(divide="ignore"):
        return float(np.divide(apart, scale, out=np.zeros_like(apart), where=apart != 0).max())


def _asked(folder: Path, probes: Sequence[Probe]) -> dict[str, np.ndarray]:
    questions: dict[str, Any] = {
        f"{number}/{probe.request.signature}/{name}": values
        for number, probe in enumerate(probes)
        for name, values in probe.request.inputs.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(Path(scratch, name)) for name in ("questions.npz", "answers.npz")]
        np.savez(paths[0], **questions)
        try:
            result = subprocess.run(
                [sys.executable, "-I", clean_process.__file__, str(folder.resolve()), *paths],
                capture_output=True,
                check=False,
                cwd=scratch,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
                errors="replace",
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            remedy = "Export without --check, or smaller images."
            raise TfCausalError(f"The exported model has not answered within {_SECONDS} s. {remedy}") from error
        if result.returncode:
            said = "\n".join(result.stderr.strip().splitlines()[-12:])
            raise TfCausalError(
                f"The exported model cannot be used without tfcausal and Keras. The process said:\n{said}"
            )
        with np.load(paths[1]) as arrays:
            return {key: arrays[key] for key in arrays.files}
