"""Quadrature rules by hand, and on polynomials that they integrate exactly."""

import pytest
import torch

from pathprune.mining.quadrature import build_quadrature


def test_left_riemann_nodes_by_hand():
    nodes, weights = build_quadrature("left-riemann", 20)
    torch.testing.assert_close(nodes, torch.tensor([i / 20 for i in range(20)], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full((20,), 0.05, dtype=torch.float64))


def test_gauss_legendre_nodes_by_hand():
    nodes, weights = build_quadrature("gauss-legendre", 2)
    torch.testing.assert_close(nodes, torch.tensor([(1 - 3**-0.5) / 2, (1 + 3**-0.5) / 2], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("nodes", [1, 3, 4])
def test_gauss_legendre_is_exact_up_to_its_degree(nodes):
    alpha, weight = build_quadrature("gauss-legendre", nodes)
    for degree in range(2 * nodes):
        assert (weight * alpha**degree).sum().item() == pytest.approx(1 / (degree + 1), rel=1e-13)
    degree = 2 * nodes
    assert (weight * alpha**degree).sum().item() != pytest.approx(1 / (degree + 1), rel=1e-6)
