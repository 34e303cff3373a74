"""TensorFlow Serving's own gRPC services."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import tensorflow as tf
from models import DEFAULT
from refusal import Refusal
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2
from tensorflow_serving.apis import model_service_pb2_grpc as model_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

FIELD = "signature_def"
THREADS = 32
UNLIMITED = ("grpc.max_receive_message_length", "grpc.max_send_message_length")


def grpc_server(models, port, arguments):
    """A server, started, and its port."""
    options = {**dict.fromkeys(UNLIMITED, 2**31 - 1), **dict(arguments)}
    server = grpc.server(ThreadPoolExecutor(THREADS), options=list(options.items()))
    prediction, model = prediction_grpc.PredictionServiceServicer(), model_grpc.ModelServiceServicer()
    prediction.Predict = refusing(partial(predicted, models))
    prediction.GetModelMetadata = refusing(partial(described, models))
    model.GetModelStatus = refusing(lambda request: status_of(models, *asked(request.model_spec)))
    prediction_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_grpc.add_ModelServiceServicer_to_server(model, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def asked(spec):
    """Name, version and label of a `ModelSpec`."""
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label if spec.HasField("version_label") else None


def refusing(answer):
    """Gives what is refused the form that gRPC has for it."""

    def call(request, context):
        try:
            return answer(request)
        except Refusal as refusal:
            context.abort(grpc.StatusCode[refusal.code], refusal.said)

    return call


def predicted(models, request):
    """The answer to a `PredictRequest`."""
    version, servable = models.find(*asked(request.model_spec))
    signature = request.model_spec.signature_name or DEFAULT
    try:
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    except (TypeError, ValueError) as error:
        raise Refusal("INVALID_ARGUMENT", f"tensor parsing error: {error}") from error
    outputs = servable.predict(signature, inputs, tuple(request.output_filter))
    response = predict_pb2.PredictResponse()
    response.model_spec.name, response.model_spec.signature_name = request.model_spec.name, signature
    response.model_spec.version.value = version
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
    return response


def described(models, request):
    """The answer to a `GetModelMetadataRequest`."""
    if list(request.metadata_field) != [FIELD]:
        raise Refusal("INVALID_ARGUMENT", f"Metadata field {', '.join(request.metadata_field)} is not supported")
    return metadata_of(models, *asked(request.model_spec))


def metadata_of(models, name, version, label):
    """What the signatures of a model are, as the message that gRPC and REST give."""
    version, servable = models.find(name, version, label)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name, response.model_spec.version.value = name, version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
    response.metadata[FIELD].Pack(signatures)
    return response


def status_of(models, name, version, label):
    """Which versions of a model are there, as the message that gRPC and REST give."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number in models.status(name, version, label):
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(version=number, state=state).status.SetInParent()
    return response
