"""`tfcausal effects` and the section `effects` of a run, as a user meets them: by the installed command."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser

import pandas
import pytest
import yaml
from PIL import Image
from rich.console import Console

from tfcausal.effect_study.command import measure_effects
from tfcausal.effect_study.request import Request, settings
from tfcausal.effects.store import finished_models
from tfcausal.errors import RunError
from tfcausal.progress import ConsoleProgress
from tfcausal.report import write_report
from tfcausal.runs import RunDirectory

QUICK = ("--set", "autoencoder.concepts=3", "--set", "autoencoder.epochs=2", "--set", "images=12")
QUICK = (*QUICK, "--set", "resamples=100", "--set", "maps.images=2")
DIGITS = {
    "version": 1,
    "name": "digits",
    "data": {
        "source": "textured_digits",
        "image_size": 16,
        "channels": 1,
        "digit_width": [10, 14],
        "train_size": 60,
        "validation_size": 20,
        "test_size": 60,
    },
    "backbone": {"name": "all_convolutional", "filters": [6, 6], "strides": [2, 1], "dropout": 0.0},
    "training": {"epochs": 1, "batch_size": 20},
    "models": {"plain": {"method": "plain"}, "cfcn": {"method": "cfcn"}},
    "evaluation": {"deletion_steps": 2, "deletion_images": 4, "minimum_group_size": 2},
    "report": {"images": 2},
    "effects": {
        "levels": ["block2_conv"],
        "autoencoder": {"concepts": 3, "hidden": 6, "epochs": 2},
        "evidence": True,
        "attacks": ["fgsm", "pgd"],
        "images": 50,
        "resamples": 100,
        "maps": {"images": 2, "nodes": 1},
        "detection": {},
    },
}


@pytest.fixture(scope="module")
def digits_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "digits.yaml"
    path.write_text(yaml.safe_dump(DIGITS, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory, digits_config, run_command):
    """A run that trains two models and measures their effects."""
    runs = tmp_path_factory.mktemp("runs")
    run_command("run", digits_config, "--runs", runs)
    return runs / "digits"


@pytest.fixture
def copied(small_run, tmp_path):
    """A finished run without effects, to write to."""
    path, _ = small_run
    shutil.copytree(path, tmp_path / "small")
    return tmp_path / "small"


class Page(HTMLParser):
    """The pictures of a page, and what it would fetch from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.text, self.pictures, self.outside = path.read_text(encoding="utf-8"), [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


def test_a_first_try_needs_no_settings(run_command, copied):
    """But for the concepts: the small run has too few channels for 16."""
    result = run_command("effects", copied, "--model", "plain", *QUICK)
    assert "Levels: block1_conv, block2_conv" in result.stderr
    assert "block2_conv: Through the autoencoder" in result.stderr
    for text in ("clean", "masking", "fgsm", "block1_conv", f"Effects: {copied / 'effects.parquet'}"):
        assert text in result.stdout
    rows = pandas.read_parquet(copied / "effects.parquet")
    assert set(rows["model"]) == {"plain"}
    assert set(rows["class_name"]) == set("0123456789")
    assert set(rows["n"]) == {12}
    assert RunDirectory.open(copied).status.state == "complete"
    assert "<h2>Causal effects</h2>" in (copied / "report.html").read_text(encoding="utf-8")
    assert "gpu" not in result.stderr.lower()  # TensorFlow's own messages

    again = run_command("effects", copied, "--model", "plain", *QUICK)
    assert "are measured already" in again.stderr
    table = result.stdout[result.stdout.index("┏") :]
    assert table in again.stdout

    other = run_command("effects", copied, "--model", "plain", "--set", "images=9", check=False)
    assert other.returncode == 1
    assert "measured otherwise" in other.stderr


def test_the_section_of_a_run_is_measured_for_all_of_its_models_and_reported(digits_run):
    run = RunDirectory.open(digits_run)
    assert run.status.state == "complete"
    assert finished_models(digits_run) == ["cfcn", "plain"]
    rows = pandas.read_parquet(digits_run / "effects.parquet")
    assert set(rows["intervention"]) == {
        *("masking", "evidence", "fgsm", "pgd"),
        *("zero_out", "zero_out+masking", "zero_out+evidence", "zero_out+fgsm", "zero_out+pgd"),
    }
    detection = pandas.read_parquet(digits_run / "detection.parquet")
    assert set(zip(detection["model"], detection["attack"], detection["detector"], strict=True)) == {
        (model, attack, detector)
        for model in ("plain", "cfcn")
        for attack in ("fgsm", "pgd")
        for detector in ("low_confidence", "confidence", "effects", "concept_map")
    }


def test_the_report_has_the_effects_in_it_and_nothing_from_outside(digits_run):
    page = Page(digits_run / "report.html")
    assert page.outside == []
    assert "<script" not in page.text
    pictures = [picture for picture in page.pictures if picture["alt"].startswith(("plain:", "cfcn:"))]
    assert len(pictures) == 2 * 5  # bars, a node, a concept-weighted and a pixel-wise map, ROC curves
    for picture in pictures:
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"), validate=True)
        Image.open(io.BytesIO(content)).load()
    text = " ".join(page.text.split())
    assert text.count("Through the autoencoder the network gives the same answer on") == 2
    for words in ("50 images of the split “test”", "An effect is one in the model", "minus that of confidence"):
        assert words in text
    rows = pandas.read_parquet(digits_run / "effects.parquet")
    clean = rows[(rows["model"] == "plain") & (rows["intervention"] == "zero_out")]
    strongest = clean.loc[clean["effect"].abs().idxmax()]
    cell = f"{strongest['effect']:+.2g} [{strongest['low']:.2g}, {strongest['high']:.2g}]"  # split() takes the no-break
    assert f"<td>block2_conv</td><td>{strongest['node']}</td><td>{strongest['class_name']}</td><td>{cell}" in text


def test_the_section_is_shown_only_where_effects_were_measured(small_run):
    path, _ = small_run
    assert "Causal effects" not in (path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_table_is_told_and_not_half_shown(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "digits")
    path = tmp_path / "digits" / "effects.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    before = (tmp_path / "digits" / "report.html").read_bytes()
    with pytest.raises(Exception, match=r"effects\.parquet: expected a parquet table; it cannot be read"):
        write_report(RunDirectory.open(tmp_path / "digits"))
    assert (tmp_path / "digits" / "report.html").read_bytes() == before


def test_a_killed_measurement_goes_on_and_ends_with_the_same_table(command, run_command, copied, tmp_path):
    """kill -9 as soon as the first of two levels is there; a second measurement elsewhere is left alone."""
    words = ["effects", str(copied), "--model", "plain", *QUICK]
    run_command(*words, "--output", tmp_path / "whole")
    killed = tmp_path / "killed"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [*command, *words, "--output", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    first = killed / "effects" / "plain" / "levels" / "block1_conv"
    deadline = time.monotonic() + 200
    while not (first / "effects.parquet").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "effects.parquet").exists()
    before = (first / "autoencoder.keras").stat().st_mtime_ns
    run_command(*words, "--output", killed)
    assert (first / "autoencoder.keras").stat().st_mtime_ns == before
    tables = [pandas.read_parquet(root / "effects.parquet") for root in (tmp_path / "whole", killed)]
    assert tables[0].equals(tables[1])
    assert not [path for path in killed.rglob("*") if "partial" in path.name or "unfinished" in path.name]
    assert not (copied / "effects").exists()


def test_help_shows_examples(run_command):
    text = run_command("effects", "--help").stdout
    for example in (
        "tfcausal effects runs/quickstart --model plain",
        "--set levels=",
        "--config configs/effects_vgg16",
    ):
        assert example in text


def test_dry_run_prints_the_resolved_section(run_command, copied):
    result = run_command("effects", copied, "--set", "attacks=[pgd]", "--dry-run")
    resolved = yaml.safe_load(result.stdout)
    assert resolved["version"] == 1
    assert resolved["effects"]["images"] == 64
    assert resolved["effects"]["attacks"] == [{"name": "pgd", "eps": 0.3, "steps": 10, "eps_step": None}]
    assert not (copied / "effects").exists()


BAD_INPUT = [
    (["RUN", "--model", "plian"], "Did you mean `plain`?"),
    (["RUN", "--set", "image=3"], "effects.image: unknown key. Did you mean `images`?"),
    (["RUN", "--set", "split=balanced"], "effects.split: expected one of `train`,"),
    (["RUN", "--config", "none.yaml"], "none.yaml: expected a configuration file; there is none"),
    (["RUN", "--pixels", "0", "255"], "Leave out --pixels: a run knows its images"),
    (["missing"], "expected a run directory or a model file (.keras, .h5); received nothing at that place"),
    (["MODEL"], "expected images to measure effects on, for a model file"),
    (["FOLDER"], "expected a run directory; received a folder without run.yaml"),
    (["RUN"], "expected a model with a convolution of at least 16 channels"),
]


@pytest.mark.parametrize(("words", "text"), BAD_INPUT, ids=[" ".join(words) for words, _ in BAD_INPUT])
def test_bad_input_is_an_error_of_our_own_without_a_traceback(run_command, copied, tmp_path, words, text):
    """All but the last are found without starting TensorFlow."""
    known = {"RUN": copied, "MODEL": copied / "models" / "plain" / "model.keras", "FOLDER": copied / "models"}
    result = run_command("effects", *(known.get(word, word) for word in words), check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (copied / "effects").exists()


def test_models_are_all_checked_before_the_first_is_measured(copied, tmp_path):
    """The second model of the run has been measured with other settings."""
    settings_file = copied / "effects" / "ppi" / "settings.json"
    settings_file.parent.mkdir(parents=True)
    settings_file.write_text("{}")
    request = Request(copied, overrides=[word for word in QUICK if word != "--set"])
    with pytest.raises(RunError, match="ppi holds effects that were measured otherwise"):
        measure_effects(request, settings(request), ConsoleProgress(Console(quiet=True)))
    assert not (copied / "effects" / "plain").exists()


def test_a_model_that_is_not_trained_is_named(copied):
    (copied / "models" / "cfcn" / "model.keras").unlink()
    with pytest.raises(RunError, match=r"the model is not trained yet\. Finish the run: `tfcausal run --resume"):
        settings(Request(copied))
    settings(Request(copied, model="plain"))


def test_a_level_that_no_model_has_is_found_before_a_run_trains(run_command, digits_config, tmp_path):
    result = run_command(
        "run", digits_config, "--runs", tmp_path / "runs", "--set", "effects.levels=[block9]", check=False
    )
    assert result.returncode == 1
    assert "models.plain (method: plain): effects.levels (block9)" in " ".join(result.stderr.split())
    assert list((tmp_path / "runs").iterdir()) == []
