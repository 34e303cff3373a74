"""Exported models, loaded, with their versions and labels; asked by the names of signatures, inputs and outputs."""

import json
from pathlib import Path
from threading import Lock

import grpc
import tensorflow as tf
from batching import Batcher
from refusal import Refusal
from tensorflow.core.protobuf import config_pb2

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
DEFAULT = "serving_default"


class Servable:
    """A version of a model: its graph in a session."""

    def __init__(self, folder, batching, log):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
        self.signatures = dict(loaded.signature_def)
        # One of TensorFlow's own is among them, which nobody asks.
        usable = {name: one for name, one in self.signatures.items() if not name.startswith("__")}
        self._run = {name: self._runner(one) for name, one in usable.items()}
        if batching is not None:
            for name, run in self._run.items():
                self._run[name] = Batcher(run, batching, lambda entry, of=name: log({"signature": of, **entry}))

    def _runner(self, definition):
        options = config_pb2.CallableOptions()
        options.feed.extend(value.name for value in definition.inputs.values())
        options.fetch.extend(value.name for value in definition.outputs.values())
        with self._session.graph.as_default():
            function = self._session._make_callable_from_options(options)

        def run(inputs):
            try:
                outputs = function(*(inputs[name] for name in definition.inputs))
            except tf.errors.OpError as error:
                raise Refusal(CODES[error.error_code], error.message) from error
            return dict(zip(definition.outputs, outputs, strict=True))

        return run

    def inputs_of(self, signature):
        """What the inputs of a signature are, for JSON."""
        if signature not in self._run:
            raise Refusal("INVALID_ARGUMENT", f'Serving signature name: "{signature}" not found in signature def')
        return self.signatures[signature].inputs

    def predict(self, signature, inputs, wanted=()):
        """The outputs of a signature, by name."""
        if signature not in self._run:
            raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
        definition = self.signatures[signature]
        if set(inputs) != set(definition.inputs):
            extra = ",".join(sorted(set(inputs) - set(definition.inputs)))
            missing = ",".join(sorted(set(definition.inputs) - set(inputs)))
            said = f"input size does not match signature: Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            raise Refusal("INVALID_ARGUMENT", said)
        for name in wanted:
            if name not in definition.outputs:
                raise Refusal("INVALID_ARGUMENT", f"output tensor alias not found in signature: {name}")
        outputs = self._run[signature](inputs)
        return {name: outputs[name] for name in wanted or definition.outputs}


class Models:
    """All models of a configuration, the latest version of each unless it says otherwise."""

    def __init__(self, config, batching, log):
        self._log, self._lock = log, Lock()
        self._versions, self._labels = {}, {}
        for one in config.model_config_list.config:
            there = sorted(int(path.name) for path in Path(one.base_path).iterdir() if path.name.isdigit())
            policy = one.model_version_policy
            chosen = list(policy.specific.versions) or (there if policy.HasField("all") else there[-1:])
            self._versions[one.name] = {
                version: Servable(Path(one.base_path, str(version)), batching, self._logger(one.name, version))
                for version in chosen
            }
            self._labels[one.name] = dict(one.version_labels)

    def _logger(self, model, version):
        def log(entry):
            if self._log is not None:
                with self._lock, open(self._log, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"model": model, "version": version, **entry}) + "\n")

        return log

    def find(self, name, version=None, label=None):
        """The version that a request is for: its number and the servable."""
        if label is not None:
            if label not in self._labels.get(name, {}):
                raise Refusal("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
            version = self._labels[name][label]
        known = self._versions.get(name, {})
        if version is None and known:
            version = max(known)
        if version not in known:
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {wanted}")
        return version, known[version]

    def status(self, name, version=None, label=None):
        """The versions of a model that are served, as far as they are asked for."""
        if label is not None:
            version, _ = self.find(name, None, label)
        known = sorted(self._versions.get(name, {}), reverse=True)
        if not known:
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        if version is not None and version not in known:
            raise Refusal("NOT_FOUND", f"Could not find version {version} of model {name}")
        return known if version is None else [version]
