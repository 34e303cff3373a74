"""Causal effects of the plain and the CFCN model on the embedded data, clean, masked and attacked; detection.

    .venv/bin/python benchmarks/effect_study.py [--seeds 0 1 2] [--runs runs]

Runs `configs/textured_digits_effects.yaml` once per seed of data, weights and order (runs that are there already are
used, unfinished ones are finished), and writes `docs/effects_measured.md`, pictures of the first seed beside it, and
`results/effect_study.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from side_by_side import RESULTS

from tfcausal.runs import RunDirectory

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "textured_digits_effects.yaml"
DOCS = ROOT / "docs"
CLEAN = "clean"
MODELS = {"plain": "plain", "cfcn": "CFCN-C, all masks"}


def finished_run(seed: int, runs: Path) -> RunDirectory:
    executable, name = Path(sys.executable).parent / "tfcausal", f"effects-seed-{seed}"
    words = ["--resume", runs / name] if (runs / name).exists() else [CONFIG, "--runs", runs, "--name", name]
    subprocess.run([executable, "run", *words, *([] if "--resume" in words else ["--set", f"seed={seed}"])], check=True)
    return RunDirectory.open(runs / name)


def findings(run: RunDirectory, model: str) -> dict[str, Any]:
    return json.loads((run.path / "effects" / model / "finished.json").read_text(encoding="utf-8"))


def interval(values: list[float], digits: int = 3, signed: bool = False) -> str:
    """Mean over the seeds and the 95 % interval of that mean by Student's t."""
    from scipy.stats import t

    array = np.array(values, float)
    array = array[~np.isnan(array)]
    sign = "+" if signed else ""
    if len(array) < 2:
        return f"{array.mean():{sign}.{digits}f}" if len(array) else "–"
    half = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    low, high = array.mean() - half, array.mean() + half
    return f"{array.mean():{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def condition_of(intervention: str) -> str:
    return intervention.partition("+")[2] or CLEAN


def concept_rows(table: pandas.DataFrame, model: str, level: str) -> pandas.DataFrame:
    """The concepts of a level on the class that each moves most in clean images, under every condition."""
    rows = table[(table["model"] == model) & (table["level"] == level)].copy()
    rows["condition"] = rows["intervention"].map(condition_of)
    rows["size"] = rows["effect"].abs()
    clean = rows[rows["condition"] == CLEAN].sort_values("size", ascending=False, kind="stable")
    return rows.merge(clean.drop_duplicates("node")[["node", "class"]], on=["node", "class"])


def level_values(tables: list[pandas.DataFrame], model: str, level: str, condition: str) -> dict[str, list[float]]:
    """Per seed: the strongest concept's effect, the mean size, and how many intervals leave 0 out."""
    found: dict[str, list[float]] = {"strongest": [], "mean": [], "nonzero": []}
    for table in tables:
        rows = concept_rows(table, model, level)
        own = rows[rows["condition"] == condition]
        clean = rows[rows["condition"] == CLEAN]
        best = clean.loc[clean["size"].idxmax(), "node"]
        found["strongest"].append(float(own.loc[own["node"] == best, "effect"].iloc[0]))
        found["mean"].append(float(own["size"].mean()))
        found["nonzero"].append(float(((own["low"] > 0) | (own["high"] < 0)).sum()))
    return found


