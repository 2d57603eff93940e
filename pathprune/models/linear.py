"""Parameters of linear layers in float64."""

# D outputs, W inputs

from __future__ import annotations

import torch
from torch import Tensor, nn


def exact_weight(layer: nn.Linear) -> Tensor:
    """Return the weight `[D, W]`, detached, in float64 on the CPU."""
    return layer.weight.detach().cpu().to(torch.float64)  # the CPU first: MPS has no float64


def exact_bias(layer: nn.Linear) -> Tensor:
    """Return the bias `[D]`, detached, in float64 on the CPU; zeros if the layer has none."""
    bias = dict(layer.named_parameters()).get("bias")
    if bias is None:
        return torch.zeros(layer.out_features, dtype=torch.float64)
    return bias.detach().cpu().to(torch.float64)
