"""The page Effects in a real browser, on a run whose effects were measured."""

import shutil

import pandas
import pytest


@pytest.fixture(scope="module")
def run(finished_runs, small_effects):
    """The run beside the others that the server has, for as long as these tests take."""
    path = shutil.copytree(small_effects, finished_runs / "measured")
    yield path
    shutil.rmtree(path)


def bars(page, model):
    """The labels of the bars of a model, from above."""
    chart = page.locator(f".st-key-bars-{model} .js-plotly-plot")
    chart.wait_for()
    chart.scroll_into_view_if_needed()
    page.wait_for_function(f"document.querySelector('.st-key-bars-{model} .js-plotly-plot').data !== undefined")
    return chart.evaluate("chart => [...chart.data[0].y]")


def test_a_walk_through_the_effects_of_a_run(server, page, run, settle, choose):
    table = pandas.read_parquet(run / "effects.parquet")
    page.goto(f"{server}/?run=measured")
    page.get_by_role("link", name="Effects", exact=True).click()
    settle(page, "Effects")
    own = table[(table["model"] == "plain") & (table["level"] == "block1_conv")]

    def ranked(intervention, of):
        rows = own[(own["intervention"] == intervention) & (own["class"] == of)]
        marks = rows["faithful"].map({True: "", False: " !"})
        return (rows["node"].astype(str) + marks)[rows["effect"].abs().sort_values(ascending=False).index].tolist()

    assert len(bars(page, "plain")) == 3
    choose(page, "Class", "5")
    settle(page, "Effects")
    assert bars(page, "plain") == ranked("zero_out", 5)
    choose(page, "Intervention", "zero_out+pgd")
    settle(page, "Effects")
    assert bars(page, "plain") == ranked("zero_out+pgd", 5)

    choose(page, "Beside it", "cfcn")
    settle(page, "Effects")
    assert len(bars(page, "cfcn")) == 3
    texts = page.get_by_test_id("stMain").locator("img").evaluate_all("all => all.map(image => image.alt)")
    assert sum("codes of node" in text and "pgd; answer" in text for text in texts) == 6
    page.get_by_role("radio", name="pixel-wise", exact=True).click()
    settle(page, "Effects")
    assert page.locator("img[alt*='pixel-wise effect map of cfcn']").count() == 12
    assert page.get_by_role("img", name="for the class (change of P(class)").count() == 2
    assert page.locator("[class*='st-key-roc-'] .js-plotly-plot").count() == 4
    assert page.locator("[aria-label*='ROC curves of cfcn for pgd']").count() >= 1

    view = page.url
    assert all(part in view for part in ("of=5", "beside=cfcn", "intervention=zero_out%2Bpgd", "kind=pixel_wise"))
    page.reload()
    settle(page, "Effects")
    assert page.url == view
    assert bars(page, "plain") == ranked("zero_out+pgd", 5)

    with page.expect_download() as rows:
        page.get_by_role("button", name="CSV").first.click()
    kept = pandas.read_csv(rows.value.path())
    assert len(kept) == 6
    assert set(kept["intervention"]) == {"zero_out+pgd"}
    buttons = page.locator("[class*='st-key-png-'] button")
    assert buttons.count() == 4  # bars, concepts, effect maps, detection
    for button in buttons.all():
        with page.expect_download() as picture:
            button.click()
        assert picture.value.path().read_bytes()[1:4] == b"PNG"
