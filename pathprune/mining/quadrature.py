"""Rules for the integral over α in [0, 1] that every attribution takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RULES = ("gauss-legendre", "left-riemann")


def nodes_and_weights(rule: str, nodes: int) -> tuple[Tensor, Tensor]:
    """The nodes `α_M` and weights `w_M` of `rule` on [0, 1], both float64 `[nodes]`; the weights sum to 1.

    `gauss-legendre` is exact for polynomials up to degree `2·nodes − 1`. `left-riemann` (`i/nodes`, each weighing
    `1/nodes`) is the published rule, there with 20 nodes. Raises `ValueError` for another rule or `nodes < 1`.
    """
    if rule not in RULES:
        raise ValueError(f"unknown quadrature rule {rule!r}; choose from {', '.join(RULES)}")
    if nodes < 1:
        raise ValueError(f"nodes={nodes}, but the integral needs at least 1 node")
    if rule == "left-riemann":
        return torch.arange(nodes, dtype=torch.float64) / nodes, torch.full((nodes,), 1 / nodes, dtype=torch.float64)
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1]
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
