"""The pictures of docs/explorer.md: every page of the explorer in a headless Chromium, on runs that are there already.

    .venv/bin/tfcausal run configs/textured_digits_effects.yaml
    .venv/bin/python benchmarks/explorer_pictures.py [--runs runs] [--run textured_digits_effects]

The page Masks is shown on images of the embedded data set, which are written to a folder that is removed afterwards.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tfcausal.data.loading import load_data
from tfcausal.explorer_command import MASKS_VARIABLE, STARTED_VARIABLE
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SIZE = {"width": 1280, "height": 900}
COLOURS = 192
IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState == 'notRunning'"
DRAWN = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"


def write_images(run: RunDirectory, folder: Path, count: int = 24) -> list[Path]:
    """Test images of a run as a folder that masks can be drawn for."""
    data = load_data(run.config, ConsoleProgress())
    split, (low, high) = data.splits["test"], data.value_range
    written = []
    for position in range(count):
        pixels = (split.read(np.array([position]))[0][0] - low) / (high - low)
        path = folder / "images" / split.class_names[split.labels[position]] / f"{position:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = pixels.shape[-1] == 1
        Image.fromarray(np.round(255 * (pixels[..., 0] if grey else pixels)).astype(np.uint8)).save(path)
        written.append(path)
    return written


@contextmanager
def server(runs: Path, masks: Path) -> Iterator[str]:
    """The address of an explorer on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = {STARTED_VARIABLE: str(masks.parents[1])}
    words = ["run", "apps/explorer.py", "--server.headless=true", f"--server.port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", *words],
        cwd=ROOT,
        env={**os.environ, "TFCAUSAL_RUNS": str(runs.resolve()), MASKS_VARIABLE: str(masks), **started},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                    break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def settle(page: Page, title: str) -> None:
    """Wait until a page is drawn."""
    page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
    for _ in range(4):
        page.wait_for_timeout(500)
        page.wait_for_function(f"{IDLE} && {DRAWN}", timeout=120_000)
    if page.get_by_test_id("stException").count():
        raise SystemExit(f"{title}: {page.get_by_test_id('stException').first.inner_text()}")


def keep(page: Page, name: str) -> None:
    """The page as a picture of few colours, as high as its content."""
    height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
    page.set_viewport_size({**SIZE, "height": int(min(max(height, 500), 1500))})
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(DOCS / f"explorer_{name}.png", optimize=True)
    page.set_viewport_size(SIZE)
    print(f"docs/explorer_{name}.png: {(DOCS / f'explorer_{name}.png').stat().st_size // 1024} KiB")


def nothing(page: Page) -> None:
    """The page as it opens."""


def upload(files: list[Path]) -> Callable[[Page], None]:
    def act(page: Page) -> None:
        page.locator("input[type=file]").first.set_input_files(files)

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="textured_digits_effects")
    parser.add_argument("--pages", nargs="+", help="of the pages, by their paths; all without")
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.runs / arguments.run)
    first, *_, last = run.config.models
    shared = {"run": run.name, "split": "test_shuffled"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "data", "digits")
        files = write_images(run, folder)
        pages: dict[str, tuple[str, dict[str, object], Callable[[Page], None]]] = {
            "runs": ("Runs", {"run": run.name}, nothing),
            "images": ("Images", {**shared, "model": first, "answer": "wrong", "outline": True}, nothing),
            "one_image": ("One image", {**shared, "model": first, "beside": last, "outline": True}, nothing),
            "intervene": ("Intervene", {**shared, "model": last, "masking": "cause"}, nothing),
            "effects": ("Effects", {"run": run.name, "model": first}, nothing),
            "masks": ("Masks", {}, nothing),
            "compare": ("Compare", {}, nothing),
            "own_images": ("Own images", {"run": run.name, "model": last}, upload(files[:8])),
        }
        with server(arguments.runs, folder) as address, sync_playwright() as playwright:
            program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
            browser = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-background-networking"]
            )
            page = browser.new_page(viewport=SIZE)
            for name in arguments.pages or pages:
                title, parameters, act = pages[name]
                path = "" if title == "Runs" else name  # the first page has none of its own
                page.goto(f"{address}/{path}?{urlencode(parameters)}")
                settle(page, title)
                act(page)
                settle(page, title)
                keep(page, name)
            browser.close()


if __name__ == "__main__":
    main()
