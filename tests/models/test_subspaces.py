"""Bases of channels: optimal by their own measure, exact at full rank, and stable for heads that do little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pathprune.models.subspaces import compute_query_key_basis, compute_value_basis

HEADS, DIM, OUTPUTS, ROWS = 2, 6, 4, 400


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moments(rows: Tensor) -> Tensor:
    """Second moments of rows `[H, N, E]`."""
    return rows.mT @ rows / rows.shape[1]


def correlated_rows(seed: int) -> Tensor:
    return draw(HEADS, ROWS, DIM, seed=seed) @ draw(HEADS, DIM, DIM, seed=seed + 1) + draw(HEADS, 1, DIM, seed=seed + 2)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_value_basis_loses_the_least_output_of_any_projector(rank):
    values, down = correlated_rows(0), draw(HEADS, OUTPUTS, DIM, seed=9)
    basis = compute_value_basis(second_moments(values), down, rank=rank)
    assert basis.reduce.shape == (HEADS, rank, DIM)

    def loss(projector: Tensor) -> Tensor:
        return (down @ (values - values @ projector.mT).mT).square().sum((1, 2))

    least = loss(basis.projector)
    # Eckart and Young: the squared singular values of the outputs that are left out
    singular = torch.linalg.svdvals(down @ values.mT)
    torch.testing.assert_close(least, singular[:, rank:].square().sum(1))
    for seed in range(20):
        change = draw(HEADS, DIM, DIM, seed=seed)
        other = change.inverse()[..., :rank] @ change[:, :rank]
        assert (loss(other) >= least - 1e-9).all()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_query_key_basis_keeps_the_top_singular_values_of_whitened_logits(rank):
    queries, keys = correlated_rows(0), correlated_rows(7)
    query_moments, key_moments = second_moments(queries), second_moments(keys)
    basis = compute_query_key_basis(query_moments, key_moments, rank=rank)
    # with independent queries and keys, the mean squared loss of a logit is tr(C_q M C_k Mᵀ), where M = 1 - P
    loss_matrix = torch.eye(DIM) - basis.projector
    loss = torch.einsum("hab,hbc,hcd,had->h", query_moments, loss_matrix, key_moments, loss_matrix)
    singular = torch.linalg.eigvals(query_moments @ key_moments).real.sort(descending=True).values
    torch.testing.assert_close(loss, singular[:, rank:].sum(1))


def test_full_rank_changes_nothing():
    eye = torch.eye(DIM, dtype=torch.float64).expand(HEADS, -1, -1)
    moments, down = second_moments(correlated_rows(3)), draw(HEADS, OUTPUTS, DIM)
    torch.testing.assert_close(compute_value_basis(moments, down, rank=DIM).projector, eye)
    torch.testing.assert_close(compute_query_key_basis(moments, moments, rank=DIM).projector, eye)


def test_values_that_never_vary_in_some_directions_lose_nothing():
    values = correlated_rows(0)
    values[..., 3:] = 0
    values[1] = 0  # a head that is always zero
    basis = compute_value_basis(second_moments(values), draw(HEADS, OUTPUTS, DIM), rank=3)
    torch.testing.assert_close(values @ basis.projector.mT, values)
    assert basis.reduce.float().isfinite().all()
    assert basis.expand.float().isfinite().all()
