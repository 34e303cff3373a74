"""Mixed precision against float32: accuracy after the same training on the embedded data, plain and PPI.

    .venv/bin/python benchmarks/precision.py [--seeds 0 1 2] [--runs runs]

Data and network of `benchmarks/methods.yaml`, with half the contexts shuffled in training, so that there is something
to learn; accuracy on the test split with the training's contexts. Writes `results/precision.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from side_by_side import RESULTS

from tfcausal.runs import RunDirectory

CONFIG = Path(__file__).with_name("methods.yaml")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
MODELS = "models={plain: {method: plain}, ppi: {method: ppi, warm_up_epochs: 2}}"


def accuracies(precision: str, seed: int, runs: Path) -> dict[str, float]:
    executable, name = Path(sys.executable).parent / "tfcausal", f"{precision}-seed-{seed}"
    settings = [f"training.precision={precision}", f"seed={seed}", MODELS, "data.context_strength=0.5"]
    settings += ["training.epochs=30", "evaluation.deletion_images=1", "data.balanced_size=0", "data.train_size=1100"]
    new = [CONFIG, "--runs", runs, "--name", name, *(word for setting in settings for word in ("--set", setting))]
    words = ["--resume", runs / name] if (runs / name).exists() else new
    subprocess.run([executable, "run", *words], check=True, stdout=subprocess.DEVNULL)
    models = RunDirectory.open(runs / name).metrics["models"]
    return {name: model["splits"]["test"]["accuracy"]["value"] for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    found = {
        precision: [accuracies(precision, seed, arguments.runs) for seed in arguments.seeds] for precision in PRECISIONS
    }
    result: dict[str, dict[str, object]] = {}
    for name in found["float32"][0]:
        reference = np.array([run[name] for run in found["float32"]])
        for precision, runs in found.items():
            values = np.array([run[name] for run in runs])
            difference = float((values - reference).mean())
            result.setdefault(name, {})[precision] = {"accuracy": values.tolist(), "difference": difference}
            print(f"{name:6} {precision:15} {values.mean():.3f}, against float32 {difference:+.3f}")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"seeds": arguments.seeds, "models": result}, indent=2)
    (RESULTS / "precision.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
