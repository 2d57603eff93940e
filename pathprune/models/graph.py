"""torch-pruning's dependency graph of an adapted model: which layers a site's neurons reach into.

The graph is traced with gradients on, on a deep copy, so that the model at hand is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pathprune.models.adapt import model_device
from pathprune.models.seam import AdaptedModel, NeuronSite


@dataclass(frozen=True)
class SiteGraph:
    """The dependency graph of `adapted`, a deep copy that may be changed freely."""

    adapted: AdaptedModel
    graph: tp.DependencyGraph

    def group(self, site: NeuronSite, columns: Sequence[int]) -> Any:
        """torch-pruning's group rooted at these input columns of the site's `down`.

        Raises ValueError if removing them would reach anything but the MLP's own linear layers.
        """
        group = self.graph.get_pruning_group(site.down, tp.prune_linear_in_channels, list(columns))
        for dependency, _ in group:
            if not self._belongs_to(site, dependency):
                raise ValueError(
                    f"the neurons of {site.name} cannot be removed on their own: the dependency graph ties them to "
                    f"{dependency.target.name}"
                )
        return group

    def _belongs_to(self, site: NeuronSite, dependency: Any) -> bool:
        module = dependency.target.module
        if module is site.down:
            return bool(self.graph.is_in_channel_pruning_fn(dependency.handler))
        if isinstance(module, nn.Linear):
            is_output = self.graph.is_out_channel_pruning_fn(dependency.handler)
            return is_output and module.out_features == site.width
        # activations and reshapes have no parameters; a norm or a bare parameter is not the MLP's own layer
        return isinstance(module, nn.Module) and next(module.parameters(), None) is None


def trace_sites(adapted: AdaptedModel, *, example_images: Tensor | None = None) -> SiteGraph:
    """Trace a deep copy of the model on a few images `[B, C, H, W]`; by default a blank one of the model's size."""
    twin = copy.deepcopy(adapted)
    model = twin.model
    if example_images is None:
        example_images = _blank_images(model)
    parameter = next(model.parameters())
    for each in model.parameters():
        each.requires_grad_(True)  # the trace follows gradients: a frozen layer would be invisible to it
    with torch.enable_grad():
        # a tuple, since torch-pruning unpacks a bare tensor into one argument per image first;
        # not verbose: its note on unwrapped parameters (class token, position embedding) does not concern MLP widths
        graph = tp.DependencyGraph().build_dependency(model, (example_images.to(parameter),), verbose=False)
    return SiteGraph(twin, graph)


def _blank_images(model: nn.Module) -> Tensor:
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    if patch_embed is None or size is None:
        raise ValueError("the model does not tell its image size; pass example_images, one batch [B, C, H, W]")
    return torch.zeros(1, patch_embed.proj.in_channels, *size, device=model_device(model))
