"""Narrowed attention of every family gives the result of masked heads and of projected channels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.attention_graph import narrow_attention, resize_attention, trace_attention
from pathprune.models.narrow_attention import NarrowAttention
from pathprune.models.seam import AdaptedModel, AttentionSite, HeadSizes, UnsupportedModelError
from pathprune.models.subspaces import AttentionBases, QueryKeyBasis, ValueBasis
from tests.families import FAMILIES, SMALL, randomise

WHOLE = {"vit-parallel-scaling", "vit-parallel-scaling-average"}  # attention and MLP share a layer
ATTENTION_FAMILIES = [name for name in FAMILIES if name not in WHOLE]
HEADS_STAY = {"beit-shared-positions", "eva-mixed-rotary"}
QUERIES_STAY = {
    *("dinov3", "dinov3-gated", "eva02-tiny", "eva02-base", "eva-mixed-rotary", "eva-attention-pooling"),
    *("swin-v2", "hf-dinov3", "hf-dinov3-gated"),
}


def draw_images(adapted: AdaptedModel) -> Tensor:
    images = torch.randn(3, *adapted.input_size, generator=torch.Generator().manual_seed(1))
    return images.to(next(adapted.model.parameters()).dtype)


@torch.no_grad()
def run(adapted: AdaptedModel) -> Tensor:
    """Return the logits, and check that they are the same block by block."""
    images = draw_images(adapted)
    logits = adapted.model(images)
    by_block = adapted.head(adapted.run_from(0, adapted.stem(images)))
    torch.testing.assert_close(by_block, logits, rtol=1e-5, atol=1e-5)
    return logits


def narrow(
    adapted: AdaptedModel, *, heads: bool = False, values: Tensor | None = None, queries: Tensor | None = None
) -> AdaptedModel:
    """Return a narrowed copy: without the first head, and with random bases of the given ranks."""
    narrowed = copy.deepcopy(adapted).refresh()
    for site in narrowed.attention_sites:
        kept = list(range(1 if heads else 0, site.sizes.num_heads))
        value_basis, query_basis = draw_bases(site)
        bases = AttentionBases(
            values=None if values is None else pick_heads(value_basis, kept),
            queries=None if queries is None or "queries" in site.refusals else pick_heads(query_basis, kept),
        )
        narrow_attention(site, kept, bases)
    return narrowed.refresh()


def draw_bases(site: AttentionSite, rank: int = 5) -> tuple[ValueBasis, QueryKeyBasis]:
    """Return bases whose two maps are inverse to each other on the kept channels, as a projector needs."""
    generator = torch.Generator().manual_seed(site.block)

    def draw(dim: int) -> tuple[Tensor, Tensor]:
        change = torch.randn(site.sizes.num_heads, dim, dim, generator=generator, dtype=torch.float64)
        change += 3 * torch.eye(dim)
        return change[:, :rank], change.inverse()[..., :rank]

    reduce, expand = draw(site.sizes.value_dim)
    queries, keys = draw(site.sizes.query_dim)
    return ValueBasis(reduce, expand), QueryKeyBasis(queries, keys.mT)


def pick_heads(basis, heads):
    return type(basis)(*(getattr(basis, name)[heads] for name in basis.__dataclass_fields__))


def change_values(adapted: AdaptedModel, change: Callable[[AttentionSite, Tensor], Tensor]) -> AdaptedModel:
    """Change the mixed values by head `[…, H, E]` in every forward pass, in place."""

    def hook(site: AttentionSite) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        return lambda _, args: (change(site, args[0].unflatten(-1, (site.sizes.num_heads, -1))).flatten(-2),)

    for site in adapted.attention_sites:
        site.down.register_forward_pre_hook(hook(site))
    return adapted


def zero_first_head(site: AttentionSite, values: Tensor) -> Tensor:
    return values.index_fill(-2, torch.tensor([0]), 0)


def project(site: AttentionSite, values: Tensor) -> Tensor:
    projector = draw_bases(site)[0].projector.to(values.dtype)
    return torch.einsum("hab,...hb->...ha", projector, values)


@torch.no_grad()
def project_keys(adapted: AdaptedModel) -> AdaptedModel:
    """Multiply the rows of all keys by the projectors, in place."""
    for site in adapted.attention_sites:
        if "queries" not in site.refusals:
            keys, num_heads = site.keys, site.sizes.num_heads
            projector = draw_bases(site)[1].projector.to(keys.layer.weight.dtype)
            rows = slice(keys.start, keys.start + keys.size)
            keys.layer.weight[rows] = (projector @ keys.layer.weight[rows].unflatten(0, (num_heads, -1))).flatten(0, 1)
            if keys.layer.bias is not None:
                bias = keys.layer.bias[rows].view(num_heads, -1, 1)
                keys.layer.bias[rows] = (projector @ bias).flatten()
    return adapted


def adapt_copy(adapted: AdaptedModel) -> AdaptedModel:
    return copy.deepcopy(adapted).refresh()


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_every_site_names_its_heads_and_the_ways_that_it_allows(name):
    adapted = adapt(FAMILIES[name].make())
    assert [site.block for site in adapted.attention_sites] == [site.block for site in adapted.sites]
    for site, mlp in zip(adapted.attention_sites, adapted.sites, strict=True):
        assert (site.kind, mlp.kind) == ("attention", "mlp")
        assert adapted.model.get_submodule(site.name) is site.down
        assert [column for group in site.groups for column in group] == list(range(site.width))
        assert len(site.groups) == site.sizes.num_heads
        assert ("heads" in site.refusals) == (name in HEADS_STAY)
        assert "values" not in site.refusals
        if name == "hiera":
            assert ("queries" in site.refusals) == (site.block == 1)  # its queries are max-pooled
        else:
            assert ("queries" in site.refusals) == (name in QUERIES_STAY)


@pytest.mark.parametrize("name", sorted(set(ATTENTION_FAMILIES) - HEADS_STAY))
def test_removed_heads_equal_masked_heads(name):
    adapted = adapt(FAMILIES[name].make())
    narrowed = narrow(adapted, heads=True)
    before = [site.sizes for site in adapted.attention_sites]
    assert [site.sizes for site in narrowed.attention_sites] == [
        sizes._replace(num_heads=sizes.num_heads - 1) for sizes in before
    ]
    assert [site.width for site in narrowed.attention_sites] == [
        (sizes.num_heads - 1) * sizes.value_dim for sizes in before
    ]
    masked = change_values(adapt_copy(adapted), zero_first_head)
    torch.testing.assert_close(run(narrowed), run(masked), rtol=1e-5, atol=1e-5)
    assert (run(narrowed) - run(adapted)).abs().max() > 1e-3  # the head matters


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_narrowed_values_equal_projected_values(name):
    adapted = adapt(FAMILIES[name].make().double())
    narrowed = narrow(adapted, values=True)
    assert {site.sizes.value_dim for site in narrowed.attention_sites} == {5}
    assert [site.sizes.query_dim for site in narrowed.attention_sites] == [
        site.sizes.query_dim for site in adapted.attention_sites
    ]
    projected = change_values(adapt_copy(adapted), project)
    torch.testing.assert_close(run(narrowed), run(projected), rtol=1e-5, atol=1e-5)
    assert (run(narrowed) - run(adapted)).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(set(ATTENTION_FAMILIES) - QUERIES_STAY))
def test_narrowed_queries_and_keys_equal_projected_keys(name):
    adapted = adapt(FAMILIES[name].make().double())
    narrowed = narrow(adapted, queries=True)
    changed = [site for site in narrowed.attention_sites if "queries" not in site.refusals]
    assert {site.sizes.query_dim for site in changed} == {5}
    projected = project_keys(adapt_copy(adapted))
    torch.testing.assert_close(run(narrowed), run(projected), rtol=1e-5, atol=1e-5)
    assert (run(narrowed) - run(adapted)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_all_ways_together_equal_masked_and_projected_channels(name):
    adapted = adapt(FAMILIES[name].make().double())
    narrowed = narrow(adapted, heads=name not in HEADS_STAY, values=True, queries=True)
    reference = change_values(project_keys(adapt_copy(adapted)), project)
    if name not in HEADS_STAY:
        change_values(reference, zero_first_head)
    torch.testing.assert_close(run(narrowed), run(reference), rtol=1e-5, atol=1e-5)
    # one head size for queries, keys and values: the library's module stays where its forward allows it
    is_fixed = name.startswith(("beit", "eva", "dinov3", "swin-v2")) and name != "eva-mixed-rotary"
    kinds = {isinstance(site.attention, NarrowAttention) for site in narrowed.attention_sites}
    if not is_fixed and name not in QUERIES_STAY and name != "hiera":
        assert kinds == {False}
    if is_fixed:
        assert kinds == {True}


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_a_resized_attention_takes_the_weights_of_a_narrowed_one(name):
    adapted = adapt(FAMILIES[name].make())
    narrowed = narrow(adapted, heads=name not in HEADS_STAY, values=True)
    again = adapt_copy(adapted)
    for site, narrow_site in zip(again.attention_sites, narrowed.attention_sites, strict=True):
        resize_attention(site, narrow_site.sizes)
    again.model.load_state_dict(narrowed.model.state_dict())
    torch.testing.assert_close(run(again.refresh()), run(narrowed))


def make_vit(**args: object) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt(randomise(timm.create_model("vit_tiny_patch16_224", **SMALL | args)).eval())


def test_a_group_holds_all_layers_of_a_channel():
    site = make_vit().attention_sites[0]
    traced = trace_attention(site)
    layers = {item.dep.target.module for item in traced.group_values([0, 3])}
    assert {traced.attention.down, traced.attention.values} <= layers
    assert not {traced.attention.queries, traced.attention.keys} & layers
    layers = {item.dep.target.module for item in traced.group_queries([0, 3])}
    assert {traced.attention.queries, traced.attention.keys} <= layers
    assert not {traced.attention.down, traced.attention.values} & layers


def test_norms_and_gates_allow_some_ways_only():
    normed = make_vit(qk_norm=True)
    assert normed.attention_sites[0].refusals == {"queries": "norms follow them"}
    with pytest.raises(UnsupportedModelError, match=r"norms follow them; remove heads or channels of the v"):
        normed.attention_sites[0].check("queries")
    masked = change_values(adapt_copy(normed), zero_first_head)
    torch.testing.assert_close(run(narrow(normed, heads=True)), run(masked), rtol=1e-5, atol=1e-5)
    scaled = make_vit(scale_attn_norm=True)
    assert set(scaled.attention_sites[0].refusals) == {"heads", "values"}
    with pytest.raises(UnsupportedModelError, match="channels of the queries and keys instead"):
        narrow_attention(scaled.attention_sites[0], [0])
    plain = make_vit().model
    for block in plain.blocks:
        block.attn = randomise(Attention(24, 2, qkv_bias=True, gated=True))
    gated = adapt(plain.eval())
    assert gated.attention_sites[0].refusals == {"values": "a gate multiplies each of them"}
    masked = change_values(adapt_copy(gated), zero_first_head)
    torch.testing.assert_close(run(narrow(gated, heads=True)), run(masked), rtol=1e-5, atol=1e-5)


def test_unfused_attention_is_narrowed_too():
    adapted = make_vit()
    for site in adapted.attention_sites:
        site.attention.fused_attn = False
    narrowed = narrow(adapted, heads=True, values=True, queries=True)
    assert not narrowed.attention_sites[0].attention.fused_attn
    reference = change_values(change_values(project_keys(adapt_copy(adapted)), project), zero_first_head)
    torch.testing.assert_close(run(narrowed), run(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_other_attention_is_refused_by_name(name):
    adapted = adapt(FAMILIES[name].make())
    assert adapted.attention_sites == ()
    with pytest.raises(UnsupportedModelError, match=r"stays whole: blocks\.0 computes attention and MLP in one layer"):
        adapted.check_attention()


def test_a_changed_class_of_attention_is_refused_by_name():
    model = timm.create_model("vit_tiny_patch16_224", attn_layer="diff", **SMALL)
    adapted = adapt(model)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.attn is a DiffAttention, whose heads cannot"):
        adapted.check_attention()


@pytest.mark.parametrize("heads", [[], [1, 0], [0, 0], [-1], [2]])
def test_at_least_one_known_head_stays(heads):
    with pytest.raises(ValueError, match="sorted numbers from 0 to 1, at least one"):
        narrow_attention(make_vit().attention_sites[0], heads)


def test_flags_modes_and_dtypes_stay():
    adapted = make_vit()
    adapted.model.half().train()
    site = adapted.attention_sites[0]
    site.attention.qkv.weight.requires_grad_(False)
    value_basis, _ = draw_bases(site)
    narrow_attention(site, [0, 1], AttentionBases(values=value_basis))
    attention = adapted.refresh().attention_sites[0].attention
    assert isinstance(attention, NarrowAttention)
    assert attention.training
    assert not attention.qkv.weight.requires_grad
    assert attention.proj.weight.requires_grad
    assert {parameter.dtype for parameter in attention.parameters()} == {torch.float16}
    assert attention.sizes == HeadSizes(2, 12, 5)
