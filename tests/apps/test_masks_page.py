import csv
import os
import shutil
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

APPS = Path(__file__).parents[2] / "apps"
HEIGHT, WIDTH = 20, 30


@pytest.fixture
def data(tmp_path, write_images):
    return write_images(tmp_path / "cells", HEIGHT, WIDTH)


@pytest.fixture
def masks_page(explorer, monkeypatch, tmp_path, data):
    """The page as `tfcausal mask` opens it; there is no canvas to wait for."""

    def open_page(runs=tmp_path / "no_runs", **parameters):
        monkeypatch.setenv("TFCAUSAL_MASKS", str(data))
        monkeypatch.setenv("TFCAUSAL_STARTED_IN", str(tmp_path))
        app = explorer(runs, "masks", **parameters)
        monkeypatch.setattr(sys.modules["widgets.drawing"], "_SECONDS_TO_SEND", 0.01)
        return app

    return open_page


@pytest.fixture
def trained(finished_runs, data, tmp_path):
    """A folder with one run on the images: a finished one, whose images carry names of the folder."""
    runs = tmp_path / "runs"
    run = shutil.copytree(finished_runs / "small", runs / "small")
    lines = (run / "run.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("data:")
    end = next(k for k in range(start + 1, len(lines)) if not lines[k].startswith(" "))
    source = ["data:", "  source: image_folder", "  path: cells", "  image_size: [24, 24]", "  channels: 1"]
    (run / "run.yaml").write_text("\n".join([*lines[:start], *source, *lines[end:]]) + "\n", encoding="utf-8")
    splits = zarr.open_group(run / "maps.zarr", mode="r+")["splits"]
    for split, names in {"test": ["long/0", "round/1"], "validation": ["round/0"], "test_shuffled": []}.items():
        attributes = splits[split].attrs
        known = [f"images/{name}.png" for name in names]
        attributes["names"] = known + list(attributes["names"])[len(known) :]
    splits["test"]["mask_energy/plain"][:] = [0.9, 0.1, *[0.5] * 58]
    splits["validation"]["mask_energy/plain"][:] = np.nan
    splits["test_shuffled"]["mask_energy/plain"][:] = np.nan
    return runs


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error).replace("\\", "")


def said(app):
    return " ".join(text.value for text in app.success).replace("\\", "")


def facts(app):
    """What is said about the image."""
    return next(text.value for text in app.markdown if "pixels" in text.value).replace("\\", "")


def press(app, name):
    return app.button(key=f"masks-{name}").click().run()


def draw_box(app, **edges):
    image = app.query_params["image"]
    for name, value in edges.items():
        app.number_input(key=f"masks-{name.title()}-{image}").set_value(value)
    return press(app.run(), "box")


def test_a_box_is_drawn_saved_and_followed_by_the_next_image(masks_page, data):
    app = masks_page(count="3", seed="2")
    assert errors(app) == ""
    first = app.query_params["image"]
    assert "no mask yet" in facts(app)
    draw_box(app, left=5, top=3, right=20, bottom=9)
    (picture,) = [image for element in app.get("image") for image in element.proto.imgs]
    assert picture.alt == f"The mask drawn on {first}, 15.0% of the image"
    press(app, "next")
    assert errors(app) == ""
    assert f"Saved {first.replace('images', 'masks')}: 15.0% of it" in said(app)
    assert app.query_params["image"] != first
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:9, 5:20] = 255
    with Image.open(data / first.replace("images", "masks")) as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected)
    assert "With a mask: **1 of 3** in the sample" in [text.value for text in app.markdown]
    with open(data / "mask_times.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == first
    assert 0 <= float(row["seconds"]) < 60


def test_shapes_are_undone_and_cleared(masks_page, data):
    app = masks_page()
    draw_box(app, left=0, top=0, right=15, bottom=20)
    app.segmented_control(key="choice-adds").set_value("cuts out").run()
    draw_box(app, left=0, top=0, right=15, bottom=10)
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    assert "25.0% of the image" in texts[0]
    press(app, "undo")
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    assert "50.0% of the image" in texts[0]
    press(app, "clear")
    assert not app.get("image")
    press(app, "undo")
    press(app, "save")
    assert "Not saved: Nothing is drawn yet" in errors(app)
    assert not (data / "masks").exists()


@pytest.mark.parametrize("pressed", list(permutations(("undo", "save", "next"))))
def test_what_is_pressed_within_one_run_changes_the_drawing_saves_it_and_then_leaves(monkeypatch, pressed):
    """Streamlit hands over together, and in no known order, what was pressed while a script ran."""
    monkeypatch.syspath_prepend(str(APPS))
    from widgets import address, drawing

    desk = drawing.Desk()
    for name in pressed:
        desk.ask(name)
    address.note_run()
    desk.ask("clear")
    address.note_run()
    desk.ask("undo")
    assert desk.take() == ["undo", "save", "next", "clear", "undo"]
    desk.ask("save")
    assert desk.take() == ["save"]


def test_masks_that_say_nothing_are_refused(masks_page, data):
    app = masks_page()
    draw_box(app, left=0, top=0, right=WIDTH, bottom=HEIGHT)
    press(app, "save")
    assert "Not saved: The mask covers the whole picture" in errors(app)
    app.segmented_control(key="choice-adds").set_value("cuts out").run()
    draw_box(app, left=0, top=0, right=WIDTH, bottom=HEIGHT)
    press(app, "next")
    assert "Not saved: The mask is empty" in errors(app)
    draw_box(app, left=9, top=0, right=9, bottom=5)
    assert "left < right and top < bottom" in errors(app)
    assert not (data / "masks").exists()


def test_a_mask_that_is_there_is_replaced_only_when_that_is_chosen(masks_page, data):
    (data / "masks" / "long").mkdir(parents=True)
    before = np.zeros((HEIGHT, WIDTH), np.uint8)
    before[:10] = 255
    path = data / "masks" / "long" / "2.png"
    Image.fromarray(before).save(path)
    app = masks_page(image="images/long/2.png", through="all")
    assert "its mask, outlined, has 50.0% of it" in facts(app)
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "next")
    assert "is there already, and was not replaced" in errors(app)
    assert app.query_params["image"] == "images/long/2.png"
    with Image.open(path) as mask:
        np.testing.assert_array_equal(np.asarray(mask), before)
    app.segmented_control(key="masks-replace-images/long/2.png-0").set_value("replace").run()
    press(app, "save")
    assert "5.0% of it" in said(app)
    assert "has 5.0% of it" in facts(app)
    assert app.segmented_control(key="masks-replace-images/long/2.png-1").value == "keep"


