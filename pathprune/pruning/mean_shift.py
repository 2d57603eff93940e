"""Mean shift: biases that take over the average contribution of the removed neurons."""

# D outputs of a down-projection

from __future__ import annotations

import torch

from pathprune.models.linear import exact_bias, exact_weight, set_bias
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import CompensationContext


@torch.no_grad()
def shift_biases(pruned: AdaptedModel, context: CompensationContext) -> None:
    """Add, in place, the mean contribution of the removed neurons to the bias of each `down` of `pruned`."""
    assert context.statistics is not None, "prune() checks the inputs of a compensation"
    for narrow, wide in zip(pruned.sites, context.dense.sites, strict=True):
        columns = context.plan.pruned(wide.name)
        if len(columns) == 0:
            continue
        shift_D = exact_weight(wide.down)[:, columns] @ context.statistics.sites[wide.name].mean[columns]
        set_bias(narrow.down, exact_bias(narrow.down) + shift_D)
