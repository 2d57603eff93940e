"""The `evaluate` section of a recipe."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class EvaluateConfig(Section):
    """Measurements of accuracy and latency."""

    num_images: int | None = Field(
        None,
        ge=1,
        description="Evaluation images: a random sample with the class proportions of the split. null: all images.",
    )
    batch_size: int = Field(128, ge=1, description="Images per batch and process.")
    seed: int | None = Field(
        None, ge=0, description="Seed of the sample of evaluation images. null: the recipe's seed."
    )
    latency: bool = Field(True, description="Measure the latency of dense and pruned models in turns on this device.")
    latency_batch_size: int = Field(16, ge=1, description="Images per timed forward pass.")
    latency_repeats: int = Field(20, ge=1, description="Timed forward passes per model.")
