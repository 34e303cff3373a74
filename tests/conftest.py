"""A small run of every method, made once by the command line itself."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

# A shell that starts this process in the background has it ignore Ctrl+C, and with it the commands that tests end so.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_RUN = """
version: 1
name: small
seed: 3
data:
  source: textured_digits
  image_size: 24
  channels: 1
  digit_width: [16, 20]
  train_size: 80
  validation_size: 20
  test_size: 60
backbone: {name: all_convolutional, filters: [6, 6], strides: [2, 1], dropout: 0.2, class_map_activation: relu}
training: {epochs: 3, batch_size: 16, learning_rate: 0.003}
models:
  plain: {method: plain}
  ppi: {method: ppi, warm_up_epochs: 1}
  cfcn: {method: cfcn, mask_share: 0.5}
evaluation: {deletion_steps: 4, deletion_images: 20, minimum_group_size: 3}
report: {images: 3}
"""

SMALL_EFFECTS = {
    "levels": ["block1_conv", "block2_conv"],
    "autoencoder": {"concepts": 3, "hidden": 4, "epochs": 2},
    "attacks": ["fgsm", {"name": "pgd", "steps": 2}],
    "images": 50,
    "resamples": 100,
    "maps": {"images": 3, "pixel_wise": {"patch": 8}, "nodes": 2},
    "detection": {},
}


@pytest.fixture(scope="session")
def command():
    """The installed command line, as the first words of a process."""
    return [str(Path(sys.executable).parent / "tfcausal")]


@pytest.fixture(scope="session")
def run_command(command):
    def run(*words, check=True, **options):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"}
        result = subprocess.run(
            [*command, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300, **options
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def serving(command):
    """Starts a command that goes on until it is ended; gives the process and what it said until it was ready."""

    @contextmanager
    def serve(ready, *words, cwd, ending=signal.SIGINT):
        # A process that was started in the background of a shell ignores SIGINT, and hands that on to its children.
        listening = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", listening, *command, *words],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        try:
            deadline, lines = time.monotonic() + 120, []
            while not any(ready in line for line in lines):
                assert time.monotonic() < deadline
                assert process.poll() is None, lines
                lines.append(process.stderr.readline())
            yield process, lines
        finally:
            process.send_signal(ending)
            process.communicate(timeout=30)

    return serve


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(SMALL_RUN, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_config, run_command):
    """The directory of the finished run, and what the command printed."""
    runs = tmp_path_factory.mktemp("runs")
    result = run_command("run", small_config, "--runs", runs)
    return runs / "small", result


@pytest.fixture(scope="session")
def small_effects(tmp_path_factory, small_run):
    """A copy of the finished run with the effects of two of its three models; not to be changed."""
    from rich.console import Console

    from tfcausal.config import effects_from_mapping
    from tfcausal.effect_study.command import measure_effects
    from tfcausal.effect_study.request import Request
    from tfcausal.progress import ConsoleProgress

    path = shutil.copytree(small_run[0], tmp_path_factory.mktemp("measured") / "measured")
    for model in ("plain", "cfcn"):
        progress = ConsoleProgress(Console(quiet=True))
        measure_effects(Request(path, model=model), effects_from_mapping(SMALL_EFFECTS), progress)
    return path
