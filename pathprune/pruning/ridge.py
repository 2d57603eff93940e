"""Ridge regression from second moments, in float64."""

# D outputs, K inputs

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

RIDGES = tuple(10 ** (half_decade / 2) for half_decade in range(-8, 3))  # 1e-4 … 10, relative to the mean variance
_DEFAULT_RIDGE = RIDGES[2]  # 1e-3, if a single fold leaves nothing to validate on


def solve_ridge(covariance_KK: Tensor, cross_DK: Tensor, *, penalty_D: Tensor) -> tuple[Tensor, bool]:
    """Solve `x_d (Σ + λ_d I) = c_d` for every output `d`: the solution `[D, K]`, and True if a system is singular.

    A singular system gets its least-norm solution, and an infinite penalty the solution zero.
    """
    # equal penalties share one Cholesky factor, different penalties an eigendecomposition
    if bool((penalty_D == penalty_D[0]).all()) and bool(penalty_D[0].isfinite()):
        factor_KK, info = torch.linalg.cholesky_ex(covariance_KK + torch.diag(penalty_D[:1].expand(len(covariance_KK))))
        if int(info) == 0 and not _is_singular(factor_KK.diagonal().square()):
            return torch.cholesky_solve(cross_DK.T, factor_KK).T, False
    values_K, vectors_KK = torch.linalg.eigh(covariance_KK)
    spread_DK = values_K.clamp(min=0) + penalty_D[:, None]
    is_solvable_DK = spread_DK > _compute_resolution(values_K)
    coefficients_DK = torch.where(is_solvable_DK, cross_DK @ vectors_KK / spread_DK, 0.0)
    return coefficients_DK @ vectors_KK.T, not bool(is_solvable_DK.all())


def cross_validate_ridge(folds: Sequence[tuple[Tensor, Tensor]], *, penalty_D: Tensor, importance_D: Tensor) -> float:
    """Return the ridge of `RIDGES` whose fits on each fold explain the other folds best; 1e-3 for a single fold.

    A fold is the covariance `[K, K]` of the inputs and the covariance `[D, K]` of the outputs with the inputs, so fits
    are judged up to the mean. The penalty of output `d` is the ridge times the inputs' mean variance times `penalty_d`,
    and the output's error is weighed by `importance_d`.
    """
    errors = torch.zeros(len(RIDGES), dtype=torch.float64)
    for (covariance_KK, cross_DK), (other_covariance_KK, other_cross_DK) in permutations(folds, 2):
        values_K, vectors_KK = torch.linalg.eigh(covariance_KK)
        if values_K[-1] <= 0:  # dead inputs explain nothing, whatever the ridge
            continue
        # to the basis of the eigenvectors, where the fit of every ridge is a division
        cross_DK, other_cross_DK = cross_DK @ vectors_KK, other_cross_DK @ vectors_KK
        other_covariance_KK = vectors_KK.T @ other_covariance_KK @ vectors_KK
        for index, ridge in enumerate(RIDGES):
            spread_DK = values_K.clamp(min=0) + ridge * values_K.mean() * penalty_D[:, None]
            fit_DK = cross_DK / spread_DK
            error_D = (fit_DK * (fit_DK @ other_covariance_KK - 2 * other_cross_DK)).sum(1)
            errors[index] += (importance_D * error_D).sum()
    if len(folds) < 2:
        return _DEFAULT_RIDGE
    return RIDGES[int(errors.argmin())]


def _is_singular(pivots_K: Tensor) -> bool:
    return bool(pivots_K.min() <= _compute_resolution(pivots_K))


def _compute_resolution(values_K: Tensor) -> float:
    """Return the size below which a value is zero beside the largest one, as in numpy's `matrix_rank`."""
    return float(values_K.max()) * len(values_K) * torch.finfo(torch.float64).eps
