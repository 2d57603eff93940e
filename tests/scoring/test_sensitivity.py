"""Tests of output sensitivity against a slow loop over images, tokens and neurons."""

import pytest
import timm
import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import make_plan
from pathprune.scoring import ScoringContext, collect_statistics, measure_output_sensitivity, score

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 5}


def make_model() -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.5, proj_drop_rate=0.5).double().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapt(model)


def split_batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.full((len(part),), -7)) for part in images.split(size)]  # labels must not be read


def measure_sensitivity_slowly(adapted: AdaptedModel, images: Tensor, seed: int) -> list[Tensor]:
    """Return `[D, D]` per block, image by image, from the gradient at the block's MLP output.

    Second moments of trace 1 are averaged over images, then multiplied by the block's mean share of the energy.
    """
    adapted.model.eval()
    generator = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(12, 12, dtype=torch.float64) for _ in adapted.sites]
    energies = torch.zeros(len(images), len(adapted.sites), dtype=torch.float64)
    for number, image in enumerate(images):
        direction = torch.randn(5, generator=generator).double()
        direction = direction - direction.mean()
        for block, site in enumerate(adapted.sites):
            h = adapted.stem(image[None])
            for index in range(len(adapted.sites)):
                m, u = adapted.open_block(index, h)
                h = adapted.close_block(index, m, u)
                if index == block:
                    out = site.down(u).detach().requires_grad_()
                    h = m.detach() + adapted.residual_scale(index) * out
            (gradient,) = torch.autograd.grad(adapted.head(h)[0] @ direction, out)
            energies[number, block] = sum(row @ row for row in gradient[0])
            for row in gradient[0]:
                totals[block] += torch.outer(row, row) / energies[number, block] / len(images)
    shares = (energies / energies.sum(1, keepdim=True)).mean(0)
    return [share * total for share, total in zip(shares, totals, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_output_sensitivity_is_the_second_moment_of_gradients_for_any_batch_size(size):
    adapted, images = make_model(), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    sensitivity = measure_output_sensitivity(adapted, split_batches(images, size), seed=3)
    assert all(module.training for module in adapted.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in adapted.model.parameters())
    for site, expected in zip(adapted.sites, measure_sensitivity_slowly(adapted, images, seed=3), strict=True):
        torch.testing.assert_close(sensitivity[site.name], expected, rtol=1e-9, atol=1e-12)
    assert sum(float(moment_DD.trace()) for moment_DD in sensitivity.values()) == pytest.approx(1.0)


def test_the_criterion_weighs_variance_by_the_sensitivity_to_the_neurons_column():
    adapted, images = make_model(), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    batches = split_batches(images, 2)
    context = ScoringContext(adapted, batches=batches, statistics=collect_statistics(adapted, batches), seed=3)
    scores = score(context, criterion="output-sensitivity")
    for site, moment_DD in zip(adapted.sites, measure_sensitivity_slowly(adapted, images, seed=3), strict=True):
        for j in range(site.width):
            column = site.down.weight[:, j].detach()
            expected = context.statistics.sites[site.name].variance[j] * (column @ moment_DD @ column)
            assert scores[site.name][j].item() == pytest.approx(expected.item(), rel=1e-8)


def test_several_directions_are_averaged():
    adapted, image = make_model(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    twice = measure_output_sensitivity(adapted, [(image, torch.zeros(1))], directions=2, seed=3)
    # the same draws, one per pass
    repeated = measure_output_sensitivity(adapted, [(image, torch.zeros(1))] * 2, seed=3)
    for name, moment_DD in twice.items():
        torch.testing.assert_close(moment_DD, repeated[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_batch_size_does_not_change_several_directions(size):
    adapted, images = make_model(), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    expected = measure_output_sensitivity(adapted, split_batches(images, 2), directions=3, seed=3)
    sensitivity = measure_output_sensitivity(adapted, split_batches(images, size), directions=3, seed=3)
    for name, moment_DD in sensitivity.items():
        torch.testing.assert_close(moment_DD, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", ["output-sensitivity", "path-obs"])
def test_scores_compare_blocks_by_their_effect_on_the_answer(criterion):
    adapted, images = make_model(), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    batches = split_batches(images, 2)

    def count_removed() -> list[int]:
        statistics = collect_statistics(adapted, batches, covariance=True)
        context = ScoringContext(adapted, batches=batches, statistics=statistics, seed=3)
        scores = score(context, criterion=criterion)
        plan = make_plan(scores, sites=adapted.sites, ratio=0.25, scope="global", normalize="none")
        return [len(plan.pruned(site.name)) for site in adapted.sites]

    num_removed = sum(site.width for site in adapted.sites) // 4
    assert 0 < count_removed()[-1] < num_removed
    with torch.no_grad():
        adapted.model.blocks[-1].ls2.gamma *= 1e-3  # the answer hardly depends on the last block any more
    assert count_removed() == [0, num_removed]


def test_images_without_any_gradient_give_zero():
    adapted = make_model()
    adapted.model.blocks[1].ls2.gamma.data.zero_()
    sensitivity = measure_output_sensitivity(adapted, split_batches(torch.randn(2, 3, 16, 16, dtype=torch.float64), 2))
    assert (sensitivity["blocks.1.mlp.fc2"] == 0).all()
    assert sensitivity["blocks.0.mlp.fc2"].trace() == pytest.approx(1.0)


def test_empty_loaders_and_models_with_one_class_are_refused():
    with pytest.raises(ValueError, match="needs at least one image"):
        measure_output_sensitivity(make_model(), [])
    single = adapt(timm.create_model("vit_tiny_patch16_224", **{**TINY, "num_classes": 1}))
    with pytest.raises(ValueError, match="the model has 1 classes; use a model with at least two"):
        measure_output_sensitivity(single, [(torch.randn(1, 3, 16, 16), torch.zeros(1))])
