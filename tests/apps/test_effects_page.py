"""The page Effects without a browser: what it chooses, shows and says, and what it does with broken files."""

import base64
import json
import shutil

import numpy as np
import pandas
import pytest
import zarr

from tfcausal.effect_study.rows import strongest
from tfcausal.effects.table import EFFECTS, as_frame, write_table


@pytest.fixture(scope="module")
def measured(small_effects, finished_runs, tmp_path_factory):
    """A run with the effects of two models, one without, and one that cannot be read; not to be changed."""
    folder = tmp_path_factory.mktemp("with_effects")
    shutil.copytree(small_effects, folder / "measured")
    for name in ("small", "half"):
        shutil.copytree(finished_runs / name, folder / name)
    return folder


@pytest.fixture
def changing(measured, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(measured, tmp_path / "runs")


@pytest.fixture(scope="module")
def table(measured):
    return pandas.read_parquet(measured / "measured" / "effects.parquet")


@pytest.fixture(scope="module")
def kept(measured):
    return zarr.open_group(measured / "measured" / "effects.zarr" / "plain", mode="r")


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error)


def charts(app):
    """The charts by the text for those who cannot see them, as plotly has them."""
    return {element.proto.alt: json.loads(element.proto.spec) for element in app.get("plotly_chart")}


def chart(app, words):
    return next(figure for alt, figure in charts(app).items() if words in alt)


def numbers(values):
    """A column of a chart, which plotly may have packed."""
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(float)
        shape = [int(size) for size in str(values.get("shape", len(flat))).split(",")]
        return flat.reshape(shape).tolist()
    return values


def texts(app):
    return [image.alt for element in app.get("image") for image in element.proto.imgs]


def said(app):
    parts = [*app.markdown, *app.caption, *app.warning, *app.info]
    return " ".join(part.value for part in parts)


def test_the_first_view_is_the_first_level(explorer, measured, table):
    app = explorer(measured, "effects", run="measured")
    assert errors(app) == ""
    assert app.selectbox(key="choice-run").options == ["measured", "small"]  # those with effects first
    own = table[(table["model"] == "plain") & (table["level"] == "block1_conv")]
    best = {row.node: row for row in strongest(own, count=3)}
    bars = chart(app, "plain: 3 effects")["data"][0]
    assert [int(label.split(":")[0]) for label in bars["y"]] == list(best)
    np.testing.assert_allclose(numbers(bars["x"]), [row.effects["clean"]["effect"] for row in best.values()])
    high = [row.effects["clean"]["high"] - row.effects["clean"]["effect"] for row in best.values()]
    np.testing.assert_allclose(numbers(bars["error_x"]["array"]), high)
    assert "Through the autoencoder the network gives the same answer on" in said(app)
    assert "n = 50 images · sign: the output with the intervention minus the output without it" in said(app)
    assert "Not measured: ppi" in said(app)


@pytest.mark.parametrize(("of", "intervention"), [("3", "zero_out+pgd"), ("largest", "zero_out+fgsm")])
def test_bars_and_the_heat_map_are_of_the_chosen_class_and_intervention(explorer, measured, table, of, intervention):
    app = explorer(
        measured, "effects", run="measured", model="cfcn", level="block2_conv", intervention=intervention, of=of
    )
    assert errors(app) == ""
    rows = table[(table["model"] == "cfcn") & (table["intervention"] == intervention)]
    rows = rows[rows["class"] == 3] if of == "3" else rows
    sizes = rows.assign(size=rows["effect"].abs()).sort_values("size", ascending=False, kind="stable")
    best = sizes.drop_duplicates(["level", "node"]).set_index(["level", "node"])["effect"]
    bars = chart(app, "cfcn: 3 effects")["data"][0]
    np.testing.assert_allclose(numbers(bars["x"]), best["block2_conv"].to_numpy())
    heat = chart(app, "by level and node")["data"][0]
    assert heat["y"] == ["block1_conv", "block2_conv"]
    expected = [[best[level, node] for node in range(3)] for level in heat["y"]]
    np.testing.assert_allclose(numbers(heat["z"]), expected)
    assert heat["zmax"] == -heat["zmin"] == pytest.approx(best.abs().max())


