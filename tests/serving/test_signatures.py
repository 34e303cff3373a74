from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfcausal.errors import InvalidArgument
from tfcausal.export import exportable_methods
from tfcausal.models.inputs import read_image
from tfcausal.saliency.registry import get_explainer

L = keras.layers
IMAGES = np.random.default_rng(5).uniform(-1, 1, (8, 8, 6, 3)).astype(np.float32)


def classes(*values):
    return tf.constant(values, tf.int64)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_nested_model_answers_and_explains_as_in_python(colour, count):
    model, _, signatures = colour
    images = IMAGES[:count]
    expected = model.predict(images, verbose=0)
    answers = signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    logits = keras.Model(model.inputs, model.get_layer("logits").output).predict(images, verbose=0)
    np.testing.assert_allclose(answers["logits"], logits, atol=1e-6)
    np.testing.assert_array_equal(answers["class_index"], expected.argmax(axis=1))
    names = np.array(["cat", "two lines", "Kuh ü"])
    assert [label.decode() for label in answers["label"].numpy()] == names[expected.argmax(axis=1)].tolist()

    indices = np.arange(count) % 4 - 1
    explained = signatures["explain"](images=tf.constant(images), class_index=tf.constant(indices, tf.int64))
    target = np.where(indices < 0, expected.argmax(axis=1), indices)
    np.testing.assert_array_equal(explained["class_index"], target)
    np.testing.assert_allclose(explained["map"], get_explainer("wbp", model)(images, target), atol=1e-6)
    np.testing.assert_allclose(explained["probabilities"], expected, atol=1e-6)


def test_files_are_answered_as_tfcausal_explain_reads_them(colour, saved, tmp_path):
    model, _, signatures = colour
    generator = np.random.default_rng(0)
    contents, read = [], []
    for number, (kind, shape) in enumerate(
        [("PNG", (40, 33, 3)), ("JPEG", (7, 60, 3)), ("PNG", (8, 6)), ("PNG", (9, 9, 4))]
    ):
        contents.append(saved(generator.integers(0, 256, shape), kind))
        path = tmp_path / f"{number}"
        path.write_bytes(contents[-1])
        read.append(read_image(path, (8, 6, 3)))
    images = 2 * np.stack(read) - 1  # black is -1, white 1
    files = tf.constant(contents)
    answers = signatures["predict_image_bytes"](image_bytes=files)
    np.testing.assert_allclose(answers["probabilities"], model.predict(images, verbose=0), atol=1e-6)
    explained = signatures["explain_image_bytes"](image_bytes=files, class_index=classes(0, 1, 2, 0))
    np.testing.assert_allclose(explained["map"], get_explainer("wbp", model)(images, [0, 1, 2, 0]), atol=1e-6)
    np.testing.assert_array_equal(explained["class_index"], [0, 1, 2, 0])


def test_every_input_and_output_has_the_batch_first_whatever_it_is(colour):
    _, export, signatures = colour
    assert tuple(signatures) == export.signatures
    for function in signatures.values():
        _, inputs = function.structured_input_signature
        for spec in [*inputs.values(), *function.structured_outputs.values()]:
            assert spec.shape.rank >= 1
            assert spec.shape[0] is None


