"""Parameters of linear layers: read in float64, and replaced in place."""

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


def set_weight(layer: nn.Linear, weight_DW: Tensor) -> None:
    """Replace the weight in place; dtype, device and `requires_grad` stay."""
    layer.weight = nn.Parameter(weight_DW.to(layer.weight), requires_grad=layer.weight.requires_grad)


def set_bias(layer: nn.Linear, bias_D: Tensor) -> None:
    """Replace or add the bias in place, with the dtype, device and `requires_grad` of the weight."""
    layer.bias = nn.Parameter(bias_D.to(layer.weight), requires_grad=layer.weight.requires_grad)