def test_the_image_has_a_bar_for_every_class_and_no_concepts(explorer, measured, table):
    app = explorer(measured, "effects", run="measured", level="(image)", change="pgd")
    assert errors(app) == ""
    bars = chart(app, "plain: 10 effects")["data"][0]
    rows = table[(table["model"] == "plain") & (table["intervention"] == "pgd")].set_index("class_name")["effect"]
    np.testing.assert_allclose(numbers(bars["x"]), rows[bars["y"]])
    assert numbers(bars["x"]) == sorted(numbers(bars["x"]), key=abs, reverse=True)
    assert "reference: the answer of the model as it is" in said(app)
    assert not any("by level and node" in alt for alt in charts(app))
    assert {text.split(" on ")[0] for text in texts(app)} == {"pixel-wise effect map of plain"}


def test_two_models_are_side_by_side_on_one_axis(explorer, measured):
    app = explorer(measured, "effects", run="measured", beside="cfcn", intervention="zero_out+pgd", kind="pixel_wise")
    assert errors(app) == ""
    ranges = [
        figure["layout"]["xaxis"]["range"]
        for alt, figure in charts(app).items()
        if alt.startswith(("plain: 3 effects", "cfcn: 3 effects"))
    ]
    assert len(ranges) == 2
    assert ranges[0] == ranges[1]
    heats = [figure["data"][0]["zmax"] for alt, figure in charts(app).items() if "by level and node" in alt]
    assert len(heats) == 2
    assert heats[0] == heats[1]
    legends = [element.proto.body for element in app.get("html") if "clean and changed images" in element.proto.body]
    assert len(legends) == 2
    assert legends[0] == legends[1]  # one scale, as their unit is the same
    assert sum("pixel-wise effect map of cfcn" in text for text in texts(app)) == 12


def test_dead_and_unfaithful_nodes_are_marked_and_said_in_words(explorer, changing, table):
    rows = table.copy()
    here = (rows["model"] == "plain") & (rows["level"] == "block1_conv")
    rows.loc[here & (rows["node"] == 1), ["dead", "effect", "low", "high"]] = [True, 0.0, 0.0, 0.0]
    rows.loc[here, "faithful"] = False
    write_table(changing / "measured" / "effects.parquet", EFFECTS, as_frame(EFFECTS, rows))
    path = changing / "measured" / "effects" / "plain" / "finished.json"
    findings = json.loads(path.read_text())
    findings["levels"][0]["agreement"] |= {"faithful": False, "text": "The autoencoder changes the answers."}
    path.write_text(json.dumps(findings))
    app = explorer(changing, "effects", run="measured", of="4")
    assert errors(app) == ""
    bars = chart(app, "1 dead; the autoencoder is not faithful")["data"][0]
    assert bars["y"][-1] == "1 ✕ !"
    assert all(label.endswith("!") for label in bars["y"])
    assert bars["marker"]["pattern"]["shape"] == ["/", "/", "x"]
    assert bars["marker"]["color"][-1] == "#8a949e"  # its interval has 0 in it
    assert "dead: node 1 has one value at all places" in said(app)
    warned = " ".join(warning.value for warning in app.warning)
    assert "block1_conv: The autoencoder changes the answers." in warned
    assert "not faithful (hatched): in clean images" in warned
    assert chart(app, "by level and node")["data"][0]["text"][0] == ["!", "✕ !", "!"]


