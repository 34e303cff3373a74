"""`tfcausal serve-client`: images go to a server, overlays and a record come back, and what fails is said."""

import json
import shutil
import socket
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tfcausal.errors import DataError, InvalidArgument, RunError, UnsupportedOperation
from tfcausal.explain import Settings as ExplainSettings
from tfcausal.explain import explain_files
from tfcausal.progress import ConsoleProgress
from tfcausal.serving import messages, names
from tfcausal.serving.client.connection import ModelSpec, NoAnswer, RequestRefused, Signature, plain, signatures
from tfcausal.serving.client.grpc_channel import GrpcConnection
from tfcausal.serving.client.images import Settings, ask_about_files
from tfcausal.serving.client.rest import RestConnection

TITLE_ROWS = 48  # of an overlay


@contextmanager
def connected(server, way, name="cfcn", timeout=60.0, **spec):
    if way == "rest":
        yield RestConnection(server.url, ModelSpec(name, **spec), timeout)
    else:
        with GrpcConnection(server.address, ModelSpec(name, **spec), timeout) as connection:
            yield connection


def ask(connection, images, output, said=None, **settings):
    progress = ConsoleProgress(Console(quiet=True))
    if said is not None:
        progress.say = said.append
    return ask_about_files(connection, [images], output, Settings(**settings), progress)


def record_of(folder):
    return json.loads((folder / "explanations.json").read_text())


@pytest.mark.parametrize("way", ["grpc", "rest"])
def test_a_server_gives_what_tfcausal_explain_gives(served, shelf, pictures, tmp_path, way):
    """Maps, classes and overlays, whose titles alone differ: a client does not know the method."""
    local = tmp_path / "local"
    quiet = ConsoleProgress(Console(quiet=True))
    expected = explain_files(shelf.run, [pictures], local, ExplainSettings(target="7"), quiet, "cfcn")
    with connected(served, way) as connection:
        answers = ask(connection, pictures, tmp_path / "far", target="7", batch=2)
    assert answers.failed == []
    record = record_of(tmp_path / "far")
    assert record["images"] == answers.records
    assert record["model"] == {"name": "cfcn", "version": 1, "label": None}
    assert (record["signature"], record["target"]) == ("explain_image_bytes", 7)
    assert record["server"] == (served.url if way == "rest" else served.address)
    for given, wanted in zip(answers.records, expected, strict=True):
        assert set(given) == set(wanted)
        for key in ("file", "overlay", "map", "predicted_class", "explained_class", "explained_name", "map_is_zero"):
            assert given[key] == wanted[key], key
        for key in ("predicted_probability", "explained_probability"):
            assert given[key] == pytest.approx(wanted[key], abs=1e-6)
        maps = [np.load(folder / given["map"]) for folder in (tmp_path / "far", local)]
        np.testing.assert_allclose(*maps, atol=1e-6)
        assert maps[0].dtype == np.float32
        overlays = [np.asarray(Image.open(folder / given["overlay"]), int) for folder in (tmp_path / "far", local)]
        assert overlays[0].shape == overlays[1].shape
        assert np.abs(overlays[0] - overlays[1])[TITLE_ROWS:].max() <= 1  # of 255


@pytest.mark.parametrize("way", ["grpc", "rest"])
def test_what_is_refused_does_not_keep_the_others_from_being_answered(served, messy, tmp_path, way):
    said = []
    with connected(served, way) as connection:
        answers = ask(connection, messy, tmp_path / "out", said, batch=8)
    assert [one["file"][-5:] for one in answers.records] == ["0.png", "1.jpg", "2.png"]
    failed = record_of(tmp_path / "out")["failed"]
    assert failed == answers.failed
    assert [one["file"].rpartition("/")[2] for one in failed] == ["1_cut.jpg", "1_text.png", "2_empty.jpg"]
    assert "JPEG" in failed[0]["reason"]
    assert "[[" not in failed[0]["reason"]
    assert failed[1]["reason"] == "Image 0 of `image_bytes` cannot be used: the content is neither PNG nor JPEG"
    assert "the file is empty" in failed[2]["reason"]
    assert said == [f"{one['file']}: {one['reason']}" for one in failed]
    assert not list((tmp_path / "out").glob("*_*"))


