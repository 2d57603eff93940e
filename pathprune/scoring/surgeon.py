"""The optimal brain surgeon's order: which neuron goes next, once the kept ones have made up for those that went."""

# D outputs, W neurons of a site

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
    """Greedy removal of whole neurons with updates, as in DVBP + OB²C (arXiv 2608.17657), after OBS (Hassibi 1993).

    The neuron of least `‖W2[:, j]‖² / [Σ⁻¹]_jj` goes, the others take over what they can of it, and so on. Its score is
    the error that its going adds to the MLP's output, at least that of the neuron before it. The updates of all that
    went add up to the ridge fit of the compensation `least-squares` (with its mean shift), which completes the method.

    - ridge: added to Σ's diagonal, relative to its mean, as in `least-squares`.

    Takes O(W³) a site, on the CPU: seconds for each of a ViT-S.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(1e-3, gt=0, allow_inf_nan=False)

    def __call__(self, context: ScoringContext) -> Scores:
        weights = {site.name: exact_weight(site.down) for site in context.adapted.sites}
        return surgeon_scores(context, weights=weights, ridge=self.ridge)


def surgeon_scores(context: ScoringContext, *, weights: Mapping[str, Tensor], ridge: float) -> Scores:
    """The error that each neuron's going adds to `weights @ u`, by site, at least that of the one before it."""
    assert context.statistics is not None, "score() checks what a criterion needs"
    scores = {}
    for site in context.adapted.sites:
        covariance_WW = context.statistics.sites[site.name].covariance
        assert covariance_WW is not None, "score() checks what a criterion needs"
        penalty = ridge * float(covariance_WW.diagonal().mean())
        if penalty > 0:
            order_W, error_W = removal_order(weights[site.name], covariance_WW, penalty=penalty)
            scores[site.name] = torch.empty_like(error_W).scatter(0, order_W, _rising(error_W))
        else:  # no neuron ever changes, so any may go
            scores[site.name] = torch.zeros(site.width, dtype=torch.float64)
    return scores


def removal_order(weight_DW: Tensor, covariance_WW: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """The columns `[W]` in the order in which they go, and the squared error `[W]` that each adds when it does.

    Of equal ones the first goes first. The error is that of `W2 u` over rows `u` of this covariance, in the mean, plus
    `penalty` times the squared change of the weights. float64; the arguments are not changed.
    """
    weight_DA = weight_DW.clone()  # of the A neurons that are still there, updated
    inverse_AA = torch.linalg.inv(covariance_WW + penalty * torch.eye(len(covariance_WW), dtype=torch.float64))
    columns_A = torch.arange(len(covariance_WW))
    norms_A = weight_DA.square().sum(0)
    gone_A = torch.zeros(len(columns_A), dtype=torch.bool)
    order, errors = [], []
    for _ in range(len(covariance_WW)):
        error_A = (norms_A / inverse_AA.diagonal()).masked_fill(gone_A, math.inf)
        index = int(error_A.argmin())
        order.append(int(columns_A[index]))
        errors.append(float(error_A[index]))
        gone_A[index] = True
        step_A = inverse_AA[index] / inverse_AA[index, index]
        weight_DA.addr_(weight_DA[:, index].clone(), step_A, alpha=-1)
        inverse_AA.addr_(inverse_AA[:, index].clone(), step_A, alpha=-1)
        inverse_AA.diagonal()[gone_A] = 1.0  # what is left there is rounding
        norms_A = weight_DA.square().sum(0)
        if 2 * int(gone_A.sum()) >= len(gone_A):  # go on with the others only: updates cost A²
            left = ~gone_A
            columns_A, weight_DA, inverse_AA = columns_A[left], weight_DA[:, left], inverse_AA[left][:, left]
            norms_A, gone_A = norms_A[left], gone_A[left]
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


def _rising(values_W: Tensor) -> Tensor:
    """The least strictly rising sequence that is nowhere below `values_W`."""
    risen: list[float] = []
    for value in values_W.tolist():
        risen.append(max(value, math.nextafter(risen[-1], math.inf)) if risen else value)
    return torch.tensor(risen, dtype=torch.float64)
