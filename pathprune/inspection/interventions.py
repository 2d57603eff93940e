"""Effects of a path: the change of the model's output when the path's neurons are scaled (arXiv 2503.09046)."""

# B images, L layers, k neurons of a layer on a path, T tokens, W neurons of a layer, K numbers of an output

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.mining import Objective
from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel


@dataclass(frozen=True)
class Effects:
    """Changes by an intervention, after minus before, image by image; float64 on the CPU."""

    probability: Tensor  # [B], of the explained class, or of the objective's number
    correct: Tensor  # [B] in {-1, 0, 1}, of whether the explained class is the prediction


@contextmanager
def scale_paths(
    adapted: AdaptedModel, paths_BLk: Tensor, *, factor: float, token_indices: Sequence[int] | None = None
) -> Iterator[None]:
    """Multiply, inside the context, the neurons of each image's path by `factor`, in a batch of B images.

    Neurons are scaled at the tokens `token_indices`; None: at all tokens. A factor of 0 removes the path, 2 enhances
    it.
    """
    with attach_hooks(
        site.down.register_forward_pre_hook(
            _build_scaling_hook(paths_BLk[:, layer].to(site.down.weight.device), factor, token_indices)
        )
        for layer, site in enumerate(adapted.sites)
    ):
        yield


@torch.no_grad()
def measure_effects(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor,
    paths_BLk: Tensor,
    *,
    factors: Sequence[float],
    objective: Objective,
    token_indices: Sequence[int] | None = None,
) -> list[Effects]:
    """Return the effects of scaling each image's path, one entry per factor.

    `images` are `[B, C, H, W]`; `targets` `[B]` are `MinedPaths.targets`; `token_indices` as in `scale_paths`.
    """
    with evaluating(adapted.model):
        clean_BK = adapted.model(images)
        function = objective.bind(clean_BK, targets.to(clean_BK.device))

        def summarize(output_BK: Tensor) -> tuple[Tensor, Tensor]:
            logits = objective.class_logits(output_BK)
            correct_B = torch.zeros(len(images)) if logits is None else logits.argmax(-1).cpu() == targets.cpu()
            return function(output_BK).cpu().double(), correct_B.double()

        clean_probability_B, clean_correct_B = summarize(clean_BK)
        effects = []
        for factor in factors:
            with scale_paths(adapted, paths_BLk, factor=factor, token_indices=token_indices):
                probability_B, correct_B = summarize(adapted.model(images))
            effects.append(Effects(probability_B - clean_probability_B, correct_B - clean_correct_B))
    return effects


def _build_scaling_hook(
    columns_Bk: Tensor, factor: float, token_indices: Sequence[int] | None
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a forward pre-hook of a down-projection that scales each image's columns of its input."""

    def scale(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTW, *rest = args
        factor_BW = torch.ones_like(hidden_BTW[:, 0]).scatter(1, columns_Bk, factor)
        if token_indices is None:
            return (hidden_BTW * factor_BW[:, None], *rest)
        scaled_BTW = hidden_BTW.clone()
        scaled_BTW[:, list(token_indices)] = hidden_BTW[:, list(token_indices)] * factor_BW[:, None]
        return (scaled_BTW, *rest)

    return scale