def test_a_concept_is_shown_on_real_images_under_every_condition(explorer, measured, kept):
    app = explorer(measured, "effects", run="measured", level="block2_conv", under=["clean", "pgd"], concept="2")
    assert errors(app) == ""
    node = kept["levels/block2_conv"].attrs["nodes"][1]
    shown = [text for text in texts(app) if text.startswith("codes")]
    names, conditions = kept.attrs["names"], ("clean", "pgd")
    for place, text in enumerate(shown):
        condition, position = conditions[place % 2], place // 2
        output = kept[f"outputs/{condition}"][position]
        expected = f"codes of node {node} of block2_conv of plain on {names[position]}, {condition}; "
        assert text.startswith(f"{expected}answer {output.argmax()}, {output.max():.2f}")
    assert len(shown) == 6
    legend = next(element.proto.body for element in app.get("html") if "value of the code" in element.proto.body)
    codes = np.stack([kept[f"levels/block2_conv/codes/{name}"][..., 1] for name in conditions])
    end = np.percentile(np.kron(np.abs(codes), np.ones((24 // codes.shape[2], 24 // codes.shape[3]))), 99)
    assert f"{end:.3g}</span>" in legend


def test_orange_speaks_for_the_class_in_every_effect_map(explorer, measured, kept, monkeypatch):
    """With effects as do minus observed, a patch speaks for the class where its effect is negative."""
    from widgets import effect_images

    drawn = []

    def overlaid(picture, saliency, scale, opacity, colours):
        drawn.append((saliency, scale))
        return np.zeros((*saliency.shape, 3))

    monkeypatch.setattr(effect_images, "overlaid", overlaid)
    places = [(position, name) for position in range(3) for name in kept.attrs["conditions"]]
    for kind, key, sign in (
        ("pixel_wise", "pixel_wise", -1),
        ("concept_weighted", "levels/block1_conv/concept_weighted", 1),
    ):
        drawn.clear()
        app = explorer(measured, "effects", run="measured", kind=kind)
        assert errors(app) == ""
        maps = np.stack([kept[f"{key}/{name}"][position] for position, name in places])
        end = np.percentile(np.abs(maps), 99)
        assert np.array_equal([saliency for saliency, _ in drawn[-12:]], sign * maps)
        np.testing.assert_allclose([scale for _, scale in drawn[-12:]], end, rtol=1e-6)  # clean and changed alike
        legend = [element.proto.body for element in app.get("html")][-1]
        signs = "−+"[::sign]
        assert legend.index(f"{signs[0]}{end:.3g}, against the class") < legend.index("linear-gradient")
        assert legend.index(f"{signs[1]}{end:.3g}, for the class</span>") > legend.index("linear-gradient")


def test_curves_and_detectors_of_every_attack(explorer, measured):
    app = explorer(measured, "effects", run="measured")
    detectors = pandas.read_parquet(measured / "measured" / "detection.parquet")
    own = detectors[detectors["model"] == "plain"]
    for attack in ("fgsm", "pgd"):
        lines = chart(app, f"ROC curves of plain for {attack}")["data"]
        names = [line["name"] for line in lines if line["mode"] == "lines"][1:]
        rows = own[own["attack"] == attack]
        wanted = [
            f"{row.detector}{'' if not isinstance(row.level, str) else f', {row.level}'}: "
            f"{row.auc:.2f} [{row.low:.2f}, {row.high:.2f}]"
            for row in rows.itertuples()
        ]
        assert names == wanted
        points = [(numbers(line["x"])[0], numbers(line["y"])[0]) for line in lines if line["mode"] == "markers"]
        np.testing.assert_allclose(points, rows[["false_positive_rate", "true_positive_rate"]])
    shown = app.dataframe[0].value
    assert shown["detector"].tolist() == own["detector"].tolist()
    assert {"low_confidence", "confidence", "effects", "concept_map"} == set(shown["detector"])
    np.testing.assert_allclose(shown["over_confidence"], own["over_confidence"])


def test_a_concept_with_several_values_has_them_one_by_one(explorer, changing, table):
    first = table[
        (table["model"] == "plain") & (table["level"] == "block1_conv") & (table["intervention"] == "zero_out")
    ]
    extra = [
        first.assign(value=value, effect=first["effect"] * value, low=np.nan, high=np.nan) for value in (3.0, -1.0)
    ]
    rows = pandas.concat([table, *extra], ignore_index=True)
    write_table(changing / "measured" / "effects.parquet", EFFECTS, as_frame(EFFECTS, rows))
    app = explorer(changing, "effects", run="measured", of="2")
    assert errors(app) == ""
    line = chart(app, "set to -1")["data"][0]
    assert numbers(line["x"]) == [-1.0, 3.0]
    best = first[first["class"] == 2].sort_values("effect", key=abs)["effect"].iloc[-1]
    np.testing.assert_allclose(numbers(line["y"]), [-best, 3 * best])
    bars = chart(app, "plain: 3 effects")["data"][0]
    assert numbers(bars["x"])[0] == pytest.approx(best)  # the expectation, not a value


def test_a_run_without_effects_says_how_to_measure_them(explorer, measured):
    app = explorer(measured, "effects", run="small")
    assert errors(app) == ""
    assert "No effects are measured yet" in app.info[0].value
    assert app.code[0].value == f"tfcausal effects {measured / 'small'}"
    assert not texts(app)
    assert "Runs with effects: measured." in said(app)
    app.selectbox(key="choice-run").select("measured").run()
    assert errors(app) == ""
    assert charts(app)


def test_a_measurement_that_was_interrupted_is_said_and_the_finished_model_is_shown(explorer, changing):
    (changing / "measured" / "effects" / "cfcn" / "finished.json").unlink()
    app = explorer(changing, "effects", run="measured", model="cfcn")
    assert errors(app) == ""
    assert "The effects of cfcn are measured in part" in app.info[0].value
    assert app.code[0].value == f"tfcausal effects {changing / 'measured'}"
    assert "There is no model `cfcn` here" in app.warning[0].value
    assert app.selectbox(key="choice-model").options == ["plain"]
    assert charts(app)


def test_a_damaged_table_leaves_maps_and_curves(explorer, changing):
    (changing / "measured" / "effects.parquet").write_bytes(b"PAR1 nothing of it")
    app = explorer(changing, "effects", run="measured")
    assert "effects.parquet: expected a parquet table; it cannot be read" in errors(app)
    assert sum(text.startswith("codes of node") for text in texts(app)) == 12
    assert chart(app, "ROC curves of plain for pgd")


def test_damaged_maps_leave_effects_and_curves(explorer, changing):
    maps = changing / "measured" / "effects.zarr" / "plain"
    chunk = next(path for path in (maps / "pixel_wise" / "pgd" / "c" / "1").rglob("*") if path.is_file())
    chunk.write_bytes(b"\x00" * 12)
    app = explorer(changing, "effects", run="measured", kind="pixel_wise", beside="cfcn")
    assert "effects.zarr" in errors(app)
    assert "tfcausal effects" in errors(app)
    assert sum(text.startswith("codes of node") for text in texts(app)) == 24
    (maps / "zarr.json").write_text("{")
    app = explorer(changing, "effects", run="measured", beside="cfcn")
    assert "cannot be read" in errors(app)
    assert {text.split(" on ")[0].rsplit(" ", 1)[1] for text in texts(app)} == {"cfcn"}
    assert chart(app, "plain: 3 effects")


def test_damaged_findings_of_a_model_leave_the_other(explorer, changing):
    (changing / "measured" / "effects" / "plain" / "finished.json").write_text("{")
    app = explorer(changing, "effects", run="measured", beside="cfcn")
    assert "finished.json" in errors(app)
    assert chart(app, "cfcn: 3 effects")
    shutil.rmtree(changing / "measured" / "effects" / "cfcn")
    assert "finished.json" in errors(explorer(changing, "effects", run="measured"))


def test_effects_that_are_deleted_while_they_are_shown_are_said_to_be_gone(explorer, changing):
    app = explorer(changing, "effects", run="measured")
    assert charts(app)
    shutil.rmtree(changing / "measured" / "effects")
    app.run()
    assert errors(app) == ""
    assert "No effects are measured yet" in app.info[0].value
    shutil.rmtree(changing / "measured")
    app.run()
    assert errors(app) == ""
    assert "There is no run `measured` here" in app.warning[0].value


def test_new_effects_are_shown_at_once(explorer, changing, table):
    app = explorer(changing, "effects", run="measured")
    before = numbers(chart(app, "plain: 3 effects")["data"][0]["x"])
    rows = table.assign(effect=2 * table["effect"], low=2 * table["low"], high=2 * table["high"])
    write_table(changing / "measured" / "effects.parquet", EFFECTS, as_frame(EFFECTS, rows))
    app.run()
    np.testing.assert_allclose(numbers(chart(app, "plain: 3 effects")["data"][0]["x"]), 2 * np.array(before))


def test_the_link_opens_the_same_view(explorer, measured):
    choices = {"beside": "plain", "model": "cfcn", "level": "block2_conv", "intervention": "zero_out+fgsm", "of": "7"}
    first = explorer(
        measured, "effects", run="measured", **choices, kind="pixel_wise", under=["clean", "fgsm"], opacity="0.4"
    )
    second = explorer(measured, "effects", **first.query_params)
    assert second.query_params == first.query_params
    assert list(charts(second)) == list(charts(first))
    assert texts(second) == texts(first)


def test_unknown_words_in_a_link_are_named_and_the_page_is_shown_without_them(explorer, measured):
    wrong = {"run": "../measured", "model": "../plain", "level": "conv9", "intervention": "attack", "of": "99"}
    app = explorer(measured, "effects", **wrong)
    warned = " ".join(warning.value for warning in app.warning)
    assert all(f"`{word}`" in warned for word in wrong.values())
    assert errors(app) == ""
    assert charts(app)


def test_an_empty_folder_says_so(explorer, tmp_path):
    app = explorer(tmp_path, "effects")
    assert errors(app) == ""
    assert "There is no run to look at yet" in app.info[0].value
