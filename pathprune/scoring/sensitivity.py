"""Sensitivity of the model's answer to each MLP output, and scores that weigh variances by it."""

# B images, T tokens, R tokens of all images, D hidden dimension of the residual stream, W neurons of a site, K logits

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.linear import exact_weight
from pathprune.models.seam import AdaptedModel, NeuronSite
from pathprune.scoring.batches import Batches
from pathprune.scoring.criteria import ScoringContext
from pathprune.scoring.scores import Scores


def score_by_sensitivity(context: ScoringContext, *, directions: int) -> Scores:
    """Return `var_j · w_jᵀ G w_j` for every neuron, with `G` of `measure_output_sensitivity`."""
    assert context.statistics is not None, "score() checks the inputs of a criterion"
    sensitivity = measure_output_sensitivity(context.adapted, context.batches, directions=directions, seed=context.seed)
    scores = {}
    for site in context.adapted.sites:
        weight_DW = exact_weight(site.down)
        sensitivity_W = (weight_DW * (sensitivity[site.name] @ weight_DW)).sum(0)
        scores[site.name] = context.statistics.sites[site.name].variance * sensitivity_W
    return scores


def measure_output_sensitivity(
    adapted: AdaptedModel, batches: Batches, *, directions: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Return, by site, the second moment `G` `[D, D]` of gradients of random logit directions at the output of `down`.

    Directions are centred, because adding a constant to all logits changes no answer. G is averaged over images as
    `SensitivitySums` describes. Labels are not used. float64 on the CPU.

    Raises ValueError if there are no images or fewer than two classes.
    """
    if adapted.num_classes < 2:
        raise ValueError(
            f"output sensitivity compares logits, but the model has {adapted.num_classes} classes; use a model with at "
            "least two, or another criterion"
        )
    generator, sums = torch.Generator().manual_seed(seed), SensitivitySums()
    for images, _ in batches:
        for gradients in _compute_direction_gradients(adapted, images, directions=directions, generator=generator):
            sums.add(gradients.items())
    if sums.num_gradients == 0:
        raise ValueError("output sensitivity needs at least one image, but there are no calibration batches")
    return sums.average()


class SensitivitySums:
    """Sums of gradients at the sites' outputs: second moments that no image dominates, and shares of the energy.

    The second moment of an image's gradient over its tokens is scaled to a trace of 1. A site's energy is the squared
    norm of the gradient at its output, summed over tokens. The average of a site is its mean second moment times its
    mean share of the energy of all sites, so that sites compare and the traces of all sites sum to 1. An image without
    any gradient counts as zero.
    """

    def __init__(self) -> None:
        self.num_gradients = 0
        self._moments: dict[str, Tensor] = {}
        self._shares: dict[str, Tensor] = {}

    def add(self, gradients: Iterable[tuple[str, Tensor]]) -> None:
        """Add the gradient `[B, T, D]` of a batch at every site, given as pairs of site name and gradient."""
        energies = {}
        for name, gradient_BTD in gradients:
            exact_BTD = gradient_BTD.cpu().to(torch.float64)
            energy_B = exact_BTD.square().sum((1, 2))
            scaled_BTD = torch.where(energy_B[:, None, None] > 0, exact_BTD / energy_B.sqrt()[:, None, None], 0.0)
            scaled_RD = scaled_BTD.flatten(0, 1)
            _add(self._moments, name, scaled_RD.T @ scaled_RD)
            energies[name] = energy_B
        total_B = torch.stack(list(energies.values())).sum(0)
        for name, energy_B in energies.items():
            _add(self._shares, name, torch.where(total_B > 0, energy_B / total_B, 0.0).sum())
        self.num_gradients += len(total_B)

    def average(self) -> dict[str, Tensor]:
        """Return the average of every site, `[D, D]` in float64 on the CPU."""
        return {
            name: (moment_DD * (self._shares[name] / self.num_gradients**2)).cpu()
            for name, moment_DD in self._moments.items()
        }


def _add(totals: dict[str, Tensor], name: str, value: Tensor) -> None:
    totals[name] = totals[name] + value if name in totals else value


def compute_token_weights(adapted: AdaptedModel, batches: Batches, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return the weight of each token at each site's output: for every batch, `[B, T]` by site.

    A token weighs as much as the model's answer is sensitive to it: the squared norm of the gradient of a random logit
    direction (centred if there are several logits) at the output of `down`. Weights are scaled to a mean of 1 per
    image, so that no image dominates. All tokens of an image without any gradient weigh 1. If the head reads the class
    token alone, only this token weighs anything in the last block.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for images, _ in batches:
        (gradients,) = _compute_direction_gradients(adapted, images, directions=1, generator=generator)
        weights.append({name: _weigh_tokens(gradient_BTD) for name, gradient_BTD in gradients.items()})
    return weights


def _weigh_tokens(gradient_BTD: Tensor) -> Tensor:
    energy_BT = gradient_BTD.to(torch.promote_types(gradient_BTD.dtype, torch.float32)).square().sum(-1)
    mean_B1 = energy_BT.mean(1, keepdim=True)
    return torch.where(mean_B1 > 0, energy_BT / mean_B1, 1.0).cpu()


def _compute_direction_gradients(
    adapted: AdaptedModel, images: Tensor, *, directions: int, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """Return, for every random logit direction, the gradient `[B, T, D]` at the output of `down` by site."""
    parameter = next(adapted.model.parameters())
    by_direction = []
    with evaluating(adapted.model), torch.enable_grad(), record_output_gradients(adapted.sites) as gradients:
        # parameters take no gradients here; images that require them keep the graph
        logits_BK = adapted.model(images.detach().to(parameter, copy=True).requires_grad_())
        drawn = draw_directions(logits_BK, generator, number=directions)
        for index, direction_BK in enumerate(drawn, start=1):
            torch.autograd.backward((logits_BK * direction_BK).sum(), retain_graph=index < directions)
            by_direction.append(dict(gradients))
    return by_direction


def draw_directions(logits_BK: Tensor, generator: torch.Generator, *, number: int = 1) -> list[Tensor]:
    """Draw `number` random directions of the logits for every image, centred if there are several logits: `[B, K]`."""
    # image by image, all directions of an image at once, so that the batch size does not matter
    images = [[torch.randn(logits_BK.shape[1], generator=generator) for _ in range(number)] for _ in logits_BK]
    directions = [torch.stack(rows).to(logits_BK) for rows in zip(*images, strict=True)]
    return [each - each.mean(1, keepdim=True) if each.shape[1] > 1 else each for each in directions]


@contextmanager
def record_output_gradients(sites: Iterable[NeuronSite]) -> Iterator[dict[str, Tensor]]:
    """Record the gradient at the output of each site's `down` inside the context.

    Yields a dict by site name. Each backward pass through a forward pass of the context overwrites its entries.
    """
    gradients: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """Return a hook that watches the output of the site called `name`."""

        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda gradient: gradients.__setitem__(name, gradient))  # type: ignore[no-untyped-call]

        return hook

    with attach_hooks(site.down.register_forward_hook(record(site.name)) for site in sites):
        yield gradients
