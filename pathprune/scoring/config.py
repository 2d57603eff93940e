"""The `score` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from pathprune.scoring.criteria import CriterionSpec, parse_criterion
from pathprune.section import AsTuple, Section, refuse_duplicates


class ScoreConfig(Section):
    """Criteria that score the neurons, and their calibration images."""

    criteria: Annotated[tuple[CriterionSpec, ...], AsTuple] = Field(
        ("path", "path-class", "magnitude-l2", "random"),
        min_length=1,
        description="Criteria to compare. A name, or a mapping with options such as {name: path, reduce: max}.",
    )
    num_images: int | None = Field(
        512,
        ge=1,
        description="Calibration images for statistics and gradients, balanced over the classes and in random order. "
        "null: all images of the split.",
    )
    batch_size: int = Field(64, ge=1, description="Calibration images per batch.")

    @field_validator("criteria")
    @classmethod
    def _check_criteria(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for criterion in value:
            parse_criterion(criterion)
        return refuse_duplicates(value)
