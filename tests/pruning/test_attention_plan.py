"""Plans that hold attention: applied, masked, composed, stored, compensated and refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel, HeadSizes, UnsupportedModelError
from pathprune.pruning import HeadPlan, PrunePlan, apply_plan, mask_neurons, prune
from pathprune.pruning.attention import choose_bases, map_rows, score_heads_by_energy, split_columns
from pathprune.pruning.rounds import compose_plans, keep_all
from pathprune.scoring import collect_attention_statistics
from tests.families import FAMILIES

SEQUENTIAL = ["vit", "deit3", "beit", "eva", "dinov3", "swin", "hiera", "hf-vit", "hf-dinov3", "hf-clip"]


def adapt_family(name: str = "vit", dtype: torch.dtype = torch.float32) -> AdaptedModel:
    return adapt(FAMILIES[name].make().to(dtype))


def draw_batches(adapted: AdaptedModel, count: int = 16) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(count, *adapted.input_size, generator=torch.Generator().manual_seed(1))
    return [(batch, torch.zeros(len(batch))) for batch in images.to(next(adapted.model.parameters()).dtype).split(6)]


def make_plan(adapted: AdaptedModel, *, heads=None, query_dim=None, value_dim=None) -> PrunePlan:
    """Narrow the attention of every block alike; None keeps what there is, and refused ways are left out."""
    attention = {}
    for site in adapted.attention_sites:
        whole = HeadPlan.keep_all(site)
        attention[site.name] = dataclasses.replace(
            whole,
            heads=torch.tensor(heads or whole.heads.tolist()),
            query_dim=whole.query_dim if "queries" in site.refusals else query_dim or whole.query_dim,
            value_dim=value_dim or whole.value_dim,
        )
    return dataclasses.replace(keep_all(adapted.sites), attention=attention)


@torch.no_grad()
def logits(adapted: AdaptedModel) -> Tensor:
    return torch.cat([adapted.model(images) for images, _ in draw_batches(adapted)])


def error(adapted: AdaptedModel, dense: AdaptedModel) -> float:
    return float((logits(adapted) - logits(dense)).square().mean())


def test_removed_heads_equal_masked_heads_and_neurons():
    adapted = adapt_family()
    plan = make_plan(adapted, heads=[1])
    plan = dataclasses.replace(plan, kept={**plan.kept, adapted.sites[0].name: torch.arange(40)})
    pruned = apply_plan(adapted, plan=plan)
    with mask_neurons(adapted, plan=plan):
        expected = logits(adapted)
    torch.testing.assert_close(logits(pruned), expected, rtol=1e-5, atol=1e-5)
    assert plan.heads_removed == 0.5
    assert plan.first_block == 0


def test_a_plan_is_stored_and_read_again():
    plan = make_plan(adapt_family(), heads=[0], query_dim=8, value_dim=4)
    again = PrunePlan.from_dict(plan.to_dict())
    assert again.to_dict() == plan.to_dict()
    assert again.attention["blocks.1.attn.proj"].kept_sizes == HeadSizes(1, 8, 4)
    assert again.removes_channels
    only_neurons = keep_all(adapt_family().sites)
    assert PrunePlan.from_dict(only_neurons.to_dict()).attention == {}
    assert only_neurons.heads_removed == 0
    assert only_neurons.first_block is None


def test_composed_plans_count_the_dense_heads():
    adapted = adapt_family("hiera")
    first, name = make_plan(adapted), adapted.attention_sites[1].name
    first.attention[name] = dataclasses.replace(first.attention[name], heads=torch.tensor([0, 2, 3]), value_dim=6)
    pruned = prune(adapted, plan=first, batches=draw_batches(adapted))
    then = make_plan(pruned)
    then.attention[name] = dataclasses.replace(then.attention[name], heads=torch.tensor([1, 2]), value_dim=4)
    whole = compose_plans(first, then)
    assert whole.attention[name].heads.tolist() == [2, 3]
    assert whole.attention[name].sizes == HeadSizes(4, 12, 12)
    assert whole.attention[name].kept_sizes == HeadSizes(2, 12, 4)
    assert compose_plans(first, keep_all(pruned.sites)).to_dict() == first.to_dict()


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_all_but_one_channel_of_the_values_do_better_than_few(name):
    adapted = adapt_family(name, torch.float64)
    batches = draw_batches(adapted)
    errors = [error(prune(adapted, plan=make_plan(adapted, value_dim=d), batches=batches), adapted) for d in (11, 6, 2)]
    assert errors == sorted(errors)
    assert errors[0] < errors[2] / 3


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_makes_up_for_narrowed_attention(name):
    adapted = adapt_family(name)
    batches = draw_batches(adapted, 24)
    plan = make_plan(adapted, query_dim=6, value_dim=6)
    without = error(prune(adapted, plan=plan, batches=batches), adapted)
    fitted = prune(adapted, plan=plan, batches=batches, compensation="sequential")
    assert error(fitted, adapted) < without
    assert {site.sizes.value_dim for site in fitted.attention_sites} == {6}


def test_narrowing_multiplies_the_rows_of_the_dense_layers():
    adapted = adapt_family(dtype=torch.float64)
    plan = make_plan(adapted, heads=[1], query_dim=5, value_dim=3)
    narrowed = choose_bases(adapted, plan=plan, statistics=collect_attention_statistics(adapted, draw_batches(adapted)))
    pruned = apply_plan(adapted, plan=plan, narrowed=narrowed)
    for site, narrow in zip(adapted.attention_sites, pruned.attention_sites, strict=True):
        ((layer, rows),) = map_rows(site, narrowed[site.name]).items()
        assert layer is site.queries.layer
        torch.testing.assert_close(narrow.queries.layer.weight, rows @ layer.weight)
        torch.testing.assert_close(narrow.queries.layer.bias, rows @ layer.bias)


def test_energy_is_the_squared_norm_of_what_a_head_adds():
    adapted = adapt_family("dinov2", torch.float64)
    batches = draw_batches(adapted)
    site, scale = adapted.attention_sites[0], adapted.attention_scale(0)
    inputs: list[Tensor] = []
    with torch.no_grad():
        handle = site.down.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
        logits(adapted)
        handle.remove()
    values = torch.cat(inputs).unflatten(-1, (2, -1)).transpose(0, 1)
    moments = collect_attention_statistics(adapted, batches).sites[site.name]
    added = values @ split_columns(site, scale).mT
    torch.testing.assert_close(score_heads_by_energy(site, moments, scale_D=scale), added.square().sum(-1).mean(-1))


def test_errors_name_what_is_wrong_and_what_is_possible():
    adapted = adapt_family("dinov3")
    plan = make_plan(adapted, value_dim=6)
    with pytest.raises(ValueError, match=r"needs attention statistics.*pass attention_statistics"):
        prune(adapted, plan=plan)
    with pytest.raises(ValueError, match="no columns to mask"), mask_neurons(adapted, plan=plan):
        pass
    name = adapted.attention_sites[0].name
    plan.attention[name] = dataclasses.replace(plan.attention[name], query_dim=6)
    with pytest.raises(UnsupportedModelError, match=r"rotary positions.*heads or channels of the values instead"):
        prune(adapted, plan=plan, batches=draw_batches(adapted))
    other = adapt_family("hf-vit")
    with pytest.raises(ValueError, match="the plan is for heads and head sizes"):
        prune(other, plan=dataclasses.replace(keep_all(other.sites), attention=plan.attention))
    site = adapted.attention_sites[0]
    for heads in ([], [1, 0], [2]):
        with pytest.raises(ValueError, match=r"kept heads of block 0 must be sorted.*at least one"):
            HeadPlan(0, site.sizes, torch.tensor(heads, dtype=torch.int64), 12, 12)
    with pytest.raises(ValueError, match="value_dim of block 0 must be from 1 to 12; got 13"):
        HeadPlan(0, site.sizes, torch.tensor([0]), 12, 13)
