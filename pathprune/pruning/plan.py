"""Prune plans: the neurons, heads and head sizes that every site keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathprune.models.seam import AttentionSite, HeadSizes, NeuronSite


class PlanRow(NamedTuple):
    """Dense and kept width of one site."""

    site: str
    block: int
    width: int
    kept: int


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """Heads and head sizes to keep at one site of attention.

    - block: index of the block that holds the site.
    - sizes: sizes of the dense model.
    - heads: heads that stay, sorted int64 `[H]`.
    - query_dim, value_dim: channels of each of these heads that stay, of queries and keys and of values.

    Raises ValueError if the heads are empty, unsorted or out of range, or if a size is out of range.
    """

    block: int
    sizes: HeadSizes
    heads: Tensor
    query_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        if not _are_columns(self.heads, width=self.sizes.num_heads):
            raise ValueError(
                f"kept heads of block {self.block} must be sorted int64 numbers from 0 to {self.sizes.num_heads - 1}, "
                f"at least one; got {self.heads.tolist()}"
            )
        for name in ("query_dim", "value_dim"):
            dim, dense = getattr(self, name), getattr(self.sizes, name)
            if not 1 <= dim <= dense:
                raise ValueError(f"{name} of block {self.block} must be from 1 to {dense}; got {dim}")

    @classmethod
    def keep_all(cls, site: AttentionSite) -> HeadPlan:
        """Return the plan that removes nothing from a site."""
        sizes = site.sizes
        return cls(site.block, sizes, torch.arange(sizes.num_heads), sizes.query_dim, sizes.value_dim)

    @property
    def kept_sizes(self) -> HeadSizes:
        """Return the sizes of the pruned model."""
        return HeadSizes(len(self.heads), self.query_dim, self.value_dim)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "block": self.block,
            "dense": self.sizes._asdict(),
            "heads": self.heads.tolist(),
            "query_dim": self.query_dim,
            "value_dim": self.value_dim,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadPlan:
        """Build the plan from the result of `to_dict`."""
        heads = torch.tensor(data["heads"], dtype=torch.int64)
        return cls(data["block"], HeadSizes(**data["dense"]), heads, data["query_dim"], data["value_dim"])


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """Neurons to keep, and optionally heads, by site name.

    - kept: columns of the site's `down` that stay, sorted int64 `[K]`.
    - widths: number of neurons in the dense model.
    - blocks: index of the block that holds the site.
    - attention: heads and head sizes to keep, by site of attention; other attention stays whole.

    Raises ValueError if the first three name different sites, or if kept columns are empty, unsorted or out of range.
    """

    kept: Mapping[str, Tensor]
    widths: Mapping[str, int]
    blocks: Mapping[str, int]
    attention: Mapping[str, HeadPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kept.keys() == self.widths.keys() == self.blocks.keys():
            raise ValueError(
                f"kept, widths and blocks of a plan must name the same sites; got {list(self.kept)}, "
                f"{list(self.widths)} and {list(self.blocks)}"
            )
        for name, kept in self.kept.items():
            if not _are_columns(kept, width=self.widths[name]):
                raise ValueError(
                    f"kept neurons of {name} must be sorted int64 columns from 0 to {self.widths[name] - 1}, at least "
                    f"one; got {kept.tolist()}"
                )

    def pruned(self, name: str) -> Tensor:
        """Return the columns of a site to remove, sorted."""
        mask = torch.ones(self.widths[name], dtype=torch.bool)
        mask[self.kept[name]] = False
        return mask.nonzero().flatten()

    @property
    def neurons_removed(self) -> float:
        """Return the removed fraction of all MLP neurons."""
        return 1 - sum(len(kept) for kept in self.kept.values()) / sum(self.widths.values())

    @property
    def heads_removed(self) -> float:
        """Return the removed fraction of the heads of all sites that `attention` names."""
        dense = sum(plan.sizes.num_heads for plan in self.attention.values())
        return 1 - sum(len(plan.heads) for plan in self.attention.values()) / dense if dense else 0.0

    @property
    def removes_channels(self) -> bool:
        """True if any head keeps only some of its channels, which takes bases."""
        return any(plan.kept_sizes[1:] != plan.sizes[1:] for plan in self.attention.values())

    @property
    def first_block(self) -> int | None:
        """Return the first block from which the plan removes anything; None if it removes nothing."""
        blocks = [row.block for row in self.table() if row.kept < row.width]
        blocks += [plan.block for plan in self.attention.values() if plan.kept_sizes != plan.sizes]
        return min(blocks, default=None)

    def table(self) -> list[PlanRow]:
        """Return one row per site, in order."""
        return [PlanRow(name, self.blocks[name], self.widths[name], len(kept)) for name, kept in self.kept.items()]

    def check(self, sites: Sequence[NeuronSite], attention_sites: Sequence[AttentionSite] = ()) -> None:
        """Raise ValueError unless the plan is for sites of these names and widths."""
        widths = {site.name: site.width for site in sites}
        if widths != dict(self.widths):
            raise ValueError(
                f"the plan is for widths {dict(self.widths)}, but the model has {widths}; make a plan for this model"
            )
        sizes = {site.name: tuple(site.sizes) for site in attention_sites}
        planned = {name: tuple(plan.sizes) for name, plan in self.attention.items()}
        if not planned.items() <= sizes.items():
            raise ValueError(
                f"the plan is for heads and head sizes {planned}, but the model has {sizes}; make a plan for this model"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, one entry per site."""
        neurons = {
            row.site: {"block": row.block, "width": row.width, "kept": self.kept[row.site].tolist()}
            for row in self.table()
        }
        return {**neurons, **{name: plan.to_dict() for name, plan in self.attention.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrunePlan:
        """Build the plan from the result of `to_dict`."""
        neurons = {name: site for name, site in data.items() if "kept" in site}
        return cls(
            kept={name: torch.tensor(site["kept"], dtype=torch.int64) for name, site in neurons.items()},
            widths={name: int(site["width"]) for name, site in neurons.items()},
            blocks={name: int(site["block"]) for name, site in neurons.items()},
            attention={name: HeadPlan.from_dict(site) for name, site in data.items() if name not in neurons},
        )


def _are_columns(kept: Tensor, *, width: int) -> bool:
    if kept.dtype != torch.int64 or kept.ndim != 1 or not 0 < len(kept) <= width:
        return False
    return bool(kept[0] >= 0 and kept[-1] < width and (kept.diff() > 0).all())
