"""Rows of a comparison: one typed record per evaluated model, as `metrics.jsonl` holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pathprune.pruning.budget import BudgetKind
from pathprune.section import Section

ROW_VERSION = 4
"""Raised when a row's fields change meaning, so that rows stored by older versions are computed again."""


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
    """Latency of a model in milliseconds per batch, beside the dense model in the same turns.

    Spreads are first and third quartiles. `speedup` is dense latency over this model's.
    """

    latency_ms: float | None = None
    latency_spread_ms: tuple[float, float] | None = None
    latency_batch_size: int | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    speedup_spread: tuple[float, float] | None = None


class VariantRow(Timing):
    """Measurements of one model: the dense one, or a pruned variant.

    Shares (`budget_reached`, `neurons_removed`, `top1`, `retention`) are fractions of one. Intervals are 95 %.
    `budget_reached` is in the budget's own terms: a share removed, or points of top-1 lost for `max-drop`.
    """

    variant_id: str
    criterion: str | None
    criterion_options: dict[str, Any] | None = None
    compensation: str | None
    tokens: str | None
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
    forward_passes: ForwardPasses | None
    kept_widths: list[int]
    recovery: RecoveryRecord | None
    checkpoint: str | None
    checkpoint_bytes: int | None

    @property
    def is_dense(self) -> bool:
        return self.criterion is None

    def to_json(self) -> dict[str, Any]:
        """Return the row as one JSON-ready object of `metrics.jsonl`."""
        return self.model_dump(mode="json")


def to_json_lines(rows: Iterable[VariantRow]) -> str:
    """Format rows as the text of `metrics.jsonl`, one object a line."""
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)
