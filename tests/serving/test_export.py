import hashlib
import json
import os
import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal import export as export_module
from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.effects.expected import ConceptEffects
from tfcausal.errors import InvalidArgument, RunError, UnsupportedOperation
from tfcausal.export import Choices, export_model, exportable_methods
from tfcausal.models.loading import load_trained
from tfcausal.models.ppi import PPIModel
from tfcausal.saliency.registry import get_explainer
from tfcausal.serving import messages, names, warm_up
from tfcausal.serving.subject import load_source, prepare
from tfcausal.serving.versions import NewVersion, chosen_version, versions

L = keras.layers


def card_of(export):
    return json.loads((export.path / names.CARD_FILE).read_text(encoding="utf-8"))


def test_it_leaves_what_a_server_and_a_person_look_for(of_run):
    run, export, said = of_run
    assert export.path.name == "1"
    assert export.path.parent.name == "cfcn"
    files = {path.relative_to(export.path).as_posix() for path in export.path.rglob("*") if path.is_file()}
    assert {
        "saved_model.pb",
        "variables/variables.index",
        "assets/labels.txt",
        "assets/preprocessing.json",
        "assets.extra/tf_serving_warmup_requests",
        "card.json",
        "card.md",
    } <= files
    assert said == []
    assert (export.path / "assets/labels.txt").read_text().split("\n") == [*map(str, range(10)), ""]
    preprocessing = json.loads((export.path / "assets/preprocessing.json").read_text())
    assert preprocessing["shape"] == [24, 24, 1]
    assert (preprocessing["black"], preprocessing["white"]) == (-0.5, 0.5)
    assert (preprocessing["files"], preprocessing["most_pixels"]) == (["PNG", "JPEG"], 25_000_000)
    assert export.signatures == (
        *("serving_default", "explain", "predict_image_bytes", "explain_image_bytes"),
        *("effects_block1_conv", "effects"),
    )
    loaded = tf.saved_model.load(str(export.path))
    assert set(loaded.signatures) == set(export.signatures)
    for signature, function in loaded.signatures.items():
        assert set(function.structured_outputs) == set(names.outputs_of(signature))
        assert set(function.structured_input_signature[1]) == set(names.inputs_of(signature))
    # The files of `assets` are known to the SavedModel.
    assert {os.path.basename(file.asset_path.numpy().decode()) for file in loaded.files} == {
        "labels.txt",
        "preprocessing.json",
    }
    for path in export.path.rglob("*"):
        if path.is_file():
            assert str(run).encode() not in path.read_bytes(), path


def test_the_card_has_the_numbers_of_the_run(of_run):
    run, export, _ = of_run
    card = card_of(export)
    metrics = json.loads((run / "metrics.json").read_text())
    own = metrics["models"]["cfcn"]["splits"]["test_shuffled"]
    measured = card["metrics"]["splits"]["test_shuffled"]
    assert measured["accuracy"] == {**own["accuracy"], "chance": 0.1}  # ten classes, six images each
    assert measured["mask_energy"]["chance"] == own["mask_energy_chance"]["value"]
    assert measured["deletion"]["chance"] == own["deletion_random"]["value"]
    assert card["metrics"]["worst_group"] == metrics["models"]["cfcn"]["worst_group"]
    assert card["data"]["trained_on"] == ["train"]
    assert card["data"]["masks_in_training"] == 40
    assert card["data"]["splits"]["train"]["images"] == 80
    assert card["trained_with"]["versions"]["keras"] == keras.__version__
    assert card["exported_with"]["tensorflow"] == tf.__version__
    assert card["intended_use"] == "Tests."
    assert card["source"]["trained_by"] == "cfcn"
    digest = hashlib.sha256((run / "models/cfcn/model.keras").read_bytes()).hexdigest()
    assert card["source"]["sha256"] == digest
    assert [level["layer"] for level in card["effects"]] == ["block1_conv", "block2_conv"]
    assert "Through the autoencoder the network gives the same answer" in card["effects"][0]["agreement"]
    assert card["signatures"]["explain"]["outputs"]["map"] == "float32 (N, 24, 24, 1)"
    assert card["signatures"]["explain"]["inputs"]["class_index"] == "int64 (N,)"
    text = (export.path / names.CARD_TEXT).read_text(encoding="utf-8")
    for part in ("# cfcn, version 1", "## Intended use", "Tests.", card["data"]["description"], "0.100", "Worst group"):
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith("| test_shuffled | accuracy"))
    assert f"{own['accuracy']['value']:.3f} ({own['accuracy']['low']:.3f} to" in row


