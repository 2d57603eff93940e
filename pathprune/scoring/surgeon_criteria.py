"""Criteria of the second order: the optimal brain surgeon, with and without paths, and output sensitivity."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pathprune.scoring.criteria import Criterion, ScoringContext, register

if TYPE_CHECKING:
    from pathprune.scoring.scores import Scores


@register("obs")
class BrainSurgeon(Criterion):
    """Optimal brain surgeon: greedy removal of neurons, with an update of the other weights after each.

    The neuron of least `‖W2[:, j]‖² / [Σ⁻¹]_jj` is removed, the other neurons take over as much of its contribution as
    they can, and so on. The score of a neuron is the error that its removal adds to the MLP's output, raised where
    needed so that scores follow the order of removal. Follows DVBP + OB²C (arXiv 2608.17657), after OBS (Hassibi 1993).
    All updates together are the weight change of the compensation `least-squares`, which completes the method.

    Takes O(W³) per site: a few times as long as the inverse of Σ.
    """

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = True

    ridge: float = Field(
        1e-3,
        gt=0,
        allow_inf_nan=False,
        description="Ridge added to the diagonal of the covariance Σ, relative to the mean of the diagonal.",
    )

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.models.linear import exact_weight
        from pathprune.scoring.surgeon import score_by_removal

        weights = {site.name: exact_weight(site.down) for site in context.adapted.sites}
        return score_by_removal(context, weights=weights, ridge=self.ridge)


@register("path-obs")
class PathSurgeon(BrainSurgeon):
    """Optimal brain surgeon with errors weighed by their effect on the model's answer along the layer's path.

    As `obs`, but the neuron of least `w_jᵀ G w_j / [Σ⁻¹]_jj` is removed. G is the second moment of the answer's
    gradient at the MLP's output, integrated along the path on which all neurons of the layer are scaled from zero to
    their values at every token: layer-progressive location with the whole layer as candidates (arXiv 2503.09046). The
    answer is a random direction of the logits for each image, so no labels are needed.
    """

    nodes: int = Field(3, ge=1, description="Gauss–Legendre nodes of the integral along the path.")
    num_images: int = Field(
        200,
        ge=1,
        description="First calibration images, which the integral is averaged over. Each costs about 1.5 · nodes "
        "forward passes per block.",
    )

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.scoring.batches import take_images
        from pathprune.scoring.path_surgeon import weigh_by_paths
        from pathprune.scoring.surgeon import score_by_removal

        batches = take_images(context.batches, self.num_images)
        weights = weigh_by_paths(context.adapted, batches, nodes=self.nodes, seed=context.seed)
        return score_by_removal(context, weights=weights, ridge=self.ridge)


@register("output-sensitivity")
class OutputSensitivity(Criterion):
    """Second-order change of the logits, Kronecker-factored: `var_j · w_jᵀ G w_j`.

    The variance of the neuron's activation, weighed by the sensitivity of the model's answer to `w_j`, the neuron's
    column of `down`. G is the second moment of gradients of random logit directions at the MLP's output.
    """

    needs_statistics: ClassVar[bool] = True

    directions: int = Field(
        1,
        ge=1,
        description="Random logit directions per image. More directions smooth the estimate from few images and cost "
        "a backward pass each.",
    )

    def __call__(self, context: ScoringContext) -> Scores:
        from pathprune.scoring.sensitivity import score_by_sensitivity

        return score_by_sensitivity(context, directions=self.directions)
