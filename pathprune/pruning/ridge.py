"""Ridge regression from second moments: pure maths, in float64."""

# D outputs, K inputs

from __future__ import annotations

import torch
from torch import Tensor


def solve_ridge(covariance_KK: Tensor, cross_DK: Tensor, *, penalty_D: Tensor) -> tuple[Tensor, bool]:
    """Solve `x_d (Σ + λ_d I) = c_d` for every output `d`: `[D, K]`, and whether any `Σ + λ_d I` is singular in float64.

    One Cholesky factor serves penalties that are all equal; different ones share an eigendecomposition. Where the
    matrix is singular, the answer is the one of least norm; with a penalty of infinity it is zero.
    """
    if bool((penalty_D == penalty_D[0]).all()) and bool(penalty_D[0].isfinite()):
        factor_KK, info = torch.linalg.cholesky_ex(covariance_KK + torch.diag(penalty_D[:1].expand(len(covariance_KK))))
        if int(info) == 0 and not _is_singular(factor_KK.diagonal().square()):
            return torch.cholesky_solve(cross_DK.T, factor_KK).T, False
    values_K, vectors_KK = torch.linalg.eigh(covariance_KK)
    spread_DK = values_K.clamp(min=0) + penalty_D[:, None]
    solvable_DK = spread_DK > _resolution(values_K)
    coefficients_DK = torch.where(solvable_DK, cross_DK @ vectors_KK / spread_DK, 0.0)
    return coefficients_DK @ vectors_KK.T, not bool(solvable_DK.all())


def _is_singular(pivots_K: Tensor) -> bool:
    return bool(pivots_K.min() <= _resolution(pivots_K))


def _resolution(values_K: Tensor) -> float:
    """What is zero beside the largest of these values, as numpy's `matrix_rank` has it."""
    return float(values_K.max()) * len(values_K) * torch.finfo(torch.float64).eps