def test_maps_and_answers_are_those_of_the_loaded_model(of_run):
    run, export, _ = of_run
    model = load_trained(run, "cfcn").model
    signatures = tf.saved_model.load(str(export.path)).signatures
    images = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 24, 24, 1)).astype(np.float32)
    given = signatures["explain"](images=tf.constant(images), class_index=tf.constant([0, 1, 2, 3, 9], tf.int64))
    np.testing.assert_allclose(given["probabilities"], model.predict(images, verbose=0), atol=1e-6)
    np.testing.assert_allclose(given["map"], get_explainer("wbp", model)(images, [0, 1, 2, 3, 9]), atol=1e-5)


@pytest.mark.parametrize(("signature", "level"), [("effects_block1_conv", "block1_conv"), ("effects", "block2_conv")])
def test_effects_are_those_of_the_learned_concepts(of_run, signature, level):
    run, export, _ = of_run
    path = run / "effects/cfcn/levels" / level / "autoencoder.keras"
    autoencoder = keras.models.load_model(path, compile=False)
    assert isinstance(autoencoder, ConceptAutoencoder)
    images = np.random.default_rng(1).uniform(-0.5, 0.5, (70, 24, 24, 1)).astype(np.float32)  # more than a pass of rows
    with warnings.catch_warnings():  # noise tells nothing about an autoencoder
        warnings.filterwarnings("ignore", "Through the autoencoder", UserWarning)
        result = ConceptEffects(autoencoder)(images)
    function = tf.saved_model.load(str(export.path)).signatures[signature]
    given = function(images=tf.constant(images))
    assert given["effects"].shape == (70, 3, 10)
    np.testing.assert_allclose(given["observed"], result.observed, atol=1e-6)
    np.testing.assert_allclose(given["effects"], result.intervened[:, :, 0] - result.observed[:, None], atol=1e-6)
    np.testing.assert_allclose(given["probabilities"], autoencoder.network.predict(images, verbose=0), atol=1e-6)
    alone = function(images=tf.constant(images[7:8]))
    np.testing.assert_allclose(alone["effects"][0], given["effects"][7], atol=1e-6)
    with pytest.raises(Exception, match="images"):
        function(images=tf.constant(images[:, :9]))


@pytest.mark.parametrize("name", ["ppi", "cfcn"])
def test_nothing_of_the_training_is_exported(small_run, of_run, tmp_path, name):
    run, _ = small_run
    export = of_run[1] if name == "cfcn" else export_model(run, model=name, output=tmp_path)
    model = load_trained(run, name).model
    needed = sum(weight.numpy().size for weight in model.weights if "seed" not in weight.path)
    loaded = tf.saved_model.load(str(export.path))
    for level in ("block1_conv", "block2_conv") if name == "cfcn" else ():
        path = of_run[0] / "effects/cfcn/levels" / level / "autoencoder.keras"
        autoencoder = keras.models.load_model(path, compile=False)
        needed += sum(
            weight.numpy().size for layer in (*autoencoder.encoder, *autoencoder.decoder) for weight in layer.weights
        )
        needed += 1  # its scale
    # The classifier's weights once, for all signatures; of the autoencoders' copies of it nothing.
    assert sum(variable.numpy().size for variable in loaded.weights) == needed
    types = set()
    for function in loaded.signatures.values():
        definition = function.graph.as_graph_def()
        types |= {node.op for part in (definition, *definition.library.function) for node in getattr(part, "node", ())}
        types |= {node.op for part in definition.library.function for node in part.node_def}
    assert not any("Random" in kind or "Dropout" in kind or "Assign" in kind or "Py" in kind for kind in types), types


def test_the_warm_up_requests_can_be_played(of_run):
    from tensorflow_serving.apis import prediction_log_pb2

    _, export, _ = of_run
    signatures = tf.saved_model.load(str(export.path)).signatures
    played = []
    file = export.path / "assets.extra" / names.WARM_UP_FILE
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "cfcn"
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        assert set(outputs) == set(names.outputs_of(request.model_spec.signature_name))
        assert all(value.shape[0] == 1 for value in outputs.values())
        played.append(request.model_spec.signature_name)
    assert set(played) == set(export.signatures)
    assert played.count("predict_image_bytes") == 2  # a PNG and a JPEG file
    assert len(played) <= 1000  # all that TensorFlow Serving takes


def test_a_model_in_training_is_exported_without_what_trains_it(classifier, tmp_path):
    backbone = classifier(nested=False)
    model = PPIModel(backbone)
    model.compile("adam", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).random((4, 8, 6, 3), np.float32)
    model.fit(images, np.arange(4) % 3, batch_size=4, verbose=0)
    export = export_model(model, Choices(pixels=(0, 1)), output=tmp_path, name="trained")
    loaded = tf.saved_model.load(str(export.path))
    assert {variable.shape for variable in loaded.weights} == {tuple(weight.shape) for weight in backbone.weights[:4]}
    given = loaded.signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(given["probabilities"], model.predict(images, verbose=0), atol=1e-6)


