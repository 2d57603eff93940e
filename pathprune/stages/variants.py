"""Variants: the pruned models that a recipe compares."""

from __future__ import annotations

from dataclasses import dataclass

from pathprune.keys import key_of
from pathprune.pruning import Budget, Compensation, parse_compensation
from pathprune.recipe import Recipe
from pathprune.scoring import Criterion, parse_criterion


@dataclass(frozen=True)
class Variant:
    """One pruned model of a comparison: the criterion that ranks neurons, the budget, and the compensation."""

    criterion: Criterion
    compensation: Compensation
    budget: Budget

    @property
    def id(self) -> str:
        """Name of the variant, unique within a recipe, and fit for a file name."""
        return f"{label(self.criterion)}--{label(self.compensation)}--{self.budget.slug}"


def label(step: Criterion | Compensation) -> str:
    """Return a step's registered name, with a short hash of its non-default options: fit for a file name."""
    options = step.model_dump(mode="json", exclude_defaults=True)
    return f"{step.name}-{key_of(**options)[:8]}" if options else step.name


def budgets(recipe: Recipe) -> list[Budget]:
    """Return the recipe's budgets; each gives one model per criterion and compensation."""
    config = recipe.prune
    if config.max_drop is not None:
        return [Budget("max-drop", config.max_drop)]
    return [Budget(config.budget, ratio) for ratio in config.ratio]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed for mining, calibration and chance, on the same evaluation images."""
    evaluate = recipe.evaluate.model_copy(update={"seed": recipe.evaluation_seed})
    return recipe.model_copy(
        update={"seed": seed, "evaluate": evaluate, "output": str(recipe.folder / "seeds" / str(seed))}
    )


def variants(recipe: Recipe) -> list[Variant]:
    """List every pruned variant of a recipe: budgets, then criteria, then compensations."""
    criteria = [parse_criterion(spec) for spec in recipe.score.criteria]
    compensations = [parse_compensation(spec) for spec in recipe.compensation]
    return [
        Variant(criterion, compensation, budget)
        for budget in budgets(recipe)
        for criterion in criteria
        for compensation in compensations
    ]
