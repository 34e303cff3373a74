"""What keeps the explorer closed: no path from a link or an upload, no code from a file, no run that breaks a page."""

import http.client
import io
import json
import os
import shutil
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pytest
import zarr
from PIL import Image

APPS = Path(__file__).parents[2] / "apps"
VIEWS = sorted(path.stem for path in (APPS / "views").glob("*.py"))
_audit = {"log": None}


def _listen(event, arguments):
    if _audit["log"] is not None and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.mkdir",
        "os.rename",
        "os.remove",
    ):
        _audit["log"].append((event, arguments))


sys.addaudithook(_listen)


@contextmanager
def audited():
    """Collects what Python opens, lists, makes, renames and removes."""
    log = _audit["log"] = []
    try:
        yield log
    finally:
        _audit["log"] = None


def places(log):
    """Where it was, whatever link led there."""
    return [os.path.realpath(arguments[0]) for _, arguments in log if isinstance(arguments[0], str | os.PathLike)]


def written(log):
    """Paths that were opened to write, made, renamed or removed."""
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    found = []
    for event, arguments in log:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and not (arguments[2] or 0) & flags:
            continue
        if event in ("os.listdir", "os.scandir") or isinstance(arguments[0], int):
            continue
        found.append(str(arguments[0]))
    return found


def errors(app):
    assert not app.exception, app.exception
    return " ".join(error.value for error in app.error)


@pytest.fixture
def outside(runs):
    """A complete run beside the folder of runs, and a link to it inside."""
    folder = runs.parent / "outside"
    folder.mkdir()
    shutil.copytree(runs / "small", folder / "secret")
    (runs / "linked").symlink_to(folder / "secret")
    return folder


def reopen(app, **parameters):
    """What a changed link shows."""
    app.query_params.clear()
    for name, value in parameters.items():
        app.query_params[name] = value
    return app.run()


def test_every_page_is_in_the_list_of_pages():
    named = (APPS / "explorer.py").read_text(encoding="utf-8")
    assert len(VIEWS) >= 4
    assert all(f'"views/{view}.py"' in named for view in VIEWS)


@pytest.mark.parametrize("view", VIEWS)
def test_no_link_opens_anything_outside_the_folder_of_runs(explorer, runs, outside, view):
    app = explorer(runs, view, run="small", sample="True")
    names = sorted({*app.query_params, "run", "model", "split", "configs", "runs", "folder", "from"} - {"image"})
    texts = [
        "../outside/secret",
        str(outside / "secret"),
        "linked",
        "\x00",
        "secret/../../outside/secret" * 400,
    ]  # Streamlit reads half a million characters
    links = [
        {name: texts[(place + turn) % len(texts)] for place, name in enumerate(names)} for turn in range(len(texts))
    ]
    links += [{"run": "small", "image": text} for text in (f"../../{outside}/secret/report.html", texts[-1])]
    for link in links:
        with audited() as log:
            reopen(app, **link)
        assert not app.exception, (link, app.exception)
        # What it says was read, and leads nowhere; the page of masks has nothing to choose from here.
        assert app.warning or app.error or "image" in link or view == "masks", link
        assert [place for place in places(log) if "outside" in place] == []


def test_the_test_of_links_would_see_what_is_opened(runs, outside):
    with audited() as log:
        (outside / "secret" / "status.json").read_bytes()
        (runs / "linked" / "status.json").read_bytes()
        os.listdir(outside)
    assert len([place for place in places(log) if "outside" in place]) == 3


def corrupt_maps(run):
    for path in (run / "maps.zarr").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00{")


def lose_maps(run):
    shutil.rmtree(run / "maps.zarr" / "splits")


def cut_files(run):
    for path in run.rglob("*"):
        if path.is_file() and "zarr" not in str(path):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def odd_status(run):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "started": "yesterday", "updated": 3, "error": [1]}))


def odd_metrics(run):
    (run / "metrics.json").write_text(json.dumps({"model_names": ["plain", 3], "models": [], "split_names": {}}))


def odd_history(run):
    (run / "models" / "plain" / "history.csv").write_text("turn,loss\nx,y\n\x00,1\n")


def odd_snapshots(run):
    folder = run / "snapshots" / "plain"
    folder.mkdir(parents=True)
    for name in ("saliency-epoch-x.png", "saliency-epoch-0001.png"):
        (folder / name).write_bytes(b"no picture")


def folders_for_files(run):
    for name in ("metrics.json", "environment.json", "status.json", "models/plain/model.keras"):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()


