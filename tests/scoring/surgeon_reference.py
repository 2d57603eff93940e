"""Slow implementation of greedy removal, which updates all weights and the whole inverse after each removal."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def find_removal_order_slowly(weight_DW: Tensor, covariance_WW: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the columns `[W]` in the order of removal, and the squared error `[W]` that each removal adds."""
    weight_DW = weight_DW.clone()
    inverse_WW = torch.linalg.inv(covariance_WW + penalty * torch.eye(len(covariance_WW), dtype=torch.float64))
    is_removed_W = torch.zeros(len(covariance_WW), dtype=torch.bool)
    order, errors = [], []
    for _ in range(len(covariance_WW)):
        error_W = (weight_DW.square().sum(0) / inverse_WW.diagonal()).masked_fill(is_removed_W, math.inf)
        index = int(error_W.argmin())
        order.append(index)
        errors.append(float(error_W[index]))
        is_removed_W[index] = True
        step_W = inverse_WW[index] / inverse_WW[index, index]
        weight_DW -= torch.outer(weight_DW[:, index], step_W)
        inverse_WW -= torch.outer(inverse_WW[:, index], step_W)
        inverse_WW.diagonal()[is_removed_W] = 1.0  # zero but for rounding, and a divisor above
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)
