"""Quadrature rules for the integral over α in [0, 1] that every attribution contains."""

# M nodes

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathprune.mining.choices import RULES, Rule


class Quadrature(NamedTuple):
    """Nodes and weights of a quadrature on [0, 1]; the weights sum to 1."""

    alpha_M: Tensor
    weight_M: Tensor


def build_quadrature(rule: Rule, nodes: int) -> Quadrature:
    """Return the nodes and weights of `rule` on [0, 1], both float64 `[nodes]`.

    - `gauss-legendre` is exact for polynomials up to degree `2·nodes − 1`.
    - `left-riemann` has the nodes `i/nodes`, each of weight `1/nodes`. The paper (arXiv 2503.09046) uses 20 nodes.

    Raises `ValueError` for an unknown rule and for `nodes < 1`.
    """
    if rule not in RULES:
        raise ValueError(f"unknown quadrature rule {rule!r}; choose from {', '.join(RULES)}")
    if nodes < 1:
        raise ValueError(f"nodes={nodes} is out of range: the integral needs at least 1 node")
    if rule == "left-riemann":
        alpha_M = torch.arange(nodes, dtype=torch.float64) / nodes
        return Quadrature(alpha_M, torch.full((nodes,), 1 / nodes, dtype=torch.float64))
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1]
    return Quadrature(torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2))
