"""What is measured, as a recipe says it."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class EvaluateConfig(Section):
    """What is measured."""

    num_images: int | None = Field(None, ge=1, description="evaluation images; null: the whole split")
    batch_size: int = Field(128, ge=1, description="images per batch and process")
    seed: int | None = Field(None, ge=0, description="of the sampled evaluation images; null: the recipe's")
    latency: bool = Field(True, description="time dense and pruned models on this device")
    latency_batch_size: int = Field(16, ge=1, description="images per timed forward pass")
    latency_repeats: int = Field(20, ge=1, description="timed passes per model, interleaved")
