"""Attention statistics equal moments computed from the parts of the attention, one image at a time."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel, UnsupportedModelError
from pathprune.scoring import AttentionStatistics, collect_attention_statistics, collect_statistics
from tests.families import FAMILIES, SMALL, randomise

FAMILY_NAMES = ["vit", "deit3", "beit", "eva", "dinov3", "swin", "swin-v2", "hiera", "hf-vit", "hf-clip", "hf-dinov3"]


def draw_images(adapted: AdaptedModel, count: int = 5) -> Tensor:
    images = torch.randn(count, *adapted.input_size, generator=torch.Generator().manual_seed(1))
    return images.to(next(adapted.model.parameters()).dtype)


def in_batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch))) for batch in images.split(size)]


@torch.no_grad()
def test_moments_of_a_vit_equal_those_of_its_queries_keys_and_values():
    torch.manual_seed(0)
    model = randomise(timm.create_model("vit_tiny_patch16_224", **SMALL)).double().eval()
    adapted = adapt(model)
    images = draw_images(adapted)
    statistics = collect_attention_statistics(adapted, in_batches(images, 2))
    block, moments = model.blocks[0], statistics.sites["blocks.0.attn.proj"]
    q, k, v = block.attn.qkv(block.norm1(adapted.stem(images))).view(5, -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.mT / 12**0.5).softmax(-1) @ v
    k = k - k.mean(2, keepdim=True)
    num_rows = 5 * q.shape[2]
    for part, found in ((q, moments.queries), (k, moments.keys), (mixed, moments.second_moments_of_values(2))):
        torch.testing.assert_close(found, torch.einsum("bhta,bhtc->hac", part, part) / num_rows)
    assert moments.values.num_rows == num_rows


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_batches_do_not_matter_and_statistics_are_stored(name, tmp_path):
    adapted = adapt(FAMILIES[name].make().double())
    images = draw_images(adapted)
    statistics = collect_attention_statistics(adapted, in_batches(images, 5))
    statistics.check(adapted.attention_sites)
    statistics.save(tmp_path / "attention.safetensors")
    stored = AttentionStatistics.load(tmp_path / "attention.safetensors")
    one_by_one = collect_attention_statistics(adapted, in_batches(images, 1))
    for site in adapted.attention_sites:
        moments = statistics.sites[site.name]
        assert (moments.queries is None) == (moments.keys is None) == ("queries" in site.refusals)
        for other in (stored.sites[site.name], one_by_one.sites[site.name]):
            torch.testing.assert_close(other.values.mean, moments.values.mean)
            torch.testing.assert_close(other.values.covariance, moments.values.covariance)
            if moments.queries is not None:
                torch.testing.assert_close(other.queries, moments.queries)
                torch.testing.assert_close(other.keys, moments.keys)


def test_keys_are_centred_over_the_tokens_that_attend_to_each_other():
    """A constant added to the keys of one image, window or mask unit changes neither logits nor statistics."""
    for name in ("vit", "swin", "hiera"):
        adapted = adapt(FAMILIES[name].make().double())
        images = draw_images(adapted)
        before = collect_attention_statistics(adapted, in_batches(images, 5))
        site = adapted.attention_sites[0]
        with torch.no_grad():
            site.keys.layer.bias[site.keys.start : site.keys.start + site.keys.size] += 3.0
        after = collect_attention_statistics(adapted, in_batches(images, 5))
        torch.testing.assert_close(after.sites[site.name].keys, before.sites[site.name].keys)
        torch.testing.assert_close(after.sites[site.name].queries, before.sites[site.name].queries)


def test_errors_name_the_model_or_the_block(tmp_path):
    with pytest.raises(UnsupportedModelError, match="computes attention and MLP in one layer"):
        collect_attention_statistics(adapt(FAMILIES["vit-parallel-scaling"].make()), [])
    adapted = adapt(FAMILIES["vit"].make())
    with pytest.raises(ValueError, match="at least one image"):
        collect_attention_statistics(adapted, [])
    with pytest.raises(ValueError, match="block 0: the attention's values"):
        collect_attention_statistics(adapted, in_batches(draw_images(adapted) * torch.nan, 5))
    with pytest.raises(ValueError, match=r"no attention statistics for blocks\.0\.attn\.proj"):
        AttentionStatistics({}).check(adapted.attention_sites)
    statistics = collect_attention_statistics(adapted, in_batches(draw_images(adapted), 5))
    other = adapt(timm.create_model("vit_tiny_patch16_224", **SMALL | {"embed_dim": 16}))
    with pytest.raises(ValueError, match="are of 24 channels, but the site has 16"):
        statistics.check(other.attention_sites)
    collect_statistics(adapted, in_batches(draw_images(adapted), 5)).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no attention statistics"):
        AttentionStatistics.load(tmp_path / "other.safetensors")
