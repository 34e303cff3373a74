"""Runs to look at, an explorer without a browser, and a server with one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory, small_run):
    """Two complete runs, one that cannot be read, and one that failed; not to be changed."""
    folder = tmp_path_factory.mktemp("explored")
    for name in ("other", "failed", "small"):
        shutil.copytree(small_run[0], folder / name)
        time.sleep(0.02)  # the one that changed last comes first
        (folder / name / "status.json").touch()
    settings = (folder / "other" / "run.yaml").read_text(encoding="utf-8")
    (folder / "other" / "run.yaml").write_text(settings.replace("seed: 3", "seed: 4"), encoding="utf-8")
    status = json.loads((folder / "failed" / "status.json").read_text())
    (folder / "failed" / "status.json").write_text(json.dumps({**status, "state": "failed", "error": "no space left"}))
    shutil.rmtree(folder / "failed" / "maps.zarr")
    (folder / "failed" / "metrics.json").unlink()
    (folder / "half").mkdir()
    (folder / "half" / "run.yaml").write_text("version: 1\nname: half\n", encoding="utf-8")
    os.utime(folder / "half" / "run.yaml", (0, 0))
    return folder


@pytest.fixture
def runs(finished_runs, tmp_path):
    """The finished runs, to be changed."""
    return shutil.copytree(finished_runs, tmp_path / "runs")


@pytest.fixture(scope="session")
def start_training():
    """Puts a run into a folder that is in the second epoch of its first model, and on which this process works."""

    def start(folder):
        run = shutil.copytree(folder / "small", folder / "training")
        for name in ("metrics.json", "report.html", "models/plain/model.keras"):
            (run / name).unlink()
        shutil.rmtree(run / "maps.zarr")
        for model in ("ppi", "cfcn"):
            shutil.rmtree(run / "models" / model)
        history = run / "models" / "plain" / "history.csv"
        history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({**status, "state": "running"}))
        (run / ".lock").write_text(str(os.getpid()))
        return run

    return start


@pytest.fixture(scope="session")
def add_epoch():
    """Adds one more epoch to the history of the first model of a run."""

    def add(run):
        history = run / "models" / "plain" / "history.csv"
        lines = history.read_text().splitlines()
        epoch, rest = lines[-1].split(",", 1)
        history.write_text("\n".join([*lines, f"{int(epoch) + 1},{rest}"]) + "\n")

    return add


@pytest.fixture
def explorer(monkeypatch):
    """A page of the explorer without a browser: `explorer(folder, view, parameter=value, ...)`."""
    from streamlit.testing.v1 import AppTest

    monkeypatch.syspath_prepend(str(ROOT / "apps"))

    from widgets import cached

    monkeypatch.setattr(cached, "warm_up", lambda *model: None)

    def open_page(folder, view="runs", **parameters):
        monkeypatch.setenv("TFCAUSAL_RUNS", str(folder))
        app = AppTest.from_file(str(ROOT / "apps" / "explorer.py"), default_timeout=60)
        if view != "runs":
            app.run()  # pages are known once the first one has run
            app.switch_page(f"views/{view}.py")
            app.query_params.clear()
        for name, value in parameters.items():
            app.query_params[name] = value
        return app.run()

    return open_page


@pytest.fixture(scope="session")
def server(finished_runs):
    """The address of an explorer on this machine, on the finished runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "streamlit", "run", str(ROOT / "apps" / "explorer.py"), "--server.headless", "true"]
    process = subprocess.Popen(
        [*words, "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "TFCAUSAL_RUNS": str(finished_runs), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                    break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
