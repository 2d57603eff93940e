"""Published one-shot criteria to compare path guidance with.

Other published criteria are elsewhere: `variance` (arXiv 2507.12988) in `plain_criteria`, `obs` in `surgeon_criteria`,
and torch-pruning's importances in `torch_pruning_criteria`.
"""

# W neurons of a site

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pathprune.scoring.criteria import Criterion, ScoringContext, register

if TYPE_CHECKING:
    from torch import Tensor

    from pathprune.models.seam import NeuronSite
    from pathprune.scoring.scores import Scores


@register("energy")
class Energy(Criterion):
    """Mean square of the neuron's activation over all tokens, `μ² + σ²`, as in CORP (arXiv 2602.05243).

    With the compensation `least-squares`, a ridge regression with an intercept, this is CORP's treatment of an MLP.
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        return {site.name: _compute_energy(context, site) for site in context.adapted.sites}


@register("wanda")
class Wanda(Criterion):
    """Wanda (arXiv 2306.11695), summed over the neuron's output weights: `‖u_j‖₂ Σ_d |W2_dj|`.

    Wanda scores one weight by its magnitude times the norm of its input. Removing a neuron removes a column of `down`,
    so the scores of the column's weights are added. The norm is the root mean square over the calibration tokens, so
    that the number of images does not matter.
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.models.linear import exact_weight

        return {
            site.name: _compute_energy(context, site).sqrt() * exact_weight(site.down).abs().sum(0)
            for site in context.adapted.sites
        }


@register("snip")
class Snip(Criterion):
    """SNIP (arXiv 1810.02340) with one connection per neuron: `|∂L/∂c_j|`, where `c_j = 1` scales the activation.

    L is the mean cross-entropy over all labelled images. Activations enter through `down` alone, so the derivative is
    `Σ_d W2_dj ∂L/∂W2_dj`. The published division by the sum over all connections does not change the order and is left
    out.
    """

    needs_labels: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.scoring.gradients import compute_weight_gradients

        layers = {site.name: site.down for site in context.adapted.sites}
        gradients = compute_weight_gradients(context.adapted, context.batches, layers=list(layers.values()))
        return {
            name: (down.weight.detach() * gradients[down]).cpu().double().sum(0).abs() for name, down in layers.items()
        }


def _compute_energy(context: ScoringContext, site: NeuronSite) -> Tensor:
    """Return the mean square of every neuron's activation `[W]`."""
    assert context.statistics is not None, "score() checks the inputs of a criterion"
    moments = context.statistics.sites[site.name]
    return moments.variance + moments.mean.square()
