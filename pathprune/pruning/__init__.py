"""Plans of what to keep, and the narrower models they lead to."""

from pathprune.pruning.compensation import (
    Compensation,
    CompensationContext,
    MeanShift,
    NoCompensation,
    list_compensations,
    parse_compensation,
)
from pathprune.pruning.least_squares import LeastSquares
from pathprune.pruning.masking import masked
from pathprune.pruning.plan import PlanRow, PrunePlan, make_plan
from pathprune.pruning.removal import prune
from pathprune.pruning.sequential import Sequential
from pathprune.pruning.surgery import apply_plan

__all__ = [
    "Compensation",
    "CompensationContext",
    "LeastSquares",
    "MeanShift",
    "NoCompensation",
    "PlanRow",
    "PrunePlan",
    "Sequential",
    "apply_plan",
    "list_compensations",
    "make_plan",
    "masked",
    "parse_compensation",
    "prune",
]
