"""Masks are drawn in a real browser, on a folder that `tfcausal mask` opens, and read as `tfcausal run` reads them."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tfcausal.data.sources.image_folder import image_folder

IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState == 'notRunning'"
HEIGHT, WIDTH = 40, 60
SIDE = 640  # pixels of the screen
SQUARE = SIDE / WIDTH  # of them per pixel of the image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "cells"
    random = np.random.default_rng(0)
    for name in ("round", "long"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
    (root.parent / "secret.png").write_bytes((root / "images" / "round" / "0.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def opened(command, folder):
    """The link that the command says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As in the test of `tfcausal explore`: a process in the background of a shell ignores SIGINT.
    listening = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = ["mask", folder.name, "--images", "4", "--seed", "1", "--port", str(port), "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-c", listening, *command, *words],
        cwd=folder.parent,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        deadline = time.monotonic() + 90
        line = ""
        while "Draw masks for cells at http" not in line:
            assert time.monotonic() < deadline
            assert process.poll() is None, line
            line = process.stderr.readline()
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def settle(page):
    for _ in range(3):  # a click takes a moment to reach the server
        page.wait_for_timeout(200)
        page.wait_for_function(IDLE)
    assert page.get_by_test_id("stException").count() == 0


def pick(page, name):
    page.get_by_role("radio", name=name, exact=True).click()
    settle(page)


def drag(page, *corners):
    """Lead the mouse over corners in pixels of the image."""
    box = page.locator("canvas.upper-canvas").first.bounding_box()
    assert (round(box["width"]), round(box["height"])) == (SIDE, round(HEIGHT * SQUARE))
    (x, y), *rest = [(box["x"] + x * SQUARE, box["y"] + y * SQUARE) for x, y in corners]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in rest:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


def click(page, *corners):
    box = page.locator("canvas.upper-canvas").first.bounding_box()
    for x, y in corners:
        page.mouse.click(box["x"] + x * SQUARE, box["y"] + y * SQUARE)
        page.wait_for_timeout(100)


def drawn(page, share):
    page.get_by_text(f"drawn: {share} of the image").wait_for()


def shown(page):
    return page.get_by_role("combobox", name="Image", exact=True).input_value().lstrip("✓· ")


def mask_of(folder, name):
    path = folder / "masks" / name.removeprefix("images/")
    with Image.open(path) as image:
        return np.asarray(image) > 127