def test_a_head_of_one_logit_speaks_for_class_1(classifier, asked):
    model = classifier(units=1, activation="sigmoid", nested=False)
    logits = keras.Model(model.inputs, model.get_layer("logits").output)
    kernel, bias = model.get_layer("logits").get_weights()
    middle = np.median(logits.predict(IMAGES, verbose=0))
    model.get_layer("logits").set_weights([kernel, bias - middle])  # some of each class
    answer, explanation = asked(model, labels=["no", "yes"])
    expected = model.predict(IMAGES, verbose=0)
    answers = answer(IMAGES)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    predicted = (expected[:, 0] > 0.5).astype(int)
    assert 0 < predicted.sum() < len(predicted)
    np.testing.assert_array_equal(answers["class_index"], predicted)
    assert answers["label"].numpy().tolist() == [[b"no", b"yes"][index] for index in predicted]
    explained = explanation(IMAGES[:2], classes(-1, 1))
    np.testing.assert_allclose(explained["map"], get_explainer("wbp", model)(IMAGES[:2], [0, 0]), atol=1e-6)
    assert explained["label"].numpy().tolist() == [b"yes", b"yes"]
    np.testing.assert_array_equal(explained["class_index"], [1, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a class 1, or -1 .*received \[0\].*negative.* class 0"):
        explanation(IMAGES[:1], classes(0))
    with pytest.raises(InvalidArgument, match=r"names of the 2 classes.*class 1, for which a large logit speaks"):
        asked(model, labels=["only"])


def test_independent_labels(classifier, asked):
    model = classifier(units=4, activation="sigmoid", nested=False)
    answer, explanation = asked(model)
    expected = model.predict(IMAGES, verbose=0)
    answers = answer(IMAGES)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    np.testing.assert_array_equal(answers["class_index"], expected.argmax(axis=1))
    assert answers["label"].numpy()[0] == str(expected[0].argmax()).encode()
    explained = explanation(IMAGES[:2], classes(-1, 3))
    target = [int(expected[0].argmax()), 3]
    np.testing.assert_allclose(explained["map"], get_explainer("wbp", model)(IMAGES[:2], target), atol=1e-6)


@pytest.mark.parametrize(("multi_label", "head"), [(None, tf.nn.softmax), (True, tf.sigmoid)])
def test_models_that_give_logits(classifier, asked, multi_label, head):
    model = classifier(units=4, activation=None, nested=False)
    answers = asked(model, multi_label=multi_label)[0](IMAGES)
    logits = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(answers["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(answers["probabilities"], head(logits), atol=1e-6)


OPTIONS = {
    "occlusion": {"patch": 3},
    "smoothgrad": {"samples": 3},
    "vargrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
}


@pytest.mark.parametrize(
    "method", [name for name in exportable_methods() if not name.startswith("lrp.") or name == "lrp.epsilon_gamma_box"]
)
def test_every_method_is_the_same_in_the_graph(classifier, asked, method):
    model = classifier(nested=False)
    options = OPTIONS.get(method, {})
    _, function = asked(model, method=method, options=options)
    given = function(IMAGES[:3], classes(-1, 0, 2))
    expected = model.predict(IMAGES[:3], verbose=0)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    target = [int(expected[0].argmax()), 0, 2]
    bounds = {"low": -1.0, "high": 1.0} if method.startswith("lrp.") else {}
    maps = get_explainer(method, model, **options, **bounds)(IMAGES[:3], target)
    np.testing.assert_allclose(given["map"], maps, atol=1e-5)
    assert np.abs(maps).max() > 0
    if method == "lrp.epsilon_gamma_box":
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"values in \[-1, 1\], the bounds of the z-box rule"):
            function(2 * IMAGES[:3], classes(-1, 0, 2))


@pytest.mark.parametrize("method", ["wbp", "gradient", "grad_cam", "lrp.epsilon_plus"])
def test_the_forward_pass_is_shared_by_map_and_answers(classifier, asked, method):
    """A second one would make every request a third more expensive."""
    model = classifier(nested=False)
    explainer = get_explainer(method, model)
    signature = [tf.TensorSpec((None, 8, 6, 3), tf.float32), tf.TensorSpec((None,), tf.int64)]
    alone = tf.function(lambda images, indices: explainer.maps((images,), indices), input_signature=signature)
    counts = [
        sum(operation.type == "Conv2D" for operation in function.get_concrete_function().graph.get_operations())
        for function in (alone, asked(model, method=method)[1])
    ]
    assert counts[0] == counts[1] > 0


def test_mixed_precision_is_answered_in_float32(asked):
    inputs = keras.Input((8, 6, 3))
    policy = keras.DTypePolicy("mixed_bfloat16")
    x = L.Conv2D(4, 3, activation="relu", dtype=policy)(inputs)
    x = L.Dense(3, dtype=policy)(L.GlobalAveragePooling2D(dtype=policy)(x))
    model = keras.Model(inputs, L.Activation("softmax", dtype="float32")(x))
    given = asked(model)[1](IMAGES[:2], classes(0, 1))
    assert given["map"].dtype == given["logits"].dtype == tf.float32
    np.testing.assert_allclose(given["probabilities"], model.predict(IMAGES[:2], verbose=0), atol=1e-6)
    np.testing.assert_allclose(given["map"], get_explainer("wbp", model)(IMAGES[:2], [0, 1]), atol=1e-5)


def test_a_model_of_any_size_takes_images_of_any_size(asked):
    inputs = keras.Input((None, None, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, activation="relu")(inputs))
    model = keras.Model(inputs, L.Dense(2, activation="softmax")(x))
    with pytest.raises(InvalidArgument, match="Use --size"):
        asked(model)
    _, explanation = asked(model, size=(9, 11))
    for images in (IMAGES[:2], np.tile(IMAGES[:2], (1, 2, 3, 1))):
        expected = get_explainer("wbp", model)(images, [0, 1])
        np.testing.assert_allclose(explanation(images, classes(0, 1))["map"], expected, atol=1e-6)


def test_one_of_several_outputs_is_chosen_by_an_option(asked):
    inputs = keras.Input((8, 6, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(inputs))
    outputs = [L.Dense(2, name="colour")(x), L.Dense(4, activation="softmax", name="shape")(x)]
    model = keras.Model(inputs, outputs)
    answer, explanation = asked(model, options={"output": "shape"})
    np.testing.assert_allclose(answer(IMAGES)["probabilities"], model.predict(IMAGES, verbose=0)[1], atol=1e-6)
    maps = get_explainer("wbp", model, output="shape")(IMAGES, [3] * 8)
    np.testing.assert_allclose(explanation(IMAGES, classes(*[3] * 8))["map"], maps, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "indices", "text"),
    [
        (IMAGES[:2, :7], (0, 1), r"`images`: expected shape \(N, 8, 6, 3\); received shape \[2 7 6 3\]"),
        (IMAGES[0], (0, 1), r"`images`: expected shape \(N, 8, 6, 3\); received shape \[8 6 3\]"),
        (IMAGES[:0], (), "`images`: expected at least one image; received an empty batch"),
        (IMAGES[:1] * np.inf, (0,), "`images`: expected finite values; received NaN or infinity"),
        (IMAGES[:2], (0, 3), r"`class_index`: expected a class in \[0, 2\], or -1 .*; received \[0 3\]"),
        (IMAGES[:2], (0, -2), r"`class_index`: expected a class in \[0, 2\], or -1 .*; received \[0 -2\]"),
        (IMAGES[:2], (0,), r"`class_index`: expected one for every image, of shape \(2,\); received shape \(1,\)"),
        (IMAGES[:2], ((0,), (1,)), r"`class_index`: expected shape \(N,\); received shape \[2 1\]"),
    ],
)
def test_bad_requests_are_refused_in_words_where_no_python_looks_at_them(colour, images, indices, text):
    """As a server in C++ runs the graph: without comparing a request with the signature."""
    _, export, _ = colour
    ask = in_a_session(export.path, "explain")
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        ask(images=np.asarray(images), class_index=np.asarray(indices, np.int64))
    ask(images=IMAGES[:2], class_index=np.array([0, 1]))  # and the next request is answered


def test_wrong_types_are_refused(colour):
    _, export, signatures = colour
    ask = in_a_session(export.path, "explain")
    for given in ({"images": IMAGES[:1].astype(np.float64)}, {"class_index": np.array([0], np.int32)}):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expect"):
            ask(**{"images": IMAGES[:1], "class_index": np.array([0]), **given})
    with pytest.raises(Exception, match=r"images|string"):
        signatures["serving_default"](images=tf.constant(["text"]))
    with pytest.raises(TypeError):
        signatures["serving_default"](pictures=tf.constant(IMAGES))


def test_bad_files_are_refused_with_their_reason(colour, saved):
    _, export, _ = colour
    ask = in_a_session(export.path, "explain_image_bytes")
    good = saved(np.zeros((9, 9, 3)))
    for bad, text in (
        (b"GIF89a", "Image 1 of `image_bytes` cannot be used: the content is neither PNG nor JPEG"),
        (b"", "Image 1 of `image_bytes` cannot be used: the file is empty"),
        (saved(np.zeros((400, 400, 3))), "expected an image of 1 to 100,000 pixels; received 400 x 400"),
        (good[:40], "PNG"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=text):
            ask(image_bytes=np.array([good, bad], object), class_index=np.array([0, 0]))
    assert ask(image_bytes=np.array([good], object), class_index=np.array([0]))["map"].shape == (1, 8, 6, 3)


@cache
def session_of(path):
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        return session, tf.compat.v1.saved_model.load(session, ["serve"], str(path))


@cache
def in_a_session(path, signature):
    """Run the graph of a SavedModel as C++ does; `Session.run` compares shapes first."""
    session, loaded = session_of(path)
    definition = loaded.signature_def[signature]
    options = config_pb2.CallableOptions()
    options.feed.extend(value.name for value in definition.inputs.values())
    options.fetch.extend(value.name for value in definition.outputs.values())
    with session.graph.as_default():
        function = session._make_callable_from_options(options)

    def ask(**inputs):
        return dict(zip(definition.outputs, function(*(inputs[name] for name in definition.inputs)), strict=True))

    return ask