@pytest.mark.parametrize("way", ["grpc", "rest"])
def test_versions_labels_and_names_of_classes(served, shelf, pictures, tmp_path, way):
    for number, (spec, version) in enumerate((({"label": "stable"}, 1), ({"version": 1}, 1), ({}, 2))):
        with connected(served, way, "pets", **spec) as connection:
            answers = ask(connection, pictures, tmp_path / str(number), target="Kuh ü", labels=shelf.labels)
        assert record_of(tmp_path / str(number))["model"]["version"] == version
        assert {(one["explained_class"], one["explained_name"]) for one in answers.records} == {(2, "Kuh ü")}
        for one in answers.records:
            assert one["predicted_name"] == shelf.labels[one["predicted_class"]]
    with connected(served, way, "pets") as connection:
        (one, *_) = ask(connection, pictures, tmp_path / "number", target="2").records
    assert one["explained_name"] == "Kuh ü"  # the server says it
    assert one["predicted_class"] == 2 or one["predicted_name"] is None  # and does not say others


def test_answers_without_maps(served, pictures, tmp_path):
    said = []
    with connected(served, "rest", "pets") as connection:
        answers = ask(connection, pictures, tmp_path / "out", said, signature="predict_image_bytes")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["explanations.json"]
    assert said == ["`predict_image_bytes` gives answers without maps: there will be no overlays."]
    assert all(one["explained_class"] == one["predicted_class"] for one in answers.records)
    assert "map" not in answers.records[0]


