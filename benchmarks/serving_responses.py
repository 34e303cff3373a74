"""Sends the requests of docs/serving.md to the server of the tests, and writes the responses into the document.

.venv/bin/python benchmarks/serving_responses.py [RUNS]

RUNS is a folder with the quickstart (default: runs). The model is exported as the document says, in a folder that is
removed afterwards; the concepts are learned anew. Every block of commands or of Python that asks a server is followed
by a block with its response.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "serving.md"
SERVER = ROOT / "tests" / "serving" / "model_server"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_PORTS = {"localhost:8501": "rest_api_port", "localhost:8500": "port"}


def exchanges(document: str) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """The blocks that ask a server, each with the block that follows it, which holds the response."""
    blocks = list(_BLOCK.finditer(document))
    for block, following in pairwise(blocks):
        if (block[1] == "sh" and "curl " in block[2]) or block[1] == "python":
            yield block, following


def respond(kind: str, code: str, ports: Mapping[str, int], folder: Path) -> str:
    """Run a block against a server.

    Args:
        kind: `sh`: the last line is a `curl`, which is sent by Python, and bash does what is before. Or `python`.
        code: What is in the block.
        ports: `port` and `rest_api_port` of the server on this machine.
        folder: Where the files are that it names.

    Returns:
        The response, or what was printed.
    """
    for place, port in _PORTS.items():
        code = code.replace(place, f"localhost:{ports[port]}")
    if kind == "python":
        printed = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(compile(code, DOCUMENT.name, "exec"), {})
        return printed.getvalue()
    *before, curl = code.strip().splitlines()
    if before:
        subprocess.run(["bash", "-c", "\n".join(before)], cwd=folder, check=True)
    name, silent, address, *data = shlex.split(curl)
    if (name, silent) != ("curl", "-s") or data[:1] not in ([], ["-d"]):
        raise ValueError(f"Only `curl -s ADDRESS -d DATA` is understood; received {curl}")
    body = data[1] if data else None
    if body is not None and body.startswith("@"):
        body = (folder / body[1:]).read_text(encoding="utf-8")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body and body.encode()), timeout=60) as response:
            return response.read().decode().strip() + "\n"
    except urllib.error.HTTPError as error:
        return error.read().decode().strip() + "\n"


@contextlib.contextmanager
def running(*flags: object) -> Iterator[dict[str, int]]:
    """The server of the tests with flags of TensorFlow Serving, on free ports; gives its ports and its process id."""
    words = [sys.executable, "-I", str(SERVER), "--port=0", "--rest_api_port=0", *map(str, flags)]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                said.seek(0)
                raise RuntimeError(f"The server has not started:\n{said.read()[-2000:]}")
            yield {**json.loads(line), "pid": process.pid}
        finally:
            if process.stdin:
                process.stdin.close()  # it ends by that
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def digit(run: Path, file: Path) -> None:
    """Write the first test image of the quickstart."""
    from tfcausal.data.loading import load_data
    from tfcausal.progress import ConsoleProgress
    from tfcausal.runs import RunDirectory

    images, _ = (
        load_data(RunDirectory.open(run).config, ConsoleProgress()).splits["test_shuffled"].reader(np.array([0]))
    )
    Image.fromarray(((images[0, ..., 0] + 0.5) * 255).round().astype(np.uint8)).save(file)


def main() -> None:
    """Export, serve, ask and write."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()
    document = DOCUMENT.read_text(encoding="utf-8")
    commands = next(block[2] for block in _BLOCK.finditer(document) if "tfcausal export runs" in block[2])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(runs / "quickstart", folder / "runs" / "quickstart")
        for line in commands.splitlines():
            name, *words = shlex.split(line)
            if name == ".venv/bin/tfcausal" and words[0] in ("effects", "export"):
                subprocess.run([str(Path(sys.executable).with_name("tfcausal")), *words], cwd=folder, check=True)
        digit(folder / "runs" / "quickstart", folder / "digit.png")
        with running("--model_name=digits", f"--model_base_path={folder / 'saved_models/digits'}") as ports:
            for request, response in reversed(list(exchanges(document))):
                answer = respond(request[1], request[2], ports, folder)
                document = document[: response.start(2)] + answer + document[response.end(2) :]
    DOCUMENT.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
