import json

import numpy as np
import pytest
import zarr


def errors(app):
    assert not app.exception
    return " ".join(error.value for error in app.error)


@pytest.mark.parametrize("kind", ["answer", "attention"])
def test_the_images_that_changed_most_come_first(explorer, finished_runs, kind):
    app = explorer(
        finished_runs, "compare", runs=["small", "other"], first="small: plain", second="other: cfcn", change=kind
    )
    assert errors(app) == ""
    table = app.dataframe[0].value
    assert table[["run", "model"]].to_numpy().tolist() == [
        [run, model] for run in ("small", "other") for model in ("plain", "ppi", "cfcn")
    ]
    stored = zarr.open_group(finished_runs / "small" / "maps.zarr", mode="r")["splits/test_shuffled"]
    if kind == "answer":
        pair = [stored[f"probabilities/{model}"][:].astype(float) for model in ("plain", "cfcn")]
    else:
        cells = [
            stored[f"maps/{model}"][:].clip(0).reshape(60, 8, 3, 8, 3).sum(axis=(2, 4)) for model in ("plain", "cfcn")
        ]
        pair = [np.divide(own, own.sum(axis=(1, 2), keepdims=True)).reshape(60, -1) for own in cells]
    distance = 0.5 * np.abs(pair[0] - pair[1]).sum(axis=1)
    best = np.argsort(-np.nan_to_num(distance, nan=-1.0), kind="stable")[:8]
    opened = [button.key for button in app.button if (button.key or "").startswith("open-")]
    assert opened == [f"open-{position}" for position in best]


def test_a_run_that_measured_nothing_is_said_and_the_others_are_compared(explorer, finished_runs):
    app = explorer(finished_runs, "compare", runs=["small", "failed"])
    assert errors(app) == ""
    assert app.multiselect(key="choice-runs").value == ["small"]
    assert set(app.dataframe[0].value["run"]) == {"small"}
    assert [button for button in app.button if (button.key or "").startswith("open-")]


def test_runs_on_other_images_are_not_compared_image_by_image(explorer, runs):
    path = runs / "other" / "maps.zarr" / "splits" / "test_shuffled" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["names"][0] = "another"
    path.write_text(json.dumps(metadata))
    app = explorer(runs, "compare", runs=["small", "other"])
    assert "Compare runs on the same data" in errors(app)
    assert len(app.dataframe[0].value) == 6


def test_a_changed_image_opens_with_both_models(explorer, finished_runs):
    app = explorer(finished_runs, "compare", runs=["small"], first="small: plain", second="small: ppi")
    button = next(button for button in app.button if (button.key or "").startswith("open-"))
    button.click().run()
    assert app.title[0].value == "One image"
    assert (app.query_params["model"], app.query_params["beside"]) == ("plain", "ppi")
    assert app.query_params["image"].endswith(button.label)
