"""Origin, provenance and metrics that a saved checkpoint states, fit to be published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathprune._version import __version__
from pathprune.keys import key_of
from pathprune.models.loading import LoadedModel
from pathprune.models.pruned_config import is_pruned_folder, read_pruned_config
from pathprune.pruning import PrunePlan
from pathprune.recipe import Recipe
from pathprune.report.rows import VariantRow
from pathprune.stages.variants import Variant

_PUBLISHED_METRICS = (
    *("num_images", "top1", "top1_ci", "top5", "nll", "retention", "retention_ci", "agreement"),
    *("num_params", "macs", "latency_ms", "latency_batch_size", "speedup"),
)


@dataclass(frozen=True)
class Origin:
    """Hub name and licence of the dense weights; None where their source does not state them."""

    base_model: str | None
    license: str | None


def find_origin(recipe: Recipe, loaded: LoadedModel) -> Origin:
    """Return the origin of the recipe's dense weights."""
    if is_pruned_folder(loaded.source):
        config = read_pruned_config(loaded.source)
        return Origin(config.base_model, config.license)
    if recipe.model.checkpoint is not None or not recipe.model.pretrained or loaded.source != recipe.model.name:
        return Origin(None, None)  # the user's own weights, under a timm name
    timm_config = getattr(loaded.model, "pretrained_cfg", None) or {}
    return Origin(timm_config.get("hf_hub_id"), timm_config.get("license"))


def describe_variant(recipe: Recipe, variant: Variant, plan: PrunePlan) -> dict[str, Any]:
    """Return the provenance of a pruned model: the variant, and the recipe with its hash."""
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
    """Return the recipe's non-default settings; paths of this machine are cut to their last part."""
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"output"})
    for section, keys in {"model": ("name", "checkpoint"), "data": ("source",)}.items():
        for key in keys:
            value = settings.get(section, {}).get(key)
            if value is not None and Path(value).expanduser().exists():
                settings[section][key] = Path(value).name
    return settings


def published_metrics(recipe: Recipe, row: VariantRow, *, dense: VariantRow | None) -> dict[str, Any]:
    """Return the metrics that a checkpoint states: its own row, beside the dense model's."""
    data = published_recipe(recipe).get("data", {})
    metrics: dict[str, Any] = {
        "data": {"source": data.get("source", recipe.data.source), "split": recipe.data.splits.evaluate}
    }
    for name, each in {"dense": dense, "pruned": row}.items():
        if each is not None:
            content = each.to_json()
            metrics[name] = {key: content[key] for key in _PUBLISHED_METRICS}
    return metrics
