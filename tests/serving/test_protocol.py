"""Exported models behind TensorFlow Serving's own messages: by gRPC and by REST, alone and in batches of several."""

import base64
import json
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tfcausal.effects.expected import ConceptEffects
from tfcausal.models.inputs import read_image
from tfcausal.saliency.registry import get_explainer
from tfcausal.serving import names

IMAGES = np.random.default_rng(7).uniform(-1, 1, (4, 8, 6, 3)).astype(np.float32)
DIGITS = np.random.default_rng(8).uniform(-0.5, 0.5, (4, 24, 24, 1)).astype(np.float32)
BATCHING = "max_batch_size { value: 4 }\nbatch_timeout_micros { value: 1500000 }\nallowed_batch_sizes: [2, 4]"
MOST_BYTES = 40_000


class Refused(Exception):
    """What a server does not answer."""


def by_grpc(server, model, signature, version=None, label=None, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    with grpc.insecure_channel(server.address) as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        except grpc.RpcError as error:
            raise Refused(f"{error.code().name}: {error.details()}") from error
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def fetched(server, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", data), timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Refused(f"{error.code}: {json.load(error)['error']}") from error


def in_json(values):
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.tolist()
    return [{"b64": base64.b64encode(one).decode()} if isinstance(one, bytes) else one for one in values]


def path_of(model, version, label):
    return f"/v1/models/{model}" + (f"/versions/{version}" if version else f"/labels/{label}" if label else "")


def by_columns(server, model, signature, version=None, label=None, **inputs):
    body = {"signature_name": signature, "inputs": {name: in_json(values) for name, values in inputs.items()}}
    outputs = fetched(server, f"{path_of(model, version, label)}:predict", body)["outputs"]
    return {name: np.array(values) for name, values in outputs.items()}


def by_rows(server, model, signature, version=None, label=None, **inputs):
    plain = {name: in_json(values) for name, values in inputs.items()}
    instances = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    body = {"signature_name": signature, "instances": instances}
    rows = fetched(server, f"{path_of(model, version, label)}:predict", body)["predictions"]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


WAYS = [by_grpc, by_columns, by_rows]


def texts(labels):
    return [label.decode() if isinstance(label, bytes) else str(label) for label in labels]


@pytest.fixture(scope="module")
def files(saved):
    generator = np.random.default_rng(3)
    return [saved(generator.integers(0, 256, shape), kind) for kind, shape in (("PNG", (40, 33, 3)), ("JPEG", (7, 9)))]


@pytest.fixture(scope="module")
def batching(shelf, model_server, tmp_path_factory):
    """A server that puts requests together, takes small messages, and writes down which batches it has made."""
    folder = tmp_path_factory.mktemp("batching")
    (folder / "batching.config").write_text(BATCHING.replace("[2, 4]", "2\nallowed_batch_sizes: 4"), encoding="utf-8")
    server = model_server(
        f"--model_config_file={shelf.config}",
        "--enable_batching=true",
        f"--batching_parameters_file={folder / 'batching.config'}",
        f"--batch_log={folder / 'log'}",
        f"--grpc_channel_arguments=grpc.max_receive_message_length={MOST_BYTES}",
    )
    server.log = folder / "log"
    return server


@pytest.mark.parametrize("ask", WAYS)
def test_answers_and_maps_are_those_of_the_model(served, shelf, ask):
    model = shelf.pets[2]
    expected = model.predict(IMAGES, verbose=0)
    answers = ask(served, "pets", "serving_default", images=IMAGES)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    assert texts(answers["label"]) == [shelf.labels[index] for index in expected.argmax(axis=1)]
    classes = np.array([-1, 0, 1, 2])
    explained = ask(served, "pets", "explain", images=IMAGES, class_index=classes)
    target = np.where(classes < 0, expected.argmax(axis=1), classes)
    np.testing.assert_array_equal(explained["class_index"], target)
    np.testing.assert_allclose(explained["map"], get_explainer("wbp", model)(IMAGES, target), atol=1e-5)


@pytest.mark.parametrize("ask", WAYS)
def test_files_are_answered_as_they_are(served, shelf, files, ask, tmp_path):
    model, read = shelf.pets[2], []
    for number, content in enumerate(files):
        (tmp_path / str(number)).write_bytes(content)
        read.append(read_image(tmp_path / str(number), (8, 6, 3)))
    images = 2 * np.stack(read) - 1
    given = ask(
        served, "pets", "explain_image_bytes", image_bytes=np.array(files, object), class_index=np.array([2, -1])
    )
    expected = model.predict(images, verbose=0)
    target = np.array([2, expected[1].argmax()])
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(given["map"], get_explainer("wbp", model)(images, target), atol=1e-5)
    answers = ask(served, "pets", "predict_image_bytes", image_bytes=np.array(files, object))
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(("signature", "level"), [("effects_block1_conv", "block1_conv"), ("effects", "block2_conv")])
def test_effects_are_those_of_the_learned_concepts(served, shelf, ask, signature, level):
    path = shelf.run / "effects/cfcn/levels" / level / "autoencoder.keras"
    with warnings.catch_warnings():  # noise tells nothing about an autoencoder
        warnings.filterwarnings("ignore", "Through the autoencoder", UserWarning)
        result = ConceptEffects(keras.models.load_model(path, compile=False))(DIGITS)
    given = ask(served, "cfcn", signature, images=DIGITS)
    np.testing.assert_allclose(given["effects"], result.intervened[:, :, 0] - result.observed[:, None], atol=1e-6)
    np.testing.assert_allclose(given["observed"], result.observed, atol=1e-6)


@pytest.mark.parametrize("ask", WAYS)
def test_versions_and_labels_choose_the_model(served, shelf, ask):
    for choice, version in (({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2), ({}, 2)):
        answers = ask(served, "pets", "serving_default", **choice, images=IMAGES[:1])
        expected = shelf.pets[version].predict(IMAGES[:1], verbose=0)
        np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    first, second = (shelf.pets[version].predict(IMAGES[:1], verbose=0) for version in (1, 2))
    assert np.abs(first - second).max() > 1e-3


def test_a_single_input_goes_without_its_name(served, shelf, files):
    """The short form of REST, by rows: what `instances` holds is the input itself."""
    body = {"signature_name": "predict_image_bytes", "instances": in_json(files)}
    rows = fetched(served, "/v1/models/pets:predict", body)["predictions"]
    whole = by_rows(served, "pets", "predict_image_bytes", image_bytes=np.array(files, object))
    assert [row["probabilities"] for row in rows] == whole["probabilities"].tolist()
    default = fetched(served, "/v1/models/pets:predict", {"instances": IMAGES.tolist()})["predictions"]
    expected = shelf.pets[2].predict(IMAGES, verbose=0)
    np.testing.assert_allclose([row["probabilities"] for row in default], expected, atol=1e-6)


def test_status_and_metadata(served, of_run):
    with grpc.insecure_channel(served.address) as channel:
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "pets"
        found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=60)
        assert [one.version for one in found.model_version_status] == [2, 1]
        metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        metadata.model_spec.name = "cfcn"
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        given = stub.GetModelMetadata(metadata, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert given.metadata["signature_def"].Unpack(signatures)
    assert set(of_run[1].signatures) <= set(signatures.signature_def)
    for name in of_run[1].signatures:
        definition = signatures.signature_def[name]
        assert definition.method_name == "tensorflow/serving/predict"  # else TensorFlow Serving does not take it
        assert set(definition.inputs) == set(names.inputs_of(name))
        assert set(definition.outputs) == set(names.outputs_of(name))
        for info in (*definition.inputs.values(), *definition.outputs.values()):
            assert info.tensor_shape.dim[0].size == -1
    status = fetched(served, "/v1/models/pets/labels/stable")["model_version_status"]
    assert status == [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    by_rest = fetched(served, "/v1/models/cfcn/metadata")["metadata"]["signature_def"]["signature_def"]
    assert by_rest["explain"]["outputs"]["map"]["tensor_shape"]["dim"][1]["size"] == "24"


def test_the_warm_up_requests_are_answered_as_they_are(served, of_run):
    played = []
    with grpc.insecure_channel(served.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for record in tf.data.TFRecordDataset(str(of_run[1].path / "assets.extra" / names.WARM_UP_FILE)):
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            response = stub.Predict(request, timeout=60)
            signature = request.model_spec.signature_name
            assert set(response.outputs) == set(names.outputs_of(signature))
            assert response.model_spec.version.value == 1
            played.append(signature)
    assert set(played) == set(of_run[1].signatures)


@pytest.mark.parametrize("ask", [by_grpc, by_columns])
@pytest.mark.parametrize(
    ("signature", "inputs", "text"),
    [
        (
            "explain_image_bytes",
            {"image_bytes": np.array([b"GIF89a"], object), "class_index": np.array([0])},
            "Image 0 of `image_bytes` cannot be used: the content is neither PNG nor JPEG",
        ),
        ("predict_image_bytes", {"image_bytes": np.array([b""], object)}, "the file is empty"),
        ("serving_default", {"images": IMAGES[:, :7]}, r"`images`: expected shape \(N, 8, 6, 3\); received .*4 7 6 3"),
        (
            "explain",
            {"images": IMAGES[:1], "class_index": np.array([3])},
            r"a class in \[0, 2\], or -1 .*received \[3\]",
        ),
        ("explain", {"images": IMAGES[:1], "class_index": np.array([-2])}, r"a class in \[0, 2\], or -1 .*received"),
        ("explain", {"images": IMAGES[:2], "class_index": np.array([0])}, "one for every image"),
        ("explain", {"images": IMAGES[:1]}, "class_index"),
        ("serving_default", {"images": np.array(["text"], object)}, "float"),
        ("explain", {"images": IMAGES[:1], "class_index": np.array([0.5])}, "expect"),
    ],
)
def test_bad_requests_are_refused_in_words(served, ask, signature, inputs, text):
    with pytest.raises(Refused, match=f"^(INVALID_ARGUMENT|400): [\\s\\S]*{text}"):
        ask(served, "pets", signature, **inputs)
    ask(served, "pets", "serving_default", images=IMAGES[:1])  # the next one is answered


def test_an_empty_batch_is_refused(served):
    """gRPC can carry the shape (0, 8, 6, 3); nested lists of JSON have no more than (0,)."""
    for ask, signature, inputs in (
        (by_grpc, "serving_default", {"images": IMAGES[:0]}),
        (by_columns, "predict_image_bytes", {"image_bytes": []}),
    ):
        with pytest.raises(Refused, match=r"expected at least one image; received an empty batch"):
            ask(served, "pets", signature, **inputs)
    with pytest.raises(Refused, match=r"400: .*`images`: expected shape \(N, 8, 6, 3\); received shape \[0\]"):
        by_columns(served, "pets", "serving_default", images=[])


@pytest.mark.parametrize(
    ("arguments", "options", "texts_by_way"),
    [
        (("dogs", "explain"), {}, ("NOT_FOUND: .*Latest\\(dogs\\)", "404: .*Latest\\(dogs\\)")),
        (("pets", "explain"), {"version": 9}, ("NOT_FOUND: .*Specific\\(pets, 9\\)", "404: .*Specific\\(pets, 9\\)")),
        (("pets", "explain"), {"label": "old"}, ("INVALID_ARGUMENT: .*label: old", "400: .*label: old")),
        (("pets", "effects"), {}, ("FAILED_PRECONDITION: .*effects", "400: .*effects")),
    ],
)
def test_what_is_not_served_is_said(served, arguments, options, texts_by_way):
    for ask, text in zip((by_grpc, by_columns), texts_by_way, strict=True):
        with pytest.raises(Refused, match=text):
            ask(served, *arguments, **options, images=IMAGES[:1])


def log_of(server):
    return [json.loads(line) for line in server.log.read_text().splitlines()] if server.log.exists() else []


def questions(signature):
    """Inputs for four images."""
    if names.inputs_of(signature)[0] == names.IMAGE_BYTES:
        streams = [tf.io.encode_png(tf.cast(255 * (image + 0.5), tf.uint8)).numpy() for image in DIGITS]
        inputs = {"image_bytes": np.array(streams, object)}
    else:
        inputs = {"images": DIGITS}
    if names.CLASS_INDEX in names.inputs_of(signature):
        inputs["class_index"] = np.array([3, -1, 0, 9])
    return inputs


@pytest.mark.parametrize(
    "signature",
    [*(names.PREDICT, names.EXPLAIN, names.PREDICT_BYTES, names.EXPLAIN_BYTES), "effects_block1_conv", "effects"],
)
def test_a_server_puts_requests_together_and_takes_the_answers_apart(served, batching, signature):
    """Three requests at once, of one, two and one images: one batch of four, and everyone gets their own answers."""
    inputs = questions(signature)
    together = by_grpc(served, "cfcn", signature, **inputs)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    before = len(log_of(batching))

    def ask(numbered):
        number, part = numbered
        way = (by_grpc, by_columns, by_rows)[number]
        return way(batching, "cfcn", signature, **{name: values[part] for name, values in inputs.items()})

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, enumerate(parts)))
    (entry,) = log_of(batching)[before:]
    assert sorted(entry.pop("sizes")) == [1, 1, 2]
    assert entry == {"model": "cfcn", "version": 1, "signature": signature, "padding": 0}
    for part, given in zip(parts, answers, strict=True):
        for name, values in together.items():
            if name == names.LABEL:
                assert texts(given[name]) == texts(values[part])
            else:
                np.testing.assert_allclose(given[name], values[part], atol=2e-6)


def test_padding_to_an_allowed_size_changes_nothing(served, batching):
    inputs = {"images": DIGITS[:1], "class_index": np.array([2])}
    given = by_grpc(batching, "cfcn", "explain", **inputs)
    assert log_of(batching)[-1]["padding"] == 1
    alone = by_grpc(served, "cfcn", "explain", **inputs)
    assert given["map"].shape == (1, 24, 24, 1)
    np.testing.assert_allclose(given["map"], alone["map"], atol=1e-6)


def test_who_shares_a_batch_shares_its_fate(batching):
    """As the card says of every exported model: TensorFlow Serving fails a batch as a whole."""

    def ask(target):
        try:
            return by_grpc(batching, "cfcn", "explain", images=DIGITS[:2], class_index=np.array([0, target]))
        except Refused as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, [0, 10]))
    assert [answer.startswith("INVALID_ARGUMENT") for answer in answers] == [True, True]


def test_more_than_a_batch_or_a_message_holds_is_refused(batching):
    with pytest.raises(Refused, match="INVALID_ARGUMENT: Task size 5 is larger than maximum input batch size 4"):
        by_grpc(batching, "cfcn", "explain", images=np.tile(DIGITS[:1], (5, 1, 1, 1)), class_index=np.zeros(5, int))
    with pytest.raises(Refused, match=r"RESOURCE_EXHAUSTED: .*larger than max \(\d+ vs\. 40000\)"):
        by_grpc(batching, "cfcn", "serving_default", images=np.tile(DIGITS, (5, 1, 1, 1)))
