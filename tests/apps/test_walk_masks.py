"""Masks are drawn in a real browser, on a folder that `tfcausal mask` opens, and read as `tfcausal run` reads them."""

import csv
import socket

import numpy as np
import pytest
from PIL import Image

from tfcausal.data.sources.image_folder import image_folder

HEIGHT, WIDTH = 40, 60
SIDE = 640  # pixels of the screen
SQUARE = SIDE / WIDTH  # of them per pixel of the image


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_images):
    return write_images(tmp_path_factory.mktemp("data") / "cells", HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def opened(serving, folder):
    """The link that the command says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["mask", folder.name, "--images", "4", "--seed", "1", "--port", str(port), "--no-browser"]
    with serving("Draw masks for cells at http", *words, cwd=folder.parent) as (_, lines):
        yield next(word for word in lines[-1].split() if word.startswith("http"))


@pytest.fixture
def drawn_page(page, settle):
    """Waits until the page is drawn."""
    return lambda: settle(page, "Masks", allow_errors=True)


@pytest.fixture
def pick(page, drawn_page):
    from playwright.sync_api import expect

    def choose(name):
        choice = page.get_by_role("radio", name=name, exact=True)
        expect(choice).to_have_count(1, timeout=30_000)  # while a page is drawn, the old one can be beside the new one
        choice.click()
        drawn_page()

    return choose


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


def test_masks_are_drawn_saved_and_read_back(opened, page, drawn_page, pick, folder):
    page.goto(opened)
    drawn_page()
    page.get_by_text("With a mask: 0 of 4").wait_for()
    first = shown(page)

    # A box, and one that is cut out of it; saved by a key.
    pick("box")
    drag(page, (10, 5), (40, 25))
    drawn(page, "25.0%")
    pick("cuts out")
    drag(page, (20, 10), (30, 20))
    drawn(page, "20.8%")
    page.keyboard.press("s")
    page.get_by_text("Saved masks/").wait_for()
    expected = {first: np.zeros((HEIGHT, WIDTH), bool)}
    expected[first][5:25, 10:40] = True
    expected[first][10:20, 20:30] = False
    np.testing.assert_array_equal(mask_of(folder, first), expected[first])
    page.get_by_text("With a mask: 1 of 4").wait_for()

    # A polygon; another one is undone by a key; the next image, asked for before that is done, saves.
    page.keyboard.press("n")
    page.wait_for_function("name => !location.search.includes(name)", arg=first.replace("/", "%2F"))
    drawn_page()
    second = shown(page)
    pick("adds")
    pick("polygon")
    click(page, (10.2, 10.2), (30.2, 10.2), (30.2, 30.2), (10.2, 30.2), (10.2, 10.2))
    drawn(page, "16.7%")
    click(page, (40, 10), (50, 10), (50, 20), (40, 10))
    drawn(page, "18.5%")
    page.keyboard.press("u")
    page.keyboard.press("n")
    page.get_by_text("With a mask: 2 of 4").wait_for()
    expected[second] = np.zeros((HEIGHT, WIDTH), bool)
    expected[second][10:30, 10:30] = True
    np.testing.assert_array_equal(mask_of(folder, second), expected[second])

    # A stroke of the brush.
    drawn_page()
    third = shown(page)
    pick("brush")
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
    drawn_page()
    view, last = page.url, shown(page)
    page.reload()
    drawn_page()
    assert (page.url, shown(page)) == (view, last)
    assert len({first, second, third, last}) == 4, (first, second, third, last, view)

    # No mask is replaced unasked.
    pick("all")
    page.keyboard.press("p")
    page.wait_for_function("name => !location.search.includes(name)", arg=last.replace("/", "%2F"))
    drawn_page()
    assert shown(page) == third
    pick("box")
    drag(page, (0.2, 0.2), (30, 20))
    drawn(page, "25.0%")
    page.keyboard.press("s")
    page.get_by_text("is there already, and was not replaced").wait_for()
    np.testing.assert_array_equal(mask_of(folder, third), expected[third])
    pick("replace")
    page.keyboard.press("s")
    page.get_by_text("Saved masks/").wait_for()
    expected[third] = np.zeros((HEIGHT, WIDTH), bool)
    expected[third][:20, :30] = True
    np.testing.assert_array_equal(mask_of(folder, third), expected[third])

    # Without a mouse.
    drawn_page()
    page.keyboard.press("n")
    page.wait_for_function("name => location.search.includes(name)", arg=last.replace("/", "%2F"))
    drawn_page()
    button = page.get_by_role("button", name="Box by numbers")
    button.focus()
    page.keyboard.press("Enter")
    for name, value in {"Left": 3, "Top": 4, "Right": 9, "Bottom": 7}.items():
        page.get_by_role("spinbutton", name=f"{name} edge, pixels").fill(str(value))
        page.keyboard.press("Tab")
        drawn_page()
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


def test_a_link_names_images_of_the_folder_only(opened, page, drawn_page):
    page.goto(opened + "&image=..%2Fsecret.png")
    page.get_by_text("There is no image ../secret.png here").wait_for()
    drawn_page()
    assert shown(page).startswith("images/")
