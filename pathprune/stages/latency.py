"""Models of an experiment, timed in turns on its device, as its recipe says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pathprune.evaluation import LatencyResult, measure_latency
from pathprune.keys import key_of
from pathprune.stages.experiment import Experiment


def timed(experiment: Experiment, models: Mapping[str, nn.Module]) -> dict[str, LatencyResult]:
    """Time one batch of noise through every model: latency does not depend on the content."""
    config = experiment.recipe.evaluate
    size = (config.latency_batch_size, *experiment.data_config["input_size"])
    images = torch.randn(size, generator=torch.Generator().manual_seed(experiment.recipe.seed))
    with experiment.accelerator.autocast():
        return measure_latency(models, images.to(experiment.accelerator.device), repeats=config.latency_repeats)


def timing_key(experiment: Experiment) -> str:
    """Key of how models are timed."""
    config = experiment.recipe.evaluate
    return key_of(
        model=experiment.model_key,
        batch_size=config.latency_batch_size,
        repeats=config.latency_repeats,
        precision=experiment.recipe.mixed_precision,
        device=str(experiment.accelerator.device),
    )
