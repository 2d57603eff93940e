"""An MLP cut out of its model and traced by torch-pruning: which of its layers a neuron reaches into.

A neuron lives between the MLP's first layers and its down-projection. So a copy of the MLP is traced on its own, in a
plain form: gate and value in layers of their own, whatever the model packs them with. What is left of the copy after
pruning is put back into the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pathprune.models.seam import NeuronSite, UpProjection


class PlainMlp(nn.Module):
    """A copy of a site's MLP in plain form: `[..., D]` -> `[..., D]`."""

    def __init__(self, site: NeuronSite) -> None:
        super().__init__()
        self.ups = nn.ModuleList(_cut_out(up, site.width) for up in site.ups)  # the gate's first, if gated
        self.act = copy.deepcopy(site.act)
        self.norm = copy.deepcopy(site.norm)
        self.down = copy.deepcopy(site.down)

    def forward(self, x: Tensor) -> Tensor:
        *gate, value = (up(x) for up in self.ups)
        assert self.act is not None
        u = self.act(gate[0]) * value if gate else self.act(value)
        y: Tensor = self.down(u if self.norm is None else self.norm(u))
        return y

    def keep_first(self, width: int) -> None:
        """Drop all neurons from `width` on, in place."""
        for module in (*self.ups, self.norm):
            if module is not None:
                _set(module, weight=module.weight[:width])
                _set(module, bias=None if module.bias is None else module.bias[:width])
        _set(self.down, weight=self.down.weight[:, :width])

    def put_back(self, site: NeuronSite) -> None:
        """Give the layers of `site`, in place, the neurons of this copy; gradient flags stay."""
        width, dense = self.down.weight.shape[1], site.width
        by_layer: dict[nn.Linear, list[tuple[UpProjection, Any]]] = {}
        for up, plain in zip(site.ups, self.ups, strict=True):
            by_layer.setdefault(up.layer, []).append((up, plain))
        for layer, cuts in by_layer.items():
            cuts.sort(key=lambda cut: cut[0].start)
            _set(layer, weight=_replaced(layer.weight, dense, [(up.start, plain.weight) for up, plain in cuts]))
            if layer.bias is not None:
                _set(layer, bias=_replaced(layer.bias, dense, [(up.start, plain.bias) for up, plain in cuts]))
            layer.out_features = len(layer.weight)
            for up, plain in cuts:
                if up.fused is not None:
                    _resize_fused(up.fused, width, None if layer.bias is not None else plain.bias)
        if site.norm is not None:
            assert isinstance(self.norm, nn.LayerNorm)
            _set(site.norm, weight=self.norm.weight, bias=self.norm.bias)
            site.norm.normalized_shape = (width,)  # type: ignore[assignment]  # a LayerNorm, as `find_mlp` saw to
        _set(site.down, weight=self.down.weight)
        site.down.in_features = width


@dataclass(frozen=True)
class TracedMlp:
    """A copy of a site's MLP, which may be changed freely, with its dependency graph."""

    mlp: PlainMlp
    graph: tp.DependencyGraph

    def group(self, columns: Sequence[int]) -> Any:
        """torch-pruning's group rooted at these input columns of the down-projection."""
        return self.graph.get_pruning_group(self.mlp.down, tp.prune_linear_in_channels, list(columns))


def trace(site: NeuronSite) -> TracedMlp:
    """Trace a copy of the site's MLP; the model is not touched."""
    mlp = PlainMlp(site)
    mlp.requires_grad_(True)  # the trace follows gradients: a frozen layer would be invisible to it
    row = site.down.weight.new_zeros(1, site.ups[0].layer.in_features)
    with torch.enable_grad():
        # a tuple, since torch-pruning unpacks a bare tensor into one argument per row first
        graph = tp.DependencyGraph().build_dependency(mlp, (row,), verbose=False)
    return TracedMlp(mlp, graph)


def remove(site: NeuronSite, columns: Sequence[int]) -> None:
    """Remove these neurons from the model that the site is in, in place."""
    traced = trace(site)
    traced.group(columns).prune()
    traced.mlp.put_back(site)


def narrow(site: NeuronSite, width: int) -> None:
    """Leave `width` neurons in the model that the site is in, in place, for weights still to be filled in."""
    mlp = PlainMlp(site)
    mlp.keep_first(width)
    mlp.put_back(site)


def _cut_out(up: UpProjection, width: int) -> nn.Linear:
    """Return the up-projection as a layer of its own, with a copy of its weights."""
    layer = up.layer
    cut = slice(up.start, up.start + width)
    bias = layer.bias[cut] if layer.bias is not None else getattr(up.fused, "mlp_bias", None)
    # on meta first, so that no random numbers are drawn
    own = nn.Linear(layer.in_features, width, bias=bias is not None, device="meta", dtype=layer.weight.dtype)
    own.weight = nn.Parameter(layer.weight[cut].detach().clone())
    if bias is not None:
        own.bias = nn.Parameter(bias.detach().clone())
    return own


def _replaced(tensor: Tensor, size: int, cuts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """`tensor` with the `size` rows from each start replaced; starts in ascending order."""
    pieces, done = [], 0
    for start, rows in cuts:
        pieces += [tensor[done:start], rows]
        done = start + size
    return torch.cat([*pieces, tensor[done:]])


def _resize_fused(block: Any, width: int, bias: Tensor | None) -> None:
    block.in_split = [width, *block.in_split[1:]]
    if bias is not None:
        _set(block, mlp_bias=bias)


def _set(module: nn.Module, **tensors: Tensor | None) -> None:
    """Replace parameters, in place, by ones with memory of their own; gradient flags stay."""
    for name, tensor in tensors.items():
        if tensor is not None:
            flag = getattr(module, name).requires_grad
            setattr(module, name, nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), flag))
