"""Narrowing of attention by a plan: bases for the channels that stay, from attention statistics."""

# H heads, E channels of a head, D hidden dimension, N output rows of the narrow layer, O output rows of the dense layer

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathprune.models.attention_graph import narrow_attention, scale_queries
from pathprune.models.linear import exact_weight
from pathprune.models.seam import AdaptedModel, AttentionSite
from pathprune.models.subspaces import AttentionBases, compute_query_key_basis, compute_value_basis
from pathprune.pruning.plan import HeadPlan, PrunePlan
from pathprune.scoring.attention_statistics import AttentionStatistics, HeadMoments


@dataclass(frozen=True)
class NarrowedHeads:
    """Heads of one attention that stay, and the bases of their channels."""

    heads: Tensor
    bases: AttentionBases


def choose_bases(
    adapted: AdaptedModel, *, plan: PrunePlan, statistics: AttentionStatistics | None = None
) -> dict[str, NarrowedHeads]:
    """Return heads and bases for every site of attention that `plan` narrows, by site name.

    Raises ValueError if the plan removes channels of heads and `statistics` are not given.
    """
    if plan.removes_channels:
        if statistics is None:
            raise ValueError(
                "the plan removes channels of heads, which needs attention statistics, but none were given; collect "
                "them with collect_attention_statistics and pass attention_statistics=…"
            )
        statistics.check(adapted.attention_sites)
    narrowed = {}
    for site in adapted.attention_sites:
        head_plan = plan.attention.get(site.name)
        if head_plan is not None and head_plan.kept_sizes != head_plan.sizes:
            moments = None if statistics is None else statistics.sites[site.name]
            scale_D = adapted.attention_scale(site.block)
            narrowed[site.name] = NarrowedHeads(
                head_plan.heads, compute_bases(site, plan=head_plan, moments=moments, scale_D=scale_D)
            )
    return narrowed


def compute_bases(
    site: AttentionSite, *, plan: HeadPlan, moments: HeadMoments | None, scale_D: Tensor | None = None
) -> AttentionBases:
    """Return the bases of the heads that `plan` keeps, in which the removed channels matter least.

    `scale_D` are the factors that follow the output projection, such as a LayerScale. Raises
    `UnsupportedModelError`, naming what is possible, if the site does not allow what the plan asks for.
    """
    values = queries = None
    if plan.value_dim < site.sizes.value_dim:
        site.check("values")
        assert moments is not None, "choose_bases() asks for statistics"
        second_HEE = moments.second_moments_of_values(site.sizes.num_heads)
        down_HDE = split_columns(site, scale_D)
        values = compute_value_basis(second_HEE[plan.heads], down_HDE[plan.heads], rank=plan.value_dim)
    if plan.query_dim < site.sizes.query_dim:
        site.check("queries")
        assert moments is not None, "choose_bases() asks for statistics"
        assert moments.queries is not None, "collected for every site that allows it"
        assert moments.keys is not None, "collected for every site that allows it"
        queries = compute_query_key_basis(moments.queries[plan.heads], moments.keys[plan.heads], rank=plan.query_dim)
    return AttentionBases(values, queries)


def narrow_heads(adapted: AdaptedModel, narrowed: Mapping[str, NarrowedHeads]) -> None:
    """Narrow the attention of the model, in place; refresh `adapted` afterwards."""
    for site in adapted.attention_sites:
        if site.name in narrowed:
            chosen = narrowed[site.name]
            narrow_attention(site, chosen.heads.tolist(), chosen.bases)


def score_heads_by_energy(site: AttentionSite, moments: HeadMoments, *, scale_D: Tensor | None = None) -> Tensor:
    """Score heads by the mean squared norm of what each adds to the residual stream: `tr(W_h C_h W_hᵀ)`, `[H]`.

    `C_h` is the second moment of the head's mixed values, and `W_h` its columns of the output projection.
    """
    down_HDE = split_columns(site, scale_D)
    second_HEE = moments.second_moments_of_values(site.sizes.num_heads)
    return ((down_HDE @ second_HEE) * down_HDE).sum((-2, -1))


def split_columns(site: AttentionSite, scale_D: Tensor | None = None) -> Tensor:
    """Return the output projection's weight by head, `[H, D, E]`, with `scale` multiplied in; float64 on the CPU."""
    weight_DW = exact_weight(site.down)
    if scale_D is not None:
        weight_DW = scale_D.cpu().to(torch.float64)[:, None] * weight_DW
    return weight_DW.view(len(weight_DW), site.sizes.num_heads, -1).transpose(0, 1)


def map_rows(site: AttentionSite, narrowed: NarrowedHeads) -> dict[nn.Linear, Tensor]:
    """Return the matrix `[N, O]` by which narrowing multiplied the output of each layer of a dense site.

    The output projection has none.
    """
    sizes, heads = site.sizes, narrowed.heads
    value_basis, query_basis = narrowed.bases.values, narrowed.bases.queries
    values = _map_heads(heads, sizes.num_heads, sizes.value_dim, None if value_basis is None else value_basis.reduce)
    queries, keys = (
        _map_heads(heads, sizes.num_heads, sizes.query_dim, change)
        for change in ((None, None) if query_basis is None else (query_basis.queries, query_basis.keys))
    )
    if query_basis is not None:
        queries = scale_queries(site, query_basis.queries.shape[1]) * queries
    by_layer: dict[nn.Linear, list[Tensor]] = {}
    for projection, rows in ((site.queries, queries), (site.keys, keys), (site.values, values)):
        by_layer.setdefault(projection.layer, []).append(rows)
    if site.gate is not None:
        by_layer[site.gate] = [values]
    return {layer: _stack_diagonally(parts) for layer, parts in by_layer.items()}


def _map_heads(heads: Tensor, num_heads: int, dim: int, change_HRE: Tensor | None) -> Tensor:
    """Return the matrix that picks `heads` and changes the channels of each."""
    blocks = torch.eye(dim, dtype=torch.float64).expand(len(heads), -1, -1) if change_HRE is None else change_HRE
    picked = torch.zeros(len(heads), blocks.shape[1], num_heads, dim, dtype=torch.float64)
    picked[torch.arange(len(heads)), :, heads] = blocks
    return picked.view(-1, num_heads * dim)


def _stack_diagonally(parts: Sequence[Tensor]) -> Tensor:
    stacked: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return stacked
