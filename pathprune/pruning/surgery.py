"""Narrow a model by a plan, through torch-pruning's dependency graph."""

from __future__ import annotations

from torch import Tensor, nn

from pathprune.models.graph import trace_sites
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan


def apply_plan(adapted: AdaptedModel, *, plan: PrunePlan, example_images: Tensor | None = None) -> AdaptedModel:
    """A deep copy of the model without the neurons that the plan removes; nothing else of it differs.

    `example_images` `[B, C, H, W]` trace the dependency graph, by default one blank image of the model's own size.
    Raises ValueError if the plan is for other widths, or if a neuron cannot be removed on its own.
    """
    plan.check(adapted.sites)
    traced = trace_sites(adapted, example_images=example_images)
    for site in traced.adapted.sites:
        columns = plan.pruned(site.name).tolist()
        if columns:
            traced.group(site, columns).prune()
    _restore_flags(traced.adapted.model, like=adapted.model)
    return traced.adapted.refresh()


def _restore_flags(model: nn.Module, *, like: nn.Module) -> None:
    """Give `model`, in place, the modes and the gradient flags of the model it was copied from."""
    for module, original in zip(model.modules(), like.modules(), strict=True):
        module.training = original.training
    originals = dict(like.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(originals[name].requires_grad)
