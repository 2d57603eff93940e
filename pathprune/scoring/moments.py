"""Moments of rows: streamed means, variances and covariances."""

# N rows, R rows of a chunk, W columns, C columns of the covariance

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_CHUNK_ROWS = 8192  # rows of one product: longer sums in float32 would lose digits


@dataclass(frozen=True)
class Moments:
    """Mean and population variance `[W]` of `num_rows` rows, and optionally covariance; float64 on the CPU.

    The covariance is `[W, W]`, or `[W, C]`: of all columns with the first C.
    """

    num_rows: int
    mean: Tensor
    variance: Tensor
    covariance: Tensor | None = None

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows together (Chan, Golub & LeVeque, 1983).

        The result has a covariance if both have one.
        """
        total = self.num_rows + other.num_rows
        share = other.num_rows / total
        step = other.mean - self.mean
        spread = (1 - share) * self.variance + share * other.variance
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            covariance = torch.lerp(self.covariance, other.covariance, share)
            covariance.addr_(step, step[: covariance.shape[1]], alpha=share * (1 - share))
        return Moments(total, self.mean + share * step, spread + share * (1 - share) * step.square(), covariance)

    @classmethod
    def from_rows(cls, rows: Tensor, *, covariance: bool | int = False, weights: Tensor | None = None) -> Moments:
        """Return the moments of `rows` `[N, W]`, each counted `weights` `[N]` times; weights sum to N.

        `covariance` asks for the covariance with all columns, or with the first so many.
        """
        # Sums are in float64 where the device has it. Products are of centred rows, in float32 unless the rows are
        # wider: their error is below the rounding of the rows themselves, and they take half the time.
        rows = rows.cpu() if rows.device.type == "mps" else rows  # MPS has no float64
        weight_N = (torch.ones(len(rows)) if weights is None else weights).to(rows.device, torch.float64)
        chunks = list(zip(torch.split(rows, _CHUNK_ROWS), torch.split(weight_N, _CHUNK_ROWS), strict=True))
        mean = torch.stack([weight_R @ chunk_RW.to(torch.float64) for chunk_RW, weight_R in chunks]).sum(0) / len(rows)
        variance = torch.zeros_like(mean)
        num_columns = len(mean) if covariance is True else int(covariance)
        products_WC = torch.zeros(len(mean), num_columns, dtype=torch.float64, device=rows.device)
        for chunk_RW, weight_R in chunks:
            centred_RW = weight_R.sqrt()[:, None] * (chunk_RW.to(torch.float64) - mean)
            variance += centred_RW.square().sum(0)
            if num_columns:
                centred_RW = centred_RW.to(torch.promote_types(rows.dtype, torch.float32))
                products_WC += centred_RW.T @ centred_RW[:, :num_columns]
        moments = cls(len(rows), mean.cpu(), (variance / len(rows)).cpu())
        return replace(moments, covariance=(products_WC / len(rows)).cpu()) if num_columns else moments
