"""The sections `evaluation` and `report` of a configuration: what is measured, and what is shown."""

from __future__ import annotations

from pydantic import Field

from tfcausal.config_choices import Saliency
from tfcausal.config_section import PositiveInt, Section


class EvaluationConfig(Section):
    """What is measured on the test splits."""

    saliency: Saliency = Field(default="wbp", description="The saliency map that is measured.")
    batch_size: PositiveInt = Field(default=64, description="Images that are explained at once.")
    deletion_steps: PositiveInt = Field(default=20, description="Steps of the deletion curve.")
    deletion_images: PositiveInt = Field(
        default=200, description="Images of each deletion curve, chosen with the seed."
    )
    minimum_group_size: PositiveInt = Field(
        default=10, description="Smallest group of images that counts for the worst-group accuracy."
    )


class ReportConfig(Section):
    """What the report shows."""

    images: PositiveInt = Field(default=8, description="Images that are shown under every model.")
    title: str | None = Field(default=None, description="Title of the report; the run's name if null.")
    snapshot_epochs: PositiveInt | None = Field(
        default=None,
        description="A picture of the maps of `images` validation images after every so many epochs; null for none.",
    )
