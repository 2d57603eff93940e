"""Slow implementation of sequential least squares, output by output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pathprune.models.seam import AdaptedModel
from pathprune.pruning import PrunePlan, prune


def fit_ridge_by_hand(
    rows: np.ndarray, target: np.ndarray, start: np.ndarray, penalty: float, weights: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the weights and the bias of a ridge fit towards `start`, from least squares with penalty rows."""
    n, k = rows.shape
    anchor = np.sqrt(n * penalty)
    root_weights = np.sqrt(weights)[:, None]
    design = np.vstack(
        [root_weights * np.hstack([rows, np.ones((n, 1))]), np.hstack([anchor * np.eye(k), np.zeros((k, 1))])]
    )
    solution, *_ = np.linalg.lstsq(design, np.concatenate([root_weights[:, 0] * target, anchor * start]), rcond=None)
    return solution[:-1], solution[-1]


def refit_by_hand(
    layer: nn.Linear,
    x: Tensor,
    y: Tensor,
    *,
    ridge: float,
    gamma: np.ndarray | None = None,
    weights: Tensor | None = None,
) -> None:
    """Fit `gamma * layer(x)` to `y` in place, one output after another."""
    rows, target = x.flatten(0, 1).numpy(), y.flatten(0, 1).numpy()
    gamma = np.ones(target.shape[1]) if gamma is None else gamma
    row_weights = np.ones(len(rows)) if weights is None else weights.flatten().numpy()
    variance = np.average((rows - np.average(rows, axis=0, weights=row_weights)) ** 2, axis=0, weights=row_weights)
    start = layer.weight.numpy().copy()
    for d in range(target.shape[1]):
        penalty = ridge * variance.mean() * (gamma**2).mean() / gamma[d] ** 2
        weight, bias = fit_ridge_by_hand(rows, target[:, d] / gamma[d], start[d], penalty, row_weights)
        layer.weight[d] = torch.from_numpy(weight)
        layer.bias[d] = bias


@torch.no_grad()
def fit_sequentially_by_hand(
    dense: AdaptedModel, plan: PrunePlan, images: Tensor, *, ridge: float, weights: Sequence[Tensor] | None = None
) -> AdaptedModel:
    """Prune the model and fit its MLPs alone, on all images at once."""
    pruned = prune(dense, plan=plan)
    wide = narrow = dense.stem(images)
    for index, site in enumerate(pruned.sites):
        wide = dense.close_block(index, *dense.open_block(index, wide))
        m, u = pruned.open_block(index, narrow)
        block = dense.model.blocks[index]
        gamma = block.ls2.gamma.numpy() if hasattr(block.ls2, "gamma") else None
        refit_by_hand(
            site.down, u, wide - m, ridge=ridge, gamma=gamma, weights=None if weights is None else weights[index]
        )
        narrow = pruned.close_block(index, m, u)
    return pruned
