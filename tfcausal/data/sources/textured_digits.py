"""Handwritten digits on photographs of textures, with a planted shortcut and the true mask of every digit.

The digits come with scikit-learn, the photographs with scikit-image: nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tfcausal.data.contexts import assign_contexts, composite, shuffle_contexts
from tfcausal.data.image_set import DataSet, ImageSet, Reader
from tfcausal.data.splits import stratified_order
from tfcausal.data.textures import TEXTURES, Texture, read_textures
from tfcausal.errors import InvalidArgument, message

NUM_DIGITS = 1797
"""How many digit images scikit-learn has."""
SHARED_REGION = "validation"
"""The split that shares its part of every photograph with `balanced`, where there is such a split."""
TINT = 0.2
"""Share of its contrast that a colour channel of a digit may lose."""


@dataclass(frozen=True)
class Appearance:
    """How digits are drawn, whatever is behind them: coverage (N, height, width) and colour (N, channels)."""

    coverage: np.ndarray
    colour: np.ndarray


def textured_digits(
    image_size: int = 48,
    digit_width: tuple[int, int] = (28, 44),
    context_strength: float = 0.9,
    train_size: int = 1100,
    validation_size: int = 200,
    test_size: int = 497,
    contrast: float = 0.5,
    channels: int = 3,
    seed: int = 0,
    balanced_size: int = 0,
) -> DataSet:
    """Build the embedded data set: real digits on real textures that agree with the digit in training.

    Training, validation and test share no digit image and no pixel of a photograph. The splits `test` and
    `test_shuffled` show the same digits at the same places in the same colours; in `test` the texture agrees with the
    label as often as in training, in `test_shuffled` it says nothing about it.

    The split `balanced` is for methods that are told about the contexts, such as
    :func:`~tfcausal.models.last_layer.retrain_last_layer`: digits that are in no other split, with textures that say
    nothing about them. Its backgrounds are one half of what `validation` has without it of every photograph, and
    `validation` keeps the other half; `train`, `test` and `test_shuffled` are the same with it and without it.

    Args:
        image_size: Height and width of the images in pixels.
        digit_width: Least and greatest width of a digit's 8x8 box in pixels, at most `image_size`.
        context_strength: Probability in [0, 1] that the texture is the one that goes with the label.
        train_size: Images in `train`.
        validation_size: Images in `validation`.
        test_size: Images in `test` and in `test_shuffled`; all sizes together at most 1797.
        contrast: Distance of a digit's tone from mid-grey, in (0, 0.5]. Backgrounds lie in [0.25, 0.75]: above 0.4
            digits stand out everywhere, below 0.3 they vanish where the texture has their tone.
        channels: 3 for colour, 1 for grey.
        seed: Seed of everything that is drawn, 0 or more.
        balanced_size: Images in `balanced`; 0 for no such split, else at least 10. Within a digit, the counts of two
            textures differ by one at most.

    Returns:
        The splits `train`, `validation`, `test` and `test_shuffled` and, if wanted, `balanced`, with masks, contexts
        and pixels in [0, 1].

    Raises:
        InvalidArgument: An argument is out of its range.
        DataError: The installed scikit-image has no photographs.

    Example:
        >>> digits = textured_digits(train_size=20, validation_size=10, test_size=10)
        >>> images, masks = digits.splits["train"].read(np.arange(4))
        >>> images.shape, masks.shape
        ((4, 48, 48, 3), (4, 48, 48, 1))
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    if balanced_size:
        sizes["balanced"] = balanced_size
    _check(image_size, digit_width, context_strength, sizes, contrast, channels, seed)
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    order = stratified_order(labels, seed)
    textures = read_textures(channels)
    if balanced_size:
        halves = [_halves(region) for region in textures[SHARED_REGION]]
        textures[SHARED_REGION], textures["balanced"] = [list(half) for half in zip(*halves, strict=True)]

    splits: dict[str, ImageSet] = {}
    start = 0
    for number, (split, size) in enumerate(sizes.items()):
        chosen = order[start : start + size]
        start += size
        generator = np.random.default_rng([seed, number])
        appearance = draw_appearance(
            digits.images[chosen] / 16.0, image_size, digit_width, contrast, channels, generator
        )
        context_seed, shuffled_seed = (int(value) for value in generator.integers(2**31, size=2))
        drawn = {split: assign_contexts(labels[chosen], 10, context_strength, context_seed)}
        if split == "test":
            drawn["test_shuffled"] = shuffle_contexts(labels[chosen], 10, shuffled_seed)
        elif split == "balanced":
            drawn = {split: shuffle_contexts(labels[chosen], 10, shuffled_seed)}
        for name, contexts in drawn.items():
            backgrounds = draw_backgrounds(textures[split], contexts, image_size, generator)
            splits[name] = _image_set(name, chosen, labels[chosen], contexts, appearance, backgrounds)
    description = (
        f"Handwritten digits ({digit_width[0]} to {digit_width[1]} pixels wide) on photographs of ten textures, "
        f"{image_size}x{image_size} pixels; in training the texture agrees with the digit in {context_strength:.0%} of "
        "the images."
    )
    return DataSet(splits, description=description)


