"""What a user asks `tfcausal effects` for; needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfcausal.config import EffectsConfig, effects_from_mapping, load_effects
from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, RunError, message
from tfcausal.runs import RunDirectory

QUICK = {"images": 64}  # what is measured where nobody says


@dataclass(frozen=True)
class Request:
    """What a user asks `tfcausal effects` for.

    Attributes:
        source: A run directory, or a model file.
        images: Image files and folders; none for the images of a run.
        config: The file that says what is measured; None takes the run's own section, or a quick one.
        overrides: Settings `key=value` of the section.
        model: Which model of a run; None for all of them.
        output: The folder to write to; None is the run, or `effects/<name>`.
        overwrite: Whether effects that are there may be replaced.
        pixels: What black and white are in the input of a model file; None takes what the model says.
        size: Height and width for a model file that takes any.

    Example:
        >>> Request(Path("model.keras"), [Path("images")], overrides=["images=100"]).of_run
        False
    """

    source: Path
    images: Sequence[Path] = ()
    config: Path | None = None
    overrides: Sequence[str] = ()
    model: str | None = None
    output: Path | None = None
    overwrite: bool = False
    pixels: tuple[float, float] | None = None
    size: tuple[int, int] | None = None

    @property
    def of_run(self) -> bool:
        """Whether effects are measured on images of a run."""
        return self.source.is_dir() and not self.images

    def models(self) -> list[str]:
        """The models of a run that effects are measured of."""
        return [self.model] if self.model is not None else list(RunDirectory.open(self.source).config.models)


def settings(request: Request) -> EffectsConfig:
    """What is measured; whatever can be found wrong without the model is found here.

    Args:
        request: What the user asks for.

    Raises:
        ConfigError: The file or a setting is wrong.
        InvalidArgument: There is no such source or model, or options do not go together.
        RunError: The source is a damaged run, or a model of it is not trained.
    """
    if not request.source.exists():
        expected = "a run directory or a model file (.keras, .h5)"
        raise InvalidArgument(message(str(request.source), expected, "nothing at that place"))
    if request.source.is_dir():
        _check_run(request)
    elif not request.images:
        remedy = "Name image files or a folder of them behind it."
        raise InvalidArgument(message("images", "images to measure effects on, for a model file", "none", remedy))
    if request.config is not None:
        return load_effects(request.config, request.overrides)
    own = RunDirectory.open(request.source).config.effects if request.source.is_dir() else None
    return effects_from_mapping(QUICK if own is None else own.model_dump(), request.overrides)


def _check_run(request: Request) -> None:
    run = RunDirectory.open(request.source)
    for name in request.models():
        if name not in run.config.models:
            remedy = closest(name, run.config.models, "models")
            raise InvalidArgument(message("model", "a model of the run", repr(name), remedy))
        if not run.model_path(name).exists():
            remedy = f"Finish the run: `tfcausal run --resume {run.path}`."
            raise RunError(f"{run.model_path(name)}: the model is not trained yet. {remedy}")
    for option, value in (("pixels", request.pixels), ("size", request.size)):
        if value is not None and request.of_run:
            remedy = f"Leave out --{option}: a run knows its images."
            raise InvalidArgument(message(option, "nothing beside a run without IMAGES", value, remedy))
