"""Least squares on the residual stream: each block is fitted behind blocks that are already pruned and fitted."""

# D outputs and K inputs of a linear layer

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from pathprune.models.linear import exact_bias, exact_weight, set_bias, set_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.attention import NarrowedHeads, map_rows
from pathprune.pruning.compensation import CompensationContext
from pathprune.pruning.least_squares import warn_about_undetermined_fits
from pathprune.pruning.reconstruction import reconstruct
from pathprune.pruning.ridge import cross_validate_ridge, solve_ridge
from pathprune.pruning.streams import Streams
from pathprune.scoring.moments import Moments
from pathprune.scoring.sensitivity import compute_token_weights

Ridge = float | Literal["cross-validated"]


@torch.no_grad()
def refit_sequentially(
    pruned: AdaptedModel,
    context: CompensationContext,
    *,
    ridge: Ridge,
    token_weights: bool,
    refit_attention: bool,
    epochs: int,
) -> None:
    """Refit, in place, the layers of `pruned` block after block; `epochs` are of the reconstruction.

    The compensation `Sequential` documents the method and its settings.
    """
    dense = context.dense
    first = context.plan.first_block
    if first is None:
        return
    scales = {block: _get_residual_scale(dense, block) for block in range(first, len(dense.sites))}
    narrowings = _map_narrow_layers(dense, context.narrowed)
    narrowed_blocks = {site.block for site in dense.attention_sites if site.name in context.narrowed}
    weights = compute_token_weights(dense, context.batches, seed=context.seed) if token_weights else None
    streams = Streams(dense, pruned, block=first, batches=context.batches)
    undetermined = []
    for block, scale_D in scales.items():
        if block > first:
            streams.advance()
        if refit_attention and (block > first or block in narrowed_blocks):
            _fit_attention(pruned, streams, narrowings, ridge=ridge)
        site = pruned.sites[block]
        if _fit(site.down, streams.collect_down_moments(weights), scale_D, ridge=ridge):
            undetermined.append(block)
        inputs, targets = streams.collect_mlp_states()
        reconstruct(site, inputs, targets, scale_D=scale_D, epochs=epochs, seed=context.seed)
    warn_about_undetermined_fits("sequential", undetermined)


def _fit_attention(pruned: AdaptedModel, streams: Streams, narrowings: Mapping[str, Tensor], *, ridge: Ridge) -> None:
    """Refit, in place, the linear layers that run before the hidden activations of the streams' block.

    Narrow layers are fitted to the dense outputs in the bases of the channels that stay.
    """
    for name in streams.list_attention_layers():
        layer, scale_D = pruned.model.get_submodule(name), streams.measure_stream_scale(name)
        assert isinstance(layer, nn.Linear)
        halves = streams.collect_layer_moments(name, is_residual=scale_D is not None, narrowing=narrowings.get(name))
        if scale_D is None:
            scale_D = torch.ones(layer.out_features).double()
        _fit(layer, halves, scale_D, ridge=ridge)


def _fit(layer: nn.Linear, halves: Sequence[Moments], scale_D: Tensor, *, ridge: Ridge) -> bool:
    """Refit a linear layer in place so that `scale * layer(inputs)` predicts targets.

    `halves` are moments of rows `[K + D]` of inputs and targets, from each half of the images. Returns True if the
    rows do not determine the fit.
    """
    width, start_DK = layer.in_features, exact_weight(layer)
    is_silent_D = scale_D == 0  # outputs that never reach the stream keep their weights
    divisor_D = scale_D.masked_fill(is_silent_D, 1.0)
    penalty_D = scale_D.square().mean() / divisor_D.square()

    def split(moments: Moments) -> tuple[Tensor, Tensor]:
        """Return the inputs' covariance, and the covariance of the residual of `start` with the inputs."""
        assert moments.covariance is not None
        covariance_KK = moments.covariance[:width]
        return covariance_KK, moments.covariance[width:] / divisor_D[:, None] - start_DK @ covariance_KK

    if ridge == "cross-validated":
        ridge = cross_validate_ridge(
            [split(half) for half in halves], penalty_D=penalty_D, importance_D=scale_D.square()
        )
    moments = reduce(Moments.merge, halves)
    covariance_KK, residual_DK = split(moments)
    penalty_D = (ridge * covariance_KK.diagonal().mean() * penalty_D).masked_fill(is_silent_D, torch.inf)
    change_DK, is_singular = solve_ridge(covariance_KK, residual_DK, penalty_D=penalty_D)
    weight_DK = start_DK + change_DK
    bias_D = moments.mean[width:] / divisor_D - weight_DK @ moments.mean[:width]
    start_D = exact_bias(layer)
    set_weight(layer, weight_DK)
    set_bias(layer, torch.where(is_silent_D, start_D, bias_D))
    return is_singular or moments.num_rows <= width


def _get_residual_scale(dense: AdaptedModel, block: int) -> Tensor:
    scale_D = dense.residual_scale(block)
    if scale_D is None:
        raise ValueError(
            f"compensation 'sequential' needs pre-norm blocks, which add their scaled MLP output to the stream; block "
            f"{block} of this {dense.family} has another form; use least-squares"
        )
    return scale_D.cpu().to(torch.float64)


def _map_narrow_layers(dense: AdaptedModel, narrowed: Mapping[str, NarrowedHeads]) -> dict[str, Tensor]:
    """Return the matrices by which narrowing multiplied the outputs of the dense model's layers, by layer name."""
    names = {module: name for name, module in dense.model.named_modules()}
    return {
        names[layer]: rows
        for site in dense.attention_sites
        if site.name in narrowed
        for layer, rows in map_rows(site, narrowed[site.name]).items()
    }
