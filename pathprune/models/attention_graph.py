"""Removal of heads and of their channels through torch-pruning's dependency graph.

A channel of the values lives between the value projection and the output projection, a channel of the queries between
the query and the key projections. A copy of the attention's layers is therefore traced without the rest of the model,
with one layer for each projection. After pruning, the copy's parameters are written back into the model, packed as
before.
"""

# H heads, R channels of a head that stay, E channels of a head, D hidden dimension

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pathprune.models.attention import is_scaled, list_head_parameters, read_projection, set_sizes
from pathprune.models.graph import build_linear, set_parameters
from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AttentionSite, HeadSizes, Projection
from pathprune.models.subspaces import AttentionBases


class PlainAttention(nn.Module):
    """Copies of the layers of a site's attention, one for each projection."""

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (
            build_linear(*read_projection(site.attention, each)) for each in _projections(site)
        )
        self.gate = None if site.gate is None else build_linear(site.gate.weight, site.gate.bias)
        self.down = build_linear(site.down.weight, site.down.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two outputs through which torch-pruning sees the layers that share channels; this is no attention."""
        values = self.values(x) if self.gate is None else self.values(x) * self.gate(x)
        return self.down(values), self.queries(x) * self.keys(x)

    def keep_first(self, sizes: HeadSizes) -> None:
        """Resize all layers to `sizes`, in place; their parameters are still to be loaded."""
        num_queries, num_values = sizes.num_heads * sizes.query_dim, sizes.num_heads * sizes.value_dim
        rows = {self.queries: num_queries, self.keys: num_queries, self.values: num_values, self.gate: num_values}
        for layer, number in rows.items():
            if layer is not None:
                _set_linear(layer, layer.weight[:number], None if layer.bias is None else layer.bias[:number])
        _set_linear(self.down, self.down.weight[:, :num_values], self.down.bias)

    def put_back(self, site: AttentionSite, *, heads: Sequence[int], sizes: HeadSizes) -> None:
        """Write the copies into the layers of `site`, in place; `requires_grad` flags are kept.

        `heads` are the heads that stay. If the site's module cannot express `sizes`, the model gets another module.
        """
        copies = (self.queries, self.keys, self.values)
        by_layer: dict[nn.Linear, list[nn.Linear]] = {}
        for projection, plain in zip(_projections(site), copies, strict=True):
            by_layer.setdefault(projection.layer, []).append(plain)
            if projection.bias is not None:
                _set_bias(site.attention, projection.bias, plain)
        if site.gate is not None and self.gate is not None:
            by_layer[site.gate] = [self.gate]
        for layer, plains in by_layer.items():  # the queries come first, then the keys
            set_parameters(layer, weight=torch.cat([plain.weight for plain in plains]))
            if layer.bias is not None:
                set_parameters(layer, bias=torch.cat([plain.bias for plain in plains]))
            layer.out_features = len(layer.weight)
        set_parameters(site.down, weight=self.down.weight)
        site.down.in_features = self.down.in_features
        if len(heads) < site.sizes.num_heads:
            for module, name, dimension in list_head_parameters(site.attention):
                parameter = getattr(module, name)
                chosen = torch.as_tensor(heads, device=parameter.device)
                set_parameters(module, **{name: parameter.index_select(dimension, chosen)})
                if isinstance(module, nn.Linear):
                    module.out_features = len(heads)
        set_sizes(site, sizes)


@dataclass(frozen=True)
class TracedAttention:
    """Copies of a site's attention layers, free to be changed, with their dependency graph.

    Columns count the channels of all heads, head after head.
    """

    attention: PlainAttention
    graph: tp.DependencyGraph

    def group_values(self, columns: Sequence[int]) -> Any:
        """Return torch-pruning's group of these channels of the values: output rows, and columns of `down`."""
        return self.graph.get_pruning_group(self.attention.down, tp.prune_linear_in_channels, list(columns))

    def group_queries(self, rows: Sequence[int]) -> Any:
        """Return torch-pruning's group of these channels of the queries and keys."""
        return self.graph.get_pruning_group(self.attention.queries, tp.prune_linear_out_channels, list(rows))


def trace_attention(site: AttentionSite) -> TracedAttention:
    """Trace copies of the site's attention layers; the model is not changed."""
    attention = PlainAttention(site)
    example = site.down.weight.new_zeros(1, site.queries.layer.in_features)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(attention, (example,), verbose=False)
    return TracedAttention(attention, graph)


@torch.no_grad()
def narrow_attention(site: AttentionSite, heads: Sequence[int], bases: AttentionBases | None = None) -> None:
    """Keep these heads, and of each the channels that `bases` gives, in the model of the site, in place.

    Bases are those of the kept heads, in order; None keeps all channels. The logits keep their scale: the query weights
    make up for the smaller head size.

    Raises `UnsupportedModelError`, naming what is possible, if the attention cannot be narrowed in this way.
    """
    bases = bases or AttentionBases()
    _check(site, heads, bases)
    traced = trace_attention(site)
    plain, sizes = traced.attention, site.sizes
    removed = sorted(set(range(sizes.num_heads)).difference(heads))
    if removed:
        traced.group_values(list(_columns(removed, range(sizes.value_dim), sizes.value_dim))).prune()
        traced.group_queries(list(_columns(removed, range(sizes.query_dim), sizes.query_dim))).prune()
    kept = range(len(heads))
    query_dim, value_dim = sizes.query_dim, sizes.value_dim
    if bases.values is not None:
        value_dim = bases.values.reduce.shape[1]
        _change_rows(plain.values, bases.values.reduce)
        _change_columns(plain.down, bases.values.expand)
        cut = range(value_dim, sizes.value_dim)
        traced.group_values(list(_columns(kept, cut, sizes.value_dim))).prune()
    if bases.queries is not None:
        query_dim = bases.queries.queries.shape[1]
        _change_rows(plain.queries, scale_queries(site, query_dim) * bases.queries.queries)
        _change_rows(plain.keys, bases.queries.keys)
        cut = range(query_dim, sizes.query_dim)
        traced.group_queries(list(_columns(kept, cut, sizes.query_dim))).prune()
    plain.put_back(site, heads=heads, sizes=HeadSizes(len(heads), query_dim, value_dim))


def scale_queries(site: AttentionSite, query_dim: int) -> float:
    """Return the factor of the query weights that keeps the logits' scale when the head size becomes `query_dim`.

    Logits are divided by the square root of the head size, or are cosines.
    """
    return math.sqrt(query_dim / site.sizes.query_dim) if is_scaled(site.attention) else 1.0


def resize_attention(site: AttentionSite, sizes: HeadSizes) -> None:
    """Narrow the attention of the site to `sizes`, in place; its weights are still to be loaded."""
    plain = PlainAttention(site)
    plain.keep_first(sizes)
    plain.put_back(site, heads=range(sizes.num_heads), sizes=sizes)


def _check(site: AttentionSite, heads: Sequence[int], bases: AttentionBases) -> None:
    """Raise an error unless these heads and channels can stay."""
    num_heads = site.sizes.num_heads
    if not heads or list(heads) != sorted(set(heads)) or heads[0] < 0 or heads[-1] >= num_heads:
        raise ValueError(
            f"{site.name}: kept heads must be sorted numbers from 0 to {num_heads - 1}, at least one; got {list(heads)}"
        )
    if len(heads) < num_heads:
        site.check("heads")
    if bases.values is not None:
        site.check("values")
    if bases.queries is not None:
        site.check("queries")


def _projections(site: AttentionSite) -> tuple[Projection, Projection, Projection]:
    return site.queries, site.keys, site.values


def _set_bias(attention: nn.Module, name: str, plain: nn.Linear) -> None:
    """Write a bias that the attention holds itself, in place; a buffer of zeros is resized."""
    bias = dict(plain.named_parameters()).get("bias")
    if bias is None:
        setattr(attention, name, plain.weight.new_zeros(plain.out_features))
    else:
        set_parameters(attention, **{name: bias})


def _set_linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    set_parameters(layer, weight=weight, bias=bias)
    layer.out_features, layer.in_features = weight.shape


def _change_rows(layer: nn.Linear, change_HRE: Tensor) -> None:
    """Multiply the output rows of each head by `change`, in place; rows after the first R are to be removed."""
    full_HEE = _pad(change_HRE)
    num_heads, dim, _ = full_HEE.shape
    layer.weight.copy_((full_HEE @ exact_weight(layer).view(num_heads, dim, -1)).flatten(0, 1))
    if layer.bias is not None:
        layer.bias.copy_((full_HEE @ exact_bias(layer).view(num_heads, dim, 1)).flatten())


def _change_columns(layer: nn.Linear, change_HER: Tensor) -> None:
    """Multiply the input columns of each head by `change`, in place; columns after the first R are to be removed."""
    full_HEE = _pad(change_HER.mT).mT
    num_heads, dim, _ = full_HEE.shape
    weight_HDE = exact_weight(layer).view(-1, num_heads, dim).transpose(0, 1)
    layer.weight.copy_((weight_HDE @ full_HEE).transpose(0, 1).flatten(1))


def _pad(change_HRE: Tensor) -> Tensor:
    """Add rows of zeros up to a square, in float64 on the CPU."""
    missing = change_HRE.shape[-1] - change_HRE.shape[-2]
    return nn.functional.pad(change_HRE, (0, 0, 0, missing)).cpu().double()


def _columns(heads: Sequence[int], channels: Sequence[int], dim: int) -> Iterator[int]:
    """Yield the columns of these channels of these heads, for heads of `dim` channels."""
    for head in heads:
        yield from (head * dim + channel for channel in channels)