def test_another_image_is_not_shown_before_the_drawing_is_safe(masks_page, data):
    app = masks_page(seed="1")
    names = [option.lstrip("✓· ") for option in app.selectbox(key=select_key(app)).options]
    draw_box(app, left=0, top=0, right=3, bottom=10)
    app.selectbox(key=select_key(app)).select_index(5).run()
    assert app.query_params["image"] == names[5]
    assert f"Saved {names[0].replace('images', 'masks')}" in said(app)

    draw_box(app, left=0, top=0, right=WIDTH, bottom=HEIGHT)
    app.selectbox(key=select_key(app)).select_index(3).run()
    assert "Not saved: The mask covers the whole picture" in errors(app)
    assert app.query_params["image"] == names[5]
    press(app, "clear")
    app.selectbox(key=select_key(app)).select_index(3).run()
    assert errors(app) == ""


def select_key(app):
    return next(box.key for box in app.selectbox if box.key.startswith("masks-image-"))


def test_what_is_drawn_is_still_there_after_a_look_at_another_page(masks_page):
    app = masks_page()
    draw_box(app, left=0, top=0, right=3, bottom=10)
    app.switch_page("views/runs.py").run()
    app.switch_page("views/masks.py").run()
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    assert "5.0% of the image" in texts[0]


def test_the_end_of_the_sample_is_said(masks_page):
    app = masks_page(count="1")
    press(app, "previous")
    assert "There is no image before this one without a mask in the sample" in said(app)
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "next")
    assert "Saved masks/" in said(app)
    assert "There is no further image without a mask in the sample." in said(app)


def test_the_sample_is_the_same_after_masks_are_drawn_and_grows_with_its_number(masks_page):
    app = masks_page(count="3", seed="5")
    first = [option.lstrip("✓· ") for option in app.selectbox(key=select_key(app)).options]
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "save")
    again = masks_page(count="5", seed="5")
    options = again.selectbox(key=select_key(again)).options
    assert [option.lstrip("✓· ") for option in options[:3]] == first
    assert options[0].startswith("✓")
    assert again.query_params["image"] == first[1]


@pytest.mark.parametrize(
    "image", ["../secret.png", "images/long/../../../secret.png", "/etc/passwd", "images/long/9.png"]
)
def test_a_link_opens_no_file_but_images_of_the_folder(masks_page, image):
    app = masks_page(image=image)
    assert image in app.warning[0].value
    assert app.query_params["image"].startswith("images/")
    assert errors(app) == ""


def test_a_link_opens_no_other_folder(explorer, monkeypatch, trained, data, tmp_path):
    monkeypatch.setenv("TFCAUSAL_STARTED_IN", str(tmp_path))
    other = shutil.copytree(data, tmp_path / "other")
    app = explorer(trained, "masks")
    app.query_params["folder"] = str(other)  # as if the link had been edited
    app.run()
    assert "There is no folder" in app.warning[0].value
    assert app.query_params["folder"] == str(data)
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "save")
    assert (data / "masks").is_dir()
    assert not (other / "masks").exists()


