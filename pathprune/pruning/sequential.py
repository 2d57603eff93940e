"""Least squares on the residual stream: each block is fitted behind blocks that are narrowed and fitted already.

Two states per calibration image, the dense model's and the narrowed model's, are carried from block to block in the
model's own precision on the CPU. So every block runs once densely and twice narrowed, and memory is `2 N T D` numbers
whatever the depth and the widths: 50 MB for 1,000 images of a ViT-S at 56 px, 1.2 GB for a ViT-B at 224 px.
"""

# N images, B of them in a batch, T tokens, D width of the residual stream, K kept neurons of the block at hand

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pathprune.models.adapt import evaluating
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import (
    Batches,
    Compensation,
    CompensationContext,
    exact_bias,
    exact_weight,
    register,
    set_bias,
    set_weight,
)
from pathprune.pruning.least_squares import warn_of_dependence
from pathprune.pruning.ridge import solve_ridge
from pathprune.scoring.statistics import Moments


@register("sequential")
class Sequential(Compensation):
    """Fits each block to give the dense model's own block output from the narrowed model's state.

    With the earlier blocks narrowed and fitted, `(dense block output − narrowed state before the MLP) / γ` is regressed
    on the block's kept hidden rows, so that each block also repairs what earlier ones broke; γ is the LayerScale, 1
    without. Every block from the first narrowed one on is fitted, also those that keep every neuron. `ridge` pulls
    towards the dense weights: it is relative to the mean variance of the hidden rows, and to `mean(γ²) / γ²` for each
    output, since an output that hardly reaches the stream would otherwise be blown up.
    """

    needs_batches: ClassVar[bool] = True

    ridge: float = Field(1e-3, ge=0, allow_inf_nan=False)

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        dense = context.dense
        first = next((row.block for row in context.plan.table() if row.kept < row.width), len(dense.sites))
        scales = {block: _residual_scale(dense, block) for block in range(first, len(dense.sites))}
        if not scales:
            return
        dependent = []
        states = _states_at(first, dense, context.batches)
        for block, scale_D in scales.items():
            moments = _moments(states, dense, pruned, block)
            if self._fit(pruned, block, moments, scale_D):
                dependent.append(block)
            if block + 1 < len(dense.sites):
                _advance(states, pruned, block)
        warn_of_dependence(self, dependent)

    def _fit(self, pruned: AdaptedModel, block: int, moments: Moments, scale_D: Tensor) -> bool:
        """Refit a block of `pruned`, in place; says whether the rows leave the fit open."""
        down, width = pruned.sites[block].down, pruned.sites[block].width
        assert moments.covariance is not None
        covariance_KK = moments.covariance[:width, :width]
        is_silent_D = scale_D == 0  # outputs that never reach the stream stay as they are
        divisor_D = scale_D.masked_fill(is_silent_D, 1.0)
        penalty_D = self.ridge * covariance_KK.diagonal().mean() * scale_D.square().mean() / divisor_D.square()
        penalty_D = penalty_D.masked_fill(is_silent_D, torch.inf)
        dense_DK = exact_weight(down)
        unexplained_DK = moments.covariance[width:, :width] / divisor_D[:, None] - dense_DK @ covariance_KK
        change_DK, singular = solve_ridge(covariance_KK, unexplained_DK, penalty_D=penalty_D)
        weight_DK = dense_DK + change_DK
        bias_D = moments.mean[width:] / divisor_D - weight_DK @ moments.mean[:width]
        set_weight(down, weight_DK)
        set_bias(down, torch.where(is_silent_D, exact_bias(down), bias_D))
        return singular or moments.num_rows <= width


@dataclass
class _States:
    """What enters a block, `[B, T, D]` on the CPU, for one batch of images."""

    dense: Tensor
    narrowed: Tensor


def _states_at(block: int, dense: AdaptedModel, batches: Batches) -> list[_States]:
    """The states that enter `block`, up to which the dense and the narrowed model are the same."""
    parameter = next(dense.model.parameters())
    states = []
    with evaluating(dense.model):
        for images, _ in batches:
            h_BTD = dense.stem(images.to(parameter))
            for index in range(block):
                h_BTD = dense.close_block(index, *dense.open_block(index, h_BTD))
            states.append(_States(h_BTD.cpu(), h_BTD.cpu()))
    if not states:
        raise ValueError("compensation 'sequential' needs at least one image; there are no calibration batches")
    return states


def _moments(states: list[_States], dense: AdaptedModel, pruned: AdaptedModel, block: int) -> Moments:
    """Moments of the rows `[K + D]`: kept hidden rows, and what `down` should add to the stream.

    Moves the dense states, in place, to the block's output.
    """
    device = next(dense.model.parameters()).device
    moments = None
    for state in states:
        with evaluating(dense.model), evaluating(pruned.model):
            h_BTD = dense.close_block(block, *dense.open_block(block, state.dense.to(device)))
            m_BTD, u_BTK = pruned.open_block(block, state.narrowed.to(device))
        rows = torch.cat([u_BTK, h_BTD - m_BTD], dim=-1).flatten(0, -2)
        found = Moments.of(rows, covariance=True)
        if not found.mean.isfinite().all():
            raise ValueError(
                f"block {block}: activations are NaN or infinite while fitting; check the images' normalisation, or "
                "run the model in float32"
            )
        moments = found if moments is None else moments.merge(found)
        state.dense = h_BTD.cpu()
    assert moments is not None
    return moments


def _advance(states: list[_States], pruned: AdaptedModel, block: int) -> None:
    """Move the narrowed states, in place, to the block's output."""
    device = next(pruned.model.parameters()).device
    with evaluating(pruned.model):
        for state in states:
            state.narrowed = pruned.close_block(block, *pruned.open_block(block, state.narrowed.to(device))).cpu()


def _residual_scale(dense: AdaptedModel, block: int) -> Tensor:
    scale_D = dense.residual_scale(block)
    if scale_D is None:
        raise ValueError(
            f"compensation 'sequential' needs pre-norm blocks, which add their scaled MLP output to the stream; block "
            f"{block} of this {dense.family} is of another form: choose least-squares"
        )
    return scale_D.cpu().to(torch.float64)
