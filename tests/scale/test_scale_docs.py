"""What docs/scale.md says about explaining and measuring many images."""

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## Explaining many images")[2].partition("\n## ")[0]
EFFECTS = DOCUMENT.partition("## Effects in many images")[2].partition("\n## ")[0]


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
