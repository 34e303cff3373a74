"""The section `training` of a configuration: how every model of the run is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tfcausal.config_section import NonNegativeNumber, PositiveInt, PositiveNumber, Section


class TrainingConfig(Section):
    """How every model of the run is trained."""

    epochs: PositiveInt = Field(default=25, description="Passes over the training images.")
    batch_size: PositiveInt = Field(default=32, description="Images per step, over all devices.")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="The optimizer; `sgd` has a momentum of 0.9.")
    learning_rate: PositiveNumber = Field(default=0.001, description="The learning rate at the start.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="`cosine` lowers the learning rate to 0 over all steps, `constant` keeps it."
    )
    weight_decay: NonNegativeNumber = Field(
        default=0.0, description="Share of every weight that is taken off per step, times the learning rate (AdamW)."
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        default="float32",
        description="Type of the layers' arithmetic; with the mixed ones, weights, saliency maps and losses stay in "
        "float32.",
    )
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = Field(
        default="auto",
        description="Where training runs: `auto` uses the workers of TF_CONFIG if there are several, else every GPU; "
        "`one_device` a single device; `mirrored` every GPU, of which there must be one; `multi_worker` the workers of "
        "TF_CONFIG, each with a run directory of its own.",
    )
