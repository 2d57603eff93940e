"""Tests of least squares against numpy's, and of fits that the calibration tokens do not determine."""

import logging

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import LeastSquares, PrunePlan, make_plan, prune
from pathprune.pruning.ridge import solve_ridge
from pathprune.scoring import ActivationStatistics, collect_statistics

TINY = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2}


def make_model(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.5).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if not bias:
        for block in model.blocks:
            block.mlp.fc2.bias = None
    return adapt(model.to(dtype))


def draw_images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def collect_covariances(adapted: AdaptedModel, images: Tensor) -> ActivationStatistics:
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(3)]
    return collect_statistics(adapted, batches, covariance=True)


def keep_odd(adapted: AdaptedModel, **settings) -> PrunePlan:
    """Make a plan that keeps the odd columns."""
    scores = {site.name: torch.arange(site.width) % 2 for site in adapted.sites}
    return make_plan(scores, sites=adapted.sites, **settings)


@torch.no_grad()
def run_first_block(adapted: AdaptedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first block's hidden activations `[N, W]` and the outputs `[N, D]` of its `down`."""
    _, u = adapted.open_block(0, adapted.stem(images))
    return u.flatten(0, 1), adapted.sites[0].down(u).flatten(0, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_without_ridge_the_fit_equals_numpys(bias):
    adapted, images = make_model(bias=bias), draw_images(10)
    pruned = prune(
        adapted,
        plan=keep_odd(adapted),
        compensation=LeastSquares(ridge=0.0),
        statistics=collect_covariances(adapted, images),
    )
    hidden, target = run_first_block(adapted, images)
    kept = np.hstack([hidden[:, 1::2].numpy(), np.ones((len(hidden), 1))])
    solution, *_ = np.linalg.lstsq(kept, target.numpy(), rcond=None)
    np.testing.assert_allclose(pruned.sites[0].down.weight.detach().numpy(), solution[:-1].T, atol=1e-9)
    np.testing.assert_allclose(pruned.sites[0].down.bias.detach().numpy(), solution[-1], atol=1e-9)
    assert pruned.sites[0].down.weight.requires_grad


def test_with_ridge_the_fit_equals_a_fit_with_penalty_rows_appended():
    adapted, images = make_model(), draw_images(10)
    statistics = collect_covariances(adapted, images)
    pruned = prune(adapted, plan=keep_odd(adapted), compensation=LeastSquares(ridge=0.1), statistics=statistics)
    hidden, _ = run_first_block(adapted, images)
    centred = (hidden - hidden.mean(0)).numpy()
    kept, removed = centred[:, 1::2], centred[:, 0::2]
    penalty = np.sqrt(0.1 * kept.var(0).mean() * len(kept)) * np.eye(kept.shape[1])
    rows = np.vstack([kept, penalty]), np.vstack([removed, np.zeros((kept.shape[1], removed.shape[1]))])
    replacement, *_ = np.linalg.lstsq(*rows, rcond=None)
    weight = adapted.sites[0].down.weight.detach().numpy()
    expected = weight[:, 1::2] + weight[:, 0::2] @ replacement.T
    np.testing.assert_allclose(pruned.sites[0].down.weight.detach().numpy(), expected, atol=1e-9)


def make_dependent_model() -> AdaptedModel:
    """Build a model whose even neurons copy an odd neuron each; the first is constant, the last kept one dead."""
    adapted = make_model()
    for block in adapted.model.blocks:
        for parameter in (block.mlp.fc1.weight.data, block.mlp.fc1.bias.data):
            parameter[0::2] = parameter[1::2]
            parameter[[0, -1, -2]] = 0.0
        block.mlp.fc1.bias.data[0] = 2.0
    return adapted


@pytest.mark.parametrize(("ridge", "tolerance"), [(0.0, 1e-8), (1e-11, 1e-8)])
def test_removing_neurons_that_depend_linearly_on_kept_ones_changes_nothing(ridge, tolerance):
    adapted, images = make_dependent_model(), draw_images(10)
    plan = keep_odd(adapted)
    compensation, statistics = LeastSquares(ridge=ridge), collect_covariances(adapted, images)
    fitted = prune(adapted, plan=plan, compensation=compensation, statistics=statistics)
    new = draw_images(4, seed=2)
    torch.testing.assert_close(fitted.model(new), adapted.model(new), rtol=tolerance, atol=tolerance)
    shifted = prune(adapted, plan=plan, compensation="mean", statistics=statistics)
    assert (shifted.model(new) - adapted.model(new)).abs().max() > 0.01


def test_a_huge_ridge_leaves_the_mean_shift():
    adapted = make_model()
    plan, statistics = keep_odd(adapted), collect_covariances(adapted, draw_images(10))
    shifted = prune(adapted, plan=plan, compensation="mean", statistics=statistics)
    fitted = prune(adapted, plan=plan, compensation=LeastSquares(ridge=1e12), statistics=statistics)
    for one, other in zip(fitted.sites, shifted.sites, strict=True):
        torch.testing.assert_close(one.down.weight, other.down.weight, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.down.bias, other.down.bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("count", [1, 10])
def test_the_fit_is_never_worse_than_mean_shift_on_the_calibration_tokens(ridge, count):
    adapted, images = make_model(), draw_images(count)
    plan, statistics = keep_odd(adapted, ratio=0.7), collect_covariances(adapted, images)
    hidden, target = run_first_block(adapted, images)
    errors = []
    for compensation in (LeastSquares(ridge=ridge), "mean"):
        down = prune(adapted, plan=plan, compensation=compensation, statistics=statistics).sites[0].down
        errors.append((down(hidden[:, plan.kept["blocks.0.mlp.fc2"]]) - target).square().sum(0))
    assert (errors[0] <= errors[1] + 1e-12).all()
    assert errors[0].sum() < 0.9 * errors[1].sum()


def test_a_model_in_float32_is_fitted_in_float64_and_stays_float32():
    exact, single = make_model(), make_model(dtype=torch.float32)
    images = draw_images(10)
    one, other = (
        prune(
            each,
            plan=keep_odd(each),
            compensation="least-squares",
            statistics=collect_covariances(each, images),
        )
        for each in (exact, single)
    )
    assert other.sites[1].down.weight.dtype == torch.float32
    torch.testing.assert_close(other.sites[1].down.weight.double(), one.sites[1].down.weight, rtol=1e-3, atol=1e-4)


def test_a_model_is_pruned_and_fitted_a_second_time():
    adapted, images = make_model(), draw_images(10)
    once = prune(
        adapted,
        plan=keep_odd(adapted),
        compensation="least-squares",
        statistics=collect_covariances(adapted, images),
    )
    statistics = collect_covariances(once, images)
    twice = prune(once, plan=keep_odd(once), compensation="least-squares", statistics=statistics)
    shifted = prune(once, plan=keep_odd(once), compensation="mean", statistics=statistics)
    assert [site.width for site in twice.sites] == [6, 6]
    expected = once.model(images)
    assert (twice.model(images) - expected).norm() < (shifted.model(images) - expected).norm()


def test_a_block_that_keeps_every_neuron_is_left_alone():
    adapted = make_model(bias=False)
    plan = keep_odd(adapted, exclude_blocks=[0])
    statistics = collect_covariances(adapted, draw_images(10))
    pruned = prune(adapted, plan=plan, compensation="least-squares", statistics=statistics)
    assert torch.equal(pruned.sites[0].down.weight, adapted.sites[0].down.weight)
    assert pruned.sites[0].down.bias is None
    assert pruned.sites[1].down.bias is not None


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_fewer_tokens_than_neurons_give_one_warning_and_a_finite_fit(ridge, caplog):
    adapted = make_model()
    statistics = collect_covariances(adapted, draw_images(1))  # 17 tokens
    plan = keep_odd(adapted, ratio=0.25)  # 18 neurons
    with caplog.at_level(logging.WARNING):
        pruned = prune(adapted, plan=plan, compensation=LeastSquares(ridge=ridge), statistics=statistics)
    (record,) = caplog.records
    assert "do not determine the fit of block 0, 1" in record.getMessage()
    for site in pruned.sites:
        assert site.down.weight.isfinite().all()
        assert site.down.weight.abs().max() < 100


def test_dead_and_constant_neurons_need_no_warning(caplog):
    adapted = make_dependent_model()
    statistics = collect_covariances(adapted, draw_images(10))
    with caplog.at_level(logging.WARNING):
        prune(adapted, plan=keep_odd(adapted), compensation="least-squares", statistics=statistics)
    assert not caplog.records


def test_the_bias_replaces_a_block_of_constant_neurons():
    adapted, images = make_model(), draw_images(10)
    adapted.model.blocks[0].mlp.fc1.weight.data.zero_()
    plan, statistics = keep_odd(adapted, exclude_blocks=[1]), collect_covariances(adapted, images)
    pruned = prune(adapted, plan=plan, compensation="least-squares", statistics=statistics)
    torch.testing.assert_close(pruned.model(images), adapted.model(images), rtol=1e-9, atol=1e-9)


def test_missing_covariances_and_negative_ridges_are_named():
    adapted = make_model()
    plain = collect_statistics(adapted, [(draw_images(2), torch.zeros(2))])
    with pytest.raises(ValueError, match="have no covariance; collect them with covariance=True"):
        prune(adapted, plan=keep_odd(adapted), compensation="least-squares", statistics=plain)
    with pytest.raises(ValueError, match=r"compensation 'least-squares': ridge: .*greater than or equal to 0"):
        prune(adapted, plan=keep_odd(adapted), compensation={"name": "least-squares", "ridge": -1})


@pytest.mark.parametrize("penalties", [[0.5, 0.5, 0.5], [0.5, 0.1, 2.0]])
def test_each_output_is_solved_with_its_own_penalty(penalties):
    torch.manual_seed(0)
    covariance, cross = torch.cov(torch.randn(4, 20, dtype=torch.float64)), torch.randn(3, 4, dtype=torch.float64)
    solution, is_singular = solve_ridge(covariance, cross, penalty_D=torch.tensor(penalties, dtype=torch.float64))
    for output, penalty in enumerate(penalties):
        expected = torch.linalg.solve(covariance + penalty * torch.eye(4, dtype=torch.float64), cross[output])
        torch.testing.assert_close(solution[output], expected, rtol=1e-10, atol=1e-12)
    assert not is_singular


def test_a_singular_system_gets_the_least_norm_solution_and_an_infinite_penalty_zero():
    rows = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance, cross = rows.T @ rows, torch.randn(3, 2, dtype=torch.float64) @ rows
    solution, is_singular = solve_ridge(covariance, cross, penalty_D=torch.tensor([0.0, 0.0, torch.inf]).double())
    expected = cross @ torch.linalg.pinv(covariance, hermitian=True)
    torch.testing.assert_close(solution[:2], expected[:2], rtol=1e-8, atol=1e-10)
    assert is_singular
    assert (solution[2] == 0).all()
