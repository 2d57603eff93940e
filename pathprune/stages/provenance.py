"""What a saved checkpoint says of where it comes from and how it did, fit to be published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathprune._version import __version__
from pathprune.keys import key_of
from pathprune.models.loading import LoadedModel
from pathprune.models.pruned_config import is_pruned_folder, read_pruned_config
from pathprune.pruning import PrunePlan
from pathprune.recipe import Recipe
from pathprune.stages.variants import Variant

_MEASURED = (
    *("num_images", "top1", "top1_ci", "top5", "nll", "retention", "retention_ci", "agreement"),
    *("num_params", "macs", "latency_ms", "latency_batch_size", "speedup"),
)


def origin(recipe: Recipe, loaded: LoadedModel) -> dict[str, str | None]:
    """Hub name and licence of the dense weights, as far as their source says; None where it does not."""
    if is_pruned_folder(loaded.source):
        config = read_pruned_config(loaded.source)
        return {"base_model": config.base_model, "license": config.license}
    if recipe.model.checkpoint is not None or not recipe.model.pretrained or loaded.source != recipe.model.name:
        return {"base_model": None, "license": None}  # weights of the user's own, under a timm name
    about = getattr(loaded.model, "pretrained_cfg", None) or {}
    return {"base_model": about.get("hf_hub_id"), "license": about.get("license")}


def made_by(recipe: Recipe, variant: Variant, plan: PrunePlan) -> dict[str, Any]:
    """How a pruned model was made: the variant, and the recipe with its hash."""
    published = published_recipe(recipe)
    return {
        "pathprune": __version__,
        "variant_id": variant.id,
        "criterion": variant.criterion.spec(),
        "compensation": variant.compensation.spec(),
        "neurons_removed": plan.neurons_removed,
        "recipe_hash": key_of(**published),
        "recipe": published,
    }


def published_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings that are not defaults, without the paths of this machine: of these, the last part stays."""
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"output"})
    for section, keys in {"model": ("name", "checkpoint"), "data": ("source",)}.items():
        for key in keys:
            value = settings.get(section, {}).get(key)
            if value is not None and Path(value).expanduser().exists():
                settings[section][key] = Path(value).name
    return settings


def measured(recipe: Recipe, row: Mapping[str, Any], *, dense: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says of how it did: its row of `metrics.jsonl`, beside that of the dense model."""
    data = published_recipe(recipe).get("data", {})
    rows = {"dense": dense, "pruned": row}
    return {
        "data": {"source": data.get("source", recipe.data.source), "split": recipe.data.splits.evaluate},
        **{name: {k: of[k] for k in _MEASURED if k in of} for name, of in rows.items() if of is not None},
    }
