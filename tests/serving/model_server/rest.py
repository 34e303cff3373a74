"""TensorFlow Serving's REST interface: JSON by rows (`instances`) and by columns (`inputs`)."""

import base64
import binascii
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToJson
from models import DEFAULT
from refusal import Refusal
from rpc import FIELD, metadata_of, status_of
from tensorflow_serving.apis import get_model_metadata_pb2

MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def rest_server(models, port):
    """A server that listens on this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _answer(self, body):
            try:
                code, text = 200, answer(models, self.command, self.path, body)
            except Refusal as refusal:
                code, text = STATUS.get(refusal.code, 500), json.dumps({"error": refusal.said}, ensure_ascii=False)
            content = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


def answer(models, method, path, body):
    """The text that answers a request."""
    found = re.fullmatch(f"{MODEL}:predict" if method == "POST" else f"{MODEL}(/metadata)?", path, re.IGNORECASE)
    if not found:
        raise Refusal("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
    name, version, label = found[1], found[2], found[3]
    spec = unquote(name), None if version is None else int(version), None if label is None else unquote(label)
    if method == "POST":
        return predicted(models.find(*spec)[1], body)
    if found[4] is None:
        return MessageToJson(status_of(models, *spec), always_print_fields_with_no_presence=True, indent=1) + "\n"
    response, described = metadata_of(models, *spec), get_model_metadata_pb2.SignatureDefMap()
    response.metadata[FIELD].Unpack(described)
    options = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True, "indent": 1}
    model, signatures = MessageToJson(response.model_spec, **options), MessageToJson(described, **options)
    return f'{{\n"model_spec":{model},\n"metadata": {{"signature_def": {signatures}}}\n}}\n'


def predicted(servable, body):
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
    if not isinstance(asked, dict):
        raise Refusal("INVALID_ARGUMENT", "JSON Value is not object")
    signature = asked.get("signature_name", DEFAULT)
    if not isinstance(signature, str):
        raise Refusal("INVALID_ARGUMENT", "'signature_name' key must be a string value.")
    infos = servable.inputs_of(signature)
    dtypes = {name: tf.dtypes.as_dtype(info.dtype) for name, info in infos.items()}
    if ("instances" in asked) == ("inputs" in asked):
        said = "Missing 'inputs' or 'instances' key" if "inputs" not in asked else "expecting only one of them"
        raise Refusal("INVALID_ARGUMENT", said)
    by_rows = "instances" in asked
    inputs = rows(asked["instances"], dtypes) if by_rows else columns(asked["inputs"], dtypes)
    outputs = {name: plain(name, array) for name, array in sorted(servable.predict(signature, inputs).items())}
    if not by_rows:
        return written("outputs", outputs)
    whole = [dict(zip(outputs, one, strict=True)) for one in zip(*outputs.values(), strict=True)]
    return written("predictions", whole)


def rows(instances, dtypes):
    if not isinstance(instances, list) or not instances:
        raise Refusal("INVALID_ARGUMENT", "No values in 'instances' array")
    objects = [isinstance(one, dict) and not is_bytes(one) for one in instances]
    if not objects[0] and len(dtypes) > 1:
        said = "instances is a plain list, but expecting list of objects as multiple input tensors required"
        raise Refusal("INVALID_ARGUMENT", said)
    if len(set(objects)) > 1:
        raise Refusal("INVALID_ARGUMENT", "Expecting objects or values throughout the input list")
    if not objects[0]:
        return columns(instances, dtypes)
    for place, one in enumerate(instances):
        if set(one) != set(dtypes):
            said = f"Failed to process element: {place} of 'instances' list. keys must be equal to: {','.join(dtypes)}"
            raise Refusal("INVALID_ARGUMENT", said)
    return {name: tensor([one[name] for one in instances], dtype) for name, dtype in dtypes.items()}


def columns(inputs, dtypes):
    if not isinstance(inputs, dict) or is_bytes(inputs):
        if len(dtypes) > 1:
            raise Refusal("INVALID_ARGUMENT", "inputs is a plain value/list, but expecting an object")
        inputs = dict.fromkeys(dtypes, inputs)
    for name in dtypes:
        if name not in inputs:
            raise Refusal("INVALID_ARGUMENT", f"Missing named input: {name} in 'inputs' object.")
    return {name: tensor(inputs[name], dtype) for name, dtype in dtypes.items()}


def is_bytes(value):
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def tensor(value, dtype):
    """The array that nested lists stand for."""
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    leaves = []

    def fill(value, level):
        if not isinstance(value, list):
            if level != len(shape):
                raise Refusal("INVALID_ARGUMENT", f"JSON Value: {value} found at incorrect level: {level + 1}")
            leaves.append(leaf(value, dtype))
        elif level >= len(shape) or len(value) != shape[level]:
            raise Refusal("INVALID_ARGUMENT", f"Encountered list at unexpected size: {len(value)} at level: {level}")
        else:
            for one in value:
                fill(one, level + 1)

    fill(value, 0)
    array = np.empty(len(leaves), object if dtype == tf.string else dtype.as_numpy_dtype)
    array[:] = leaves
    return array.reshape(shape)


def leaf(value, dtype):
    if is_bytes(value) and dtype == tf.string:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise Refusal("INVALID_ARGUMENT", "Unable to base64 decode") from error
    if dtype == tf.string and isinstance(value, str):
        return value.encode()
    number = not isinstance(value, bool) and isinstance(value, int if dtype.is_integer else (int, float))
    if dtype != tf.string and number:
        return value
    raise Refusal("INVALID_ARGUMENT", f"JSON Value: {json.dumps(value)} is not of expected type: {dtype.name}")


def plain(name, array):
    """An output as JSON has it; numbers with six digits where these are enough, else with nine."""
    if array.dtype.kind == "O":
        return [{"b64": base64.b64encode(one).decode()} if name.endswith("_bytes") else one.decode() for one in array]
    if array.dtype.kind != "f":
        return array.tolist()
    short, long = (np.char.mod(f"%.{digits}g", array).astype(np.float64) for digits in (6, 9))
    return np.where(short.astype(array.dtype) == array, short, long).tolist()


def written(key, value):
    """JSON with a line for every output."""

    def lines(outputs, indent):
        inner = ",\n".join(f"{indent}    {json.dumps(name)}: {dumped(one)}" for name, one in outputs.items())
        return f"{{\n{inner}\n{indent}}}"

    def dumped(one):
        return json.dumps(one, ensure_ascii=False)

    if isinstance(value, dict):
        return f"{{\n    {json.dumps(key)}: {lines(value, '    ')}\n}}"
    whole = ",\n".join(f"        {lines(one, '        ')}" for one in value)
    return f"{{\n    {json.dumps(key)}: [\n{whole}\n    ]\n}}"
