"""The examples of the README do what they say."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


def test_the_library_example_runs(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    images = random.random((8, 48, 48, 1), dtype=np.float32)
    masks = np.zeros((8, 48, 48, 1), "float32")
    masks[:, 10:30, 10:30] = 1
    names = {
        "images": images,
        "labels": np.arange(8),
        "validation_images": images[:2],
        "validation_labels": np.arange(2),
        "masks": masks,
        "has_mask": np.ones(8, "float32"),
    }
    monkeypatch.chdir(tmp_path)
    _, code = blocks("python")
    exec(compile(code.replace("epochs=25", "epochs=1"), "README.md", "exec"), names)
    assert names["maps"].shape == (8, 48, 48, 1)
    parts = names["parts"]
    assert parts.maps.sum((1, 2, 3)) + parts.bias == pytest.approx(parts.logits, rel=1e-4)
    for file in ("model.keras", "plain.keras"):
        loaded = keras.models.load_model(tmp_path / file)
        assert loaded.predict(images, verbose=0) == pytest.approx(names["model"].predict(images, verbose=0), abs=1e-6)


def test_the_explaining_example_runs():
    names = {"photos": np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")}
    code, _ = blocks("python")
    exec(compile(code, "README.md", "exec"), names)
    assert names["maps"].shape == (2, 64, 64, 3)
    assert names["where"].shape == (2, 64, 64, 1)
    parts = names["parts"]
    assert parts.maps.sum((1, 2, 3)) + parts.bias == pytest.approx(parts.logits, rel=1e-3, abs=1e-5)


def test_the_commands_of_the_readme_are_accepted(run_command):
    commands = re.findall(
        r"\.venv/bin/tfcausal (run configs/\S+.*?)(?:\s+#.*)?$", "\n".join(blocks("sh")), re.MULTILINE
    )
    assert len(commands) >= 2
    for command in commands:
        words = [word for word in command.split() if word != "--dry-run"]
        assert "version: 1" in run_command(*words, "--dry-run").stdout
