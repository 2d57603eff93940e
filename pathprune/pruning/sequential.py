"""Least squares on the residual stream: each block is fitted behind blocks that are already pruned and fitted."""

# D outputs and K inputs of a linear layer

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.attention import NarrowedHeads, map_rows
from pathprune.pruning.compensation import (
    Compensation,
    CompensationContext,
    register,
    set_bias,
    set_weight,
)
from pathprune.pruning.least_squares import warn_about_undetermined_fits
from pathprune.pruning.reconstruction import reconstruct
from pathprune.pruning.ridge import cross_validate_ridge, solve_ridge
from pathprune.pruning.streams import Streams
from pathprune.scoring.moments import Moments
from pathprune.scoring.sensitivity import compute_token_weights


@register("sequential")
class Sequential(Compensation):
    """Least squares on the residual stream, block after block: the strongest compensation.

    Each block is fitted in the pruned model, so it also corrects the errors of earlier blocks. The target of the
    down-projection is `(dense block output − pruned state before the MLP) / γ`, where γ is the LayerScale (1 without).
    Fitting starts at the first pruned block and includes later blocks that keep every neuron.

    The ridge of each output is scaled by `mean(γ²) / γ²`, since outputs that barely reach the stream would get huge
    weights. In attention, the output projection is fitted to the dense model's state before the MLP, all other layers
    to the dense model's outputs. With token weights, the last block of a model that reads the class token is fitted to
    this token alone. Reconstruction keeps the epoch with the least error on held-out images.
    """

    needs_batches: ClassVar[bool] = True

    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["cross-validated"] = Field(
        "cross-validated",
        description="Penalty on the change from the dense weights, relative to the mean variance of the layer's "
        "inputs. cross-validated: chosen for each layer by fits on one half of the images, tested on the other half.",
    )
    token_weights: bool = Field(False, description="Weigh each token by the sensitivity of the model's output to it.")
    refit_attention: bool = Field(
        True, description="Also refit the attention's linear layers behind the first pruned block."
    )
    reconstruct: int = Field(
        10,
        ge=0,
        description="Epochs of gradient descent on both layers of each MLP, after the fit and towards the same "
        "target. 0: none.",
    )

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        dense = context.dense
        first = context.plan.first_block
        if first is None:
            return
        scales = {block: _get_residual_scale(dense, block) for block in range(first, len(dense.sites))}
        narrowings = _map_narrow_layers(dense, context.narrowed)
        narrowed_blocks = {site.block for site in dense.attention_sites if site.name in context.narrowed}
        weights = compute_token_weights(dense, context.batches, seed=context.seed) if self.token_weights else None
        streams = Streams(dense, pruned, block=first, batches=context.batches)
        undetermined = []
        for block, scale_D in scales.items():
            if block > first:
                streams.advance()
            if self.refit_attention and (block > first or block in narrowed_blocks):
                self._fit_attention(pruned, streams, narrowings)
            site = pruned.sites[block]
            if self._fit(site.down, streams.collect_down_moments(weights), scale_D):
                undetermined.append(block)
            inputs, targets = streams.collect_mlp_states()
            reconstruct(site, inputs, targets, scale_D=scale_D, epochs=self.reconstruct, seed=context.seed)
        warn_about_undetermined_fits(self, undetermined)

    def _fit_attention(self, pruned: AdaptedModel, streams: Streams, narrowings: Mapping[str, Tensor]) -> None:
        """Refit, in place, the linear layers that run before the hidden activations of the streams' block.

        Narrow layers are fitted to the dense outputs in the bases of the channels that stay.
        """
        for name in streams.list_attention_layers():
            layer, scale_D = pruned.model.get_submodule(name), streams.measure_stream_scale(name)
            assert isinstance(layer, nn.Linear)
            halves = streams.collect_layer_moments(
                name, is_residual=scale_D is not None, narrowing=narrowings.get(name)
            )
            self._fit(layer, halves, torch.ones(layer.out_features).double() if scale_D is None else scale_D)

    def _fit(self, layer: nn.Linear, halves: Sequence[Moments], scale_D: Tensor) -> bool:
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

        ridge = self.ridge
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
