"""Tests of the multiply-accumulate counter against hand counts."""

import pytest
import timm
import torch

from pathprune.evaluation import MacCounter, count_macs
from pathprune.mining import locate_paths
from pathprune.models.adapt import adapt


def test_matrix_products_and_factorisations_match_hand_counts():
    x = torch.randn(5, 7, requires_grad=True)
    with MacCounter() as counter:
        loss = (x @ torch.randn(7, 3)).sum()
    assert counter.macs == 5 * 7 * 3
    with MacCounter() as counter:
        loss.backward()
    assert counter.macs == 5 * 7 * 3  # only x needs a gradient
    matrix = torch.eye(6) * 2
    with MacCounter() as counter:
        factor, _ = torch.linalg.cholesky_ex(matrix)
        torch.cholesky_solve(torch.ones(6, 2), factor)
        matrix.addr_(torch.ones(6), torch.ones(6))
    assert counter.macs == 6**3 / 6 + 6 * 6 * 2 + 6 * 6


def test_attention_counts_forward_and_backward_with_any_kernel():
    """Attention is two matrix products. A fused backward pass recomputes the scores and costs 2.5 times as much."""
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with MacCounter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    forward = counter.macs
    assert forward == 2 * (2 * 3 * 5 * 5 * 8)
    with MacCounter() as counter:
        out.sum().backward()
    assert counter.macs in (2 * forward, 2.5 * forward)


def test_forward_pass_costs_the_models_macs_and_mining_a_multiple():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=3, num_heads=2, num_classes=4)
    images = torch.randn(2, 3, 32, 32)
    dense = count_macs(model, 32)
    with MacCounter() as counter, torch.no_grad():
        model.eval()(images)
    assert counter.macs == pytest.approx(2 * dense, rel=0.02)  # a fused kernel may pad its inputs
    with MacCounter() as counter:
        locate_paths(adapt(model), images, torch.tensor([0, 1]), tokens="all", nodes=2)
    assert 2 * 2 * dense < counter.macs < 2 * 2 * 12 * dense
