"""What docs/training.md says."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import tfcausal
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.models.rrr import RRRModel

DOCUMENT = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")


def folder_of_images(path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for number in range(20):
            pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            mask = np.zeros((24, 24), np.uint8)
            mask[6:18, 6:18] = 255
            for kind, content in (("images", pixels), ("masks", mask)):
                file = path / kind / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(file)


def test_the_complete_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    folder_of_images(tmp_path / "my" / "images")
    monkeypatch.chdir(tmp_path)
    for old, new in {"epochs = 30": "epochs = 2", "(96, 96)": "(24, 24)", "(32, 64, 64, 96)": "(4, 4, 4, 4)"}.items():
        assert old in code
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, "training.md", "exec"), names)
    assert len(names["history"].history["val_mask_energy"]) == 2
    assert len(list((tmp_path / "my" / "snapshots").glob("*.png"))) == 2
    assert names["maps"].shape == names["images"].shape
    assert keras.models.load_model("my/classifier.keras").output_shape == (None, 2)


@pytest.mark.parametrize("model", [PPIModel, CFCNModel, GAINModel, RRRModel])
def test_every_name_in_the_log_is_explained(model):
    section = DOCUMENT.partition("## What the log says")[2].partition("\n## ")[0]
    for name in ("classification_loss", *model.reported):
        assert f"| `{name}` |" in section, name


def test_what_is_named_can_be_imported():
    named = re.findall(r"`(\w+Model|\w+Metrics|\w+Guard|\w+Schedule|\w+Training|\w+Snapshots|choose_\w+)\b", DOCUMENT)
    assert len(set(named)) >= 8
    for name in named:
        assert getattr(tfcausal, name) is not None