@pytest.mark.parametrize("way", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("name", "spec", "text"),
    [
        ("dogs", {}, r"has no model `dogs`; it says: Servable not found for request: Latest\(dogs\)\. Check the name"),
        ("pets", {"version": 9}, r"has no model `pets`, version 9; it says: .*Specific\(pets, 9\)"),
        ("pets", {"label": "old"}, "has no model `pets`, label old; it says: Unrecognized servable version label: old"),
    ],
)
def test_a_model_that_is_not_there(served, pictures, tmp_path, way, name, spec, text):
    with connected(served, way, name, **spec) as connection, pytest.raises(NoAnswer, match=text):
        ask(connection, pictures, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"signature": "explain"},
            r"signature`: expected one of the model that takes files; received `explain`\. Model",
        ),
        (
            {"signature": "effects"},
            "Model `pets` has explain, explain_image_bytes, predict_image_bytes, serving_default",
        ),
        ({"target": "3"}, r"expected a class index in \[0, 2\]; received '3'"),
        (
            {"target": "dog"},
            r"the index of a class; received 'dog'\. Give the names with --labels: .*assets/labels\.txt",
        ),
        ({"target": "dgo", "labels": ["cat", "dog", "cow"]}, "Did you mean `dog`"),
        ({"labels": ["cat", "dog"]}, "the names of the 3 classes, by index; received 2"),
        ({"target": "1", "signature": "predict_image_bytes"}, "none with `predict_image_bytes`; received '1'"),
        ({"batch": 0}, "`batch`: expected a positive integer; received 0"),
    ],
)
def test_what_does_not_go_with_the_model_is_said_before_anything_is_sent(served, pictures, tmp_path, settings, text):
    with connected(served, "rest", "pets") as connection, pytest.raises(InvalidArgument, match=text):
        ask(connection, pictures, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(served, pictures, tmp_path):
    (tmp_path / "0.png").write_bytes(b"mine")
    with connected(served, "rest", "pets") as connection:
        with pytest.raises(RunError, match=r"0\.png exists\. Choose another folder with --output"):
            ask(connection, pictures, tmp_path)
        assert (tmp_path / "0.png").read_bytes() == b"mine"
        with pytest.raises(DataError, match="nothing at that place"):
            ask(connection, tmp_path / "missing.png", tmp_path)
        ask(connection, pictures, tmp_path, overwrite=True)
    assert (tmp_path / "0.png").read_bytes()[1:4] == b"PNG"


def test_a_server_that_is_not_there_or_is_something_else(served, pictures, free_port, tmp_path):
    port, spec = free_port, ModelSpec("pets")
    rest_of = served.url.removeprefix("http://")
    for connection, text in (
        (
            RestConnection(f"http://localhost:{port}", spec),
            f"No TensorFlow Serving server .* http://localhost:{port}: ",
        ),
        (
            GrpcConnection(f"localhost:{port}", spec),
            f"No TensorFlow Serving server takes requests at localhost:{port}: .*efused",
        ),
        (
            RestConnection(f"http://{served.address}", spec),
            "is not TensorFlow Serving: .*gRPC port goes with --address",
        ),
        (GrpcConnection(rest_of, spec), "No TensorFlow Serving server .*Start one, or name its place"),
        (RestConnection(f"{served.url}/other", spec), "it says: Malformed request: GET /other"),
    ):
        with pytest.raises(NoAnswer, match=text):
            ask(connection, pictures, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["grpc", "rest"])
def test_a_server_that_says_nothing(pictures, tmp_path, way):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        spec = ModelSpec("pets")
        connection = RestConnection(f"http://{place}", spec, 0.5) if way == "rest" else GrpcConnection(place, spec, 0.5)
        with pytest.raises(NoAnswer, match=r"has not answered within 0\.5 s\. Give it longer with --timeout"):
            ask(connection, pictures, tmp_path / "out")


class Other(BaseHTTPRequestHandler):
    """Something else that speaks HTTP."""

    content = b"{}"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("content", "metadata_text", "predict_text"),
    [
        (b"{}", "its metadata have another form", "its answer has no `outputs` by name"),
        (b"[]", "its answer is not an object of JSON", "its answer is not an object of JSON"),
        (b"<html>", "its answer is not JSON", "its answer is not JSON"),
        (b'{"outputs": {"map": [[1], 2]}}', "its metadata have another form", "its outputs are no arrays"),
    ],
)
def test_what_else_speaks_http_is_told_from_a_server(content, metadata_text, predict_text):
    handler = type("Handler", (Other,), {"content": content})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        connection = RestConnection(f"http://localhost:{server.server_port}", ModelSpec("pets"))
        with pytest.raises(NoAnswer, match=f"is not TensorFlow Serving: {metadata_text}"):
            connection.metadata()
        with pytest.raises(NoAnswer, match=f"is not TensorFlow Serving: {predict_text}"):
            connection.predict("explain_image_bytes", {"image_bytes": [b"file"]})
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (413, "", RequestRefused, r"The message is too large: .*413.*--batch"),
        (503, '{"error": "the queue is full"}', NoAnswer, r"takes requests at .*: the queue is full\. Start one"),
        (504, '{"error": "deadline"}', NoAnswer, r"has given up: deadline\. Send less .*--rest_api_timeout_in_ms"),
        (404, "<html>", NoAnswer, r"is not TensorFlow Serving: .*404"),
        (404, '{"error": "no such model"}', NoAnswer, r"has no model `pets`; it says: no such model"),
        (400, '{"error": "class 9"}', RequestRefused, r"^class 9$"),
        (500, "oh", RequestRefused, "500"),
    ],
)
def test_errors_of_http_are_told_by_their_kind(status, body, kind, text):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        connection = RestConnection(f"http://localhost:{server.server_port}", ModelSpec("pets"))
        with pytest.raises(kind, match=text):
            connection.predict("explain_image_bytes", {"image_bytes": [b"file"]})
        server.shutdown()


class Scripted:
    """A server of one model; what it does with each request is told."""

    place, model = "here", ModelSpec("scripted")

    def __init__(self, *script, units=2, logits=(0.75, 0.25), probabilities=(0.75, 0.25)):
        self.script, self.sent, self.units = list(script), [], units
        self.answers = {"logits": logits[:units], "probabilities": probabilities[:units]}

    def metadata(self):
        outputs = dict.fromkeys(names.outputs_of(names.EXPLAIN_BYTES), (None, self.units))
        return 1, {
            names.EXPLAIN_BYTES: Signature(
                names.EXPLAIN_BYTES, dict.fromkeys(names.inputs_of("explain_image_bytes")), outputs
            )
        }

    def predict(self, signature, inputs):
        contents = inputs["image_bytes"]
        self.sent.append(len(contents))
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        count = len(contents)
        return {
            **{name: np.tile([one], (count, 1)).astype(np.float32) for name, one in self.answers.items()},
            "class_index": np.ones(count, int),
            "label": np.array(["yes"] * count),
            "map": np.ones((count, 4, 4, 3), np.float32),
        }


