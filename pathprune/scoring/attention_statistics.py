"""Attention statistics: second moments of every head's queries, keys and mixed values over the calibration images.

The mixed values are the input of the output projection. Every token of every image is one row.
"""

# H heads, E channels of a head, W channels of all heads, T tokens, R rows

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from pathprune.models.adapt import evaluating
from pathprune.models.attention import group_tokens, read_projection
from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel, AttentionSite, Projection
from pathprune.scoring.batches import Batches
from pathprune.scoring.moments import Moments

_SCHEMA_VERSION = 1
_PARTS = ("mean", "variance", "covariance", "queries", "keys")  # a file may lack the last two


@dataclass(frozen=True)
class HeadMoments:
    """Moments of one attention, float64 on the CPU.

    - values: moments of the mixed values of all heads `[W]`, with their covariance `[W, W]`.
    - queries, keys: second moments by head `[H, E, E]`. Keys are centred over the tokens that are attended to together,
      since softmax ignores a constant added to all of them. None if queries and keys cannot be narrowed.
    """

    values: Moments
    queries: Tensor | None = None
    keys: Tensor | None = None

    def second_moments_of_values(self, num_heads: int) -> Tensor:
        """Return the second moments of the mixed values by head, `[H, E, E]`."""
        assert self.values.covariance is not None
        mean_HE = self.values.mean.view(num_heads, -1)
        dim = mean_HE.shape[1]
        covariance_HEHE = self.values.covariance.view(num_heads, dim, num_heads, dim)
        covariance_HEE = covariance_HEHE.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return covariance_HEE + mean_HE[:, :, None] * mean_HE[:, None, :]


@dataclass(frozen=True)
class AttentionStatistics:
    """Moments of every site of attention, by site name."""

    sites: Mapping[str, HeadMoments]

    def check(self, sites: Sequence[AttentionSite]) -> None:
        """Raise ValueError unless the statistics are of these sites."""
        for site in sites:
            moments = self.sites.get(site.name)
            if moments is None:
                raise ValueError(f"no attention statistics for {site.name}; collect them on this model")
            if len(moments.values.mean) != site.width:
                raise ValueError(
                    f"attention statistics of {site.name} are of {len(moments.values.mean)} channels, but the site has "
                    f"{site.width}; collect them on this model"
                )

    def save(self, path: Path | str) -> None:
        """Save as safetensors: `<site>.mean`, `.variance`, `.covariance`, `.queries`, `.keys`; row counts apart."""
        tensors: dict[str, Tensor] = {}
        for name, moments in self.sites.items():
            values = moments.values
            parts = (values.mean, values.variance, values.covariance, moments.queries, moments.keys)
            tensors |= {
                f"{name}.{part}": tensor.contiguous()
                for part, tensor in zip(_PARTS, parts, strict=True)
                if tensor is not None
            }
        num_rows = {name: moments.values.num_rows for name, moments in self.sites.items()}
        save_file(tensors, path, {"pathprune": json.dumps({"attention": _SCHEMA_VERSION, "num_rows": num_rows})})

    @classmethod
    def load(cls, path: Path | str) -> AttentionStatistics:
        """Load a file that `save` wrote; raises ValueError for any other safetensors file."""
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("pathprune", "{}"))
            if metadata.get("attention") != _SCHEMA_VERSION:
                raise ValueError(
                    f"{path} holds no attention statistics of schema version {_SCHEMA_VERSION}; collect them again"
                )
            stored = set(file.keys())

            def read(name: str, part: str) -> Tensor | None:
                key = f"{name}.{part}"
                return file.get_tensor(key) if key in stored else None

            sites = {}
            for name, num_rows in metadata["num_rows"].items():
                mean, variance, covariance = (
                    file.get_tensor(f"{name}.{each}") for each in ("mean", "variance", "covariance")
                )
                values = Moments(num_rows, mean, variance, covariance)
                sites[name] = HeadMoments(values, read(name, "queries"), read(name, "keys"))
            return cls(sites)


