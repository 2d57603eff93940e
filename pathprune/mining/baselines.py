"""Baselines of the paper: rankings of every layer's neurons per image, without clamping (arXiv 2503.09046)."""

# B images, T tokens, R clamped tokens, D channels, W neurons of a layer, N pairs of node and image

from __future__ import annotations

import torch
from torch import Tensor

from pathprune.mining.attribution import JointAttribution


def rank_by_activation(attribution: JointAttribution) -> tuple[list[Tensor], list[Tensor]]:
    """Return scores and own terms of the signed activation, both Σ a over the clamped tokens: per layer `[B, W]`."""
    scores = [a_BRW.sum(1) for a_BRW in attribution.clean.values]
    return scores, scores


def rank_by_influence(attribution: JointAttribution, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return scores and own terms of the influence pattern: per layer `[B, W]`.

    G is the gradient of the objective with respect to the activation, averaged over the inputs α·images. Scores are
    Σ G over the clamped tokens; own terms are Σ a·G, with a from the clean images.

    The definition clamps the layers up to `l` to their own values. This cuts the graph before `l` and changes nothing
    after `l`, and therefore one ordinary backward pass gives the gradients of all layers.
    """
    adapted, clean, quadrature = attribution.adapted, attribution.clean, attribution.quadrature
    inputs = (quadrature.alpha_M.to(images.dtype)[:, None, None, None, None] * images).flatten(0, 1)
    hidden = []
    with attribution.passes():
        h_NTD = adapted.stem(inputs).requires_grad_()
        with torch.enable_grad():
            for block in range(len(adapted.sites)):
                m_NTD, u_NTW = adapted.open_block(block, h_NTD)
                hidden.append(u_NTW)
                h_NTD = adapted.close_block(block, m_NTD, u_NTW)
            p_N = attribution.evaluate_objective(h_NTD)
            grads = torch.autograd.grad(p_N.sum(), hidden)
    tokens = slice(None) if attribution.clamped_tokens is None else attribution.clamped_tokens
    dtype = quadrature.weight_M.dtype
    gradients = [attribution.integrate(grad_NTW[:, tokens].to(dtype)) for grad_NTW in grads]
    own = [(a_BRW * g_BRW).sum(1) for a_BRW, g_BRW in zip(clean.values, gradients, strict=True)]
    return [g_BRW.sum(1) for g_BRW in gradients], own