def test_a_server_that_goes_away_leaves_what_it_has_answered(pictures, tmp_path):
    said = []
    gone = Scripted(None, NoAnswer("It is gone."))
    answers = ask(gone, pictures, tmp_path / "out", said, batch=1)
    assert gone.sent == [1, 1]
    assert [one["file"][-5:] for one in answers.records] == ["0.png"]
    assert [one["reason"] for one in record_of(tmp_path / "out")["failed"]] == ["Not asked any more. It is gone."] * 2
    assert said == ["Stopped with 2 of 3 images left. It is gone."]
    assert (tmp_path / "out" / "0.npy").exists()
    with pytest.raises(NoAnswer, match="It is gone"):
        ask(Scripted(NoAnswer("It is gone.")), pictures, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_refused_batch_is_sent_image_by_image(pictures, tmp_path):
    refusing = Scripted(RequestRefused("too much"), None, RequestRefused("bad"), None)
    answers = ask(refusing, pictures, tmp_path / "out", batch=3)
    assert refusing.sent == [3, 1, 1, 1]
    assert [one["file"][-5:] for one in answers.failed] == ["1.jpg"]


def test_a_head_of_one_logit(pictures, tmp_path):
    answers = ask(Scripted(units=1), pictures, tmp_path / "out", target="1")
    assert answers.records[0]["predicted_class"] == 1
    assert answers.records[0]["predicted_probability"] == pytest.approx(0.75)
    against = Scripted(units=1, logits=(-1.0,), probabilities=(0.25,))
    answers = ask(against, pictures, tmp_path / "against", target="1")
    assert (answers.records[0]["predicted_class"], answers.records[0]["explained_class"]) == (0, 1)
    assert answers.records[0]["predicted_probability"] == pytest.approx(0.75)
    assert answers.records[0]["explained_probability"] == pytest.approx(0.25)
    with pytest.raises(InvalidArgument, match=r"expected class 1; received class 0\. The map of a head of one logit"):
        ask(Scripted(units=1), pictures, tmp_path / "other", target="0")


def test_answers_of_another_form_are_refused(pictures, tmp_path):
    whole = Scripted().predict("", {"image_bytes": [b""] * 3})
    for changed, text in (
        ({"probabilities": np.zeros((1, 2))}, r"gives `probabilities` of shape \(1, 2\)"),
        ({"probabilities": np.array(0.5)}, r"gives `probabilities` of shape \(\)"),
        ({"logits": np.zeros(3)}, r"gives `logits` of shape \(3,\)"),
        ({"map": np.zeros((3, 4))}, r"gives `map` of shape \(3, 4\)"),
        ({"class_index": np.array([0, 7, 0])}, r"gives `class_index` 7 of 2 classes"),
        ({"class_index": np.array([0, -1, 1])}, r"gives `class_index` -1 of 2 classes"),
        ({"label": None}, "gives no `label`"),
    ):
        other, answer = Scripted(), {name: one for name, one in (whole | changed).items() if one is not None}
        other.predict = lambda signature, inputs, answer=answer: answer
        with pytest.raises(NoAnswer, match=f"The server at here {text}"):
            ask(other, pictures, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_shown_or_read_here_fails_alone(pictures, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "text.png").write_text("no image")
    shutil.copy(folder / "0.png", folder / "gone.png")
    server = Scripted()
    predict = server.predict

    def predict_and_remove(signature, inputs):
        (folder / "gone.png").unlink(missing_ok=True)
        return predict(signature, inputs)

    server.predict = predict_and_remove
    answers = ask(server, folder, tmp_path / "out", batch=1)
    assert len(answers.records) == 3
    assert len(answers.failed) == 2
    reasons = {one["file"].rpartition("/")[2]: one["reason"] for one in answers.failed}
    assert reasons["text.png"].startswith("The server has answered, but the image cannot be shown here: ")
    assert reasons["gone.png"] == "The file cannot be read: No such file or directory."


def test_a_message_above_the_limit_says_what_to_do(served, shelf, model_server, pictures, tmp_path, saved):
    """Noise of 60 KB, and a server that takes 20 KB; the small images are answered one by one."""
    small = model_server(
        f"--model_config_file={shelf.config}", "--grpc_channel_arguments=grpc.max_receive_message_length=20000"
    )
    folder = tmp_path / "images"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "9.png").write_bytes(saved(np.random.default_rng(0).integers(0, 256, (140, 150, 3))))
    with connected(small, "grpc") as connection:
        answers = ask(connection, folder, tmp_path / "out")
    assert len(answers.records) == 3
    ((file, reason),) = [one.values() for one in answers.failed]
    assert file.endswith("9.png")
    for part in ("The message is too large", "larger than max", "20000", "--batch", "--grpc_channel_arguments"):
        assert part in reason


def test_places_and_models_that_cannot_be():
    spec = ModelSpec("pets")
    usable = ["http://localhost", "https://a.example:1/b", "http://127.0.0.1:65535", "http://[::1]:8501"]
    for url in usable:
        assert RestConnection(url, spec).place == url
    for url in (
        *("localhost:8501", "ftp://localhost", "http://", "http://[::1:8501", "http://localhost..:1", "http://a/ü"),
        *("http://localhost:abc", "http://localhost:65536", "http://localhost:0", "http://loc alhost:1", "http://a/\n"),
    ):
        with pytest.raises(InvalidArgument, match="`url`: expected an address such as http://localhost:8501"):
            RestConnection(url, spec)
    for address in ("localhost", ":8500", "http://localhost:8500", "localhost:http"):
        with pytest.raises(InvalidArgument, match="`address`: expected HOST:PORT, such as localhost:8500"):
            GrpcConnection(address, spec)
    with pytest.raises(InvalidArgument, match=r"a version or a label; received version 1 and label stable\. Leave one"):
        ModelSpec("pets", 1, "stable")
    for version in (0, 2**63):
        with pytest.raises(InvalidArgument, match=rf"an integer in \[1, {2**63 - 1}\]; received {version}"):
            ModelSpec("pets", version)
    for name in ("", "\udcff", "a\n"):
        with pytest.raises(InvalidArgument, match=r"`model`: expected a name"):
            ModelSpec(name)
        with pytest.raises(InvalidArgument, match=r"`label`: expected a name"):
            ModelSpec("pets", label=name)
    for timeout in (0, -1.0, float("nan"), float("inf"), 1e10):
        for connect, place in ((RestConnection, "http://localhost"), (GrpcConnection, "localhost:8500")):
            with pytest.raises(InvalidArgument, match=rf"`timeout`: expected seconds, at most 86400.*{timeout}"):
                connect(place, spec, timeout)
    assert (
        RestConnection("http://a", ModelSpec("a b", label="x/y"))
        .address("/metadata")
        .endswith("a%20b/labels/x%2Fy/metadata")
    )


def test_what_a_server_says_is_put_plainly():
    said = "assertion failed: [Invalid value for `images`: received [2 7].] [[{{node explain/cond/Assert}}]]"
    assert plain(said) == "Invalid value for `images`: received [2 7]"
    assert plain("Expects arg[0] to be float\n\t [[{{node StatefulPartitionedCall}}]]") == "Expects arg[0] to be float"
    assert plain("Invalid JPEG data [[{{function_node map_body}}{{node map/Decode}}]]") == "Invalid JPEG data"
    assert len(plain("x" * 10_000)) < 600
    unknown = {"inputs": {"x": {"tensor_shape": {"unknown_rank": True}}}}
    assert signatures({"signature_def": {"f": unknown, "__init": unknown}}) == {"f": Signature("f", {"x": None}, {})}


def test_without_the_extra_grpc_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(messages, "import_module", missing)
    with pytest.raises(UnsupportedOperation, match=r"`grpc` cannot be imported .*pip install 'tfcausal\[serving\]'"):
        GrpcConnection("localhost:8500", ModelSpec("pets"))