def collect_attention_statistics(adapted: AdaptedModel, batches: Batches) -> AttentionStatistics:
    """Run the model once over `batches` of `(images [B, C, H, W], labels)` and collect every attention's moments.

    Labels are not used. Raises `UnsupportedModelError` if the model's attention cannot be narrowed, and ValueError if
    there are no images or if a block's attention is NaN or infinite.
    """
    adapted.check_attention()
    parameter = next(adapted.model.parameters())
    sums = {site.name: _Sums(site) for site in adapted.attention_sites}
    with evaluating(adapted.model), torch.no_grad(), _collect(adapted.attention_sites, sums):
        for images, _ in batches:
            adapted.model(images.to(parameter))
    if any(each.values is None for each in sums.values()):
        raise ValueError("attention statistics need at least one image, but there are no calibration batches")
    return AttentionStatistics({name: each.finish() for name, each in sums.items()})


@dataclass
class _Sums:
    """Running sums of one site."""

    site: AttentionSite
    values: Moments | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    num_queries: int = 0

    def add_values(self, mixed: Tensor) -> None:
        moments = Moments.from_rows(mixed.flatten(0, -2), covariance=True)
        if not moments.mean.isfinite().all():
            raise ValueError(
                f"block {self.site.block}: the attention's values ({self.site.name}) are NaN or infinite; check the "
                "images' normalisation, or run the model in float32"
            )
        self.values = moments if self.values is None else self.values.merge(moments)

    def add_queries(self, x: Tensor) -> None:
        x = group_tokens(self.site.attention, x)
        queries, keys = (self._compute(projection, x) for projection in (self.site.queries, self.site.keys))
        keys = keys - keys.mean(-2, keepdim=True)
        self.queries, self.keys = (
            _sum_products(rows, total) for rows, total in ((queries, self.queries), (keys, self.keys))
        )
        self.num_queries += queries[..., 0, :, 0].numel()

    def _compute(self, projection: Projection, x: Tensor) -> Tensor:
        """Compute queries or keys in float64: `[…, T, D]` -> `[…, H, T, E]`."""
        weight, bias = read_projection(self.site.attention, projection)
        rows = linear(x, weight, bias)
        rows = rows.view(*rows.shape[:-1], self.site.sizes.num_heads, -1).transpose(-3, -2)
        # MPS has no float64
        return (rows.cpu() if rows.device.type == "mps" else rows).to(torch.float64)

    def finish(self) -> HeadMoments:
        assert self.values is not None
        queries, keys = (None if total is None else total / self.num_queries for total in (self.queries, self.keys))
        return HeadMoments(self.values, queries, keys)


def _sum_products(rows: Tensor, total: Tensor | None) -> Tensor:
    """Add the products of rows `[…, H, T, E]` by head to `total` `[H, E, E]`, on the CPU."""
    products = torch.einsum("nhta,nhtb->hab", *(2 * [rows.flatten(0, -4)])).cpu()
    return products if total is None else total + products


@contextmanager
def _collect(sites: Sequence[AttentionSite], sums: Mapping[str, _Sums]) -> Iterator[None]:
    """Add every forward pass inside the context to `sums`."""

    def collect_values(each: _Sums) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: each.add_values(args[0])

    def collect_queries(each: _Sums) -> Callable[[nn.Module, tuple[Tensor, ...], Mapping[str, Any]], None]:
        # Transformers passes the attention's input by name
        return lambda _, args, kwargs: each.add_queries(args[0] if args else kwargs["hidden_states"])

    def register() -> Iterator[Any]:
        for site in sites:
            each = sums[site.name]
            yield site.down.register_forward_pre_hook(collect_values(each))
            if "queries" not in site.refusals:
                yield site.attention.register_forward_pre_hook(collect_queries(each), with_kwargs=True)

    with attach_hooks(register()):
        yield
