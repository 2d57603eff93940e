"""The optimal brain surgeon's order with errors judged along paths, by their effect on the model's answer."""

# B images, M nodes, T tokens, D hidden dimension of the residual stream, W neurons of a site, K logits

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pathprune.mining.quadrature import build_quadrature
from pathprune.models.adapt import evaluating
from pathprune.models.linear import exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.batches import Batches
from pathprune.scoring.sensitivity import SensitivitySums, draw_directions, record_output_gradients


def weigh_by_paths(adapted: AdaptedModel, batches: Batches, *, nodes: int, seed: int) -> dict[str, Tensor]:
    """Return, by site, `√G W2` `[D, W]`: the columns of `down` in the metric of the path sensitivity `G`."""
    sensitivity = measure_path_sensitivity(adapted, batches, nodes=nodes, seed=seed)
    weights = {}
    for site in adapted.sites:
        values_D, vectors_DD = torch.linalg.eigh(sensitivity[site.name])
        root_DD = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T  # rootᵀ root = G
        weights[site.name] = root_DD @ exact_weight(site.down)
    return weights


def measure_path_sensitivity(
    adapted: AdaptedModel, batches: Batches, *, nodes: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Return, by site, the second moment `G` `[D, D]` of path-integrated gradients at the output of `down`.

    The gradient is that of a random centred direction of the logits, as in `measure_output_sensitivity`. It is averaged
    over α in [0, 1] (Gauss–Legendre), with the block's hidden activations at α times their value. This average times
    the layer's contribution is the change of the answer when the layer is removed; the gradient at α = 1 alone is not.
    G is averaged over images as `SensitivitySums` describes. float64 on the CPU.

    Raises ValueError if there are no images.
    """
    generator, sums = torch.Generator().manual_seed(seed), SensitivitySums()
    for images, _ in batches:
        answer = _RandomAnswer(generator)  # the same for all blocks and nodes
        sums.add(_integrate_gradients(adapted, images, answer=answer, nodes=nodes))
    if sums.num_gradients == 0:
        raise ValueError("path sensitivity needs at least one image, but there are no calibration batches; pass images")
    return sums.average()


class _RandomAnswer:
    """One random direction of the logits per image, drawn when the first logits show their number."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._direction_BK: Tensor | None = None

    def __call__(self, logits_BK: Tensor) -> Tensor:
        """Return the sum over images of the logits along each image's direction."""
        if self._direction_BK is None:
            (self._direction_BK,) = draw_directions(logits_BK, self._generator)
        return (logits_BK * self._direction_BK).sum()


@torch.no_grad()
def _integrate_gradients(
    adapted: AdaptedModel, images: Tensor, *, answer: _RandomAnswer, nodes: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of every site in order, and the answer's gradient at its output, averaged over α: `[B, T, D]`."""
    with evaluating(adapted.model):
        h_BTD = adapted.stem(images.to(next(adapted.model.parameters())))
        for index, site in enumerate(adapted.sites):
            m_BTD, u_BTW = adapted.open_block(index, h_BTD)
            yield site.name, _integrate_gradient(adapted, index, m_BTD, u_BTW, answer=answer, nodes=nodes)
            h_BTD = adapted.close_block(index, m_BTD, u_BTW)


def _integrate_gradient(
    adapted: AdaptedModel, index: int, m_BTD: Tensor, u_BTW: Tensor, *, answer: _RandomAnswer, nodes: int
) -> Tensor:
    """Return the gradient of the answer at the output of block `index`'s `down`, averaged over α: `[B, T, D]`."""
    site = adapted.sites[index]
    quadrature = build_quadrature("gauss-legendre", nodes)
    integral_BTD = torch.zeros((), dtype=torch.float64)
    for alpha, weight in zip(quadrature.alpha_M.tolist(), quadrature.weight_M.tolist(), strict=True):
        with torch.enable_grad(), record_output_gradients([site]) as gradients:
            h_BTD = adapted.close_block(index, m_BTD, (alpha * u_BTW).requires_grad_())
            torch.autograd.backward(answer(adapted.head(adapted.run_from(index + 1, h_BTD))))
        integral_BTD = integral_BTD + weight * gradients[site.name].cpu().to(torch.float64)
    return integral_BTD
