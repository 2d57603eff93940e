"""How much the model's answer listens to each MLP output, and the criterion that weighs variance with it."""

# B images, T tokens, D width of the residual stream, K classes

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.linear import exact_weight
from pathprune.models.seam import AdaptedModel, NeuronSite
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.scores import Scores


@register("output-sensitivity")
class OutputSensitivity(Criterion):
    """Second-order change of the logits: `var_j · w_jᵀ G w_j`, with G of `output_sensitivity`, Kronecker-factored.

    The variance of the neuron's activation, weighed by how much the model's answer listens to the direction `w_j` that
    the neuron writes into. Scores are on each block's own scale: with `prune.scope: global` use `normalize: mean`.

    - directions: random directions per image; more smooth the estimate on few images, at a backward pass each.
    """

    needs_statistics: ClassVar[bool] = True

    directions: int = Field(1, ge=1)

    def __call__(self, context: ScoringContext) -> Scores:
        assert context.statistics is not None, "score() checks what a criterion needs"
        sensitivity = output_sensitivity(
            context.adapted, context.batches, directions=self.directions, seed=context.seed
        )
        scores = {}
        for site in context.adapted.sites:
            weight_DW = exact_weight(site.down)
            heard_W = (weight_DW * (sensitivity[site.name] @ weight_DW)).sum(0)
            scores[site.name] = context.statistics.sites[site.name].variance * heard_W
        return scores


def output_sensitivity(
    adapted: AdaptedModel, batches: Iterable[tuple[Tensor, Tensor]], *, directions: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """By site, the second moment `G` `[D, D]` of the gradients of random centred logit directions at `down`'s output.

    Centred, since adding the same to all logits changes no answer. Within each image, gradients are scaled to a mean
    squared norm of 1 over the tokens, so that no image dominates. Labels are not read. float64 on the CPU. Raises
    ValueError if there are no images, or fewer than two classes.
    """
    if adapted.num_classes < 2:
        raise ValueError(f"output sensitivity compares logits; the model has {adapted.num_classes}, two are needed")
    generator = torch.Generator().manual_seed(seed)
    totals = {site.name: torch.zeros((), dtype=torch.float64) for site in adapted.sites}
    num_images = 0
    for images, _ in batches:
        num_images += len(images)
        for gradients in _direction_gradients(adapted, images, directions=directions, generator=generator):
            for name, gradient_BTD in gradients.items():
                totals[name] = totals[name] + second_moment(gradient_BTD)
    if num_images == 0:
        raise ValueError("output sensitivity needs at least one image; there are no calibration batches")
    return {name: total / (num_images * directions) for name, total in totals.items()}


def second_moment(gradient_BTD: Tensor) -> Tensor:
    """Sum over images of the second moment over tokens, each image scaled to a trace of 1: `[D, D]` float64, CPU."""
    gradient_BTD = gradient_BTD.cpu().to(torch.float64)
    energy_B11 = gradient_BTD.square().sum(-1).mean(1)[:, None, None]
    scaled_BTD = torch.where(energy_B11 > 0, gradient_BTD / energy_B11.sqrt(), 0.0)
    return torch.einsum("btd,bte->de", scaled_BTD, scaled_BTD) / gradient_BTD.shape[1]


def token_weights(
    adapted: AdaptedModel, batches: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0
) -> list[dict[str, Tensor]]:
    """How much the model's answer listens to each token at each site's output: for every batch, `[B, T]` by site.

    The squared norm of the gradient of a random logit direction (centred, where there are several logits) at `down`'s
    output, scaled to a mean of 1 within each image, so that no image dominates. Where the head reads the class token
    alone, so do the last block's weights. Tokens of an image that the answer does not listen to at all weigh alike.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for images, _ in batches:
        (gradients,) = _direction_gradients(adapted, images, directions=1, generator=generator)
        weights.append({name: _weights_of(gradient_BTD) for name, gradient_BTD in gradients.items()})
    return weights


def _weights_of(gradient_BTD: Tensor) -> Tensor:
    energy_BT = gradient_BTD.to(torch.promote_types(gradient_BTD.dtype, torch.float32)).square().sum(-1)
    mean_B1 = energy_BT.mean(1, keepdim=True)
    return torch.where(mean_B1 > 0, energy_BT / mean_B1, 1.0).cpu()


def _direction_gradients(
    adapted: AdaptedModel, images: Tensor, *, directions: int, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """For every random logit direction, the gradient at `down`'s output by site, `[B, T, D]`."""
    parameter = next(adapted.model.parameters())
    found: list[dict[str, Tensor]] = []
    with evaluating(adapted.model), torch.enable_grad(), watching(adapted.sites, found):
        # a leaf that asks for gradients keeps the graph alive although no parameter does
        logits_BK = adapted.model(images.detach().to(parameter, copy=True).requires_grad_())
        for left in reversed(range(directions)):
            direction_BK = random_directions(logits_BK, generator)
            found.append({})
            torch.autograd.backward((logits_BK * direction_BK).sum(), retain_graph=left > 0)
    return found


def random_directions(logits_BK: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of the logits for every image; centred, where there are several logits."""
    # drawn image by image, so that the size of the batches does not matter
    drawn = [torch.randn(logits_BK.shape[1], generator=generator) for _ in logits_BK]
    direction_BK = torch.stack(drawn).to(logits_BK)
    return direction_BK - direction_BK.mean(1, keepdim=True) if logits_BK.shape[1] > 1 else direction_BK


@contextmanager
def watching(sites: Iterable[NeuronSite], found: list[dict[str, Tensor]]) -> Iterator[None]:
    """While open, every backward leaves the gradient at each `down`'s output in the last entry of `found`."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda gradient: found[-1].__setitem__(name, gradient))  # type: ignore[no-untyped-call]

        return hook

    with attach_hooks(site.down.register_forward_hook(hook_for(site.name)) for site in sites):
        yield
