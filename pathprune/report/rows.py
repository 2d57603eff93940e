"""Rows of results: one typed record per evaluated model (`metrics.jsonl`) or timed model (`bench.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pathprune.mining import Tokens
from pathprune.pruning.budget import BudgetKind
from pathprune.section import Section

ROW_VERSION = 4
"""Version of the rows. Increase it when a field changes its meaning, so that stored rows are computed again."""


class ForwardPasses(Section):
    """Cost of a variant's steps, in forward passes of one image through the dense model; None where not counted."""

    mining: float | None = None
    statistics: float | None = None
    scoring: float | None = None
    damage: float | None = None
    fitting: float | None = None


class RecoveryRecord(Section):
    """Training after pruning: its length, and one record per epoch and validation."""

    rounds: int
    epochs: float
    history: list[dict[str, Any]]


class Timing(Section):
    """Latency of a model in milliseconds per batch, measured in turns with the dense model.

    Spreads are first and third quartiles. `speedup` is dense latency over this model's.
    """

    latency_ms: float
    latency_spread_ms: tuple[float, float]
    latency_batch_size: int
    images_per_second: float
    speedup: float
    speedup_spread: tuple[float, float]


class VariantRow(Section):
    """Measurements of one model: the dense one, or a pruned variant.

    Shares (`budget_reached`, `neurons_removed`, `top1`, `retention`) are fractions of one. Intervals are 95 %.
    `budget_reached` is in the budget's own terms: a share removed, or points of top-1 lost for `max-drop`.
    The fields of `Timing` are None until the model is timed.
    """

    variant_id: str
    criterion: str | None
    criterion_options: dict[str, Any] | None = None
    compensation: str | None
    tokens: Tokens | None
    budget_kind: BudgetKind
    budget: float
    budget_reached: float
    budget_spread: tuple[float, float] | None
    neurons_removed: float
    seed: int
    classes: list[int | str] | None
    num_images: int
    top1: float
    top1_ci: tuple[float, float]
    retention: float
    retention_ci: tuple[float, float]
    top5: float
    nll: float
    per_class: list[float | None]
    agreement: float | None
    num_params: int
    macs: int
    latency_ms: float | None = None
    latency_spread_ms: tuple[float, float] | None = None
    latency_batch_size: int | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    speedup_spread: tuple[float, float] | None = None
    forward_passes: ForwardPasses | None
    kept_widths: list[int]
    recovery: RecoveryRecord | None
    checkpoint: str | None
    checkpoint_bytes: int | None

    @property
    def is_dense(self) -> bool:
        return self.criterion is None

    @property
    def timing(self) -> Timing | None:
        """Timing fields as one value; None for a model that was not timed."""
        if self.latency_ms is None:
            return None
        return Timing.model_validate({name: getattr(self, name) for name in Timing.model_fields})

    def with_timing(self, timing: Timing) -> VariantRow:
        """Return a copy of the row that holds `timing`."""
        return self.model_copy(update=dict(timing))

    def to_json(self) -> dict[str, Any]:
        """Return the row as one JSON-ready object of `metrics.jsonl`."""
        return self.model_dump(mode="json")


class BenchedModel(Section):
    """A model in a bench: its group (a recipe or an architecture), its size, and the device.

    `mac_saving` is the dense model's multiply-accumulates over this model's.
    """

    group: str
    model: str
    widths: list[int]
    num_params: int
    macs: int
    mac_saving: float
    device: str

    @property
    def is_dense(self) -> bool:
        return self.model == "dense"


class BenchTiming(Section):
    """Latency and memory of one model with one backend and batch size.

    Latency is in milliseconds per batch, measured in turns with the dense model. Spreads are first and third
    quartiles. `peak_bytes` is the peak memory of a forward pass; None for every backend but `eager`.
    """

    backend: str
    batch_size: int
    dtype: str
    threads: int
    latency_ms: float
    latency_spread_ms: tuple[float, float]
    images_per_second: float
    speedup: float
    speedup_spread: tuple[float, float]
    peak_bytes: int | None


class BenchRow(BenchTiming, BenchedModel):
    """One measurement of `pathprune bench`: a model with one backend and batch size."""

    @property
    def saving_realised(self) -> float:
        """Speed-up as a share of the saving in multiply-accumulates; 1 where time falls as much as they do."""
        return self.speedup / self.mac_saving

    def to_json(self) -> dict[str, Any]:
        """Return the row as one JSON-ready object of `bench.json`."""
        return self.model_dump(mode="json")


def to_json_lines(rows: Iterable[VariantRow]) -> str:
    """Format rows as the text of `metrics.jsonl`, one object a line."""
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)
