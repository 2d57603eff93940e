"""Criteria without gradients and paths: activation variance, and random scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pathprune.scoring.criteria import Criterion, ScoringContext, register

if TYPE_CHECKING:
    from pathprune.scoring.scores import Scores


@register("variance")
class Variance(Criterion):
    """Variance of the neuron's activation over all tokens, as in Variance-Based Pruning (arXiv 2507.12988).

    A bias can replace the mean contribution of a removed neuron (see the compensation `mean`), but not its variance.
    """

    needs_statistics: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        assert context.statistics is not None, "score() checks the inputs of a criterion"
        return {site.name: context.statistics.sites[site.name].variance for site in context.adapted.sites}


@register("variance-weighted")
class VarianceWeighted(Variance):
    """Variance that the neuron adds to the MLP's output: its activation's variance times its column's squared norm."""

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.models.linear import exact_weight

        variance = super().__call__(context)
        return {
            site.name: variance[site.name] * exact_weight(site.down).square().sum(0) for site in context.adapted.sites
        }


@register("random")
class Random(Criterion):
    """Uniform random scores from the recipe's seed, the same on every device: the baseline to beat."""

    def __call__(self, context: ScoringContext) -> Scores:
        import torch

        generator = torch.Generator().manual_seed(context.seed)
        return {
            site.name: torch.rand(site.width, generator=generator, dtype=torch.float64)
            for site in context.adapted.sites
        }
