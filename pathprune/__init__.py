"""Structured pruning of Vision Transformers, guided by neuron paths (arXiv 2503.09046).

Names are imported when first used, so that `pathprune --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pathprune._version import __version__ as __version__

if TYPE_CHECKING:
    from pathprune.mining import ClassStats, MinedPaths, PathSet, locate_paths
    from pathprune.models.adapt import adapt
    from pathprune.models.checkpoint import load_pruned, save_pruned
    from pathprune.models.hub import push_to_hub
    from pathprune.models.loading import load_model
    from pathprune.models.seam import AdaptedModel, NeuronSite, UnsupportedModelError
    from pathprune.pipeline import RunResult, run_recipe
    from pathprune.pruning import PrunePlan, make_plan, prune
    from pathprune.recipe import Recipe, RecipeError, load_recipe
    from pathprune.scoring import ActivationStatistics, Criterion, ScoresImportance, ScoringContext, collect_statistics

_HOMES = {
    "pathprune.mining": ("ClassStats", "MinedPaths", "PathSet", "locate_paths"),
    "pathprune.models.adapt": ("adapt",),
    "pathprune.models.checkpoint": ("load_pruned", "save_pruned"),
    "pathprune.models.hub": ("push_to_hub",),
    "pathprune.models.loading": ("load_model",),
    "pathprune.models.seam": ("AdaptedModel", "NeuronSite", "UnsupportedModelError"),
    "pathprune.pipeline": ("RunResult", "run_recipe"),
    "pathprune.pruning": ("PrunePlan", "make_plan", "prune"),
    "pathprune.recipe": ("Recipe", "RecipeError", "load_recipe"),
    "pathprune.scoring": (
        *("ActivationStatistics", "Criterion", "ScoresImportance", "ScoringContext", "collect_statistics"),
    ),
}

__all__ = [
    "ActivationStatistics",
    "AdaptedModel",
    "ClassStats",
    "Criterion",
    "MinedPaths",
    "NeuronSite",
    "PathSet",
    "PrunePlan",
    "Recipe",
    "RecipeError",
    "RunResult",
    "ScoresImportance",
    "ScoringContext",
    "UnsupportedModelError",
    "adapt",
    "collect_statistics",
    "load_model",
    "load_pruned",
    "load_recipe",
    "locate_paths",
    "make_plan",
    "prune",
    "push_to_hub",
    "run_recipe",
    "save_pruned",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'pathprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
