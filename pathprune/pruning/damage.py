"""What narrowing each block alone does to the model's answers, as measured."""

# B images, K classes

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from pathprune.models.adapt import evaluating
from pathprune.models.seam import AdaptedModel


@torch.no_grad()
def measure_damage(
    dense: AdaptedModel,
    narrowed: AdaptedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    class_logits: Callable[[Tensor], Tensor | None] | None = None,
) -> dict[str, float]:
    """By site, how far the answers move when its block alone is taken from `narrowed`, a pruned copy of `dense`.

    It is the mean Kullback-Leibler divergence of class probabilities, in nats, over the images of `batches`
    `(images [B, C, H, W], labels)`; labels are not read. `class_logits` makes logits of an output that is none, such as
    an embedding. What later blocks make of the change is part of it. Costs half a forward pass per block and image.
    Raises ValueError if there are no images.
    """

    def log_probabilities(h_BTD: Tensor, *, after: int) -> Tensor:
        """From the output of block `after` on: `[B, K]`."""
        output_BK = dense.head(dense.run_from(after + 1, h_BTD))
        logits_BK = class_logits(output_BK) if class_logits else output_BK
        assert logits_BK is not None, "models without classes are refused before"
        return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32)).log_softmax(-1)

    parameter = next(dense.model.parameters())
    blocks = range(len(dense.sites))
    totals = [0.0 for _ in blocks]
    num_images = 0
    with evaluating(dense.model), evaluating(narrowed.model):
        for images, _ in batches:
            h_BTD = dense.stem(images.to(parameter))
            answer_BK = log_probabilities(h_BTD, after=-1)
            num_images += len(images)
            for block in blocks:
                moved_BTD = narrowed.run_block(block, h_BTD)
                moved_BK = log_probabilities(moved_BTD, after=block)
                totals[block] += float(kl_div(moved_BK, answer_BK, log_target=True, reduction="sum"))
                h_BTD = dense.run_block(block, h_BTD)
    if num_images == 0:
        raise ValueError("damage is measured on images; there are no calibration batches")
    # what rounding takes below zero is no damage
    return {site.name: max(total / num_images, 0.0) for site, total in zip(dense.sites, totals, strict=True)}
