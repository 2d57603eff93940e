"""Tests of the optimal brain surgeon's order by hand, by brute force, and against the ridge fit."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from pathprune.models.adapt import adapt
from pathprune.pruning import make_plan, prune
from pathprune.scoring import ActivationStatistics, Moments, ScoringContext, score
from pathprune.scoring.surgeon import find_removal_order
from tests.scoring.surgeon_reference import find_removal_order_slowly

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def draw_case(seed: int, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight_DW = torch.randn(3, width, generator=generator, **DOUBLE)
    rows = torch.randn(40, width, generator=generator, **DOUBLE) @ torch.randn(
        width, width, generator=generator, **DOUBLE
    )
    return weight_DW, torch.cov(rows.T, correction=0)


def test_uncorrelated_neurons_are_ordered_by_variance_times_squared_norm() -> None:
    weight_DW = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 2.0]], **DOUBLE)  # squared norms 1, 4, 5
    order, error = find_removal_order(weight_DW, torch.diag(torch.tensor([9.0, 1.0, 2.0], **DOUBLE)), penalty=1.0)
    assert order.tolist() == [1, 0, 2]
    assert error.tolist() == pytest.approx([4 * 2, 1 * 10, 5 * 3])


def test_removing_one_of_two_equal_neurons_is_free_and_the_other_then_costs_both() -> None:
    covariance = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 5.0]], **DOUBLE)
    weight_DW = torch.tensor([[1.0, 1.0, 1.0]], **DOUBLE)
    order, error = find_removal_order(weight_DW, covariance, penalty=1e-6)
    assert order.tolist() == [0, 2, 1]
    # the first costs the penalty alone, the third its own variance, and the twin, now of weight 2, costs 2² · 4
    assert error.tolist() == pytest.approx([0.0, 5.0, 16.0], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_each_removal_adds_the_least_error_after_refitting(seed: int) -> None:
    weight_DW, covariance = draw_case(seed)
    penalty = 0.1
    ridge = covariance + penalty * torch.eye(6, **DOUBLE)

    def error_without(removed: list[int]) -> float:
        kept = [column for column in range(6) if column not in removed]
        change_DW = -weight_DW.clone()  # removed columns become zero, kept columns are fitted
        change_DW[:, kept] = weight_DW[:, removed] @ ridge[removed][:, kept] @ torch.linalg.inv(ridge[kept][:, kept])
        return float(torch.trace(change_DW @ ridge @ change_DW.T))

    removed: list[int] = []
    order, added = find_removal_order(weight_DW, covariance, penalty=penalty)
    for column, error in zip(order.tolist(), added.tolist(), strict=True):
        rest = [other for other in range(6) if other not in removed]
        assert column == min(rest, key=lambda other: error_without([*removed, other]))
        assert error == pytest.approx(error_without([*removed, column]) - (error_without(removed) if removed else 0))
        removed.append(column)


DELAYS = (1, 7, 16, 128)
CASES = {
    "full-rank": lambda draw: (draw(10, 40), draw(120, 40) @ draw(40, 40)),
    "fewer-rows-than-columns": lambda draw: (draw(10, 40), draw(12, 40)),
    "low-rank": lambda draw: (draw(10, 40), draw(120, 8) @ draw(8, 40)),
    "low-rank-weights": lambda draw: (draw(10, 1) @ draw(1, 40), draw(120, 40) @ draw(40, 40)),
    "dead-outputs": lambda draw: (draw(10, 40) * (torch.arange(40) % 3 > 0), draw(120, 40) @ draw(40, 40)),
    "constant-neurons": lambda draw: (draw(10, 40), draw(120, 40).index_fill(1, torch.arange(0, 40, 4), 2.0)),
    "one-output": lambda draw: (draw(1, 40), draw(120, 40)),
    "one-neuron": lambda draw: (draw(10, 1), draw(120, 1)),
}


def draw_rows(case: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the weights `[D, W]` of a case, and the covariance `[W, W]` of its rows."""
    generator = torch.Generator().manual_seed(seed)
    weight_DW, rows = CASES[case](lambda *shape: torch.randn(*shape, generator=generator, **DOUBLE))
    return weight_DW, torch.cov(rows.T, correction=0).reshape(rows.shape[1], rows.shape[1])


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("ridge", [1e-3, 1e-6])
@pytest.mark.parametrize("case", CASES)
def test_delayed_updates_give_the_order_of_updates_after_each_removal(case: str, ridge: float, delay: int) -> None:
    for seed in range(3):
        weight_DW, covariance = draw_rows(case, seed)
        arguments = weight_DW.clone(), covariance.clone()
        penalty = ridge * float(covariance.diagonal().mean())
        order, error = find_removal_order(weight_DW, covariance, penalty=penalty, delay=delay)
        expected_order, expected_error = find_removal_order_slowly(weight_DW, covariance, penalty=penalty)
        assert torch.equal(order, expected_order)
        torch.testing.assert_close(error, expected_error, rtol=1e-7, atol=1e-9 * float(expected_error.max()))
        assert torch.equal(weight_DW, arguments[0])
        assert torch.equal(covariance, arguments[1])


