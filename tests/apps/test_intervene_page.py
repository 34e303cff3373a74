import hashlib
import json

import numpy as np
import pytest

from tfcausal.data.mask_drawing import Box

REGIONS = ("box,2,3,12,20", "box,14,0,20,6")


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error).replace("\\", "")


def sentence(app):
    (told,) = [entry.value for entry in [*app.info, *app.warning] if "answer" in entry.value]
    return told


def alternatives(app):
    return [image.alt for element in app.get("image") for image in element.proto.imgs]


def effects(app):
    table = app.dataframe[0].value.set_index("class")
    return table.loc[[str(index) for index in range(10)]]


@pytest.fixture(scope="module")
def subject(finished_runs):
    """What intervenes on the first image of the run, the image, and its mask."""
    from tfcausal.browsing.classifier import RunClassifier
    from tfcausal.browsing.interventions import Interventions
    from tfcausal.browsing.stored_split import StoredSplit
    from tfcausal.runs import RunDirectory

    run = RunDirectory.open(finished_runs / "small")
    split = StoredSplit(run, "test_shuffled")
    return Interventions(RunClassifier(run, "plain")), split.images([0])[0], split.masks([0])[0]


def check_effects(app, found):
    table = effects(app)
    np.testing.assert_allclose(table["before"], found.before, atol=1e-6)
    np.testing.assert_allclose(table["after"], found.after, atol=1e-6)
    np.testing.assert_allclose(table["effect"], found.after - found.before, atol=1e-6)


def test_at_first_nothing_is_done_and_a_rectangle_can_be_added_and_moved_with_the_keyboard(
    explorer, finished_runs, subject
):
    interventions, image, _ = subject
    app = explorer(finished_runs, "intervene", run="small")
    assert errors(app) == ""
    assert sentence(app).startswith("Nothing is done yet. The answer stays")
    assert effects(app)["effect"].abs().max() == 0
    next(button for button in app.button if button.label == "Add a rectangle").click().run()
    assert app.query_params["region"] == ["box,6,6,18,18"] or app.query_params["region"] == "box,6,6,18,18"
    for edge, value in (("top", 2), ("right", 24), ("left", 10)):
        app.number_input(key=f"regions-{edge}").set_value(value).run()
    mask = np.zeros((24, 24), bool)
    mask[2:18, 10:24] = True
    assert sentence(app).startswith(f"Masked {mask.mean():.1%} of the picture. The answer")
    check_effects(app, interventions.compare(image, interventions.masked(image, mask)))
    assert "box,10,2,24,18" in app.query_params["region"]
    next(button for button in app.button if button.label == "Remove all").click().run()
    assert effects(app)["effect"].abs().max() == 0
    assert errors(app) == ""


def test_a_link_opens_regions_and_says_in_words_what_masking_them_did(explorer, finished_runs, subject):
    interventions, image, _ = subject
    app = explorer(finished_runs, "intervene", region=list(REGIONS), masked_value="1.0", method="gradient")
    mask = np.zeros((24, 24), bool)
    mask[3:20, 2:12] = mask[0:6, 14:20] = True
    changed = interventions.masked(image, mask, 1.0)
    found = interventions.compare(image, changed)
    check_effects(app, found)
    first, second = found.before.argmax(), found.after.argmax()
    words = f"The answer stays {first}" if first == second else f"The answer changed from {first} to {second}"
    assert words in sentence(app)
    assert f"{first}: p {found.before[first]:.2f} → {found.after[first]:.2f}" in sentence(app)
    for when in ("before", "after"):
        assert f"gradient map for class {first} {when} the intervention" in alternatives(app)
    assert sorted(app.query_params["region"]) == sorted(REGIONS)
    assert app.number_input(key="regions-left").value == 14
    app.segmented_control(key="regions-chosen").set_value(1).run()
    assert app.number_input(key="regions-left").value == 2
    app.number_input(key="regions-left").set_value(12).run()
    assert any("left < right" in entry.value for entry in app.warning)
    assert sorted(app.query_params["region"]) == sorted(REGIONS)
    assert errors(app) == ""


