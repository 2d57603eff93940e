"""Structured pruning of Vision Transformers, guided by neuron paths (arXiv 2503.09046).

Names are imported when first used, so that `pathprune --help` does not wait for torch.
"""

from typing import TYPE_CHECKING

from pathprune._version import __version__ as __version__
from pathprune.lazy import import_on_use

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
else:
    __getattr__ = import_on_use(__name__)

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


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
