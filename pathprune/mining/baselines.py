"""The two baselines of the paper, read off without clamping: one ranking of every layer's neurons per image."""

# B images, M nodes, R clamped tokens, W neurons of a layer

from __future__ import annotations

import torch
from torch import Tensor

from pathprune.mining.attribution import JointAttribution


def activation(attribution: JointAttribution) -> tuple[list[Tensor], list[Tensor]]:
    """Rank by the signed activation: scores and own terms, per layer `[B, W]`, are both Σ_r a."""
    scores = [a_BRW.sum(1) for a_BRW in attribution.clean.values]
    return scores, scores


def influence_pattern(attribution: JointAttribution, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Rank by the gradient of the objective with respect to the activation, averaged over the inputs α·images.

    Scores `[B, W]` are Σ_r G, own terms Σ_r a·G with a from the clean images. Clamping the layers up to `l` to their
    own values cuts what comes before `l` and leaves the rest free, so the gradients of one ordinary backward pass are
    those of all layers.
    """
    adapted, clean = attribution.adapted, attribution.clean
    inputs = (attribution.alpha_M.to(images.dtype)[:, None, None, None, None] * images).flatten(0, 1)
    hidden = []
    with attribution.passes():
        h = adapted.stem(inputs).requires_grad_()
        with torch.enable_grad():
            for block in range(len(adapted.sites)):
                m, u = adapted.open_block(block, h)
                hidden.append(u)
                h = adapted.close_block(block, m, u)
            value_N = attribution.value(h)
            grads = torch.autograd.grad(value_N.sum(), hidden)
    rows = slice(None) if attribution.rows is None else attribution.rows
    gradients = [attribution.integrated(grad[:, rows].to(attribution.weight_M.dtype)) for grad in grads]
    own = [(a_BRW * g_BRW).sum(1) for a_BRW, g_BRW in zip(clean.values, gradients, strict=True)]
    return [g_BRW.sum(1) for g_BRW in gradients], own
