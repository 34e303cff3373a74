"""Image files that a user names on the command line, one by one or as folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tfcausal.data.folder_layout import IMAGE_SUFFIXES
from tfcausal.errors import DataError, message


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files among and below some paths, each once, those of a folder sorted.

    Args:
        paths: Files and folders.

    Raises:
        DataError: No paths, a path that does not exist, a file of another format, or a folder without images.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if _is_image(file))
            if not below:
                raise DataError(message(str(path), f"a folder with images ({', '.join(IMAGE_SUFFIXES)})", "none in it"))
        elif _is_image(path):
            below = [path]
        else:
            received = f"a file `{path.name}`" if path.exists() else "nothing at that place"
            raise DataError(message(str(path), f"an image ({', '.join(IMAGE_SUFFIXES)}) or a folder of them", received))
        for file in below:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError(message("images", "at least one image file or folder", "none"))
    return list(found.values())


def output_names(files: Sequence[Path]) -> list[str]:
    """A name without suffix for what is written about every file, no two the same.

    It is the file's own name; where files of several folders have the same, the folders' names come before it.

    Args:
        files: Different files.

    Example:
        >>> output_names([Path("a/x.png"), Path("b/x.png"), Path("b/y.png"), Path("b/y.jpg")])
        ['a_x', 'b_x', 'y_png', 'y_jpg']
    """
    parts = [(*file.resolve().parts[1:-1], file.stem) for file in files]
    whole = Counter("/".join(part).casefold() for part in parts)
    for index, (file, part) in enumerate(zip(files, parts, strict=True)):
        if whole["/".join(part).casefold()] > 1:  # one name with two suffixes in one folder
            parts[index] = (*part[:-1], f"{file.stem}_{file.suffix[1:]}")
    depths = [1] * len(files)
    while True:
        names = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        counts = Counter(name.casefold() for name in names)
        longer = [
            index
            for index, name in enumerate(names)
            if counts[name.casefold()] > 1 and depths[index] < len(parts[index])
        ]
        if not longer:
            return _numbered(names)
        for index in longer:
            depths[index] += 1


def _numbered(names: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    result = []
    for name in names:
        candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(names) + 2))
        unused = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(unused.casefold())
        result.append(unused)
    return result


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
