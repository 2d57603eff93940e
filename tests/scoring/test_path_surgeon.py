"""Tests of path sensitivity against a slow loop, and of the order of removal."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.scoring import (
    ScoringContext,
    collect_statistics,
    measure_output_sensitivity,
    measure_path_sensitivity,
    score,
)

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2}


def make_model() -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.5).double().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapt(model)


def split_batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.full((len(part),), -7)) for part in images.split(size)]  # labels must not be read


def draw_images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measure_sensitivity_slowly(adapted: AdaptedModel, images: Tensor, *, nodes: int, seed: int) -> list[Tensor]:
    """Return `[D, D]` per block, image by image, from the gradient at the block's MLP output at every node.

    Second moments of trace 1 are averaged over images, then multiplied by the block's mean share of the energy.
    """
    adapted.model.eval()
    generator = torch.Generator().manual_seed(seed)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    totals = [torch.zeros(12, 12, dtype=torch.float64) for _ in adapted.sites]
    energies = torch.zeros(len(images), len(adapted.sites), dtype=torch.float64)
    for number, image in enumerate(images):
        direction = torch.randn(5, generator=generator).double()
        direction = direction - direction.mean()
        for block, site in enumerate(adapted.sites):
            integral = torch.zeros(5, 12, dtype=torch.float64)
            for point, weight in zip(points, weights, strict=True):
                h = adapted.stem(image[None])
                for index in range(len(adapted.sites)):
                    m, u = adapted.open_block(index, h)
                    h = adapted.close_block(index, m, u)
                    if index == block:
                        out = site.down((point + 1) / 2 * u).detach().requires_grad_()
                        h = m.detach() + adapted.residual_scale(index) * out
                (gradient,) = torch.autograd.grad(adapted.head(h)[0] @ direction, out)
                integral += weight / 2 * gradient[0]
            energies[number, block] = integral.square().sum()
            totals[block] += integral.T @ integral / energies[number, block] / len(images)
    shares = (energies / energies.sum(1, keepdim=True)).mean(0)
    return [share * total for share, total in zip(shares, totals, strict=True)]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("nodes", [1, 3])
def test_path_sensitivity_is_the_second_moment_of_integrated_gradients(nodes, size):
    adapted, images = make_model(), draw_images(4)
    sensitivity = measure_path_sensitivity(adapted, split_batches(images, size), nodes=nodes, seed=3)
    assert all(module.training for module in adapted.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in adapted.model.parameters())
    for site, expected in zip(
        adapted.sites, measure_sensitivity_slowly(adapted, images, nodes=nodes, seed=3), strict=True
    ):
        torch.testing.assert_close(sensitivity[site.name], expected, rtol=1e-9, atol=1e-12)
    assert sum(float(moment_DD.trace()) for moment_DD in sensitivity.values()) == pytest.approx(1.0)


def test_path_and_output_sensitivity_agree_if_the_answer_is_linear_in_the_block():
    adapted, images = make_model(), draw_images(4)
    adapted.model.norm = nn.Identity()  # everything after the last block is then linear
    path = measure_path_sensitivity(adapted, split_batches(images, 2), seed=3)
    output = measure_output_sensitivity(adapted, split_batches(images, 2), seed=3)
    first, last = (site.name for site in adapted.sites)
    shapes = [{name: moment_DD / moment_DD.trace() for name, moment_DD in each.items()} for each in (path, output)]
    torch.testing.assert_close(shapes[0][last], shapes[1][last], rtol=1e-9, atol=1e-12)
    assert (shapes[0][first] - shapes[1][first]).abs().max() > 1e-4


def test_the_order_is_obs_weighed_by_sensitivity():
    adapted, images = make_model(), draw_images(6)
    batches = split_batches(images, 3)
    statistics = collect_statistics(adapted, batches, covariance=True)
    context = ScoringContext(adapted=adapted, batches=batches, statistics=statistics, seed=3)
    scores = score(context, criterion={"name": "path-obs", "ridge": 0.1, "num_images": 4})
    sensitivity = measure_path_sensitivity(adapted, split_batches(images[:4], 2), seed=3)
    for site in adapted.sites:
        covariance = statistics.sites[site.name].covariance
        penalised = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(24, dtype=torch.float64)
        weight = site.down.weight.detach()
        error = torch.stack([weight[:, j] @ sensitivity[site.name] @ weight[:, j] for j in range(24)])
        first = int((error / torch.linalg.inv(penalised).diagonal()).argmin())
        assert int(scores[site.name].argmin()) == first
        assert len(scores[site.name].unique()) == 24
    plain = score(context, criterion={"name": "obs", "ridge": 0.1})
    assert any(not torch.equal(scores[name].argsort(), plain[name].argsort()) for name in scores)


def test_neurons_that_do_not_affect_the_answer_are_removed_first():
    adapted, images = make_model(), draw_images(6)
    with torch.no_grad():  # the head reads the first half of the stream only
        adapted.model.norm = nn.Identity()
        adapted.model.head.weight[:, 6:] = 0.0
        adapted.sites[-1].down.weight[:6, :8] = 0.0  # these neurons write the other half only
    batches = split_batches(images, 3)
    statistics = collect_statistics(adapted, batches, covariance=True)
    context = ScoringContext(adapted=adapted, batches=batches, statistics=statistics)
    scores = score(context, criterion="path-obs")[adapted.sites[-1].name]
    assert set(scores.argsort()[:8].tolist()) == set(range(8))


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="path sensitivity needs at least one image"):
        measure_path_sensitivity(make_model(), [])
