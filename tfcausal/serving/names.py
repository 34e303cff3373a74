"""The words in which a server and its clients speak: names of signatures, of their inputs and outputs, and of files.

    signature                inputs                                    outputs
    `serving_default`        `images`                                  `probabilities` `logits` `class_index` `label`
    `predict_image_bytes`    `image_bytes`                             the same
    `explain`                `images` `class_index`                    the same, and `map`
    `explain_image_bytes`    `image_bytes` `class_index`               the same, and `map`
    `effects`                `images`                                  `effects` `observed` `probabilities`

The first dimension of every input and output is the batch, so that a server can put requests together. Needs no
TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence

PREDICT = "serving_default"
"""Answers for images."""
EXPLAIN = "explain"
"""Answers and saliency maps for images."""
PREDICT_BYTES = "predict_image_bytes"
"""Answers for PNG and JPEG files."""
EXPLAIN_BYTES = "explain_image_bytes"
"""Answers and saliency maps for PNG and JPEG files."""
EFFECTS = "effects"
"""Causal effects of concepts on the answers for images; with several levels, those of the last one."""

IMAGES = "images"
"""float32 (N, height, width, channels), in the range of `preprocessing.json`."""
IMAGE_BYTES = "image_bytes"
"""string (N,): contents of PNG and JPEG files."""
CLASS_INDEX = "class_index"
"""int64 (N,). As an input the class to explain, -1 for the predicted one. As an output the predicted class, or, of the
signatures that explain, the explained one."""

PROBABILITIES = "probabilities"
"""float32 (N, classes); (N, 1), that of class 1, for a head of one logit."""
LOGITS = "logits"
"""float32, in the shape of the probabilities."""
LABEL = "label"
"""string (N,): the name of the class of `class_index`."""
MAP = "map"
"""float32 (N, height, width, channels), signed, as :class:`tfcausal.saliency.base.Explainer` gives it; one channel for
methods that only tell places apart."""
CONCEPT_EFFECTS = "effects"
"""float32 (N, concepts, classes): equation 1 for setting each concept to 0."""
OBSERVED = "observed"
"""float32 (N, classes): the answer that the effects refer to, through the untouched autoencoder."""

PREDICTED = -1
"""What asks for the map of the predicted class."""

NEGATIVE = "The map of a head of one logit speaks for class 1: what is negative in it speaks for class 0."
"""Why class 0 of such a head cannot be asked for."""

LABELS_FILE = "labels.txt"
"""In `assets`: a line for every class; line breaks in a name are spaces."""
PREPROCESSING_FILE = "preprocessing.json"
"""In `assets`: what an image becomes before the model sees it, and the shape and range of `images`."""
WARM_UP_FILE = "tf_serving_warmup_requests"
"""In `assets.extra`: requests that TensorFlow Serving plays before it serves."""
CARD_FILE = "card.json"
"""Beside the model: what it is, what it was trained on and how good it is; `card.md` is the same for reading."""
CARD_TEXT = "card.md"


def level_signature(level: str) -> str:
    """Name of the signature of the effects of one level, where there are several.

    Args:
        level: Name of the level.

    Example:
        >>> level_signature("conv3")
        'effects_conv3'
    """
    return f"{EFFECTS}_{level}"


def outputs_of(signature: str) -> Sequence[str]:
    """The outputs of a signature.

    Args:
        signature: Its name.

    Example:
        >>> outputs_of("effects_conv3")
        ('effects', 'observed', 'probabilities')
    """
    if signature == EFFECTS or signature.startswith(level_signature("")):
        return (CONCEPT_EFFECTS, OBSERVED, PROBABILITIES)
    answers = (PROBABILITIES, LOGITS, CLASS_INDEX, LABEL)
    return answers if signature in (PREDICT, PREDICT_BYTES) else (*answers, MAP)


def inputs_of(signature: str) -> Sequence[str]:
    """The inputs of a signature.

    Args:
        signature: Its name.

    Example:
        >>> inputs_of("explain_image_bytes")
        ('image_bytes', 'class_index')
    """
    content = IMAGE_BYTES if signature in (PREDICT_BYTES, EXPLAIN_BYTES) else IMAGES
    return (content, CLASS_INDEX) if signature in (EXPLAIN, EXPLAIN_BYTES) else (content,)
