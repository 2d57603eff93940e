"""Removal of neurons from an MLP through torch-pruning's dependency graph.

A neuron lives between the first layers of an MLP and its down-projection. A copy of the MLP is therefore traced without
the rest of the model, in a plain form with separate layers for gate and value. After pruning, the copy's parameters are
written back into the model, packed as before.
"""

# D hidden dimension of the model, W neurons of the site

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
        self.ups = nn.ModuleList(_copy_layer(up, site.width) for up in site.ups)  # the gate first, as in the site
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
        """Remove all neurons but the first `width`, in place."""
        for module in (*self.ups, self.norm):
            if module is not None:
                set_parameters(module, weight=module.weight[:width])
                set_parameters(module, bias=None if module.bias is None else module.bias[:width])
        set_parameters(self.down, weight=self.down.weight[:, :width])

    def put_back(self, site: NeuronSite) -> None:
        """Write the copy's parameters into the layers of `site`, in place; `requires_grad` flags are kept."""
        width, dense_width = self.down.weight.shape[1], site.width
        by_layer: dict[nn.Linear, list[tuple[UpProjection, Any]]] = {}
        for up, plain in zip(site.ups, self.ups, strict=True):
            by_layer.setdefault(up.layer, []).append((up, plain))
        for layer, cuts in by_layer.items():
            cuts.sort(key=lambda cut: cut[0].start)
            weights = [(up.start, plain.weight) for up, plain in cuts]
            set_parameters(layer, weight=_replace_rows(layer.weight, dense_width, weights))
            if layer.bias is not None:
                biases = [(up.start, plain.bias) for up, plain in cuts]
                set_parameters(layer, bias=_replace_rows(layer.bias, dense_width, biases))
            layer.out_features = len(layer.weight)
            for up, plain in cuts:
                if up.fused is not None:
                    _resize_fused(up.fused, width, None if layer.bias is not None else plain.bias)
        if site.norm is not None:
            assert isinstance(self.norm, nn.LayerNorm)
            set_parameters(site.norm, weight=self.norm.weight, bias=self.norm.bias)
            site.norm.normalized_shape = (width,)  # type: ignore[assignment]  # a LayerNorm: find_mlp checks it
        set_parameters(site.down, weight=self.down.weight)
        site.down.in_features = width


@dataclass(frozen=True)
class TracedMlp:
    """A copy of a site's MLP, free to be changed, with its dependency graph."""

    mlp: PlainMlp
    graph: tp.DependencyGraph

    def group(self, columns: Sequence[int]) -> Any:
        """Return torch-pruning's group with these input columns of the down-projection as its root."""
        return self.graph.get_pruning_group(self.mlp.down, tp.prune_linear_in_channels, list(columns))


def trace_mlp(site: NeuronSite) -> TracedMlp:
    """Trace a copy of the site's MLP; the model is not changed."""
    mlp = PlainMlp(site)
    mlp.requires_grad_(True)  # torch-pruning traces by gradients and does not see frozen layers
    example = site.down.weight.new_zeros(1, site.ups[0].layer.in_features)
    with torch.enable_grad():
        # torch-pruning unpacks a bare tensor into one argument per row: pass a tuple
        graph = tp.DependencyGraph().build_dependency(mlp, (example,), verbose=False)
    return TracedMlp(mlp, graph)


def remove_neurons(site: NeuronSite, columns: Sequence[int]) -> None:
    """Remove these neurons from the model of the site, in place."""
    traced = trace_mlp(site)
    traced.group(columns).prune()
    traced.mlp.put_back(site)


def narrow_mlp(site: NeuronSite, width: int) -> None:
    """Narrow the MLP of the site to `width` neurons, in place; their weights are still to be loaded."""
    mlp = PlainMlp(site)
    mlp.keep_first(width)
    mlp.put_back(site)


def _copy_layer(up: UpProjection, width: int) -> nn.Linear:
    """Return the up-projection as a layer of its own, with a copy of its weights."""
    layer = up.layer
    rows = slice(up.start, up.start + width)
    bias = layer.bias[rows] if layer.bias is not None else getattr(up.fused, "mlp_bias", None)
    return build_linear(layer.weight[rows], bias)


def build_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with copies of these parameters."""
    # on meta, so that no random numbers are drawn for the initialisation
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _replace_rows(tensor: Tensor, size: int, replacements: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Replace the `size` rows from each start by new rows; starts are in ascending order."""
    pieces, end = [], 0
    for start, rows in replacements:
        pieces += [tensor[end:start], rows]
        end = start + size
    return torch.cat([*pieces, tensor[end:]])


def _resize_fused(block: Any, width: int, bias: Tensor | None) -> None:
    """Set the width and the MLP's bias that a fused block stores itself, in place."""
    block.in_split = [width, *block.in_split[1:]]
    if bias is not None:
        set_parameters(block, mlp_bias=bias)


def set_parameters(module: nn.Module, **tensors: Tensor | None) -> None:
    """Replace parameters by copies of `tensors`, in place; None leaves a parameter alone, `requires_grad` is kept."""
    for name, tensor in tensors.items():
        if tensor is not None:
            flag = getattr(module, name).requires_grad
            setattr(module, name, nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), flag))
