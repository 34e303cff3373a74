"""Memory of a server of an exported VGG16, and bytes of its answers: `explain` by WBP with images of 224x224.

.venv/bin/python benchmarks/serving.py

The server is that of the tests, which runs the exported graph in a session, as TensorFlow Serving does; its own Python
and TensorFlow are in the figure for no images. For each number of images it is asked twice, and its greatest resident
memory so far is read. Answers are measured as gRPC and REST carry them, for one image.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import tempfile
import urllib.request
from pathlib import Path

import grpc
import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from serving_responses import running
from side_by_side import RESULTS
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tfcausal.atomic import to_json
from tfcausal.export import Choices, export_model
from tfcausal.serving.messages import predict_request

COUNTS = (1, 4, 16)


def greatest_memory(process: int) -> float:
    """MiB that a process has had at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measured(folder: str) -> dict[str, object]:
    export_model(keras.applications.VGG16(weights=None), Choices(pixels=(0.0, 1.0)), name="vgg16", output=folder)
    with running("--model_name=vgg16", f"--model_base_path={folder}/vgg16") as server:
        memory = {0: greatest_memory(server["pid"])}
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"localhost:{server['port']}", options) as channel:
            stub = PredictionServiceStub(channel)
            for count in COUNTS:
                images = np.random.default_rng(0).random((count, 224, 224, 3), np.float32)
                inputs = {"images": images, "class_index": np.full(count, -1)}
                for _ in range(2):
                    answer = stub.Predict(predict_request("vgg16", "explain", inputs))
                memory[count] = greatest_memory(server["pid"])
                if count == 1:
                    bytes_by_grpc = answer.ByteSize()
        body = {"signature_name": "explain", "inputs": {"images": images[:1].tolist(), "class_index": [-1]}}
        address = f"http://localhost:{server['rest_api_port']}/v1/models/vgg16:predict"
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode())) as response:
            bytes_by_rest = len(response.read())
    return {"memory_mib": memory, "bytes_by_grpc": bytes_by_grpc, "bytes_by_rest": bytes_by_rest}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measured(folder)
    table = Table("images of a request", "greatest memory (MiB)", title="VGG16, explain by WBP, images of 224x224")
    for count, memory in found["memory_mib"].items():
        table.add_row(str(count), f"{memory:.0f}")
    Console().print(table)
    print(f"An answer for one image: {found['bytes_by_grpc']:,} bytes by gRPC, {found['bytes_by_rest']:,} by REST")
    (RESULTS / "serving.json").write_text(to_json(found), encoding="utf-8")


if __name__ == "__main__":
    main()
