"""What docs/serving.md says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfcausal.export import exportable_methods
from tfcausal.serving import checking, image_bytes, names

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
NUMBER = 6  # of requests with responses


@pytest.fixture(scope="module")
def exchanges(responses):
    """Requests of the document with their responses."""
    return [(request[1], request[2], response[2]) for request, response in responses.exchanges(DOCUMENT)]


def block(word):
    (found,) = (text for _, text in BLOCKS if word in text)
    return found


@pytest.fixture(scope="module")
def documented(of_run, model_server, tmp_path_factory, saved):
    """A server as the document starts it for several versions, with a small model; its ports, and a folder of files."""
    folder = tmp_path_factory.mktemp("documented")
    for version in ("1", "2"):
        shutil.copytree(of_run[1].path, folder / "digits" / version)
    for name, word in (("models.config", "model_config_list"), ("batching.config", "max_batch_size {")):
        (folder / name).write_text(block(word).replace("/models/", f"{folder}/"), encoding="utf-8")
    command = next(part for part in block("--enable_batching").replace("\\\n", " ").split("\n") if part)
    words = shlex.split(command)
    flags = [word.replace("/models/", f"{folder}/") for word in words[words.index("tensorflow/serving") + 1 :]]
    assert len(flags) == 5
    server = model_server(*flags)
    (folder / "digit.png").write_bytes(saved(np.random.default_rng(0).integers(0, 256, (24, 24))))
    return server.ports, folder


def form(value):
    """What kinds of values are where."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items()}
    return [form(value[0])] if isinstance(value, list) else type(value)


def test_there_are_requests_of_every_kind(exchanges):
    text = "".join(request for _, request, _ in exchanges)
    for word in ('"instances"', '"inputs"', "b64", "PredictRequest", "explain_image_bytes", '"effects"'):
        assert word in text, word
    assert all(response.strip() for _, _, response in exchanges)
    assert len(exchanges) == NUMBER


@pytest.mark.parametrize("number", range(NUMBER))
def test_the_documented_requests_are_answered_as_it_says(documented, responses, exchanges, number):
    """The document's are those of a larger model: compared is the form, and everything but the numbers."""
    kind, request, response = exchanges[number]
    ports, folder = documented
    given = responses.respond(kind, request, ports, folder)
    if kind == "python":
        without = [
            re.sub(r"-?[\d.]+(e-\d+)?", "#", " ".join(text.split())).replace("[#", "[ #") for text in (given, response)
        ]
        assert re.sub(r"( #)+", " #", without[0]) == re.sub(r"( #)+", " #", without[1])
        return
    given, documented_one = json.loads(given), json.loads(response)
    if "error" in documented_one:
        said = [re.sub(r"\d+", "#", one["error"]) for one in (given, documented_one)]
        assert said[0] == said[1]
    elif "model_version_status" in documented_one:
        assert form(given) == form(documented_one)
        assert given["model_version_status"][-1] == documented_one["model_version_status"][0]  # its version 1
    else:
        assert form(given) == form(documented_one)


def test_labels_stand_for_the_documented_versions(documented, responses):
    ports, folder = documented
    for label, version in (("stable", "1"), ("canary", "2")):
        request = f"curl -s http://localhost:8501/v1/models/digits/labels/{label}"
        answer = json.loads(responses.respond("sh", request, ports, folder))
        assert [one["version"] for one in answer["model_version_status"]] == [version]


def test_signatures_and_numbers_are_those_of_the_code(of_run):
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT, re.MULTILINE))
    assert set(rows) == {names.PREDICT, names.EXPLAIN, names.PREDICT_BYTES, names.EXPLAIN_BYTES, names.EFFECTS}
    for signature, row in rows.items():
        inputs, _, outputs = row.partition(" | ")
        assert re.findall(r"`(\w+)`", inputs) == list(names.inputs_of(signature))
        if "same" not in outputs:
            assert re.findall(r"`(\w+)`", outputs) == list(names.outputs_of(signature))
    assert f"{image_bytes.MOST_PIXELS:,} unless told otherwise" in DOCUMENT
    assert "batches of 1, 3 and 8" in DOCUMENT
    assert checking.BATCH_SIZES == (1, 3, 8)
    assert checking.TOLERANCE == 1e-5
    assert "score_cam" not in exportable_methods()
    listed = re.findall(r"^ {6}(\w[\w./]*?)(?:,| {2})", DOCUMENT, re.MULTILINE)
    assert len(listed) >= 5
    for name in listed:
        assert (of_run[1].path / name).exists(), name


def test_measured_numbers_are_those_of_the_benchmarks():
    results = ROOT / "benchmarks" / "results"
    for row, network in (
        ("VGG16, 8 images of 224x224", "vgg16"),
        ("all-convolutional, 64 images", "all_convolutional"),
    ):
        line = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| {row}"))
        ratios = [
            json.loads((results / f"export_{network}_{method}.json").read_text()) for method in ("wbp", "grad_cam")
        ]
        assert line.split("|")[2:4] == [f" {one['rows'][1]['ratio']:.2f} " for one in ratios]
        files = json.loads((results / f"export_{network}_files.json").read_text())["rows"][1]["ratio"]
        assert f"{files:.2f} with" in DOCUMENT
    measured = json.loads((results / "serving.json").read_text())
    memory = " | ".join(
        f"{value:.0f}" for _, value in sorted(measured["memory_mib"].items(), key=lambda one: int(one[0]))
    )
    assert f"| memory (MiB) | {memory} |" in DOCUMENT
    assert f"{measured['bytes_by_grpc']:,} bytes by gRPC and {measured['bytes_by_rest']:,} by REST" in " ".join(
        DOCUMENT.split()
    )


def test_the_commands_of_the_document_are_understood(run_command):
    """Their words, with `--help` at the end; and that the pages and scripts are there."""
    commands = re.findall(r"^\.venv/bin/tfcausal (\S.*?)(?:\s+#.*)?$", DOCUMENT, re.MULTILINE)
    assert len(commands) >= 5
    for command in {words.split()[0] for words in commands}:
        text = run_command(command, "--help").stdout
        for words in commands:
            if words.split()[0] == command:
                for flag in re.findall(r"--[a-z-]+", words):
                    assert re.search(rf"{flag}(?![\w-])", text), (command, flag)
    for path in re.findall(r"\.venv/bin/python (\S+?\.py)", DOCUMENT):
        assert (ROOT / path).exists(), path
    assert "(docs/serving.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
