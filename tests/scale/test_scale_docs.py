"""What docs/scale.md says about explaining."""

import re
from pathlib import Path

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## Explaining many images")[2].partition("\n## ")[0]


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
    assert {path.name for path in Path("explanations/photos").iterdir() if path.name[0] != "."} == {
        name.strip("/") for name in re.findall(r"^\| `(.*?)` \|", SECTION, re.MULTILINE)
    }


def test_every_option_of_the_engine_is_there(run_command):
    text = run_command("explain", "--help").stdout
    for option in ("--engine", "--workers", "--address", "--block", "--column"):
        assert option in text
        assert option in SECTION, option
