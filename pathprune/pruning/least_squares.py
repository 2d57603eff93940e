"""Least squares in each block alone: the kept neurons predict the removed ones."""

# D outputs, K kept neurons, P removed neurons

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from pathprune.models.linear import exact_bias, exact_weight, set_bias, set_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import CompensationContext
from pathprune.pruning.ridge import solve_ridge

_LOGGER = logging.getLogger(__name__)


@torch.no_grad()
def refit_by_least_squares(pruned: AdaptedModel, context: CompensationContext, *, ridge: float) -> None:
    """Add, in place, the ridge regression of the removed neurons on the kept ones to each `down` of `pruned`."""
    assert context.statistics is not None, "prune() checks the inputs of a compensation"
    undetermined = []
    for narrow, wide in zip(pruned.sites, context.dense.sites, strict=True):
        kept, removed = context.plan.kept[wide.name], context.plan.pruned(wide.name)
        if len(removed) == 0:
            continue
        moments = context.statistics.sites[wide.name]
        assert moments.covariance is not None, "prune() checks the inputs of a compensation"
        removed_DP = exact_weight(wide.down)[:, removed]
        covariance_KK = moments.covariance[kept][:, kept]
        penalty = ridge * covariance_KK.diagonal().mean()
        change_DK, is_singular = solve_ridge(
            covariance_KK,
            removed_DP @ moments.covariance[removed][:, kept],
            penalty_D=penalty.expand(len(removed_DP)),
        )
        set_weight(narrow.down, exact_weight(narrow.down) + change_DK)
        shift_D = removed_DP @ moments.mean[removed] - change_DK @ moments.mean[kept]
        set_bias(narrow.down, exact_bias(narrow.down) + shift_D)
        if is_singular or moments.num_rows <= len(kept):
            undetermined.append(wide.block)
    warn_about_undetermined_fits("least-squares", undetermined)


def warn_about_undetermined_fits(compensation: str, blocks: Sequence[int]) -> None:
    """Log one warning for all blocks whose fit the calibration images do not determine."""
    if blocks:
        _LOGGER.warning(
            "compensation %r: the calibration images do not determine the fit of block %s, where kept neurons are "
            "linearly dependent or outnumber the tokens; the ridge chooses among equally good fits; calibrate on more "
            "images",
            compensation,
            ", ".join(map(str, blocks)),
        )