def effects_table(tables: list[pandas.DataFrame], levels: list[str], conditions: list[str]) -> str:
    titles = ["model", "level", "zero-out in images that are", "strongest concept", "mean size", "intervals without 0"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for model, title in MODELS.items():
        for level in levels:
            for condition in conditions:
                values = level_values(tables, model, level, condition)
                cells = [title, f"`{level}`", condition, interval(values["strongest"], signed=True)]
                cells += [interval(values["mean"]), f"{np.mean(values['nonzero']):.1f} of 16"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement_table(runs: list[RunDirectory], levels: list[str]) -> str:
    lines = ["| model | level | same answer through the autoencoder | mean KL divergence |", "|---|---|---|---|"]
    for model, title in MODELS.items():
        for position, level in enumerate(levels):
            found = [findings(run, model)["levels"][position]["agreement"] for run in runs]
            shares = [entry["same_answer"]["value"] for entry in found]
            divergences = [entry["divergence"]["value"] for entry in found]
            lines.append(f"| {title} | `{level}` | {interval(shares)} | {interval(divergences, 4)} |")
    return "\n".join(lines)


def image_table(tables: list[pandas.DataFrame], runs: list[RunDirectory], conditions: list[str]) -> str:
    lines = [
        "| model | images | other answer than to the clean image | largest mean effect on a class |",
        "|---|---|---|---|",
    ]
    for model, title in MODELS.items():
        for condition in conditions[1:]:
            changed = [findings(run, model)["changed_answers"][condition]["value"] for run in runs]
            largest = []
            for table in tables:
                own = table[(table["model"] == model) & table["level"].isna() & (table["intervention"] == condition)]
                largest.append(float(own.loc[own["effect"].abs().idxmax(), "effect"]))
            lines.append(f"| {title} | {condition} | {interval(changed, 2)} | {interval(largest, signed=True)} |")
    return "\n".join(lines)


def detection_table(detections: list[pandas.DataFrame]) -> str:
    lines = [
        "| model | attack | detector | level | area under the ROC curve, seed by seed | mean | over confidence |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = detections[0][["model", "attack", "detector", "level"]].to_dict("records")
    for key in keys:
        rows = [_only(table, key) for table in detections]
        each = ", ".join(f"{row['auc']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in rows)
        level = f"`{key['level']}`" if isinstance(key["level"], str) else ""
        over = interval([row["over_confidence"] for row in rows], 2, signed=True) if level else ""
        cells = [MODELS[key["model"]], key["attack"], key["detector"], level, each]
        cells += [interval([row["auc"] for row in rows], 2), over]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _only(table: pandas.DataFrame, key: dict[str, Any]) -> dict[str, Any]:
    chosen = np.ones(len(table), bool)
    for name, value in key.items():
        chosen &= table[name].isna() if not isinstance(value, str) else (table[name] == value)
    return table[chosen].to_dict("records")[0]


def accuracy_table(runs: list[RunDirectory]) -> str:
    lines = ["| model | training contexts | shuffled contexts | saliency in mask |", "|---|---|---|---|"]
    columns: list[Callable[[dict], float]] = [
        lambda model: model["splits"]["test"]["accuracy"]["value"],
        lambda model: model["splits"]["test_shuffled"]["accuracy"]["value"],
        lambda model: model["splits"]["test_shuffled"]["mask_energy"]["value"],
    ]
    for name, title in MODELS.items():
        cells = [interval([read(run.metrics["models"][name]) for run in runs], 2) for read in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    runs = [finished_run(seed, arguments.runs) for seed in arguments.seeds]
    tables = [pandas.read_parquet(run.path / "effects.parquet") for run in runs]
    detections = [pandas.read_parquet(run.path / "detection.parquet") for run in runs]
    first = findings(runs[0], "plain")
    conditions, levels = first["conditions"], [level["layer"] for level in first["levels"]]
    seeds = ", ".join(map(str, arguments.seeds))
    pictures = {
        f"effects_{model}_{name}.png": run_picture
        for model in MODELS
        for name in ("effects", f"map_{levels[-1]}_fgsm", "detection")
        if (run_picture := runs[0].path / "effects" / model / f"{name}.png").exists()
    }
    for name, source in pictures.items():
        (DOCS / name).write_bytes(source.read_bytes())
    settings, degrees = first["effects"], len(runs) - 1
    eps, share = settings["attacks"][0]["eps"], settings["masking"]["share"]
    text = f"""# Causal effects on the embedded data set

<!-- Written by benchmarks/effect_study.py. -->

`.venv/bin/python benchmarks/effect_study.py` trains and measures `configs/textured_digits_effects.yaml` for the seeds
{seeds} of data, weights and order, and writes this page. [effects.md](effects.md) says what the numbers mean.
{first["n"]} images of the test split with shuffled contexts; effects are changes of a probability, equation 1, with the
answer through the untouched autoencoder as reference; attacks of size {eps} of the range of a pixel. Numbers are means
over the seeds with the 95 % interval of that mean by Student's t with {degrees} degrees of freedom, which does not know
that a share ends at 1; intervals over the images of a seed are in every run's `effects.parquet`.

{accuracy_table(runs)}

## Concepts

How well the models answer through their autoencoders:

{agreement_table(runs, levels)}

Setting a concept to zero, for the class that it moves most in clean images. "Strongest concept" is the one with the
largest effect in clean images; it is chosen on the same images, which makes the clean row of that column too large by a
little. "Mean size" is over the absolute effects of all 16 concepts.

{effects_table(tables, levels, conditions)}

## Images

Masking {share:.0%} of the area in blocks, and attacks, as interventions of their own:

{image_table(tables, runs, conditions)}

## Telling attacked from clean images

The images are divided into a part on which detectors are fitted, one on which their threshold is chosen, and one on
which they are measured; an image and its attacked version are always in the same part. `low_confidence` is 1 minus the
largest probability, which takes for granted that attacks make a model less sure; `confidence` is the same number with
its direction learned on the first part, as the other detectors learn theirs. "Over confidence" is the difference of the
areas to that of `confidence`.

{detection_table(detections)}

## Pictures of seed {arguments.seeds[0]}

"""
    text += "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures)
    (DOCS / "effects_measured.md").write_text(text + "\n", encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "seeds": arguments.seeds,
        "effects": {
            model: {
                level: {condition: level_values(tables, model, level, condition) for condition in conditions}
                for level in levels
            }
            for model in MODELS
        },
        "detection": [json.loads(table.to_json(orient="records")) for table in detections],
    }
    (RESULTS / "effect_study.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