@pytest.mark.parametrize(("source", "inside"), [("cause", True), ("rest", False)])
def test_the_known_cause_and_its_inverse_are_masks(explorer, finished_runs, subject, source, inside):
    interventions, image, cause = subject
    app = explorer(finished_runs, "intervene", masking=source, explained="answer after")
    mask = cause if inside else ~cause
    found = interventions.compare(image, interventions.masked(image, mask))
    check_effects(app, found)
    assert f"wbp map for class {found.after.argmax()} after the intervention" in alternatives(app)
    assert "the known cause" in sentence(app) if inside else "all but the known cause" in sentence(app)
    assert errors(app) == ""


def test_blocks_at_random_are_those_of_the_seed(explorer, finished_runs, subject):
    from tfcausal.interventions.masking import random_blocks

    interventions, image, _ = subject
    app = explorer(finished_runs, "intervene", masking="blocks", share="0.25", blocks="6", block_seed="3")
    mask = random_blocks(1, (24, 24), 0.25, (6, 6), 3)[0, ..., 0] > 0
    check_effects(app, interventions.compare(image, interventions.masked(image, mask)))
    app.slider(key="choice-block_seed").set_value(4.0).run()
    assert app.query_params["block_seed"] == "4"
    mask = random_blocks(1, (24, 24), 0.25, (6, 6), 4)[0, ..., 0] > 0
    check_effects(app, interventions.compare(image, interventions.masked(image, mask)))
    assert errors(app) == ""


def test_attacks_and_zeroed_channels_go_together(explorer, finished_runs, subject):
    interventions, image, _ = subject
    app = explorer(finished_runs, "intervene", intervention="attack", attack="bim", eps="0.1", steps="4")
    changed = interventions.attacked(image, "bim", 0.1, 4)
    check_effects(app, interventions.compare(image, changed))
    assert any(text.startswith("What the attack added, × 5") for text in alternatives(app))
    level = interventions.levels[0].name
    app.selectbox(key="choice-level").select(level).run()
    own = interventions.concept_effects(image, level)[:, interventions.compare(image).before.argmax()]
    strongest = int(np.abs(own).argmax())
    assert f"Attacked by BIM with strength 0.1 and set concept {strongest} of" in sentence(app)
    check_effects(app, interventions.compare(image, changed, level, [strongest]))
    assert f"Where concept {strongest} is in the picture as it was" in alternatives(app)
    labels = app.multiselect(key=f"choice-concept {level}").options
    assert labels[0] == f"{strongest} ({own[strongest]:+.2f})"
    app.multiselect(key=f"choice-concept {level}").set_value([]).run()
    check_effects(app, interventions.compare(image, changed))
    assert errors(app) == ""


def test_concepts_that_were_learned_are_offered_first(explorer, runs):
    import keras

    from tfcausal.effects.concepts import ConceptAutoencoder

    path = runs / "small" / "models" / "plain" / "model.keras"
    autoencoder = ConceptAutoencoder(keras.models.load_model(path, compile=False), "block1_conv", concepts=2)
    autoencoder.trained = True
    folder = runs / "small" / "effects" / "plain"
    (folder / "levels" / "block1_conv").mkdir(parents=True)
    autoencoder.save(folder / "levels" / "block1_conv" / "autoencoder.keras")
    agreement = json.dumps({"text": "It was measured on 7 images."})
    (folder / "levels" / "block1_conv" / "agreement.json").write_text(agreement)
    (folder / "settings.json").write_text(json.dumps({"model": hashlib.sha256(path.read_bytes()).hexdigest()}))
    (folder / "finished.json").write_text("{}")
    level = {"level": "learned block1_conv", "concept learned block1_conv": "1"}
    app = explorer(runs, "intervene", run="small", intervention="none", **level)
    assert errors(app) == ""
    assert "et concept 1 of block1_conv to zero" in sentence(app)
    caption = next(entry.value for entry in app.caption if "untouched autoencoder" in entry.value)
    assert "It was measured on 7 images." in caption
    options = app.selectbox(key="choice-level").options
    assert options[1] == "block1_conv: learned concepts"
    (folder / "levels" / "block1_conv" / "autoencoder.keras").write_bytes(b"nothing")
    (folder / "finished.json").write_text('{"again": true}')
    app = explorer(runs, "intervene", run="small", intervention="none", **level)
    assert "an autoencoder that Keras can load" in errors(app)
    assert sentence(app).startswith("Nothing is done yet")


