import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tfcausal.figures import as_png, outlined, overlay
from tfcausal.report import headline, headline_table, write_report
from tfcausal.runs import RunDirectory


class Page(HTMLParser):
    """The pictures, links and scripts of a page."""

    def __init__(self):
        super().__init__()
        self.pictures, self.outside = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.pictures.append(attributes)
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


@pytest.fixture
def page(small_run):
    path, _ = small_run
    parser = Page()
    parser.feed((path / "report.html").read_text(encoding="utf-8"))
    return parser


def test_every_picture_is_in_the_page_and_can_be_decoded(page):
    """Three samples under three models with their originals, and the summary, the deletion curves and the histories."""
    assert len(page.pictures) == 3 * (1 + 3) + 3
    for picture in page.pictures:
        assert picture["alt"]
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"), validate=True)
        decoded = Image.open(io.BytesIO(content))
        decoded.load()
        assert np.asarray(decoded.convert("RGB")).std() > 5


def test_the_page_needs_nothing_from_outside(page, small_run):
    path, _ = small_run
    text = (path / "report.html").read_text(encoding="utf-8")
    assert page.outside == []
    assert "<script" not in text
    assert "url(" not in text


def test_the_page_shows_the_numbers_of_metrics_json(small_run):
    path, _ = small_run
    text = (path / "report.html").read_text(encoding="utf-8")
    metrics = RunDirectory.open(path).metrics
    for model in metrics["models"].values():
        for split in model["splits"].values():
            value = split["accuracy"]
            assert f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in text
        assert re.search(rf"<td[^>]*>{model['worst_group']['value']:.3f}</td>", text)


def test_the_table_has_the_models_in_the_order_of_the_configuration(small_run):
    path, _ = small_run
    metrics = RunDirectory.open(path).metrics
    columns = headline(metrics)
    assert columns[0].cells == ["plain", "ppi", "cfcn"]
    console = Console(width=200, file=io.StringIO())
    console.print(headline_table(metrics))
    printed = console.file.getvalue()
    assert printed.index("plain") < printed.index("ppi") < printed.index("cfcn")
    for column in columns:
        assert all(cell in printed for cell in column.cells)
    shuffled = [
        f"{metrics['models'][name]['splits']['test_shuffled']['accuracy']['value']:.3f}" for name in columns[0].cells
    ]
    assert columns[2].cells == shuffled


def test_texts_of_the_user_are_escaped(small_run, tmp_path):
    path, _ = small_run
    copy = tmp_path / "small"
    shutil.copytree(path, copy)
    config = (copy / "run.yaml").read_text(encoding="utf-8")
    (copy / "run.yaml").write_text(config.replace("title: null", 'title: "<b>x</b>"'), encoding="utf-8")
    metrics = (copy / "metrics.json").read_text(encoding="utf-8")
    skipped = '"skipped": [{"path": "<i>.png", "reason": "<u>"}]'
    (copy / "metrics.json").write_text(metrics.replace('"skipped": []', skipped), encoding="utf-8")
    write_report(RunDirectory.open(copy))
    text = (copy / "report.html").read_text(encoding="utf-8")
    for tag in ("<b>", "<i>", "<u>"):
        assert tag not in text
    for escaped in ("<h1>&lt;b&gt;x&lt;/b&gt;</h1>", "&lt;i&gt;.png", "&lt;u&gt;"):
        assert escaped in text


def test_overlay_is_red_for_evidence_and_blue_against_it():
    saliency = np.array([[1.0, -1.0, 0.0]])
    red, blue, none = overlay(np.full((1, 3, 1), 0.5), saliency)[0]
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3
    assert none == pytest.approx([0.675] * 3)


def test_overlay_of_an_empty_map_is_the_image_alone_and_finite():
    picture = overlay(np.random.default_rng(0).random((4, 4, 3)), np.zeros((4, 4)))
    assert np.isfinite(picture).all()
    assert picture[..., 0] == pytest.approx(picture[..., 1])


def test_overlay_does_not_depend_on_the_scale_of_the_map():
    random = np.random.default_rng(1)
    image, saliency = random.random((6, 6, 1)), random.normal(size=(6, 6))
    assert overlay(image, saliency) == pytest.approx(overlay(image, 1e-7 * saliency))


def test_the_outline_lies_on_the_edge_of_the_mask_only():
    mask = np.zeros((5, 5))
    mask[1:4, 1:4] = 1
    yellow = (outlined(np.zeros((5, 5, 1)), mask) > 0.5)[..., 0]
    expected = mask.astype(bool)
    expected[2, 2] = False
    assert (yellow == expected).all()


def test_small_images_are_enlarged_without_smoothing():
    picture = np.asarray(Image.open(io.BytesIO(as_png(np.eye(4)[..., None].repeat(3, 2)))))
    assert picture.shape == (192, 192, 3)
    assert set(np.unique(picture)) == {0, 255}