def test_masks_are_drawn_saved_and_read_back(opened, page, folder):
    page.goto(opened)
    page.get_by_role("heading", name="Masks", exact=True, level=1).wait_for()
    settle(page)
    page.get_by_text("With a mask: 0 of 4").wait_for()
    first = shown(page)

    # A box, and one that is cut out of it; saved by a key.
    pick(page, "box")
    drag(page, (10, 5), (40, 25))
    drawn(page, "25.0%")
    pick(page, "cuts out")
    drag(page, (20, 10), (30, 20))
    drawn(page, "20.8%")
    page.keyboard.press("s")
    page.get_by_text("Saved masks/").wait_for()
    expected = {first: np.zeros((HEIGHT, WIDTH), bool)}
    expected[first][5:25, 10:40] = True
    expected[first][10:20, 20:30] = False
    np.testing.assert_array_equal(mask_of(folder, first), expected[first])
    page.get_by_text("With a mask: 1 of 4").wait_for()

    # A polygon; another one is undone by a key; the next image saves.
    page.keyboard.press("n")
    page.wait_for_function("name => !location.search.includes(name)", arg=first.replace("/", "%2F"))
    settle(page)
    second = shown(page)
    pick(page, "adds")
    pick(page, "polygon")
    click(page, (10.2, 10.2), (30.2, 10.2), (30.2, 30.2), (10.2, 30.2), (10.2, 10.2))
    drawn(page, "16.7%")
    click(page, (40, 10), (50, 10), (50, 20), (40, 10))
    drawn(page, "18.5%")
    page.keyboard.press("u")
    drawn(page, "16.7%")
    page.keyboard.press("n")
    page.get_by_text("With a mask: 2 of 4").wait_for()
    expected[second] = np.zeros((HEIGHT, WIDTH), bool)
    expected[second][10:30, 10:30] = True
    np.testing.assert_array_equal(mask_of(folder, second), expected[second])

    # A stroke of the brush.
    settle(page)
    third = shown(page)
    pick(page, "brush")
    drag(page, (15, 20), (45, 20))
    page.get_by_text("drawn: ").wait_for()
    page.keyboard.press("n")
    page.get_by_text("With a mask: 3 of 4").wait_for()
    expected[third] = mask_of(folder, third)
    width = 0.05 * WIDTH
    rows = np.flatnonzero(expected[third][:, 30])
    assert abs(len(rows) - width) <= 1
    assert abs(rows.mean() + 0.5 - 20) <= 0.5
    assert expected[third][20, 14:46].all()
    assert not expected[third][20, [12, 47]].any()

    # The same view after a reload.
    settle(page)
    view, last = page.url, shown(page)
    page.reload()
    settle(page)
    assert (page.url, shown(page)) == (view, last)
    assert len({first, second, third, last}) == 4, (first, second, third, last, view)

    # No mask is replaced unasked.
    pick(page, "all")
    page.keyboard.press("p")
    page.wait_for_function("name => !location.search.includes(name)", arg=last.replace("/", "%2F"))
    settle(page)
    assert shown(page) == third
    pick(page, "box")
    drag(page, (0.2, 0.2), (30, 20))
    drawn(page, "25.0%")
    page.keyboard.press("s")
    page.get_by_text("is there already, and was not replaced").wait_for()
    np.testing.assert_array_equal(mask_of(folder, third), expected[third])
    pick(page, "replace")
    page.keyboard.press("s")
    page.get_by_text("Saved masks/").wait_for()
    expected[third] = np.zeros((HEIGHT, WIDTH), bool)
    expected[third][:20, :30] = True
    np.testing.assert_array_equal(mask_of(folder, third), expected[third])

    # Without a mouse.
    settle(page)
    page.keyboard.press("n")
    page.wait_for_function("name => location.search.includes(name)", arg=last.replace("/", "%2F"))
    settle(page)
    button = page.get_by_role("button", name="Box by numbers")
    button.focus()
    page.keyboard.press("Enter")
    for name, value in {"Left": 3, "Top": 4, "Right": 9, "Bottom": 7}.items():
        page.get_by_role("spinbutton", name=f"{name} edge, pixels").fill(str(value))
        page.keyboard.press("Tab")
        settle(page)
    page.get_by_role("button", name="Draw this box").press("Enter")
    drawn(page, "0.8%")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Save").press("Enter")
    page.get_by_text("With a mask: 4 of 4").wait_for()
    expected[last] = np.zeros((HEIGHT, WIDTH), bool)
    expected[last][4:7, 3:9] = True

    # What `tfcausal run` reads.
    data = image_folder(folder, (HEIGHT, WIDTH), seed=0)
    read = {}
    for split in data.splits.values():
        masks = split.read(np.arange(len(split)))[1][..., 0]
        read |= {name: mask for name, mask, known in zip(split.names, masks, split.has_mask, strict=True) if known}
    assert read.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(read[name], mask)
    with open(folder / "mask_times.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [first, second, third, third, last]
    assert [row["replaced"] for row in rows] == ["false", "false", "false", "true", "false"]
    assert all(0 < float(row["seconds"]) < 60 for row in rows)


def test_a_link_names_images_of_the_folder_only(opened, page, folder):
    page.goto(opened + "&image=..%2Fsecret.png")
    page.get_by_text("There is no image ../secret.png here").wait_for()
    settle(page)
    assert shown(page).startswith("images/")