@pytest.mark.parametrize(
    ("choice", "value"),
    [("region", "box,1,1,x,9"), ("region", "../../etc/passwd"), ("level", "channels ../../x"), ("attack", "cw")],
)
def test_what_a_link_says_wrongly_is_told_and_left_out(explorer, finished_runs, choice, value):
    kind = "attack" if choice == "attack" else "mask"
    app = explorer(finished_runs, "intervene", **{choice: value}, intervention=kind)
    assert errors(app) == ""
    assert any(value in entry.value.replace("\\", "") for entry in app.warning)


def test_a_region_outside_of_a_smaller_image_is_left_out(explorer, finished_runs):
    app = explorer(finished_runs, "intervene", region=["box,100,100,200,200", "box,20,20,99,99"])
    assert sentence(app).startswith("Masked 2.8% of the picture.")
    assert errors(app) == ""


def test_without_art_the_page_names_the_extra_and_goes_on(explorer, finished_runs, monkeypatch):
    from tfcausal.interventions import art_classifier

    def missing(name):
        raise ImportError("No module named 'art'")

    monkeypatch.setattr(art_classifier, "import_module", missing)
    app = explorer(finished_runs, "intervene", run="other", intervention="attack", eps="0.21")
    assert 'pip install "tfcausal[adversarial]"' in errors(app)
    assert sentence(app).startswith("Nothing is done yet")


def test_a_model_file_that_is_damaged_is_an_error_in_words(explorer, runs):
    (runs / "small" / "models" / "plain" / "model.keras").write_bytes(b"nothing")
    app = explorer(runs, "intervene", run="small")
    assert "a model that Keras can load" in errors(app)


def test_an_unknown_image_is_an_error_that_names_it(explorer, finished_runs):
    assert "'../../etc/passwd'" in errors(explorer(finished_runs, "intervene", image="../../etc/passwd"))


def test_what_keras_and_tensorflow_have_made_ready_stays_between_runs_of_a_page(explorer, finished_runs):
    """Streamlit clears Keras's session after each run: names would be counted anew, and functions made ready again."""
    import keras

    app = explorer(finished_runs, "intervene")
    first = keras.layers.Dense(1).name.rpartition("_")[2]
    app.run()
    assert int(keras.layers.Dense(1).name.rpartition("_")[2]) == (int(first) if first.isdigit() else 0) + 1
    assert errors(app) == ""


def test_what_the_canvas_sends_is_checked(explorer, finished_runs, monkeypatch):
    explorer(finished_runs, "intervene")
    from widgets import drawing_regions

    sent = {"drawing": {"raw": {"objects": [{"type": "Image", "src": "http://evil"}]}}}
    state = {"regions-number": 3, "regions-canvas-3": sent}
    monkeypatch.setattr(drawing_regions.st, "session_state", state)
    drawing_regions._drawn(3, (24, 24), 1.0, 1.0)
    assert "cannot be used" in state["regions-wrong"]
    assert "choice-region" not in state
    box = {"type": "Rect", "top": 2, "width": 3, "height": 4, "strokeWidth": 0}
    sent["drawing"]["raw"]["objects"] = [{**box, "left": left % 20} for left in range(25)]
    drawing_regions._drawn(3, (24, 24), 1.0, 1.0)
    assert "At most 20 regions" in state["regions-wrong"]
    assert len(state["choice-region"]) == 20
    assert state["choice-region"][1] == "box,1,2,4,6"
    drawing_regions._keep([Box(0, 0, 5, 5)])  # with the keyboard, before the canvas has sent all that was drawn
    kept = list(state["choice-region"])
    drawing_regions._drawn(3, (24, 24), 1.0, 1.0)
    assert state["choice-region"] == kept == ["box,0,0,5,5"]
