"""Images of one's own in a real browser: uploaded, answered, explained, intervened on."""

import io

import numpy as np
import pytest
from PIL import Image

OPENED = "[class*='st-key-open-'] button"


def png(seed, shape=(40, 60, 3)):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def files():
    good, half = png(0), png(1)[:300]
    return [
        {"name": "good_*one*.png", "mimeType": "image/png", "buffer": good},
        {"name": "half.png", "mimeType": "image/png", "buffer": half},
    ]


def test_images_are_uploaded_answered_and_explained(server, page, settle, choose, files, tmp_path):
    page.goto(f"{server}/?run=small")
    settle(page, "Runs")
    page.get_by_role("link", name="Own images", exact=True).click()
    settle(page, "Own images")
    choose(page, "Model", "cfcn")
    settle(page, "Own images")
    page.locator("input[type=file]").first.set_input_files(files)
    page.locator(OPENED).wait_for()
    settle(page, "Own images")
    assert page.locator(OPENED).all_inner_texts() == ["good_*one*.png"]
    warning = page.get_by_test_id("stAlertContentWarning").inner_text()
    assert "1 file is left out" in warning
    assert "half.png: the file cannot be decoded" in warning
    main = page.get_by_test_id("stMain")
    (alt,) = main.locator("img").evaluate_all("all => all.map(image => image.alt)")
    assert alt.startswith("good_*one*.png: wbp map of cfcn of small for ")
    assert ", p = 0." in alt
    choose(page, "Method", "gradient")
    settle(page, "Own images")
    page.get_by_role("radio", name="positive", exact=True).click()
    settle(page, "Own images")
    assert page.get_by_role("img", name="gradient, logits per unit").count() == 1

    folder = tmp_path / "folder" / "below"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(2 + number))
    (folder.parent / "notes.txt").write_text("no image")
    page.locator("input[type=file]").last.set_input_files(folder.parent)
    page.wait_for_function(f'document.querySelectorAll("{OPENED}").length == 3')
    settle(page, "Own images")
    assert page.locator(OPENED).all_inner_texts() == ["good_*one*.png", "0.png", "1.png"]

    page.locator(OPENED).first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Maps").wait_for()
    settle(page, "Own images")
    texts = main.locator("img").evaluate_all("all => all.map(image => image.alt)")
    assert [text.split(" ")[0] for text in texts if " map of cfcn of small" in text][:2] == ["wbp", "lrp.epsilon_plus"]
    assert page.get_by_text("as the model sees it, 24 × 24 pixels").count() == 1
    page.get_by_role("radio", name="interventions", exact=True).click()
    page.get_by_text("Nothing is done yet").wait_for()
    settle(page, "Own images")

    page.reload()
    settle(page, "Own images")
    assert "a link carries none" in page.get_by_test_id("stAlertContentInfo").inner_text()
    page.get_by_text("8 images of the test split").click()
    page.wait_for_function(f'document.querySelectorAll("{OPENED}").length == 8')
    settle(page, "Own images")
    page.locator(OPENED).nth(2).click()
    page.get_by_text("Nothing is done yet").wait_for()
    settle(page, "Own images")
    view = page.url
    assert "sample=True" in view
    assert "picture=sample+3" in view
    page.reload()
    page.get_by_text("Nothing is done yet").wait_for()
    settle(page, "Own images")
    assert page.url == view
