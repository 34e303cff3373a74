"""A walk through the explorer in a real browser."""

import shutil
import socket

import pytest
import zarr


def opened(page, count=12):
    """The names under the pictures."""
    page.wait_for_function(f"document.querySelectorAll('[class*=st-key-open-] button').length == {count}")
    return page.locator("[class*='st-key-open-'] button").all_inner_texts()


def test_a_walk_through_every_page(server, page, finished_runs, settle, choose):
    stored = zarr.open_group(finished_runs / "small" / "maps.zarr", mode="r")["splits/test_shuffled"]
    page.goto(f"{server}/?run=small")
    settle(page, "Runs")
    assert page.get_by_test_id("stDataFrame").count() >= 2

    page.get_by_role("link", name="Images", exact=True).click()
    settle(page, "Images")
    opened(page)
    texts = page.get_by_test_id("stMain").locator("img").evaluate_all("all => all.map(image => image.alt)")
    assert len(texts) == 12
    assert all("wbp map of plain" in text for text in texts)

    choose(page, "Model", "cfcn")
    settle(page, "Images")
    page.get_by_role("radio", name="wrong", exact=True).click()
    settle(page, "Images")
    choose(page, "Sort by", "loss")
    settle(page, "Images")
    page.get_by_role("radio", name="largest", exact=True).click()
    settle(page, "Images")
    answers, labels = stored["probabilities/cfcn"][:], stored["labels"][:]
    worst = int(answers[range(60), labels].argmin())
    assert opened(page)[0] == stored.attrs["names"][worst].rsplit("/", 1)[-1]

    choose(page, "Method", "gradient")
    settle(page, "Images")
    assert page.get_by_role("img", name="gradient, logits per unit").count() == 1
    view, before = page.url, opened(page)
    assert "method=gradient" in view
    page.reload()
    settle(page, "Images")
    assert page.url == view
    assert opened(page) == before

    with page.context.expect_page() as opened_page:
        page.get_by_test_id("stImageLink").first.click()
    tab = opened_page.value
    settle(tab, "One image")
    field = "name => [...document.querySelectorAll('input')].some(field => field.value == name)"
    tab.wait_for_function(field, arg=stored.attrs["names"][worst])
    tab.close()
    first = page.locator("[class*='st-key-open-'] button").first
    first.focus()
    page.keyboard.press("Enter")
    settle(page, "One image")
    assert page.get_by_role("textbox", name="Image").input_value() == stored.attrs["names"][worst]
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length == 2")
    assert page.get_by_test_id("stMain").locator("img").count() >= 4
    choose(page, "Beside it", "plain")
    settle(page, "One image")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length == 4")

    page.get_by_role("link", name="Compare", exact=True).click()
    settle(page, "Compare")
    assert len(opened(page, count=8)) == 8
    choose(page, "Second model", "small: ppi")
    settle(page, "Compare")
    page.get_by_role("radio", name="attention", exact=True).click()
    settle(page, "Compare")
    assert "change=attention" in page.url

    page.go_back()
    settle(page, "Compare")
    assert "change=answer" in page.url
    assert page.get_by_role("radio", name="answer", exact=True).is_checked()


def test_pictures_stay_whole_however_fast_the_page_is_drawn_again(server, page, settle):
    page.goto(f"{server}/images?run=small&per_page=48")
    opened(page, count=48)
    settle(page, "Images")
    strength = page.get_by_role("slider", name="Overlay strength")
    for pause in (40, 90):
        strength.focus()
        for key in ("ArrowLeft", "ArrowRight") * 3:  # every run of the page cuts the one before short
            strength.press(key)
            page.wait_for_timeout(pause)
        settle(page, "Images")
    sources = (
        page.get_by_test_id("stMain").locator("img").evaluate_all("all => all.map(image => image.src.slice(0, 11))")
    )
    assert sources == ["data:image/"] * 48


def test_a_run_that_trains_is_followed_without_a_click(server, page, finished_runs, start_training, add_epoch):
    training = start_training(finished_runs)
    try:
        page.goto(f"{server}/?run=training")
        page.get_by_text("plain: 1 of 3 epochs").wait_for()
        add_epoch(training)
        page.get_by_text("plain: 2 of 3 epochs").wait_for()
        (training / ".lock").write_text(str(2**22 + 1))  # no process has this number
        page.locator("[aria-label*='1 stopped']").first.wait_for(state="attached")
        shutil.rmtree(training / "models")
        (training / "run.yaml").write_text("version: 1")
        page.reload()
        page.get_by_text("broken: The configuration of this run cannot be used").wait_for()
        assert page.get_by_test_id("stException").count() == 0
    finally:
        shutil.rmtree(training)


def test_the_exports_of_a_view_are_files(server, page, finished_runs, settle):
    page.goto(f"{server}/images?run=small&model=ppi&answer=wrong")
    settle(page, "Images")
    with page.expect_download() as table:
        page.get_by_role("button", name="CSV").click()
    lines = table.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("position,name,label,predicted,right,confidence,loss,mask_energy")
    assert all(",False," in line for line in lines[1:])
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG").click()
    assert picture.value.path().read_bytes()[1:4] == b"PNG"
    page.get_by_role("button", name="Link").click()
    link = page.get_by_test_id("stCode").inner_text()
    assert link == page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_explorer_follows_the_colours_of_the_system(server, chromium, scheme, settle):
    with chromium.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(f"{server}/?run=small")
        settle(page, "Runs")
        colour = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
        assert page.evaluate(colour) == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 24, 30)"}[scheme]


def test_the_server_answers_on_this_machine_only_and_talks_to_no_other_site(server, page, settle):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server}/?run=small")
    settle(page, "Runs")
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    port = int(server.rsplit(":", 1)[1])
    for host, expected in (("evil.example", b"403"), ("localhost", b"101")):
        lines = ["GET /_stcore/stream HTTP/1.1", f"Host: {host}:{port}", f"Origin: http://{host}:{port}"]
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
        with socket.create_connection(("localhost", port), timeout=10) as connection:
            connection.sendall("\r\n".join(lines).encode())
            assert connection.recv(64).split()[1] == expected