def test_without_the_extra_warm_up_requests_are_left_out_and_it_says_so(classifier, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(messages, "import_module", missing)
    said = []
    model = classifier()
    before = [weight.numpy().copy() for weight in model.weights]
    export = export_model(model, Choices(pixels=(0, 1)), output=tmp_path, say=said.append)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())
    assert said == ["Warm-up requests are left out: they need `pip install 'tfcausal[serving]'`."]
    assert not (export.path / "assets.extra").exists()
    with pytest.raises(UnsupportedOperation, match=r"`tensorflow_serving.*` cannot be imported .*tfcausal\[serving\]"):
        warm_up.write_requests(tmp_path / "requests", "small", [])


def test_a_model_without_a_run_says_what_is_unknown(colour):
    _, export, _ = colour
    card = card_of(export)
    assert card["data"] == card["metrics"] == card["trained_with"] == "unknown"
    assert card["output"] == {"head": "multi_class", "labels": ["cat", "two lines", "Kuh ü"]}
    assert (export.path / "assets/labels.txt").read_text(encoding="utf-8") == "cat\ntwo lines\nKuh ü\n"
    text = (export.path / names.CARD_TEXT).read_text(encoding="utf-8")
    assert text.count("Unknown:") == 2
    assert "-1 for black to 1 for white" in text


def test_a_run_that_is_not_finished_has_no_numbers(small_run, tmp_path):
    from tfcausal.runs import RunDirectory
    from tfcausal.serving.card import run_facts

    path = shutil.copytree(small_run[0], tmp_path / "small")
    (path / "metrics.json").unlink()
    facts = run_facts(RunDirectory.open(path), "ppi")
    assert facts["metrics"] == facts["data"] == "unknown"
    assert facts["trained_with"]["seed"] == 3


def test_versions_follow_each_other_and_are_never_replaced(classifier, tmp_path):
    model = classifier(nested=False)
    for number in ("3", "notes", "007x"):
        (tmp_path / "small" / number).mkdir(parents=True)
    (tmp_path / "small" / "3" / "kept").touch()
    with pytest.raises(RunError, match=r"small/3 exists, and a version is never replaced\. .* the next, 4"):
        export_model(model, Choices(pixels=(0, 1)), output=tmp_path, version=3)
    assert [path.name for path in (tmp_path / "small" / "3").iterdir()] == ["kept"]
    assert chosen_version(tmp_path / "small", None) == 4
    assert chosen_version(tmp_path / "small", 2) == 2
    for version in (0, -1, True, 1.0):
        with pytest.raises(InvalidArgument, match="a positive integer"):
            chosen_version(tmp_path / "small", version)


def test_two_processes_cannot_publish_the_same_version(tmp_path):
    with NewVersion(tmp_path, 1) as slow:
        (slow.folder / "mine").touch()
        with NewVersion(tmp_path, 1) as fast:
            (fast.folder / "theirs").touch()
            assert versions(tmp_path) == []
            fast.publish()
        with pytest.raises(RunError, match="exists, and a version is never replaced"):
            slow.publish()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_killed_export_leaves_no_version(classifier, tmp_path):
    with NewVersion(tmp_path / "small", 1) as new:
        (new.folder / "saved_model.pb").touch()
        killed = shutil.copytree(new.folder, tmp_path / "copy")
    shutil.copytree(killed, tmp_path / "small" / new.folder.name)  # what `kill -9` leaves
    assert versions(tmp_path / "small") == []
    assert not new.folder.name.isdigit()  # a server does not look at it


