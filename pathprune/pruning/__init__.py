"""Plans of the neurons and heads to keep, and the narrower models that they lead to."""

from pathprune.pruning.budget import Budget, BudgetError, Cost
from pathprune.pruning.compensation import (
    Compensation,
    CompensationContext,
    MeanShift,
    NoCompensation,
    list_compensations,
    parse_compensation,
)
from pathprune.pruning.damage import measure_damage
from pathprune.pruning.least_squares import LeastSquares
from pathprune.pruning.masking import mask_neurons
from pathprune.pruning.plan import HeadPlan, PlanRow, PrunePlan
from pathprune.pruning.plan_ladder import PlanLadder, build_plan_ladder, make_plan
from pathprune.pruning.removal import prune
from pathprune.pruning.rules import WidthRules
from pathprune.pruning.sequential import Sequential
from pathprune.pruning.surgery import apply_plan

__all__ = [
    "Budget",
    "BudgetError",
    "Compensation",
    "CompensationContext",
    "Cost",
    "HeadPlan",
    "LeastSquares",
    "MeanShift",
    "NoCompensation",
    "PlanLadder",
    "PlanRow",
    "PrunePlan",
    "Sequential",
    "WidthRules",
    "apply_plan",
    "build_plan_ladder",
    "list_compensations",
    "make_plan",
    "mask_neurons",
    "measure_damage",
    "parse_compensation",
    "prune",
]
