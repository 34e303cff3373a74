"""Image files that a person hands over in the browser: bounded, told by their content, and never a path.

What they hold is decoded as `tfcausal explain` decodes files (see `data/decoding.py`). A file that cannot be used is
said by name, and the others are shown. Needs no TensorFlow.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np

from tfcausal.data.decoding import decode_image, to_shares

_FORMATS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_LONGEST_NAME = 80
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode's categories of what is not seen or turns text around
_DECODING = Lock()  # the memory of one image at a time


@dataclass(frozen=True)
class Limits:
    """What is taken of the files that are handed over.

    Attributes:
        files: Files, together with those that were taken before.
        file_bytes: Bytes of one file.
        all_bytes: Bytes of all of them.
        pixels: Pixels of one image. It is refused by its header, before anything is decoded: a decompression bomb is
            a small file of very many pixels.
    """

    files: int = 200
    file_bytes: int = 25 * 2**20
    all_bytes: int = 200 * 2**20
    pixels: int = 25_000_000


LIMITS = Limits()
"""What the explorer takes."""


@dataclass(frozen=True)
class Upload:
    """An image file that was handed over.

    Attributes:
        name: Its name as it is shown, by :func:`shown_name`; no path.
        content: What is in it.
    """

    name: str
    content: bytes

    @cached_property
    def digest(self) -> str:
        """What tells its content from any other."""
        return hashlib.sha256(self.content).hexdigest()

    def picture(self, shape: tuple[int, int, int], limits: Limits = LIMITS) -> np.ndarray:
        """Its picture in the size that a model takes.

        Args:
            shape: (height, width, channels).
            limits: What is taken.

        Returns:
            float32 in `shape`, in [0, 1].

        Raises:
            DataError: It cannot be used; the message is the reason, without its name.
        """
        height, width, channels = shape
        with _DECODING:
            pixels, _ = decode_image(self.content, height, width, channels, limits.pixels)
        return to_shares(pixels, shape)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not shown.

    Attributes:
        name: Its name as it is shown.
        reason: Why.
    """

    name: str
    reason: str


def admit(
    files: Iterable[tuple[str, bytes]], held: Sequence[Upload] = (), limits: Limits = LIMITS
) -> tuple[list[Upload], list[LeftOut]]:
    """Take the files that are within the limits and begin as PNG or JPEG files do, whatever they are called.

    Nothing is decoded; :meth:`Upload.picture` says of a file that was taken whether it is whole.

    Args:
        files: Names and contents.
        held: Those that were taken before.
        limits: What is taken.

    Returns:
        The files that were taken, and those that were left out.

    Example:
        >>> taken, left = admit([("../a.png", b"GIF89a"), ("b.png", b"")])
        >>> taken, [(file.name, file.reason) for file in left]
        ([], [('../a.png', 'the content is neither PNG nor JPEG'), ('b.png', 'the file is empty (zero bytes)')])
    """
    taken: list[Upload] = []
    left: list[LeftOut] = []
    number, total = len(held), sum(len(upload.content) for upload in held)
    for name, content in files:
        reason = _refusal(content, number, total, limits)
        if reason:
            left.append(LeftOut(shown_name(name), reason))
        else:
            taken.append(Upload(shown_name(name), content))
            number, total = number + 1, total + len(content)
    return taken, left


def shown_name(name: str) -> str:
    """A file's name for the eye: without what cannot be seen or turns the text around, and not too long.

    Args:
        name: The name that came with the file; anything.

    Example:
        >>> shown_name("holiday\\u202egnp.exe"), len(shown_name("x" * 500 + ".png")), shown_name("\\n")
        ('holiday�gnp.exe', 80, '�')
    """
    visible = "".join("�" if unicodedata.category(letter) in _HIDDEN else letter for letter in name).strip()
    if len(visible) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        visible = f"{visible[: half - 1]}…{visible[-half:]}"
    return visible or "a file without a name"


def _refusal(content: bytes, number: int, total: int, limits: Limits) -> str:
    if not content:
        return "the file is empty (zero bytes)"
    if not content.startswith(_FORMATS):
        return "the content is neither PNG nor JPEG"
    if len(content) > limits.file_bytes:
        return f"the file is too large: expected at most {_megabytes(limits.file_bytes)}"
    if number >= limits.files:
        return f"there are {limits.files} images already, which is the most"
    if total + len(content) > limits.all_bytes:
        return f"the images would be too large together: expected at most {_megabytes(limits.all_bytes)}"
    return ""


def _megabytes(count: int) -> str:
    return f"{count / 2**20:g} MiB"