def half_written(run):
    for name in ("status.json", "metrics.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "models")


DAMAGES = (
    corrupt_maps,
    lose_maps,
    cut_files,
    odd_status,
    odd_metrics,
    odd_history,
    odd_snapshots,
    folders_for_files,
    half_written,
)


@pytest.fixture(scope="module")
def damaged_runs(finished_runs, tmp_path_factory):
    """A whole run among others, each of which is damaged in its own way; not to be changed."""
    folder = tmp_path_factory.mktemp("damaged")
    for damage in DAMAGES:
        damage(shutil.copytree(finished_runs / "small", folder / damage.__name__))
    shutil.copytree(finished_runs / "other", folder / "whole")
    return folder


@pytest.mark.parametrize("view", VIEWS)
def test_a_damaged_run_breaks_no_page(explorer, damaged_runs, view):
    whole = {"run": "whole", "runs": "whole", "configs": "whole", "methods": "wbp"}
    app = explorer(damaged_runs, view, **whole)
    assert errors(app) == ""
    sections = [{"section": name} for name in ("measures", "training", "configurations")] if view == "runs" else [{}]
    for damage, section in product(DAMAGES, sections):
        name = damage.__name__
        reopen(app, run=name, runs=[name, "whole"], configs=[name, "whole"], methods="wbp", **section)
        assert not app.exception, (name, section, app.exception)
    assert errors(reopen(app, **whole)) == ""
    assert app.query_params.get("run", "whole") == "whole"


@pytest.mark.parametrize("view", VIEWS)
def test_a_run_that_is_deleted_meanwhile_breaks_no_page(explorer, runs, view):
    app = explorer(runs, view, run="small", runs=["small", "other"], methods="wbp")
    shutil.rmtree(runs / "small" / "maps.zarr")  # as if it were being deleted
    app.run()
    assert not app.exception, app.exception
    for gone in (["small"], ["other", "failed", "half"]):
        for name in gone:
            shutil.rmtree(runs / name)
        app.run()
        assert not app.exception, app.exception


def png(side=24):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_uploads_are_names_and_bytes_and_nothing_is_written(explorer, finished_runs, tmp_path):
    app = explorer(
        finished_runs, "own_images", run="small", sample="True", per_page="24"
    )  # all that is loaded is loaded
    names = ["../../evil.png", "/etc/evil", "..\\evil.png", str(tmp_path / "evil.png"), "a\x00evil.png", "evil" * 999]
    with audited() as log:  # all that is loaded is loaded
        app.file_uploader[0].set_value([(name, png(), "image/png") for name in names]).run()
    assert errors(app) == ""
    assert len([button for button in app.button if (button.key or "").startswith("open-")]) == 8 + len(names)
    assert [place for place in places(log) if "evil" in place] == []
    assert written(log) == []


def test_a_bomb_is_left_out_and_the_others_are_shown(explorer, finished_runs):
    app = explorer(finished_runs, "own_images", run="small")
    buffer = io.BytesIO()
    Image.new("1", (6000, 6000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 10_000
    files = [("bomb.png", buffer.getvalue(), "image/png"), ("fine.png", png(), "image/png")]
    app.file_uploader[0].set_value(files).run()
    assert errors(app) == ""
    assert "**bomb.png**: the image is too large" in app.warning[0].value
    assert [button.label for button in app.button if (button.key or "").startswith("open-")] == ["fine.png"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_model_file_is_refused_in_words(explorer, tmp_path, monkeypatch, suffix):
    flag = tmp_path / "it ran"
    inputs = keras.Input((4, 4, 1))
    harm = eval(f"lambda x: (__import__('pathlib').Path({str(flag)!r}).touch(), x)[1]")
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Lambda(harm)(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / f"model{suffix}")
    flag.unlink()
    monkeypatch.setenv("TFCAUSAL_MODEL", str(tmp_path / f"model{suffix}"))
    app = explorer(tmp_path / "nothing", "own_images")
    assert "such code, which is never run: a Lambda layer" in errors(app)
    assert not flag.exists()


def test_the_server_listens_on_this_machine_only_wherever_it_was_started(server):
    """It was started in another folder than its settings are in."""
    port = int(server.rsplit(":", 1)[1])
    tables = [Path(f"/proc/net/tcp{version}") for version in ("", "6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    hosts = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    assert hosts <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
    assert hosts or not tables[0].exists()


def test_an_upload_from_another_site_is_refused(server):
    port = int(server.rsplit(":", 1)[1])

    def answer(method, path, **headers):
        connection = http.client.HTTPConnection("localhost", port, timeout=10)
        connection.request(method, path, body=b"" if method == "PUT" else None, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    place = "/_stcore/upload_file/nobody/nothing"
    cookie = answer("GET", "/_stcore/health").headers["Set-Cookie"].split(";")[0]
    token = cookie.split("=", 1)[1]
    assert answer("PUT", place).status == 403
    assert answer("PUT", place, Cookie=cookie).status == 403
    known = {"Cookie": cookie, "X-Xsrftoken": token}
    assert answer("PUT", place, **known).status == 400  # the token is right, and there is no such session


NASTY = (
    "![x](http://evil.example/a.png)",
    "<img src=http://evil.example/b.png onerror=window.evil=1>",
    "[x](http://evil.example) :red[x] $y$ `z`",
    "<script>window.evil=1</script>**b** http://evil.example",
)


@pytest.fixture
def nasty_run(finished_runs):
    """A run whose names are Markdown and HTML, beside the others."""
    run = shutil.copytree(finished_runs / "small", finished_runs / "nasty")
    for name in ("test", "test_shuffled"):
        split = zarr.open_group(run / "maps.zarr", path=f"splits/{name}", mode="r+")
        names, classes = list(split.attrs["names"]), list(split.attrs["class_names"])
        names[: len(NASTY)] = NASTY
        split.attrs.update(names=names, class_names=[*NASTY, *classes[len(NASTY) :]])
    known = json.loads((run / "data.json").read_text())
    known["classes"][: len(NASTY)] = NASTY
    (run / "data.json").write_text(json.dumps(known))
    yield run
    shutil.rmtree(run)


def test_names_are_shown_as_they_are_and_never_as_markdown_or_html(server, page, settle, nasty_run):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    label = NASTY[0].replace("/", "%2F").replace("!", "%21").replace("(", "%28").replace(")", "%29")
    views = [
        ("", "Runs", f"run=nasty&section=training&value={label}"),
        ("images", "Images", "run=nasty&split=test&per_page=48"),
        ("one_image", "One image", f"run=nasty&split=test&image={label}&methods=wbp&explained={label}"),
        ("one_image", "One image", f"run=nasty&image=`{label}`"),
        ("intervene", "Intervene", f"run=nasty&split=test&image={label}&explained={label}"),
        ("compare", "Compare", f"runs=nasty&second=nasty: ppi&table={label}"),
        ("own_images", "Own images", "run=nasty&sample=True"),
        ("own_images", "Own images", f"run=nasty&sample=True&picture=sample 1&methods=wbp&target={label}"),
        ("masks", "Masks", f"folder={label}&image={label}"),
        ("effects", "Effects", f"run=nasty&level={label}"),
    ]
    for path, title, query in views:
        page.goto(f"{server}/{path}?{query}")
        settle(page, title, allow_errors=True)
        main = page.get_by_test_id("stMain")
        assert main.locator("script").count() == 0, title
        sources = main.locator("[src]").evaluate_all("all => all.map(shown => shown.src.slice(0, 22))")
        assert all(source == "data:image/png;base64," or source.startswith(server[:22]) for source in sources), title
        links = main.locator("a[href]").evaluate_all("all => all.map(link => link.origin)")
        assert set(links) <= {server}, title
        assert page.evaluate("window.evil") is None, title
        if title in ("Images", "Own images") and "picture" not in query:
            buttons = main.locator("[class*='st-key-open-'] button")
            buttons.last.wait_for()
            shown = buttons.all_inner_texts()
            expected = [name.rsplit("/", 1)[-1] for name in NASTY][: 1 if title == "Own images" else None]
            assert [name.replace("\u2060", "") for name in shown[: len(expected)]] == expected
    assert [url for url in asked if "evil.example/" in url.split("?")[0]] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("test/digit_0012-a.png", "test/digit_0012-a.png"),
        ("1.png", "1.png"),
        ("tfcausal run --resume runs/a_b", "tfcausal run --resume runs/a_b"),  # a command can be copied
        ("12:30, x: 3", "12\\:30, x: 3"),
        ("*a* _b_ `c`\n[d](e)", "\\*a\\* \\_b\\_ \\`c\\` \\[d\\](e)"),
        ("<b>&amp;</b>", "\\<b\\>\\&amp;\\</b\\>"),
        ("http://a", "http:\u2060//a"),
        (":smile:", "\\:\u2060smile:"),
        ("1. a", "\u20601. a"),
    ],
)
def test_texts_are_escaped_no_more_than_needed(monkeypatch, text, shown):
    monkeypatch.syspath_prepend(str(APPS))
    from widgets.wording import chart_text, plain

    assert plain(text) == shown
    assert "<" not in chart_text(text)
