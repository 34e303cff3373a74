"""What a result was made with: versions, machine, seed, revision, and the content of files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    *(
        "tfcausal",
        "tensorflow",
        "keras",
        "numpy",
        "pandas",
        "pillow",
        "pyarrow",
        "scikit-image",
        "scikit-learn",
        "zarr",
    ),
    "adversarial-robustness-toolbox",
)
GIT_TIMEOUT = 10.0  # seconds
_CHUNK = 1 << 20


def environment(seed: int) -> dict[str, Any]:
    """Describe what a run is made with, without importing any of it.

    Args:
        seed: The seed of the run.

    Returns:
        `versions` by package (None if not installed), `platform`, `cpu_count`, `seed`, and `git`: the `revision` of the
        checkout that the current folder is in and whether it is `dirty` (None outside of a checkout).
        Neither names of users nor absolute paths.

    Example:
        >>> sorted(environment(seed=3))
        ['cpu_count', 'git', 'platform', 'seed', 'versions']
    """
    return {
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "seed": seed,
        "git": _git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    revision = _git("rev-parse", "--verify", "HEAD")
    if revision is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    """What git prints; None if it fails, is not installed, or takes too long."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            errors="replace",
            text=True,
            timeout=GIT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def hash_of(files: Sequence[Path]) -> str:
    """What tells the content of files from other content: SHA-256 of all of it.

    Args:
        files: The files, in order.
    """
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
