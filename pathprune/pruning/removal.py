"""Pruning by a plan: removal of neurons, then compensation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathprune.models.seam import AdaptedModel
from pathprune.pruning.attention import choose_bases
from pathprune.pruning.compensation import Compensation, CompensationContext, parse_compensation
from pathprune.pruning.plan import PrunePlan
from pathprune.pruning.surgery import apply_plan
from pathprune.scoring.attention_statistics import AttentionStatistics, collect_attention_statistics
from pathprune.scoring.batches import Batches
from pathprune.scoring.statistics import ActivationStatistics


def prune(
    adapted: AdaptedModel,
    *,
    plan: PrunePlan,
    compensation: str | Mapping[str, Any] | Compensation = "none",
    statistics: ActivationStatistics | None = None,
    batches: Batches | None = None,
    attention_statistics: AttentionStatistics | None = None,
    seed: int = 0,
) -> AdaptedModel:
    """Return a copy of the model without the plan's removed neurons and heads; `adapted` does not change.

    - compensation: a registered name (see `list_compensations`), or a mapping with the key `name` and options.
    - statistics: activation statistics of the dense model, with covariances for `least-squares`.
    - batches: calibration images `(images [B, C, H, W], labels)`, which `sequential` fits on; labels are not used.
    - attention_statistics: statistics of the dense model's attention, for a plan that removes channels of heads; by
      default collected from `batches`.
    - seed: seed of the compensation's random choices.

    Raises ValueError if the compensation is unknown or lacks an input, or if the plan or the statistics are of another
    model.
    """
    compensate = parse_compensation(compensation)
    if compensate.needs_statistics:
        if statistics is None:
            raise ValueError(
                f"compensation {compensate.name!r} needs activation statistics, but none were given; collect them with "
                "collect_statistics and pass statistics=…"
            )
        statistics.check(adapted.sites, covariance=compensate.needs_covariance)
    if compensate.needs_batches and batches is None:
        raise ValueError(
            f"compensation {compensate.name!r} needs batches of calibration images, but none were given; pass batches=…"
        )
    if plan.removes_channels and attention_statistics is None and batches is not None:
        attention_statistics = collect_attention_statistics(adapted, batches)
    plan.check(adapted.sites, adapted.attention_sites)
    narrowed = choose_bases(adapted, plan=plan, statistics=attention_statistics)
    pruned = apply_plan(adapted, plan=plan, narrowed=narrowed)
    context = CompensationContext(
        adapted, plan=plan, statistics=statistics, batches=batches or (), narrowed=narrowed, seed=seed
    )
    compensate(pruned, context)
    return pruned
