"""Saliency maps of fixed images while a model trains."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcausal.atomic import write_atomic
from tfcausal.callbacks.explaining import explainer_of, predictions
from tfcausal.callbacks.snapshot_sheet import mark_of, snapshot_sheet, write_image_summary
from tfcausal.errors import InvalidArgument, message
from tfcausal.interventions.logit_functions import head_of
from tfcausal.models.checks import require_number
from tfcausal.objectives.heads import Head
from tfcausal.saliency.base import Explainer, check_inputs, check_targets
from tfcausal.saliency.registry import find_explainer


class SaliencySnapshots(keras.callbacks.Callback):
    """Explains the same images after every epoch: a PNG per epoch, and images for TensorBoard.

    A picture shows every image with the predicted class and its probability, and below it the map of that class (or of
    `targets`), red for and blue against it. The explainer is made once and reads the weights of the moment; nothing is
    traced anew from epoch to epoch. Of a wrapper such as PPIModel the network inside is explained.

    The files are `saliency-epoch-0001.png` and so on, by the number of epochs completed, and complete whenever they are
    there. A training that goes on (`initial_epoch`, :class:`ResumableTraining`) replaces the pictures of the epochs
    that it repeats; pictures of another training are not touched.

    Args:
        images: (N, height, width, channels) in the model's input space.
        folder: Where the PNGs go; made if it is not there.
        method: Name of a saliency method; None takes the one that the model trains with, WBP for any other model.
        targets: Class indices (N,) or one-hot rows to explain; None is the predicted class of the moment.
        every: A picture after every so many epochs.
        log_dir: Where the event files for TensorBoard go; the package of TensorBoard is not needed to write them.
        class_names: Names for the titles, by class index.
        pixels: What black and white are in `images`; None takes their smallest and largest value.
        overwrite: Whether pictures of another training may be replaced.
        **options: Options of the method, such as `layer` or `batch_size`.

    Raises:
        InvalidArgument: Neither `folder` nor `log_dir`, or an argument out of range; when training begins: images,
            targets, names or options that do not go with the model, or pictures of another training in the folder.
        UnsupportedOperation: When training begins: the method does not take this model.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> images = np.random.default_rng(0).random((2, 4, 4, 1), "float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     snapshots = SaliencySnapshots(images, folder)
        ...     history = model.fit(images, np.ones((2, 2)), epochs=2, callbacks=[snapshots], verbose=0)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['saliency-epoch-0001.png', 'saliency-epoch-0002.png']
    """

    def __init__(
        self,
        images: Any,
        folder: str | Path | None = None,
        method: str | None = None,
        targets: Any = None,
        every: int = 1,
        log_dir: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        pixels: tuple[float, float] | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if folder is None and log_dir is None:
            remedy = "Give `folder` for PNGs, `log_dir` for TensorBoard, or both."
            raise InvalidArgument(message("folder", "a place for the pictures", "neither folder nor log_dir", remedy))
        for name, place in {"folder": folder, "log_dir": log_dir}.items():
            if place is not None and Path(place).exists() and not Path(place).is_dir():
                raise InvalidArgument(message(name, "a folder, or nothing yet", f"the file {place}"))
        if method is not None:
            find_explainer(method)
        require_number("every", every, "an integer of at least 1", lambda number: number >= 1 and number % 1 == 0)
        self._images = np.asarray(images)
        if self._images.ndim != 4:
            received = f"shape {self._images.shape}"
            raise InvalidArgument(message("images", "images (N, height, width, channels)", received))
        if pixels is not None and not (len(pixels) == 2 and pixels[0] < pixels[1]):
            raise InvalidArgument(message("pixels", "the values of black and of white, in order", repr(pixels)))
        self._folder = None if folder is None else Path(folder)
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._method, self._options, self._targets = method, options, targets
        self._every, self._pixels, self._overwrite = int(every), pixels, overwrite
        self._class_names = None if class_names is None else list(class_names)
        self._explainer: Explainer | None = None
        self._explained: keras.Model | None = None
        self._head: Head = "multi_class"
        self._writer: Any = None
        self._mark = ""
        self._checked = False

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the explainer, and check what it is given."""
        if self._explainer is None or self._explained is not self.model:
            self._explainer, self._explained = explainer_of(self.model, self._method, self._options), self.model
        graph = self._explainer.graph
        self._head = head_of(self.model, graph, None)
        (images,) = check_inputs(self._images, graph)
        targets = check_targets(self._targets, len(images), graph.num_classes)
        classes = max(2, graph.num_classes)
        if self._class_names is not None and len(self._class_names) != classes:
            raise InvalidArgument(message("class_names", f"{classes} names", f"{len(self._class_names)}"))
        contents = hashlib.sha256(f"{self._explainer.name} {images.shape}".encode())
        contents.update(np.ascontiguousarray(images).tobytes() + targets.tobytes())
        self._mark = contents.hexdigest()
        self._checked = False
        if self._log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self._log_dir))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Before the first epoch, refuse to write over pictures of another training."""
        if self._checked or self._folder is None:
            return
        self._checked = True
        if self._overwrite or not self._folder.is_dir():
            return
        ahead = sorted(path for path in self._folder.iterdir() if _number(path) > epoch)
        foreign = [path for path in ahead if epoch == 0 or mark_of(path) != self._mark]
        if foreign:
            remedy = "Take another folder, or set overwrite=True."
            received = f"{foreign[0].name} of another training in {self._folder}"
            raise InvalidArgument(message("folder", "a folder without pictures of these epochs", received, remedy))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Explain the images and write the picture."""
        if (epoch + 1) % self._every or self._explainer is None:
            return
        maps = self._explainer(self._images, self._targets, reducer="sum")[..., 0]
        classes, probabilities = predictions(self._explainer.outputs(self._images), self._explainer.graph, self._head)
        titles = [f"{self._name(index)} {share:.2f}" for index, share in zip(classes, probabilities, strict=True)]
        heading = f"{self._explainer.name}, epoch {epoch + 1}"
        png = snapshot_sheet(self._shown(), maps, titles, heading, self._mark)
        if self._folder is not None:
            write_atomic(self._folder / f"saliency-epoch-{epoch + 1:04d}.png", png)
        if self._writer is not None:
            with self._writer.as_default():
                write_image_summary("saliency", png, step=epoch)
            self._writer.flush()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _name(self, index: int) -> str:
        return f"class {index}" if self._class_names is None else str(self._class_names[index])

    def _shown(self) -> np.ndarray:
        images = self._images.astype(np.float64)
        black, white = (images.min(), images.max()) if self._pixels is None else self._pixels
        return np.clip((images - black) / ((white - black) or 1.0), 0, 1)


def _number(path: Path) -> int:
    """Number of epochs of a picture; 0 for any other file."""
    found = re.fullmatch(r"saliency-epoch-(\d{4,})\.png", path.name)
    return int(found[1]) if found else 0
