"""The `score` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from pathprune.scoring.criteria import parse_criterion
from pathprune.section import AsTuple, Section, distinct


class ScoreConfig(Section):
    """Criteria that rank the neurons, and the calibration images for them."""

    criteria: Annotated[tuple[Any, ...], AsTuple] = Field(
        ("path", "path-class", "magnitude-l2", "random"), min_length=1, description="names, or {name: …, option: …}"
    )
    num_images: int | None = Field(512, ge=1, description="calibration images for statistics and gradients; null: all")
    batch_size: int = Field(64, ge=1, description="calibration images per batch")

    @field_validator("criteria")
    @classmethod
    def _check_criteria(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for criterion in value:
            parse_criterion(criterion)
        return distinct(value)
