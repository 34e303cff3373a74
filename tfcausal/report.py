"""What a run found, as a table for the terminal and as one self-contained HTML page. Reads the run directory only."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from rich.table import Table

from tfcausal.config import dump_config
from tfcausal.report_effects import data_uri, effects_page
from tfcausal.runs import RunDirectory, write_atomic

if TYPE_CHECKING:
    import numpy as np

_SAMPLES_IN_SUMMARY = 4


@dataclass(frozen=True)
class Column:
    """A column of the headline table.

    Attributes:
        title: Its title.
        meaning: What it says and which direction is better.
        cells: One text per model.
    """

    title: str
    meaning: str
    cells: list[str]


def headline(metrics: dict[str, Any]) -> list[Column]:
    """The columns of the headline table; those for which a run has no data are left out.

    Args:
        metrics: As in `metrics.json`.

    Returns:
        The columns, the models' names first.
    """
    models, split = _models(metrics), metrics["headline_split"]
    shuffled = split == "test_shuffled"

    def cells(name: str, measure: str) -> list[str]:
        return [_number(model["splits"][name][measure]["value"]) for model in models.values()]

    def beside(measure: str, reference: str) -> list[str]:
        return [f"{a} ({b})" for a, b in zip(cells(split, measure), cells(split, reference), strict=True)]

    groups = " and ".join(metrics["group_attributes"])
    columns = [Column("model", "", list(models))]
    columns.append(
        Column(
            "accuracy, training contexts" if shuffled else "accuracy",
            "Accuracy on test images" + (" whose contexts go with the label as in training." if shuffled else "."),
            cells("test", "accuracy"),
        )
    )
    if shuffled:
        meaning = "Accuracy on the same test digits with contexts that say nothing about the label."
        columns.append(Column("accuracy, shuffled contexts", meaning, cells(split, "accuracy")))
    columns.append(
        Column(
            "worst-group accuracy",
            f"Accuracy of the worst group of at least {metrics['minimum_group_size']} test images; "
            f"groups are by {groups}.",
            [_number(model["worst_group"]["value"]) for model in models.values()],
        )
    )
    if any(model["splits"][split]["mask_energy"]["n"] for model in models.values()):
        columns.append(
            Column(
                "saliency in mask (chance)",
                "Share of positive saliency inside the true mask; in brackets what a uniform map has. "
                "Higher is better.",
                beside("mask_energy", "mask_energy_chance"),
            )
        )
    columns.append(
        Column(
            "deletion (random)",
            "Area under the predicted class's probability while pixels are deleted, most salient first; in brackets "
            "the same with pixels in random order. Lower than random means that the map shows what the model uses.",
            beside("deletion", "deletion_random"),
        )
    )
    return columns


def headline_table(metrics: dict[str, Any]) -> Table:
    """The headline table for a terminal.

    Args:
        metrics: As in `metrics.json`.
    """
    columns = headline(metrics)
    table = Table(title=f"Test images; saliency and deletion on the split “{_spoken(metrics['headline_split'])}”")
    for column in columns:
        table.add_column(column.title, justify="left" if column.title == "model" else "right")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def write_report(run: RunDirectory) -> None:
    """Write `report.html` of a run whose models are trained and evaluated.

    Args:
        run: The run directory, with metrics, maps and histories.
    """
    # Importing matplotlib and zarr takes most of a second; the table above needs neither.
    import zarr

    from tfcausal import figures

    config, metrics = run.config, run.metrics
    names, columns = metrics["model_names"], headline(metrics)
    split = metrics["headline_split"]
    maps = zarr.open_group(run.maps_path, mode="r")
    samples = _samples(maps, split, names)
    splits = {name: model["splits"][split] for name, model in _models(metrics).items()}
    page = {
        "title": config.report.title or run.name,
        "columns": columns,
        "rows": list(zip(*(column.cells for column in columns), strict=True)),
        "metrics": metrics,
        "summary": data_uri(_summary(metrics, samples, names)),
        "models": names,
        "samples": [_shown(sample, names) for sample in samples],
        "histories": data_uri(figures.histories({name: run.history(name) for name in names})),
        "deletion": data_uri(
            figures.deletion_curves(
                {name: (values["deletion_curve"], values["deletion_random_curve"]) for name, values in splits.items()}
            )
        ),
        "effects": effects_page(run.path, names),
        "method": config.evaluation.saliency,
        "classes": list(metrics["data"]["splits"]["train"]["classes"]),
        "contexts": metrics["data"]["splits"]["train"]["context_agreement"] is not None,
        "config": dump_config(config),
        "environment": run.environment,
        "seconds": {name: float(run.history(name)["seconds"].sum()) for name in names},
    }
    engine = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(number=_number, interval=_interval, spoken=_spoken)
    write_atomic(run.report_path, engine.get_template("report.html.j2").render(page))


def _template(name: str) -> str:
    return resources.files("tfcausal").joinpath(name).read_text(encoding="utf-8")


def _models(metrics: dict[str, Any]) -> dict[str, Any]:
    """The models in the order of the configuration; JSON has them in alphabetical order."""
    return {name: metrics["models"][name] for name in metrics["model_names"]}


@dataclass(frozen=True)
class _Sample:
    name: str
    label: str
    image: np.ndarray
    mask: np.ndarray | None
    maps: dict[str, np.ndarray]
    predicted: dict[str, tuple[str, float]]


def _samples(maps: Any, split: str, names: list[str]) -> list[_Sample]:
    stored, group = maps["samples"], maps[f"splits/{split}"]
    classes = group.attrs["class_names"]
    low, high = stored.attrs["value_range"]
    samples = []
    for position, index in enumerate(stored["indices"][:].tolist()):
        probabilities = {name: group[f"probabilities/{name}"][index] for name in names}
        samples.append(
            _Sample(
                name=group.attrs["names"][index],
                label=classes[int(group["labels"][index])],
                image=(stored["images"][position] - low) / (high - low),
                mask=stored["masks"][position][..., 0] if stored["has_mask"][position] else None,
                maps={name: group[f"maps/{name}"][index] for name in names},
                predicted={name: (classes[int(p.argmax())], float(p.max())) for name, p in probabilities.items()},
            )
        )
    return samples


def _summary(metrics: dict[str, Any], samples: list[_Sample], names: list[str]) -> bytes:
    from tfcausal import figures

    split, models = metrics["headline_split"], metrics["models"]
    bars = {"test": {name: models[name]["splits"]["test"]["accuracy"] for name in names}}
    titles = {"test": "accuracy"}
    if split == "test_shuffled":
        titles["test"] = "accuracy, contexts as in training"
        bars["shuffled"] = {name: models[name]["splits"][split]["accuracy"] for name in names}
        titles["shuffled"] = "accuracy, contexts shuffled"
    if all(models[name]["splits"][split]["mask_energy"]["n"] for name in names):
        bars["energy"] = {
            name: {
                **models[name]["splits"][split]["mask_energy"],
                "chance": models[name]["splits"][split]["mask_energy_chance"]["value"],
            }
            for name in names
        }
        titles["energy"] = "positive saliency inside the cause (dotted: chance)"
    shown = samples[:_SAMPLES_IN_SUMMARY]
    return figures.summary(
        [(sample.image, sample.mask) for sample in shown],
        {name: [sample.maps[name] for sample in shown] for name in names},
        bars,
        titles,
    )


def _shown(sample: _Sample, names: list[str]) -> dict[str, Any]:
    from tfcausal import figures

    return {
        "name": sample.name,
        "label": sample.label,
        "image": data_uri(figures.as_png(figures.outlined(sample.image, sample.mask))),
        "has_mask": sample.mask is not None,
        "overlays": {
            name: {
                "picture": data_uri(figures.as_png(figures.overlay(sample.image, sample.maps[name]))),
                "predicted": sample.predicted[name][0],
                "probability": sample.predicted[name][1],
                "right": sample.predicted[name][0] == sample.label,
            }
            for name in names
        },
    }


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


def _interval(estimate: dict[str, Any]) -> str:
    return f"{_number(estimate['value'])} [{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _spoken(name: str) -> str:
    return name.replace("_", " ")
