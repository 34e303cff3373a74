"""A folder of images, with a folder per class and, where a person has drawn them, masks of the cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tfcausal.data.decoding import decode_image, decode_mask, refuse_decompression_bombs
from tfcausal.data.folder_layout import ImageFile, find_files
from tfcausal.data.image_set import DataSet, ImageSet, SkippedFile
from tfcausal.data.splits import stratified_split
from tfcausal.errors import DataError, InvalidArgument, message

Decoded = tuple[np.ndarray, np.ndarray | None]
"""An image as `decode_image` returns it, and its mask, bool (height, width, 1), if it has one."""


def image_folder(
    path: str | Path,
    image_size: int | tuple[int, int],
    channels: int = 3,
    exclude_classes: Sequence[str] = (),
    validation_share: float = 0.15,
    test_share: float = 0.25,
    on_error: Literal["raise", "skip"] = "raise",
    cache_megabytes: float = 1024,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Read a folder of PNG and JPEG images.

    One of two layouts:

    - `images/<class>/*.png|jpg|jpeg` and, if there are masks, `masks/<class>/<same name>.png`. The images are split by
      the seed, class by class.
    - `train`, `test` and, if you like, `validation`, each with `images/<class>/` and `masks/<class>/` inside, or each
      with the class folders themselves. Without `validation`, a share of `train` becomes it.

    Every image and mask is decoded once before this function returns, so that nothing unreadable turns up later. A mask
    marks the cause where it is above half of its own maximum.

    Args:
        path: The folder.
        image_size: Height and width that images and masks are resized to, or one number for both.
        channels: 3 for colour, 1 for grey.
        exclude_classes: Names of classes to leave out.
        validation_share: Share of the images (in the second layout: of the training images) that go to validation.
        test_share: Share of the images that go to the test (first layout only).
        on_error: `raise` stops at the first file that cannot be used; `skip` leaves such files out and lists them.
        cache_megabytes: Memory for decoded images. If they do not all fit, they are decoded whenever they are read.
        seed: Seed of the split, 0 or more.
        on_progress: Called with the number of images decoded so far and the number of all.

    Returns:
        The splits `train`, `validation` and `test`, with pixels in [0, 1] and, in `skipped`, the files left out.

    Raises:
        InvalidArgument: An argument is out of range.
        DataError: The folder has not one of the layouts, has too few classes or images, or a file cannot be used.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check(height, width, channels, exclude_classes, validation_share, test_share, on_error, cache_megabytes, seed)
    root = Path(path).expanduser()
    skipped: list[SkippedFile] = []

    def report(file: Path, reason: str) -> None:
        if on_error == "raise":
            remedy = "Repair or remove it, or set data.on_error: skip to leave such files out."
            raise DataError(f"`{file}` cannot be used: {reason}. {remedy}")
        skipped.append(SkippedFile(file.relative_to(root).as_posix(), reason))

    files = find_files(root, exclude_classes, report)
    class_names = _class_names(files)
    shares = {"validation": validation_share, "test": test_share} if "all" in files else {}
    if "train" in files and "validation" not in files:
        shares = {"validation": validation_share}
    _check_counts(files, class_names, shares, skipped)
    files, decoded = _decode_all(files, height, width, channels, cache_megabytes, report, on_progress)
    _check_counts(files, class_names, shares, skipped)

    positions = {split: np.arange(len(members)) for split, members in files.items()}
    source = {split: split for split in files}
    if shares:
        whole = "all" if "all" in files else "train"
        parts = stratified_split(_labels(files[whole], class_names), shares, seed)
        positions |= {"train": parts.pop("rest"), **parts}
        source |= dict.fromkeys(["train", *parts], whole)
    splits = {}
    for split in ("train", "validation", "test"):
        chosen = [files[source[split]][k] for k in positions[split]]
        splits[split] = _image_set(chosen, class_names, (height, width, channels), decoded)
    description = f"{sum(map(len, files.values()))} images in {len(class_names)} classes, {height}x{width} pixels."
    return DataSet(splits, description=description, skipped=tuple(skipped))


def _decode_all(
    files: dict[str, list[ImageFile]],
    height: int,
    width: int,
    channels: int,
    cache_megabytes: float,
    report: Callable[[Path, str], None],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[ImageFile]], dict[str, Decoded] | None]:
    """Decode every file once.

    Returns:
        The files that can be used (without a mask, where only the mask cannot), and what they hold, by name, or None if
        that is more than the cache may hold.
    """
    usable: dict[str, list[ImageFile]] = {split: [] for split in files}
    cache: dict[str, Decoded] | None = {}
    room = cache_megabytes * 2**20
    total, done = sum(map(len, files.values())), 0
    with refuse_decompression_bombs():
        for split, members in files.items():
            for file in members:
                done += 1
                try:
                    image, size = decode_image(file.path, height, width, channels)
                except DataError as error:
                    report(file.path, str(error))
                else:
                    mask = None
                    if file.mask_path is not None:
                        try:
                            mask = decode_mask(file.mask_path, size, height, width)
                        except DataError as error:
                            report(file.mask_path, str(error))
                            file = file.without_mask()
                    usable[split].append(file)
                    room -= image.nbytes + (0 if mask is None else mask.nbytes)
                    if room < 0:
                        cache = None
                    if cache is not None:
                        cache[file.name] = (image, mask)
                if on_progress is not None:
                    on_progress(done, total)
    return usable, cache


def _image_set(
    files: list[ImageFile],
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    cache: dict[str, Decoded] | None,
) -> ImageSet:
    height, width, channels = image_shape

    def decoded(file: ImageFile) -> Decoded:
        if cache is not None:
            return cache[file.name]
        try:
            image, size = decode_image(file.path, height, width, channels)
            return image, None if file.mask_path is None else decode_mask(file.mask_path, size, height, width)
        except DataError as error:
            remedy = "The file was readable when the data set was opened: do not change the folder during a run."
            raise DataError(f"`{file.path}` or its mask cannot be used any more: {error}. {remedy}") from None

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(indices), *image_shape), dtype=np.float32)
        masks = np.ones((len(indices), height, width, 1), dtype=np.float32)
        for k, index in enumerate(indices):
            image, mask = decoded(files[index])
            images[k] = image  # A grey file has one channel and is broadcast.
            if image.dtype == np.uint8:
                images[k] /= np.float32(255.0)
            if mask is not None:
                masks[k] = mask
        return images, masks

    return ImageSet(
        names=tuple(file.name for file in files),
        labels=_labels(files, class_names),
        class_names=class_names,
        image_shape=image_shape,
        has_mask=np.array([file.mask_path is not None for file in files], dtype=bool),
        reader=read,
    )


def _labels(files: list[ImageFile], class_names: tuple[str, ...]) -> np.ndarray:
    index = {name: label for label, name in enumerate(class_names)}
    return np.array([index[file.class_name] for file in files], dtype=np.int64)


def _class_names(files: dict[str, list[ImageFile]]) -> tuple[str, ...]:
    """The classes of the training images, sorted; the other splits may have no further ones."""
    names = {split: sorted({file.class_name for file in members}) for split, members in files.items()}
    known = names["all"] if "all" in names else names["train"]
    for split, found in names.items():
        if unknown := sorted(set(found) - set(known)):
            remedy = "Rename the folders, or list the classes in data.exclude_classes."
            raise DataError(message(f"{split}/<class>", f"classes of train ({', '.join(known)})", unknown, remedy))
    return tuple(known)


def _check_counts(
    files: dict[str, list[ImageFile]],
    class_names: tuple[str, ...],
    shares: dict[str, float],
    skipped: list[SkippedFile],
) -> None:
    if len(class_names) < 2:
        remedy = "Add a folder with the images of a second class."
        raise DataError(message("classes", "at least two", f"{len(class_names)} {list(class_names)}", remedy))
    left_out = f" ({len(skipped)} files were skipped)" if skipped else ""
    whole = "all" if "all" in files else "train"
    parts = ["train", *shares]
    for name in class_names:
        count = sum(file.class_name == name for file in files[whole])
        if count < len(parts):
            expected = f"at least {len(parts)} images, one each for {', '.join(parts)}"
            remedy = f"Add images of this class, or leave it out with data.exclude_classes: [{name}]."
            raise DataError(message(f"class {name}", expected, f"{count}{left_out}", remedy))
    for split, members in files.items():
        if not members:
            raise DataError(message(f"{split} folder", "at least one image", f"none{left_out}", "Add images to it."))


def _check(
    height: int,
    width: int,
    channels: int,
    exclude_classes: Sequence[str],
    validation_share: float,
    test_share: float,
    on_error: str,
    cache_megabytes: float,
    seed: int,
) -> None:
    if height < 1 or width < 1:
        raise InvalidArgument(message("image_size", "positive numbers of pixels", (height, width), "Set e.g. 128."))
    if channels not in (1, 3):
        raise InvalidArgument(message("channels", "1 (grey) or 3 (colour)", channels))
    if isinstance(exclude_classes, str):
        remedy = f"Write [{exclude_classes}]."
        raise InvalidArgument(message("exclude_classes", "a list of names", repr(exclude_classes), remedy))
    for name, share in {"validation_share": validation_share, "test_share": test_share}.items():
        if not 0.0 < share < 1.0:
            raise InvalidArgument(message(name, "a share in (0, 1)", share))
    if validation_share + test_share >= 1.0:
        received = f"{validation_share} + {test_share}"
        remedy = "Leave a share for training."
        raise InvalidArgument(message("validation_share + test_share", "less than 1", received, remedy))
    if on_error not in ("raise", "skip"):
        raise InvalidArgument(message("on_error", "raise or skip", repr(on_error)))
    if cache_megabytes < 0:
        raise InvalidArgument(message("cache_megabytes", "0 or more", cache_megabytes, "Use 0 for no cache."))
    if seed < 0:
        raise InvalidArgument(message("seed", "0 or more", seed))
