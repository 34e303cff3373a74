"""The explorer on a run with 50,000 test images, in a headless Chromium: times of pages and clicks, and memory.

.venv/bin/python benchmarks/explorer.py
.venv/bin/python benchmarks/explorer.py --images 50 --runs few

The run is made by this script: images, maps and answers are random, the two models are untrained, and everything is
written in the format of a run. With --runs it is kept there and used again. `tfcausal explore` shows it, and the first
page is opened when it says where. Times are from the click to the last picture that is drawn; `again` is the same with
what it needs in the caches. Limits: the first page within 3 s after the server is up; a page, a filter or a slider
within 1 s from the caches and 3 s else; an intervention (`live`) within 2 s once its functions are compiled; 1.5 GiB.
The whole walk is done several times, each with a server of its own: the median counts, the largest is shown beside it.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

import numpy as np
import zarr
from playwright.sync_api import Page, sync_playwright

from tfcausal.atomic import to_json, write_atomic
from tfcausal.browsing.maps import MapWriter, write_split
from tfcausal.config import config_from_mapping
from tfcausal.data.image_set import ImageSet
from tfcausal.runs import RunDirectory

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
SIZE, CLASSES, BATCH = 48, 10, 64
MODELS = ("plain", "ppi")
CONCEPTS = "block3_conv: channels"
LIMITS = {"first page": 3.0, "again": 1.0, "new": 3.0, "live": 2.0, "memory (MiB)": 1536.0}
QUIET = 600  # milliseconds without any change after which a page counts as drawn
WATCH = """
window.changed = 0;
const note = () => { window.changed = performance.now(); };
new MutationObserver(note).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
document.addEventListener('load', note, true);
"""
IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState == 'notRunning'"
DRAWN = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"


def make_run(folder: Path, count: int) -> None:
    """A run with so many test images, complete in everything that the explorer reads."""
    settings = {
        "version": 1,
        "name": f"images_{count}",
        "data": {"source": "textured_digits", "image_size": SIZE, "channels": 1},
        "backbone": {"name": "all_convolutional", "filters": [32, 64, 64], "strides": [2, 1, 2]},
        "models": {name: {"method": name} for name in MODELS},
    }
    run = RunDirectory.create(folder, config_from_mapping(settings))
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (SIZE + 256, SIZE + 256, 1)).astype(np.float32) / np.float32(255) - 0.5
    corners = random.integers(0, 256, (count, 2))
    labels, contexts = random.integers(0, CLASSES, (2, count))
    inside = np.zeros((SIZE, SIZE, 1), np.float32)
    inside[12:36, 12:36] = 1.0

    def read(indices):
        images = [texture[top : top + SIZE, left : left + SIZE] for top, left in corners[indices]]
        return np.stack(images), np.repeat(inside[None], len(indices), axis=0)

    names = tuple(f"test/image_{number:05d}" for number in range(count))
    classes = tuple(map(str, range(CLASSES)))
    agrees = contexts == labels
    split = ImageSet(
        names, labels, classes, (SIZE, SIZE, 1), np.ones(count, bool), read, contexts, agrees, tuple("abcdefghij")
    )
    group = zarr.create_group(run.maps_path).create_group("splits/test")
    write_split(group, split, (-0.5, 0.5), "wbp", BATCH)
    noise = random.normal(size=(512, SIZE, SIZE)).astype(np.float32)
    for name in MODELS:
        writer = MapWriter(group, name, split.image_shape, count, BATCH)
        for start in range(0, count, BATCH):
            part = slice(start, min(start + BATCH, count))
            writer(part, noise[random.integers(0, 512, part.stop - part.start)])
        writer.finish(random.dirichlet(np.ones(CLASSES), count).astype(np.float32), random.random(count))
        run.write_history(name, [{"epoch": epoch, "loss": 2 / epoch, "accuracy": 0.5} for epoch in range(1, 26)])
    save_models(run)
    write_atomic(run.path / "data.json", to_json({"classes": classes}))
    run.write_metrics(metrics())
    run.set_status("complete")


def save_models(run: RunDirectory) -> None:
    from tfcausal.models.backbones.all_convolutional import all_convolutional

    for name in MODELS:
        model = all_convolutional((SIZE, SIZE, 1), CLASSES, filters=[32, 64, 64], strides=[2, 1, 2])
        model.save(run.model_path(name))


def metrics() -> dict:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    measures = ("accuracy", "mask_energy", "mask_energy_chance", "deletion", "deletion_random")
    curves = {name: np.linspace(0.9, 0.1, 21).tolist() for name in ("deletion_curve", "deletion_random_curve")}
    model = {
        "method": "plain",
        "splits": {"test": {**dict.fromkeys(measures, estimate), **curves}},
        "worst_group": {"name": "class 0", **estimate},
    }
    return {
        "headline_split": "test",
        "group_attributes": ["class", "context"],
        "group_splits": ["test"],
        "minimum_group_size": 10,
        "model_names": list(MODELS),
        "split_names": ["test"],
        "models": dict.fromkeys(MODELS, model),
    }


def settle(page: Page, title: str, begin: float) -> float:
    """Wait until a page is drawn; the seconds from `begin`, in milliseconds of its clock, to its last change."""
    page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
    quiet = f"window.changed > {begin} && performance.now() - window.changed > {QUIET}"
    page.wait_for_function(f"{IDLE} && {DRAWN} && {quiet}")
    if page.get_by_test_id("stException").count() or page.get_by_test_id("stAlertContentError").count():
        raise SystemExit(f"{title}: {page.get_by_test_id('stMain').inner_text()[-800:]}")
    return (page.evaluate("window.changed") - begin) / 1000


def memory(pid: int) -> float:
    """The greatest resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def walk(page: Page, server: str, pid: int) -> dict[str, float]:
    """Seconds of every step, and MiB."""
    times: dict[str, float] = {}

    def step(name: str, title: str, act) -> None:
        begin = page.evaluate("performance.now()") if times else 0.0
        act()
        times[name] = round(settle(page, title, begin), 2)

    def press(name: str):
        return lambda: page.get_by_role("radio", name=name, exact=True).click()

    def go(name: str):
        return lambda: page.get_by_role("link", name=name, exact=True).click()

    def choose(label: str, option: str):
        def act() -> None:
            box = page.get_by_role("combobox", name=label).first
            box.evaluate("box => box.scrollIntoView({block: 'center'})")
            box.fill(option)
            page.get_by_role("option", name=option, exact=True).click()

        return act

    def slide(name: str, key: str = "ArrowLeft"):
        def act() -> None:
            page.get_by_role("slider", name=name).first.focus()
            page.keyboard.press(key)

        return act

    step("first page", "Runs", lambda: page.goto(server))
    step("page Images, new", "Images", go("Images"))
    step("filter, new", "Images", press("wrong"))
    step("filter, again", "Images", press("right"))
    step("sort by loss, new", "Images", choose("Sort by", "loss"))
    step("other model, new", "Images", choose("Model", "ppi"))
    step("disagreement, new", "Images", choose("Disagreement with", "plain"))
    step("slider, again", "Images", slide("Overlay strength"))
    step("page Runs, again", "Runs", go("Runs"))
    step("page Images, again", "Images", go("Images"))
    page.wait_for_timeout(15_000)  # a person looks; TensorFlow is imported meanwhile
    step("page One image, new", "One image", lambda: page.locator("[class*='st-key-open-'] button").first.click())
    step("next image, new", "One image", lambda: page.get_by_role("button", name="Next").click())
    step("slider of one image, again", "One image", slide("Overlay strength"))
    step("page Intervene, new", "Intervene", go("Intervene"))
    step("mask blocks, live", "Intervene", choose("What to mask", "blocks at random"))
    step("mask more, live", "Intervene", slide("Share of the area", "ArrowRight"))
    step("attack, new", "Intervene", press("attack"))
    step("attack stronger, live", "Intervene", slide("Strength", "ArrowRight"))
    step("zero a concept, new", "Intervene", choose("Set concepts to zero", CONCEPTS))
    step("attack stronger without it, live", "Intervene", slide("Strength", "ArrowRight"))
    step("page Compare, new", "Compare", go("Compare"))
    step("attention, again", "Compare", press("attention"))
    times["memory (MiB)"] = round(memory(pid))
    return times


