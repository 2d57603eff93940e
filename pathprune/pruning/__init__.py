"""Plans of the neurons and heads to keep, and the narrower models that they lead to."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.pruning.budget import Budget, BudgetError, Cost
    from pathprune.pruning.built_in_compensations import LeastSquares, MeanShift, NoCompensation, Sequential
    from pathprune.pruning.compensation import (
        Compensation,
        CompensationContext,
        list_compensations,
        parse_compensation,
    )
    from pathprune.pruning.damage import measure_damage
    from pathprune.pruning.masking import mask_neurons
    from pathprune.pruning.plan import HeadPlan, PlanRow, PrunePlan
    from pathprune.pruning.plan_ladder import PlanLadder, build_plan_ladder, make_plan
    from pathprune.pruning.removal import prune
    from pathprune.pruning.rules import WidthRules
    from pathprune.pruning.surgery import apply_plan
else:
    __getattr__ = import_on_use(__name__)

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