def draw_appearance(
    digits: np.ndarray,
    image_size: int,
    digit_width: tuple[int, int],
    contrast: float,
    channels: int,
    generator: np.random.Generator,
) -> Appearance:
    """Draw a width, a place and a colour for every digit, none of which depends on the digit.

    Args:
        digits: Ink, float of shape (N, 8, 8), in [0, 1].
        image_size: Height and width of the images in pixels.
        digit_width: Least and greatest width of a digit's box in pixels.
        contrast: Distance of a digit's tone from mid-grey, in (0, 0.5].
        channels: 3 for colour, 1 for grey.
        generator: Source of randomness.

    Returns:
        Coverage (N, image_size, image_size) and colour (N, channels), float32 in [0, 1].
    """
    count = len(digits)
    widths = generator.integers(digit_width[0], digit_width[1] + 1, size=count)
    corners = generator.integers(0, image_size - widths + 1, size=(2, count))
    coverage = np.zeros((count, image_size, image_size), dtype=np.float32)
    for k, (digit, width, top, left) in enumerate(zip(digits, widths, *corners, strict=True)):
        enlarged = Image.fromarray(digit.astype(np.float32)).resize((width, width), Image.Resampling.BICUBIC)
        # Ink of 0.5 is the edge of a stroke; the ramp around it keeps strokes opaque and their edges soft.
        coverage[k, top : top + width, left : left + width] = np.clip((np.asarray(enlarged) - 0.3) / 0.4, 0.0, 1.0)
    sign = generator.choice([-1.0, 1.0], size=(count, 1))
    coloured = generator.random((count, 1)) < 0.5
    tint = np.where(coloured, generator.random((count, channels)), generator.random((count, 1)))
    return Appearance(coverage, (0.5 + sign * contrast * (1.0 - TINT * tint)).astype(np.float32))


def draw_backgrounds(
    textures: list[np.ndarray], contexts: np.ndarray, image_size: int, generator: np.random.Generator
) -> np.ndarray:
    """Cut a random patch, turned and mirrored at random, out of the texture of every image's context.

    Args:
        textures: By context, float32 of shape (height, width, channels), each at least `image_size` high and wide.
        contexts: Context indices, integers of shape (N,).
        image_size: Height and width of the patches in pixels.
        generator: Source of randomness.

    Returns:
        Patches, float32 of shape (N, image_size, image_size, channels).
    """
    patches = np.empty((len(contexts), image_size, image_size, textures[0].shape[2]), dtype=np.float32)
    for k, context in enumerate(contexts):
        texture = textures[context]
        top = generator.integers(texture.shape[0] - image_size + 1)
        left = generator.integers(texture.shape[1] - image_size + 1)
        patch = np.rot90(texture[top : top + image_size, left : left + image_size], int(generator.integers(4)))
        patches[k] = patch[:, ::-1] if generator.integers(2) else patch
    return patches


def _halves(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of a part of a photograph (height, width, channels), cut across its longer side."""
    axis = 0 if region.shape[0] >= region.shape[1] else 1
    first, second = np.array_split(region, 2, axis=axis)
    return first, second


def _image_set(
    split: str,
    chosen: np.ndarray,
    labels: np.ndarray,
    contexts: np.ndarray,
    appearance: Appearance,
    backgrounds: np.ndarray,
) -> ImageSet:
    images = composite(backgrounds, appearance.colour, appearance.coverage)
    masks = appearance.coverage[..., None] > 0.5
    return ImageSet(
        names=tuple(f"{split}/digit_{index:04d}" for index in chosen),
        labels=labels,
        class_names=tuple(str(digit) for digit in range(10)),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        has_mask=np.ones(len(labels), dtype=bool),
        reader=_reader(np.round(images * 255.0).astype(np.uint8), masks),
        contexts=contexts,
        context_agrees=contexts == labels,
        context_names=tuple(texture.name for texture in TEXTURES),
    )


def _reader(images: np.ndarray, masks: np.ndarray) -> Reader:
    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images[indices].astype(np.float32) / np.float32(255.0), masks[indices].astype(np.float32)

    return read


def _largest_patch(texture: Texture, shared: bool) -> int:
    """Side in pixels of the largest square patch that every split has, where two share the part of one or not."""
    if not shared:
        return texture.patch_limit()
    sides = sorted((part.stop - part.start) // texture.reduction for part in texture.region(SHARED_REGION))
    return min(sides[0], sides[1] // 2)


def _check(
    image_size: int,
    digit_width: tuple[int, int],
    context_strength: float,
    sizes: dict[str, int],
    contrast: float,
    channels: int,
    seed: int,
) -> None:
    shared = "balanced" in sizes
    largest = min(_largest_patch(texture, shared) for texture in TEXTURES)
    if not 8 <= image_size <= largest:
        expected = f"8 to {largest} pixels, the largest patch that every photograph has for every split"
        expected += ", with a split `balanced`" if shared else ""
        raise InvalidArgument(message("image_size", expected, image_size))
    if len(digit_width) != 2 or not 8 <= digit_width[0] <= digit_width[1] <= image_size:
        expected = f"a least and a greatest width, from 8 to image_size ({image_size})"
        raise InvalidArgument(message("digit_width", expected, digit_width, "Lower it, or raise image_size."))
    if not 0.0 <= context_strength <= 1.0:
        raise InvalidArgument(message("context_strength", "a probability in [0, 1]", context_strength))
    if not 0.0 < contrast <= 0.5:
        raise InvalidArgument(message("contrast", "a number in (0, 0.5]", contrast, "0.5 is legible everywhere."))
    if channels not in (1, 3):
        raise InvalidArgument(message("channels", "1 (grey) or 3 (colour)", channels))
    if seed < 0:
        raise InvalidArgument(message("seed", "0 or more", seed))
    for split, size in sizes.items():
        if size < 10:
            raise InvalidArgument(message(f"{split}_size", "10 or more, one image per class", size))
    if sum(sizes.values()) > NUM_DIGITS:
        names = " + ".join(f"{split}_size" for split in sizes)
        received = f"{sum(sizes.values())} ({' + '.join(str(size) for size in sizes.values())})"
        raise InvalidArgument(message(names, f"at most {NUM_DIGITS} digit images", received, "Lower one of them."))
