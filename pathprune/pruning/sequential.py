"""Least squares on the residual stream: each block is fitted behind blocks that are narrowed and fitted already."""

# B images, T tokens, D outputs, K kept neurons of the block at hand

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.compensation import (
    Compensation,
    CompensationContext,
    register,
    set_bias,
    set_weight,
)
from pathprune.pruning.least_squares import warn_of_dependence
from pathprune.pruning.reconstruction import reconstruct
from pathprune.pruning.ridge import cross_validated_ridge, solve_ridge
from pathprune.pruning.streams import Streams
from pathprune.scoring.sensitivity import token_weights
from pathprune.scoring.statistics import Moments


@register("sequential")
class Sequential(Compensation):
    """Fits each block to give the dense model's own block output from the narrowed model's state.

    With the earlier blocks narrowed and fitted, `(dense block output − narrowed state before the MLP) / γ` is regressed
    on the block's kept hidden rows, so that each block also repairs what earlier ones broke; γ is the LayerScale, 1
    without. Every block from the first narrowed one on is fitted, also those that keep every neuron.

    - ridge: pulls towards the dense weights, relative to the mean variance of the inputs, and to `mean(γ²) / γ²` for
      each output, since an output that hardly reaches the stream would otherwise be blown up. `cross-validated`: for
      every layer the one with which a fit on one half of the images explains the other half best.
    - token_weights: count a token by how much the model's answer listens to it (see `token_weights` of the scoring); in
      the last block of a model with a class token, that is the class token alone, and the fit has that fewer rows.
    - refit_attention: before the MLP, also fit the attention's linear layers behind narrowed blocks: the projection as
      the MLP is, to give the dense model's state from the narrowed one, the others to give the dense model's outputs.
    - reconstruct: then fit both layers of each MLP to the same for so many epochs, as far as images held out gain from
      it too (see `reconstruct`); 0 leaves the kept neurons' own weights alone.
    """

    needs_batches: ClassVar[bool] = True

    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["cross-validated"] = "cross-validated"
    token_weights: bool = False
    refit_attention: bool = True
    reconstruct: int = Field(10, ge=0)

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        dense = context.dense
        first = next((row.block for row in context.plan.table() if row.kept < row.width), len(dense.sites))
        scales = {block: _residual_scale(dense, block) for block in range(first, len(dense.sites))}
        if not scales:
            return
        weights = token_weights(dense, context.batches, seed=context.seed) if self.token_weights else None
        streams = Streams(dense, pruned, block=first, batches=context.batches)
        dependent = []
        for block, scale_D in scales.items():
            if block > first:
                streams.advance()
                if self.refit_attention:
                    self._fit_attention(pruned, streams)
            site = pruned.sites[block]
            if self._fit(site.down, streams.down_moments(weights), scale_D):
                dependent.append(block)
            reconstruct(site, *streams.mlp_rows(), scale_D=scale_D, epochs=self.reconstruct, seed=context.seed)
        warn_of_dependence(self, dependent)

    def _fit_attention(self, pruned: AdaptedModel, streams: Streams) -> None:
        for name in streams.attention_layers():
            layer, scale = pruned.model.get_submodule(name), streams.scale_into_stream(name)
            assert isinstance(layer, nn.Linear)
            halves = streams.layer_moments(name, into_stream=scale is not None)
            self._fit(layer, halves, torch.ones(layer.out_features).double() if scale is None else scale)

    def _fit(self, layer: nn.Linear, halves: Sequence[Moments], scale_D: Tensor) -> bool:
        """Refit a linear layer, in place, to moments of its inputs and of its outputs times `scale`.

        Says whether the rows leave the fit open.
        """
        width, start_DK = layer.in_features, exact_weight(layer)
        is_silent_D = scale_D == 0  # outputs that never reach the stream stay as they are
        divisor_D = scale_D.masked_fill(is_silent_D, 1.0)
        penalty_D = scale_D.square().mean() / divisor_D.square()

        def problem(moments: Moments) -> tuple[Tensor, Tensor]:
            """Moments of the inputs, and of them with what the weights so far leave unexplained of the outputs."""
            assert moments.covariance is not None
            covariance_KK = moments.covariance[:width]
            return covariance_KK, moments.covariance[width:] / divisor_D[:, None] - start_DK @ covariance_KK

        ridge = self.ridge
        if ridge == "cross-validated":
            ridge = cross_validated_ridge(
                [problem(half) for half in halves], penalty_D=penalty_D, importance_D=scale_D.square()
            )
        moments = reduce(Moments.merge, halves)
        covariance_KK, unexplained_DK = problem(moments)
        penalty_D = (ridge * covariance_KK.diagonal().mean() * penalty_D).masked_fill(is_silent_D, torch.inf)
        change_DK, singular = solve_ridge(covariance_KK, unexplained_DK, penalty_D=penalty_D)
        weight_DK = start_DK + change_DK
        bias_D = moments.mean[width:] / divisor_D - weight_DK @ moments.mean[:width]
        old_bias_D = exact_bias(layer)
        set_weight(layer, weight_DK)
        set_bias(layer, torch.where(is_silent_D, old_bias_D, bias_D))
        return singular or moments.num_rows <= width


def _residual_scale(dense: AdaptedModel, block: int) -> Tensor:
    scale_D = dense.residual_scale(block)
    if scale_D is None:
        raise ValueError(
            f"compensation 'sequential' needs pre-norm blocks, which add their scaled MLP output to the stream; block "
            f"{block} of this {dense.family} is of another form: choose least-squares"
        )
    return scale_D.cpu().to(torch.float64)
