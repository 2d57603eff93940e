"""Settings of the integral over α: quadrature, clamped tokens and precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pathprune.mining.choices import Rule, Tokens
from pathprune.mining.quadrature import Quadrature, build_quadrature

_DEFAULT_NODES: dict[Tokens, tuple[int, int]] = {"class": (4, 4), "all": (6, 12)}  # nodes, first_nodes


@dataclass(frozen=True)
class Integral:
    """Settings of the integral over α that every joint attribution score contains.

    - rule, nodes: the quadrature of every layer but the first.
    - first_nodes: the number of nodes of the first layer.
    - tokens: the clamped tokens: `class` for the tokens that the head reads, `all` for every token.
    - dtype: the autocast dtype of block passes; None for the model's own precision.

    Raises `ValueError` for an unknown rule and for fewer than 1 node.
    """

    rule: Rule
    nodes: int
    first_nodes: int
    tokens: Tokens
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for nodes in (self.nodes, self.first_nodes):
            build_quadrature(self.rule, nodes)  # raises for bad settings before any pass through the model

    def quadrature(self) -> Quadrature:
        """Return the quadrature of every layer but the first."""
        return build_quadrature(self.rule, self.nodes)

    def first_quadrature(self) -> Quadrature:
        """Return the quadrature of the first layer."""
        return build_quadrature(self.rule, self.first_nodes)


def resolve_nodes(tokens: Tokens, nodes: int | None = None, first_nodes: int | None = None) -> tuple[int, int]:
    """Return `nodes` and `first_nodes` with their defaults filled in.

    Given numbers are kept. `nodes` defaults to a number for the clamped tokens. `first_nodes` defaults to `nodes`, or,
    without `nodes`, to a number for the clamped tokens.
    """
    # Scaling a layer down changes the model's states most if all tokens are clamped, above all in the first layer. The
    # first layer may have more nodes than the others, because no prefix is carried into it.
    if nodes is None:
        nodes, default_first_nodes = _DEFAULT_NODES[tokens]
    else:
        default_first_nodes = nodes
    return nodes, default_first_nodes if first_nodes is None else first_nodes
