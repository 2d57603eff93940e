"""The optimal brain surgeon's order of removal, in which kept neurons make up for each removed one."""

# D outputs of a down-projection, W neurons of a site, A neurons not dropped from the computation yet

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pathprune.scoring.criteria import ScoringContext
from pathprune.scoring.scores import Scores


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


def find_removal_order(
    weight_DW: Tensor, covariance_WW: Tensor, *, penalty: float, delay: int = 128
) -> tuple[Tensor, Tensor]:
    """Return the columns `[W]` in the order of greedy removal, and the squared error `[W]` that each removal adds.

    Among equal errors the first column is removed first. The error is the mean of `‖ΔW2 u‖²` over rows `u` of this
    covariance, plus `penalty` times the squared change of the weights. In float64 on the device of the arguments, which
    do not change; the results are on the CPU.

    The updates of `delay` removals are applied as one matrix product. In between, each removal computes only the column
    that it removes and the errors. The result does not depend on `delay`, up to rounding.
    """
    width = len(covariance_WW)
    identity_WW = torch.eye(width, dtype=torch.float64, device=covariance_WW.device)
    inverse_WW = torch.linalg.inv(covariance_WW + penalty * identity_WW)
    # exactly symmetric: the updates would amplify the rounding of the inverse
    columns = _Columns(weight_DW.T.clone(memory_format=torch.contiguous_format), (inverse_WW + inverse_WW.T) / 2)
    removals = [columns.remove(min(delay, width - done)) for done in range(0, width, delay)]
    order, errors = (torch.cat(parts).cpu() for parts in zip(*removals, strict=True))
    return order, errors


class _Columns:
    """Weights and inverse covariance of the columns that are not dropped from the computation yet."""

    def __init__(self, weight_WD: Tensor, inverse_WW: Tensor) -> None:
        """Take over both tensors, which change; `inverse_WW` is symmetric."""
        self._weight_AD, self._inverse_AA = weight_WD, inverse_WW
        self._column_A = torch.arange(len(weight_WD), device=weight_WD.device)
        self._is_removed_A = torch.zeros_like(self._column_A, dtype=torch.bool)

    def remove(self, count: int) -> tuple[Tensor, Tensor]:
        """Remove `count` columns in place, one after another; return them and the error of each removal, `[count]`.

        Removal `r` changes the inverse by `-column_r step_rᵀ` and the weights by `-step_r weight_rᵀ`. Both are applied
        at the end: until then, entries that a removal reads are corrected by the `P` previous removals. No value is
        copied to the CPU, so a GPU never waits.
        """
        num_columns, size = self._weight_AD.shape
        column_AR, step_AR = (self._weight_AD.new_empty(num_columns, count) for _ in range(2))
        weight_DR = self._weight_AD.new_empty(size, count)
        norm_A = self._weight_AD.square().sum(1).masked_fill(self._is_removed_A, math.inf)
        diagonal_A = self._inverse_AA.diagonal().masked_fill(self._is_removed_A, 1.0)
        order, errors = [], []
        for done in range(count):
            column_AP, step_AP, weight_DP = column_AR[:, :done], step_AR[:, :done], weight_DR[:, :done]
            error_A = norm_A / diagonal_A
            index_1 = error_A.argmin(keepdim=True)
            order.append(self._column_A[index_1])
            errors.append(error_A[index_1])
            step_P = step_AP[index_1].squeeze(0)
            column_A = torch.addmv(self._inverse_AA[index_1].squeeze(0), column_AP, step_P, alpha=-1)
            weight_D = torch.addmv(self._weight_AD[index_1].squeeze(0), weight_DP, step_P, alpha=-1)
            step_A = column_A / column_A[index_1]
            product_A = torch.addmv(self._weight_AD @ weight_D, step_AP, weight_D @ weight_DP, alpha=-1)
            norm_A.addcmul_(step_A, step_A * weight_D.dot(weight_D) - 2 * product_A).clamp_(min=0)  # rounding
            diagonal_A.addcmul_(column_A, step_A, value=-1)
            norm_A[index_1], diagonal_A[index_1], self._is_removed_A[index_1] = math.inf, 1.0, True
            column_AR[:, done], step_AR[:, done], weight_DR[:, done] = column_A, step_A, weight_D
        self._inverse_AA.addmm_(column_AR, step_AR.T, alpha=-1)
        self._weight_AD.addmm_(step_AR, weight_DR.T, alpha=-1)
        self._drop_removed()
        return torch.cat(order), torch.cat(errors)

    def _drop_removed(self) -> None:
        """Drop the removed columns if they are an eighth: updates cost `A²`, but so does dropping."""
        left = (~self._is_removed_A).nonzero().squeeze(1)
        if 8 * (len(self._column_A) - len(left)) >= len(self._column_A):
            self._column_A, self._is_removed_A = self._column_A[left], self._is_removed_A[left]
            self._weight_AD, self._inverse_AA = self._weight_AD[left], self._inverse_AA[left[:, None], left]


def _make_rising(values_W: Tensor) -> Tensor:
    """Return the least strictly rising sequence that is nowhere below `values_W`."""
    rising: list[float] = []
    for value in values_W.tolist():
        rising.append(max(value, math.nextafter(rising[-1], math.inf)) if rising else value)
    return torch.tensor(rising, dtype=torch.float64)
