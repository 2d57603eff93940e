"""Least squares in each block alone: the kept neurons predict the removed ones."""

# D outputs, K kept neurons, P removed neurons

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
    """Ridge regression of the removed neurons on the kept ones, in each block alone.

    With kept neurons K, removed neurons P, and means μ and covariances Σ of their activations:
    `R = Σ_PK (Σ_KK + λI)⁻¹`, `W2[:, K] += W2[:, P] R`, `b2 += W2[:, P] (μ_P − R μ_K)`, as in CORP (arXiv 2602.05243).
    All activations are the dense model's, so errors of earlier blocks stay; `sequential` corrects them.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(
        1e-3,
        ge=0,
        allow_inf_nan=False,
        description="Ridge λ, relative to the mean variance of the kept neurons. A larger ridge brings the result "
        "closer to the mean shift.",
    )

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
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
            penalty = self.ridge * covariance_KK.diagonal().mean()
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
        warn_about_undetermined_fits(self, undetermined)


def warn_about_undetermined_fits(compensation: Compensation, blocks: Sequence[int]) -> None:
    """Log one warning for all blocks whose fit the calibration images do not determine."""
    if blocks:
        _LOGGER.warning(
            "compensation %r: the calibration images do not determine the fit of block %s, where kept neurons are "
            "linearly dependent or outnumber the tokens; the ridge chooses among equally good fits; calibrate on more "
            "images",
            compensation.name,
            ", ".join(map(str, blocks)),
        )
