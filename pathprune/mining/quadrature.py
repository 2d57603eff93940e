"""Rules for the integral over α in [0, 1] that every attribution takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RULES = ("gauss-legendre", "left-riemann")
_ENOUGH = {"class": (4, 4), "all": (6, 12)}  # nodes, and those of the first layer, by the tokens that are clamped


def nodes_for(tokens: str, nodes: int | None = None, first_nodes: int | None = None) -> tuple[int, int]:
    """The number of nodes, and that of the first layer: as given, else enough for the tokens, or as many as `nodes`.

    Where every token is clamped, scaling a layer down changes the model's states most, and in the first layer more than
    in any other: few nodes miss there first. A path is not carried into that layer, so that it may have its own.
    """
    if nodes is None:
        nodes, enough = _ENOUGH[tokens]
    else:
        enough = nodes
    return nodes, enough if first_nodes is None else first_nodes


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
