import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfcausal import export as export_module
from tfcausal.errors import TfCausalError
from tfcausal.export import Choices, export_model
from tfcausal.serving import checking, clean_process
from tfcausal.serving.checking import BATCH_SIZES, compare, difference
from tfcausal.serving.probes import Probe, probes
from tfcausal.serving.subject import load_source, make_explainer, prepare
from tfcausal.serving.warm_up import Request


@pytest.fixture(scope="module")
def questions(colour):
    model, _, _ = colour
    choices = Choices(labels=["cat", "two lines", "Kuh ü"], pixels=(-1.0, 1.0), most_pixels=100_000)
    served, _ = prepare(load_source(model, None), choices, print)
    return probes(served, make_explainer(model, choices, (-1.0, 1.0)), BATCH_SIZES)


def test_it_answers_as_the_model_does_without_tfcausal_and_keras(colour, questions):
    _, export, _ = colour
    assert BATCH_SIZES == (1, 3, 8)
    assert {probe.count for probe in questions} == {1, 3, 8}
    comparisons = compare(export.path, questions)
    assert {comparison.signature for comparison in comparisons} == set(export.signatures)
    assert {"probabilities", "logits", "class_index", "label", "map"} == {one.output for one in comparisons}
    for comparison in comparisons:
        assert comparison.same, comparison
        assert set(comparison.differences) == {1, 3, 8}


def test_every_difference_is_found(colour, questions):
    """Answers that are expected otherwise, in one output of one signature at a time."""
    _, export, _ = colour
    changed = {
        ("serving_default", "probabilities"): lambda values: values + 2e-5,
        ("explain", "map"): lambda values: values.sum(axis=-1, keepdims=True),
        ("explain", "logits"): lambda values: values * 1.001,
        ("explain_image_bytes", "map"): lambda values: values * 1.0001,
        ("explain_image_bytes", "label"): lambda values: np.array([b"cow"] * len(values)),
        ("explain_image_bytes", "class_index"): lambda values: values + 1,
    }

    def other(probe):
        expected = {
            name: changed.get((probe.request.signature, name), lambda same: same)(values)
            for name, values in probe.expected.items()
        }
        return Probe(probe.request, expected)

    asked = [probe for probe in questions if probe.request.signature != "predict_image_bytes"]
    comparisons = compare(export.path, [other(probe) for probe in asked])
    found = {(one.signature, one.output): one for one in comparisons if not one.same}
    assert set(found) == {*changed, ("predict_image_bytes", "not compared")}
    assert np.isnan(found["explain", "map"].differences[1])
    assert found["serving_default", "probabilities"].differences[3] == pytest.approx(2e-5, rel=0.1)


def test_differences_are_shares_of_large_magnitudes_and_in_maps_of_all():
    assert difference(np.array([[100.001, 0.0]]), np.array([[100.0, 0.0]])) == pytest.approx(1e-5)
    assert difference(np.array([0.001]), np.array([0.0])) == pytest.approx(1e-3)
    assert difference(np.array([[2e-7], [100.0]]), np.array([[1e-7], [100.0]]), floor=0.0) == pytest.approx(1.0)
    assert difference(np.array([[0.0]]), np.array([[0.0]]), floor=0.0) == 0.0
    assert difference(np.array([[1e-9]]), np.array([[0.0]]), floor=0.0) == np.inf
    assert np.isnan(difference(np.array([[np.nan]]), np.array([[np.nan]])))
    assert np.isnan(difference(None, np.array([0.0])))
    assert not checking.Comparison("explain", "map", {1: float("nan")}).same
    assert checking.Comparison("explain", "map", {1: 1e-5}).same
    assert not checking.Comparison("explain", "map", {1: 1e-6, 3: 1.1e-5}).same


def test_what_differs_is_not_published(classifier, tmp_path, monkeypatch):
    model = classifier(nested=False)

    def doubled(served, *arguments):
        made = probes(served, *arguments)
        for probe in made:
            if "map" in probe.expected:
                probe.expected["map"] *= 2
        return made

    monkeypatch.setattr(export_module, "probes", doubled)
    monkeypatch.setattr(export_module, "BATCH_SIZES", (2,))
    export = export_model(model, Choices(pixels=(0, 1)), output=tmp_path, check=True)
    assert export.path is None
    assert not export.same
    assert [one.output for one in export.comparisons if not one.same] == ["map", "map"]
    assert list((tmp_path / "small").iterdir()) == []


def test_the_clean_process_has_neither_keras_nor_tfcausal(tmp_path, colour):
    """Where the exported model needed them, the comparison would fail with what Python says."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys({!r}))\n"
        "import tensorflow as tf\n"
        "for name in {!r}:\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ImportError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
        "tf.saved_model.load({!r})\n"
    )
    absent = clean_process.ABSENT
    assert {"keras", "tfcausal"} <= set(absent)
    text = code.format(absent, absent, str(colour[1].path))
    result = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_model_that_cannot_be_loaded_is_an_error_with_what_the_process_said(colour, tmp_path):
    broken = shutil.copytree(colour[1].path, tmp_path / "1")
    (broken / "saved_model.pb").write_bytes(b"nothing")
    probe = Probe(Request("explain", {"images": np.zeros((1, 8, 6, 3), np.float32)}), {})
    with pytest.raises(TfCausalError, match=r"cannot be used without tfcausal and Keras[\s\S]*saved_model\.pb"):
        compare(broken, [probe])


def test_questions_do_not_depend_on_the_exported_model(questions, colour):
    """The expected answers are those of the Keras model and of its explainer."""
    model, _, _ = colour
    (probe,) = (one for one in questions if one.request.signature == "serving_default" and one.count == 8)
    images = probe.request.inputs["images"]
    np.testing.assert_allclose(probe.expected["probabilities"], model.predict(images, verbose=0), atol=1e-6)
    assert images.min() >= -1
    assert images.max() <= 1
    assert np.ptp(images) > 1.5
    asked = [one.request.inputs["class_index"] for one in questions if one.request.signature == "explain"]
    assert {-1, 0, 1, 2} == set(np.concatenate(asked).tolist())
    assert dataclasses.is_dataclass(probe)
