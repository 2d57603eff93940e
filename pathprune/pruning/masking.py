"""Neurons and heads masked with zeros instead of removed: the reference for a pruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan


@contextmanager
def mask_neurons(adapted: AdaptedModel, *, plan: PrunePlan) -> Iterator[None]:
    """Set the activations of the plan's removed neurons and heads to zero inside the context.

    Raises ValueError if the plan is for other widths, or removes channels of heads, which no mask can do.
    """
    plan.check(adapted.sites, adapted.attention_sites)
    if plan.removes_channels:
        raise ValueError("the plan removes channels of heads, which are no columns to mask; prune the model instead")
    columns = {site.down: plan.pruned(site.name) for site in adapted.sites}
    for site in adapted.attention_sites:
        if site.name in plan.attention:
            removed = set(range(site.sizes.num_heads)).difference(plan.attention[site.name].heads.tolist())
            columns[site.down] = torch.tensor([column for head in sorted(removed) for column in site.groups[head]])
    with attach_hooks(layer.register_forward_pre_hook(_zero(each)) for layer, each in columns.items() if len(each)):
        yield


def _zero(columns: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a hook that sets columns of a layer's input to zero."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return (hidden.index_fill(-1, columns.to(hidden.device), 0), *rest)

    return hook
