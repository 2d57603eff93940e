"""What a path does: the model's answer when the neurons on it are removed, or enhanced (arXiv 2503.09046)."""

# B images, L layers, k neurons of a layer on a path, T tokens, W neurons of a layer, K classes

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.mining.objectives import Objective
from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel


@dataclass(frozen=True)
class Effects:
    """What an intervention changed, image by image; float64 on the CPU."""

    probability: Tensor  # [B], of the explained class (or what else the objective reads), after less before
    correct: Tensor  # [B] in {-1, 0, 1}: whether the explained class is the prediction, after less before


@contextmanager
def scaled_paths(
    adapted: AdaptedModel, paths_BLk: Tensor, *, factor: float, rows: Sequence[int] | None = None
) -> Iterator[None]:
    """While open, a batch of B images runs with the neurons of each image's path multiplied by `factor`.

    `rows` are the tokens at which they are; None: all. 0 removes the path, 2 enhances it.
    """
    with attach_hooks(
        site.down.register_forward_pre_hook(_scaling(paths_BLk[:, layer].to(site.down.weight.device), factor, rows))
        for layer, site in enumerate(adapted.sites)
    ):
        yield


@torch.no_grad()
def effects_of_scaling(
    adapted: AdaptedModel,
    images: Tensor,
    targets: Tensor,
    paths_BLk: Tensor,
    *,
    factors: Sequence[float],
    objective: Objective,
    rows: Sequence[int] | None = None,
) -> list[Effects]:
    """For each factor, how the answers to `images` `[B, C, H, W]` change; `targets` `[B]` as the miner returns them."""
    with evaluating(adapted.model):
        clean_BK = adapted.model(images)
        readout = objective.readout(clean_BK, targets.to(clean_BK.device))

        def answers(output_BK: Tensor) -> tuple[Tensor, Tensor]:
            logits = objective.class_logits(output_BK)
            right_B = torch.zeros(len(images)) if logits is None else logits.argmax(-1).cpu() == targets.cpu()
            return readout(output_BK).cpu().double(), right_B.double()

        before = answers(clean_BK)
        effects = []
        for factor in factors:
            with scaled_paths(adapted, paths_BLk, factor=factor, rows=rows):
                after = answers(adapted.model(images))
            effects.append(Effects(after[0] - before[0], after[1] - before[1]))
    return effects


def _scaling(
    columns_Bk: Tensor, factor: float, rows: Sequence[int] | None
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def scale(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTW, *rest = args
        factor_BW = torch.ones_like(hidden_BTW[:, 0]).scatter(1, columns_Bk, factor)
        if rows is None:
            return (hidden_BTW * factor_BW[:, None], *rest)
        changed = hidden_BTW.clone()
        changed[:, list(rows)] = hidden_BTW[:, list(rows)] * factor_BW[:, None]
        return (changed, *rest)

    return scale
