import numpy as np
import pytest


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error)


def test_two_models_are_explained_side_by_side_and_their_logits_add_up(explorer, finished_runs):
    app = explorer(finished_runs, "one_image", model="plain", beside="cfcn", methods=["wbp", "gradient"], explained="7")
    assert errors(app) == ""
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    maps = [f"{method} map of {model} for class 7" for model in ("plain", "cfcn") for method in ("wbp", "gradient")]
    assert [text for text in texts if " map of " in text] == maps
    assert "its true mask outlined" in texts[0]
    facts, *logits = (element.value for element in app.dataframe)
    assert facts["model"].tolist() == ["plain", "cfcn"]
    for table, (_, row) in zip(logits, facts.iterrows(), strict=True):
        np.testing.assert_allclose(table["logit"], table["from pixels"] + table["from biases"], atol=1e-5)
        share = table["from pixels"] / table["logit"]
        np.testing.assert_allclose(table["share of pixels"], share, rtol=1e-5)
        answers = np.exp(table["logit"]) / np.exp(table["logit"]).sum()
        np.testing.assert_allclose(table["probability"], answers, rtol=1e-4)
        assert table["class"].iloc[0] == row["answer"]
    captions = [caption.value for caption in app.caption if "random order" in caption.value]
    assert len(captions) == 2
    assert all("wbp 0." in caption and "gradient 0." in caption for caption in captions)


def test_the_next_image_is_a_click_away_and_the_link_follows(explorer, finished_runs):
    app = explorer(finished_runs, "one_image", methods="wbp")
    first = app.query_params["image"]
    assert app.button[0].disabled
    app.button[1].click().run()
    second = app.query_params["image"]
    assert second != first
    app.button[0].click().run()
    assert app.query_params["image"] == first
    assert errors(app) == ""


def test_an_image_stays_where_another_split_has_it_and_is_the_first_one_where_not(explorer, finished_runs):
    app = explorer(finished_runs, "one_image", split="test_shuffled", methods="wbp")
    app.button[1].click().run()
    second = app.query_params["image"]
    app.selectbox(key="choice-model").set_value("cfcn").run()
    assert app.query_params["image"] == second
    app.selectbox(key="choice-split").set_value("validation").run()
    assert errors(app) == ""
    assert app.query_params["image"].startswith("validation/")
    app.text_input(key="choice-image").set_value("validation/nothing").run()
    assert "validation/nothing" in errors(app)  # what is typed is not replaced


def test_an_image_of_another_page_is_not_looked_for_here(explorer, finished_runs):
    app = explorer(finished_runs, "one_image", methods="wbp")
    app.session_state["address-remembered"]["image"] = ["images/long/1.png"]  # as the page of masks leaves it
    app.switch_page("views/runs.py").run()
    app.switch_page("views/one_image.py").run()
    assert errors(app) == ""
    assert app.query_params["image"].startswith("test_shuffled/")


def test_without_methods_there_is_the_random_order_alone(explorer, finished_runs):
    app = explorer(finished_runs, "one_image", methods="-")
    assert errors(app) == ""
    assert any(caption.value.startswith("Area under the curve: random order 0.") for caption in app.caption)


@pytest.mark.parametrize("image", ["../../etc/passwd", "nothing", "test_shuffled/digit_9999"])
def test_an_unknown_image_is_an_error_that_names_it(explorer, finished_runs, image):
    app = explorer(finished_runs, "one_image", image=image)
    assert repr(image)[1:-1] in errors(app)
    assert app.text_input(key="choice-image").value == image


def test_a_model_file_that_is_gone_or_damaged_leaves_the_stored_maps(explorer, runs):
    (runs / "small" / "models" / "plain" / "model.keras").write_bytes(b"nothing")
    app = explorer(runs, "one_image", run="small", methods=["wbp", "gradient"])
    assert "a model that Keras can load" in errors(app)
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    assert [text.split()[0] for text in texts if " map of " in text] == ["wbp"]


def test_code_in_a_model_file_is_not_run(explorer, runs):
    """A Lambda layer of Python code is what Keras's safe mode refuses."""
    import keras

    path = runs / "small" / "models" / "plain" / "model.keras"
    inputs = keras.Input((24, 24, 1))
    hidden = keras.layers.Lambda(lambda x: x * 2.0)(inputs)
    keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(hidden))).save(path)
    app = explorer(runs, "one_image", run="small", methods=["gradient"])
    assert "a model that Keras can load" in errors(app)
