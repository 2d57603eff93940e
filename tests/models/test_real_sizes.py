"""Models at deployed sizes: all of them on the meta device, some at full width with two blocks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import PrunePlan, make_plan, prune
from pathprune.pruning.masking import mask_neurons

pytestmark = pytest.mark.slow

DEPTHS = {  # timm name -> number of MLPs
    "vit_tiny_patch16_224": 12,
    "vit_base_patch16_224": 12,
    "vit_large_patch16_384": 24,
    "vit_huge_patch14_224": 32,
    "vit_giant_patch14_224": 40,
    "vit_gigantic_patch14_224": 48,
    "vit_giant_patch14_reg4_dinov2": 40,
    "vit_huge_plus_patch16_dinov3": 32,
    "vit_7b_patch16_dinov3": 40,
    "vit_base_patch16_siglip_224": 12,
    "vit_so400m_patch14_siglip_384": 27,
    "vit_large_patch14_clip_336": 24,
    "vit_small_patch16_18x2_224": 36,
    "deit3_large_patch16_384": 24,
    "deit_base_distilled_patch16_384": 12,
    "beit_large_patch16_512": 24,
    "beitv2_large_patch16_224": 24,
    "eva_giant_patch14_560": 40,
    "eva02_large_patch14_448": 24,
    "vit_pe_core_large_patch14_336": 24,
    "swin_large_patch4_window12_384": 24,
    "swinv2_large_window12_192": 24,
    "hiera_huge_224": 48,
}
NORMED = {"eva02_large_patch14_448"}
TWO_BLOCKS = (
    "vit_giant_patch14_reg4_dinov2",
    "vit_huge_plus_patch16_dinov3",
    "vit_so400m_patch14_siglip_384",
    "vit_large_patch14_clip_336",
    "deit_base_distilled_patch16_384",
    "beitv2_large_patch16_224",
    "eva_giant_patch14_560",
    "eva02_large_patch14_448",
)


def prune_half(model: nn.Module) -> tuple[AdaptedModel, PrunePlan, AdaptedModel]:
    adapted = adapt(model)
    scores = {site.name: torch.arange(site.width) + 0.0 for site in adapted.sites}
    plan = make_plan(scores, sites=adapted.sites, ratio=0.5)
    return adapted, plan, prune(adapted, plan=plan)


@pytest.mark.parametrize("name", DEPTHS)
def test_models_of_real_size_are_pruned(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    adapted, _, pruned = prune_half(model)
    assert len(pruned.sites) == DEPTHS[name]
    removed = 0
    for before, after in zip(adapted.sites, pruned.sites, strict=True):
        assert abs(before.width / 2 - after.width) < 1
        layers = len(before.ups)
        biased = sum(up.layer.bias is not None for up in before.ups)
        per_neuron = layers * before.ups[0].layer.in_features + biased + before.down.out_features
        removed += (before.width - after.width) * (per_neuron + 2 * (before.norm is not None))
    sizes = [sum(p.numel() for p in each.model.parameters()) for each in (adapted, pruned)]
    assert sizes[0] - sizes[1] == removed


@pytest.mark.parametrize("name", TWO_BLOCKS)
@torch.no_grad()
def test_pruned_models_of_real_width_equal_masked_ones(name: str) -> None:
    torch.manual_seed(0)
    adapted, plan, pruned = prune_half(timm.create_model(name, depth=2).eval())
    images = torch.randn(1, *adapted.input_size)
    with mask_neurons(adapted, plan=plan):
        expected = adapted.model(images)
    narrow = pruned.model(images)
    assert narrow.isfinite().all()
    if name not in NORMED:
        torch.testing.assert_close(narrow, expected, rtol=1e-4, atol=1e-4)