def test_without_a_folder_the_page_says_how_to_start(explorer, finished_runs):
    app = explorer(finished_runs, "masks")
    assert errors(app) == ""
    assert "`tfcausal mask FOLDER`" in app.info[0].value


def test_a_run_on_the_folder_tells_training_images_from_the_others(masks_page, trained):
    app = masks_page(trained)
    assert app.query_params["run"] == "small"
    assert app.query_params["part"] == "train"
    options = {option.lstrip("✓· ") for option in app.selectbox(key=select_key(app)).options}
    assert len(options) == 5
    assert not options & {"images/long/0.png", "images/round/0.png", "images/round/1.png"}
    assert "a training image: its mask is learnt from" in facts(app)
    app.selectbox(key="choice-part").select("all").run()
    app.selectbox(key=select_key(app)).set_value("images/long/0.png").run()
    assert "a test image: its mask measures" in facts(app)


def test_images_are_chosen_by_lowest_mask_energy(masks_page, trained):
    app = masks_page(trained, order="energy", model="plain", part="all", count="8")
    names = [option.lstrip("✓· ") for option in app.selectbox(key=select_key(app)).options]
    assert [name.split("/")[1] for name in names] == ["round"] * 4 + ["long"] * 4
    assert app.query_params["image"] == names[0]
    assert "mask energy 0.10" in facts(app)
    assert errors(app) == ""


def test_without_measured_energies_images_are_chosen_at_random_and_that_is_said(masks_page, trained):
    maps = zarr.open_group(trained / "small" / "maps.zarr", mode="r+")["splits"]
    maps["test"]["mask_energy/plain"][:] = np.nan
    app = masks_page(trained, order="energy", model="plain")
    assert "has measured no mask energy of plain" in errors(app)
    assert len(app.selectbox(key=select_key(app)).options) == 5
    shutil.rmtree(trained / "small" / "maps.zarr")
    app = masks_page(trained, order="energy", model="plain")
    assert "small has measured no images yet" in errors(app)
    assert len(app.selectbox(key=select_key(app)).options) == 8
    app = masks_page(order="energy")
    assert "there is none: these are chosen at random" in app.info[0].value


def test_a_damaged_run_leaves_the_images(masks_page, trained):
    (trained / "small" / "maps.zarr" / "splits" / "test" / "zarr.json").write_text("{")
    app = masks_page(trained, order="energy")
    assert "maps.zarr: cannot be read" in errors(app)
    assert len(app.selectbox(key=select_key(app)).options) == 8
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "save")
    assert "Saved masks/" in said(app)


def test_files_that_cannot_be_used_are_said_and_the_others_drawn(masks_page, data):
    (data / "images" / "long" / "broken.png").write_bytes(b"nothing")
    (data / "images" / "long" / "scan.tif").write_bytes(b"II*\0")
    app = masks_page(image="images/long/broken.png")
    assert "broken.png' cannot be used: the content is neither PNG nor JPEG" in errors(app)
    assert "images/long/scan.tif" in app.code[0].value
    press(app, "next")
    assert errors(app) == ""
    assert "no mask yet" in facts(app)

    (data / "masks" / "long").mkdir(parents=True)
    (data / "masks" / "long" / "1.png").write_bytes(b"nothing")
    app = masks_page(image="images/long/1.png")
    assert "masks/long/1.png' cannot be used" in errors(app)


def test_a_folder_that_is_gone_or_cannot_be_written_to_is_an_error(masks_page, data):
    (data / "masks").write_text("a file")
    app = masks_page()
    assert "expected a folder to save masks in; received a file" in errors(app)
    draw_box(app, left=0, top=0, right=3, bottom=10)
    press(app, "save")
    assert "cannot be written" in errors(app)
    shutil.rmtree(data)
    assert "a folder of images; received nothing at that place" in errors(masks_page())


def test_images_that_come_later_are_found(masks_page, data):
    app = masks_page()
    assert len(app.selectbox(key=select_key(app)).options) == 8
    shutil.copy(data / "images" / "long" / "0.png", data / "images" / "long" / "9.png")
    os.utime(data / "images" / "long", ns=(1, 1))
    app.number_input(key="choice-count").set_value(8).run()
    app = masks_page(count="9")
    assert len(app.selectbox(key=select_key(app)).options) == 9


def test_names_are_shown_as_they_are(masks_page, data):
    name = "*a* :red[x] $y$.png"
    shutil.copy(data / "images" / "long" / "0.png", data / "images" / "long" / name)
    app = masks_page(image=f"images/long/{name}")
    assert errors(app) == ""
    assert r"\*a\*" in next(text.value for text in app.markdown if "pixels" in text.value)
