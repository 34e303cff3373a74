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
from importlib import util
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BROWSER_SCRIPT = ROOT / "scripts" / "install_browser.py"
IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState == 'notRunning'"
DRAWN = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


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


@pytest.fixture(scope="session")
def write_images():
    """Writes four images of each of two classes into a new folder, and one beside it that is not to be opened."""

    def write(root, height, width):
        random = np.random.default_rng(0)
        for name in ("long", "round"):
            (root / "images" / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
        shutil.copy(root / "images" / "long" / "0.png", root.parent / "secret.png")
        return root

    return write


@pytest.fixture
def explorer(monkeypatch):
    """A page of the explorer without a browser: `explorer(folder, view, parameter=value, ...)`."""
    from streamlit.testing.v1 import AppTest

    monkeypatch.syspath_prepend(str(ROOT / "apps"))

    from widgets import cached

    monkeypatch.setattr(cached, "warm_up", lambda *model: None)
    # The explorer replaces it for its whole process: put back after the test.
    monkeypatch.setattr(keras.backend, "clear_session", keras.backend.clear_session)

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
        cwd=finished_runs,  # not where its settings are: they hold wherever it is started
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


@pytest.fixture(scope="session")
def browser_program():
    """A Chromium, without which the walks fail."""
    specification = util.spec_from_file_location("install_browser", BROWSER_SCRIPT)
    script = util.module_from_spec(specification)
    specification.loader.exec_module(script)
    found = script.find()
    if found is None:
        pytest.fail(
            f"there is no Chromium for the walks: `make browser` ({BROWSER_SCRIPT.relative_to(ROOT)}) installs it"
        )
    return found


@pytest.fixture(scope="module")
def chromium(browser_program):
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of the browser, with nothing in it."""
    with chromium.new_context(viewport={"width": 1400, "height": 1000}) as context:
        context.set_default_timeout(150_000)
        yield context.new_page()


@pytest.fixture(scope="session")
def settle():
    """Waits until a page with a title is drawn, and refuses it if anything in it went wrong."""

    def wait(page, title, allow_errors=False):
        page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
        for _ in range(3):  # a click takes a moment to reach the server
            page.wait_for_timeout(200)
            page.wait_for_function(f"{IDLE} && {DRAWN}")
        assert page.get_by_test_id("stException").count() == 0
        errors = page.get_by_test_id("stAlertContentError").all_inner_texts()
        assert allow_errors or errors == []
        return errors

    return wait


@pytest.fixture(scope="session")
def choose():
    """Chooses an option of a list of a page, by its label."""

    def select(page, label, option):
        box = page.get_by_role("combobox", name=label).first
        box.evaluate("box => box.scrollIntoView({block: 'center'})")  # scrolling closes an open list
        page.wait_for_timeout(300)
        box.fill(option)
        page.get_by_role("option", name=option, exact=True).click()

    return select
