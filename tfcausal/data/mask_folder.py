"""A folder of images that a person draws masks for: what it holds, its pictures, and where masks and times are kept.

Masks go where `image_folder` reads them, `masks/<class>/<same name>.png` beside `images/<class>/`, white inside. The
time that each took goes into `mask_times.csv` in the folder itself, which no reader looks at.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tfcausal.atomic import write_atomic
from tfcausal.data.decoding import decode_image, decode_mask, to_shares
from tfcausal.data.folder_layout import SPLITS, ImageFile, find_files
from tfcausal.data.mask_drawing import check_drawn
from tfcausal.data.mask_times import MaskTimes
from tfcausal.errors import DataError, InvalidArgument, RunError, message

TIMES = "mask_times.csv"
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: those that swap height and width


@dataclass(frozen=True)
class Picture:
    """An image for the screen.

    Attributes:
        pixels: (height, width, 3) in [0, 1], float32, not larger than was asked for.
        size: Height and width of the file, upright, in pixels: those that its mask must have.
    """

    pixels: np.ndarray
    size: tuple[int, int]


class MaskFolder:
    """The images of a data folder that can have masks, found without opening them.

    Args:
        root: The folder: with `images/<class>/`, or with `train`, `test` and perhaps `validation` that hold such a
            folder.
        exclude_classes: Names of class folders to leave out.

    Attributes:
        root: The folder.
        images: The images by name, the path within the folder; sorted.
        times: How long the masks took.
        notes: Files that are left out, because they have no place in the layout or no name to show, and why.

    Raises:
        DataError: It is not a folder of images, or has no place for masks.
    """

    def __init__(self, root: str | Path, exclude_classes: Sequence[str] = ()) -> None:
        self.root = Path(root).expanduser()
        self.times = MaskTimes(self.root / TIMES)
        if not self.root.is_dir():
            received = "a file" if self.root.exists() else "nothing at that place"
            raise DataError(message(str(root), "a folder of images", received, "Check the path."))
        noted: list[str] = []

        def note(path: Path, reason: str) -> None:
            noted.append(f"{path.relative_to(self.root).as_posix()}: {reason}")

        try:
            found = find_files(self.root, exclude_classes, note)
        except OSError as error:
            remedy = "Check its permissions."
            raise DataError(message(str(root), "a folder that can be read", error.strerror, remedy)) from None
        files = [file for split in found.values() for file in split]
        placed = [file for file in files if file.path.parts[-3] == "images"]
        self.images = {file.name: file for file in placed if file.name.isprintable()}
        noted += [f"{file.name!r}: a name that cannot be shown" for file in placed if file.name not in self.images]
        self.notes = tuple(noted)
        if not self.images:
            received = f"only {', '.join(f'{name}/<class>' for name in found)}"
            remedy = "Move the class folders one level down, for example to train/images: masks are read beside it."
            raise DataError(message(str(root), "images/<class> or train/images/<class>", received, remedy))

    def find(self, name: str) -> ImageFile:
        """The image with a name.

        Raises:
            InvalidArgument: The folder has no such image; a path that leads elsewhere is none.
        """
        if name not in self.images:
            raise InvalidArgument(message("image", f"the name of an image of {self.root}", repr(name[:200])))
        return self.images[name]

    def check_writable(self) -> None:
        """Raise `RunError` unless masks can be saved."""
        parents = {file.path.parents[2] for file in self.images.values()} | {self.root}
        for folder in sorted({*parents, *(parent / "masks" for parent in parents)}):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                received = "a folder that is read-only" if folder.is_dir() else "a file"
                remedy = "Change its permissions, or work on a copy."
                raise RunError(message(str(folder), "a folder to save masks in", received, remedy))

    def mask_path(self, name: str) -> Path:
        """Where the mask of an image is, or would be.

        Args:
            name: Name of the image.
        """
        file = self.find(name)
        images = file.path.parents[1]
        return file.mask_path or images.with_name("masks") / file.class_name / f"{file.path.stem}.png"

    def has_mask(self, name: str) -> bool:
        """Whether an image has a mask now; asks the disk.

        Args:
            name: Name of the image.
        """
        return os.path.lexists(self.mask_path(name))

    def picture(self, name: str, longest: int) -> Picture:
        """Read an image as the reader of runs does: upright, on black where it is transparent.

        Args:
            name: Name of the image.
            longest: Longest side in pixels that is wanted, 1 or more; a larger image is made smaller.

        Raises:
            DataError: The file cannot be used.
        """
        path = self.find(name).path
        with _naming(path):
            height, width = _upright_size(path)
            factor = min(1.0, longest / max(height, width))
            shown = (max(1, round(height * factor)), max(1, round(width * factor)))
            pixels, size = decode_image(path, *shown, channels=3)
        return Picture(to_shares(pixels, (*shown, 3)), size)

    def mask(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """Read the mask of an image as the reader of runs does.

        Args:
            name: Name of the image.
            size: Height and width to resize it to.

        Returns:
            bool of shape `size`, or None if there is none.

        Raises:
            DataError: The file cannot be used, or has another size than the image.
        """
        path = self.mask_path(name)
        if not self.has_mask(name):
            return None
        with _naming(path):
            _upright_size(path)
            return decode_mask(path, _upright_size(self.find(name).path), *size)[..., 0]

    def save(self, name: str, mask: np.ndarray, seconds: float, replace: bool = False) -> Path:
        """Save the mask of an image, in one step, and note how long it took.

        Args:
            name: Name of the image.
            mask: bool of shape (height, width), the size of the upright image.
            seconds: Time that was spent on it, 0 or more.
            replace: Whether a mask that is there may be replaced.

        Returns:
            The file.

        Raises:
            InvalidArgument: The image is unknown, or the mask has another size or type.
            DataError: The image cannot be used, there is a mask and `replace` is False, or the mask is empty or covers
                everything.
            RunError: It cannot be written.
        """
        file, path = self.find(name), self.mask_path(name)
        with _naming(file.path):
            size = _upright_size(file.path)
        if mask.shape != size or mask.dtype != bool:
            raise InvalidArgument(message("mask", f"bool of shape {size}", f"{mask.dtype} of shape {mask.shape}"))
        check_drawn(mask)
        self._check_free(path, replace)
        content = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255).save(content, "PNG")
        with self.times.locked():
            self._check_free(path, replace)  # others may draw in the same folder
            before = os.path.lexists(path)
            write_atomic(path, content.getvalue())
            self.times.append(name, seconds, float(mask.mean()), before)
        return path

    def _check_free(self, path: Path, replace: bool) -> None:
        if os.path.lexists(path) and not replace:
            raise DataError(f"{path} is there already, and was not replaced. Choose to replace it, or leave it.")


def folder_version(root: str | Path) -> str:
    """What changes whenever images are added to a data folder or taken away, for caches; reads no folder of images.

    Args:
        root: The folder.
    """
    bases = [Path(root, part) for part in ("", *SPLITS)]
    folders = [folder for base in bases for folder in (base, base / "images", base / "masks")]
    for parent in [folder for folder in folders if folder.name != "masks"]:
        with suppress(OSError):
            folders += sorted(Path(entry.path) for entry in os.scandir(parent) if entry.is_dir())
    return " ".join(str(_changed(folder)) for folder in folders)


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _upright_size(path: Path) -> tuple[int, int]:
    """Height and width as they are after the orientation of EXIF is applied, from the header alone.

    Raises:
        DataError: It is no image, or has more pixels than Pillow takes for safe.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DataError("the file is empty (zero bytes)")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and width * height > limit:
                raise DataError(f"the image is too large ({width}x{height} pixels; at most {limit} are safe)")
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except UnidentifiedImageError:
        raise DataError("the content is neither PNG nor JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the image is too large ({error})") from None
    except FileNotFoundError:
        raise DataError("the file is gone") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"the file cannot be decoded ({error})") from None
    return (width, height) if turned else (height, width)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"`{path}` cannot be used: {error}.") from None
