"""What the sections of a configuration are made of: their base class, and types of values that several of them take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from tfcausal.config_errors import Expects


def as_integer(value: object) -> object:
    """Refuse what is no integer, for a Literal of integers: it takes true for 1."""
    if type(value) is not int:
        raise ValueError("Literal takes true for 1")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
PositiveNumber = Annotated[float, Field(gt=0)]
NonNegativeNumber = Annotated[float, Field(ge=0)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Pair = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]
PositiveInts = Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)]
RunName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    Expects("a name of letters, digits, `-`, `_` and `.` that starts with a letter or a digit"),
]
ModelName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"),
    Expects("a name of letters, digits, `_` and `-` that starts with a letter or a digit"),
]
Channels = Annotated[Literal[1, 3], BeforeValidator(as_integer)]


class Section(BaseModel):
    """What all sections have in common: unknown keys are errors, values are not converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
