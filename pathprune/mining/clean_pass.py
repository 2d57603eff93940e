"""Clean forward pass of a batch: the values that clamping starts from, and the classes to explain."""

# B images, T tokens, R clamped tokens, D channels, W neurons of a layer, K numbers of an output, C classes

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pathprune.mining.objectives import Objective
from pathprune.models.seam import AdaptedModel


@dataclass(frozen=True)
class CleanPass:
    """Results of one forward pass with nothing clamped."""

    first_m_BTD: Tensor  # residual stream of block 0, to which its MLP's output is added
    first_u_BTW: Tensor  # hidden activations of block 0
    values: tuple[Tensor, ...]  # hidden activations of the clamped tokens, per layer [B, R, W_l]
    output_BK: Tensor


def run_clean_pass(
    adapted: AdaptedModel, images: Tensor, *, clamped_tokens: Tensor | None, dtype: torch.dtype
) -> CleanPass:
    """Run the model on `images`. `clamped_tokens` are int64 `[R]`, None for all; kept results have `dtype`.

    Raises `ValueError` if the hidden activations of a block are NaN or infinite.
    """
    values, finite = [], []
    first_m_BTD, first_u_BTW = m_BTD, u_BTW = adapted.open_block(0, adapted.stem(images))
    for block in range(len(adapted.sites)):
        if block > 0:
            m_BTD, u_BTW = adapted.open_block(block, adapted.close_block(block - 1, m_BTD, u_BTW))
        values.append((u_BTW if clamped_tokens is None else u_BTW[:, clamped_tokens]).to(dtype))
        finite.append(torch.stack(u_BTW.aminmax()).isfinite().all())
    output_BK = adapted.head(adapted.close_block(len(adapted.sites) - 1, m_BTD, u_BTW))
    for site, is_finite in zip(adapted.sites, torch.stack(finite).tolist(), strict=True):
        if not is_finite:
            raise ValueError(
                f"the hidden activations of block {site.block} ({site.name}) are NaN or infinite; check that the "
                "images are finite and normalised, the weights intact and the precision wide enough"
            )
    return CleanPass(first_m_BTD, first_u_BTW, tuple(values), output_BK.to(dtype))


def resolve_classes(objective: Objective, output_BK: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return predictions and targets, int64 `[B]`; both are -1 for an objective without classes.

    Targets default to the predictions. Raises `ValueError` for targets of another shape, dtype or range, and for
    targets without classes.
    """
    logits_BC = objective.class_logits(output_BK)
    if logits_BC is None:
        if targets is not None:
            raise ValueError("targets were given but the model has no classifier; pass targets=None")
        no_class_B = torch.full((len(output_BK),), -1, device=output_BK.device)
        return no_class_B, no_class_B
    predictions = logits_BC.argmax(-1)
    if targets is None:
        return predictions, predictions
    num_images, num_classes = logits_BC.shape
    if targets.shape != (num_images,) or targets.is_floating_point():
        raise ValueError(
            f"targets are {targets.dtype} of shape {list(targets.shape)}; expected one integer class for each of the "
            f"{num_images} images"
        )
    for target in targets.tolist():
        if not 0 <= target < num_classes:
            raise ValueError(f"target {target} is out of range: there are {num_classes} classes")
    return predictions, targets.to(predictions)
