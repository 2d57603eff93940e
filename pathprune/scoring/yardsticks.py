"""Published one-shot criteria that path guidance is measured against.

Others are elsewhere: `variance` is Variance-Based Pruning's (arXiv 2507.12988; its mean shift is the compensation
`mean`), `obs` the optimal brain surgeon's order, and torch-pruning's are behind its bridge.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.gradients import weight_gradients
from pathprune.scoring.scores import Scores


@register("energy")
class Energy(Criterion):
    """Mean square of the neuron's activation, `μ² + σ²` over all tokens: what CORP ranks by (arXiv 2602.05243).

    With the compensation `least-squares`, a ridge regression with an intercept, it is CORP's treatment of an MLP.
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        return {site.name: _energy(context, site) for site in context.adapted.sites}


@register("wanda")
class Wanda(Criterion):
    """Wanda (arXiv 2306.11695), summed over the weights that a neuron takes with it: `‖u_j‖₂ Σ_d |W2_dj|`.

    Wanda scores each weight by its size times the norm of its input; here all weights of a column of `down` go at once.
    The norm is the root of the mean square, so that the number of calibration images does not matter.
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        return {
            site.name: _energy(context, site).sqrt() * site.down.weight.detach().cpu().double().abs().sum(0)
            for site in context.adapted.sites
        }


@register("snip")
class Snip(Criterion):
    """SNIP (arXiv 1810.02340), a connection a neuron: `|∂L/∂c_j|`, where `c_j = 1` multiplies the neuron's activation.

    The derivative of the mean cross-entropy over all labelled images; as activations enter through `down` alone, it is
    `Σ_d W2_dj ∂L/∂W2_dj`. The published division by the sum over all connections changes no order and is left out.
    """

    needs_labels: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        layers = {site.name: site.down for site in context.adapted.sites}
        gradients = weight_gradients(context.adapted, context.batches, layers=list(layers.values()))
        return {
            name: (down.weight.detach() * gradients[down]).cpu().to(torch.float64).sum(0).abs()
            for name, down in layers.items()
        }


def _energy(context: ScoringContext, site: NeuronSite) -> Tensor:
    assert context.statistics is not None, "score() checks what a criterion needs"
    moments = context.statistics.sites[site.name]
    return moments.variance + moments.mean.square()
