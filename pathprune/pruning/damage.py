"""Damage: the change of the model's answers when one block alone is pruned."""

# B images, T tokens, D hidden dimension, K classes

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from pathprune.models.adapt import evaluating
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.batches import Batches


@torch.no_grad()
def measure_damage(
    dense: AdaptedModel,
    pruned: AdaptedModel,
    batches: Batches,
    *,
    class_logits: Callable[[Tensor], Tensor | None] | None = None,
) -> dict[str, float]:
    """Return, by site, the divergence of the model's answers when its block alone comes from `pruned`.

    The damage of a site is the mean Kullback-Leibler divergence, in nats, of the class probabilities from those of the
    dense model, over the images of `batches`. Labels are not used. `class_logits` turns the model's output into logits,
    for models that return embeddings. The cost is half a forward pass per block and image.

    Raises ValueError if there are no images.
    """

    def compute_log_probabilities(h_BTD: Tensor, *, start: int) -> Tensor:
        """Run the dense model from the state that enters block `start`: `[B, K]`."""
        output_BK = dense.head(dense.run_from(start, h_BTD))
        logits_BK = class_logits(output_BK) if class_logits else output_BK
        assert logits_BK is not None, "the caller refuses models without classes"
        return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32)).log_softmax(-1)

    parameter = next(dense.model.parameters())
    totals = [0.0 for _ in dense.sites]
    num_images = 0
    with evaluating(dense.model), evaluating(pruned.model):
        for images, _ in batches:
            num_images += len(images)
            h_BTD = dense.stem(images.to(parameter))
            dense_BK = compute_log_probabilities(h_BTD, start=0)
            for block in range(len(dense.sites)):
                changed_BK = compute_log_probabilities(pruned.run_block(block, h_BTD), start=block + 1)
                totals[block] += float(kl_div(changed_BK, dense_BK, log_target=True, reduction="sum"))
                h_BTD = dense.run_block(block, h_BTD)
    if num_images == 0:
        raise ValueError("damage is measured on images, but there are no calibration batches; pass at least one image")
    # rounding can take a divergence below zero
    return {site.name: max(total / num_images, 0.0) for site, total in zip(dense.sites, totals, strict=True)}
