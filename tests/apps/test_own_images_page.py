import io
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from tfcausal.models.loading import load_trained

RANDOM = np.random.default_rng(0)
DIGITS = [RANDOM.integers(0, 256, (24, 24), dtype=np.uint8) for _ in range(3)]
MIME = "application/octet-stream"


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def own_images(explorer, monkeypatch):
    """The page on a folder of runs, with a model file or without; each time as a new session."""

    def open_page(folder, file=None, /, **parameters):
        if file is None:
            monkeypatch.delenv("TFCAUSAL_MODEL", raising=False)
        else:
            monkeypatch.setenv("TFCAUSAL_MODEL", str(file))
        return explorer(folder, "own_images", **parameters)

    return open_page


@pytest.fixture
def model_file(tmp_path):
    """A small model of colour images that scales its pixels itself."""
    model = keras.Sequential(
        [
            keras.Input((16, 20, 3)),
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    model.save(tmp_path / "colours.keras")
    return tmp_path / "colours.keras", model


def hand_over(app, *files):
    return app.file_uploader[0].set_value([(name, content, MIME) for name, content in files]).run()


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error)


def warned(app):
    return " ".join(warning.value for warning in app.warning)


def shown(app):
    assert errors(app) == ""
    return [button.label for button in app.button if (button.key or "").startswith("open-")]


def texts(app):
    return [image.alt for element in app.get("image") for image in element.proto.imgs]


def captions(app):
    return [caption.value for caption in app.caption]


def test_images_are_answered_and_a_bad_file_is_named(own_images, finished_runs):
    app = own_images(finished_runs, run="small", model="cfcn")
    assert "a link carries none" in app.info[0].value
    half = png(DIGITS[0])[:200]
    app = hand_over(
        app, ("one.png", png(DIGITS[0])), ("half.png", half), ("no.txt", b"text"), ("b.jpg", png(DIGITS[1]))
    )
    assert shown(app) == ["one.png", "b.jpg"]
    assert "2 files are left out" in warned(app)
    assert "**no.txt**: the content is neither PNG nor JPEG" in warned(app)
    assert "**half.png**: the file cannot be decoded" in warned(app)
    model = load_trained(finished_runs / "small", "cfcn").model
    answers = np.asarray(model(np.stack(DIGITS[:2])[..., None].astype(np.float32) / 255 - 0.5))
    expected = [f"{row.argmax()}, p = {row.max():.2f}" for row in answers]
    assert [text for text in captions(app) if ", p = " in text] == expected
    assert [text.split(":")[0] for text in texts(app)] == ["one.png", "b.jpg"]
    assert "wbp map of cfcn of small for" in texts(app)[0]


def test_files_add_up_until_they_are_removed_and_the_server_forgets_them(own_images, finished_runs):
    app = hand_over(own_images(finished_runs), ("one.png", png(DIGITS[0])))
    assert app.file_uploader[0].value == []  # what was handed over is no longer in the uploader
    app = hand_over(app, ("two.png", png(DIGITS[1])))
    assert shown(app) == ["one.png", "two.png"]
    app.switch_page("views/runs.py").run()
    app.switch_page("views/own_images.py").run()
    assert shown(app) == ["one.png", "two.png"]
    next(button for button in app.button if button.label == "Remove my images").click().run()
    assert shown(app) == []
    assert "own-images-answers" not in app.session_state


def test_another_session_does_not_see_them(own_images, finished_runs):
    hand_over(own_images(finished_runs), ("secret.png", png(DIGITS[0])))
    assert shown(own_images(finished_runs)) == []


def test_a_sample_needs_no_files_and_its_link_opens_it_again(own_images, finished_runs):
    app = own_images(finished_runs, run="small", sample="True", method="gradient", opacity="0.4")
    names = shown(app)
    assert len(names) == 8
    again = own_images(finished_runs, **app.query_params)
    assert shown(again) == names
    assert again.query_params == app.query_params
    app.button(key="open-sample 4").click().run()
    assert app.query_params["picture"] == "sample 4"
    assert texts(app)[0].startswith(f"test/{names[3]}: ")
    one = own_images(finished_runs, **app.query_params)
    assert texts(one) == texts(app)


def test_one_sigmoid_answers_only_above_one_half(own_images, finished_runs, tmp_path):
    inputs = keras.Input((4, 4, 1))
    head = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    model.set_weights([np.ones((16, 1)), np.array([-8.0])])
    model.save(tmp_path / "bright.keras")
    app = own_images(finished_runs, tmp_path / "bright.keras")
    app = hand_over(app, *((f"{grey}.png", png(np.full((4, 4), grey, np.uint8))) for grey in (255, 0)))
    assert shown(app) == ["255.png", "0.png"]
    assert [text for text in captions(app) if "p = " in text] == ["0, p = 1.00", "none; 0: p = 0.00"]
    app.button(key="open-upload 2").click().run()
    app.segmented_control(key="choice-show").set_value("interventions").run()
    assert any("The answer stays none" in info.value for info in app.info)


def test_one_image_under_several_methods_and_its_logits(own_images, finished_runs):
    app = hand_over(own_images(finished_runs, run="small", model="ppi"), ("one.png", png(DIGITS[0])))
    app.button(key="open-upload 1").click().run()
    app.selectbox(key="choice-target").select("7").run()
    app.multiselect(key="choice-methods").set_value(["wbp", "gradient"]).run()
    assert errors(app) == ""
    assert texts(app)[1:] == [f"{method} map of ppi of small for class 7" for method in ("wbp", "gradient")]
    (chart,) = app.get("plotly_chart")
    assert "Logits taken apart. class " in chart.proto.alt
    app.segmented_control(key="choice-show").set_value("interventions").run()
    assert errors(app) == ""
    assert any("The answer stays" in info.value for info in app.info)
    again = own_images(finished_runs, **app.query_params)  # the files are gone, and the choices are not
    assert "a link carries none" in again.info[0].value
    hand_over(again, ("one.png", png(DIGITS[0])))
    assert texts(again) == texts(app)
    next(button for button in app.button if button.label == "All images").click().run()
    assert shown(app) == ["one.png"]


def test_an_image_of_a_link_that_is_not_there_is_said(own_images, finished_runs):
    app = own_images(finished_runs, run="small", sample="True", picture="upload 99")
    assert "There is no image `upload 99` here" in warned(app)
    assert len(shown(app)) == 8


def test_a_model_file_is_shown_images_in_its_size_and_range(own_images, finished_runs, model_file):
    path, model = model_file
    pixels = RANDOM.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    app = hand_over(own_images(finished_runs, path), ("one.png", png(pixels)))
    assert shown(app) == ["one.png"]
    assert "Pixels are given as 0 to 255: the model begins with a layer that scales them." in " ".join(captions(app))
    for black, white in ((0, 255), (-1, 1)):
        app.text_input(key="choice-pixels").set_value(f"{black} {white}").run()
        output = np.asarray(model(black + (white - black) * pixels[None].astype(np.float32) / 255))[0]
        assert f"{output.argmax()}, logit = {output.max():.2f}" in captions(app)
    app.text_input(key="choice-pixels").set_value("0").run()
    assert "expected two numbers, such as 0 255; received '0'" in errors(app)
    app.segmented_control(key="choice-from").set_value("runs").run()
    assert shown(app) == ["one.png"]
    assert "colours" not in " ".join(texts(app))


def test_a_model_of_any_size_asks_for_one(own_images, tmp_path):
    layers = [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")]
    keras.Sequential([keras.Input((None, None, 3)), *layers]).save(tmp_path / "any.keras")
    app = own_images(tmp_path / "no runs", tmp_path / "any.keras")
    assert errors(app) == ""
    assert "This model takes images of any size: give the height and width" in app.info[0].value
    app.text_input(key="choice-size").set_value("12").run()
    assert "expected two numbers, such as 0 255; received '12'" in errors(app)
    app.text_input(key="choice-size").set_value("12 x 18").run()
    app = hand_over(app, ("one.png", png(DIGITS[0])))
    assert shown(app) == ["one.png"]
    assert texts(app)[0].startswith("one.png: wbp map of any.keras")


def test_which_file_is_loaded_no_link_says(own_images, finished_runs, model_file):
    path, _ = model_file
    for name in ("model", "from", "TFCAUSAL_MODEL"):
        app = own_images(finished_runs, None, **{name: str(path)})
        assert errors(app) == ""
        assert "colours" not in " ".join(captions(app))
        assert app.query_params.get("from") is None


@pytest.mark.parametrize("content", [None, b"nothing"])
def test_a_model_file_that_is_gone_or_damaged_is_said(own_images, finished_runs, tmp_path, content):
    if content is not None:
        (tmp_path / "model.keras").write_bytes(content)
    app = own_images(finished_runs, tmp_path / "model.keras")
    assert "model.keras" in errors(app)
    assert "expected a" in errors(app)
    app.segmented_control(key="choice-from").set_value("runs").run()
    assert errors(app) == ""


def test_without_models_the_page_says_how_to_get_one(own_images, tmp_path):
    app = own_images(tmp_path / "nothing")
    assert errors(app) == ""
    assert "tfcausal explore MODEL.keras" in app.info[0].value


def test_a_run_that_is_deleted_while_it_is_asked_breaks_nothing(own_images, runs):
    app = hand_over(own_images(runs, run="small"), ("one.png", png(DIGITS[0])))
    shutil.rmtree(runs / "small")
    app.run()
    assert "There is no run `small` here" in warned(app)
    assert shown(app) == ["one.png"]
    (runs / "other" / "models" / "plain" / "model.keras").write_bytes(b"nothing")
    app.toggle(key="choice-sample").set_value(True).run()
    assert not app.exception
