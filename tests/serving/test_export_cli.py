import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def model_file(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "zoo.keras"
    classifier(nested=False).save(path)
    return path


def test_a_run_is_exported_and_checked(small_effects, run_command, tmp_path):
    words = [
        "export",
        small_effects,
        "--model",
        "plain",
        "--check",
        "--name",
        "digits",
        "--option",
        "fallback=gradient",
    ]
    result = run_command(*words, "--intended-use", "To be looked at.", cwd=tmp_path)
    path = tmp_path / "saved_models" / "digits" / "1"
    signatures = "serving_default, explain, predict_image_bytes, explain_image_bytes, effects_block1_conv, effects"
    assert f"Exported {signatures}: saved_models/digits/1\n" in result.stdout
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 4 + 5 + 4 + 5 + 3 + 3
    assert {row[-1].strip() for row in rows} == {"same"}
    assert result.stderr == ""
    card = json.loads((path / "card.json").read_text())
    assert card["compared"]["batch_sizes"] == [1, 3, 8]
    assert card["compared"]["largest"] <= 1e-5
    assert card["intended_use"] == "To be looked at."
    assert card["explanation"]["options"] == {"fallback": "gradient"}


def test_a_model_file_with_labels(model_file, run_command, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\nKuh ü\n", encoding="utf-8")
    words = ["export", model_file, "--labels", "labels.txt", "--method", "grad_cam", "--layer", "stem"]
    result = run_command(*words, cwd=tmp_path)
    assert "Pixels are given as 0 to 1" in result.stderr
    assert result.stdout.endswith("explain_image_bytes: saved_models/zoo/1\n")
    assert (tmp_path / "saved_models/zoo/1/assets/labels.txt").read_text(encoding="utf-8") == "cat\ndog\nKuh ü\n"
    assert json.loads((tmp_path / "saved_models/zoo/1/card.json").read_text())["explanation"]["method"] == "grad_cam"
    again = run_command("export", model_file, "--labels", "a, b,c", "--version", 1, check=False, cwd=tmp_path)
    assert again.returncode == 1
    assert "saved_models/zoo/1 exists, and a version is never replaced" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["MODEL", "--method", "score_cam"], "are computed by a library in Python, which a server does not have"),
        (["MODEL", "--labels", "missing.txt"], "--labels missing.txt: the file cannot be read"),
        (["MODEL", "--option", "patch"], "--option takes KEY=VALUE"),
        (["missing.keras"], "received nothing at that place"),
    ],
)
def test_bad_command_lines_end_without_a_traceback(model_file, run_command, tmp_path, words, text):
    words = [str(model_file) if word == "MODEL" else word for word in words]
    result = run_command("export", *words, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_shows_examples_and_imports_no_tensorflow(run_command):
    text = run_command("export", "--help").stdout
    for example in ("tfcausal export runs/quickstart", "--labels cat,dog", "docker run"):
        assert example in text
    code = (
        "import sys, tfcausal.cli, tfcausal.serving.names; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(tfcausal.cli.app, ['export', '--help']).exit_code == 0; "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras', 'matplotlib', 'pandas') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
