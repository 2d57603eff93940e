"""Remove neurons by a plan and make up for them, in one go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import Compensation, CompensationContext, parse_compensation
from pathprune.pruning.plan import PrunePlan
from pathprune.pruning.surgery import apply_plan
from pathprune.scoring.statistics import ActivationStatistics


def prune(
    adapted: AdaptedModel,
    *,
    plan: PrunePlan,
    compensation: str | Mapping[str, Any] | Compensation = "none",
    statistics: ActivationStatistics | None = None,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> AdaptedModel:
    """A narrower copy of the model, by `plan`; the model at hand is not changed.

    `compensation` is a registered name (see `list_compensations`) or a mapping with its name and options. `statistics`
    are those of the dense model, with covariances for `least-squares`; `batches` of calibration images
    `(images [B, C, H, W], labels)` are what `sequential` fits on, `seed` is that of its random choices. Raises
    ValueError if one that is needed is missing, or if the plan or the statistics are of another model.
    """
    compensate = parse_compensation(compensation)
    if compensate.needs_statistics:
        if statistics is None:
            raise ValueError(f"compensation {compensate.name!r} needs activation statistics; see collect_statistics")
        statistics.check(adapted.sites, covariance=compensate.needs_covariance)
    if compensate.needs_batches and batches is None:
        raise ValueError(f"compensation {compensate.name!r} needs batches of calibration images; pass batches=…")
    pruned = apply_plan(adapted, plan=plan)
    context = CompensationContext(adapted, plan=plan, statistics=statistics, batches=batches or (), seed=seed)
    compensate(pruned, context)
    return pruned
