"""What docs/scale.md says about explaining and measuring many images."""

import json
import re
from pathlib import Path

import pytest

from tfcausal.scale.blocks import block_size

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## Explaining many images")[2].partition("\n## ")[0]
EFFECTS = DOCUMENT.partition("## Effects in many images")[2].partition("\n## ")[0]


COSTS = DOCUMENT.partition("## What it costs")[2].partition("\n## ")[0]
MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "scale.json").read_text())


def written(section):
    """What the table of a section says is in the output folder."""
    return {name.strip("/") for name in re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)}


def found(folder):
    return {path.name for path in Path(folder).iterdir() if path.name[0] != "."}


def test_the_results_are_read_as_it_says(explain_many, small_model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explain_many(small_model, images, Path("explanations/photos"))
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    assert "> 0.9" in code
    names: dict = {}
    exec(compile(code.replace("> 0.9", "> 0.0"), "scale.md", "exec"), names)
    assert len(names["rows"]) == 20
    assert names["saliency"].shape == (8, 6, 3)
    for column in names["rows"].columns:
        if not column.startswith("explained"):
            assert f"`{column}`" in SECTION, column
    assert found("explanations/photos") == written(SECTION)


def test_the_effects_are_read_as_it_says(
    measure_many, small_model, small_concepts, images, tmp_path, monkeypatch, effects_in
):
    monkeypatch.chdir(tmp_path)
    measure_many(small_model, small_concepts, images, Path("effects/photos"))
    (code,) = re.findall(r"```python\n(.*?)```", EFFECTS, re.DOTALL)
    names: dict = {}
    exec(compile(code, "scale.md", "exec"), names)
    rows, _, table = effects_in(tmp_path / "effects" / "photos")
    assert len(names["fooled"]) == (rows["fgsm_class"] != rows["predicted_class"]).sum() > 0
    assert names["of_masking"].mean(axis=0).tolist() == pytest.approx(
        table[table["intervention"] == "masking"]["effect"].tolist(), rel=1e-5
    )
    assert set(names["of_concepts"]) == {"zero_out", "zero_out+masking", "zero_out+fgsm"}
    assert found("effects/photos") == written(EFFECTS)
    for column in rows.columns:
        assert f"`{column}`" in EFFECTS or column.startswith(("masking", "fgsm")), column


@pytest.mark.parametrize("verb", ["explain", "effects"])
def test_every_option_of_the_engine_is_there(run_command, verb):
    text = run_command(verb, "--help").stdout
    for option in ("--engine", "--workers", "--address", "--block", "--column"):
        assert option in text
        assert option in SECTION, option


def test_the_concepts_of_effects_are_named(run_command):
    assert "--concepts" in run_command("effects", "--help").stdout
    assert "--concepts" in EFFECTS


def test_measured_numbers_are_those_of_the_benchmark():
    text = " ".join(COSTS.split())
    both = zip(MEASURED["explain"]["rows"], MEASURED["effects"]["rows"], strict=True)
    for name, rows in zip(("one process", "Ray, 1 worker", "Ray, 2 workers"), both, strict=True):
        (line,) = (line for line in COSTS.splitlines() if line.startswith(f"| {name}"))
        numbers = [f"{value:.{digits}f}" for row in rows for value, digits in _speed(row)]
        largest = max(row["memory"][place]["peak"] for row in rows for place in ("driver", "actors"))
        assert [cell.strip().removesuffix(" s") for cell in line.split("|")[2:-1]] == [*numbers, f"{largest:.0f}"]
    assert f"Two workers have {MEASURED['explain']['ratio']:.2f} times the throughput" in text
    one, two = (row["images_per_second"] for row in MEASURED["memory"])
    assert f"one process explained {one:,.0f} images a second, two workers {two:,.0f}" in text
    (alone, *_), (_, actors, driver) = (
        [f"{place['at 10 %']:.0f} {{}} {place['at 100 %']:.0f}" for place in (row["memory"][name] for name in names)]
        for row, names in zip(MEASURED["memory"], (("driver",), ("driver", "actors", "driver")), strict=True)
    )
    for numbers, words in ((alone, "MiB after a tenth and"), (actors, "and"), (driver, "and")):
        assert numbers.format(words) in text
    driver_blocks = MEASURED["driver_blocks_per_second"]
    assert f"{driver_blocks:,.0f} a second" in text


def test_the_arithmetic_is_right():
    text = " ".join(COSTS.split())
    maps, effects = (MEASURED[name]["rows"][-1]["images_per_second"] / 2 for name in ("explain", "effects"))
    assert f"here {maps:.2f} for maps and {effects:.2f} for effects on a core" in text
    blocks, small = round(MEASURED["driver_blocks_per_second"]), MEASURED["memory"][1]["images_per_second"] / 2
    assert f"{blocks:,} * 660 / {maps:.2f}, or {round(blocks * 660 / maps, -4):,.0f} workers" in text
    assert f"{blocks:,} * 1,024 / {round(small, -1):,.0f}, or {round(blocks * 1024 / small, -2):.0f} workers" in text
    assert 650 < block_size(None, 224 * 224 * 4, 8) <= 668
    for name, rate in (("maps", 2.15), ("effects", 0.68)):
        hours = 1e6 / rate / 3600
        label = f"| {name}: core hours, images / {rate} / 3600 |"
        assert f"{label} {hours:.0f} |" in text
        assert f"| {round(1000 * hours, -3):,.0f} |" in text
    hours = 1e6 / 4.3 / 3600
    assert f"| maps on 2 cores | {hours:.0f} hours | {1000 * hours / 24 / 365.25:.1f} years |" in text
    assert f"| maps on 2,000 cores | {hours / 1000 * 60:.0f} minutes | {hours:.0f} hours |" in text
    assert f"| {224 * 224 * 4 * 1e6 / 1e12:.1f} TB | {224 * 224 * 4 * 1e9 / 1e12:.0f} TB |" in text
    assert f"| {-(-1_000_000 // 660):,} | {1e9 / 660 / 1e6:.1f} million |" in text


def _speed(row):
    return (row["images_per_second"], 2), (row["seconds"], 0)