def test_an_error_while_writing_leaves_nothing(classifier, tmp_path, monkeypatch):
    def fails(served, functions, folder, preprocessing):
        (folder / "saved_model.pb").touch()
        raise RunError("the disk is full")

    monkeypatch.setattr(export_module, "traced", lambda served, requests: {})
    monkeypatch.setattr(export_module, "save", fails)
    with pytest.raises(RunError, match="the disk is full"):
        export_model(classifier(nested=False), Choices(pixels=(0, 1)), output=tmp_path)
    assert list((tmp_path / "small").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        export_model(classifier(nested=False), Choices(pixels=(0, 1)), output=tmp_path / "file")


def test_a_full_disk_is_said_and_leaves_nothing(classifier, tmp_path, monkeypatch):
    for error in (tf.errors.ResourceExhaustedError(None, None, "disk is full"), OSError(28, "No space left on device")):

        def fails(module, folder, error=error, **options):
            raise error

        monkeypatch.setattr(tf.saved_model, "save", fails)
        with pytest.raises(
            RunError, match=r"small/1: cannot be written: (disk is full|No space left on device)\. Check"
        ):
            export_model(classifier(nested=False), Choices("gradient", pixels=(0, 1)), output=tmp_path)
        assert list((tmp_path / "small").iterdir()) == []


def test_labels_are_texts_of_one_line(classifier):
    choices = Choices(labels=["two\nlines", "bad \udcff", "漢字"], pixels=(0, 1))
    served, _ = prepare(load_source(classifier(nested=False), None), choices, print)
    assert served.labels == ("two lines", "bad \\udcff", "漢字")


@keras.saving.register_keras_serializable("tests")
class InPython(L.Layer):
    """Computes with NumPy when it is called."""

    def call(self, inputs):
        doubled = tf.numpy_function(lambda values: 2 * values, [inputs], tf.float32)
        return tf.ensure_shape(doubled, inputs.shape)

    def compute_output_shape(self, shape):
        return shape


def test_a_model_that_cannot_be_explained_or_exported_is_refused_by_its_layer(tmp_path):
    inputs = keras.Input((8, 6, 3))
    folded = L.GlobalAveragePooling2D()(L.Lambda(lambda values: tf.sort(values, axis=1), name="sorted_rows")(inputs))
    model = keras.Model(inputs, L.Dense(2)(folded))
    with pytest.raises(UnsupportedOperation, match="sorted_rows"):
        export_model(model, Choices(pixels=(0, 1)), output=tmp_path)
    python = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(InPython(name="in_python")(inputs))))
    with pytest.raises(UnsupportedOperation, match=r"in_python.*calls Python, which a server does not have"):
        export_model(python, Choices("occlusion", pixels=(0, 1)), output=tmp_path)
    flat = keras.Model(inputs, L.Dense(2)(L.Flatten()(inputs)))
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        export_model(flat, Choices("grad_cam", pixels=(0, 1)), output=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["score_cam", "layer_cam", "grad_cam_plus_plus"])
def test_a_method_that_needs_python_is_refused_with_those_that_do_not(classifier, tmp_path, method):
    with pytest.raises(
        UnsupportedOperation, match=rf"`{method}` are computed by a library in Python.* wbp, lrp"
    ) as caught:
        export_model(classifier(nested=False), Choices(method, pixels=(0, 1)), output=tmp_path)
    assert all(name in str(caught.value) for name in exportable_methods())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("choices", "options", "text"),
    [
        ({"method": "wpb"}, {}, "Did you mean `wbp`"),
        ({"labels": ["a", "b"]}, {}, "the names of the 3 classes, by index; received 2: a, b"),
        ({"labels": "abc"}, {}, "the names of the 3 classes, by index; received 'abc'"),
        ({"labels": [1, 2, 3]}, {}, "the names of the 3 classes"),
        ({"pixels": (1.0, 1.0)}, {}, "two different finite numbers"),
        ({"size": (9, 6)}, {}, "size of the model's input, 8 x 6; received 9 x 6"),
        ({"most_pixels": 0}, {}, "Invalid value for `most_pixels`: expected a positive integer"),
        ({"options": {"patch": 3}}, {}, "options of wbp"),
        ({"multi_label": True}, {}, "False for a head with a softmax"),
        ({}, {"name": "a/b"}, "a name without spaces, slashes"),
        ({}, {"name": ".hidden"}, "a name without spaces, slashes"),
        ({}, {"name": ""}, "a name without spaces, slashes"),
    ],
)
def test_bad_choices_are_errors_before_anything_is_written(classifier, tmp_path, choices, options, text):
    with pytest.raises(InvalidArgument, match=text):
        export_model(classifier(nested=False), Choices(**{"pixels": (0, 1), **choices}), output=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_concepts_of_an_earlier_model_are_left_out_and_it_says_so(small_effects, tmp_path):
    path = shutil.copytree(small_effects, tmp_path / "run")
    shutil.copyfile(path / "models/plain/model.keras", path / "models/cfcn/model.keras")
    said = []
    _, levels = prepare(load_source(path, "cfcn"), Choices(), said.append)
    assert levels == []
    assert len(said) == 1
    assert "learned before the model changed: they are left out" in said[0]
    assert len(prepare(load_source(path, "plain"), Choices(), said.append)[1]) == 2
    assert len(said) == 1


def test_models_of_other_inputs_are_refused(tmp_path):
    inputs = [keras.Input((8, 6, 3)), keras.Input((8, 6, 3))]
    two = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()(inputs))))
    rows = keras.Sequential([keras.Input((5,)), L.Dense(2)])
    for model in (two, rows):
        with pytest.raises(UnsupportedOperation, match="`tfcausal export` takes models of one image"):
            export_model(model, Choices(pixels=(0, 1)), output=tmp_path)
