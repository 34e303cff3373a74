"""Ask an exported model everything in a process that has neither tfcausal nor Keras. Run as a file, not imported:

    python -I clean_process.py MODEL QUESTIONS.npz ANSWERS.npz

Questions and answers are arrays by `<number>/<signature>/<input or output>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

ABSENT: Any = ("keras", "tf_keras", "tfcausal", "PIL", "tensorflow_serving")
"""What a server does not have, whether it is installed here or not."""


def main(arguments: Sequence[str]) -> None:
    """Load a model, ask it and write what it answers."""
    model, questions, answers = arguments
    sys.modules.update(dict.fromkeys(ABSENT))  # to Python, a module that is None is one that is not installed
    import numpy as np
    import tensorflow as tf

    signatures = tf.saved_model.load(model).signatures
    asked: dict[tuple[str, str], dict[str, tf.Tensor]] = {}
    with np.load(questions) as arrays:
        for key in arrays.files:
            number, signature, name = key.split("/")
            asked.setdefault((number, signature), {})[name] = tf.constant(arrays[key])
    given: dict[str, Any] = {
        f"{number}/{signature}/{name}": np.array(values.numpy().tolist())
        if values.dtype == tf.string
        else values.numpy()
        for (number, signature), inputs in asked.items()
        for name, values in signatures[signature](**inputs).items()
    }
    given["signatures"] = np.array(list(signatures))
    loaded = [name for name in ABSENT if sys.modules.get(name) is not None]
    if loaded:
        raise SystemExit(f"{', '.join(loaded)} was imported all the same.")
    np.savez(answers, **given)


if __name__ == "__main__":
    main(sys.argv[1:])
