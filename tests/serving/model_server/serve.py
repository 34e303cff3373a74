"""The flags of `tensorflow_model_server`, and the servers that they ask for."""

import argparse
import json
import os
import sys
from pathlib import Path
from threading import Thread

from batching import parameters_of
from google.protobuf import text_format
from models import Models
from rest import rest_server
from rpc import grpc_server
from tensorflow_serving.config import model_server_config_pb2


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path", type=Path)
    parser.add_argument("--model_config_file", type=Path)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--enable_batching", nargs="?", const="true", default="false")
    parser.add_argument("--batching_parameters_file", type=Path)
    parser.add_argument("--grpc_channel_arguments", default="")
    parser.add_argument("--batch_log", type=Path)
    # Files are read once here, and versions are there from the start.
    parser.add_argument("--model_config_file_poll_wait_seconds", type=int)
    parser.add_argument("--allow_version_labels_for_unavailable_models")
    return parser.parse_args()


def configuration(given: argparse.Namespace) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    if given.model_config_file is not None:
        return text_format.Parse(given.model_config_file.read_text(encoding="utf-8"), config)
    config.model_config_list.config.add(name=given.model_name, base_path=str(given.model_base_path))
    return config


def main() -> None:
    given = flags()
    batching = None
    if given.enable_batching == "true":
        file = given.batching_parameters_file
        batching = parameters_of("" if file is None else file.read_text(encoding="utf-8"))
    models = Models(configuration(given), batching, given.batch_log)
    pairs = (pair.split("=") for pair in given.grpc_channel_arguments.split(",") if pair)
    rpc, port = grpc_server(models, given.port, [(key, int(value)) for key, value in pairs])
    rest = rest_server(models, given.rest_api_port)
    Thread(target=rest.serve_forever, daemon=True).start()
    print(json.dumps({"port": port, "rest_api_port": rest.server_port}), flush=True)
    sys.stdin.read()
    rpc.stop(grace=None)
    os._exit(0)  # without waiting for requests that are under way
