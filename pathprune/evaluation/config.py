"""Recipe section `evaluate`: evaluation images and latency measurement."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class EvaluateConfig(Section):
    """Settings of evaluation and latency measurement."""

    num_images: int | None = Field(None, ge=1, description="evaluation images; null: the whole split")
    batch_size: int = Field(128, ge=1, description="images per batch and process")
    seed: int | None = Field(None, ge=0, description="seed that samples evaluation images; null: the recipe's seed")
    latency: bool = Field(True, description="measure the latency of dense and pruned models on this device")
    latency_batch_size: int = Field(16, ge=1, description="images per timed forward pass")
    latency_repeats: int = Field(20, ge=1, description="timed forward passes per model; the models take turns")
