"""A walk through the page Intervene in a real browser."""

import pytest


@pytest.fixture
def told(page, settle):
    """Waits until the sentence says so, and the page is drawn; gives the sentence without its icon."""

    def wait(text):
        page.get_by_test_id("stAlert").filter(has_text=text).first.wait_for()
        settle(page, "Intervene")
        return page.get_by_test_id("stAlert").filter(has_text=text).first.inner_text().splitlines()[-1]

    return wait


def linked(page, text, count=1):
    """Wait until the link has a text so many times."""
    page.wait_for_function(f"location.search.split({text!r}).length == {count + 1}")


def drag(page, first, last):
    """Draw on the canvas; places in pixels of the image, which has 24 on a side."""
    canvas = page.locator("canvas.upper-canvas")
    canvas.scroll_into_view_if_needed()
    around = canvas.bounding_box()
    (x, y), (to_x, to_y) = (
        (around["x"] + around["width"] * x / 24, around["y"] + around["height"] * y / 24) for x, y in (first, last)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move((x + to_x) / 2, (y + to_y) / 2, steps=3)
    page.mouse.move(to_x, to_y, steps=3)
    page.mouse.up()


def pictures(page, *awaited):
    for alt in awaited:  # the sentence is drawn before the pictures
        page.locator(f"img[alt='{alt}']").wait_for(state="attached")
    return page.get_by_test_id("stMain").locator("img").evaluate_all("all => all.map(image => [image.alt, image.src])")


def test_a_region_is_masked_with_the_mouse_and_with_the_keyboard(server, page, settle, told):
    page.goto(f"{server}/intervene?run=small&model=plain")
    told("Nothing is done yet")
    before = dict(pictures(page, "The picture as it was", "The picture after: nothing is done to it"))
    drag(page, (4, 4), (20, 16))
    told("Masked 33.3% of the picture")
    linked(page, "region=box%2C4%2C4%2C20%2C16")
    masked = "The picture after: masked 33.3% of the picture"
    after = dict(pictures(page, masked))
    assert after["The picture as it was"] == before["The picture as it was"]
    assert after[masked] != before["The picture after: nothing is done to it"]
    bars = page.locator(".js-plotly-plot .bars path")
    bars.first.wait_for(state="attached")
    assert bars.count() == 10

    drag(page, (1, 18), (6, 23))
    told("Masked 37.7%")
    bottom = page.get_by_role("spinbutton", name="Bottom")
    bottom.fill("21")
    bottom.press("Enter")
    sentence = told("Masked 35.9%")
    linked(page, "region=", count=2)
    linked(page, "region=box%2C1%2C18%2C6%2C21")
    view = page.url
    page.reload()
    assert told("Masked 35.9%") == sentence
    assert page.url == view

    page.get_by_role("radio", name="brush", exact=True).click()
    settle(page, "Intervene")
    drag(page, (21, 4), (22, 20))
    linked(page, "region=brush%2C")
    settle(page, "Intervene")
    page.get_by_role("button", name="Remove it").click()
    told("Masked 35.9%")
    linked(page, "region=", count=2)


def test_an_attack_is_made_and_a_concept_taken_away(server, page, told):
    page.goto(f"{server}/intervene?run=small&model=plain")
    told("Nothing is done yet")
    page.get_by_role("radio", name="attack", exact=True).click()
    told("Attacked by FGSM with strength 0.05")
    strength = page.get_by_role("slider", name="Strength").first
    strength.focus()
    strength.press("ArrowRight")
    told("strength 0.055")
    box = page.get_by_role("combobox", name="Set concepts to zero")
    box.click()
    box.fill("block2_conv")
    page.get_by_role("option", name="block2_conv: channels").click()
    sentence = told("of block2_conv to zero")
    page.locator("img[alt^='Where concept ']").first.wait_for(state="attached")
    names = [alt for alt, _ in pictures(page)]
    assert any(name.startswith("What the attack added") for name in names)
    assert any(name.startswith("Where concept ") for name in names)
    with page.expect_download() as table:
        page.get_by_role("button", name="CSV").click()
    assert table.value.path().read_text(encoding="utf-8").splitlines()[0] == "class,before,after,effect"
    page.goto(page.url)
    assert told("of block2_conv to zero") == sentence
