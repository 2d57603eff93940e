"""Least squares, block by block on its own: kept neurons stand in for the removed ones."""

# D outputs, K kept neurons, P pruned ones

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import (
    Compensation,
    CompensationContext,
    register,
    set_bias,
    set_weight,
)
from pathprune.pruning.ridge import solve_ridge

_LOGGER = logging.getLogger(__name__)


@register("least-squares")
class LeastSquares(Compensation):
    """Predicts the removed neurons P linearly from the kept ones K, and folds the prediction into the weights.

    `R = Σ_PK (Σ_KK + λI)⁻¹`, `W2[:, K] += W2[:, P] R`, `b2 += W2[:, P] (μ_P − R μ_K)`, as in CORP (arXiv 2602.05243).
    `ridge` is λ relative to the mean of Σ_KK's diagonal; as it grows, what is left is the mean shift.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(1e-3, ge=0, allow_inf_nan=False)

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        assert context.statistics is not None, "prune() checks what a compensation needs"
        dependent = []
        for narrow, wide in zip(pruned.sites, context.dense.sites, strict=True):
            kept, removed = context.plan.kept[wide.name], context.plan.pruned(wide.name)
            if len(removed) == 0:
                continue
            moments = context.statistics.sites[wide.name]
            assert moments.covariance is not None, "prune() checks what a compensation needs"
            removed_DP = exact_weight(wide.down)[:, removed]
            covariance_KK = moments.covariance[kept][:, kept]
            penalty = self.ridge * covariance_KK.diagonal().mean()
            change_DK, singular = solve_ridge(
                covariance_KK,
                removed_DP @ moments.covariance[removed][:, kept],
                penalty_D=penalty.expand(len(removed_DP)),
            )
            set_weight(narrow.down, exact_weight(narrow.down) + change_DK)
            shift_D = removed_DP @ moments.mean[removed] - change_DK @ moments.mean[kept]
            set_bias(narrow.down, exact_bias(narrow.down) + shift_D)
            if singular or moments.num_rows <= len(kept):
                dependent.append(wide.block)
        warn_of_dependence(self, dependent)


def warn_of_dependence(compensation: Compensation, blocks: Sequence[int]) -> None:
    """Log, once for all of them, the blocks whose calibration rows do not determine the fit."""
    if blocks:
        _LOGGER.warning(
            "compensation %r: the kept neurons of block %s are linearly dependent on these calibration images, or more "
            "than their rows; the ridge decides between equally good fits: calibrate on more images",
            *(compensation.name, ", ".join(map(str, blocks))),
        )
