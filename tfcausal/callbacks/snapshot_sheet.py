"""The picture of a saliency snapshot, and the record of it that TensorBoard shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

_COLUMNS = 8
_MARK = "tfcausal"  # the name of the text in a PNG that tells whose it is


def snapshot_sheet(images: np.ndarray, maps: np.ndarray, titles: Sequence[str], heading: str, mark: str) -> bytes:
    """Images in a row, and below every one its map laid over it: red speaks for the class, blue against it.

    The strength of a colour is relative to the 99th percentile of the absolute values of the same map.

    Args:
        images: (N, height, width, channels) in [0, 1]; shown in colour where there are 3 channels, else as their mean.
        maps: Signed maps, (N, height, width).
        titles: One for every image.
        heading: Above all of them.
        mark: Text to leave in the file, for :func:`mark_of`.

    Returns:
        A PNG.

    Example:
        >>> snapshot_sheet(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4)), ["zebra 0.93"], "wbp", "run 1")[1:4]
        b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.7 * columns + 0.2, 3.7 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(heading, fontsize=9)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (image, saliency, title) in enumerate(zip(images, maps, titles, strict=True)):
        row, column = divmod(number, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        above.set_title(title, fontsize=8)
        grey = image.mean(axis=2)
        colours = image if image.shape[2] == 3 else grey
        above.imshow(colours, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        scale = np.percentile(np.abs(saliency), 99) or np.abs(saliency).max() or 1.0
        strength = np.clip(saliency / scale, -1, 1)
        below.imshow(grey, cmap="gray", vmin=-0.5, vmax=1, interpolation="nearest")
        below.imshow(strength, cmap="RdBu_r", vmin=-1.2, vmax=1.2, alpha=np.abs(strength), interpolation="nearest")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={_MARK: mark})
    return buffer.getvalue()


def mark_of(path: Path) -> str:
    """The mark that :func:`snapshot_sheet` left in a file; empty for any other file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return str(image.info.get(_MARK, ""))
    except OSError:
        return ""


def write_image_summary(name: str, png: bytes, step: int) -> None:
    """Write a PNG for TensorBoard's page of images, with the present summary writer.

    `tf.summary.image` does the same, but needs the package of TensorBoard itself.
    """
    height, width = tf.io.decode_png(png).shape[:2]
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="images")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin, data_class="DATA_CLASS_BLOB_SEQUENCE")
    tf.summary.write(name, tf.constant([str(width), str(height), png]), step=step, metadata=metadata)
