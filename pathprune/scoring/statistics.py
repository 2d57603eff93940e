"""Activation statistics: moments of every site's hidden activations, from one pass over the calibration images.

A row is the input that one token gives to a site's `down`. Every token of every image is one row.
"""

# B images, W_l neurons of a site

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel, NeuronSite
from pathprune.scoring.batches import Batches
from pathprune.scoring.moments import Moments

_SCHEMA_VERSION = 1
_FIELDS = ("mean", "variance", "covariance")  # of `Moments`; a file may lack the covariance


@dataclass(frozen=True)
class ActivationStatistics:
    """Moments of every site's hidden activations, by site name."""

    sites: Mapping[str, Moments]

    def check(self, sites: Sequence[NeuronSite], *, covariance: bool = False) -> None:
        """Raise ValueError unless the statistics are of these sites, with covariances if `covariance`."""
        for site in sites:
            if site.name not in self.sites:
                raise ValueError(f"no activation statistics for {site.name}; collect them on this model")
            width = len(self.sites[site.name].mean)
            if width != site.width:
                raise ValueError(
                    f"activation statistics of {site.name} are of {width} neurons, but the site has {site.width}; "
                    "collect them on this model"
                )
            if covariance and self.sites[site.name].covariance is None:
                raise ValueError(
                    f"activation statistics of {site.name} have no covariance; collect them with covariance=True"
                )

    def save(self, path: Path | str) -> None:
        """Save as safetensors: `<site>.mean`, `<site>.variance`, `<site>.covariance`; row counts in the metadata."""
        tensors = {
            f"{name}.{field}": getattr(moments, field).contiguous()
            for name, moments in self.sites.items()
            for field in _FIELDS
            if getattr(moments, field) is not None
        }
        num_rows = {name: moments.num_rows for name, moments in self.sites.items()}
        save_file(tensors, path, {"pathprune": json.dumps({"schema": _SCHEMA_VERSION, "num_rows": num_rows})})

    @classmethod
    def load(cls, path: Path | str) -> ActivationStatistics:
        """Load a file that `save` wrote; raises ValueError for any other safetensors file."""
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("pathprune", "{}"))
            if metadata.get("schema") != _SCHEMA_VERSION or "num_rows" not in metadata:
                raise ValueError(
                    f"{path} holds no activation statistics of schema version {_SCHEMA_VERSION}; collect them again"
                )
            keys = set(file.keys())
            sites = {}
            for name, num_rows in metadata["num_rows"].items():
                tensors = {field: f"{name}.{field}" for field in _FIELDS if f"{name}.{field}" in keys}
                sites[name] = Moments(num_rows, **{field: file.get_tensor(key) for field, key in tensors.items()})
            return cls(sites)


def collect_statistics(adapted: AdaptedModel, batches: Batches, *, covariance: bool = False) -> ActivationStatistics:
    """Run the model once over `batches` of `(images [B, C, H, W], labels)` and collect every site's moments.

    Labels are not used. Covariances take `8 W_l²` bytes per site: 226 MB for a whole ViT-S, 0.9 GB for a ViT-B.

    Raises ValueError if there are no images, or if a block's hidden activations are NaN or infinite.
    """
    parameter = next(adapted.model.parameters())
    with evaluating(adapted.model), torch.no_grad(), _collect_moments(adapted.sites, covariance) as moments:
        for images, _ in batches:
            adapted.model(images.to(parameter))
    if not moments:
        raise ValueError("activation statistics need at least one image, but there are no calibration batches")
    return ActivationStatistics(moments)


@contextmanager
def _collect_moments(sites: Sequence[NeuronSite], covariance: bool) -> Iterator[dict[str, Moments]]:
    """Add the hidden activations of every forward pass inside the context to the yielded moments."""
    moments_by_site: dict[str, Moments] = {}

    def collect(site: NeuronSite) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return a hook that adds the input of the site's `down`."""

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            moments = Moments.from_rows(args[0].flatten(0, -2), covariance=covariance)
            if not moments.mean.isfinite().all():
                raise ValueError(
                    f"block {site.block}: the MLP's hidden activations ({site.name}) are NaN or infinite; check the "
                    "images' normalisation, or run the model in float32"
                )
            previous = moments_by_site.get(site.name)
            moments_by_site[site.name] = moments if previous is None else previous.merge(moments)

        return hook

    with attach_hooks(site.down.register_forward_pre_hook(collect(site)) for site in sites):
        yield moments_by_site
