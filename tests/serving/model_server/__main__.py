"""A server of exported models that speaks as TensorFlow Serving does, for tests on this machine; a folder to be run:

    python -I model_server --model_name=digits --model_base_path=saved_models/digits --port=8500 --rest_api_port=8501

The flags are those of `tensorflow_model_server`, and one of its own: `--batch_log` names a file that gets a line of
JSON for every batch. A port of 0 takes a free one. It has neither tfcausal nor Keras, runs the graphs in a session, as
the server in C++ does, and listens on this machine alone. It prints its ports when it is ready, and ends when its
standard input does.
"""

import os
import sys
from importlib import import_module

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.modules.update(dict.fromkeys(("keras", "tf_keras", "tfcausal", "PIL")))  # as if they were not installed
import_module("serve").main()
