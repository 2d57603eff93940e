"""Ridge regression from second moments: pure maths, in float64."""

# D outputs, K inputs

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

RIDGES = tuple(10 ** (half_decade / 2) for half_decade in range(-8, 3))  # 1e-4 … 10, relative to the mean variance


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


def cross_validated_ridge(folds: Sequence[tuple[Tensor, Tensor]], *, penalty_D: Tensor, importance_D: Tensor) -> float:
    """The ridge of `RIDGES` with which fits on each fold explain the other folds best; of a single fold, a small one.

    A fold is the covariance `[K, K]` of the inputs and that of the outputs with the inputs, `[D, K]`, over its own
    rows: what is explained is judged up to the mean. Ridges are relative to the inputs' mean variance and, for output
    `d`, to `penalty_d`; its error counts `importance_d` times.
    """
    errors = torch.zeros(len(RIDGES), dtype=torch.float64)
    for (covariance_KK, cross_DK), (other_covariance_KK, other_cross_DK) in permutations(folds, 2):
        values_K, vectors_KK = torch.linalg.eigh(covariance_KK)
        if values_K[-1] <= 0:  # dead inputs explain nothing, whatever the ridge
            continue
        # in the basis of the eigenvectors
        cross_DK, other_cross_DK = cross_DK @ vectors_KK, other_cross_DK @ vectors_KK
        other_covariance_KK = vectors_KK.T @ other_covariance_KK @ vectors_KK
        for index, ridge in enumerate(RIDGES):
            spread_DK = values_K.clamp(min=0) + ridge * values_K.mean() * penalty_D[:, None]
            fit_DK = cross_DK / spread_DK
            error_D = (fit_DK * (fit_DK @ other_covariance_KK - 2 * other_cross_DK)).sum(1)
            errors[index] += (importance_D * error_D).sum()
    if len(folds) < 2:
        return RIDGES[2]
    return RIDGES[int(errors.argmin())]


def _is_singular(pivots_K: Tensor) -> bool:
    return bool(pivots_K.min() <= _resolution(pivots_K))


def _resolution(values_K: Tensor) -> float:
    """What is zero beside the largest of these values, as numpy's `matrix_rank` has it."""
    return float(values_K.max()) * len(values_K) * torch.finfo(torch.float64).eps