@pytest.mark.parametrize("delay", DELAYS)
def test_equal_uncorrelated_neurons_are_removed_from_the_first_to_the_last(delay: int) -> None:
    order, error = find_removal_order(torch.ones(3, 40, **DOUBLE), torch.eye(40, **DOUBLE), penalty=0.5, delay=delay)
    assert order.tolist() == list(range(40))
    assert error.tolist() == [4.5] * 40


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["equal", "opposite"])
@pytest.mark.parametrize("delay", DELAYS)
def test_neurons_with_a_twin_are_ordered_as_by_updates_after_each_removal(delay: int, sign: float) -> None:
    weight_DW, covariance = draw_case(0, width=20)
    weight_DW, covariance = torch.cat([weight_DW, sign * weight_DW], dim=1), covariance.repeat(2, 2)
    penalty = 1e-3 * float(covariance.diagonal().mean())
    order, error = find_removal_order(weight_DW, covariance, penalty=penalty, delay=delay)
    expected_order, expected_error = find_removal_order_slowly(weight_DW, covariance, penalty=penalty)
    # rounding decides which twin goes first, and the order of twins whose outputs cancel
    num_different = 40 if sign > 0 else 20
    assert torch.equal(order[:num_different] % 20, expected_order[:num_different] % 20)
    torch.testing.assert_close(error, expected_error, rtol=1e-7, atol=1e-9 * float(expected_error.max()))


@pytest.mark.parametrize("delay", DELAYS)
def test_all_errors_together_are_the_penalised_output_energy(delay: int) -> None:
    weight_DW, covariance = draw_rows("low-rank", seed=0)
    penalty = 1e-8 * float(covariance.diagonal().mean())
    _, error = find_removal_order(weight_DW, covariance, penalty=penalty, delay=delay)
    energy = torch.trace(weight_DW @ (covariance + penalty * torch.eye(40, **DOUBLE)) @ weight_DW.T)
    assert float(error.sum()) == pytest.approx(float(energy), rel=1e-6)


def test_scores_follow_the_order_and_least_squares_equals_the_updates() -> None:
    torch.manual_seed(0)
    args: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 6,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
    }
    adapted = adapt(timm.create_model("vit_tiny_patch16_224", mlp_ratio=1, **args).double())
    (site,) = adapted.sites
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator, **DOUBLE) @ torch.randn(6, 6, generator=generator, **DOUBLE)
    statistics = ActivationStatistics({site.name: Moments.from_rows(rows, covariance=True)})
    scores = score(ScoringContext(adapted, statistics=statistics), criterion={"name": "obs", "ridge": 0.01})
    covariance = statistics.sites[site.name].covariance
    assert covariance is not None
    penalty = 0.01 * float(covariance.diagonal().mean())
    weight_DW = site.down.weight.detach()
    order, _ = find_removal_order(weight_DW, covariance, penalty=penalty)
    assert scores[site.name].argsort().tolist() == order.tolist()
    assert (scores[site.name][order].diff() > 0).all()

    plan = make_plan(scores, sites=adapted.sites, ratio=0.5)
    kept, removed = plan.kept[site.name], plan.pruned(site.name)
    assert sorted(order[:3].tolist()) == removed.tolist()
    penalised = covariance + penalty * torch.eye(6, **DOUBLE)
    updated = weight_DW.clone()
    inverse = torch.linalg.inv(penalised)
    for column in order[:3].tolist():  # the surgeon's updates, neuron by neuron
        updated -= torch.outer(updated[:, column], inverse[column] / inverse[column, column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column] / inverse[column, column])
    # the compensation's ridge is relative to the kept neurons' mean variance
    ridge = penalty / float(covariance[kept][:, kept].diagonal().mean())
    compensation = {"name": "least-squares", "ridge": ridge}
    pruned = prune(adapted, plan=plan, compensation=compensation, statistics=statistics)
    torch.testing.assert_close(pruned.sites[0].down.weight.detach(), updated[:, kept])


def test_constant_neurons_all_score_zero() -> None:
    args: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 6,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
    }
    adapted = adapt(timm.create_model("vit_tiny_patch16_224", mlp_ratio=1, **args))
    constant = ActivationStatistics({"blocks.0.mlp.fc2": Moments.from_rows(torch.ones(4, 6), covariance=True)})
    scores = score(ScoringContext(adapted, statistics=constant), criterion="obs")
    assert scores["blocks.0.mlp.fc2"].tolist() == [0.0] * 6
