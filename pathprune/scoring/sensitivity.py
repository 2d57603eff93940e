"""Sensitivity of the model's answer to each MLP output, and scores that weigh variances by it."""

# B images, T tokens, D hidden dimension of the residual stream, W neurons of a site, K logits

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

    Directions are centred, because adding a constant to all logits changes no answer. Gradients are scaled per image to
    a mean squared norm of 1 over the tokens, so that no image dominates. Labels are not used. float64 on the CPU.

    Raises ValueError if there are no images or fewer than two classes.
    """
    if adapted.num_classes < 2:
        raise ValueError(
            f"output sensitivity compares logits, but the model has {adapted.num_classes} classes; use a model with at "
            "least two, or another criterion"
        )
    generator = torch.Generator().manual_seed(seed)
    totals = {site.name: torch.zeros((), dtype=torch.float64) for site in adapted.sites}
    num_images = 0
    for images, _ in batches:
        num_images += len(images)
        for gradients in _compute_direction_gradients(adapted, images, directions=directions, generator=generator):
            for name, gradient_BTD in gradients.items():
                totals[name] = totals[name] + compute_second_moment(gradient_BTD)
    if num_images == 0:
        raise ValueError("output sensitivity needs at least one image, but there are no calibration batches")
    return {name: total / (num_images * directions) for name, total in totals.items()}


def compute_second_moment(gradient_BTD: Tensor) -> Tensor:
    """Return the second moment over tokens, summed over images, in float64 on the CPU: `[D, D]`.

    The moment of each image is scaled to a trace of 1; it is 0 if the image has no gradient.
    """
    gradient_BTD = gradient_BTD.cpu().to(torch.float64)
    energy_B11 = gradient_BTD.square().sum(-1).mean(1)[:, None, None]
    scaled_BTD = torch.where(energy_B11 > 0, gradient_BTD / energy_B11.sqrt(), 0.0)
    return torch.einsum("btd,bte->de", scaled_BTD, scaled_BTD) / gradient_BTD.shape[1]


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
        for num_left in reversed(range(directions)):
            direction_BK = draw_directions(logits_BK, generator)
            torch.autograd.backward((logits_BK * direction_BK).sum(), retain_graph=num_left > 0)
            by_direction.append(dict(gradients))
    return by_direction


def draw_directions(logits_BK: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random direction of the logits for every image, centred if there are several logits: `[B, K]`."""
    # image by image, so that the batch size does not matter
    rows = [torch.randn(logits_BK.shape[1], generator=generator) for _ in logits_BK]
    direction_BK = torch.stack(rows).to(logits_BK)
    return direction_BK - direction_BK.mean(1, keepdim=True) if logits_BK.shape[1] > 1 else direction_BK


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
