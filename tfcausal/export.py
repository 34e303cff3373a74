"""A trained classifier becomes a SavedModel that answers and explains, for TensorFlow Serving.

    saved_models/<name>/<version>/
      saved_model.pb, variables/          the signatures (see `serving/names.py`) and the weights that they read
      assets/labels.txt                   a line for every class
      assets/preprocessing.json           the shape and range of images, and how files are decoded
      assets.extra/tf_serving_warmup_requests
      card.json, card.md                  what it is, what it was trained on, how good it is

It needs TensorFlow alone, neither this package nor Keras. A version is complete when it is there, and is never
replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from tfcausal.atomic import to_json, write_atomic
from tfcausal.serving import names
from tfcausal.serving.card_text import card_text
from tfcausal.serving.checking import BATCH_SIZES, TOLERANCE, Comparison, compare
from tfcausal.serving.description import description, preprocessing
from tfcausal.serving.image_bytes import MOST_PIXELS
from tfcausal.serving.probes import probes
from tfcausal.serving.saving import save, traced, writing
from tfcausal.serving.signatures import Served
from tfcausal.serving.subject import (
    Choices,
    Say,
    check_method,
    exportable_methods,
    load_source,
    make_explainer,
    prepare,
)
from tfcausal.serving.versions import NewVersion, check_name, chosen_version
from tfcausal.serving.warm_up import can_write, examples, write_requests

__all__ = ["MOST_PIXELS", "Choices", "Export", "export_model", "exportable_methods"]

_INTENDED_USE = "Not stated. Research, and images like those of its data."


@dataclass(frozen=True)
class Export:
    """A version that was written.

    Attributes:
        path: Its folder; None where it did not answer as the model does, and was not published.
        signatures: Their names.
        comparisons: How its answers compare with those of the model; empty where that was not asked for.
    """

    path: Path | None
    signatures: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs that was compared."""
        return all(comparison.same for comparison in self.comparisons)


def export_model(
    source: keras.Model | str | Path,
    choices: Choices | None = None,
    *,
    model: str | None = None,
    output: str | Path = "saved_models",
    name: str | None = None,
    version: int | None = None,
    intended_use: str = _INTENDED_USE,
    check: bool = False,
    say: Say = lambda text: None,
) -> Export:
    """Export a classifier with its explanations.

    Signatures are traced for batches of any size. What training alone needs (the terms of PPI and CFCN, optimizers,
    dropout) is not exported. Everything is checked, traced and played once before the version is published.

    Args:
        source: A Keras model, a run directory, or a model file (.keras, .h5).
        choices: How it is exported: method, labels, pixels and so on.
        model: Which model of a run; may be None where there is only one.
        output: The folder of all exported models.
        name: Name of the exported model; None takes that of the model in its run, or of the file.
        version: Its number; None takes the next one.
        intended_use: What it is for, as its card says.
        check: Whether to ask it in a process without tfcausal and Keras, and to compare the answers with the model's.
        say: Called with sentences about what was chosen and left out.

    Returns:
        What was written. Where `check` finds a difference, nothing is published.

    Raises:
        InvalidArgument: Labels, pixels, a name, a size or an option that cannot be.
        RunError: The version exists, the folder cannot be written to, or the model is not trained yet.
        UnsupportedOperation: The model takes something else than one image, a layer cannot be explained by the method
            or exported (it is named), or the method needs Python when it is called.

    Example:
        >>> import tempfile
        >>> inputs = keras.Input((4, 4, 1))
        >>> outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     choices = Choices("gradient", labels=["cat", "dog"], pixels=(0.0, 1.0))
        ...     export = export_model(keras.Model(inputs, outputs), choices, name="pets", output=folder)
        ...     export.path.relative_to(folder).as_posix(), export.signatures[:2]
        ('pets/1', ('serving_default', 'explain'))
    """
    chosen = choices or Choices()
    check_method(chosen.method)
    found = load_source(source, model)
    name = check_name(found.model if name is None else name)
    folder = Path(output, name)
    number = chosen_version(folder, version)
    served, levels = prepare(found, chosen, say)
    signatures = [names.PREDICT, names.EXPLAIN, names.PREDICT_BYTES, names.EXPLAIN_BYTES, *served.levels]
    requests = examples(signatures, served.shape, served.pixels)
    fallbacks = served.explainer.fallbacks
    functions = traced(served, requests)
    about = {"name": name, "version": number}
    card = about | description(found, chosen, served, levels, functions, intended_use, fallbacks)
    warm = can_write()
    with NewVersion(folder, number) as new:
        with writing(new.path):
            save(served, functions, new.folder, preprocessing(served))
            if warm:
                write_requests(new.folder / "assets.extra" / names.WARM_UP_FILE, name, requests)
        if not warm:
            say("Warm-up requests are left out: they need `pip install 'tfcausal[serving]'`.")
        comparisons = _compared(served, chosen, new.folder) if check else ()
        export = Export(new.path, tuple(signatures), comparisons)
        if not export.same:
            return replace(export, path=None)
        card["compared"] = _comparison(comparisons)
        write_atomic(new.folder / names.CARD_FILE, to_json(card))
        write_atomic(new.folder / names.CARD_TEXT, card_text(card))
        new.publish()
    return export


def _compared(served: Served, choices: Choices, folder: Path) -> tuple[Comparison, ...]:
    explainer = make_explainer(served.model, choices, served.pixels)
    return tuple(compare(folder, probes(served, explainer, BATCH_SIZES)))


def _comparison(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    if not comparisons:
        return None
    largest = max(difference for comparison in comparisons for difference in comparison.differences.values())
    return {"batch_sizes": list(BATCH_SIZES), "tolerance": TOLERANCE, "largest": largest}
