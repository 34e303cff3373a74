"""The command `tfcausal serve-client`."""

import json
import subprocess
import sys

import pytest


def record_of(folder):
    return json.loads((folder / "explanations.json").read_text())


def test_the_command_by_grpc(served, messy, run_command, tmp_path):
    result = run_command(
        "serve-client", "cfcn", messy, "--address", served.address, "--batch", 2, check=False, cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stdout == "Answered 3 of 6 images: explanations/cfcn\n"
    assert "1_text.png: Image 0 of `image_bytes` cannot be used" in result.stderr
    assert "asking cfcn" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(record_of(tmp_path / "explanations/cfcn")["failed"]) == 3
    assert len(list((tmp_path / "explanations/cfcn").glob("*.png"))) == 3


def test_the_command_by_rest_needs_neither_tensorflow_nor_the_extra(served, shelf, pictures, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(shelf.labels), encoding="utf-8")
    words = ["tfcausal", "serve-client", "pets", str(pictures), "--url", served.url, "--label", "stable"]
    words += ["--target", "dog", "--labels", str(tmp_path / "labels.txt"), "--output", str(tmp_path / "out")]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'keras', 'tensorflow_serving', 'grpc')))\n"
        f"sys.argv = {words!r}\n"
        "from tfcausal.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"Answered 3 of 3 images: {tmp_path / 'out'}\n"
    assert {one["explained_name"] for one in record_of(tmp_path / "out")["images"]} == {"dog"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--url", "http://localhost:PORT"], "No TensorFlow Serving server takes requests at http://localhost:PORT"),
        (["--address", "localhost:8500", "--rest"], "--address is that of gRPC; --rest and --url go without it"),
        (["--batch", "0"], "Invalid value for '--batch'"),
        (["--labels", "missing.txt"], "--labels missing.txt: the file cannot be read"),
        (["--url", "http://[::1:8501"], "expected an address such as http://localhost:8501"),
        (["--timeout", "inf"], "expected seconds, at most 86400"),
        (["--version", "1", "--label", "stable"], "expected a version or a label"),
    ],
)
def test_bad_command_lines_end_without_a_traceback(pictures, run_command, free_port, tmp_path, words, text):
    words = [word.replace("PORT", str(free_port)) for word in words]
    result = run_command("serve-client", "pets", pictures, *words, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert text.replace("PORT", str(free_port)) in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_shows_examples_of_both_ways(run_command):
    text = " ".join(run_command("serve-client", "--help").stdout.split())
    for example in ("serve-client digits images/", "--address serving.example:8500", "--url http://", "--label stable"):
        assert example in text
