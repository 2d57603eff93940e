"""Prune plans: the neurons that every site keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite


class PlanRow(NamedTuple):
    """Dense and kept width of one site."""

    site: str
    block: int
    width: int
    kept: int


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """Neurons to keep, by site name.

    - kept: columns of the site's `down` that stay, sorted int64 `[K]`.
    - widths: number of neurons in the dense model.
    - blocks: index of the block that holds the site.

    Raises ValueError if the three name different sites, or if kept columns are empty, unsorted or out of range.
    """

    kept: Mapping[str, Tensor]
    widths: Mapping[str, int]
    blocks: Mapping[str, int]

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

    def table(self) -> list[PlanRow]:
        """Return one row per site, in order."""
        return [PlanRow(name, self.blocks[name], self.widths[name], len(kept)) for name, kept in self.kept.items()]

    def check(self, sites: Sequence[NeuronSite]) -> None:
        """Raise ValueError unless the plan is for sites of these names and widths."""
        widths = {site.name: site.width for site in sites}
        if widths != dict(self.widths):
            raise ValueError(
                f"the plan is for widths {dict(self.widths)}, but the model has {widths}; make a plan for this model"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, one entry per site."""
        return {
            row.site: {"block": row.block, "width": row.width, "kept": self.kept[row.site].tolist()}
            for row in self.table()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrunePlan:
        """Build the plan from the result of `to_dict`."""
        return cls(
            kept={name: torch.tensor(site["kept"], dtype=torch.int64) for name, site in data.items()},
            widths={name: int(site["width"]) for name, site in data.items()},
            blocks={name: int(site["block"]) for name, site in data.items()},
        )


def _are_columns(kept: Tensor, *, width: int) -> bool:
    if kept.dtype != torch.int64 or kept.ndim != 1 or not 0 < len(kept) <= width:
        return False
    return bool(kept[0] >= 0 and kept[-1] < width and (kept.diff() > 0).all())
