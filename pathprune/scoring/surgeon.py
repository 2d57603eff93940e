"""The optimal brain surgeon's order of removal, in which kept neurons make up for each removed one."""

# D outputs of a down-projection, W neurons of a site, A neurons not dropped from the computation yet

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pathprune.models.linear import exact_weight
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.scores import Scores


@register("obs")
class BrainSurgeon(Criterion):
    """Optimal brain surgeon: greedy removal of neurons, with an update of the other weights after each.

    The neuron of least `‖W2[:, j]‖² / [Σ⁻¹]_jj` is removed, the other neurons take over as much of its contribution as
    they can, and so on. The score of a neuron is the error that its removal adds to the MLP's output, raised where
    needed so that scores follow the order of removal. Follows DVBP + OB²C (arXiv 2608.17657), after OBS (Hassibi 1993).
    All updates together are the weight change of the compensation `least-squares`, which completes the method.

    Takes O(W³) per site on the CPU: seconds per site of a ViT-S.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(
        1e-3,
        gt=0,
        allow_inf_nan=False,
        description="Ridge added to the diagonal of the covariance Σ, relative to the mean of the diagonal.",
    )

    def __call__(self, context: ScoringContext) -> Scores:
        weights = {site.name: exact_weight(site.down) for site in context.adapted.sites}
        return score_by_removal(context, weights=weights, ridge=self.ridge)


def score_by_removal(context: ScoringContext, *, weights: Mapping[str, Tensor], ridge: float) -> Scores:
    """Return the error that each neuron's removal adds to `weights[site] @ u`, rising in the order of removal."""
    assert context.statistics is not None, "score() checks the inputs of a criterion"
    scores = {}
    for site in context.adapted.sites:
        covariance_WW = context.statistics.sites[site.name].covariance
        assert covariance_WW is not None, "score() checks the inputs of a criterion"
        penalty = ridge * float(covariance_WW.diagonal().mean())
        if penalty > 0:
            order_W, error_W = find_removal_order(weights[site.name], covariance_WW, penalty=penalty)
            scores[site.name] = torch.empty_like(error_W).scatter(0, order_W, _make_rising(error_W))
        else:  # constant neurons can be removed in any order
            scores[site.name] = torch.zeros(site.width, dtype=torch.float64)
    return scores


def find_removal_order(weight_DW: Tensor, covariance_WW: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the columns `[W]` in the order of greedy removal, and the squared error `[W]` that each removal adds.

    Among equal errors the first column is removed first. The error is the mean of `‖ΔW2 u‖²` over rows `u` of this
    covariance, plus `penalty` times the squared change of the weights. In float64; the arguments do not change.
    """
    weight_DA = weight_DW.clone()  # with all updates so far
    inverse_AA = torch.linalg.inv(covariance_WW + penalty * torch.eye(len(covariance_WW), dtype=torch.float64))
    columns_A = torch.arange(len(covariance_WW))
    norms_A = weight_DA.square().sum(0)
    is_removed_A = torch.zeros(len(columns_A), dtype=torch.bool)
    order, errors = [], []
    for _ in range(len(covariance_WW)):
        error_A = (norms_A / inverse_AA.diagonal()).masked_fill(is_removed_A, math.inf)
        index = int(error_A.argmin())
        order.append(int(columns_A[index]))
        errors.append(float(error_A[index]))
        is_removed_A[index] = True
        step_A = inverse_AA[index] / inverse_AA[index, index]
        weight_DA.addr_(weight_DA[:, index].clone(), step_A, alpha=-1)
        inverse_AA.addr_(inverse_AA[:, index].clone(), step_A, alpha=-1)
        inverse_AA.diagonal()[is_removed_A] = 1.0  # exactly zero but for rounding, and a divisor above
        norms_A = weight_DA.square().sum(0)
        if 2 * int(is_removed_A.sum()) >= len(is_removed_A):  # an update costs A², so drop the removed half
            is_left_A = ~is_removed_A
            columns_A, weight_DA = columns_A[is_left_A], weight_DA[:, is_left_A]
            inverse_AA = inverse_AA[is_left_A][:, is_left_A]
            norms_A, is_removed_A = norms_A[is_left_A], is_removed_A[is_left_A]
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


def _make_rising(values_W: Tensor) -> Tensor:
    """Return the least strictly rising sequence that is nowhere below `values_W`."""
    rising: list[float] = []
    for value in values_W.tolist():
        rising.append(max(value, math.nextafter(rising[-1], math.inf)) if rising else value)
    return torch.tensor(rising, dtype=torch.float64)
