"""What holds for every test and docstring example: quiet TensorFlow, one seed, full float32 precision."""

import gc
import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """Let go of a module's models at its end: the more functions TensorFlow has, the longer it takes to remove one."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(20)
