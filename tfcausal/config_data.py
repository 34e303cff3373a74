"""The section `data` of a configuration: where the images come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from tfcausal.config_errors import Expects, describe, problem, raise_conflicts
from tfcausal.config_section import Channels, OpenShare, Pair, Section

DIGIT_IMAGES = 1797  # of scikit-learn's handwritten digits
LARGEST_DIGIT_IMAGE = 120  # the largest patch that every texture has for every split
LARGEST_BALANCED_IMAGE = 68  # the same where `validation` and `balanced` share a part of every texture

SplitSize = Annotated[int, Field(ge=10)]  # one digit of each class


class TexturedDigitsConfig(Section):
    """Handwritten digits on photographs of textures: needs no download, and the true mask of every digit is known."""

    source: Literal["textured_digits"] = Field(description="The data source.")
    image_size: int = Field(default=48, ge=8, le=LARGEST_DIGIT_IMAGE, description="Height and width in pixels.")
    channels: Channels = Field(default=3, description="1 for grey images, 3 for colour.")
    digit_width: Annotated[Pair, Expects("[narrowest, widest], two integers of at least 8")] = Field(
        default=(28, 44), description="Narrowest and widest digit, in pixels; drawn uniformly per image."
    )
    context_strength: float = Field(
        default=0.9, ge=0, le=1, description="Probability in training that an image has its label's texture."
    )
    contrast: float = Field(
        default=0.5, gt=0, le=0.5, description="Distance of a digit's tone from mid-grey; below 0.3 some vanish."
    )
    train_size: SplitSize = Field(default=1100, description="Number of training images.")
    validation_size: SplitSize = Field(default=200, description="Number of validation images.")
    test_size: SplitSize = Field(default=497, description="Number of test images in each of the two test splits.")
    balanced_size: Annotated[int, Field(ge=0), Expects("0, or an integer of at least 10")] = Field(
        default=0,
        description="Number of further images whose texture says nothing about the label, for method `dfr`; 0 for "
        "none. The validation images then have half as much of every photograph; training and test stay as they are.",
    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.image_size, self.image_size, self.channels

    @model_validator(mode="after")
    def _check(self) -> TexturedDigitsConfig:
        problems = []
        narrowest, widest = self.digit_width
        if not 8 <= narrowest <= widest <= self.image_size:
            expected = f"[narrowest, widest] in ascending order, from 8 to image_size ({self.image_size})"
            problems.append(("digit_width", problem(expected, describe([narrowest, widest]))))
        sizes = {name: getattr(self, name) for name in ("train_size", "validation_size", "test_size")}
        if self.balanced_size:
            sizes["balanced_size"] = self.balanced_size
        if self.balanced_size and self.image_size > LARGEST_BALANCED_IMAGE:
            expected = f"at most {LARGEST_BALANCED_IMAGE} with a balanced_size, the largest patch that is left then"
            remedy = "Lower it, or set balanced_size to 0."
            problems.append(("image_size", problem(expected, describe(self.image_size), remedy)))
        if 0 < self.balanced_size < 10:
            problems.append(("balanced_size", problem("0, or an integer of at least 10", describe(self.balanced_size))))
        elif sum(sizes.values()) > DIGIT_IMAGES:
            expected = f"{' + '.join(sizes)} of at most {DIGIT_IMAGES}, the number of digit images"
            received = f"{' + '.join(map(str, sizes.values()))} = {sum(sizes.values())}"
            remedy = f"Lower one of the {'four' if self.balanced_size else 'three'}."
            problems.append(("train_size", problem(expected, received, remedy)))
        raise_conflicts(problems)
        return self


class ImageFolderConfig(Section):
    """A folder of images: `images/<class>/*.png|jpg`, with optional masks in `masks/<class>/<same name>.png`."""

    source: Literal["image_folder"] = Field(description="The data source.")
    path: str = Field(min_length=1, description="The folder; a relative path starts at the current folder.")
    image_size: Annotated[
        Pair,
        BeforeValidator(lambda size: size if isinstance(size, list | tuple) else (size, size)),
        Expects("an integer of at least 1, or [height, width]"),
    ] = Field(
        default=(96, 96), description="[height, width] that images are resized to, in pixels; an integer gives squares."
    )
    channels: Channels = Field(default=3, description="1 to read images as grey, 3 for colour.")
    exclude_classes: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="Class folders that are left out, for example because they hold too few images."
    )
    validation_share: OpenShare = Field(default=0.15, description="Share of the images held out for validation.")
    test_share: OpenShare = Field(default=0.25, description="Share held out for testing without a `test` folder.")
    on_error: Literal["raise", "skip"] = Field(
        default="raise", description="An unreadable image stops the run (`raise`), or is left out and listed (`skip`)."
    )
    cache_megabytes: int = Field(default=1024, ge=0, description="Memory for decoded images, in MiB; 0 for none.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return (*self.image_size, self.channels)

    @model_validator(mode="after")
    def _check(self) -> ImageFolderConfig:
        if self.validation_share + self.test_share >= 1:
            received = f"{self.validation_share} + {self.test_share}"
            text = problem("validation_share + test_share below 1", received, "Leave a share for training.")
            raise_conflicts([("validation_share", text)])
        return self


DataConfig = Annotated[TexturedDigitsConfig | ImageFolderConfig, Field(discriminator="source")]
