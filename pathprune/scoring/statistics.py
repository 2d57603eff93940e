"""Calibration statistics of the hidden rows, one pass over the images.

A hidden row is what one token brings to a site's `down`: `[W_l]`. Every token of every image is one row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pathprune.models.adapt import evaluating
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel, NeuronSite

_SCHEMA_VERSION = 1
_FIELDS = ("mean", "variance", "covariance")  # of saved moments; the last where it was collected
_CHUNK_ROWS = 8192  # rows multiplied at a time: float32 sums no more than these before float64 takes over


@dataclass(frozen=True)
class Moments:
    """Mean and population variance `[W]`, and covariance if wanted, of `num_rows` rows: float64 on the CPU.

    The covariance is `[W, W]`, or `[W, C]`: that of all columns with the first C.
    """

    num_rows: int
    mean: Tensor
    variance: Tensor
    covariance: Tensor | None = None

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together (Chan, Golub & LeVeque, 1983); covariance where both have it."""
        total = self.num_rows + other.num_rows
        share = other.num_rows / total
        step = other.mean - self.mean
        spread = (1 - share) * self.variance + share * other.variance
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            covariance = torch.lerp(self.covariance, other.covariance, share)
            covariance.addr_(step, step[: covariance.shape[1]], alpha=share * (1 - share))
        return Moments(total, self.mean + share * step, spread + share * (1 - share) * step.square(), covariance)

    @classmethod
    def of(cls, rows: Tensor, *, covariance: bool | int = False, weights: Tensor | None = None) -> Moments:
        """The moments of `rows` `[N, W]`, each counted `weights` `[N]` times; the weights sum to N.

        `covariance` is wanted with all columns, or with so many.

        Sums are in float64 where the device has it; products are of centred rows, in float32 where the rows are no
        wider, which costs nothing that matters beside the rows' own rounding and halves the time.
        """
        rows = rows.cpu() if rows.device.type == "mps" else rows  # MPS has no float64
        weight_N = (torch.ones(len(rows)) if weights is None else weights).to(rows.device, torch.float64)
        chunks = list(zip(torch.split(rows, _CHUNK_ROWS), torch.split(weight_N, _CHUNK_ROWS), strict=True))
        mean = torch.stack([weight_R @ chunk_RW.to(torch.float64) for chunk_RW, weight_R in chunks]).sum(0) / len(rows)
        variance = torch.zeros_like(mean)
        columns = len(mean) if covariance is True else int(covariance)
        products = torch.zeros(len(mean), columns, dtype=torch.float64, device=rows.device)
        for chunk_RW, weight_R in chunks:
            scaled_RW = weight_R.sqrt()[:, None] * (chunk_RW.to(torch.float64) - mean)
            variance += scaled_RW.square().sum(0)
            if columns:
                scaled_RW = scaled_RW.to(torch.promote_types(rows.dtype, torch.float32))
                products += scaled_RW.T @ scaled_RW[:, :columns]
        moments = cls(len(rows), mean.cpu(), (variance / len(rows)).cpu())
        return replace(moments, covariance=(products / len(rows)).cpu()) if columns else moments


@dataclass(frozen=True)
class ActivationStatistics:
    """The moments of every site's hidden rows, by site name."""

    sites: Mapping[str, Moments]

    def check(self, sites: Sequence[NeuronSite], *, covariance: bool = False) -> None:
        """Raise ValueError unless these are statistics of such sites, with covariances if those are needed."""
        for site in sites:
            if site.name not in self.sites:
                raise ValueError(f"no activation statistics for {site.name}; collect them on this model")
            width = len(self.sites[site.name].mean)
            if width != site.width:
                raise ValueError(
                    f"the activation statistics of {site.name} are of {width} neurons, the site has {site.width}; "
                    "collect them on this model"
                )
            if covariance and self.sites[site.name].covariance is None:
                raise ValueError(
                    f"the activation statistics of {site.name} hold no covariance; collect them with covariance=True"
                )

    def save(self, path: Path | str) -> None:
        """Write `<site>.mean`, `.variance` and, if there, `.covariance` as safetensors; row counts in the metadata."""
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
        """Read what `save` wrote, with or without covariances."""
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get("pathprune", "{}"))
            if described.get("schema") != _SCHEMA_VERSION or "num_rows" not in described:
                raise ValueError(f"{path} holds no activation statistics of schema version {_SCHEMA_VERSION}")
            present = set(file.keys())
            return cls(
                {
                    name: Moments(
                        rows,
                        **{
                            field: file.get_tensor(f"{name}.{field}")
                            for field in _FIELDS
                            if f"{name}.{field}" in present
                        },
                    )
                    for name, rows in described["num_rows"].items()
                }
            )


def collect_statistics(
    adapted: AdaptedModel, batches: Iterable[tuple[Tensor, Any]], *, covariance: bool = False
) -> ActivationStatistics:
    """Run the model once over `batches` of `(images [B, C, H, W], labels)` and gather every site's moments.

    With `covariance` they take 8 `W_l`² bytes a site: 226 MB for all of a ViT-S, 0.9 GB for a ViT-B. Raises ValueError
    if there are no images, or naming the first block whose hidden rows are NaN or infinite.
    """
    parameter = next(adapted.model.parameters())
    with evaluating(adapted.model), torch.no_grad(), _gathering(adapted.sites, covariance) as gathered:
        for images, _ in batches:
            adapted.model(images.to(parameter))
    if not gathered:
        raise ValueError("activation statistics need at least one image; there are no calibration batches")
    return ActivationStatistics(gathered)


@contextmanager
def _gathering(sites: Sequence[NeuronSite], covariance: bool) -> Iterator[dict[str, Moments]]:
    """While open, every forward adds its hidden rows to the yielded moments."""
    gathered: dict[str, Moments] = {}

    def gather(site: NeuronSite, hidden: Tensor) -> None:
        moments = Moments.of(hidden.flatten(0, -2), covariance=covariance)
        if not moments.mean.isfinite().all():
            raise ValueError(
                f"block {site.block}: the MLP's hidden activations ({site.name}) are NaN or infinite; check the "
                "images' normalisation, or run the model in float32"
            )
        known = gathered.get(site.name)
        gathered[site.name] = moments if known is None else known.merge(moments)

    def hook_for(site: NeuronSite) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            gather(site, args[0])

        return hook

    with attach_hooks(site.down.register_forward_pre_hook(hook_for(site)) for site in sites):
        yield gathered
