"""The optimal brain surgeon's order with errors judged along paths: by what they do to the model's answer."""

# B images, M nodes, T tokens, D width of the residual stream, W neurons of a site, K logits

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from pathprune.mining.quadrature import build_quadrature
from pathprune.models.adapt import evaluating
from pathprune.models.linear import exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.criteria import ScoringContext, register
from pathprune.scoring.scores import Scores
from pathprune.scoring.sensitivity import random_directions, second_moment, watching
from pathprune.scoring.surgeon import BrainSurgeon, surgeon_scores


@register("path-obs")
class PathSurgeon(BrainSurgeon):
    """As `obs`, but an error at the MLP's output counts by how much it changes the answer along the layer's path.

    The path is that of layer-progressive location with the whole layer as candidates (arXiv 2503.09046): all of its
    neurons, at every token, are scaled together from nothing to their value, and the gradient of the answer is
    integrated on the way. With `G` the second moment of these gradients (see `path_sensitivity`), the neuron of least
    `w_jᵀ G w_j / [Σ⁻¹]_jj` goes, the others take over what they can of it, and so on. Needs no labels: the answer is
    a random direction of logits, anew for every image.

    - nodes: of the Gauss–Legendre rule that integrates over the path.
    - num_images: calibration images that are integrated over, the first ones; each costs about `1.5 · nodes` forward
      passes of the model for every block that it has.
    """

    nodes: int = Field(3, ge=1)
    num_images: int = Field(200, ge=1)

    def __call__(self, context: ScoringContext) -> Scores:
        batches = _first_images(context.batches, self.num_images)
        sensitivity = path_sensitivity(context.adapted, batches, nodes=self.nodes, seed=context.seed)
        weights = {}
        for site in context.adapted.sites:
            values_D, vectors_DD = torch.linalg.eigh(sensitivity[site.name])
            root_DD = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T  # rootᵀ root = G
            weights[site.name] = root_DD @ exact_weight(site.down)
        return surgeon_scores(context, weights=weights, ridge=self.ridge)


def path_sensitivity(
    adapted: AdaptedModel, batches: Iterable[tuple[Tensor, Tensor]], *, nodes: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """By site, the second moment `G` `[D, D]` of path-integrated gradients at `down`'s output.

    What is differentiated is a random centred direction of the logits, as in `output_sensitivity`; the gradient is
    averaged over α in [0, 1] (Gauss–Legendre), with the block's hidden rows at α times their value: this average, not
    the gradient at the end, times what the layer adds is what the answer changes by when the layer goes. Scaled within
    each image as in `output_sensitivity`. float64 on the CPU. Raises ValueError if there are no images.
    """
    alpha_M, weight_M = build_quadrature("gauss-legendre", nodes)
    generator = torch.Generator().manual_seed(seed)
    parameter = next(adapted.model.parameters())
    totals = {site.name: torch.zeros((), dtype=torch.float64) for site in adapted.sites}
    num_images = 0
    for images, _ in batches:
        num_images += len(images)
        with evaluating(adapted.model), torch.no_grad():
            h_BTD = adapted.stem(images.to(parameter))
            direction_BK: Tensor | None = None
            for index, site in enumerate(adapted.sites):
                m_BTD, u_BTW = adapted.open_block(index, h_BTD)
                integral_BTD = torch.zeros((), dtype=torch.float64)
                for alpha, weight in zip(alpha_M.tolist(), weight_M.tolist(), strict=True):
                    found: list[dict[str, Tensor]] = [{}]
                    with torch.enable_grad(), watching([site], found):
                        logits_BK = _suffix(adapted, index, m_BTD, (alpha * u_BTW).requires_grad_())
                        if direction_BK is None:  # the same for all blocks and nodes
                            direction_BK = random_directions(logits_BK, generator)
                        torch.autograd.backward((logits_BK * direction_BK).sum())
                    integral_BTD = integral_BTD + weight * found[0][site.name].cpu().to(torch.float64)
                totals[site.name] = totals[site.name] + second_moment(integral_BTD)
                h_BTD = adapted.close_block(index, m_BTD, u_BTW)
    if num_images == 0:
        raise ValueError("path sensitivity needs at least one image; there are no calibration batches")
    return {name: total / num_images for name, total in totals.items()}


def _first_images(batches: Iterable[tuple[Tensor, Tensor]], number: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches, cut off after `number` images."""
    left = number
    for images, labels in batches:
        yield images[:left], labels[:left]
        left -= len(images[:left])
        if left == 0:
            return


def _suffix(adapted: AdaptedModel, index: int, m_BTD: Tensor, u_BTW: Tensor) -> Tensor:
    """The logits, from block `index` opened."""
    return adapted.head(adapted.run_from(index + 1, adapted.close_block(index, m_BTD, u_BTW)))
