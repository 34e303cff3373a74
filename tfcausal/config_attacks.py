"""The entries of `effects.attacks` in a configuration: one section for every adversarial perturbation.

The keys are called as the arguments of :func:`tfcausal.interventions.adversarial.get_attack`. The defaults are a size
of 0.3 and 10 steps, as in *When Causal Intervention Meets Image Masking and Adversarial Perturbation for Deep Neural
Networks*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tfcausal.config_errors import Expects, describe, problem, raise_conflicts
from tfcausal.config_section import PositiveInt, Section

LARGEST_JSMA_IMAGE = 4096  # pixel values: 64x64 grey, or 36x36 in colour; each step changes two of them

Eps = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Largest change of a pixel value, as a share of the distance between black and white in the "
        "model's input.",
    ),
]
Steps = Annotated[PositiveInt, Field(description="Iterations.")]
EpsStep = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Change per iteration, in the unit of eps and at most eps; if null, eps / steps for `bim` and 2.5 "
        "times as much for `pgd`.",
    ),
]


class AttackSection(Section):
    """What the sections of the attacks have in common."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that are arguments of `tfcausal.interventions.adversarial.get_attack`."""
        return self.model_dump(exclude={"any_size"})


class FGSMConfig(AttackSection):
    """Fast gradient sign method: one step of size eps along the sign of the loss's gradient."""

    name: Literal["fgsm"] = Field(description="The attack.")
    eps: Eps = 0.3


class _IterativeConfig(AttackSection):
    """What the iterative attacks have in common."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = self.settings
        if values["eps_step"] is not None and values["eps_step"] > values["eps"]:
            expected = f"at most eps ({values['eps']:g})"
            raise_conflicts([("eps_step", problem(expected, describe(values["eps_step"])))])
        return self


class BIMConfig(_IterativeConfig):
    """Basic iterative method: small steps along the sign of the gradient, within eps of the image."""

    name: Literal["bim"] = Field(description="The attack.")
    eps: Eps = 0.3
    steps: Steps = 10
    eps_step: EpsStep = None


class PGDConfig(_IterativeConfig):
    """Projected gradient descent: the basic iterative method from a random start within eps of the image."""

    name: Literal["pgd"] = Field(description="The attack.")
    eps: Eps = 0.3
    steps: Steps = 10
    eps_step: EpsStep = None


class JSMAConfig(AttackSection):
    """Jacobian-based saliency map attack: two pixel values at a time are raised, the most salient first; slow."""

    name: Literal["jsma"] = Field(description="The attack.")
    eps: Annotated[
        float,
        Field(gt=0, le=1, description="By how much a pixel value is raised at a time, in the unit of the others."),
    ] = 0.3
    gamma: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Largest share of the pixel values that are raised; if null, 0.145 and not more than 1000.",
    )
    any_size: bool = Field(
        default=False,
        description=f"Whether images of more than {LARGEST_JSMA_IMAGE} pixel values are attacked, which takes hours.",
    )


def short(key: str) -> Callable[[object], object]:
    """Have a text stand for a section of which it is one key, in a `BeforeValidator`."""
    return lambda value: {key: value} if isinstance(value, str) else value


AttackConfig = Annotated[
    Annotated[FGSMConfig | BIMConfig | PGDConfig | JSMAConfig, Field(discriminator="name")],
    BeforeValidator(short("name")),
    Expects("`fgsm`, `bim`, `pgd` or `jsma`, or a section such as `{name: fgsm, eps: 0.1}`"),
]
