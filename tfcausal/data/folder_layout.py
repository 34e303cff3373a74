"""Which files of a data folder are images, which are masks, and what is wrong with the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tfcausal.errors import DataError, message

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MASK_SUFFIXES = (".png",)
OTHER_IMAGE_SUFFIXES = (".bmp", ".gif", ".heic", ".jfif", ".jp2", ".tif", ".tiff", ".webp")
"""Image formats that are not read: such files are reported, whereas a text file beside the images is passed over."""
SPLITS = ("train", "validation", "test")
_LAYOUTS = "Use images/<class>/*.png|jpg (with masks/<class>/*.png), or such folders inside train and test."

Report = Callable[[Path, str], None]
"""Takes a file that cannot be used, and why; raises, or notes it."""


@dataclass(frozen=True)
class ImageFile:
    """An image file of a class, and its mask file if there is one; the name is the path within the data folder."""

    name: str
    class_name: str
    path: Path
    mask_path: Path | None

    def without_mask(self) -> ImageFile:
        """The same image, taken as one whose cause nobody has drawn."""
        return dataclasses.replace(self, mask_path=None)


def find_files(root: Path, exclude_classes: Sequence[str], report: Report) -> dict[str, list[ImageFile]]:
    """List the images of a data folder, without opening them.

    Args:
        root: The data folder.
        exclude_classes: Names of class folders to leave out.
        report: Called with every file that has no place in the layout.

    Returns:
        Sorted image files: under `all` if the folder has `images/<class>`, otherwise by split.

    Raises:
        DataError: The folder is missing, empty or has neither layout, or a class folder has no image.
    """
    if not root.is_dir():
        received = "a file" if root.exists() else "nothing at that place"
        raise DataError(message(str(root), "a folder of images", received, "Check data.path."))
    folders = {path.name: path for path in _visible(root) if path.is_dir()}
    if not folders:
        raise DataError(message(str(root), "a folder of images", "no folder inside", _LAYOUTS))
    if "images" in folders and "train" in folders:
        remedy = "Remove one of them: the splits come from the folders, or from the seed."
        raise DataError(message(str(root), "either images or train and test", "images and train", remedy))
    if "images" in folders:
        meant = [name for name in folders if name != "masks" and get_close_matches(name.lower(), ["masks", "test"])]
        if misplaced := sorted({*meant, *(folders.keys() & set(SPLITS))}):
            remedy = "Rename it to `masks`, put `images` into train and test folders, or move it away."
            raise DataError(message(str(root), "only `images` and `masks` beside each other", misplaced, remedy))
        roots = {"all": root}
    elif "train" in folders and "test" in folders:
        roots = {split: folders[split] for split in SPLITS if split in folders}
        if others := sorted(folders.keys() - set(SPLITS)):
            remedy = "Rename it, for example `val` to `validation`, or move it away."
            raise DataError(message(str(root), f"only {', '.join(SPLITS)} beside each other", others, remedy))
    else:
        raise DataError(message(str(root), "`images`, or `train` and `test`", f"folders {sorted(folders)}", _LAYOUTS))
    seen: set[str] = set()
    files = {split: _split_files(root, folder, exclude_classes, report, seen) for split, folder in roots.items()}
    if unknown := sorted(set(exclude_classes) - seen):
        remedy = "Correct data.exclude_classes."
        raise DataError(message("exclude_classes", f"names of class folders ({sorted(seen)})", unknown, remedy))
    return files


def _split_files(
    root: Path, folder: Path, exclude_classes: Sequence[str], report: Report, seen: set[str]
) -> list[ImageFile]:
    """The images of one folder that holds `images` and `masks`, or the class folders themselves."""
    nested = (folder / "images").is_dir()
    classes = _class_folders(folder / "images" if nested else folder, report)
    masks = _class_folders(folder / "masks", report) if nested and (folder / "masks").is_dir() else {}
    seen.update(classes)
    if not classes:
        raise DataError(message(str(folder / "images" if nested else folder), "a folder per class", "none", _LAYOUTS))
    for name in sorted(masks.keys() - classes.keys()):
        report(masks[name], "masks of a class that has no folder of images")
    files = []
    for name, class_folder in classes.items():
        if name in exclude_classes:
            continue
        images = _by_stem(class_folder, IMAGE_SUFFIXES, report)
        if not images:
            remedy = f"Add PNG or JPEG images, or leave the class out with data.exclude_classes: [{name}]."
            raise DataError(message(str(class_folder), "at least one image", "none", remedy))
        drawn = _by_stem(masks[name], MASK_SUFFIXES, report) if name in masks else {}
        for stem in sorted(drawn.keys() - images.keys()):
            report(drawn[stem], f"a mask without its image: {class_folder} has no image `{stem}`")
        files += [
            ImageFile(path.relative_to(root).as_posix(), name, path, drawn.get(stem))
            for stem, path in sorted(images.items())
        ]
    return files


def _class_folders(folder: Path, report: Report) -> dict[str, Path]:
    folders = {}
    for path in _visible(folder):
        if path.is_dir():
            folders[path.name] = path
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            report(path, "an image outside the class folders")
    return folders


def _by_stem(folder: Path, suffixes: tuple[str, ...], report: Report) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in _visible(folder):
        if path.is_dir():
            report(path, "a folder inside a class folder; images are read from the class folder only")
        elif path.suffix.lower() not in suffixes:
            if path.suffix.lower() in IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES:
                report(path, f"expected {', '.join(suffixes)}; received {path.suffix}")
        elif path.stem in files:
            remedy = "Rename one: the name without its ending tells which mask belongs to which image."
            raise DataError(message(str(path), "one file of a name", f"also {files[path.stem].name}", remedy))
        else:
            files[path.stem] = path
    return files


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files (`.DS_Store`, `._x.png`)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
