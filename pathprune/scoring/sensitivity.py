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
from pathprune.models.seam import AdaptedModel
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
            weight_DW = site.down.weight.detach().cpu().to(torch.float64)
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
    parameter = next(adapted.model.parameters())
    generator = torch.Generator().manual_seed(seed)
    totals = {site.down: torch.zeros((), dtype=torch.float64) for site in adapted.sites}

    def add(down: nn.Linear, gradient_BTD: Tensor) -> None:
        gradient_BTD = gradient_BTD.cpu().to(torch.float64)
        energy_B11 = gradient_BTD.square().sum(-1).mean(1)[:, None, None]
        scaled_BTD = torch.where(energy_B11 > 0, gradient_BTD / energy_B11.sqrt(), 0.0)
        totals[down] = totals[down] + torch.einsum("btd,bte->de", scaled_BTD, scaled_BTD) / gradient_BTD.shape[1]

    num_images = 0
    with evaluating(adapted.model), torch.enable_grad(), _watching(totals, add):
        for images, _ in batches:
            num_images += len(images)
            # a leaf that asks for gradients keeps the graph alive although no parameter does
            logits_BK = adapted.model(images.detach().to(parameter, copy=True).requires_grad_())
            for left in reversed(range(directions)):
                # drawn image by image, so that the size of the batches does not matter
                drawn = [torch.randn(adapted.num_classes, generator=generator) for _ in images]
                direction_BK = torch.stack(drawn).to(logits_BK)
                direction_BK -= direction_BK.mean(1, keepdim=True)
                torch.autograd.backward((logits_BK * direction_BK).sum(), retain_graph=left > 0)
    if num_images == 0:
        raise ValueError("output sensitivity needs at least one image; there are no calibration batches")
    return {site.name: totals[site.down] / (num_images * directions) for site in adapted.sites}


@contextmanager
def _watching(layers: Iterable[nn.Linear], add: Callable[[nn.Linear, Tensor], None]) -> Iterator[None]:
    """While open, every backward through `layers` hands the gradient at their output to `add`."""

    def hook(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        output.register_hook(lambda gradient: add(layer, gradient))  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
