import json
import shutil

import numpy as np
import pytest
import zarr


@pytest.fixture(scope="module")
def stored(finished_runs):
    return zarr.open_group(finished_runs / "small" / "maps.zarr", mode="r")["splits/test_shuffled"]


def shown(app):
    """The names below the pictures, in their order."""
    assert not app.exception
    return [button.label for button in app.button if (button.key or "").startswith("open-")]


def names(stored, positions):
    return [stored.attrs["names"][position].rsplit("/", 1)[-1] for position in positions]


def test_images_are_filtered_by_class_answer_and_context(explorer, finished_runs, stored):
    app = explorer(
        finished_runs, "images", model="cfcn", **{"class": ["3", "5"]}, answer="wrong", agreement="conflicts"
    )
    labels, answers = stored["labels"][:], stored["probabilities/cfcn"][:].argmax(axis=1)
    keep = np.isin(labels, [3, 5]) & (answers != labels) & ~stored["context_agrees"][:]
    assert shown(app) == names(stored, np.flatnonzero(keep)[:12])
    assert f"**{keep.sum()}** of 60 images, 0.0% right" in [text.value for text in app.markdown]

    app = explorer(finished_runs, "images", model="cfcn", group="class 4, context conflicts", per_page="48")
    assert shown(app) == names(stored, np.flatnonzero((labels == 4) & ~stored["context_agrees"][:]))


def test_images_are_sorted_by_what_a_model_says(explorer, finished_runs, stored):
    answers = {model: stored[f"probabilities/{model}"][:] for model in ("plain", "ppi")}
    columns = {
        "confidence": answers["plain"].max(axis=1),
        "loss": -np.log(answers["plain"][np.arange(60), stored["labels"][:]]),
        "mask_energy": stored["mask_energy/plain"][:],
        "disagreement": 0.5 * np.abs(answers["plain"].astype(float) - answers["ppi"]).sum(axis=1),
    }
    for by, values in columns.items():
        app = explorer(finished_runs, "images", model="plain", beside="ppi", sort=by, direction="largest")
        assert shown(app)[0] == names(stored, [np.nanargmax(values)])[0], by
        app.segmented_control(key="choice-direction").set_value("smallest").run()
        assert shown(app)[0] == names(stored, [np.nanargmin(values)])[0], by


def test_pages_of_images_come_one_after_the_other_and_begin_anew_with_another_choice(explorer, finished_runs, stored):
    app = explorer(finished_runs, "images", page="3")
    assert shown(app) == names(stored, range(24, 36))
    app.query_params["page"] = "99"  # as if the link had been edited
    app.run()
    assert shown(app) == names(stored, range(48, 60))
    app.segmented_control(key="choice-answer").set_value("wrong").run()
    assert app.query_params["page"] == "1"


def test_the_link_opens_the_same_view(explorer, finished_runs):
    first = explorer(
        finished_runs, "images", model="cfcn", sort="loss", direction="largest", opacity="0.35", shared="True"
    )
    second = explorer(finished_runs, "images", **first.query_params)
    assert shown(second) == shown(first)
    assert second.query_params == first.query_params
    assert second.slider(key="choice-opacity").value == 0.35
    assert second.toggle(key="choice-shared").value is True


def test_a_choice_wins_over_a_link_that_is_older_than_it(explorer, finished_runs):
    """The browser sends a click with the link of the moment, which may not have all earlier clicks yet."""
    app = explorer(finished_runs, "images", sort="loss")
    app.query_params["sort"] = "position"
    app.selectbox(key="choice-model").select("cfcn").run()
    assert app.selectbox(key="choice-model").value == "cfcn"
    assert app.selectbox(key="choice-sort").value == "loss"


def test_other_methods_are_computed_and_say_their_unit(explorer, finished_runs):
    app = explorer(finished_runs, "images", method="gradient", colours="positive")
    assert len(shown(app)) == 12
    (legend,) = [element.proto.body for element in app.get("html")]
    assert "gradient, logits per unit of a pixel's value" in legend.replace("&#x27;", "'")
    assert "for the class" in legend
    assert "against" not in legend


def test_every_picture_has_a_text(explorer, finished_runs):
    app = explorer(finished_runs, "images")
    texts = [image.alt for element in app.get("image") for image in element.proto.imgs]
    assert len(texts) == 12
    assert all("wbp map of plain for" in text and "class" in text for text in texts)


def test_unknown_words_in_a_link_are_named_and_the_page_is_shown_without_them(explorer, finished_runs):
    app = explorer(finished_runs, "images", run="../small", model="nobody", method="magic", sort="colour", opacity="7")
    warned = " ".join(warning.value for warning in app.warning)
    assert all(word in warned for word in ("`../small`", "`nobody`", "`magic`", "`colour`", "`7`"))
    assert len(shown(app)) == 12


def test_a_picture_opens_as_one_image(explorer, finished_runs, stored):
    app = explorer(finished_runs, "images", model="cfcn")
    app.button(key="open-4").click().run()
    assert app.title[0].value == "One image"
    assert app.text_input(key="choice-image").value == stored.attrs["names"][4]
    assert app.selectbox(key="choice-model").value == "cfcn"


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error)


def test_a_damaged_store_is_an_error_on_its_own_run_only(explorer, runs):
    maps = runs / "small" / "maps.zarr" / "splits" / "test_shuffled"
    (maps / "maps" / "plain" / "c" / "0" / "0" / "0").write_bytes(b"\x00" * 40)
    app = explorer(runs, "images", run="small")
    assert "maps.zarr: cannot be read" in errors(app)
    assert shown(explorer(runs, "images", run="small", model="cfcn"))

    shutil.rmtree(maps / "probabilities" / "plain" / "c")  # a lost file reads as zeros
    assert "answers of plain are missing" in errors(explorer(runs, "images", run="small"))

    (maps / "zarr.json").write_text("{")
    assert "maps.zarr: cannot be read" in errors(explorer(runs, "images", run="small"))
    assert shown(explorer(runs, "images", run="other"))


def test_a_run_that_is_deleted_while_its_images_are_shown_is_said_to_be_gone(explorer, runs):
    app = explorer(runs, "images", run="small")
    shutil.rmtree(runs / "small" / "maps.zarr")
    app.run()
    assert "There is no run `small` here" in app.warning[0].value
    assert app.query_params["run"] == "other"
    assert shown(app)


def test_a_run_of_a_release_that_kept_no_images_is_still_readable(explorer, runs):
    split = runs / "small" / "maps.zarr" / "splits" / "test_shuffled"
    for name in ("images", "masks", "mask_area", "has_mask", "contexts", "context_agrees", "mask_energy", "attention"):
        shutil.rmtree(split / name)
    metadata = json.loads((split / "zarr.json").read_text())
    for key in ("value_range", "context_names"):
        del metadata["attributes"][key]
    (split / "zarr.json").write_text(json.dumps(metadata))
    app = explorer(runs, "images", run="small", beside="cfcn", sort="attention_change")
    assert errors(app) == ""
    assert "kept no images" in app.warning[0].value
    assert len(shown(app)) == 12