def child(pid: int) -> int:
    """The only process that a process has started."""
    (number,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(number)


def measure(runs: Path) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-c", "from tfcausal.cli import main; main()", "explore", str(runs), "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = f"http://localhost:{port}"
    try:
        if not any(server in line for line in process.stderr):  # it is up when it says so
            raise SystemExit("The explorer does not start.")
        Thread(target=process.stderr.read, daemon=True).start()  # or the server waits for a reader
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
            )
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(60_000)
            page.add_init_script(WATCH)
            return walk(page, server, child(process.pid))
    finally:
        process.terminate()
        process.wait()


def limit(name: str) -> float:
    return LIMITS.get(name) or LIMITS[name.rsplit(", ", 1)[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--runs", type=Path, help="where the run is made, or was made before")
    parser.add_argument("--repeats", type=int, default=3, help="walks; the median of each time counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        if not (runs / f"images_{arguments.images}").is_dir():
            begin = time.perf_counter()
            make_run(runs, arguments.images)
            print(f"made a run of {arguments.images} images in {time.perf_counter() - begin:.0f} s")
        walks = [measure(runs) for _ in range(arguments.repeats)]
    measured = {name: statistics.median(walk[name] for walk in walks) for name in walks[0]}
    for name, value in measured.items():
        largest = max(walk[name] for walk in walks)
        above = "" if value <= limit(name) else "  ABOVE"
        print(f"{name:<34} {value:>8.2f}  largest {largest:>8.2f}  limit {limit(name):g}{above}")
    rows = {"images": arguments.images, "walks": arguments.repeats, **measured}
    path = RESULTS / f"explorer_{arguments.images}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
