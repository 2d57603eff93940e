"""Tests of mean shift against sums by hand."""

import pytest
import timm
import torch
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import MeanShift, list_compensations, make_plan, parse_compensation, prune
from pathprune.scoring import ActivationStatistics, Moments, collect_statistics

TINY = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}


def make_model(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.5).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if not bias:
        for block in model.blocks:
            block.mlp.fc2.bias = None
    return adapt(model)


def keep_odd(adapted: AdaptedModel):
    """Make a plan that keeps the odd columns."""
    scores = {site.name: torch.arange(site.width) % 2 for site in adapted.sites}
    return make_plan(scores, sites=adapted.sites, ratio=0.5)


def make_statistics(adapted: AdaptedModel) -> ActivationStatistics:
    generator = torch.Generator().manual_seed(0)
    sites = {}
    for site in adapted.sites:
        mean = torch.randn(site.width, generator=generator, dtype=torch.float64)
        sites[site.name] = Moments(10, mean, torch.ones_like(mean))
    return ActivationStatistics(sites)


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_takes_over_the_mean_contribution_of_the_removed_neurons(bias):
    adapted = make_model(bias=bias)
    statistics = make_statistics(adapted)
    pruned = prune(adapted, plan=keep_odd(adapted), compensation="mean", statistics=statistics)
    for narrow, wide in zip(pruned.sites, adapted.sites, strict=True):
        mean = statistics.sites[wide.name].mean
        expected = torch.stack([(wide.down.weight[d, 0::2] * mean[0::2]).sum() for d in range(24)])
        expected = expected + wide.down.bias if bias else expected
        torch.testing.assert_close(narrow.down.bias, expected, rtol=1e-12, atol=1e-12)
        assert isinstance(narrow.down.bias, nn.Parameter)
        assert narrow.down.bias.requires_grad
        assert torch.equal(narrow.down.weight, wide.down.weight[:, 1::2])
        assert (wide.down.bias is not None) == bias


@pytest.mark.parametrize(("bias", "dtype", "tolerance"), [(True, torch.float64, 1e-12), (False, torch.float32, 1e-5)])
def test_removing_constant_neurons_with_mean_shift_changes_nothing(bias, dtype, tolerance):
    adapted = make_model(bias=bias, dtype=dtype)
    for block in adapted.model.blocks:  # the even neurons are constant
        block.mlp.fc1.weight.data[0::2] = 0.0
    images = torch.randn(4, 3, 16, 16, dtype=dtype)
    labels = torch.zeros(4, dtype=torch.int64)
    statistics = collect_statistics(adapted, [(images, labels)])
    plain = prune(adapted, plan=keep_odd(adapted))
    shifted = prune(adapted, plan=keep_odd(adapted), compensation=MeanShift(), statistics=statistics)
    expected = adapted.model(images)
    torch.testing.assert_close(shifted.model(images), expected, rtol=tolerance, atol=tolerance)
    assert (plain.model(images) - expected).abs().max() > 0.01


def test_a_block_that_keeps_every_neuron_keeps_its_bias():
    adapted = make_model(bias=False)
    plan = make_plan(
        {site.name: torch.rand(site.width) for site in adapted.sites}, sites=adapted.sites, exclude_blocks=[0]
    )
    pruned = prune(adapted, plan=plan, compensation="mean", statistics=make_statistics(adapted))
    assert pruned.sites[0].down.bias is None
    assert pruned.sites[1].down.bias is not None


def test_missing_inputs_of_a_compensation_are_named():
    adapted = make_model()
    plan = keep_odd(adapted)
    with pytest.raises(ValueError, match="compensation 'mean' needs activation statistics"):
        prune(adapted, plan=plan, compensation="mean")
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc2 are of 48 neurons, but the site has 96"):
        prune(adapted, plan=plan, compensation="mean", statistics=make_statistics(prune(adapted, plan=plan)))
    with pytest.raises(ValueError, match="unknown compensation 'maen'; did you mean 'mean'"):
        prune(adapted, plan=plan, compensation="maen")


def test_compensations_are_listed_and_parsed_by_name():
    assert list_compensations() == ("least-squares", "mean", "none", "sequential")
    assert parse_compensation({"name": "mean"}).spec() == {"name": "mean"}
