"""Tests of published criteria by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.scoring import ActivationStatistics, Moments, ScoringContext, score

ROWS = torch.tensor([[1.0, 0.0, 3.0], [3.0, 0.0, -3.0]], dtype=torch.float64)  # activations of three neurons


@pytest.fixture(scope="module")
def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    args: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 6,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
    }
    model = timm.create_model("vit_tiny_patch16_224", mlp_ratio=0.5, **args)
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]).expand(6, 3) / 6)
    return adapt(model)


def score_rows(adapted: AdaptedModel, criterion: str) -> list[float]:
    """Score the second block with activations `ROWS`; its columns have absolute sums 1, 2 and 0.5."""
    statistics = ActivationStatistics({site.name: Moments.from_rows(ROWS) for site in adapted.sites})
    return score(ScoringContext(adapted, statistics=statistics), criterion=criterion)["blocks.1.mlp.fc2"].tolist()


def test_energy_is_the_mean_square(adapted: AdaptedModel) -> None:
    assert score_rows(adapted, "energy") == pytest.approx([5.0, 0.0, 9.0])


def test_variance_ignores_the_mean(adapted: AdaptedModel) -> None:
    assert score_rows(adapted, "variance") == pytest.approx([1.0, 0.0, 9.0])


def test_wanda_is_the_norm_times_the_absolute_weights(adapted: AdaptedModel) -> None:
    assert score_rows(adapted, "wanda") == pytest.approx([5**0.5, 0.0, 1.5], abs=1e-6)


def test_snip_is_the_derivative_of_the_loss_by_a_factor_on_each_neuron(adapted: AdaptedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(7, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    scores = score(
        ScoringContext(adapted, batches=[(images[:4], labels[:4]), (images[4:], labels[4:])]), criterion="snip"
    )
    factors = {site.down: torch.ones(site.width, requires_grad=True) for site in adapted.sites}

    def multiply(down: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * factors[down],)

    handles = [site.down.register_forward_pre_hook(multiply) for site in adapted.sites]
    cross_entropy(adapted.model.eval()(images), labels).backward()
    for handle in handles:
        handle.remove()
    for site in adapted.sites:
        expected = factors[site.down].grad
        assert expected is not None
        torch.testing.assert_close(scores[site.name].float(), expected.abs(), rtol=1e-4, atol=1e-7)
