"""The latency stage: models timed in turns on the run's device."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pathprune.artifacts import ArtifactKind, json_codec
from pathprune.evaluation import LatencyResult, Speedup, measure_latency, speedup
from pathprune.evaluation.latency import device_name
from pathprune.pruning import PrunePlan, prune
from pathprune.report.rows import Timing, VariantRow
from pathprune.stages.context import Context

TIMINGS: ArtifactKind[dict[str, Timing]] = ArtifactKind(
    "latency.json",
    inputs=("widths", "setting"),
    codec=json_codec(
        lambda timings: {name: timing.model_dump(mode="json") for name, timing in timings.items()},
        lambda content: {name: Timing.model_validate(timing) for name, timing in content.items()},
    ),
)


class Stopwatch:
    """Times models on one batch of noise, since latency does not depend on the content."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def setting(self) -> dict[str, Any]:
        """The inputs of every timing: model, batch, precision, and the machine with its software."""
        config, device = self._context.recipe.evaluate, self._context.accelerator.device
        return {
            "model": self._context.model_key,
            "batch_size": config.latency_batch_size,
            "repeats": config.latency_repeats,
            "precision": self._context.recipe.mixed_precision,
            "device": device_name(device),
            "machine": [platform.node(), platform.machine()],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, LatencyResult]:
        """Time models in turns, in milliseconds per batch of `evaluate.latency_batch_size` images."""
        context, config = self._context, self._context.recipe.evaluate
        size = (config.latency_batch_size, *context.model.data_config["input_size"])
        images = torch.randn(size, generator=torch.Generator().manual_seed(context.recipe.seed))
        with context.accelerator.autocast():
            return measure_latency(models, images.to(context.accelerator.device), repeats=config.latency_repeats)

    def add_timings(self, rows: Sequence[VariantRow], plans: Mapping[str, PrunePlan]) -> list[VariantRow]:
        """Return the rows with their timings; models of equal widths are timed once. The dense row comes first."""
        names = [_name_of_widths(row) for row in rows]
        plan_by_name = {name: plans.get(row.variant_id) for name, row in reversed(list(zip(names, rows, strict=True)))}

        def measure() -> dict[str, Timing]:
            dense = self._context.model
            models = {
                name: prune(dense.adapted, plan=plan).model if plan else dense.module
                for name, plan in plan_by_name.items()
            }
            results = self.measure(models)
            return {name: _timing(each, speedup(results[names[0]], each)) for name, each in results.items()}

        artifact = TIMINGS.of(widths=sorted(plan_by_name), setting=self.setting)
        timings = self._context.folder.obtain(artifact, measure)
        return [row.with_timing(timings[name]) for name, row in zip(names, rows, strict=True)]


def _timing(result: LatencyResult, ratio: Speedup) -> Timing:
    return Timing(
        latency_ms=result.median_ms,
        latency_spread_ms=(result.low_ms, result.high_ms),
        latency_batch_size=result.batch_size,
        images_per_second=result.throughput,
        speedup=ratio.median,
        speedup_spread=(ratio.low, ratio.high),
    )


def _name_of_widths(row: VariantRow) -> str:
    return "-".join(map(str, row.kept_widths))
