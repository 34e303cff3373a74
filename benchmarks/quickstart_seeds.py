"""The quickstart over several seeds of data, weights and order: mean and range of every column of its table.

    .venv/bin/python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--runs runs]

Runs that are there already are used, and unfinished ones are finished.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import RESULTS

from tfcausal.runs import RunDirectory

CONFIG = "configs/quickstart.yaml"
COLUMNS = {
    "accuracy, training contexts": lambda model: model["splits"]["test"]["accuracy"],
    "accuracy, shuffled contexts": lambda model: model["splits"]["test_shuffled"]["accuracy"],
    "worst-group accuracy": lambda model: model["worst_group"],
    "saliency in mask": lambda model: model["splits"]["test_shuffled"]["mask_energy"],
    "its chance level": lambda model: model["splits"]["test_shuffled"]["mask_energy_chance"],
    "deletion": lambda model: model["splits"]["test_shuffled"]["deletion"],
    "deletion, random order": lambda model: model["splits"]["test_shuffled"]["deletion_random"],
}


def finished_run(seed: int, runs: Path) -> RunDirectory:
    executable, name = Path(sys.executable).parent / "tfcausal", f"quickstart-seed-{seed}"
    words = ["--resume", runs / name] if (runs / name).exists() else [CONFIG, "--runs", runs, "--name", name]
    subprocess.run([executable, "run", *words, *([] if "--resume" in words else ["--set", f"seed={seed}"])], check=True)
    return RunDirectory.open(runs / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    all_metrics = [finished_run(seed, arguments.runs).metrics for seed in arguments.seeds]

    table = Table(title=f"quickstart, mean (least to greatest) over the seeds {arguments.seeds}")
    for title in ("model", *COLUMNS):
        table.add_column(title)
    rows = {}
    for name in all_metrics[0]["model_names"]:
        values = {
            title: [
                np.nan if (value := read(metrics["models"][name])["value"]) is None else value
                for metrics in all_metrics
            ]
            for title, read in COLUMNS.items()
        }
        rows[name] = values
        cells = [f"{np.mean(seeds):.2f} ({min(seeds):.2f} to {max(seeds):.2f})" for seeds in values.values()]
        table.add_row(name, *cells)
    console = Console()
    console.width = max(console.width, 200)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    result = {"seeds": arguments.seeds, "models": rows}
    (RESULTS / "quickstart_seeds.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
